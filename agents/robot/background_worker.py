"""Background: one function in a thread of its own, for work that a control loop must not wait for."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Job = TypeVar("Job")
Found = TypeVar("Found")
NICE = 10
"""How far such a thread stands back for others."""


class BackgroundWorker(Generic[Job, Found]):
    """Does ``work`` on what it is offered, one job after the other. Neither :meth:`offer` nor :meth:`take` ever waits.

    The thread is a daemon: work that hangs keeps no program alive. On Linux, where threads have a priority of their own, it lets the
    loop go first, and so do the workers that torch starts for it (measured: of 1,800 deadlines at 50 Hz 4 missed instead of 16).
    What ``work`` raises is raised by the next ``take``. ``bell`` is set whenever something was found.
    """

    def __init__(self, work: Callable[[Job], Found], name: str, bell: threading.Event) -> None:
        self._work, self._bell = work, bell
        self._wake = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._found: deque[Found | Exception] = deque()
        self._busy = self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"neuralsim-{name}", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether nothing is being done or waits to be done."""
        with self._wake:
            return not self._busy and not self._jobs

    def offer(self, job: Job) -> None:
        """Do this next, after what waits already."""
        with self._wake:
            self._jobs.append(job)
            self._wake.notify()

    def take(self) -> Found | None:
        """The oldest result that nobody took yet, or None."""
        with self._wake:
            found = self._found.popleft() if self._found else None
        if isinstance(found, Exception):
            raise found
        return found

    def close(self, seconds: float = 1.0) -> bool:
        """Take no more jobs and wait at most ``seconds`` for the work under way; whether it ended."""
        with self._wake:
            self._closed = True
            self._jobs.clear()
            self._wake.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        if sys.platform == "linux":
            os.nice(NICE)
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._jobs or self._closed)
                if self._closed:
                    return
                job, self._busy = self._jobs.popleft(), True
            found: Found | Exception
            try:
                found = self._work(job)
            except Exception as error:
                found = error
            with self._wake:
                self._found.append(found)
                self._busy = False
            self._bell.set()
