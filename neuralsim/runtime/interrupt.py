"""Interrupts: on ctrl-C or a polite kill, long work ends where it can be resumed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType


class Stopped(Exception):
    """The work was asked to stop; what it has done is saved."""


class GracefulInterrupt:
    """Listens, while it is entered, for SIGINT, SIGTERM and, with ``hangup``, SIGHUP (unless that is ignored, as by nohup).

    The first signal sets ``asked``, which the work looks at, and calls ``notify``; a second one interrupts at once.
    """

    def __init__(self, notify: Callable[[], None] | None = None, hangup: bool = False) -> None:
        self.asked = False
        self._notify = notify
        self._signals = [signal.SIGINT, signal.SIGTERM]
        if hangup and hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) not in (None, signal.SIG_IGN):
            self._signals.append(signal.SIGHUP)
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> GracefulInterrupt:
        try:
            self._previous = {s: signal.signal(s, self._ask) for s in self._signals}
        except ValueError:  # not the main thread: signals are the caller's
            self._previous = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self._notify is not None:
            self._notify()
