"""Estimator of the agent's position from TwoRoom frames, from the pixels and the known empty scene alone.

Every pixel is a mixture of the empty scene and the agent's colour; the agent is the centroid of its share. The error on
true frames is in ``tests/envs/tworoom/test_env.py``.
"""

from __future__ import annotations

import numpy as np

from neuralsim.envs.tworoom.env import AGENT_COLOUR, AGENT_EDGE, AGENT_EDGE_COLOUR, ARENA, RADIUS, background

LOST_SHARE = 0.35
"""The agent is not found where less than this share of its area is visible."""
FOREIGN = 100.0
"""A pixel farther than this from every mixture of scene and agent, in grey levels, shows neither."""
BATCH = 256
"""Frames at once."""


class TwoRoomStateEstimator:
    """Estimates the agent's position in ``size``-pixel frames. ``extent``: the position error of an agent that is not found, the world's
    width."""

    extent = ARENA

    def __init__(self, size: int = 64) -> None:
        self.size = size
        self.pixel = ARENA / size
        self._scene = background(size).astype(np.float32)
        core = (1 - AGENT_EDGE / RADIUS) ** 2
        agent = core * np.array(AGENT_COLOUR) + (1 - core) * np.array(AGENT_EDGE_COLOUR)
        self._towards = (agent - self._scene).astype(np.float32)
        self._square = (self._towards**2).sum(2)
        self._reach = int(np.ceil(RADIUS / self.pixel)) + 1

    def __call__(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Estimate frames uint8 ``(n, size, size, 3)``; returns positions in units ``(n, 2)``, valid where found, bool ``(n,)``."""
        frames = np.asarray(frames)
        if frames.ndim != 4 or frames.shape[1:] != (self.size, self.size, 3) or frames.dtype != np.uint8:
            raise ValueError(
                f"TwoRoomStateEstimator: expected uint8 frames (n, {self.size}, {self.size}, 3), got {frames.dtype} "
                f"{frames.shape}; for another size make TwoRoomStateEstimator(size=...)"
            )
        parts = [self._read(frames[i : i + BATCH]) for i in range(0, max(len(frames), 1), BATCH)]
        places, found = zip(*parts, strict=True)
        return np.concatenate(places), np.concatenate(found)

    def _read(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        change = frames - self._scene
        share = np.einsum("nhwc,hwc->nhw", change, self._towards) / self._square
        foreign = np.einsum("nhwc,nhwc->nhw", change, change) - share**2 * self._square
        # Slightly negative shares are kept: without them noise would add up to an agent.
        share = np.where(foreign > FOREIGN**2, 0.0, share.clip(-0.2, 1.0))
        # The centroid about the densest place: specks elsewhere do not count.
        side = 2 * self._reach + 1
        padded = np.pad(share, ((0, 0), (self._reach, self._reach), (self._reach, self._reach)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
        densest = _box_sums(padded, side).reshape(len(share), self.size**2).argmax(1)
        row, column = np.divmod(densest, self.size)
        window = windows[np.arange(len(share)), row, column]
        total = window.sum((1, 2))
        away = np.arange(side) - self._reach
        found = total * self.pixel**2 >= LOST_SHARE * np.pi * RADIUS**2
        weight = np.where(found, total, np.inf)
        x = column + 0.5 + (window.sum(1) * away).sum(1) / weight
        y = row + 0.5 + (window.sum(2) * away).sum(1) / weight
        return np.stack([x, y], 1).astype(np.float64) * self.pixel, found


def _box_sums(images: np.ndarray, side: int) -> np.ndarray:
    """Return sums ``(n, h - side + 1, w - side + 1)`` over all boxes of ``side`` pixels in ``(n, h, w)``."""
    for axis in (1, 2):
        running = np.insert(images.cumsum(axis), 0, 0.0, axis)
        length = running.shape[axis]
        images = running.take(range(side, length), axis) - running.take(range(length - side), axis)
    return images
