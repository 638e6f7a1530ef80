"""The window of record: a real environment on the screen, with the state of the episode and the keys below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pygame

from neuralsim.agents.canvas import AMBER, BLUE, BRIGHT, DIM, EDGE, GREEN, MARGIN, NIGHT, PLAIN, RED, Canvas, Colour
from neuralsim.agents.screen import open_display

STRIP = 96
"""Height of the text below the frame."""
LEAST_WIDTH = 420
KEYS = (("enter", "keep"), ("backspace", "discard"), ("r", "again"), ("space", "pause"), ("esc", "quit"))


@dataclass(frozen=True)
class RecordStatus:
    """Text of the window besides the frame."""

    seconds: float
    """Length of the episode under way."""
    total: float
    """Its return."""
    ended: str
    """Reason of its end; empty while it goes on."""
    paused: bool
    kept: int
    """Episodes kept so far."""
    message: str = ""


class RecordWindow:
    """Shows frames of ``size`` ``(height, width)`` at ``scale`` times their size; ``keys``: those that act, with their effects."""

    def __init__(self, size: tuple[int, int], scale: int, title: str, keys: Sequence[tuple[str, str]]) -> None:
        self.scale, self.keys, self._size = max(1, scale), tuple(keys), size
        height, width = size
        wide = max(LEAST_WIDTH, width * self.scale + 2 * MARGIN)
        self.surface = open_display(title, (wide, height * self.scale + 2 * MARGIN + STRIP), "record")
        self.canvas = Canvas()

    def draw(self, frame: np.ndarray, status: RecordStatus) -> None:
        """Draw everything and present it."""
        to, width, text = self.surface, self.surface.get_width(), self.canvas.text
        to.fill(NIGHT)
        box = self._box()
        pygame.draw.rect(to, GREEN if status.ended else EDGE, box.inflate(4, 4), 2, border_radius=3)
        image = pygame.surfarray.make_surface(frame.transpose(1, 0, 2))
        to.blit(pygame.transform.scale(image, box.size), box)
        top = box.bottom + MARGIN
        if status.ended:
            head, shade = f"{status.ended}: enter keeps it, backspace does not", AMBER
        elif status.paused:
            head, shade = "paused", PLAIN
        else:
            head, shade = f"recording {status.seconds:.1f} s", RED
        text(to, head, (MARGIN, top), shade, 22)
        text(to, f"kept {status.kept}   return {status.total:.2f}", (width - MARGIN, top), BRIGHT, 20, right=True)
        self._line(self.keys, top + 26, BLUE)
        self._line(KEYS, top + 48, PLAIN)
        if status.message:
            text(to, status.message, (MARGIN, top + 70), BRIGHT, 20)
        pygame.display.flip()

    def panel(self) -> np.ndarray:
        """Pixels that now show the frame, uint8 ``(h * scale, w * scale, 3)``."""
        return pygame.surfarray.array3d(self.surface.subsurface(self._box())).transpose(1, 0, 2)

    def close(self) -> None:
        """Take the window from the screen."""
        pygame.display.quit()

    def _box(self) -> pygame.Rect:
        height, width = (side * self.scale for side in self._size)
        return pygame.Rect((self.surface.get_width() - width) // 2, MARGIN, width, height)

    def _line(self, pairs: Sequence[tuple[str, str]], y: int, colour: Colour) -> None:
        self.canvas.pairs(self.surface, pairs, (MARGIN, y), self.surface.get_width() - 8, (colour, DIM))
