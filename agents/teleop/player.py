"""The player: joins session, window, keys and recorder, on a live clock or on a virtual one.

Live, events are waited for in the main thread while both worlds step in a thread of their own, and a new frame wakes the main thread
at once. Headless, the same program runs on a virtual clock from a script of keys: one step each period of the world, without
waiting, so that every run is the same.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pygame

from neuralsim.agents.teleop.config import PlayConfig, PlayReport
from neuralsim.agents.teleop.key_bindings import teleop_settings
from neuralsim.agents.teleop.key_events import KeyEvents
from neuralsim.agents.teleop.recorder import Recorder
from neuralsim.agents.teleop.scripted_keys import ScriptEvent, post, press
from neuralsim.agents.teleop.session import REWIND_SECONDS, Session, SessionFrame
from neuralsim.agents.teleop.step_thread import StepThread
from neuralsim.agents.teleop.timing import InputLatency, Rate
from neuralsim.agents.teleop.window import Status, Window

DRAW_HZ = 60.0
MESSAGE_SECONDS = 3.0
FLAT_OUT_SHARE = 0.25
"""The last part of a benchmark runs as fast as it can instead of at the play's pace."""


class Player:
    """Plays one session; ``run_live`` and ``run_headless`` are its two clocks, ``finish`` ends it."""

    def __init__(
        self,
        config: PlayConfig,
        session: Session,
        window: Window,
        recorder: Recorder,
        script: Sequence[ScriptEvent] = (),
    ) -> None:
        self.config, self.session, self.window, self.recorder = config, session, window, recorder
        self.frame = session.frame
        self.keys = KeyEvents(session.keyboard, self._command, self._keys_changed)
        self.done = False
        self.steps = self.human_steps = self.frames = 0
        self.world_rate, self.window_rate, self.latency = Rate(), Rate(), InputLatency()
        self._script = list(script)
        self._thread: StepThread | None = None
        self._event_time = 0.0
        self._help = False
        self._message, self._message_until = "", 0.0
        self._clock: Callable[[], float] = time.perf_counter
        self._begin = time.perf_counter()
        # Seconds, steps, frames and latencies when a benchmark lets go of its pace.
        self._paced: tuple[float, int, int, int] | None = None
        if config.record:
            self._toggle_recording()

    # -- two clocks ---------------------------------------------------------------------------------------------------

    def run_live(self) -> None:
        """Play in real time until the user quits."""
        wake = pygame.event.custom_type()
        self._thread = StepThread(self.session, self.fps, lambda: post(pygame.event.Event(wake)))
        self._begin = time.perf_counter()
        benchmark = self.config.benchmark
        let_go = self._begin + benchmark * (1 - FLAT_OUT_SHARE) if benchmark > 0 else float("inf")
        self._thread.start()
        next_draw = self._begin
        while not self.done:
            now = time.perf_counter()
            due = min(next_draw, self._begin + self._script[0].time if self._script else next_draw)
            # Waiting in SDL rather than sleeping: a key, or the thread's new frame, ends it at once.
            first = pygame.event.wait(max(1, int(1000 * (due - now))))
            for event in (first, *pygame.event.get()):
                self.handle(event, time.perf_counter())
            now = time.perf_counter()
            while self._script and self._begin + self._script[0].time <= now:
                press(self._script.pop(0), self._begin)
            if self._thread.error is not None:
                return
            made = self._thread.drain()
            for frame in made:
                self.absorb(frame)
            if made or now >= next_draw:
                self.draw()
                next_draw = max(next_draw + 1 / DRAW_HZ, now)
            if now >= let_go and self._paced is None:
                self._paced = (now - self._begin, self.steps, self.frames, len(self.latency.all))
                self._thread.rate = 0.0

    def run_headless(self) -> None:
        """Play the script on a virtual clock: every step takes exactly one period of the world."""
        period = 1 / self.session.spec.rate_hz
        self._begin = time.perf_counter()
        tick = 0
        while not self.done:
            virtual, began = tick * period, time.perf_counter()
            # The computing time of a frame counts as latency here too; waiting for the next tick is the virtual part.
            self._clock = lambda virtual=virtual, began=began: virtual + time.perf_counter() - began  # type: ignore[misc]
            while self._script and self._script[0].time <= virtual + 1e-9:
                press(self._script.pop(0), 0.0)
            for event in pygame.event.get():
                self.handle(event, virtual)
            if not self.done:
                frame = self.session.advance()
                if frame is not None:
                    self.absorb(frame)
                self.draw()
            tick += 1

    def finish(self) -> PlayReport:
        """Stop stepping, keep what was recorded, and return the report; then raise the error of the stepping thread, if any."""
        seconds = time.perf_counter() - self._begin
        if self._thread is not None:
            self._thread.stop()
            for frame in self._thread.drain():
                self.absorb(frame)
        self.recorder.stop()
        if self._thread is not None and self._thread.error is not None:
            raise self._thread.error
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
            difference=None if self.frame.real is None else float(self.frame.difference.mean()),
            videos=tuple(str(r.video) for r in finished),
            video_frames=tuple(r.frames for r in finished),
            episodes=tuple(str(path) for r in finished for path in r.episodes),
            load=os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan"),
            cores=os.cpu_count() or 1,
        )

    @property
    def fps(self) -> float:
        """Target of steps per second; 0: as many as possible."""
        if self.config.fps is not None:
            return self.config.fps
        return teleop_settings(self.session.spec).fps or self.session.spec.rate_hz

    def _readings(self) -> dict[str, float | None]:
        frame, labels = self.frame, self.window.renderer.labels
        found = {
            f"{labels.reward}_dream": frame.reward,
            f"{labels.end}_dream": frame.end,
            "return_dream": frame.total,
        }
        if frame.real is not None:
            found |= {f"{labels.reward}_truth": frame.real.reward, f"{labels.end}_truth": float(frame.real.end)}
        found |= {name: float(x) for name, x in zip(labels.states, frame.state_estimate, strict=False)}
        return {name: float(x) if np.isfinite(x) else None for name, x in found.items()}

    # -- events and frames --------------------------------------------------------------------------------------------

    def handle(self, event: pygame.event.Event, at: float) -> None:
        """Handle a pygame event that came at ``at`` seconds of the clock (a scripted one carries the time it was due)."""
        if self.done:
            return
        self._event_time = getattr(event, "due", at)
        self.keys.handle(event)
        self.done |= self.keys.closed

    def absorb(self, frame: SessionFrame) -> None:
        """Count and record a new SessionFrame."""
        last, self.frame = self.frame, frame
        if frame.episode == last.episode and frame.step == last.step + 1:
            self.steps += 1
            self.human_steps += frame.human
            self.world_rate.add(self._clock())
        if not self.recorder.recording:
            return
        try:
            self.recorder.add(frame, self.window.renderer.video_frame(frame))
        except OSError as error:  # the disk is full, say: play goes on
            self._recording_failed(error)

    def draw(self) -> None:
        """Present the newest SessionFrame."""
        now, session = self._clock(), self.session
        status = Status(
            world_fps=0.0 if session.paused else self.world_rate.value(now),
            window_fps=self.window_rate.value(now),
            latency=self.latency.median(),
            paused=session.paused,
            driver=session.driver_name,
            denoise_steps=session.denoise_steps,
            held=session.keyboard.held,
            recorded=self.recorder.frames / session.spec.rate_hz if self.recorder.recording else None,
            message=self._message if now < self._message_until else "",
            help=self._help,
            starts=len(session.starts),
        )
        self.window.draw(self.frame, status)
        now = self._clock()
        self.frames += 1
        self.window_rate.add(now)
        self.latency.presented(self.frame.serial, now)

    # -- keys ---------------------------------------------------------------------------------------------------------

    def _keys_changed(self, serial: int) -> None:
        if self.session.wants_step:
            self.latency.pressed(serial, self._event_time)
        if self._thread is not None:
            self._thread.hurry()

    def _command(self, key: int) -> None:
        session = self.session
        if key in (pygame.K_ESCAPE, pygame.K_q):
            self.done = True
        elif key == pygame.K_SPACE:
            self._request(Session.toggle_pause)
            self._forget_rates()
        elif key in (pygame.K_PERIOD, pygame.K_KP_PERIOD):
            self._request(Session.single_step)
            self._forget_rates()
        elif key == pygame.K_n:
            self._request(Session.new_start)
            self._show("a new start")
        elif key == pygame.K_r:
            self._request(Session.same_start)
            self._show("the same start again")
        elif key == pygame.K_BACKSPACE:
            steps = max(1, round(REWIND_SECONDS * session.spec.rate_hz))
            self._show(f"rewound {REWIND_SECONDS:g} s" if self.frame.step >= steps else "rewound to the start")
            self._request(lambda s: s.rewind(steps))
        elif pygame.K_1 <= key <= pygame.K_4:
            steps = key - pygame.K_0
            if session.denoises:
                self._request(lambda s: setattr(s, "denoise_steps", steps))
            else:
                self._show("this world does not denoise")
        elif key == pygame.K_p:
            self._show("back to you" if session.policy_drives else f"{session.driver.name} drives; your keys win")
            self._request(Session.hand_over)
        elif key == pygame.K_v:
            self._toggle_recording()
        elif key in (pygame.K_PLUS, pygame.K_EQUALS, pygame.K_KP_PLUS):
            self.window.resize(+1)
        elif key in (pygame.K_MINUS, pygame.K_KP_MINUS):
            self.window.resize(-1)
        elif key in (pygame.K_h, pygame.K_F1):
            self._help = not self._help

    def _request(self, call: Callable[[Session], Any]) -> None:
        """Call the session between two steps of its thread, or now where there is none."""
        if self._thread is not None:
            self._thread.ask(call)
            return
        frame = call(self.session)
        if isinstance(frame, SessionFrame):
            self.absorb(frame)

    def _forget_rates(self) -> None:
        self.latency.forget()
        self.world_rate.forget()

    def _toggle_recording(self) -> None:
        try:
            if self.recorder.recording:
                done = self.recorder.stop()
                self._show(f"saved {done.video}" if done else "")
            else:
                self.recorder.start(self.frame, self.window.renderer.video_frame(self.frame))
        except (OSError, ValueError) as error:
            self._recording_failed(error)

    def _recording_failed(self, error: Exception) -> None:
        self._show(f"not recorded: {error}")
        print(f"neuralsim play: not recorded: {error}", file=sys.stderr)

    def _show(self, message: str) -> None:
        self._message, self._message_until = message, self._clock() + MESSAGE_SECONDS
