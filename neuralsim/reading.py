"""Reading: what is in a frame, in numbers; and the two outside things measuring may lean on, a Reader and a Truth.

Measuring compares what a dream shows with what is true. Truth is known in numbers, a dream only in pixels, so somebody has to read
pixels; that reader is fixed, knows nothing of any model, and its own error on true frames is the floor of every figure made with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import numpy as np


@dataclass(frozen=True)
class Reading:
    """What a Reader saw in ``n`` frames. Positions in world units, angles in radians.

    pusher ``(n, 2)``: what the actions move, valid where ``pusher_found`` ``(n,)``. block ``(n, 3)``: x, y, angle of what it moves, valid
    where ``block_found``. mask bool ``(n, h, w)``: the block's pixels. area ``(n,)``: square units of block in sight. size ``(n,)``: that
    area over what the rigid shape at ``block`` would show, 1 for an intact block wherever it lies. pieces int ``(n,)``: connected parts of
    the mask. misfit ``(n,)``: 0 where the mask is exactly the rigid shape at ``block``, 1 where nothing agrees.
    """

    pusher: np.ndarray
    pusher_found: np.ndarray
    block: np.ndarray
    block_found: np.ndarray
    mask: np.ndarray
    area: np.ndarray
    size: np.ndarray
    pieces: np.ndarray
    misfit: np.ndarray

    def __len__(self) -> int:
        return len(self.pusher)

    def reshape(self, *shape: int) -> Self:
        """The leading axis folded into ``shape``: ``(b * t, ...) -> (b, t, ...)``."""
        return type(self)(**{f.name: (x := getattr(self, f.name)).reshape(*shape, *x.shape[1:]) for f in fields(self)})

    @classmethod
    def join(cls, parts: Sequence[Reading]) -> Self:
        """Readings one after the other."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})


class Reader(Protocol):
    """Reads frames of one world. ``extent`` is the world's width in its units: what being lost costs as a position error."""

    extent: float

    def __call__(self, frames: np.ndarray) -> Reading:
        """uint8 ``(n, h, w, 3)`` -> Reading of length n."""

    def of_state(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """True states ``(..., s)`` as a store keeps them -> pusher ``(..., 2)``, block ``(..., 3)`` and whether all of the block is in
        sight ``(...)``: where it is not, its pose cannot be read and does not count."""


class Truth(Protocol):
    """The true world, where it can be put into a given state: what controllability is measured against."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Mapping[str, Any]]:
        """Start at ``options["state"]`` ``(s,)``."""

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, Mapping[str, Any]]:
        """One true step."""

    def state(self) -> np.ndarray:
        """The true state ``(s,)`` now."""

    def render(self) -> Any:
        """The true frame, uint8 ``(h, w, 3)``."""
