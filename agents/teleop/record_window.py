"""RecordWindow: a true world on the screen, with what there is to know while one drives it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pygame

from neuralsim.agents.teleop.window import (
    AMBER,
    BLUE,
    BRIGHT,
    DIM,
    EDGE,
    GREEN,
    MARGIN,
    NIGHT,
    PLAIN,
    RED,
    PanelRenderer,
)

STRIP = 96
"""Height of what is told under the frame."""
LEAST_WIDTH = 420
KEYS = (("enter", "keep"), ("backspace", "discard"), ("r", "again"), ("space", "pause"), ("esc", "quit"))


@dataclass(frozen=True)
class Told:
    """What the window says besides the frame: seconds and return of the episode under way, what ended it, whether time stands
    still, how many episodes were kept, and a passing message."""

    seconds: float
    total: float
    ended: str
    paused: bool
    kept: int
    message: str = ""


class RecordWindow:
    """Frames ``(height, width, 3)`` at ``scale`` times their size; ``legend``: keys and what they do."""

    def __init__(self, height: int, width: int, scale: int, title: str, legend: Sequence[tuple[str, str]]) -> None:
        self.scale, self.legend, self._frame = max(1, scale), tuple(legend), (height, width)
        try:
            pygame.display.init()
            # SDL falls back to drawing where nobody sees it; that is only right where it was asked for.
            if pygame.display.get_driver() in ("offscreen", "dummy", "evdev") and "SDL_VIDEODRIVER" not in os.environ:
                raise pygame.error("no screen")
            pygame.display.set_caption(title)
            wide = max(LEAST_WIDTH, width * self.scale + 2 * MARGIN)
            self.surface = pygame.display.set_mode((wide, height * self.scale + 2 * MARGIN + STRIP))
        except pygame.error as error:
            raise OSError(
                f"no window can be opened here ({error}); run 'neuralsim record' on a machine with a screen, or with "
                "--headless and --script"
            ) from error
        self.painter = PanelRenderer()

    def draw(self, frame: np.ndarray, told: Told) -> None:
        """Draw everything and present it."""
        to, width = self.surface, self.surface.get_width()
        to.fill(NIGHT)
        colour = GREEN if told.ended else EDGE
        box = self._box()
        pygame.draw.rect(to, colour, box.inflate(4, 4), 2, border_radius=3)
        image = pygame.surfarray.make_surface(frame.transpose(1, 0, 2))
        to.blit(pygame.transform.scale(image, box.size), box)
        top = box.bottom + MARGIN
        if told.ended:
            head, shade = f"{told.ended}: enter keeps it, backspace does not", AMBER
        elif told.paused:
            head, shade = "paused", PLAIN
        else:
            head, shade = f"recording {told.seconds:.1f} s", RED
        self.painter.text(to, head, (MARGIN, top), shade, 22)
        self.painter.text(
            to, f"kept {told.kept}   return {told.total:.2f}", (width - MARGIN, top), BRIGHT, 20, right=True
        )
        self._line(self.legend, top + 26, BLUE)
        self._line(KEYS, top + 48, PLAIN)
        if told.message:
            self.painter.text(to, told.message, (MARGIN, top + 70), BRIGHT, 20)
        pygame.display.flip()

    def panel(self) -> np.ndarray:
        """The pixels that now show the frame, uint8 ``(h * scale, w * scale, 3)``."""
        return pygame.surfarray.array3d(self.surface.subsurface(self._box())).transpose(1, 0, 2)

    def close(self) -> None:
        """Take the window from the screen."""
        pygame.display.quit()

    def _box(self) -> pygame.Rect:
        height, width = (side * self.scale for side in self._frame)
        return pygame.Rect((self.surface.get_width() - width) // 2, MARGIN, width, height)

    def _line(self, pairs: Sequence[tuple[str, str]], y: int, colour: tuple[int, int, int]) -> None:
        x = MARGIN
        for key, does in pairs:
            if x > self.surface.get_width() - 60:
                return
            x += self.painter.text(self.surface, key, (x, y), colour, 19) + 5
            x += self.painter.text(self.surface, does, (x, y), DIM, 19) + 16
