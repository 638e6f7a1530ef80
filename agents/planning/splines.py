"""ControlPoints: a plan of l actions written as m control points, so that a solver has fewer numbers to find."""

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
    """Map from points ``(..., m, a)`` to actions ``(..., l, a)``, and back.

    hold: each point is repeated over its share of the steps; any kind of action. linear: straight lines between points;
    cubic: a Hermite spline with finite-difference slopes, which overshoots a little; both for real numbers.
    """

    owner: torch.Tensor
    """int64 ``(l,)``: the point that each step repeats under "hold"."""
    first: torch.Tensor
    """int64 ``(m,)``: the first step of each point."""
    weights: torch.Tensor | None
    """float32 ``(l, m)``: weight of each point in each step; None where steps repeat points."""
    inverse: torch.Tensor
    """float32 ``(m, l)``: least-squares inverse of the weights."""

    def spread(self, points: torch.Tensor) -> torch.Tensor:
        """Return actions ``(..., l, a)`` for points ``(..., m, a)``; "cubic" may leave the points' bounds a little."""
        if len(self.first) == len(self.owner):
            return points
        if self.weights is None:
            return points.index_select(-2, self.owner)
        return self.weights @ points

    def gather(self, actions: torch.Tensor) -> torch.Tensor:
        """Return the nearest points ``(..., m, a)`` of actions ``(..., l, a)``; of choices, the first that each point repeats."""
        if len(self.first) == len(self.owner):
            return actions
        if not actions.is_floating_point():
            return actions.index_select(-2, self.first)
        return self.inverse @ actions


@lru_cache(maxsize=64)
def place_control_points(lookahead: int, points: int, spread: Spread) -> ControlPoints:
    """Place ``points`` control points over ``lookahead`` steps, at most one a step."""
    owner = np.arange(lookahead) * points // lookahead
    first = np.searchsorted(owner, np.arange(points))
    weights = np.eye(points)[owner]
    if spread != "hold" and 1 < points < lookahead:
        weights = _spline_weights(lookahead, points, spread)
    inverse = np.linalg.pinv(weights)
    return ControlPoints(
        torch.as_tensor(owner, device="cpu"),
        torch.as_tensor(first, device="cpu"),
        None if spread == "hold" else torch.as_tensor(weights, dtype=torch.float32, device="cpu"),
        torch.as_tensor(inverse, dtype=torch.float32, device="cpu"),
    )


def _spline_weights(lookahead: int, points: int, spread: Spread) -> np.ndarray:
    """Weights ``(l, m)``: a spline is linear in its control points, so each column is the spline through one of them."""
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
