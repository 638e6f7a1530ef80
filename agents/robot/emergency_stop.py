"""EmergencyStopKey: the emergency stop in a terminal. Space or escape, without return."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections.abc import Callable
from types import TracebackType

KEYS = (b" ", b"\x1b")
LOOK_SECONDS = 0.05


class EmergencyStopKey:
    """While it is entered, calls ``pressed`` (from its own thread) when space or escape is typed on the terminal behind ``fd``
    (stdin by default). Where there is no terminal it does nothing; ``listening`` says which."""

    def __init__(self, pressed: Callable[[], None], fd: int | None = None) -> None:
        self._pressed, self._fd = pressed, fd
        self.listening = False
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._before: list[object] | None = None

    def __enter__(self) -> EmergencyStopKey:
        with contextlib.suppress(ImportError, OSError, ValueError):  # no terminal here, or no system that knows of them
            import termios
            import tty

            fd = sys.stdin.fileno() if self._fd is None else self._fd
            if os.isatty(fd):
                self._before = termios.tcgetattr(fd)
                tty.setcbreak(fd)  # keys come at once; ctrl-C stays a signal
                self._fd, self.listening = fd, True
                self._thread = threading.Thread(target=self._listen, name="neuralsim-stop-key", daemon=True)
                self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(1.0)
        if self._before is not None and self._fd is not None:
            import termios

            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)  # type: ignore[arg-type]

    def _listen(self) -> None:
        assert self._fd is not None
        while not self._over.is_set():
            if select.select([self._fd], [], [], LOOK_SECONDS)[0]:
                typed = os.read(self._fd, 64)
                if not typed:
                    return
                if any(key in typed for key in KEYS):
                    self._pressed()
