"""Policies that look at nothing and fit every world: uniformly random actions, no action, and random actions that are held.

Actions drawn independently at every step cancel out, so most worlds are then seen near their start alone; held ones carry
further (the "action repeat" of Atari agents, here of random length).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import gymnasium as gym
import numpy as np

from neuralsim.spec import WorldSpec

KINDS = {"some": 0.3, "all": 0.15, "extreme": 0.25, "shaken": 0.2, "rest": 0.1}
"""Share of each kind among the holds (not among the steps)."""
LONGEST_SECONDS = 1.0
"""A hold lasts from one step to a length drawn once per episode, at most this long. Both are drawn on a logarithmic scale: some
worlds end within a few equal steps, others need a second to respond."""


class RandomPolicy:
    """Uniformly random actions of ``spec``'s world: ``(n, a)`` for a batch of n observations, or ``(a,)`` if not ``batched``."""

    def __init__(self, spec: WorldSpec, seed: int | Sequence[int] = 0, batched: bool = True) -> None:
        self.spec, self.batched, self.rng = spec, batched, np.random.default_rng(seed)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Return random actions; of a batch only its length is read."""
        shape = (len(observation),) if self.batched and observation is not None else ()
        return self.spec.random_actions(self.rng, *shape), state


class NoOpPolicy:
    """The action that does nothing, as far as ``spec``'s world has one: ``(n, a)``, or ``(a,)`` if not ``batched``."""

    def __init__(self, spec: WorldSpec, batched: bool = True) -> None:
        self.spec, self.batched = spec, batched

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Return the rest action; of a batch only its length is read."""
        rest = self.spec.rest_action()
        return np.tile(rest, (len(observation), 1)) if self.batched and observation is not None else rest, state


@dataclass(frozen=True)
class Hold:
    """An ``action`` ``(a,)`` to repeat for ``steps`` more steps. ``shaken``: standard deviation of the noise on continuous actions,
    or the probability of a random one in place of a discrete action."""

    action: np.ndarray
    steps: int
    shaken: float = 0.0


class HoldActionPolicy:
    """Random actions ``(a,)`` that are each held for a while, for every action space that a WorldSpec describes."""

    def __init__(self, spec: WorldSpec, seed: int = 0) -> None:
        self.spec, self.rng = spec, np.random.default_rng(seed)
        self.longest = float(np.exp(self.rng.uniform(0, np.log(max(2.0, LONGEST_SECONDS * spec.rate_hz)))))

    @classmethod
    def for_env(cls, env: gym.Env[Any, Any], seed: int) -> Self:
        """Make the policy of ``seed`` for the actions of ``env``, which shows its ``spec_world``."""
        return cls(env.get_wrapper_attr("spec_world"), seed)

    def predict(
        self, observation: Any, state: Hold | None = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Hold]:
        """Return an action ``(a,)`` and the hold, to be passed to the next call; the observation is not used."""
        if state is None or state.steps <= 0 or (episode_start is not None and np.any(episode_start)):
            state = self._next()
        return self._shake(state), replace(state, steps=state.steps - 1)

    def _next(self) -> Hold:
        rng, spec = self.rng, self.spec
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        steps = round(float(np.exp(rng.uniform(0, np.log(self.longest)))))
        rest = spec.rest_action()
        action = spec.random_actions(rng)
        if kind == "extreme" and not spec.discrete:
            action = rng.choice(np.array([-1, 1], np.float32), spec.action_size)
        if kind in ("some", "extreme"):  # one dimension at a time shows more than all at once
            left_out = rng.random(spec.action_size) < 0.5
            left_out[rng.integers(spec.action_size)] = False
            action = np.where(left_out, rest, action).astype(action.dtype)
        if kind == "rest":
            action = rest
        return Hold(action, steps, float(rng.uniform(0.05, 0.5)) if kind == "shaken" else 0.0)

    def _shake(self, hold: Hold) -> np.ndarray:
        if not hold.shaken:
            return hold.action
        if self.spec.discrete:
            return self.spec.random_actions(self.rng) if self.rng.random() < hold.shaken else hold.action
        noise = self.rng.normal(size=self.spec.action_size) * hold.shaken
        return np.clip(hold.action + noise, -1, 1).astype(np.float32)
