"""Emergency stop of a control loop: a button for any thread, the keys of a terminal, and ctrl-C."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

from neuralsim.runtime.interrupt import GracefulInterrupt

KEYS = (b" ", b"\x1b")
POLL_SECONDS = 0.05
CTRL_C = "ctrl-C"


class SafeStop(Exception):
    """The robot is to rest and to be disconnected, for the reason in the text."""


class StopButton:
    """Ends the loop at once; may be pressed from any thread. The first reason counts."""

    def __init__(self) -> None:
        self.reason = ""
        self.pressed = threading.Event()
        self.wake = threading.Event()
        """Wake-up event of the loop, also set after each background job."""

    def press(self, reason: str) -> None:
        """Stop for ``reason``."""
        self.reason = self.reason or reason
        self.pressed.set()
        self.wake.set()

    def check(self) -> None:
        """Raise SafeStop once it was pressed."""
        if self.pressed.is_set():
            raise SafeStop(self.reason)


class EmergencyStopKey:
    """Emergency stop by space or escape in a terminal, for as long as it is entered.

    Calls ``pressed`` (from its own thread) when one of the keys is typed on the terminal behind ``fd`` (stdin by default).
    Without a terminal it does nothing, and ``listening`` is False.
    """

    def __init__(self, pressed: Callable[[], None], fd: int | None = None) -> None:
        self._pressed, self._fd = pressed, fd
        self.listening = False
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._settings: list[object] | None = None

    def __enter__(self) -> EmergencyStopKey:
        with contextlib.suppress(ImportError, OSError, ValueError):  # no terminal, or a system without any
            import termios
            import tty

            fd = sys.stdin.fileno() if self._fd is None else self._fd
            if os.isatty(fd):
                self._settings = termios.tcgetattr(fd)
                tty.setcbreak(fd)  # keys arrive at once; ctrl-C stays a signal
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
        if self._settings is not None and self._fd is not None:
            import termios

            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._settings)  # type: ignore[arg-type]

    def _listen(self) -> None:
        assert self._fd is not None
        while not self._over.is_set():
            if select.select([self._fd], [], [], POLL_SECONDS)[0]:
                typed = os.read(self._fd, 64)
                if not typed:
                    return
                if any(key in typed for key in KEYS):
                    self._pressed()


@contextlib.contextmanager
def stop_on_signals(button: StopButton) -> Iterator[None]:
    """Let ctrl-C and SIGTERM press ``button``; a second one interrupts.

    It is pressed from a thread, since a signal handler may run while the main thread holds the locks of the button.
    """
    over = threading.Event()

    def listen(interrupt: GracefulInterrupt) -> None:
        while not over.wait(0.02):
            if interrupt.asked:
                button.press(CTRL_C)
                return

    try:
        with GracefulInterrupt() as interrupt:
            threading.Thread(target=listen, args=(interrupt,), name="neuralsim-signals", daemon=True).start()
            yield
    finally:
        over.set()
