"""The window of play: the panels, a strip of status below them, and the list of keys on request.

All of it belongs to the main thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pygame

from neuralsim.agents.canvas import (
    AMBER,
    BLUE,
    BRIGHT,
    DIM,
    EDGE,
    GAP,
    MARGIN,
    NIGHT,
    PLAIN,
    RED,
    SLAB,
    TITLE,
)  # fmt: skip
from neuralsim.agents.screen import open_display
from neuralsim.agents.teleop.keyboard import DIGITS, GENTLE
from neuralsim.agents.teleop.panels import PanelRenderer, panels_size
from neuralsim.agents.teleop.session import SessionFrame

SCALES = (3, 14)
"""Smallest and largest magnification."""
STRIP, KEY_ROW = 62, 32
"""Heights of the strip of status and of the line of keys below it."""
COMMANDS = (
    ("space", "pause and go on"),
    (".", "pause and take a single step"),
    ("backspace", "rewind two seconds, again for more"),
    ("r", "the same start again"),
    ("n", "a new start"),
    ("1 2 3 4", "denoising steps for each frame"),
    ("p", "hand over to the policy and back; a key of yours wins"),
    ("v", "record a video and episodes, stop recording"),
    ("+  -", "larger, smaller"),
    ("h", "this help"),
    ("esc, q", "quit; a recording is kept"),
)
KEY_LINE = (
    ("h", "help"),
    ("space", "pause"),
    ("backspace", "rewind"),
    ("r", "again"),
    ("n", "new start"),
    ("v", "record"),
    ("p", "policy"),
    ("1-4", "denoising"),
    (".", "single step"),
    ("+ -", "size"),
    ("q", "quit"),
)
"""The line at the bottom; the most needed first, since a small window shows only as many as fit."""


@dataclass(frozen=True)
class Status:
    """Text of the strip besides the SessionFrame: rates per second, latency in seconds, modes."""

    world_fps: float = 0.0
    window_fps: float = 0.0
    latency: float | None = None
    paused: bool = False
    driver: str = "human"
    denoise_steps: int = 1
    held: frozenset[str] = frozenset()
    recorded: float | None = None
    """Seconds recorded so far; None while nothing is recorded."""
    message: str = ""
    help: bool = False
    starts: int = 1


class Window:
    """The window on the screen, ``scale`` times the size of ``frame``s ``(height, width)``; ``real``: all three panels."""

    def __init__(
        self, frame: tuple[int, int], scale: int, title: str, renderer: PanelRenderer, real: bool = True
    ) -> None:
        self._frame, self._title, self._real = frame, title, real
        self.scale = min(max(scale, SCALES[0]), SCALES[1])
        self._open()
        self.renderer = renderer

    def resize(self, change: int) -> None:
        """Magnify by ``change`` more (or less), within SCALES."""
        scale = min(max(self.scale + change, SCALES[0]), SCALES[1])
        if scale != self.scale:
            self.scale = scale
            self._open()

    def draw(self, frame: SessionFrame, status: Status) -> None:
        """Draw everything and present it."""
        self.surface.fill(NIGHT)
        self.renderer.panels(self.surface, frame, self.scale)
        self._draw_status(frame, status)
        if status.help:
            self._draw_help()
        pygame.display.flip()

    def panel(self, number: int) -> np.ndarray:
        """Pixels now shown in panel 0 (imagined), 1 (real) or 2 (difference), uint8 ``(h * scale, w * scale, 3)``."""
        height, width = self._frame[0] * self.scale, self._frame[1] * self.scale
        left = MARGIN + number * (width + GAP)
        part = self.surface.subsurface((left, MARGIN + TITLE, width, height))
        return pygame.surfarray.array3d(part).transpose(1, 0, 2)

    def close(self) -> None:
        """Take the window from the screen."""
        pygame.display.quit()

    def _open(self) -> None:
        width, self._panels_height = panels_size(self._frame[1], self._frame[0], self.scale, self._real)
        self.surface = open_display(self._title, (width, self._panels_height + STRIP + KEY_ROW), "play")

    def _draw_status(self, frame: SessionFrame, status: Status) -> None:
        """Draw the driver, counters, held keys, and the line of keys."""
        to, renderer, top = self.surface, self.renderer, self._panels_height
        width = to.get_width()
        pygame.draw.rect(to, SLAB, (MARGIN, top, width - 2 * MARGIN, STRIP), border_radius=8)
        x = MARGIN + 12
        human = status.driver == "human"
        driver = "YOU DRIVE" if human else f"{status.driver.upper()} DRIVES"
        x += renderer.chip(to, (x, top + 20), driver, BLUE if human else AMBER)
        if status.paused:
            x += renderer.chip(to, (x, top + 20), "PAUSED", PLAIN)
        if status.recorded is not None:
            x += renderer.chip(to, (x, top + 20), f"REC {status.recorded:.1f} s", RED)
        if status.message:
            renderer.text(to, status.message, (x + 4, top + 20), BRIGHT, 20)
        facts = (
            ("step", f"{frame.step}"),
            ("world", f"{status.world_fps:.1f}/s"),
            ("key to frame", "-" if status.latency is None else f"{1000 * status.latency:.0f} ms"),
            ("denoising", f"{status.denoise_steps}"),
            ("window", f"{status.window_fps:.0f}/s"),
            ("start", f"{frame.start} of {status.starts}"),
        )
        renderer.pairs(to, facts, (MARGIN + 14, top + 45), width - MARGIN - 150, (DIM, BRIGHT))
        self._draw_arrows((width - MARGIN - 118, top + 6), status.held)
        renderer.pairs(to, KEY_LINE, (MARGIN + 2, top + STRIP + 16), width - MARGIN, (PLAIN, DIM))

    def _draw_help(self) -> None:
        """Draw the list of keys over everything."""
        to, text, labels = self.surface, self.renderer.text, self.renderer.labels
        digits = any(key in DIGITS for key, _ in labels.keys)
        keys = (*labels.keys, *(k for k in COMMANDS if not (digits and k[0].startswith("1 "))))
        row, width = min(26, (to.get_height() - 76) // len(keys)), 590
        height = row * len(keys) + 64
        shade = pygame.Surface(to.get_size(), pygame.SRCALPHA)
        shade.fill((10, 11, 15, 190))
        left, top = (to.get_width() - width) // 2, max(4, (to.get_height() - height) // 2)
        pygame.draw.rect(shade, (*SLAB, 255), (left, top, width, height), border_radius=10)
        pygame.draw.rect(shade, (*EDGE, 255), (left, top, width, height), 1, border_radius=10)
        to.blit(shade, (0, 0))
        text(to, "KEYS", (left + 24, top + 28), BRIGHT, 24)
        for i, (key, effect) in enumerate(keys):
            y = top + 62 + i * row
            text(to, key, (left + 168, y), BLUE, 20, right=True)
            text(to, effect, (left + 188, y), PLAIN, 20)

    def _draw_arrows(self, at: tuple[int, int], held: frozenset[str]) -> None:
        """Draw shift and the four arrows, lit while they are down."""
        to, (x, y) = self.surface, at
        places = {"up": (62, 0), "left": (36, 26), "down": (62, 26), "right": (88, 26)}
        turns = {"up": 0, "right": 1, "down": 2, "left": 3}
        for key, (dx, dy) in places.items():
            lit = key in held
            box = pygame.Rect(x + dx, y + dy, 24, 24)
            pygame.draw.rect(to, BLUE if lit else EDGE, box, border_radius=5)
            arrow = [(0.0, -5.0), (5.0, 4.0), (-5.0, 4.0)]
            for _ in range(turns[key]):
                arrow = [(-b, a) for a, b in arrow]
            pygame.draw.polygon(to, NIGHT if lit else PLAIN, [(box.centerx + a, box.centery + b) for a, b in arrow])
        box = pygame.Rect(x - 12, y + 26, 42, 24)
        lit = GENTLE in held
        pygame.draw.rect(to, BLUE if lit else EDGE, box, border_radius=5)
        self.renderer.text(to, "shift", (box.left + 7, box.centery), NIGHT if lit else PLAIN, 18)
