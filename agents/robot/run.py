"""drive: a policy on a robot, as the command line asks for it. Without ``live`` nothing is sent."""

from __future__ import annotations

import contextlib
import gc
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import tyro

from neuralsim.agents.heads.chunk_policy import ActionChunkPolicy, ObservationHistory
from neuralsim.agents.robot.control_loop import ControlLoop, ControlLoopConfig, OnRefusal, RobotEpisode, StopButton
from neuralsim.agents.robot.emergency_stop import EmergencyStopKey
from neuralsim.agents.robot.episode_recorder import EpisodeRecorder, run_folder
from neuralsim.agents.robot.interface import RobotInterface
from neuralsim.agents.robot.loop_statistics import LoopStatistics
from neuralsim.agents.robot.report import report_of
from neuralsim.agents.robot.resolve import SIM, RobotSource
from neuralsim.agents.robot.timing import FixedRateTimer
from neuralsim.agents.robot.wrappers import DryRunRobot, TimeoutRobot
from neuralsim.envs.registry import find_real_world
from neuralsim.envs.robots.camera import Camera
from neuralsim.envs.robots.faults import Faults
from neuralsim.envs.robots.robot import ResettableRobot, Robot
from neuralsim.evaluation.report import Report
from neuralsim.pretrained.world import World, open_world
from neuralsim.runtime.command import CommandOutput
from neuralsim.runtime.imports import load_entry_point
from neuralsim.runtime.interrupt import GracefulInterrupt
from neuralsim.runtime.progress import progress
from neuralsim.spec import WorldSpec
from neuralsim.storage.resolve import list_worlds

if TYPE_CHECKING:
    from neuralsim.agents.safety.monitor import SafetyMonitor

SWITCH_SECONDS = 0.001
"""How long a thread may hold the interpreter while others want it: Python's own 5 ms are a quarter of a period at 50 Hz."""
CTRL_C = "ctrl-C"
STALE_SECONDS = 1.0
"""Seconds without a new frame that are taken for a lost camera, where the robot itself does not notice."""


@dataclass(frozen=True)
class DriveConfig:
    """Close a policy on a robot at a fixed rate. A dry run, unless --live: it looks, thinks, checks and tells what it would send."""

    OLD_FLAGS: ClassVar[dict[str, str]] = {"--execute": "--n-action-steps"}
    world: str = "pusht"
    """Name of a shipped world, or the folder of one of your own: whose policy acts, and which imagines what comes of it."""
    policy: str = "head"
    """Which of the world's policies acts, or module:function, called with the world, that returns a ActionChunkPolicy."""
    server: str | None = None
    """Where the policy is served instead ('neuralsim serve'): host:port or ws://host:port."""
    robot: str = "sim"
    """sim (Push-T in a process of its own), ws://host:port ('neuralsim robot-sim'), or module:function, called without arguments,
    that returns a robot with LeRobot's verbs."""
    live: bool = False
    """Really send. Space, escape or ctrl-C stop the robot."""
    hz: float | None = None
    """Actions a second; the world's own rate by default."""
    pace: Literal["real", "step"] = "real"
    """real: the robot goes on while the policy thinks. step: a simulated robot waits for each decision; fast, and repeatable."""
    episodes: int = 1
    """How many. A simulated robot is put at a new start for each."""
    steps: int | None = None
    """Actions in an episode at most; as the world's own task has it by default."""
    n_action_steps: int | None = None
    """How many actions of a chunk are done before the next takes over, or as many as pass while it is thought of. By default what the
    policy itself says (2 of the world's own heads), else the whole chunk."""
    camera: str | None = None
    """Which of the robot's cameras; needed where it has several."""
    on_refusal: OnRefusal = "hold"
    """What to do about a chunk whose imagined future is not allowed: rest and think again, undo what was done last, or stop."""
    check: bool = True
    """Imagine each chunk before it is done. Hard limits stay without it."""
    dreams: str | None = None
    """The world in which chunks are imagined; the compact one of the world's name, if it ships."""
    limits: str | None = None
    """module:function that returns the robot's Limits; by default those known of the world, else the range of its actions."""
    rule: tuple[str, ...] = ()
    """module:function of each rule that imagined futures must keep (see agents.safety)."""
    patience: float = 2.0
    """Seconds that the robot may take to answer; then it counts as lost."""
    faults: tyro.conf.OmitArgPrefixes[Faults] = field(default_factory=Faults)
    out: Path | None = None
    """Episode store that is written; by default a new one below runs/drive."""
    seed: int = 0
    """Makes starts and the policy's choices repeatable."""
    json: Path | None = None
    """Also write the figures to this file."""
    device: str = "auto"
    """Where the model runs: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        for name in ("episodes", "steps", "n_action_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name}: expected 1 or more, got {value}")
        if self.seed < 0:
            raise ValueError(f"--seed: expected 0 or more, got {self.seed}")
        if self.hz is not None and not 0 < self.hz <= 1000:
            raise ValueError(f"--hz: expected more than 0 and at most 1000, got {self.hz:g}")
        if not 0 < self.patience < math.inf:
            raise ValueError(f"--patience: expected more than 0 seconds, got {self.patience:g}")
        self.source  # noqa: B018 (says what is wrong with it)

    @property
    def source(self) -> RobotSource:
        """Which robot is meant."""
        return RobotSource(self.robot)


@dataclass(frozen=True)
class Driven:
    """How a drive went: its episodes, the figures, the files written, and why it was stopped ("" where it was not)."""

    outings: tuple[RobotEpisode, ...]
    report: Report
    files: tuple[Path, ...]
    stopped: str


def drive(config: DriveConfig, show: bool = False, say: Callable[[str], None] = print) -> Driven:
    """Drive until the episodes are done or something stops it; the robot is at rest and let go then, and what was driven is in the
    store. ``say`` is told what a dry run would send; ``show``: also a line of progress each second, on stderr.

    Raises ValueError or FileNotFoundError for a world, policy or robot that does not do, RobotLost where there is no robot.
    """
    world = open_world(config.world, config.device)
    spec, hz = world.spec, config.hz or world.spec.rate_hz
    with contextlib.ExitStack() as opened:
        policy = opened.enter_context(_policy(config, world))
        if (policy.spec.frame_shape, policy.spec.action_names) != (spec.frame_shape, spec.action_names):
            raise ValueError(f"the policy is of {policy.spec}, and world {config.world!r} is {spec}")
        monitor = _monitor(config, world)
        _warm(policy, monitor, config.check)
        robot = TimeoutRobot(
            opened.enter_context(config.source.open(spec, config.pace, hz, config.faults, config.seed)), config.patience
        )
        box = EpisodeRecorder(config.out or run_folder(), _recorded(spec), _state_names(spec))
        button, pacemaker = StopButton(), FixedRateTimer(hz)
        key = opened.enter_context(EmergencyStopKey(lambda: button.press("emergency stop")))
        opened.enter_context(_stopped_by_signals(button))
        opened.enter_context(_on_time())
        display = opened.enter_context(_Display(config.episodes, show))
        if config.live and key.listening:
            display.tell("space or escape: emergency stop")
        driven: Robot = (
            robot if config.live else DryRunRobot(robot, spec, lambda action: say(_would_send(spec, action)))
        )
        camera = None if config.camera is None else Camera(config.camera)
        stale = STALE_SECONDS if config.pace == "real" else math.inf
        rules = ControlLoopConfig(
            steps=config.steps or _steps(spec),
            n_action_steps=config.n_action_steps,
            pace=config.pace,
            check=config.check,
            on_refusal=config.on_refusal,
            real_actions=config.live,
            seed=config.seed,
        )
        loop = ControlLoop(
            RobotInterface(driven, spec, pacemaker.clock, camera, stale),
            policy,
            monitor,
            pacemaker,
            box,
            rules,
            button,
            display.tell,
            display.watch,
            about={
                "policy": f"drive:{config.server or config.policy}",
                "model": config.world,
                "robot": config.robot,
                "hz": hz,
            },
        )
        opened.callback(loop.close)
        lost = ""
        try:
            outings = loop.run(config.episodes, _beginner(config, robot, spec))
        finally:
            try:
                box.close()
            except OSError as error:
                lost = str(error)
                display.tell(lost)
    stopped = (outings[-1].stopped if outings else "") or lost
    about = {
        "policy": config.server or config.policy,
        "chunk": policy.chunk,
        "robot": config.robot,
        "live": config.live,
        "pace": config.pace,
        "episodes": len(outings),
        "checked": config.check,
        "seed": config.seed,
        "stopped": stopped or None,
        "store": str(box.store.folder),
        "recorded": box.written,
    }
    real = hz if config.pace == "real" else None
    report = report_of(f"{config.world} on robot {config.robot}", outings, loop.gauges, real, about)
    files = [box.store.folder] if box.written else []
    with contextlib.suppress(OSError) if lost else contextlib.nullcontext():  # a full disk is told of already
        files.append(report.save(box.store.folder / "drive.json"))
        if config.json is not None:
            files.append(report.save(config.json))
    return Driven(tuple(outings), report, tuple(files), stopped)


# -- what is driven ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _policy(config: DriveConfig, world: World) -> Iterator[ActionChunkPolicy]:
    """Whoever acts, for as long as the context."""
    if config.server is not None:
        from neuralsim.agents.serving.client import PolicyClient

        with PolicyClient(config.server) as policy:
            yield policy
    elif ":" in config.policy:
        yield load_entry_point(config.policy, "--policy")(world)
    else:
        from neuralsim.agents.heads.wam_policies import find_head

        yield find_head(config.policy, world)


def _monitor(config: DriveConfig, world: World) -> SafetyMonitor:
    from neuralsim.agents.safety.monitor import Limits, SafetyMonitor
    from neuralsim.envs.tasks.real_world import load

    dreams = open_world(config.dreams or _dreaming(world), config.device)
    if (dreams.spec.frame_shape, dreams.spec.action_names) != (world.spec.frame_shape, world.spec.action_names):
        raise ValueError(f"--dreams: world {config.dreams!r} is {dreams.spec}, and the robot is driven as {world.spec}")
    if config.limits is not None:
        limits = load_entry_point(config.limits, "--limits")()
    else:
        real_world = find_real_world(world.spec.name)
        own = None if real_world is None else real_world.robot.limits
        limits = Limits() if own is None else load(own)()
    return SafetyMonitor(dreams, limits, tuple(load_entry_point(rule, "--rule") for rule in config.rule))


def _dreaming(world: World) -> str | World:
    """The compact world of that name, if one ships: a chunk is imagined in less time there. Else the world itself."""
    compact = f"{world.spec.name}-latent"
    if compact not in list_worlds():
        return world
    same = open_world(compact).spec.frame_shape == world.spec.frame_shape
    return compact if same else world


def _warm(policy: ActionChunkPolicy, monitor: SafetyMonitor, check: bool) -> None:
    """Think once for nobody: a model's first forward takes several times as long."""
    nothing = ObservationHistory.first(np.zeros((1, *policy.spec.frame_shape), np.uint8), policy.spec)
    chunk = policy.predict_action_chunk(nothing, [0])
    if check:
        monitor.imagine(nothing, chunk[0])


def _beginner(config: DriveConfig, robot: TimeoutRobot, spec: WorldSpec) -> Callable[[int], None]:
    """What puts the robot where each episode begins: a simulated one at the starts that 'neuralsim evaluate' has of this seed. Others
    stay where they are, and so does every robot but our own in a dry run."""
    states: list[np.ndarray] = []

    def begin(number: int) -> None:
        if not isinstance(robot.robot, ResettableRobot) or not (config.live or config.source.word == SIM):
            return
        real_world = find_real_world(spec.name)
        if not states and real_world is not None and not real_world.seeded:
            rng = np.random.default_rng([config.seed, 77])
            states.extend(real_world.draw_state(rng) for _ in range(config.episodes))
        if states:
            robot.reset(state=states[number])
        else:
            robot.reset(seed=config.seed + number)

    return begin


def _steps(spec: WorldSpec) -> int:
    """Actions in an episode where nobody says how many."""
    real_world = find_real_world(spec.name)
    return 300 if real_world is None else real_world.horizon


def _recorded(spec: WorldSpec) -> WorldSpec:
    """The spec of the store: the true world's own where it is known, so that recordings and collections can be learned from together."""
    real_world = find_real_world(spec.name)
    if real_world is None or spec.height != spec.width:
        return spec
    own = real_world.make_spec(spec.height)
    return own if own.action_names == spec.action_names and own.frame_shape == spec.frame_shape else spec


def _state_names(spec: WorldSpec) -> tuple[str, ...]:
    real_world = find_real_world(spec.name)
    return () if real_world is None else real_world.state_names


# -- what is told ------------------------------------------------------------------------------------------------------


def _would_send(spec: WorldSpec, action: dict[str, Any]) -> str:
    values = (f"{n} {action[n]:+.2f} {u}" for n, u in zip(spec.action_names, spec.action_units, strict=True))
    return f"would send {', '.join(values)}"


class _Display:
    """Progress on stderr: a line each second, and what happens in between."""

    def __init__(self, episodes: int, show: bool) -> None:
        self._show, self._bar, self._next = show, progress(show, field="line"), 0.0
        self._task = self._bar.add_task("driving", total=episodes, line="")

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def tell(self, text: str) -> None:
        """One line for good."""
        if self._show:
            self._bar.console.print(text, markup=False, highlight=False)

    def watch(self, gauges: LoopStatistics) -> None:
        """See ControlLoop."""
        now = time.monotonic()
        if not self._show or now < self._next:
            return
        self._next = now + 1
        self._bar.update(self._task, completed=gauges.episodes, line=gauges.line())
        if not self._bar.console.is_terminal:
            self.tell(gauges.line())


@contextlib.contextmanager
def _on_time() -> Iterator[None]:
    """A loop gets the interpreter when it is due: other threads give it up sooner, and what is loaded by now (models, libraries) is not
    searched for garbage again and again, which takes many milliseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(before)


@contextlib.contextmanager
def _stopped_by_signals(button: StopButton) -> Iterator[None]:
    """ctrl-C or a polite kill press ``button``, from a thread: whoever holds its locks may be the one who was interrupted. A second
    one interrupts."""
    over = threading.Event()

    def listen(stopping: GracefulInterrupt) -> None:
        while not over.wait(0.02):
            if stopping.asked:
                button.press(CTRL_C)
                return

    try:
        with GracefulInterrupt() as stopping:
            threading.Thread(target=listen, args=(stopping,), name="neuralsim-signals", daemon=True).start()
            yield
    finally:
        over.set()


def drive_command(config: DriveConfig) -> CommandOutput:
    """Run `drive` and return its report; a robot that was stopped ends the command with an error."""
    driven = drive(config, show=True)
    stop = OSError(f"the robot was stopped: {driven.stopped}") if driven.stopped else None
    reason = KeyboardInterrupt() if driven.stopped == CTRL_C else stop
    return CommandOutput([driven.report.table()], missed=driven.report.missed, files=driven.files, stop=reason)
