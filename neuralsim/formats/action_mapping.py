"""Mappings of a dataset's own actions to those of a world, and back: numbers to [-1, 1], whole numbers to choices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from neuralsim.spec import WorldSpec

FAR = 1000.0
"""A recording whose actions reach this many times farther than is usual among the recordings is taken for damaged."""
SLACK = 1e-4
"""Tolerance of the bounds, in units of the scale: bounds on record are often rounded."""

ROUNDING = 1e-6
"""Two numbers are one, rounded, if they differ by no more than this share."""

Bounds = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class ActionScale:
    """Native action = ``offset`` + ``scale`` * action in [-1, 1], each ``(a,)``; a scale of 0 is a dimension that never changes.

    ``origin`` names the source of the bounds.
    """

    offset: tuple[float, ...]
    scale: tuple[float, ...]
    origin: str

    @classmethod
    def of_bounds(cls, low: Bounds, high: Bounds, origin: str) -> ActionScale:
        """Make it from the lowest and highest native value of each dimension."""
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
        """Make it from the actions ``(T, a)`` of all recordings; outliers are not counted."""
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


MOST = 256
"""Whole numbers of more kinds than this are taken for quantities."""


@dataclass(frozen=True)
class ActionChoices:
    """Dimension i has ``counts[i]`` choices, which the dataset calls ``first[i]``, ``first[i]`` + 1 and so on, each ``(a,)``.

    ``origin`` names the source of this mapping.
    """

    first: tuple[int, ...]
    counts: tuple[int, ...]
    origin: str

    @classmethod
    def within(cls, scale: ActionScale) -> ActionChoices | None:
        """Take every whole number from 0, or the least there is, to the greatest within the bounds of ``scale``; None where they are
        too many, or the bounds no whole numbers."""
        bounds = np.array(scale.offset) + np.array([[-1.0], [1.0]]) * np.array(scale.scale)
        whole = np.rint(bounds)
        low, high = np.minimum(whole[0], 0), np.maximum(whole[1], 0)
        if (np.abs(bounds - whole) > ROUNDING).any() or (high - low >= MOST).any():
            return None
        return cls(tuple(map(int, low)), tuple(int(count) for count in high - low + 1), scale.origin)

    @property
    def offset(self) -> tuple[float, ...]:
        """Native number of choice 0 per dimension, as a WorldSpec has it."""
        return tuple(map(float, self.first))

    @property
    def scale(self) -> tuple[float, ...]:
        """Ones, as a WorldSpec has them."""
        return (1.0,) * len(self.counts)

    def normalise(self, actions: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Native actions ``(T, a)`` -> int64 ``(T, a)`` from 0; a ValueError names the dimension that is no choice."""
        chosen = actions - np.array(self.first)
        wrong = (chosen != np.rint(chosen)) | (chosen < 0) | (chosen >= np.array(self.counts))
        if wrong.any():
            row, i = np.argwhere(wrong)[0]
            raise ValueError(
                f"action {names[i]!r} is {actions[row, i]:g} in step {row}; expected a whole number in {self.first[i]}.."
                f"{self.first[i] + self.counts[i] - 1}, the choices by {self.origin}"
            )
        return np.asarray(chosen).astype(np.int64)

    def native(self, actions: np.ndarray) -> np.ndarray:
        """Choices from 0 -> native ones, int64; the exact inverse of ``normalise``."""
        return np.array(self.first, np.int64) + actions

    def constant(self, names: Sequence[str]) -> dict[str, float]:
        """The dimensions without a choice, and their values."""
        return {n: float(f) for n, f, c in zip(names, self.first, self.counts, strict=True) if c == 1}


Meaning = ActionScale | ActionChoices
"""Mapping of a dataset's own actions to those of its world."""


def meaning_of(spec: WorldSpec) -> Meaning:
    """Return the mapping of a world."""
    origin = f"the world {spec.name!r}"
    if spec.discrete:
        return ActionChoices(tuple(map(int, spec.action_offset)), spec.action_choices, origin)
    return ActionScale(spec.action_offset, spec.action_scale, origin)
