"""TwoRoomSimulator: TwoRoom's real dynamics as a Simulator, exact to the bit."""

from __future__ import annotations

import math

import numpy as np
import torch

from neuralsim.envs.tasks.real_world import Simulator
from neuralsim.envs.tworoom import env as tworoom
from neuralsim.envs.tworoom.state_estimator import TwoRoomStateEstimator


class TwoRoomSimulator(Simulator):
    """A Simulator of TwoRoom, in numpy, so that all rows step at once."""

    state_names: tuple[str, ...] = tworoom.STATE_NAMES
    feature_size: int = 2
    half_extent: float = tworoom.ARENA / 2

    def __init__(self, size: int, context: int) -> None:
        self.spec = tworoom.tworoom_spec(size, context)
        self._estimator = TwoRoomStateEstimator(size)

    def step(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return tworoom.move(states, tworoom.STEP_UNITS * actions.astype(np.float64))

    def reward_and_end(self, state: np.ndarray) -> tuple[float, bool]:
        distance = math.dist(state, tworoom.GOAL)
        return -distance / tworoom.ARENA, distance <= tworoom.SUCCESS_DISTANCE

    def draw(self, state: np.ndarray) -> np.ndarray:
        return tworoom.draw(state, self.spec.height)

    def read(self, frames: np.ndarray) -> np.ndarray:
        """Estimate states ``(b, 2)``. An agent that is not found is put at the goal."""
        places, found = self._estimator(frames)
        return _move_out_of_walls(np.where(found[:, None], places, tworoom.GOAL))

    def embed(self, states: torch.Tensor) -> torch.Tensor:
        return states / self.half_extent - 1


def _move_out_of_walls(places: np.ndarray) -> np.ndarray:
    """Move those of ``places`` ``(b, 2)`` that lie in a wall to a free one nearby."""
    low, high = tworoom.AGENT_RANGE
    inside = places.clip(low, high)
    left, right, door = inside.copy(), inside.copy(), inside.copy()
    left[:, 0] = left[:, 0].clip(low, tworoom.WALL[0] - tworoom.RADIUS)
    right[:, 0] = right[:, 0].clip(tworoom.WALL[1] + tworoom.RADIUS, high)
    door[:, 1] = door[:, 1].clip(tworoom.DOOR[0] + tworoom.RADIUS, tworoom.DOOR[1] - tworoom.RADIUS)
    choices = np.stack([left, right, door])
    nearest = np.linalg.norm(choices - inside, axis=-1).argmin(0)
    free = tworoom.clearance(inside) >= 0
    return np.where(free[:, None], inside, choices[nearest, np.arange(len(places))])
