"""Panels: the imagined frame, the real one and their difference; without a real environment, the model's readings instead."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pygame

from neuralsim.agents.canvas import (
    AMBER,
    BLUE,
    BRIGHT,
    CAPTION,
    DIM,
    EDGE,
    GAP,
    GREEN,
    MARGIN,
    NIGHT,
    PLAIN,
    RED,
    SLAB,
    TITLE,
    Canvas,
    Colour,
)  # fmt: skip
from neuralsim.agents.teleop.key_bindings import Labels
from neuralsim.agents.teleop.session import SessionFrame

VIDEO_SCALE = 4
"""Magnification in recorded videos, whatever the window's is."""
LEAST_READINGS = 340
"""Width of the panel of readings at least, in pixels."""
ROW = 21
"""Height of a reading."""
FOOT = 22
"""Height of the line under a video's panels."""


def panels_size(width: int, height: int, scale: int, real: bool = True) -> tuple[int, int]:
    """Width and height in pixels, both even, of the panels for frames of this size, with or without a real environment."""
    others = 2 * width * scale + 2 * GAP if real else GAP + max(width * scale, LEAST_READINGS)
    wide = 2 * MARGIN + width * scale + others
    high = MARGIN + TITLE + height * scale + CAPTION
    return wide + wide % 2, high + high % 2


Reading = tuple[str, str, tuple[float, float] | None]
"""Name and value of a quantity; for an action in -1..1 also its rest and value."""


def reading_rows(frame: SessionFrame, labels: Labels) -> list[Reading]:
    """Return the model's predictions and the action, in the world's units, in the order of their importance."""
    return [
        (labels.reward, format_value(frame.reward), None),
        ("return", format_value(frame.total), None),
        (labels.end, f"{100 * frame.end:.0f} %" if math.isfinite(frame.end) else "unknown", None),
        *_action_rows(frame, labels),
        *((name, format_value(x), None) for name, x in zip(labels.states, frame.state_estimate, strict=False)),
    ]


def format_value(value: float) -> str:
    """Format to three digits; "unknown" where it is not finite."""
    return f"{value:.3g}" if math.isfinite(value) else "unknown"


def _action_rows(frame: SessionFrame, labels: Labels) -> Iterator[Reading]:
    spec = labels.spec
    if frame.action is None or spec is None:
        return
    rest = spec.rest_action()
    for i, (name, value) in enumerate(zip(spec.action_names, frame.action, strict=True)):
        physical = spec.action_offset[i] + spec.action_scale[i] * float(value)
        if not spec.discrete:
            yield name, f"{physical:.2f}", (float(rest[i]), float(value))
        elif labels.choices:
            yield name, labels.choices[int(value)].removesuffix(" (rest)"), None
        else:
            yield name, f"{physical:.0f}", None


class PanelRenderer(Canvas):
    """Draws panels on any surface, and keeps magnified frames from one picture to the next.

    ``labels``: names of the world's quantities. ``uncertainty_limit``: beyond it the bar of the uncertainty is red.
    """

    def __init__(self, labels: Labels | None = None, uncertainty_limit: float = math.inf) -> None:
        super().__init__()
        self.labels = labels or Labels()
        self.uncertainty_limit = uncertainty_limit
        self._magnified_frames: dict[tuple[str, int], tuple[SessionFrame, pygame.Surface]] = {}

    def panels(self, to: pygame.Surface, frame: SessionFrame, scale: int) -> None:
        """Draw the panels with titles and captions from the top left corner; see :func:`panels_size`."""
        height, width = frame.imagined.shape[0] * scale, frame.imagined.shape[1] * scale
        steps = f"{frame.denoise_steps} denoising step{'s' if frame.denoise_steps != 1 else ''}"
        share = self.labels.reward_is_share
        titles = [("DREAM", f"the model, {steps}", BLUE, frame.imagined, share and frame.end > 0.5)]
        if frame.real is not None:
            difference = frame.difference
            about = f"mean {float(difference.mean()):.1f} of 255"
            titles += [
                ("REAL", "the simulator, same keys", GREEN, frame.real_image, share and frame.real.end),
                ("DIFFERENCE", about, AMBER, difference, False),
            ]
        top = MARGIN + TITLE
        for i, (title, about, colour, image, success) in enumerate(titles):
            left = MARGIN + i * (width + GAP)
            self.title(to, left, width, title, about, colour)
            rim = (left - 2, top - 2, width + 4, height + 4)
            pygame.draw.rect(to, GREEN if success else EDGE, rim, 2, border_radius=3)
            to.blit(self._magnified(title, frame, image, scale), (left, top))
        below = top + height + CAPTION // 2 + 2
        second = MARGIN + width + GAP
        if frame.real is None:
            wide = max(width, LEAST_READINGS)
            self.title(to, second, wide, "READINGS", "of the dream, by the model", AMBER)
            self._readings(to, frame, pygame.Rect(second, top, wide, height))
            self._uncertainty(to, frame, (second, below), wide)
            return
        self._outcome(to, (MARGIN, below), width, (frame.reward, f"{100 * frame.end:.0f} %"), BLUE)
        self._outcome(to, (second, below), width, (frame.real.reward, "yes" if frame.real.end else "no"), GREEN)
        self._uncertainty(to, frame, (second + width + GAP, below), width)

    def video_frame(self, frame: SessionFrame) -> np.ndarray:
        """Return the panels alone, uint8 ``(h, w, 3)`` with even sides, at VIDEO_SCALE."""
        shape = frame.imagined.shape[1], frame.imagined.shape[0]
        width, height = panels_size(*shape, VIDEO_SCALE, frame.real is not None)
        surface = pygame.Surface((width, height + FOOT))
        surface.fill(NIGHT)
        self.panels(surface, frame, VIDEO_SCALE)
        foot = height + 6
        self.text(surface, f"step {frame.step}   start {frame.start}", (MARGIN, foot), DIM, 18)
        driver = f"driven by {frame.driver}" if frame.action is not None else ""
        self.text(surface, driver, (width - MARGIN, foot), DIM, 18, right=True)
        return np.ascontiguousarray(pygame.surfarray.pixels3d(surface).transpose(1, 0, 2))

    def _outcome(
        self, to: pygame.Surface, at: tuple[int, int], width: int, outcome: tuple[float, str], colour: Colour
    ) -> None:
        """Write reward and end under a panel."""
        reward, end = outcome[0], f"{self.labels.end} {outcome[1]}"
        if self.labels.reward_is_share:
            self.bar(to, at, width, reward, (f"{self.labels.reward} {reward:.2f}", end), colour)
            return
        self.text(to, f"{self.labels.reward} {format_value(reward)}", at, PLAIN, 20)
        self.text(to, end, (at[0] + width, at[1]), PLAIN, 20, right=True)

    def _uncertainty(self, to: pygame.Surface, frame: SessionFrame, at: tuple[int, int], width: int) -> None:
        limit, value = self.uncertainty_limit, frame.uncertainty
        text = f"{value:.2f}" + (f" of {limit:.2f}" if math.isfinite(limit) else "")
        share = value / limit if math.isfinite(limit) and limit > 0 else value
        self.bar(to, at, width, share, ("uncertainty", text), RED if value > limit else AMBER)

    def _readings(self, to: pygame.Surface, frame: SessionFrame, box: pygame.Rect) -> None:
        """Write predictions and action, as many rows as ``box`` has; the reason for no real environment at its foot."""
        pygame.draw.rect(to, SLAB, box, border_radius=3)
        lines = self.wrap(self.labels.no_reference, box.width - 24, 18)
        rows = reading_rows(frame, self.labels)
        room = max(1, (box.height - 18 * len(lines) - 16) // ROW)
        for i, (name, text, span) in enumerate(rows[:room]):
            y = box.top + 16 + i * ROW
            self.text(to, name, (box.left + 12, y), PLAIN, 20)
            self.text(to, text, (box.right - 12, y), BRIGHT, 20, right=True)
            if span is not None:
                self.needle(to, pygame.Rect(box.left + 120, y - 4, box.width - 120 - 76, 8), *span)
        for i, line in enumerate(lines[::-1]):
            self.text(to, line, (box.left + 12, box.bottom - 14 - 18 * i), DIM, 18)

    def _magnified(self, title: str, frame: SessionFrame, image: np.ndarray, scale: int) -> pygame.Surface:
        kept = self._magnified_frames.get((title, scale))
        if kept is not None and kept[0] is frame:
            return kept[1]
        small = pygame.surfarray.make_surface(image.transpose(1, 0, 2))
        large = pygame.transform.scale(small, (image.shape[1] * scale, image.shape[0] * scale))  # nearest neighbour
        self._magnified_frames = {k: v for k, v in self._magnified_frames.items() if v[0] is frame}
        self._magnified_frames[title, scale] = (frame, large)
        return large
