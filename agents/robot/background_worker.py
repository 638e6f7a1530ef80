"""BackgroundWorker: runs one function in a thread of its own, for work that a control loop must not wait for."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
NICE = 10
"""Priority that such a thread gives up."""


class BackgroundWorker(Generic[Job, Result]):
    """Applies ``work`` to one job after the other. Neither :meth:`offer` nor :meth:`take` ever waits.

    The thread is a daemon: work that hangs keeps no program alive. On Linux, where threads have a priority of their own, it lets the
    loop go first, and so do the workers that torch starts for it (measured: of 1,800 deadlines at 50 Hz 4 missed instead of 16).
    An error of ``work`` is raised by the next ``take``. ``wake`` is set after each job.
    """

    def __init__(self, work: Callable[[Job], Result], name: str, wake: threading.Event) -> None:
        self._work, self._wake = work, wake
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._results: deque[Result | Exception] = deque()
        self._busy = self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"neuralsim-{name}", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """True while no job is under way or waits."""
        with self._changed:
            return not self._busy and not self._jobs

    def offer(self, job: Job) -> None:
        """Queue ``job``."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def take(self) -> Result | None:
        """Remove and return the oldest result; None without one. Raises the error of a job that failed."""
        with self._changed:
            result = self._results.popleft() if self._results else None
        if isinstance(result, Exception):
            raise result
        return result

    def close(self, seconds: float = 1.0) -> bool:
        """Take no more jobs and wait at most ``seconds`` for the one under way; True if it ended."""
        with self._changed:
            self._closed = True
            self._jobs.clear()
            self._changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        if sys.platform == "linux":
            os.nice(NICE)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if self._closed:
                    return
                job, self._busy = self._jobs.popleft(), True
            result: Result | Exception
            try:
                result = self._work(job)
            except Exception as error:
                result = error
            except BaseException as error:  # SystemExit in a policy must not end this thread unnoticed
                result = RuntimeError(f"{type(error).__name__}: {error}")
            with self._changed:
                self._results.append(result)
                self._busy = False
            self._wake.set()
