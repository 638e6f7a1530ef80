"""Take: one episode of a true world under a hand's control, from its reset until it is kept or thrown away."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

import neuralsim
from neuralsim.agents.policies.policy import Policy
from neuralsim.data.episode import Episode


class ManualEpisode:
    """``env`` is driven by ``policy`` from ``reset(seed=seed)`` on; ``longest``: steps after which it is cut off. ``states``:
    whether its observations are states to be kept."""

    def __init__(self, env: gym.Env[np.ndarray, Any], policy: Policy, seed: int, longest: int, states: bool) -> None:
        self.env, self.policy, self.seed, self.longest = env, policy, seed, longest
        self._memory: Any = None
        self._observation, _ = env.reset(seed=seed)
        self.frames = [np.asarray(env.render())]
        self._states = [self._observation] if states else None
        self._actions: list[np.ndarray] = []
        self._rewards: list[float] = []
        self._terminated: list[bool] = []
        self._truncated: list[bool] = []

    def __len__(self) -> int:
        return len(self._actions)

    @property
    def total(self) -> float:
        """Sum of the rewards so far."""
        return float(sum(self._rewards))

    @property
    def ended(self) -> str:
        """What ended it, in a word: "terminated", "time limit", "long enough", or nothing yet."""
        if self and self._terminated[-1]:
            return "terminated"
        if self and self._truncated[-1]:
            return "time limit"
        return "long enough" if len(self) >= self.longest else ""

    def advance(self) -> None:
        """One step, unless it has ended."""
        if self.ended:
            return
        action, self._memory = self.policy.predict(self._observation, self._memory)
        self._observation, reward, terminated, truncated, _ = self.env.step(action)
        self.frames.append(np.asarray(self.env.render()))
        if self._states is not None:
            self._states.append(self._observation)
        self._actions.append(action)
        self._rewards.append(float(reward))
        self._terminated.append(bool(terminated))
        self._truncated.append(bool(truncated))

    def episode(self, provenance: dict[str, Any]) -> Episode:
        """What was done so far; where the world has not ended it, it is truncated here. Needs a step."""
        truncated = np.array(self._truncated)
        truncated[-1] |= not self._terminated[-1]
        return Episode(
            frames=np.stack(self.frames),
            actions=np.stack(self._actions),
            rewards=np.array(self._rewards, np.float32),
            terminated=np.array(self._terminated),
            truncated=truncated,
            states=None if self._states is None else np.stack(self._states).astype(np.float32),
            provenance=provenance | {"reset_seed": self.seed, "version": neuralsim.__version__},
        )
