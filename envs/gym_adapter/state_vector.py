"""StateVector: a small observation of any Gymnasium environment as one vector of named numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

MOST_NUMBERS = 64
"""Largest observation that is kept as a state beside the frames, in numbers."""


class StateVector:
    """Flattens observations of ``space``: a Box, Discrete, MultiDiscrete or MultiBinary, or a Dict or Tuple of these, of at most
    MOST_NUMBERS numbers; others have no state, and ``names`` is empty."""

    def __init__(self, space: spaces.Space[Any], names: tuple[str, ...] = ()) -> None:
        self.space = space
        own = tuple(_names(space, "state")) if _is_flat(space) else ()
        own = own if len(own) <= MOST_NUMBERS else ()
        self.names = names if len(names) == len(own) else own
        """One name for each number; the given ``names`` where they are as many."""

    def __call__(self, observation: Any) -> np.ndarray:
        """Flatten ``observation`` to float32 ``(s,)``."""
        return np.concatenate(list(_parts(self.space, observation))).astype(np.float32)


def _is_flat(space: spaces.Space[Any]) -> bool:
    if isinstance(space, spaces.Dict):
        return all(map(_is_flat, space.spaces.values()))
    if isinstance(space, spaces.Tuple):
        return all(map(_is_flat, space.spaces))
    return isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)


def _names(space: spaces.Space[Any], prefix: str) -> Iterator[str]:
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _names(part, str(key))
    elif isinstance(space, spaces.Tuple):
        for i, part in enumerate(space.spaces):
            yield from _names(part, f"{prefix}_{i}")
    else:
        yield from (f"{prefix}_{i}" for i in range(int(np.prod(space.shape or ()))))


def _parts(space: spaces.Space[Any], observation: Any) -> Iterator[np.ndarray]:
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _parts(part, observation[key])
    elif isinstance(space, spaces.Tuple):
        for part, value in zip(space.spaces, observation, strict=True):
            yield from _parts(part, value)
    else:
        yield np.asarray(observation, np.float64).reshape(-1)
