"""Key events: pygame's events become held keys of a Keyboard, or commands of the program."""

from __future__ import annotations

from collections.abc import Callable

import pygame

from neuralsim.agents.teleop.key_bindings import PAIRS
from neuralsim.agents.teleop.keyboard import DIGITS, DIRECTIONS, GENTLE, Keyboard

MOVES = {
    pygame.K_LEFT: "left",
    pygame.K_RIGHT: "right",
    pygame.K_UP: "up",
    pygame.K_DOWN: "down",
    pygame.K_a: "left",
    pygame.K_d: "right",
    pygame.K_w: "up",
    pygame.K_s: "down",
    pygame.K_LSHIFT: GENTLE,
    pygame.K_RSHIFT: GENTLE,
}
assert set(MOVES.values()) == {*DIRECTIONS, GENTLE}
NAMES = MOVES | {getattr(pygame, f"K_{key}"): key for key in (*(k for pair in PAIRS[2:] for k in pair), *DIGITS)}
"""A keyboard's name for each of pygame's key codes that can act."""


class KeyEvents:
    """Passes events on: keys that act on the world to ``keyboard``, key presses of any other kind to ``command``.

    ``changed(serial)`` is called after a change of the keys that matters; ``closed`` is set when the window is closed.
    """

    def __init__(
        self, keyboard: Keyboard, command: Callable[[int], None], changed: Callable[[int], None] = lambda serial: None
    ) -> None:
        self.keyboard, self.command, self.changed = keyboard, command, changed
        self.closed = False
        self._down: set[int] = set()

    def handle(self, event: pygame.event.Event) -> None:
        """Handle one event."""
        if event.type == pygame.QUIT:
            self.closed = True
        elif event.type == pygame.WINDOWFOCUSLOST:
            self._down.clear()  # the key-up events go to another window
            self.keyboard.clear()
        elif event.type in (pygame.KEYDOWN, pygame.KEYUP):
            name = NAMES.get(event.key)
            if name is not None and (name == GENTLE or name in self.keyboard.keys):
                self._move(event.key, name, event.type == pygame.KEYDOWN)
            elif event.type == pygame.KEYDOWN:
                self.command(event.key)

    def _move(self, key: int, name: str, down: bool) -> None:
        if down:
            self._down.add(key)
            serial = self.keyboard.hold(name)
        else:
            self._down.discard(key)
            if any(NAMES[k] == name for k in self._down):  # an arrow and its letter were both down
                return
            serial = self.keyboard.release(name)
        if serial is not None:
            self.changed(serial)
