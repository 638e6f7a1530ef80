"""Knots: a plan of l actions written as m control points, so that a search has fewer numbers to find."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

Spread = Literal["hold", "linear", "cubic"]
SPREADS = ("hold", "linear", "cubic")


@dataclass(frozen=True, eq=False)
class ControlPoints:
    """``spread`` carries points ``(..., m, a)`` to actions ``(..., l, a)``, ``gather`` back.

    hold: each point is repeated over its share of the steps; any kind of action. linear: straight lines between points;
    cubic: a Hermite spline with finite-difference slopes, which overshoots a little; both for real numbers.
    """

    owner: torch.Tensor
    """int64 ``(l,)``: the point that each step repeats under "hold"."""
    first: torch.Tensor
    """int64 ``(m,)``: the first step of each point."""
    weights: torch.Tensor | None
    """float32 ``(l, m)``: how much of each point is in each step; None where steps repeat points."""
    inverse: torch.Tensor
    """float32 ``(m, l)``: the points whose actions lie nearest, in the sense of least squares."""

    def spread(self, points: torch.Tensor) -> torch.Tensor:
        """``(..., m, a)`` -> ``(..., l, a)``; for "cubic" perhaps a little outside the points' bounds."""
        if len(self.first) == len(self.owner):
            return points
        if self.weights is None:
            return points.index_select(-2, self.owner)
        return self.weights @ points

    def gather(self, actions: torch.Tensor) -> torch.Tensor:
        """``(..., l, a)`` -> ``(..., m, a)``: the nearest points, or of choices the first that each point repeats."""
        if len(self.first) == len(self.owner):
            return actions
        if not actions.is_floating_point():
            return actions.index_select(-2, self.first)
        return self.inverse @ actions


@lru_cache(maxsize=64)
def place_control_points(lookahead: int, points: int, spread: Spread) -> ControlPoints:
    """``points`` control points over ``lookahead`` steps, at most one a step."""
    owner = np.arange(lookahead) * points // lookahead
    first = np.searchsorted(owner, np.arange(points))
    weights = np.eye(points)[owner]
    if spread != "hold" and 1 < points < lookahead:
        weights = _splines(lookahead, points, spread)
    inverse = np.linalg.pinv(weights)
    return ControlPoints(
        torch.as_tensor(owner),
        torch.as_tensor(first),
        None if spread == "hold" else torch.as_tensor(weights, dtype=torch.float32),
        torch.as_tensor(inverse, dtype=torch.float32),
    )


def _splines(lookahead: int, points: int, spread: Spread) -> np.ndarray:
    """``(l, m)``: a spline is linear in its control points, so each column is the spline through one of them alone."""
    place = np.linspace(0, points - 1, lookahead)
    left = np.minimum(place.astype(int), points - 2)
    t = (place - left)[:, None]
    values = np.eye(points)
    if spread == "linear":
        return (1 - t) * values[left] + t * values[left + 1]
    slopes = np.gradient(values, axis=0)
    return (
        (1 + 2 * t) * (1 - t) ** 2 * values[left]
        + t * (1 - t) ** 2 * slopes[left]
        + t**2 * (3 - 2 * t) * values[left + 1]
        + t**2 * (t - 1) * slopes[left + 1]
    )
