"""PlanPainter: the real scene with the imagined plans drawn over it, the goal, and the imagined end of the best plan."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import pygame

from neuralsim.agents.canvas import AMBER, BLUE, DIM, EDGE, GAP, GREEN, MARGIN, NIGHT, PLAIN, TITLE, Canvas
from neuralsim.envs.tasks.goal_task import EXTENT, GoalTask

PANEL = 352
"""Side of each of the three panels, in pixels."""
FOOT = 64
"""Height of the captions below."""
FINE = 4
"""Bits of sub-pixel precision that lines are drawn with."""
GOAL = (206, 70, 176)
"""Colour of the goal's outlines, which no world uses."""
POOR = (150, 160, 190)
"""Colour of the worst path; the best one's is AMBER."""


@dataclass(frozen=True, eq=False)
class ImaginedPaths:
    """Imagined outcome of a decision's plans.

    paths ``(e, k, 2)``: places of what the actions move, the best plan's first, from now to the plan's end. end ``(s,)``:
    predicted state at the end of the best plan. frame uint8 ``(h, w, 3)``: that end as the model draws it.
    """

    paths: np.ndarray
    end: np.ndarray
    frame: np.ndarray


@dataclass(frozen=True, eq=False)
class PlanScene:
    """One step of a trial.

    frame uint8 ``(PANEL, PANEL, 3)`` of the real environment; goal state ``(s,)``; captions: the two lines below the real
    frame, and the one below each of the others.
    """

    frame: np.ndarray
    goal_frame: np.ndarray
    goal: np.ndarray
    imagined: ImaginedPaths
    reached: bool
    captions: tuple[str, str, str, str]


class PlanPainter:
    """Draws PlanScenes of one goal task as pictures ``(PANEL + ..., 3 * PANEL + ..., 3)`` with even sides."""

    def __init__(self, goal_task: GoalTask) -> None:
        self.goal_task = goal_task
        self._canvas = Canvas()

    def draw(self, scene: PlanScene) -> np.ndarray:
        """Return the picture, uint8 ``(h, w, 3)``."""
        width, height = 2 * MARGIN + 3 * PANEL + 2 * GAP, MARGIN + TITLE + PANEL + FOOT
        surface = pygame.Surface((width, height))
        surface.fill(NIGHT)
        real = self._draw_paths(scene)
        panels = (
            ("REAL", "with the plans imagined", GREEN, real, scene.captions[:2]),
            ("GOAL", "outlined on the left", GOAL, _magnified(scene.goal_frame), scene.captions[2:3]),
            ("IMAGINED", "end of the best plan", BLUE, self._draw_end(scene), scene.captions[3:4]),
        )
        top = MARGIN + TITLE
        for i, (title, subtitle, colour, picture, captions) in enumerate(panels):
            left = MARGIN + i * (PANEL + GAP)
            self._canvas.title(surface, left, PANEL, title, subtitle, colour)
            rim = GREEN if scene.reached and i == 0 else EDGE
            pygame.draw.rect(surface, rim, (left - 2, top - 2, PANEL + 4, PANEL + 4), 2, border_radius=3)
            surface.blit(pygame.surfarray.make_surface(picture.swapaxes(0, 1)), (left, top))
            for j, line in enumerate(captions):
                at = (left, top + PANEL + 20 + 22 * j)
                self._canvas.text(surface, line, at, PLAIN if j == 0 else DIM, 20)
        return np.ascontiguousarray(pygame.surfarray.array3d(surface).swapaxes(0, 1))

    def _draw_paths(self, scene: PlanScene) -> np.ndarray:
        """The real frame under the goal's outline and all paths, the best on top."""
        picture = np.ascontiguousarray(scene.frame)
        for outline in self.goal_task.outlines(scene.goal):
            _line(picture, outline, GOAL, 2, closed=True)
        paths = scene.imagined.paths
        for rank in range(len(paths) - 1, -1, -1):
            quality = 1 - rank / max(len(paths) - 1, 1)
            colour = tuple(round(a + (b - a) * quality) for a, b in zip(POOR, AMBER, strict=True))
            _line(picture, paths[rank], colour, 3 if rank == 0 else 1)
        for outline in self.goal_task.outlines(scene.imagined.end):
            _line(picture, outline, BLUE, 1, closed=True)
        return picture

    def _draw_end(self, scene: PlanScene) -> np.ndarray:
        picture = _magnified(scene.imagined.frame)
        for outline in self.goal_task.outlines(scene.goal):
            _line(picture, outline, GOAL, 1, closed=True)
        return picture


def _magnified(frame: np.ndarray) -> np.ndarray:
    """The frame enlarged to the panel's size, without interpolation."""
    return cv2.resize(frame, (PANEL, PANEL), interpolation=cv2.INTER_NEAREST)


def _line(picture: np.ndarray, points: np.ndarray, colour: tuple[int, ...], width: int, closed: bool = False) -> None:
    """Draw a line through ``points`` ``(k, 2)`` in world units."""
    pixels = np.round(points * (PANEL / EXTENT * 2**FINE)).astype(np.int32)
    cv2.polylines(picture, [pixels[:, None]], closed, colour, width, cv2.LINE_AA, FINE)
