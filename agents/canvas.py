"""Colours, words and simple shapes on a pygame surface."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pygame

Colour = tuple[int, int, int]

MARGIN, GAP, TITLE, CAPTION = 16, 24, 34, 46
"""Pixels: rim of a picture, space between panels, height of a panel's title and of its caption."""
NIGHT, SLAB, EDGE = (18, 20, 26), (30, 33, 42), (52, 57, 71)
BRIGHT, PLAIN, DIM = (238, 240, 245), (178, 184, 198), (112, 119, 136)
BLUE, GREEN, RED, AMBER = (92, 148, 255), (94, 204, 132), (240, 92, 92), (240, 178, 74)


class Canvas:
    """Draws words, titles, bars and chips on any surface, and keeps rendered words from one picture to the next."""

    def __init__(self) -> None:
        pygame.font.init()
        self._fonts: dict[int, pygame.font.Font] = {}
        self._words: dict[tuple[str, int, Colour], pygame.Surface] = {}

    def text(
        self, to: pygame.Surface, words: str, at: tuple[int, int], colour: Colour = PLAIN, size: int = 20, right: bool = False
    ) -> int:  # fmt: skip
        """Write ``words`` with their left (or right) end and middle height at ``at``; return their width."""
        key = (words, size, colour)
        if key not in self._words:
            if len(self._words) > 500:
                self._words.clear()
            # Drawn at twice its size and averaged down: the default font's hinting spaces small letters unevenly.
            large = self._font(2 * size).render(words, True, colour)
            self._words[key] = pygame.transform.smoothscale_by(large, 0.5)
        image = self._words[key]
        # The font's height, not the word's: all share one baseline.
        top = at[1] - self._font(2 * size).get_height() // 4
        to.blit(image, (at[0] - (image.get_width() if right else 0), top))
        return image.get_width()

    def text_width(self, words: str, size: int) -> int:
        """Width of ``words`` in pixels."""
        return self._font(2 * size).size(words)[0] // 2

    def wrap(self, words: str, width: int, size: int) -> list[str]:
        """Break ``words`` into lines at most ``width`` pixels wide."""
        lines = []
        while words:
            cut = len(words)
            while self.text_width(words[:cut], size) > width:
                cut = max(words.rfind(" ", 0, cut), 1)
            lines.append(words[:cut].strip())
            words = words[cut:]
        return lines

    def title(self, to: pygame.Surface, left: int, width: int, title: str, about: str, colour: Colour) -> None:
        """Write a panel's title and, where it fits, the words about it."""
        middle = MARGIN + TITLE // 2 - 3
        pygame.draw.rect(to, colour, (left, middle - 7, 4, 14), border_radius=2)
        used = self.text(to, title, (left + 12, middle), BRIGHT, 24)
        if used + 24 + 7 * len(about) < width:
            self.text(to, about, (left + 12 + used + 12, middle + 1), DIM, 19)

    def bar(
        self, to: pygame.Surface, at: tuple[int, int], width: int, share: float, labels: tuple[str, str], colour: Colour
    ) -> None:  # fmt: skip
        """Draw a bar filled to ``share`` (0..1) between its ``labels`` on the left and on the right."""
        x, y = at
        end = x + width
        self.text(to, labels[0], (x, y), PLAIN, 20)
        self.text(to, labels[1], (end, y), PLAIN, 20, right=True)
        left, right = x + 112, end - 104
        if right - left < 24:
            return
        pygame.draw.rect(to, EDGE, (left, y - 4, right - left, 8), border_radius=4)
        filled = round((right - left) * min(1.0, max(0.0, share))) if math.isfinite(share) else 0
        if filled > 0:
            pygame.draw.rect(to, colour, (left, y - 4, max(filled, 4), 8), border_radius=4)

    def needle(self, to: pygame.Surface, box: pygame.Rect, rest: float, value: float) -> None:
        """Draw a bar from ``rest`` to ``value``, both in -1..1, inside ``box``."""
        pygame.draw.rect(to, EDGE, box, border_radius=4)
        left, right = sorted(box.left + round((x + 1) / 2 * box.width) for x in (rest, value))
        place = (min(left, box.right - 3), box.top, max(right - left, 3), box.height)
        pygame.draw.rect(to, BLUE, place, border_radius=4)

    def pairs(
        self, to: pygame.Surface, pairs: Sequence[tuple[str, str]], at: tuple[int, int], end: int, colours: tuple[Colour, Colour]
    ) -> None:  # fmt: skip
        """Write names and values in two colours, side by side, as many as end before ``end``."""
        x, y = at
        for name, value in pairs:
            if x + 5 + self.text_width(name + value, 19) > end:
                return
            x += self.text(to, name, (x, y), colours[0], 19) + 5
            x += self.text(to, value, (x, y), colours[1], 19) + 18

    def chip(self, to: pygame.Surface, at: tuple[int, int], words: str, colour: Colour) -> int:
        """Write ``words`` on a rounded label; return the width it takes."""
        width = self.text_width(words, 18) + 18
        pygame.draw.rect(to, colour, (at[0], at[1] - 10, width, 20), border_radius=10)
        self.text(to, words, (at[0] + 9, at[1] + 1), NIGHT, 18)
        return width + 8

    def _font(self, size: int) -> pygame.font.Font:
        if size not in self._fonts:
            self._fonts[size] = pygame.font.Font(None, size)
        return self._fonts[size]
