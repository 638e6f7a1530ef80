"""Segment: one short behaviour of a scripted explorer, under way. Explorers string segments together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np


@dataclass(frozen=True)
class Segment:
    """Go to each of ``targets`` (x, y in the world's units) at ``speed``, then repeat ``action`` (if any) for ``steps``
    steps, all of it shaken by ``noise``."""

    kind: str
    steps: int
    speed: float = 1.0
    targets: tuple[tuple[float, float], ...] = ()
    action: tuple[float, float] = (0.0, 0.0)
    noise: float = 0.0

    def follow(self, here: np.ndarray, step_units: float, rng: np.random.Generator) -> tuple[np.ndarray, Segment]:
        """From ``here`` ``(2,)``, where an action of 1 moves ``step_units``: the action, float32 ``(2,)`` in [-1, 1], and
        what is then left of the segment."""
        if self.targets:
            action, arrived = _towards(here, np.array(self.targets[0]), self.speed, step_units)
            rest = self.targets[1:] if arrived else self.targets
            # A target that cannot be reached (something is in the way) is given up with the segment's steps.
            following = replace(self, targets=rest, steps=self.steps - (0 if arrived and rest else 1))
        else:
            action = np.array(self.action)
            following = replace(self, steps=self.steps - 1)
        if self.noise:
            action = action + rng.normal(size=2) * self.noise
        return np.clip(action, -1, 1).astype(np.float32), following


class ScriptedPolicy(ABC):
    """Stable-Baselines3's ``predict`` on state observations; the segment under way travels as the policy's ``state``.

    step_units: how far an action of 1 moves.
    """

    step_units: ClassVar[float]

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
        """``observation`` is the true state ``(s,)``, which begins with the x, y of what the actions move. Returns an
        action ``(2,)`` and the segment to pass back."""
        observation = np.asarray(observation, dtype=np.float64)
        if state is None or state.steps <= 0 or (episode_start is not None and np.any(episode_start)):
            state = self._next_segment(observation)
        return state.follow(observation[:2], self.step_units, self.rng)

    @abstractmethod
    def _next_segment(self, observation: np.ndarray) -> Segment:
        """What to do next in the state ``observation``, float64 ``(s,)``."""


def _towards(here: np.ndarray, there: np.ndarray, speed: float, step_units: float) -> tuple[np.ndarray, bool]:
    """An action of at most ``speed`` (largest component) from here to there, and whether it arrives."""
    wanted = (there - here) / step_units
    size = np.abs(wanted).max()
    return (wanted, True) if size <= speed else (wanted * (speed / size), False)
