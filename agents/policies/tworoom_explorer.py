"""A scripted policy that explores TwoRoom, and passes the door often.

It reads the real state (``TwoRoomRealEnv(observation="state")``) and strings short behaviours together: run straight,
visit places along the shortest path, pass the door, press along a wall, wiggle, stand still; at full scale and gently.
"""

from __future__ import annotations

import numpy as np

from neuralsim.agents.policies.scripted import ScriptedPolicy, Segment
from neuralsim.envs.tworoom.env import AGENT_RANGE, ARENA, DOOR, RADIUS, STEP_UNITS, WALL, move, random_state
from neuralsim.envs.tworoom.shortest_path import shortest_path

BEHAVIOURS = {"run": 0.36, "visit": 0.24, "door": 0.14, "hug": 0.12, "wiggle": 0.07, "still": 0.07}
"""Each behaviour's share of the segments (not of the steps)."""
KEYS = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)], np.float64)
"""Directions of a keyboard."""


class TwoRoomExplorer(ScriptedPolicy):
    """Explores TwoRoom by its states ``(2,)``: the agent's x, y."""

    step_units = STEP_UNITS

    def _next_segment(self, here: np.ndarray) -> Segment:
        rng = self.rng
        kind = str(rng.choice(list(BEHAVIOURS), p=list(BEHAVIOURS.values())))
        speed = 1.0 if rng.random() < 0.4 else float(rng.uniform(0.1, 1.0))
        noise = 0.0 if rng.random() < 0.5 else float(rng.uniform(0.02, 0.25))
        if kind == "run":
            angle = rng.uniform(-np.pi, np.pi)
            way = KEYS[rng.integers(8)] if rng.random() < 0.4 else np.array([np.cos(angle), np.sin(angle)])
            return Segment(kind, int(rng.integers(4, 28)), action=tuple(way / np.abs(way).max() * speed))
        if kind == "visit":
            path = shortest_path(here, random_state(rng))
            return Segment(kind, int(rng.integers(8, 50)), speed, _points(path[1:]), noise=noise)
        if kind == "door":
            return Segment(kind, int(rng.integers(16, 50)), speed, _points(self._through(here)), noise=noise * 0.5)
        if kind == "hug":
            ends = move(np.tile(here, (4, 1)), KEYS[:4] * ARENA)
            into = KEYS[np.linalg.norm(ends - here, axis=1).argmin()]
            along = into[::-1] * rng.uniform(-1, 1)
            return Segment(kind, int(rng.integers(5, 20)), action=tuple(into * rng.uniform(0.05, 1) + along))
        if kind == "wiggle":
            drift = rng.uniform(-0.6, 0.6, 2)
            return Segment(kind, int(rng.integers(4, 14)), action=tuple(drift), noise=float(rng.uniform(0.1, 0.8)))
        return Segment(kind, int(rng.integers(2, 9)))

    def _through(self, here: np.ndarray) -> np.ndarray:
        """A random point in the door, then one in the room behind it, ``(2, 2)``: straight lines that may hit the posts."""
        rng = self.rng
        leftwards = here[0] > np.mean(WALL)
        door = (np.mean(WALL), rng.uniform(DOOR[0] + RADIUS, DOOR[1] - RADIUS))
        side = (AGENT_RANGE[0], WALL[0] - RADIUS) if leftwards else (WALL[1] + RADIUS, AGENT_RANGE[1])
        return np.array([door, (rng.uniform(*side), rng.uniform(*AGENT_RANGE))])


def _points(path: np.ndarray) -> tuple[tuple[float, float], ...]:
    return tuple((float(x), float(y)) for x, y in path)
