"""The screen: open SDL's display, or one in memory where there is none."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import pygame


def has_screen() -> bool:
    """Return False on a Linux machine without X11 or Wayland."""
    return not sys.platform.startswith("linux") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ))


def open_display(title: str, size: tuple[int, int], command: str) -> pygame.Surface:
    """Open the window; raises an OSError that says how to run ``neuralsim COMMAND`` without one."""
    try:
        pygame.display.init()
        # SDL falls back to drawing into memory; that is only right where it was asked for.
        if pygame.display.get_driver() in ("offscreen", "dummy", "evdev") and "SDL_VIDEODRIVER" not in os.environ:
            raise pygame.error("no screen")
        pygame.display.set_caption(title)
        return pygame.display.set_mode(size)
    except pygame.error as error:
        raise OSError(
            f"no window can be opened here ({error}); run 'neuralsim {command}' on a machine with a screen, or with "
            "--headless and --script"
        ) from error


@contextlib.contextmanager
def dummy_screen() -> Iterator[None]:
    """Let SDL draw into memory while the context lasts."""
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
