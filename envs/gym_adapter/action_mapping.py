"""Mapping between the actions of a Gymnasium environment and those of a WorldSpec, both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from neuralsim.spec import WorldSpec


@dataclass(frozen=True)
class GymActionMapping:
    """Maps the action space of an environment to a WorldSpec's: a Box by its bounds, Discrete, MultiDiscrete and MultiBinary as
    choices. Raises ValueError for other spaces."""

    env: str
    """Id of the environment, for messages."""
    space: spaces.Space[Any]
    """Its action space."""
    names: tuple[str, ...] = ()
    """Names of the dimensions; numbers without them."""

    def __post_init__(self) -> None:
        known = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
        if not isinstance(self.space, known):
            raise ValueError(  # noqa: TRY004
                f"{self.env}: its actions are a {type(self.space).__name__}; a world's are a Box, Discrete, MultiDiscrete or "
                "MultiBinary. Flatten them in a wrapper of your own and register that"
            )
        if isinstance(self.space, spaces.Box) and not (
            np.isfinite(self.space.low).all() and np.isfinite(self.space.high).all()
        ):
            raise ValueError(
                f"{self.env}: its actions are unbounded ({self.space}), so they have no scale; wrap it in "
                "gymnasium.wrappers.TransformAction or one of your own that gives the Box bounds, and register that"
            )
        if self.names and len(self.names) != self.size:
            raise ValueError(
                f"--action-names: expected {self.size} names for {self.env}'s actions {self.space}, got "
                f"{len(self.names)} ({', '.join(self.names)})"
            )

    @property
    def size(self) -> int:
        """Number of dimensions."""
        return int(np.prod(self.space.shape or ()))

    @property
    def spec_fields(self) -> dict[str, Any]:
        """Fields of the WorldSpec about actions."""
        fields = {"action_names": self.names or tuple(f"action_{i}" for i in range(self.size))}
        if isinstance(self.space, spaces.Box):
            low, high = (np.asarray(b, np.float64).reshape(-1) for b in (self.space.low, self.space.high))
            middle, reach = (low + high) / 2, (high - low) / 2
            units = ("own units",) * self.size
            return fields | {
                "action_units": units,
                "action_scale": tuple(map(float, reach)),
                "action_offset": tuple(map(float, middle)),
            }
        counts, first = self._choices()
        return fields | {
            "action_units": ("choices",) * self.size,
            "action_scale": (1.0,) * self.size,
            "action_offset": tuple(map(float, first)),
            "action_choices": tuple(map(int, counts)),
        }

    def to_own(self, action: np.ndarray, spec: WorldSpec) -> Any:
        """Map an action ``(a,)`` of the world to one of the environment."""
        if isinstance(self.space, spaces.Box):
            exact = np.array(spec.action_offset) + np.array(spec.action_scale) * action.astype(np.float64)
            if self.space.dtype.kind in "iu":
                exact = np.rint(exact)
            own = exact.reshape(self.space.shape).astype(self.space.dtype)
            return np.clip(own, self.space.low, self.space.high)
        chosen = action + np.array(spec.action_offset, np.int64)
        if isinstance(self.space, spaces.Discrete):
            return self.space.dtype.type(chosen[0])
        return chosen.reshape(self.space.shape).astype(self.space.dtype)

    def from_own(self, own: Any, spec: WorldSpec) -> np.ndarray:
        """Map an action of the environment to one ``(a,)`` of the world; quantities out of bounds are clipped."""
        flat = np.asarray(own).reshape(-1)
        if len(flat) != self.size:
            raise ValueError(f"{self.env}: expected an action of {self.space}, got {own!r}")
        if isinstance(self.space, spaces.Box):
            scale = np.array(spec.action_scale)
            off = flat.astype(np.float64) - np.array(spec.action_offset)
            return np.clip(np.divide(off, scale, out=np.zeros_like(off), where=scale != 0), -1, 1).astype(np.float32)
        if flat.dtype.kind not in "iu":
            raise ValueError(f"{self.env}: expected an action of {self.space}, whole numbers, got {own!r}")
        return spec.check_actions(flat.astype(np.int64) - np.array(spec.action_offset, np.int64))

    def _choices(self) -> tuple[Sequence[int], Sequence[int]]:
        """Return the number of choices of each dimension, and the number of the first."""
        if isinstance(self.space, spaces.Discrete):
            return [int(self.space.n)], [int(self.space.start)]
        if isinstance(self.space, spaces.MultiDiscrete):
            return self.space.nvec.reshape(-1).tolist(), np.asarray(self.space.start).reshape(-1).tolist()
        return [2] * self.size, [0] * self.size
