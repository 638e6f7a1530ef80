"""ActionScale: how a dataset's own actions map to [-1, 1] per dimension, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

FAR = 1000.0
"""A recording whose actions reach this many times farther than is usual among the recordings is taken for damaged."""
SLACK = 1e-4
"""How far beyond its bounds, in units of the scale, an action may be: bounds on record are often rounded."""

ROUNDING = 1e-6
"""What differs by no more than this share of itself is the same number, rounded."""

Bounds = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class ActionScale:
    """Native action = ``offset`` + ``scale`` * action in [-1, 1], each ``(a,)``; a scale of 0 is a dimension that never changes.

    ``origin`` says where the bounds come from.
    """

    offset: tuple[float, ...]
    scale: tuple[float, ...]
    origin: str

    @classmethod
    def of_bounds(cls, low: Bounds, high: Bounds, origin: str) -> ActionScale:
        """From the lowest and highest native value of each dimension."""
        lowest, highest = np.asarray(low, np.float64).reshape(-1), np.asarray(high, np.float64).reshape(-1)
        if (
            lowest.shape != highest.shape
            or not (np.isfinite(lowest) & np.isfinite(highest) & (lowest <= highest)).all()
        ):
            raise ValueError(
                f"{origin}: expected finite bounds, low <= high, got {lowest.tolist()} and {highest.tolist()}"
            )
        offset, scale = (lowest + highest) / 2, (highest - lowest) / 2
        return cls(
            tuple(offset.tolist()), tuple(np.where(scale > ROUNDING * np.abs(offset), scale, 0).tolist()), origin
        )

    @classmethod
    def of_actions(cls, recordings: Iterable[np.ndarray]) -> ActionScale:
        """From the actions ``(T, a)`` of all recordings; those far off the others are not counted."""
        bounds = [(a.min(0), a.max(0)) for a in recordings if len(a) and np.isfinite(a).all()]
        if not bounds:
            raise ValueError("no recording has actions that can be read")
        low, high = (np.stack(x) for x in zip(*bounds, strict=True))
        reach = np.maximum(np.abs(low), np.abs(high))
        usual = np.median(reach, axis=0)
        near = ~((usual > 0) & (reach > FAR * usual)).any(1)
        return cls.of_bounds(low[near].min(0), high[near].max(0), f"the actions of {near.sum()} recordings")

    def normalise(self, actions: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Native actions ``(T, a)`` -> float32 ``(T, a)`` in [-1, 1]; a ValueError names the dimension that is out of bounds."""
        offset, scale = np.array(self.offset), np.array(self.scale)
        centred = actions - offset
        beyond = np.abs(centred) > scale * (1 + SLACK) + ROUNDING * np.abs(offset) + np.finfo(np.float64).tiny
        if beyond.any():
            row, i = np.argwhere(beyond)[0]
            raise ValueError(
                f"action {names[i]!r} is {actions[row, i]:g} in step {row}, outside [{offset[i] - scale[i]:g}, "
                f"{offset[i] + scale[i]:g}], the bounds by {self.origin}"
            )
        return np.clip(centred / np.where(scale > 0, scale, 1), -1, 1).astype(np.float32)

    def native(self, actions: np.ndarray) -> np.ndarray:
        """Actions in [-1, 1] -> native ones, float64; the inverse of ``normalise`` up to its rounding."""
        return np.array(self.offset) + np.array(self.scale) * actions.astype(np.float64)

    def constant(self, names: Sequence[str]) -> dict[str, float]:
        """The dimensions that never change, and their values."""
        return {n: o for n, o, s in zip(names, self.offset, self.scale, strict=True) if s == 0}
