"""A player of a Session without a screen: commands by name, the recorder, counters and messages.

The window and the browser are its two subclasses. Each hands it the new SessionFrames (`absorb`) and the player's commands
(`command`), from one thread.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from neuralsim.agents.teleop.config import PlayConfig, PlayReport
from neuralsim.agents.teleop.key_bindings import teleop_settings
from neuralsim.agents.teleop.panels import PanelRenderer
from neuralsim.agents.teleop.recorder import Recorder
from neuralsim.agents.teleop.session import REWIND_SECONDS, Session, SessionFrame
from neuralsim.agents.teleop.step_thread import StepThread
from neuralsim.agents.teleop.timing import InputLatency, Rate

MESSAGE_SECONDS = 3.0
COMMANDS = ("pause", "step", "new", "same", "rewind", "policy", "record")
"""Names of the commands without a number; a number of denoising steps is a command too."""
MOST_PASSES = 4
"""Denoising steps that a player may choose at most."""


class SessionPlayer:
    """Plays one session with the options of ``config``; ``renderer`` draws the frames of recorded videos.

    ``thread``, where there is one, steps the session; requests then wait for the time between two steps.
    """

    def __init__(self, config: PlayConfig, session: Session, renderer: PanelRenderer, recorder: Recorder) -> None:
        self.config, self.session, self.renderer, self.recorder = config, session, renderer, recorder
        self.frame = session.frame
        self.thread: StepThread | None = None
        self.steps = self.human_steps = self.frames = 0
        self.world_rate, self.screen_rate, self.latency = Rate(), Rate(), InputLatency()
        self.clock: Callable[[], float] = time.perf_counter
        self.begin = time.perf_counter()
        # Seconds, steps, frames and latencies when a benchmark lets go of its pace.
        self.paced: tuple[float, int, int, int] | None = None
        self._message, self._message_until = "", 0.0
        if config.record:
            self._toggle_recording()

    @property
    def fps(self) -> float:
        """Target of steps per second; 0: as many as possible."""
        if self.config.fps is not None:
            return self.config.fps
        return teleop_settings(self.session.spec).fps or self.session.spec.rate_hz

    @property
    def message(self) -> str:
        """The newest message to the player; empty once it is three seconds old."""
        return self._message if self.clock() < self._message_until else ""

    @property
    def recorded(self) -> float | None:
        """Seconds recorded so far; None while nothing is recorded."""
        return self.recorder.frames / self.session.spec.rate_hz if self.recorder.recording else None

    def command(self, name: str | int) -> None:
        """Carry out one of COMMANDS, or set the number of denoising steps."""
        session = self.session
        if name == "pause":
            self.request(Session.toggle_pause)
            self.forget_rates()
        elif name == "step":
            self.request(Session.single_step)
            self.forget_rates()
        elif name == "new":
            self.request(Session.new_start)
            self.show("a new start")
        elif name == "same":
            self.request(Session.same_start)
            self.show("the same start again")
        elif name == "rewind":
            steps = max(1, round(REWIND_SECONDS * session.spec.rate_hz))
            self.show(f"rewound {REWIND_SECONDS:g} s" if self.frame.step >= steps else "rewound to the start")
            self.request(lambda s: s.rewind(steps))
        elif name == "policy":
            self.show("back to you" if session.policy_drives else f"{session.driver.name} drives; your keys win")
            self.request(Session.hand_over)
        elif name == "record":
            self._toggle_recording()
        elif isinstance(name, str):
            raise ValueError(f"command: expected one of {list(COMMANDS)} or a number, got {name!r}")
        elif session.denoises:
            self.request(lambda s: setattr(s, "denoise_steps", name))
        else:
            self.show("this world does not denoise")

    def keys_changed(self, serial: int, at: float) -> None:
        """Take up change ``serial`` of the held keys, which came at ``at`` seconds of the clock."""
        if self.session.wants_step:
            self.latency.pressed(serial, at)
        if self.thread is not None:
            self.thread.hurry()

    def request(self, call: Callable[[Session], Any]) -> None:
        """Call the session between two steps of its thread, or now where there is none."""
        if self.thread is not None:
            self.thread.ask(call)
            return
        frame = call(self.session)
        if isinstance(frame, SessionFrame):
            self.absorb(frame)

    def absorb(self, frame: SessionFrame) -> None:
        """Count and record a new SessionFrame."""
        last, self.frame = self.frame, frame
        if frame.episode == last.episode and frame.step == last.step + 1:
            self.steps += 1
            self.human_steps += frame.human
            self.world_rate.add(self.clock())
        if not self.recorder.recording:
            return
        try:
            self.recorder.add(frame, self.renderer.video_frame(frame))
        except OSError as error:  # the disk is full, say: play goes on
            self._recording_failed(error)

    def presented(self, serial: int) -> None:
        """Count a frame that has just been shown, which knows the keys up to change ``serial``."""
        now = self.clock()
        self.frames += 1
        self.screen_rate.add(now)
        self.latency.presented(serial, now)

    def show(self, message: str) -> None:
        """Show ``message`` for three seconds."""
        self._message, self._message_until = message, self.clock() + MESSAGE_SECONDS

    def finish(self) -> PlayReport:
        """Stop stepping, keep what was recorded, and return the report; then raise the error of the stepping thread, if any."""
        seconds = time.perf_counter() - self.begin
        if self.thread is not None:
            self.thread.stop()
            for frame in self.thread.drain():
                self.absorb(frame)
        self.recorder.stop()
        if self.thread is not None and self.thread.error is not None:
            raise self.thread.error
        return self._report(seconds)

    def _report(self, seconds: float) -> PlayReport:
        span, steps, frames, latencies = self.paced or (seconds, self.steps, self.frames, len(self.latency.all))
        flat_out = None
        if self.paced is not None and seconds > span:
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
            difference=None if self.frame.real is None else float(self.frame.difference.mean()),
            videos=tuple(str(r.video) for r in finished),
            video_frames=tuple(r.frames for r in finished),
            episodes=tuple(str(path) for r in finished for path in r.episodes),
            load=os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan"),
            cores=os.cpu_count() or 1,
        )

    def _readings(self) -> dict[str, float | None]:
        frame, labels = self.frame, self.renderer.labels
        found = {
            f"{labels.reward}_dream": frame.reward,
            f"{labels.end}_dream": frame.end,
            "return_dream": frame.total,
        }
        if frame.real is not None:
            found |= {f"{labels.reward}_truth": frame.real.reward, f"{labels.end}_truth": float(frame.real.end)}
        found |= {name: float(x) for name, x in zip(labels.states, frame.state_estimate, strict=False)}
        return {name: float(x) if np.isfinite(x) else None for name, x in found.items()}

    def forget_rates(self) -> None:
        """Begin rates and latencies again, as after a pause."""
        self.latency.forget()
        self.world_rate.forget()

    def _toggle_recording(self) -> None:
        try:
            if self.recorder.recording:
                done = self.recorder.stop()
                self.show(f"saved {done.video}" if done else "")
            else:
                self.recorder.start(self.frame, self.renderer.video_frame(self.frame))
        except (OSError, ValueError) as error:
            self._recording_failed(error)

    def _recording_failed(self, error: Exception) -> None:
        text = getattr(error, "strerror", None) or error  # without the system's number
        self.show(f"not recorded: {text}")
        print(f"neuralsim play: not recorded: {text}", file=sys.stderr)
