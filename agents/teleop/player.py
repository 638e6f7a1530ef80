"""The player of the window: joins session, window, keys and recorder, on a live clock or on a virtual one.

Live, events are waited for in the main thread while both worlds step in a thread of their own, and a new frame wakes the main thread
at once. Headless, the same program runs on a virtual clock from a script of keys: one step each period of the world, without
waiting, so that every run is the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import pygame

from neuralsim.agents.teleop.config import PlayConfig
from neuralsim.agents.teleop.key_events import KeyEvents
from neuralsim.agents.teleop.recorder import Recorder
from neuralsim.agents.teleop.scripted_keys import ScriptEvent, post, press
from neuralsim.agents.teleop.session import Session
from neuralsim.agents.teleop.session_player import MOST_PASSES, SessionPlayer
from neuralsim.agents.teleop.step_thread import StepThread
from neuralsim.agents.teleop.window import Status, Window

DRAW_HZ = 60.0
FLAT_OUT_SHARE = 0.25
"""The last part of a benchmark runs as fast as it can instead of at the play's pace."""
COMMAND_KEYS: dict[int, str | int] = {
    pygame.K_SPACE: "pause",
    pygame.K_PERIOD: "step",
    pygame.K_KP_PERIOD: "step",
    pygame.K_n: "new",
    pygame.K_r: "same",
    pygame.K_BACKSPACE: "rewind",
    pygame.K_p: "policy",
    pygame.K_v: "record",
} | {pygame.K_0 + steps: steps for steps in range(1, MOST_PASSES + 1)}
"""The SessionPlayer's command for each of pygame's key codes."""


class Player(SessionPlayer):
    """Plays one session in a window; ``run_live`` and ``run_headless`` are its two clocks, ``finish`` ends it."""

    def __init__(
        self,
        config: PlayConfig,
        session: Session,
        window: Window,
        recorder: Recorder,
        script: Sequence[ScriptEvent] = (),
    ) -> None:
        super().__init__(config, session, window.renderer, recorder)
        self.window = window
        self.keys = KeyEvents(session.keyboard, self._press, lambda serial: self.keys_changed(serial, self._event_time))
        self.done = False
        self._script = list(script)
        self._event_time = 0.0
        self._help = False

    # -- two clocks ---------------------------------------------------------------------------------------------------

    def run_live(self) -> None:
        """Play in real time until the user quits."""
        wake = pygame.event.custom_type()
        self.thread = StepThread(self.session, self.fps, lambda: post(pygame.event.Event(wake)))
        self.begin = time.perf_counter()
        benchmark = self.config.benchmark
        let_go = self.begin + benchmark * (1 - FLAT_OUT_SHARE) if benchmark > 0 else float("inf")
        self.thread.start()
        next_draw = self.begin
        while not self.done:
            now = time.perf_counter()
            due = min(next_draw, self.begin + self._script[0].time if self._script else next_draw)
            # Waiting in SDL rather than sleeping: a key, or the thread's new frame, ends it at once.
            first = pygame.event.wait(max(1, int(1000 * (due - now))))
            for event in (first, *pygame.event.get()):
                self.handle(event, time.perf_counter())
            now = time.perf_counter()
            while self._script and self.begin + self._script[0].time <= now:
                press(self._script.pop(0), self.begin)
            if self.thread.error is not None:
                return
            made = self.thread.drain()
            for frame in made:
                self.absorb(frame)
            if made or now >= next_draw:
                self.draw()
                next_draw = max(next_draw + 1 / DRAW_HZ, now)
            if now >= let_go and self.paced is None:
                self.paced = (now - self.begin, self.steps, self.frames, len(self.latency.all))
                self.thread.rate = 0.0

    def run_headless(self) -> None:
        """Play the script on a virtual clock: every step takes exactly one period of the world."""
        period = 1 / self.session.spec.rate_hz
        self.begin = time.perf_counter()
        tick = 0
        while not self.done:
            virtual, began = tick * period, time.perf_counter()
            # The computing time of a frame counts as latency here too; waiting for the next tick is the virtual part.
            self.clock = lambda virtual=virtual, began=began: virtual + time.perf_counter() - began  # type: ignore[misc]
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

    # -- events and frames --------------------------------------------------------------------------------------------

    def handle(self, event: pygame.event.Event, at: float) -> None:
        """Handle a pygame event that came at ``at`` seconds of the clock (a scripted one carries the time it was due)."""
        if self.done:
            return
        self._event_time = getattr(event, "due", at)
        self.keys.handle(event)
        self.done |= self.keys.closed

    def draw(self) -> None:
        """Present the newest SessionFrame."""
        now, session = self.clock(), self.session
        status = Status(
            world_fps=0.0 if session.paused else self.world_rate.value(now),
            window_fps=self.screen_rate.value(now),
            latency=self.latency.median(),
            paused=session.paused,
            driver=session.driver_name,
            denoise_steps=session.denoise_steps,
            held=session.keyboard.held,
            recorded=self.recorded,
            message=self.message,
            help=self._help,
            starts=len(session.starts),
        )
        self.window.draw(self.frame, status)
        self.presented(self.frame.serial)

    def _press(self, key: int) -> None:
        if key in (pygame.K_ESCAPE, pygame.K_q):
            self.done = True
        elif key in (pygame.K_PLUS, pygame.K_EQUALS, pygame.K_KP_PLUS):
            self.window.resize(+1)
        elif key in (pygame.K_MINUS, pygame.K_KP_MINUS):
            self.window.resize(-1)
        elif key in (pygame.K_h, pygame.K_F1):
            self._help = not self._help
        elif key in COMMAND_KEYS:
            self.command(COMMAND_KEYS[key])
