"""Score: the plain numbers of measuring. Likeness of frames, rank statistics, and confidence intervals by bootstrap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

ROUNDING_ERROR = 1 / 12
"""Mean squared error of rounding to whole grey levels: frames nearer than this count as this near, which caps PSNR at 58.9 dB."""


def squared_error(frames: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean squared difference in grey levels of uint8 ``(..., h, w, 3)``, float64 ``(...)``."""
    difference = frames.astype(np.int16) - other.astype(np.int16)
    return np.square(difference, dtype=np.int32).mean((-3, -2, -1))


def psnr(error: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of a mean squared error in grey levels; at most 58.9."""
    return 10 * np.log10(255.0**2 / np.maximum(error, ROUNDING_ERROR))


def ssim(frames: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Structural similarity of uint8 ``(n, h, w, 3)`` pairs, ``(n,)`` in -1..1, 1 for equal frames.

    Wang et al. 2004: Gaussian window of 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, per channel, mean over whole windows; what
    scikit-image gives with ``gaussian_weights=True, use_sample_covariance=False`` away from the border.
    """
    x, y = (
        torch.from_numpy(np.ascontiguousarray(f)).movedim(-1, 1).flatten(0, 1)[:, None].double()
        for f in (frames, other)
    )
    line = torch.exp(-0.5 * ((torch.arange(11) - 5) / 1.5) ** 2).double()
    line = line / line.sum()

    def blur(image: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(image, line.view(1, 1, 11, 1)), line.view(1, 1, 1, 11))

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    cov = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return likeness.mean((1, 2, 3)).view(len(frames), -1).mean(1).numpy()


def mask_iou(mask: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of bool ``(..., h, w)``; NaN where both are empty, so that nothing is scored for showing nothing."""
    union = (mask | other).sum((-2, -1))
    with np.errstate(invalid="ignore"):
        return np.where(union > 0, (mask & other).sum((-2, -1)) / np.maximum(union, 1), np.nan)


def turn(angle: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The angle between two angles in radians, in degrees 0..180."""
    return np.degrees(np.abs((angle - other + np.pi) % (2 * np.pi) - np.pi))


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties shared evenly."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation in -1..1; NaN where one of them is constant or fewer than three pairs are given."""
    if len(x) < 3:
        return float("nan")
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else float("nan")


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive has the higher score, ties counting half; NaN where either kind is missing."""
    yes, no = int(positive.sum()), int((~positive).sum())
    if not yes or not no:
        return float("nan")
    return float((ranks(score)[positive].sum() - yes * (yes + 1) / 2) / (yes * no))


def mean(values: np.ndarray) -> float:
    """Mean of the numbers that are not NaN; NaN of none."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else float("nan")


def median(values: np.ndarray) -> float:
    """Median of the numbers that are not NaN; NaN of none."""
    kept = values[~np.isnan(values)]
    return float(np.median(kept)) if kept.size else float("nan")


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % confidence interval and the number of rollouts behind it."""

    value: float
    low: float
    high: float
    n: int


class Bootstrap:
    """Confidence intervals by resampling whole groups (episodes): rollouts of one episode are not independent.

    Source: Efron, "Bootstrap methods: another look at the jackknife", 1979 (percentile interval); Field and Welsh, "Bootstrapping
    clustered data", 2007. The same seed gives the same interval.
    """

    def __init__(self, groups: np.ndarray, resamples: int = 1000, seed: int = 0) -> None:
        self._size = len(groups)
        order = np.argsort(groups, kind="stable")
        members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
        rng = np.random.default_rng(seed)
        self._draws = [
            np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
            for _ in range(resamples)
        ]

    def __call__(self, statistic: Callable[..., float], *columns: np.ndarray) -> Estimate:
        """``statistic`` of ``columns``, each of one value (or row) per rollout. A rollout whose first column is NaN does not count."""
        if any(len(c) != self._size for c in columns):
            raise ValueError(f"Bootstrap over {self._size} rollouts: got columns of {[len(c) for c in columns]} rows")
        first = columns[0] if columns[0].ndim == 1 else columns[0][:, 0]
        valid = ~np.isnan(first)
        draws = np.array([statistic(*(c[d[valid[d]]] for c in columns)) for d in self._draws])
        draws = draws[~np.isnan(draws)]
        low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (np.nan, np.nan)
        return Estimate(statistic(*(c[valid] for c in columns)), float(low), float(high), int(valid.sum()))

    def share(self, happened: np.ndarray) -> Estimate:
        """The mean of 0s and 1s. Where all agree resampling sees no doubt: the interval is then that of the rule of three."""
        found = self(mean, happened)
        if found.n and found.value in (0.0, 1.0):
            doubt = min(1.0, 3 / found.n)
            return replace(found, high=doubt) if found.value == 0 else replace(found, low=1 - doubt)
        return found
