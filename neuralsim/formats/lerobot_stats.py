"""Tally: the statistics that LeRobotDatasets keep of each feature, mergeable, so that no dataset is held in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class FeatureStats:
    """Of ``count`` rows, per dimension ``(d,)``: least, greatest, mean, and sum of squared deviations from the mean."""

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    count: int

    @classmethod
    def of(cls, rows: np.ndarray) -> FeatureStats:
        """Of rows ``(n, d)`` or ``(n,)``."""
        values = rows.reshape(len(rows), -1).astype(np.float64)
        mean = values.mean(0)
        return cls(values.min(0), values.max(0), mean, ((values - mean) ** 2).sum(0), len(values))

    @classmethod
    def of_pixels(cls, frames: np.ndarray) -> FeatureStats:
        """Of every pixel of frames uint8 ``(t, h, w, 3)``, per channel."""
        level = np.arange(256)
        counts = np.stack([np.bincount(frames[..., c].reshape(-1), minlength=256) for c in range(3)])
        there, number = counts > 0, int(counts[0].sum())
        mean = counts @ level / number
        spread = (counts * (level - mean[:, None]) ** 2).sum(1)
        return cls(there.argmax(1), 255 - there[:, ::-1].argmax(1), mean, spread, number)

    def __add__(self, other: FeatureStats) -> FeatureStats:
        count = self.count + other.count
        apart = other.mean - self.mean
        return FeatureStats(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.mean + apart * other.count / count,
            self.spread + other.spread + apart**2 * self.count * other.count / count,
            count,
        )

    def as_stats(self, image: bool = False) -> dict[str, list[Any]]:
        """LeRobot's words for it; for ``image``, rows of which were pixels in 0..255, channels in [0, 1] as ``(3, 1, 1)``."""
        values = {
            "min": self.low,
            "max": self.high,
            "mean": self.mean,
            "std": np.sqrt(self.spread / self.count),
        }
        if image:
            values = {name: (v / 255).reshape(3, 1, 1) for name, v in values.items()}
        return {name: v.tolist() for name, v in values.items()} | {"count": [self.count]}
