"""Statistics: rank correlation, means, and confidence intervals by bootstrap, Student and Wilson."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np


def turn(angle: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the difference of two angles in radians, in degrees 0..180."""
    return np.degrees(np.abs((angle - other + np.pi) % (2 * np.pi) - np.pi))


def ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1, ties shared evenly."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's correlation in -1..1; NaN where one of them is constant or fewer than three pairs are given."""
    return pearson(ranks(x), ranks(y))


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson's correlation in -1..1; NaN where one of them is constant or fewer than three pairs are given."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    a, b = x - x.mean(), y - y.mean()
    a, b = a / np.abs(a).max(), b / np.abs(b).max()  # so that no square is too small or too large
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1))


def mmrv(imagined: np.ndarray, true: np.ndarray) -> float:
    """Return the mean maximum rank violation of scores ``(n,)`` each: the largest gap in true score by which each is put on the wrong
    side of another, on average. 0 where the orders agree, never more than the spread of the true scores; NaN of none.

    Source: SIMPLER (Li et al. 2024, arXiv 2405.05941): of two with different true and equal imagined scores, the worse counts as
    violated.
    """
    if not len(true):
        return float("nan")
    wrong = (imagined[:, None] < imagined) != (true[:, None] < true)
    return float((np.abs(true[:, None] - true) * wrong).max(1).mean())


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Return the probability that a positive has the higher score, ties counting half; NaN where either kind is missing."""
    yes, no = int(positive.sum()), int((~positive).sum())
    if not yes or not no:
        return float("nan")
    return float((ranks(score)[positive].sum() - yes * (yes + 1) / 2) / (yes * no))


def mean(values: np.ndarray) -> float:
    """Return the mean of the numbers that are not NaN; NaN of none."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else float("nan")


def median(values: np.ndarray) -> float:
    """Return the median of the numbers that are not NaN; NaN of none."""
    kept = values[~np.isnan(values)]
    return float(np.median(kept)) if kept.size else float("nan")


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % confidence interval and the number of rollouts behind it."""

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
        """Estimate ``statistic`` of ``columns``, one value (or row) per rollout each. Rollouts whose first column is NaN do not count."""
        if any(len(c) != self._size for c in columns):
            raise ValueError(f"Bootstrap over {self._size} rollouts: got columns of {[len(c) for c in columns]} rows")
        first = columns[0] if columns[0].ndim == 1 else columns[0][:, 0]
        valid = ~np.isnan(first)
        draws = np.array([statistic(*(c[d[valid[d]]] for c in columns)) for d in self._draws])
        draws = draws[~np.isnan(draws)]
        low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (np.nan, np.nan)
        return Estimate(statistic(*(c[valid] for c in columns)), float(low), float(high), int(valid.sum()))

    def share(self, happened: np.ndarray) -> Estimate:
        """Estimate the mean of 0s and 1s. Where all agree resampling sees no spread: the interval is then that of the rule of three."""
        found = self(mean, happened)
        if found.n and found.value in (0.0, 1.0):
            width = min(1.0, 3 / found.n)
            return replace(found, high=width) if found.value == 0 else replace(found, low=1 - width)
        return found


class CrossedBootstrap:
    """Confidence intervals where all policies were run from the same initial histories: both the policies and the histories are samples,
    so both are resampled, each policy and each history whole.

    Source: Owen, "The pigeonhole bootstrap", 2007; its intervals are rather too wide than too narrow. The same seed gives the
    same interval.
    """

    def __init__(self, policies: int, starts: int, resamples: int = 1000, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._shape = (policies, starts)
        self._draws = [
            (rng.integers(policies, size=policies), rng.integers(starts, size=starts)) for _ in range(resamples)
        ]

    def __call__(self, statistic: Callable[..., float], *scores: np.ndarray) -> Estimate:
        """Estimate ``statistic`` of the policies' mean scores ``(p,)``, given ``scores`` ``(p, e)`` by policy and history. ``n`` is the
        number of policies. Draws in which the statistic is NaN do not count."""
        if any(s.shape != self._shape for s in scores):
            raise ValueError(f"CrossedBootstrap of {self._shape}: got scores of shape {[s.shape for s in scores]}")
        draws = np.array([statistic(*(s[p][:, e].mean(1) for s in scores)) for p, e in self._draws])
        draws = draws[~np.isnan(draws)]
        low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (np.nan, np.nan)
        return Estimate(statistic(*(s.mean(1) for s in scores)), float(low), float(high), self._shape[0])


def student(values: np.ndarray) -> Estimate:
    """Estimate the mean of a few numbers (seeds) with Student's 95 % interval; NaN for the interval of fewer than two."""
    n = len(values)
    half = _quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    middle = float(values.mean()) if n else math.nan
    return Estimate(middle, middle - half, middle + half, n)


def wilson(successes: int, n: int) -> Estimate:
    """Estimate the share ``successes / n`` with its Wilson 95 % interval; NaN for n = 0.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    z = 1.959963984540054  # the standard normal's 97.5 % quantile
    share = successes / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), n)


def ratio(over: np.ndarray, under: np.ndarray) -> Estimate:
    """Estimate the mean of ``over`` as a share of the mean of ``under``, numbers of a few seeds each, not paired; NaN unless the latter
    mean is above 0. ``n`` is the smaller number of seeds.

    The interval is the delta method's, with Student's quantile for the smaller sample; NaN for fewer than two seeds.
    """
    n = min(len(over), len(under))
    if not n or not under.mean() > 0:
        return Estimate(math.nan, math.nan, math.nan, n)
    value, half = float(over.mean() / under.mean()), math.nan
    if n > 1:
        variance = over.var(ddof=1) / len(over) + value**2 * under.var(ddof=1) / len(under)
        half = _quantile(n - 1) * math.sqrt(variance) / float(under.mean())
    return Estimate(value, value - half, value + half, n)


STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t at 97.5 % for 1 to 10 degrees of freedom."""


def _quantile(freedom: int) -> float:
    """Return Student's t at 97.5 %; beyond the table by its expansion about the normal's (Abramowitz and Stegun 26.7.5)."""
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
