"""Base of the scripted explorers, which string short behaviours (segments) together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np


@dataclass(frozen=True)
class Segment:
    """One behaviour under way: go to each of ``targets`` (x, y in the world's units) at ``speed``, then repeat ``action`` (if any) for
    ``steps`` steps, with normal noise of standard deviation ``noise``."""

    kind: str
    steps: int
    speed: float = 1.0
    targets: tuple[tuple[float, float], ...] = ()
    action: tuple[float, float] = (0.0, 0.0)
    noise: float = 0.0

    def follow(self, here: np.ndarray, step_units: float, rng: np.random.Generator) -> tuple[np.ndarray, Segment]:
        """Return the action at ``here`` ``(2,)``, float32 ``(2,)`` in [-1, 1], and the rest of the segment. An action of 1 moves by
        ``step_units``."""
        if self.targets:
            action, arrived = _towards(here, np.array(self.targets[0]), self.speed, step_units)
            rest = self.targets[1:] if arrived else self.targets
            # A target that cannot be reached (something is in the way) is dropped with the segment's steps.
            following = replace(self, targets=rest, steps=self.steps - (0 if arrived and rest else 1))
        else:
            action = np.array(self.action)
            following = replace(self, steps=self.steps - 1)
        if self.noise:
            action = action + rng.normal(size=2) * self.noise
        return np.clip(action, -1, 1).astype(np.float32), following


class ScriptedPolicy(ABC):
    """A policy on states; the segment under way travels as the policy's ``state``."""

    step_units: ClassVar[float]
    """Distance that an action of 1 moves, in the world's units."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)

    @classmethod
    def for_env(cls, env: gym.Env[Any, Any], seed: int) -> Self:
        """Make the policy of ``seed``; of ``env`` it needs nothing but its states."""
        return cls(seed)

    def predict(
        self,
        observation: np.ndarray,
        state: Segment | None = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Segment]:
        """Return an action ``(2,)`` and the segment, to be passed to the next call.

        ``observation`` is the real state ``(s,)``, which begins with the x, y of the thing that the actions move.
        """
        observation = np.asarray(observation, dtype=np.float64)
        if state is None or state.steps <= 0 or (episode_start is not None and np.any(episode_start)):
            state = self._next_segment(observation)
        return state.follow(observation[:2], self.step_units, self.rng)

    @abstractmethod
    def _next_segment(self, observation: np.ndarray) -> Segment:
        """Choose the next segment in the state ``observation``, float64 ``(s,)``."""


def _towards(here: np.ndarray, there: np.ndarray, speed: float, step_units: float) -> tuple[np.ndarray, bool]:
    """An action of at most ``speed`` (largest component) from here to there, and True if it arrives."""
    wanted = (there - here) / step_units
    size = np.abs(wanted).max()
    return (wanted, True) if size <= speed else (wanted * (speed / size), False)
