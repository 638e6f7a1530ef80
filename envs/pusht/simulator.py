"""PushTSimulator: Push-T's real physics as a Simulator, exact to the bit; physics are skipped where nothing can touch."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import pymunk
import torch

from neuralsim.envs.pusht.env import (
    BLOCK_OUTSIDE,
    PUSHER_RADIUS,
    PUSHER_RANGE,
    STATE_NAMES,
    STEP_UNITS,
    SUCCESS_COVERAGE,
    WALLS,
    WORKSPACE,
    PushTRealEnv,
    pusht_spec,
)
from neuralsim.envs.pusht.state_estimator import BAR, STEM, PushTStateEstimator
from neuralsim.envs.tasks.real_world import Simulator

LANDMARKS = ((-60.0, 15.0), (60.0, 15.0), (0.0, 120.0))
"""Points of the T, in units of its own frame: both ends of the bar and the stem's end."""
PUSHER_SHARE = 0.5
"""Weight of a unit of the pusher's way beside a unit of a landmark's: the block is what a goal is about."""
CLEARANCE = 1.0
"""Units by which two things must miss each other for the physics to be skipped."""


class PushTSimulator(Simulator):
    """A Simulator of Push-T."""

    state_names: tuple[str, ...] = STATE_NAMES
    feature_size: int = 2 + 2 * len(LANDMARKS)
    half_extent: float = WORKSPACE / 2

    def __init__(self, size: int, context: int) -> None:
        self.spec = pusht_spec(size, context)
        self._env = PushTRealEnv(size=size, observation="state")
        self._env.reset(seed=0)
        self._body = pymunk.Body(1, 1)
        self._body.center_of_gravity = self._env._sim.block.center_of_gravity

    def step(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Run the physics only where something may touch."""
        there = np.clip(states[:, :2] + STEP_UNITS * actions.astype(np.float64), *PUSHER_RANGE)
        return np.array(
            [
                self._moved_pusher(state, place)
                if _pusher_misses(state, place) and _block_is_free(state)
                else self._pushed(state, action)
                for state, action, place in zip(states, actions, there, strict=True)
            ]
        ).reshape(states.shape)

    def reward_and_end(self, state: np.ndarray) -> tuple[float, bool]:
        self._env.set_state(state)
        coverage = self._env.coverage()
        return coverage, coverage > SUCCESS_COVERAGE

    def draw(self, state: np.ndarray) -> np.ndarray:
        self._env.set_state(state)
        return self._env.render()

    def read(self, frames: np.ndarray) -> np.ndarray:
        """Estimate states ``(b, 5)``. Where the pusher is not found it is put into the middle, where it does no harm."""
        with torch.autocast("cpu", enabled=False):  # a caller's bfloat16 must not reach the estimator
            seen = self._estimator(frames)
        pusher = np.where(seen.pusher_found[:, None], seen.pusher, WORKSPACE / 2)
        block = np.nan_to_num(seen.block, nan=0.0, posinf=0.0, neginf=0.0)
        block[:, :2] = block[:, :2].clip(-BLOCK_OUTSIDE, WORKSPACE + BLOCK_OUTSIDE)
        return np.concatenate([pusher.clip(*PUSHER_RANGE), block], 1).astype(np.float64)

    def embed(self, states: torch.Tensor) -> torch.Tensor:
        """Embed the pusher, then the landmarks of the T, ``(b, 8)``."""
        x, y, angle = states[:, 2], states[:, 3], states[:, 4]
        sine, cosine = torch.sin(angle), torch.cos(angle)
        half = self.half_extent
        columns = [PUSHER_SHARE * (states[:, 0] - half), PUSHER_SHARE * (states[:, 1] - half)]
        for u, v in LANDMARKS:
            columns += [x + u * cosine - v * sine - half, y + u * sine + v * cosine - half]
        return torch.stack(columns, 1) / half

    @cached_property
    def _estimator(self) -> PushTStateEstimator:
        return PushTStateEstimator(self.spec.height)

    def _pushed(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        self._env.advance(state, action)
        return self._env.state()

    def _moved_pusher(self, state: np.ndarray, there: np.ndarray) -> np.ndarray:
        """Move the pusher alone. The block's numbers pass through the body as they do in the simulator, which rounds their last
        bits."""
        body = self._body
        body.angle = state[4]
        body.position = tuple(state[2:4])
        return np.array([*there, *body.position, (body.angle + np.pi) % (2 * np.pi) - np.pi])


def _pusher_misses(state: np.ndarray, there: np.ndarray) -> bool:
    """Report that the pusher certainly touches no part of the block on its straight way to ``there`` ``(2,)``."""
    sine, cosine = math.sin(state[4]), math.cos(state[4])
    u, v = [], []
    for x, y in ((state[0], state[1]), there):
        dx, dy = x - state[2], y - state[3]
        u.append(dx * cosine + dy * sine)
        v.append(dy * cosine - dx * sine)
    room = PUSHER_RADIUS + CLEARANCE
    return all(
        min(u) > cx + hx + room or max(u) < cx - hx - room or min(v) > cy + hy + room or max(v) < cy - hy - room
        for (cx, cy), (hx, hy) in (BAR, STEM)
    )


def _block_is_free(state: np.ndarray) -> bool:
    """Report that the block certainly touches no wall."""
    sine, cosine = math.sin(state[4]), math.cos(state[4])
    low, high = WALLS[0] + CLEARANCE, WALLS[1] - CLEARANCE
    for (_, cy), (hx, hy) in (BAR, STEM):
        x, y = state[2] - cy * sine, state[3] + cy * cosine
        reach_x, reach_y = hx * abs(cosine) + hy * abs(sine), hx * abs(sine) + hy * abs(cosine)
        if not (low < x - reach_x and x + reach_x < high and low < y - reach_y and y + reach_y < high):
            return False
    return True
