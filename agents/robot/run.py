"""The ``drive`` command: runs a policy on a robot. Nothing is sent without ``live``."""

from __future__ import annotations

import contextlib
import gc
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import tyro

from neuralsim.agents.heads.chunk_policy import ActionChunkPolicy, ObservationHistory
from neuralsim.agents.policies.resolve import resolve_chunk_policy
from neuralsim.agents.robot.action_selector import ControlLoopConfig, OnRefusal
from neuralsim.agents.robot.control_loop import ControlLoop, LoopHooks, RobotEpisode
from neuralsim.agents.robot.emergency_stop import CTRL_C, EmergencyStopKey, StopButton, stop_on_signals
from neuralsim.agents.robot.episode_recorder import EpisodeRecorder, run_folder
from neuralsim.agents.robot.interface import RobotInterface
from neuralsim.agents.robot.loop_statistics import LoopStatistics
from neuralsim.agents.robot.report import report_of
from neuralsim.agents.robot.resolve import SIM, RobotSource
from neuralsim.agents.robot.timing import FixedRateTimer
from neuralsim.agents.robot.wrappers import DryRunRobot, TimeoutRobot
from neuralsim.agents.safety.limits import Limits
from neuralsim.agents.safety.monitor import SafetyMonitor
from neuralsim.envs.registry import find_real_world
from neuralsim.envs.robots.camera import Camera
from neuralsim.envs.robots.faults import Faults
from neuralsim.envs.robots.robot import ResettableRobot, Robot
from neuralsim.envs.tasks.real_world import load
from neuralsim.evaluation.report import Report
from neuralsim.pretrained.world import World, open_world
from neuralsim.runtime.command import CommandOutput
from neuralsim.runtime.files import folder_lock
from neuralsim.runtime.imports import load_entry_point
from neuralsim.runtime.progress import progress
from neuralsim.spec import WorldSpec
from neuralsim.storage.resolve import list_worlds

SWITCH_SECONDS = 0.001
"""Time that a thread may hold the interpreter while others want it: Python's own 5 ms are a quarter of a period at 50 Hz."""
STALE_SECONDS = 1.0
"""Time without a new frame that means a lost camera, where the robot itself does not notice."""


@dataclass(frozen=True)
class DriveConfig:
    """Run a policy on a robot at a fixed rate. A dry run, unless --live: it observes, infers, checks and shows what it would send."""

    OLD_FLAGS: ClassVar[dict[str, str]] = {
        "--execute": "--n-action-steps",
        "--patience": "--timeout",
        "--dreams": "--monitor-world",
    }
    world: str = "pusht"
    """Name of a shipped world, or the folder of one of your own; its policy acts, and it imagines what follows."""
    policy: str = "head"
    """Policy of the world that acts, or module:function, called with the world, that returns an ActionChunkPolicy."""
    server: str | None = None
    """Address of a policy server ('neuralsim serve') that acts instead: host:port or ws://host:port."""
    robot: str = "sim"
    """sim (the world's simulated robot, in a process of its own), ws://host:port ('neuralsim robot-sim'), or module:function, called
    without arguments, that returns a robot with LeRobot's verbs."""
    live: bool = False
    """Really send. Space, escape or ctrl-C stop the robot."""
    hz: float | None = None
    """Actions a second; the world's own rate by default."""
    pace: Literal["real", "step"] = "real"
    """real: the robot goes on while the policy infers. step: a simulated robot waits for each decision; fast, and repeatable."""
    episodes: int = 1
    """Number of episodes. A simulated robot is put at a new start for each."""
    steps: int | None = None
    """Most actions in an episode; those of the world's own task by default."""
    n_action_steps: int | None = None
    """Actions of a chunk that are done before the next takes over, or as many as pass while that is inferred. By default the policy's
    own number (2 for the world's own heads), else the whole chunk."""
    camera: str | None = None
    """Camera of the robot; needed where it has several."""
    on_refusal: OnRefusal = "hold"
    """Reaction to a chunk whose imagined future is not allowed: rest and infer again, undo the last actions, or stop."""
    check: bool = True
    """Imagine each chunk before it is done. Hard limits stay without it."""
    monitor_world: str | None = None
    """World in which chunks are imagined; the compact one of the world's name, if it ships."""
    limits: str | None = None
    """module:function that returns the robot's Limits; by default those known for the world, else the range of its actions."""
    rule: tuple[str, ...] = ()
    """module:function of each rule that imagined futures must keep (see agents.safety)."""
    timeout: float = 2.0
    """Seconds that the robot may take to answer; then it counts as lost."""
    faults: tyro.conf.OmitArgPrefixes[Faults] = field(default_factory=Faults)
    out: Path | None = None
    """Episode store that is written; by default a new one below runs/drive."""
    seed: int = 0
    """Makes starts and the policy's choices repeatable."""
    json: Path | None = None
    """Also write the figures to this file."""
    device: str = "auto"
    """Device of the model: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        for name in ("episodes", "steps", "n_action_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name}: expected 1 or more, got {value}")
        if self.seed < 0:
            raise ValueError(f"--seed: expected 0 or more, got {self.seed}")
        if self.hz is not None and not 0 < self.hz <= 1000:
            raise ValueError(f"--hz: expected more than 0 and at most 1000, got {self.hz:g}")
        if not 0 < self.timeout < math.inf:
            raise ValueError(f"--timeout: expected more than 0 seconds, got {self.timeout:g}")
        RobotSource(self.robot)  # raises for a word that names no robot

    @property
    def source(self) -> RobotSource:
        """Robot that is named."""
        return RobotSource(self.robot)


@dataclass(frozen=True)
class DriveResult:
    """Outcome of a run on a robot."""

    episodes: tuple[RobotEpisode, ...]
    report: Report
    files: tuple[Path, ...]
    """Files and folders written."""
    stopped: str
    """Reason of an early end; empty without one."""


def drive(config: DriveConfig, show: bool = False, say: Callable[[str], None] = print) -> DriveResult:
    """Run the policy until the episodes are done or something stops it; then the robot is at rest and disconnected, and the
    episodes are in the store.

    Args:
        config: see DriveConfig.
        show: show a line of progress each second, on stderr.
        say: receives each action of a dry run in words.

    Raises ValueError or FileNotFoundError for a world, policy or robot that does not fit, RobotLost where there is no robot.
    """
    world = open_world(config.world, config.device)
    spec, hz = world.spec, config.hz or world.spec.rate_hz
    with contextlib.ExitStack() as stack:
        policy = stack.enter_context(_policy(config, world))
        if (policy.spec.frame_shape, policy.spec.action_names) != (spec.frame_shape, spec.action_names):
            raise ValueError(f"the policy is of {policy.spec}, and world {config.world!r} is {spec}")
        monitor = _monitor(config, world)
        _warm_up(policy, monitor, config.check)
        stop, timer = StopButton(), FixedRateTimer(hz)
        source = stack.enter_context(config.source.open(spec, config.pace, hz, config.faults, config.seed))
        robot = TimeoutRobot(source, config.timeout, stop)
        folder = config.out or run_folder()
        stack.enter_context(folder_lock(folder, "driving a robot"))
        recorder = EpisodeRecorder(folder, _recorded_spec(spec), _state_names(spec))
        key = stack.enter_context(EmergencyStopKey(lambda: stop.press("emergency stop")))
        stack.enter_context(stop_on_signals(stop))
        stack.enter_context(_prompt_threads())
        display = stack.enter_context(_Display(config.episodes, show))
        if config.live and key.listening:
            display.log("space or escape: emergency stop")
        used: Robot = robot if config.live else DryRunRobot(robot, spec, lambda action: say(_would_send(spec, action)))
        camera = None if config.camera is None else Camera(config.camera)
        stale = STALE_SECONDS if config.pace == "real" else math.inf
        loop = ControlLoop(
            RobotInterface(used, spec, timer.clock, camera, stale),
            policy,
            monitor,
            timer,
            recorder,
            _loop_config(config, spec, hz),
            stop,
            LoopHooks(display.log, display.on_tick),
        )
        stack.callback(loop.close)
        lost = ""
        try:
            episodes = loop.run(config.episodes, _starts(config, robot, spec))
        finally:
            try:
                recorder.close()
            except OSError as error:
                lost = str(error)
                display.log(lost)
    stopped = (episodes[-1].stopped if episodes else "") or lost
    settings = {
        "policy": config.server or config.policy,
        "chunk": policy.chunk,
        "robot": config.robot,
        "live": config.live,
        "pace": config.pace,
        "episodes": len(episodes),
        "checked": config.check,
        "seed": config.seed,
        "stopped": stopped or None,
        "store": str(recorder.store.folder),
        "recorded": recorder.written,
    }
    real = hz if config.pace == "real" else None
    report = report_of(f"{config.world} on robot {config.robot}", episodes, loop.statistics, real, settings)
    files = [recorder.store.folder] if recorder.written else []
    with contextlib.suppress(OSError) if lost else contextlib.nullcontext():  # a full disk is reported already
        files.append(report.save(recorder.store.folder / "drive.json"))
        if config.json is not None:
            files.append(report.save(config.json))
    return DriveResult(tuple(episodes), report, tuple(files), stopped)


def drive_command(config: DriveConfig) -> CommandOutput:
    """Run `drive` and return its report; a robot that was stopped ends the command with an error."""
    result = drive(config, show=True)
    stop = OSError(f"the robot was stopped: {result.stopped}") if result.stopped else None
    reason = KeyboardInterrupt() if result.stopped == CTRL_C else stop
    return CommandOutput([result.report.table()], missed=result.report.missed, files=result.files, stop=reason)


# -- parts -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _policy(config: DriveConfig, world: World) -> Iterator[ActionChunkPolicy]:
    """Yield the policy that acts."""
    if config.server is not None:
        from neuralsim.agents.serving.client import PolicyClient

        with PolicyClient(config.server) as policy:
            yield policy
    else:
        yield resolve_chunk_policy(config.policy, world)


def _monitor(config: DriveConfig, world: World) -> SafetyMonitor:
    """Make the monitor with the robot's limits and the caller's rules."""
    imagining = open_world(config.monitor_world or _monitor_world(world), config.device)
    if (imagining.spec.frame_shape, imagining.spec.action_names) != (world.spec.frame_shape, world.spec.action_names):
        raise ValueError(
            f"--monitor-world: world {config.monitor_world!r} is {imagining.spec}, and the robot is driven as {world.spec}"
        )
    if config.limits is not None:
        limits = load_entry_point(config.limits, "--limits")()
    else:
        record = find_real_world(world.spec.name)
        known = None if record is None else record.robot.limits
        limits = Limits() if known is None else load(known)()
    return SafetyMonitor(imagining, limits, tuple(load_entry_point(rule, "--rule") for rule in config.rule))


def _monitor_world(world: World) -> str | World:
    """Return the compact world of that name, if one ships: a chunk is imagined in less time there. Else the world itself."""
    compact = f"{world.spec.name}-latent"
    if compact not in list_worlds():
        return world
    same = open_world(compact).spec.frame_shape == world.spec.frame_shape
    return compact if same else world


def _warm_up(policy: ActionChunkPolicy, monitor: SafetyMonitor, check: bool) -> None:
    """Run one inference to warm up; the first takes several times as long."""
    history = ObservationHistory.first(np.zeros((1, *policy.spec.frame_shape), np.uint8), policy.spec)
    chunk = policy.predict_action_chunk(history, [0])
    if check:
        monitor.imagine(history, chunk[0])


def _loop_config(config: DriveConfig, spec: WorldSpec, hz: float) -> ControlLoopConfig:
    record = find_real_world(spec.name)
    return ControlLoopConfig(
        steps=config.steps or (300 if record is None else record.horizon),
        n_action_steps=config.n_action_steps,
        pace=config.pace,
        check=config.check,
        on_refusal=config.on_refusal,
        real_actions=config.live,
        seed=config.seed,
        provenance={
            "policy": f"drive:{config.server or config.policy}",
            "model": config.world,
            "robot": config.robot,
            "hz": hz,
        },
    )


def _starts(config: DriveConfig, robot: TimeoutRobot, spec: WorldSpec) -> Callable[[int], None]:
    """Return the function that puts the robot where each episode begins: a simulated one at the starts of 'neuralsim evaluate'.

    Other robots stay where they are, and so does every robot but the simulated one in a dry run.
    """
    states: list[np.ndarray] = []

    def begin(number: int) -> None:
        if not isinstance(robot.robot, ResettableRobot) or not (config.live or config.source.word == SIM):
            return
        record = find_real_world(spec.name)
        if not states and record is not None and not record.seeded:
            rng = np.random.default_rng([config.seed, 77])
            states.extend(record.draw_state(rng) for _ in range(config.episodes))
        if states:
            robot.reset(state=states[number])
        else:
            robot.reset(seed=config.seed + number)

    return begin


def _recorded_spec(spec: WorldSpec) -> WorldSpec:
    """Return the spec of the store: that of the real world where it is known, so that recordings and collections train together."""
    record = find_real_world(spec.name)
    if record is None or spec.height != spec.width:
        return spec
    real = record.make_spec(spec.height)
    return real if real.action_names == spec.action_names and real.frame_shape == spec.frame_shape else spec


def _state_names(spec: WorldSpec) -> tuple[str, ...]:
    record = find_real_world(spec.name)
    return () if record is None else record.state_names


# -- output ------------------------------------------------------------------------------------------------------------


def _would_send(spec: WorldSpec, action: dict[str, Any]) -> str:
    values = (f"{n} {action[n]:+.2f} {u}" for n, u in zip(spec.action_names, spec.action_units, strict=True))
    return f"would send {', '.join(values)}"


class _Display:
    """Progress on stderr: a line each second, and events as they come."""

    def __init__(self, episodes: int, show: bool) -> None:
        self._show, self._bar, self._next = show, progress(show, field="line"), 0.0
        self._task = self._bar.add_task("driving", total=episodes, line="")

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def log(self, text: str) -> None:
        """Print a line that stays."""
        if self._show:
            self._bar.console.print(text, markup=False, highlight=False)

    def on_tick(self, statistics: LoopStatistics) -> None:
        """Show ``statistics``, once a second."""
        now = time.monotonic()
        if not self._show or now < self._next:
            return
        self._next = now + 1
        self._bar.update(self._task, completed=statistics.episodes, line=statistics.line())
        if not self._bar.console.is_terminal:
            self.log(statistics.line())


@contextlib.contextmanager
def _prompt_threads() -> Iterator[None]:
    """Give the loop the interpreter when it is due: other threads yield it sooner, and the objects loaded by now (models,
    libraries) are not searched for garbage again and again, which takes many milliseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(before)
