"""A thread that steps a Session at a steady rate, so that a slow model never delays a key or a frame of the window."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from neuralsim.agents.teleop.session import Session, SessionFrame


class StepThread(threading.Thread):
    """Takes ``rate`` steps a second (0: as many as it can); calls ``notify``, in this thread, after every new SessionFrame.

    ``ask`` queues a call for the time between two steps; ``drain`` returns all SessionFrames since the last one. ``error`` is the
    exception that ended the thread, if one did.
    """

    def __init__(self, session: Session, rate: float, notify: Callable[[], Any] = lambda: None) -> None:
        super().__init__(name="neuralsim-play", daemon=True)
        self.session, self.rate, self.notify = session, rate, notify
        self.error: BaseException | None = None
        self._asked: queue.SimpleQueue[Callable[[Session], Any]] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[SessionFrame] = queue.SimpleQueue()
        self._wake = threading.Condition()
        self._woken = self._hurry = self._stopping = False

    def ask(self, call: Callable[[Session], Any]) -> None:
        """Queue ``call(session)`` for the time between two steps; a SessionFrame that it returns is published."""
        self._asked.put(call)
        self._wake_up()

    def hurry(self) -> None:
        """After a change of a key: begin the next step once half a period has passed instead of a whole one.

        A key thus waits a quarter of a period on average instead of half of one, and only steps with a change of keys are shorter.
        """
        self._wake_up(hurry=True)

    def drain(self) -> list[SessionFrame]:
        """Return the SessionFrames made since the last call, oldest first."""
        made = []
        while True:
            try:
                made.append(self._made.get_nowait())
            except queue.Empty:
                return made

    def stop(self) -> None:
        """End the thread after the step under way and wait for it."""
        self._stopping = True
        self._wake_up()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        """The thread's loop."""
        try:
            self._loop()
        except BaseException as error:
            self.error = error
            self.notify()

    def _loop(self) -> None:
        began = -float("inf")
        while not self._stopping:
            while not self._asked.empty():
                self._publish(self._asked.get()(self.session))
            if not self.session.wants_step:
                self._sleep(None)
                continue
            period = 1 / self.rate if self.rate > 0 else 0.0
            wait = began + (period / 2 if self._hurry else period) - time.perf_counter()
            if wait > 0:
                self._sleep(wait)
                continue
            # On the beat where we keep up, from now on where we do not: a slow model must not race later to catch up.
            now = time.perf_counter()
            began = now if self._hurry or now - began > 1.5 * period else began + period
            self._hurry = False
            self._publish(self.session.advance())

    def _publish(self, frame: object) -> None:
        if isinstance(frame, SessionFrame):
            self._made.put(frame)
            self.notify()

    def _wake_up(self, hurry: bool = False) -> None:
        with self._wake:
            self._woken = True
            self._hurry |= hurry
            self._wake.notify()

    def _sleep(self, seconds: float | None) -> None:
        with self._wake:
            if not self._woken:
                self._wake.wait(seconds)
            self._woken = False
