"""A scripted policy that explores Push-T as a person at a keyboard, a robot or a planner might.

It reads the real state (``PushTRealEnv(observation="state")``) and strings short behaviours together: seek the block
and push it, hold a key for many steps, visit waypoints, wiggle, stand still; at full scale and gently.
"""

from __future__ import annotations

import numpy as np

from neuralsim.agents.policies.scripted import ScriptedPolicy, Segment
from neuralsim.envs.pusht.env import PUSHER_RADIUS, PUSHER_RANGE, STEP_UNITS, block_polygons

BEHAVIOURS = {"seek": 0.62, "hold": 0.20, "waypoint": 0.06, "wiggle": 0.06, "still": 0.06}
"""Each behaviour's share of the segments (not of the steps)."""


class PushTExplorer(ScriptedPolicy):
    """Explores Push-T by its states ``(5,)``: pusher x, y, block x, y, angle."""

    step_units = STEP_UNITS

    def _next_segment(self, observation: np.ndarray) -> Segment:
        rng = self.rng
        kind = str(rng.choice(list(BEHAVIOURS), p=list(BEHAVIOURS.values())))
        pusher, block = observation[:2], observation[2:]
        speed = 1.0 if rng.random() < 0.4 else float(rng.uniform(0.25, 1.0))
        noise = 0.0 if rng.random() < 0.5 else float(rng.uniform(0.02, 0.25))
        if kind == "seek":
            return self._seek(block, speed, noise)
        if kind == "hold":
            if rng.random() < 0.65:  # like a person who aims at the block: the nearest of eight directions
                angle = np.arctan2(*(_centre(block) - pusher)[::-1]) + rng.normal() * 0.3
                octant = np.round(angle / (np.pi / 4)) * (np.pi / 4)
                keys = np.round([np.cos(octant), np.sin(octant)])
            else:
                keys = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)])[rng.integers(8)]
            size = 1.0 if rng.random() < 0.7 else float(rng.uniform(0.1, 0.7))
            return Segment(kind, int(rng.integers(3, 22)), action=tuple(keys * size))
        if kind == "waypoint":
            return Segment(kind, int(rng.integers(5, 25)), speed, (tuple(rng.uniform(*PUSHER_RANGE, 2)),), noise=noise)
        if kind == "wiggle":
            drift = rng.uniform(-0.6, 0.6, 2)
            return Segment(kind, int(rng.integers(4, 14)), action=tuple(drift), noise=float(rng.uniform(0.1, 0.8)))
        return Segment(kind, int(rng.integers(2, 9)))

    def _seek(self, block: np.ndarray, speed: float, noise: float) -> Segment:
        """Go near a random place on the T's outline, then push through it at a random slant."""
        rng = self.rng
        corners = block_polygons(block)[rng.integers(2)]
        edge = rng.integers(4)
        a, b = corners[edge], corners[(edge + 1) % 4]
        touch = a + (b - a) * rng.uniform(0.02, 0.98)
        outward = touch - corners.mean(0)
        normal = np.array([(b - a)[1], -(b - a)[0]])
        normal *= np.sign(normal @ outward) / np.linalg.norm(normal)
        slant = rng.normal() * 0.5
        turn = np.array([[np.cos(slant), -np.sin(slant)], [np.sin(slant), np.cos(slant)]])
        direction = turn @ -normal
        near = np.clip(touch - direction * (PUSHER_RADIUS + rng.uniform(2, 30)), *PUSHER_RANGE)
        far = np.clip(touch + direction * rng.uniform(10, 150), *PUSHER_RANGE)
        push = float(np.clip(speed * rng.uniform(0.5, 1.2), 0.1, 1.0))
        along = tuple(direction * push / max(1.0, np.abs(direction * push).max()))
        if rng.random() < 0.5:  # push by holding the direction: the pusher may slide off, as a person's does
            return Segment("seek", int(rng.integers(10, 30)), speed, (tuple(near),), action=along, noise=noise * 0.5)
        return Segment("seek", int(rng.integers(14, 34)), speed, (tuple(near), tuple(far)), noise=noise * 0.5)


def _centre(block: np.ndarray) -> np.ndarray:
    return np.concatenate(block_polygons(block)).mean(0)
