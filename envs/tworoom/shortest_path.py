"""Shortest paths of TwoRoom's agent round the door posts: the reference for planners.

For the agent's centre the posts are rounded rectangles. Their corners are taken as polygons of sides that touch the true
circle, so a path is free, and longer than the true shortest one by less than half a unit.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from neuralsim.envs.tworoom.env import CORNERS, DOOR, RADIUS, WALL, check_place, clearance

SIDES = 6
"""Corners of the polygon that stands for a quarter circle."""
SPACING = 2.0
"""Units between the points at which a straight line is tested."""
GRAZE = 0.05
"""A line that comes no deeper than this into a wall is free: more than the test points could miss between them."""


def shortest_path(start: object, end: object) -> np.ndarray:
    """Find the points ``(k, 2)``, k at least 2, from ``start`` to ``end`` (both ``(2,)``, free) along straight lines; ValueError for
    places in a wall."""
    a, b = check_place(start, "start"), check_place(end, "end")
    if _free(a, b[None])[0]:
        return np.stack([a, b])
    turns, lengths, following = _between_turns()
    first = np.where(_free(a, turns), np.linalg.norm(turns - a, axis=1), np.inf)
    last = np.where(_free(b, turns), np.linalg.norm(turns - b, axis=1), np.inf)
    i, j = np.unravel_index((first[:, None] + lengths + last).argmin(), lengths.shape)
    order = [int(i)]
    while order[-1] != j:
        order.append(int(following[order[-1], j]))
    return np.concatenate([a[None], turns[order], b[None]])


def shortest_path_length(start: object, end: object) -> float:
    """Return the length of :func:`shortest_path` in units."""
    return float(np.linalg.norm(np.diff(shortest_path(start, end), axis=0), axis=1).sum())


def _free(start: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Mark the ``ends`` ``(n, 2)`` to which the straight line from ``start`` ``(2,)`` is free, bool ``(n,)``."""
    points = int(np.ceil(np.linalg.norm(ends - start, axis=1).max() / SPACING)) + 2
    share = np.linspace(0, 1, points)[:, None, None]
    return np.asarray(clearance(start + share * (ends - start)).min(0) >= -GRAZE)


@lru_cache(maxsize=1)
def _between_turns() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the points at which paths may turn ``(m, 2)``, the shortest lengths between any two ``(m, m)``, and the next point on that
    path ``(m, m)`` (Floyd and Warshall)."""
    side = np.pi / 2 / SIDES
    angle = (np.arange(SIDES) + 0.5) * side
    away = RADIUS / np.cos(side / 2) * np.stack([np.cos(angle), np.sin(angle)], 1)
    # Each corner's quarter circle looks away from the wall and into the door.
    outward = np.sign(CORNERS - np.mean([WALL, DOOR], axis=1)) * (1, -1)
    turns = np.concatenate([corner + away * sign for corner, sign in zip(CORNERS, outward, strict=True)])
    lengths = np.stack([np.where(_free(t, turns), np.linalg.norm(turns - t, axis=1), np.inf) for t in turns])
    following = np.tile(np.arange(len(turns)), (len(turns), 1))
    for k in range(len(turns)):
        over = lengths[:, k, None] + lengths[k]
        shorter = over < lengths
        lengths[shorter] = over[shorter]
        following = np.where(shorter, following[:, k, None], following)
    return turns, lengths, following
