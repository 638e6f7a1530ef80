"""ActionChoices: how a dataset's own whole numbers are the choices of a world, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuralsim.formats.action_mapping import ROUNDING, ActionScale
from neuralsim.spec import WorldSpec

MOST = 256
"""Whole numbers of more kinds than this are taken for quantities."""


@dataclass(frozen=True)
class ActionChoices:
    """Dimension i has ``counts[i]`` choices, which the dataset calls ``first[i]``, ``first[i]`` + 1 and so on, each ``(a,)``.

    ``origin`` says who tells so.
    """

    first: tuple[int, ...]
    counts: tuple[int, ...]
    origin: str

    @classmethod
    def within(cls, scale: ActionScale) -> ActionChoices | None:
        """Every whole number from 0, or the least there is, to the greatest within the bounds of ``scale``; None where they are
        too many, or the bounds no whole numbers."""
        bounds = np.array(scale.offset) + np.array([[-1.0], [1.0]]) * np.array(scale.scale)
        whole = np.rint(bounds)
        low, high = np.minimum(whole[0], 0), np.maximum(whole[1], 0)
        if (np.abs(bounds - whole) > ROUNDING).any() or (high - low >= MOST).any():
            return None
        return cls(tuple(map(int, low)), tuple(int(count) for count in high - low + 1), scale.origin)

    @property
    def offset(self) -> tuple[float, ...]:
        """What the dataset calls choice 0, as a WorldSpec has it."""
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
"""What a dataset's own actions mean in its world."""


def meaning_of(spec: WorldSpec) -> Meaning:
    """That of a world."""
    origin = f"the world {spec.name!r}"
    if spec.discrete:
        return ActionChoices(tuple(map(int, spec.action_offset)), spec.action_choices, origin)
    return ActionScale(spec.action_offset, spec.action_scale, origin)
