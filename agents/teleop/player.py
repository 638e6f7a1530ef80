"""teleop: play a learned world with the keyboard, the true simulator beside it where that can be put where a dream begins.

Keys are read, and the window drawn, apart from the model: events are waited for in the main thread, dream and truth step in a worker's,
and a new frame wakes the main thread at once. With ``headless`` the same program runs on a virtual clock from a script of keys: one
step each period of the world, without waiting, so that every run is the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pygame

from neuralsim.agents.policies.policy import load_driver
from neuralsim.agents.teleop.imagined_world import ImaginedWorld
from neuralsim.agents.teleop.key_bindings import PAIRS
from neuralsim.agents.teleop.keyboard import DIGITS, DIRECTIONS, GENTLE, Keyboard
from neuralsim.agents.teleop.legend import keys_and_legend
from neuralsim.agents.teleop.recorder import Recorder
from neuralsim.agents.teleop.reference_env import ReferenceEnv, find_reference_env
from neuralsim.agents.teleop.scripted_keys import ScriptEvent, post, press, read_script, restless_hand
from neuralsim.agents.teleop.session import REWIND_SECONDS, Session, SessionFrame
from neuralsim.agents.teleop.step_thread import StepThread
from neuralsim.agents.teleop.timing import InputLatency, Rate
from neuralsim.agents.teleop.window import Status, Window
from neuralsim.data.episode import write_atomically
from neuralsim.pretrained.world import open_world
from neuralsim.spec import WorldSpec

DRAW_HZ = 60.0
MESSAGE_SECONDS = 3.0
FLAT_OUT_SHARE = 0.25
"""The last part of a benchmark runs as fast as it can instead of at the play's pace."""

MOVES = {
    pygame.K_LEFT: "left",
    pygame.K_RIGHT: "right",
    pygame.K_UP: "up",
    pygame.K_DOWN: "down",
    pygame.K_a: "left",
    pygame.K_d: "right",
    pygame.K_w: "up",
    pygame.K_s: "down",
    pygame.K_LSHIFT: GENTLE,
    pygame.K_RSHIFT: GENTLE,
}
assert set(MOVES.values()) == {*DIRECTIONS, GENTLE}
NAMES = MOVES | {getattr(pygame, f"K_{key}"): key for key in (*(k for pair in PAIRS[2:] for k in pair), *DIGITS)}
"""What each key of a hand is called by keyboards."""
PUSHT_FPS = 15.0
"""Push-T is played at one and a half times the pace of life."""


@dataclass(frozen=True)
class PlayConfig:
    """Play a learned world with the keyboard, beside the true simulator where there can be one."""

    world: str = "pusht"
    """Name of a shipped world, or the folder of one of your own."""
    policy: str = "explorer"
    """Who drives after 'p': explorer, a Stable-Baselines3 .zip, or for carracing also driver, who keeps to the road he sees."""
    record: bool = False
    """Record from the beginning ('v' starts and stops it too)."""
    out: Path = Path("runs/play")
    """Folder for recordings: mp4 files and the episode stores 'imagined' and, beside a true simulator, 'true'."""
    fps: float | None = None
    """Steps of the world each second; by default the world's own rate (15 for pusht, whose pace of life is 10); 0 as fast as it
    goes."""
    scale: int = 6
    """How many times larger than its frames a panel is (3 to 14)."""
    seed: int = 0
    """Seed of the start states, the dream's noise and the scripted policy."""
    script: str | None = None
    """Keys pressed by the clock: a file or the text itself, e.g. '0 down RIGHT; 1.5 up RIGHT; 3 quit'."""
    headless: bool = False
    """No window: run the script on a virtual clock at the world's own rate, without waiting."""
    benchmark: float = 0.0
    """Press keys at random for this many seconds and report frames/s and key-to-frame latency (0: off)."""
    json: Path | None = None
    """Also write the report to this file."""
    device: str = "auto"
    """Where the model runs: auto, cpu or cuda."""
    precision: str = "auto"
    """Arithmetic of the model: auto, float32 or bfloat16."""


@dataclass(frozen=True)
class PlayReport:
    """What a session was like.

    Rates are per second of wall time, ``world_fps`` counting steps of dream and truth together; ``flat_out_fps`` is that of the unpaced
    part of a benchmark, and the other rates are then those of the paced part. Latencies, in milliseconds, run from a key's event to
    the presentation of the first frame computed with it. ``readings``: what there was to read at the end, by name; beside a truth also
    the true ones. ``difference``: mean |dream - truth| of the last frames, in grey levels; None without a truth.
    """

    world: str
    seconds: float
    steps: int
    human_steps: int
    frames: int
    world_fps: float
    window_fps: float
    flat_out_fps: float | None
    key_changes: int
    latency_ms_median: float | None
    latency_ms_p95: float | None
    readings: dict[str, float | None]
    difference: float | None
    videos: tuple[str, ...]
    video_frames: tuple[int, ...]
    episodes: tuple[str, ...]
    load: float
    """The machine's load average over the last minute: on a busy machine the rates are lower."""
    cores: int

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(asdict(self), indent=1)


class Player:
    """Joins session, window, keys and recorder; ``run_live`` and ``run_headless`` are its two clocks."""

    def __init__(
        self,
        config: PlayConfig,
        session: Session,
        window: Window,
        recorder: Recorder,
        script: Sequence[ScriptEvent] = (),
    ) -> None:
        self.config, self.session, self.window, self.recorder = config, session, window, recorder
        self.moment = session.moment
        self.done = False
        self.steps = self.human_steps = self.frames = 0
        self.world_rate, self.window_rate, self.latency = Rate(), Rate(), InputLatency()
        self._script = list(script)
        self._worker: StepThread | None = None
        self._down: set[int] = set()
        self._help = False
        self._message, self._message_until = "", 0.0
        self._clock: Callable[[], float] = time.perf_counter
        self._begin = time.perf_counter()
        self._paced: tuple[float, int, int, int] | None = (
            None  # seconds, steps, frames, latencies when a benchmark lets go
        )
        if config.record:
            self._toggle_recording()

    # -- two clocks -----------------------------------------------------------------------------------------------------------

    def run_live(self) -> None:
        """Play in real time until somebody quits."""
        wake = pygame.event.custom_type()
        self._worker = StepThread(self.session, self.fps, lambda: post(pygame.event.Event(wake)))
        self._begin = time.perf_counter()
        benchmark = self.config.benchmark
        let_go = self._begin + benchmark * (1 - FLAT_OUT_SHARE) if benchmark > 0 else float("inf")
        self._worker.start()
        next_draw = self._begin
        while not self.done:
            now = time.perf_counter()
            due = min(next_draw, self._begin + self._script[0].time if self._script else next_draw)
            # Waiting in SDL rather than sleeping: a key, or the worker's new frame, ends it at once.
            first = pygame.event.wait(max(1, int(1000 * (due - now))))
            for event in (first, *pygame.event.get()):
                self.handle(event, time.perf_counter())
            now = time.perf_counter()
            while self._script and self._begin + self._script[0].time <= now:
                press(self._script.pop(0), self._begin)
            if self._worker.error is not None:
                return
            made = self._worker.drain()
            for moment in made:
                self.absorb(moment)
            if made or now >= next_draw:
                self.draw()
                next_draw = max(next_draw + 1 / DRAW_HZ, now)
            if now >= let_go and self._paced is None:
                self._paced = (now - self._begin, self.steps, self.frames, len(self.latency.all))
                self._worker.rate = 0.0

    def run_headless(self) -> None:
        """Play the script on a virtual clock: every step takes exactly one period of the world."""
        period = 1 / self.session.dream.spec.rate_hz
        self._begin = time.perf_counter()
        tick = 0
        while not self.done:
            virtual, began = tick * period, time.perf_counter()
            # What a frame took to compute counts as latency here too; waiting for the next tick is the virtual part.
            self._clock = lambda virtual=virtual, began=began: virtual + time.perf_counter() - began  # type: ignore[misc]
            while self._script and self._script[0].time <= virtual + 1e-9:
                press(self._script.pop(0), 0.0)
            for event in pygame.event.get():
                self.handle(event, virtual)
            if not self.done:
                moment = self.session.advance()
                if moment is not None:
                    self.absorb(moment)
                self.draw()
            tick += 1

    def finish(self) -> PlayReport:
        """Stop stepping, keep what was recorded, and say how it went; raises what ended the worker, after that."""
        seconds = time.perf_counter() - self._begin
        if self._worker is not None:
            self._worker.stop()
            for moment in self._worker.drain():
                self.absorb(moment)
        self.recorder.stop()
        if self._worker is not None and self._worker.error is not None:
            raise self._worker.error
        span, steps, frames, latencies = self._paced or (seconds, self.steps, self.frames, len(self.latency.all))
        flat_out = None
        if self._paced is not None and seconds > span:
            flat_out = (self.steps - steps) / (seconds - span)
        waits = 1000 * np.array(self.latency.all[:latencies])
        finished = self.recorder.finished
        return PlayReport(
            world=self.config.world,
            seconds=seconds,
            steps=self.steps,
            human_steps=self.human_steps,
            frames=self.frames,
            world_fps=steps / max(span, 1e-9),
            window_fps=frames / max(span, 1e-9),
            flat_out_fps=flat_out,
            key_changes=len(waits),
            latency_ms_median=float(np.median(waits)) if len(waits) else None,
            latency_ms_p95=float(np.percentile(waits, 95)) if len(waits) else None,
            readings=self._readings(),
            difference=None if self.moment.true is None else float(self.moment.difference.mean()),
            videos=tuple(str(r.video) for r in finished),
            video_frames=tuple(r.frames for r in finished),
            episodes=tuple(str(path) for r in finished for path in r.episodes),
            load=os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan"),
            cores=os.cpu_count() or 1,
        )

    @property
    def fps(self) -> float:
        """Steps of the world each second that are aimed at; 0: as many as can be."""
        spec = self.session.dream.spec
        if self.config.fps is not None:
            return self.config.fps
        return PUSHT_FPS if spec.name == "pusht" else spec.rate_hz

    def _readings(self) -> dict[str, float | None]:
        """What there is to read now, by name."""
        moment, legend = self.moment, self.window.painter.legend
        found = {
            f"{legend.reward}_dream": moment.reward,
            f"{legend.end}_dream": moment.end,
            "return_dream": moment.total,
        }
        if moment.true is not None:
            found |= {f"{legend.reward}_truth": moment.true.reward, f"{legend.end}_truth": float(moment.true.end)}
        found |= {name: float(x) for name, x in zip(legend.states, moment.told, strict=False)}
        return {name: float(x) if np.isfinite(x) else None for name, x in found.items()}

    # -- what comes in --------------------------------------------------------------------------------------------------------

    def handle(self, event: pygame.event.Event, at: float) -> None:
        """One pygame event that came at ``at`` seconds of the clock (a script's says itself when it was due)."""
        at = getattr(event, "due", at)
        if self.done:
            return
        if event.type == pygame.QUIT:
            self.done = True
        elif event.type == pygame.WINDOWFOCUSLOST:
            self._down.clear()  # the key-up events go to another window
            self.session.keyboard.clear()
        elif event.type in (pygame.KEYDOWN, pygame.KEYUP) and self._acts(event.key):
            self._move(event.key, event.type == pygame.KEYDOWN, at)
        elif event.type == pygame.KEYDOWN:
            self._command(event.key)

    def absorb(self, moment: SessionFrame) -> None:
        """Take note of a new Moment."""
        last, self.moment = self.moment, moment
        if moment.take == last.take and moment.step == last.step + 1:
            self.steps += 1
            self.human_steps += moment.human
            self.world_rate.add(self._clock())
        if self.recorder.recording:
            self.recorder.add(moment, self.window.painter.video_frame(moment, self.session.dream.doubt_limit))

    def draw(self) -> None:
        """Present the newest Moment."""
        now, session = self._clock(), self.session
        status = Status(
            world_fps=0.0 if session.paused else self.world_rate.value(now),
            window_fps=self.window_rate.value(now),
            latency=self.latency.median(),
            paused=session.paused,
            driver=session.driver_name,
            denoise_steps=session.dream.denoise_steps,
            held=session.keyboard.held,
            recorded=self.recorder.frames / session.dream.spec.rate_hz if self.recorder.recording else None,
            message=self._message if now < self._message_until else "",
            help=self._help,
            doubt_limit=session.dream.doubt_limit,
            starts=len(session.dream.starts),
        )
        self.window.draw(self.moment, status)
        now = self._clock()
        self.frames += 1
        self.window_rate.add(now)
        self.latency.presented(self.moment.serial, now)

    # -- keys -----------------------------------------------------------------------------------------------------------------

    def _acts(self, key: int) -> bool:
        """Whether ``key`` acts on the world; others are commands."""
        name = NAMES.get(key)
        return name == GENTLE or name in self.session.keyboard.keys

    def _move(self, key: int, down: bool, at: float) -> None:
        name, keyboard = NAMES[key], self.session.keyboard
        if down:
            self._down.add(key)
            serial = keyboard.hold(name)
        else:
            self._down.discard(key)
            if any(NAMES[k] == name for k in self._down):  # an arrow and its letter were both down
                return
            serial = keyboard.release(name)
        if serial is None:
            return
        if self.session.wants_step:
            self.latency.pressed(serial, at)
        if self._worker is not None:
            self._worker.hurry()

    def _command(self, key: int) -> None:
        session = self.session
        if key in (pygame.K_ESCAPE, pygame.K_q):
            self.done = True
        elif key == pygame.K_SPACE:
            self._ask(_toggle_pause)
            self.latency.forget()
            self.world_rate.forget()
        elif key in (pygame.K_PERIOD, pygame.K_KP_PERIOD):
            self._ask(Session.single_step)
            self.latency.forget()
            self.world_rate.forget()
        elif key == pygame.K_n:
            self._ask(Session.new_start)
            self._say("a new start")
        elif key == pygame.K_r:
            self._ask(Session.same_start)
            self._say("the same start again")
        elif key == pygame.K_BACKSPACE:
            steps = max(1, round(REWIND_SECONDS * session.dream.spec.rate_hz))
            self._say(f"rewound {REWIND_SECONDS:g} s" if self.moment.step >= steps else "rewound to the start")
            self._ask(lambda s: s.rewind(steps))
        elif pygame.K_1 <= key <= pygame.K_4:
            steps = key - pygame.K_0
            if session.dream.denoises:
                self._ask(lambda s: s.set_denoise_steps(steps))
            else:
                self._say("this world does not denoise")
        elif key == pygame.K_p:
            self._say("back to you" if session.policy_drives else f"{session.driver.name} drives; your keys win")
            self._ask(Session.hand_over)
        elif key == pygame.K_v:
            self._toggle_recording()
        elif key in (pygame.K_PLUS, pygame.K_EQUALS, pygame.K_KP_PLUS):
            self.window.resize(+1)
        elif key in (pygame.K_MINUS, pygame.K_KP_MINUS):
            self.window.resize(-1)
        elif key in (pygame.K_h, pygame.K_F1):
            self._help = not self._help

    def _ask(self, call: Callable[[Session], Any]) -> None:
        """Have the session do something: between two steps of the worker, or now where there is none."""
        if self._worker is not None:
            self._worker.ask(call)
            return
        moment = call(self.session)
        if isinstance(moment, SessionFrame):
            self.absorb(moment)

    def _toggle_recording(self) -> None:
        try:
            if self.recorder.recording:
                done = self.recorder.stop()
                self._say(f"saved {done.video}" if done else "")
            else:
                self.recorder.start(
                    self.moment, self.window.painter.video_frame(self.moment, self.session.dream.doubt_limit)
                )
        except (OSError, ValueError) as error:
            self._say(f"not recorded: {error}")
            print(f"neuralsim play: not recorded: {error}", file=sys.stderr)

    def _say(self, message: str) -> None:
        self._message, self._message_until = message, self._clock() + MESSAGE_SECONDS


def play(config: PlayConfig) -> PlayReport:
    """Open the world and play it until somebody quits; recordings are kept however it ends."""
    if config.headless and config.script is None and config.benchmark <= 0:
        raise ValueError("--headless has no keyboard: give it --script 'SECONDS down KEY; ...' or --benchmark SECONDS")
    if config.script is not None and config.benchmark > 0:
        raise ValueError("--script and --benchmark both press keys; give one of them")
    if (config.fps or 0) < 0 or config.benchmark < 0:
        raise ValueError(f"fps and benchmark must be at least 0, got {config.fps} and {config.benchmark}")
    script: tuple[ScriptEvent, ...] = ()
    if config.script is not None:
        script = read_script(config.script)
    no_screen = sys.platform.startswith("linux") and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
    dream = ImaginedWorld(open_world(config.world, config.device), config.precision)
    twin, untrue = _twin(dream)
    keyboard, legend = keys_and_legend(dream.spec, dream.state_names, untrue)
    if config.benchmark > 0:
        script = restless_hand(config.benchmark, config.seed, _hand(keyboard, dream.spec))
    with contextlib.ExitStack() as opened:
        if twin is not None:
            opened.callback(twin.env.close)
        driver = load_driver(config.policy, dream.spec, dream.feature_size, twin, config.seed)
        if config.headless or (config.benchmark > 0 and no_screen):
            opened.enter_context(dummy_screen())
        session = Session(dream, driver, keyboard, config.seed, twin)
        title = f"NeuralSim {config.world}"
        window = Window(dream.spec.height, dream.spec.width, config.scale, title, legend, twin is not None)
        opened.callback(window.close)
        recorder = Recorder(config.out, dream.spec, config.seed, None if twin is None else twin.state_names)
        player = Player(config, session, window, recorder, script)
        with stop_on_signals(player):
            try:
                if config.headless and config.benchmark <= 0:
                    player.run_headless()
                else:
                    player.run_live()
            finally:
                report = player.finish()
    tell(report, config)
    return report


def _twin(dream: ImaginedWorld) -> tuple[ReferenceEnv | None, str]:
    """The truth beside ``dream``, or in words why there is none."""
    try:
        return find_reference_env(dream.spec, dream.starts), ""
    except ValueError as error:
        return None, f"No truth beside it: {error}."


def _hand(keyboard: Keyboard, spec: WorldSpec) -> tuple[int, ...]:
    """The keys that a benchmark presses: a few that act, the first of each name."""
    choices = DIGITS[: spec.action_choices[0]] if spec.discrete and spec.action_size == 1 else keyboard.keys
    codes = {name: code for code, name in reversed(NAMES.items())}
    return tuple(codes[name] for name in choices[:4])


def tell(report: PlayReport, config: PlayConfig) -> None:
    """Print the report where nobody watched, and the recordings' places always."""
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(config.json, report.to_json())
    if config.headless or config.benchmark > 0 or config.script is not None:
        print(report.to_json())
        return
    for path in report.videos + report.episodes:
        print(f"saved {path}")


@contextlib.contextmanager
def dummy_screen() -> Iterator[None]:
    """SDL draws into memory while this lasts."""
    before = {name: os.environ.get(name) for name in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER")}
    os.environ.update(dict.fromkeys(before, "dummy"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Stoppable(Protocol):
    """What goes on until it is ``done``."""

    done: bool


@contextlib.contextmanager
def stop_on_signals(player: Stoppable) -> Iterator[None]:
    """ctrl-C, a closed terminal and ``kill`` end the play as 'q' does, once; a second one ends the program as usual."""
    before: dict[int, Any] = {}

    def stop(number: int, _frame: object) -> None:
        player.done = True
        signal.signal(number, before[number])

    try:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # One that is ignored (nohup) or that another language handles is left as it is.
            if number is not None and signal.getsignal(number) not in (None, signal.SIG_IGN):
                before[number] = signal.signal(number, stop)
    except ValueError:  # only the main thread hears signals
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _toggle_pause(session: Session) -> None:
    session.paused = not session.paused
