"""A scripted policy that drives CarRacing by its frames alone, along the middle of the road that the state estimator finds.

It needs no simulator, so it drives imagined and real episodes alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neuralsim.envs.carracing.state_estimator import CarRacingStateEstimator

CRUISE = 28.0
"""Units a second on a straight road."""
SEARCH = 12.0
"""Units a second where there is no road ahead."""
SKID = 5.0
"""Radians a second from which more steering would make a spin."""


class CarRacingLaneFollower:
    """Follows the road in frames uint8 ``(size, size, 3)`` or ``(b, size, size, 3)``. Its state is the side on which the road was last
    visible, ``(b,)`` of -1 and 1."""

    def __init__(self, size: int = 64) -> None:
        self.reader = CarRacingStateEstimator(size)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return actions float32 ``(b, 3)`` in [-1, 1] (``(3,)`` for one frame), and the state, to be passed to the next call."""
        frames = np.asarray(observation)
        seen = self.reader(frames.reshape(-1, *frames.shape[-3:]))
        right, front = seen.ahead.T
        lost = np.isnan(right)
        side = np.ones(len(seen)) if state is None else np.asarray(state, np.float64)
        side = np.where(lost | (right == 0), side, np.sign(right))
        angle = np.where(lost, 0.6 * side, np.arctan2(right, np.maximum(front, 1.0)))
        steer = 1.6 * angle - 0.06 * seen.turn_rate
        bend = np.abs(angle) + np.abs(np.radians(np.nan_to_num(seen.heading))) / 2
        wanted = np.where(lost, SEARCH, np.maximum(CRUISE / (1 + 1.5 * bend), SEARCH))
        skids = np.abs(seen.turn_rate) > SKID
        gas = np.where(skids, 0.0, (wanted - seen.speed) * 0.08)
        brake = np.where(skids, 0.5, (seen.speed - wanted - 6) * 0.04)
        steer = np.where(skids, 0.0, steer)
        actions = np.stack([steer, 2 * gas.clip(0, 1) - 1, 2 * brake.clip(0, 0.8) - 1], 1)
        actions = actions.clip(-1, 1).astype(np.float32)
        return actions.reshape(*frames.shape[:-3], 3), side
