"""StateEstimator and GroundTruthEnv: the contracts of an estimator of states from frames, and of a simulator to compare with.

The truth is known in numbers, an imagined frame in pixels alone, so states are estimated from pixels. The estimator is fixed, knows
nothing of any model, and its own error on true frames is the floor of every metric that uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import numpy as np


@dataclass(frozen=True)
class StateEstimate:
    """Estimate of ``n`` frames: a frozen dataclass of arrays, frames first. Each world has its own."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Self:
        """Apply ``function`` to every array."""
        return type(self)(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def reshape(self, *shape: int) -> Self:
        """Fold the leading axis into ``shape``: ``(b * t, ...) -> (b, t, ...)``."""
        return self.map(lambda x: x.reshape(*shape, *x.shape[1:]))

    def copied(self) -> Self:
        """Repeat the first estimate of ``(b, t, ...)`` at every time: copy-last-frame."""
        return self.map(lambda x: np.broadcast_to(x[:, :1], x.shape))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Concatenate estimates."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})


class StateEstimator(Protocol):
    """Estimates states from frames of one world."""

    def __call__(self, frames: np.ndarray) -> StateEstimate:
        """Estimate frames uint8 ``(n, h, w, 3)``; returns a StateEstimate of length n."""


class GroundTruthEnv(Protocol):
    """Simulator against which controllability and long rollouts are measured. Not every one can be put at a given state."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Mapping[str, Any]]:
        """Start at ``options["state"]`` ``(s,)``, or as ``seed`` draws it."""

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, Mapping[str, Any]]:
        """Take one step."""

    def state(self) -> np.ndarray:
        """Return the true state ``(s,)``."""

    def render(self) -> Any:
        """Render the true frame, uint8 ``(h, w, 3)``."""
