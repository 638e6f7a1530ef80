"""PlanPicture: the true scene with the imagined plans fanning out over it, the goal, and where the best plan would end."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import pygame

from neuralsim.agents.teleop.window import (
    AMBER,
    BLUE,
    BRIGHT,
    DIM,
    EDGE,
    GAP,
    GREEN,
    MARGIN,
    NIGHT,
    PLAIN,
    TITLE,
    PanelRenderer,
)
from neuralsim.envs.tasks.goal_task import EXTENT, GoalTask

PANEL = 352
"""Side of each of the three panels, in pixels."""
FOOT = 64
"""Height of the captions below."""
FINE = 4
"""Bits of sub-pixel precision that lines are drawn with."""
AIM = (206, 70, 176)
"""Colour of the goal's outlines: in no world is anything painted so."""
POOR = (150, 160, 190)
"""Colour of the worst path of the fan; the best one's is AMBER."""


@dataclass(frozen=True, eq=False)
class ImaginedPaths:
    """What a decision imagined. paths ``(e, k, 2)``: places of what the actions move, the best plan's first, from now to
    the plan's end. end ``(s,)``: the state in which the best plan is imagined to end. frame uint8 ``(h, w, 3)``: that end as the
    model draws it."""

    paths: np.ndarray
    end: np.ndarray
    frame: np.ndarray


@dataclass(frozen=True, eq=False)
class PlanScene:
    """One step of an attempt. truth uint8 ``(PANEL, PANEL, 3)``; state and goal true states ``(s,)``; words: the two lines
    below the truth, and the one below each of the others."""

    truth: np.ndarray
    goal_frame: np.ndarray
    goal: np.ndarray
    thought: ImaginedPaths
    reached: bool
    words: tuple[str, str, str, str]


class PlanPainter:
    """Draws PlanScenes of one course as pictures ``(PANEL + ..., 3 * PANEL + ..., 3)`` with even sides."""

    def __init__(self, course: GoalTask) -> None:
        self.course = course
        self.painter = PanelRenderer()

    def draw(self, scene: PlanScene) -> np.ndarray:
        """uint8 ``(h, w, 3)``."""
        width, height = 2 * MARGIN + 3 * PANEL + 2 * GAP, MARGIN + TITLE + PANEL + FOOT
        surface = pygame.Surface((width, height))
        surface.fill(NIGHT)
        truth = self._fan(scene)
        panels = (
            ("TRUTH", "with the plans imagined", GREEN, truth, scene.words[:2]),
            ("GOAL", "outlined in the truth", AIM, _magnified(scene.goal_frame), scene.words[2:3]),
            ("IMAGINED", "end of the best plan", BLUE, self._end(scene), scene.words[3:4]),
        )
        top = MARGIN + TITLE
        for i, (title, about, colour, picture, words) in enumerate(panels):
            left, middle = MARGIN + i * (PANEL + GAP), MARGIN + TITLE // 2 - 3
            pygame.draw.rect(surface, colour, (left, middle - 7, 4, 14), border_radius=2)
            wide = self.painter.text(surface, title, (left + 12, middle), BRIGHT, 24)
            self.painter.text(surface, about, (left + 24 + wide, middle + 1), DIM, 19)
            rim = GREEN if scene.reached and i == 0 else EDGE
            pygame.draw.rect(surface, rim, (left - 2, top - 2, PANEL + 4, PANEL + 4), 2, border_radius=3)
            surface.blit(pygame.surfarray.make_surface(picture.swapaxes(0, 1)), (left, top))
            for j, line in enumerate(words):
                at = (left, top + PANEL + 20 + 22 * j)
                self.painter.text(surface, line, at, PLAIN if j == 0 else DIM, 20)
        return np.ascontiguousarray(pygame.surfarray.array3d(surface).swapaxes(0, 1))

    def _fan(self, scene: PlanScene) -> np.ndarray:
        """The truth under the goal's outline and all paths, the best on top."""
        picture = np.ascontiguousarray(scene.truth)
        for outline in self.course.outlines(scene.goal):
            _line(picture, outline, AIM, 2, closed=True)
        paths = scene.thought.paths
        for rank in range(len(paths) - 1, -1, -1):
            worth = 1 - rank / max(len(paths) - 1, 1)
            colour = tuple(round(a + (b - a) * worth) for a, b in zip(POOR, AMBER, strict=True))
            _line(picture, paths[rank], colour, 3 if rank == 0 else 1)
        for outline in self.course.outlines(scene.thought.end):
            _line(picture, outline, BLUE, 1, closed=True)
        return picture

    def _end(self, scene: PlanScene) -> np.ndarray:
        picture = _magnified(scene.thought.frame)
        for outline in self.course.outlines(scene.goal):
            _line(picture, outline, AIM, 1, closed=True)
        return picture


def _magnified(frame: np.ndarray) -> np.ndarray:
    """The frame at the panel's size, its pixels as they are."""
    return cv2.resize(frame, (PANEL, PANEL), interpolation=cv2.INTER_NEAREST)


def _line(picture: np.ndarray, points: np.ndarray, colour: tuple[int, ...], width: int, closed: bool = False) -> None:
    """Draw through ``points`` ``(k, 2)`` in world units."""
    pixels = np.round(points * (PANEL / EXTENT * 2**FINE)).astype(np.int32)
    cv2.polylines(picture, [pixels[:, None]], closed, colour, width, cv2.LINE_AA, FINE)
