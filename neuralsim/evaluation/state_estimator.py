"""Reading: what is in a frame, in numbers; and the two outside things measuring may lean on, a Reader and a Truth.

Measuring compares what a dream shows with what is true. Truth is known in numbers, a dream only in pixels, so somebody has to read
pixels; that reader is fixed, knows nothing of any model, and its own error on true frames is the floor of every figure made with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import numpy as np


@dataclass(frozen=True)
class StateEstimate:
    """What a Reader saw in ``n`` frames: a frozen dataclass of arrays, frames first. Each world has its own."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Self:
        """The reading with ``function`` applied to every array."""
        return type(self)(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def reshape(self, *shape: int) -> Self:
        """The leading axis folded into ``shape``: ``(b * t, ...) -> (b, t, ...)``."""
        return self.map(lambda x: x.reshape(*shape, *x.shape[1:]))

    def copied(self) -> Self:
        """Of ``(b, t, ...)``, what was seen first, at every time: copy-last-frame."""
        return self.map(lambda x: np.broadcast_to(x[:, :1], x.shape))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Readings one after the other."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})


class StateEstimator(Protocol):
    """Reads frames of one world."""

    def __call__(self, frames: np.ndarray) -> StateEstimate:
        """uint8 ``(n, h, w, 3)`` -> Reading of length n."""


class GroundTruthEnv(Protocol):
    """The true world: what controllability and long play are measured against. Not every one can be put into a given state."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Mapping[str, Any]]:
        """Start at ``options["state"]`` ``(s,)``, or where ``seed`` says."""

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, Mapping[str, Any]]:
        """One true step."""

    def state(self) -> np.ndarray:
        """The true state ``(s,)`` now."""

    def render(self) -> Any:
        """The true frame, uint8 ``(h, w, 3)``."""
