"""Evaluation: how a policy fares from given starts, each once, in whichever arena."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from neuralsim.agents.evaluation.eval_envs import EvalEnv
from neuralsim.agents.policies.policy import Policy
from neuralsim.envs.wrappers.discrete_actions import as_actions
from neuralsim.evaluation.statistics import Bootstrap, Estimate, mean
from neuralsim.spec import WorldSpec

Watch = Callable[[np.ndarray, np.ndarray], None]
"""Told at the start and after every step, per slot: which episodes go on, and whose wishes have come true so far."""
SLOTS = 64
"""Episodes tried side by side at most."""


@dataclass(frozen=True)
class PolicyEvalResult:
    """What happened in n episodes, by start: sum of rewards, steps taken, whether the wish came true, whether its world
    came to doubt its dream. All ``(n,)``."""

    returns: np.ndarray
    lengths: np.ndarray
    success: np.ndarray
    doubted: np.ndarray

    def __len__(self) -> int:
        return len(self.returns)

    @classmethod
    def join(cls, parts: list[PolicyEvalResult]) -> Self:
        """Tallies one after the other."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})

    def mean_return(self, seed: int = 0) -> Estimate:
        """The mean of the returns, with its interval."""
        return Bootstrap(np.arange(len(self)), seed=seed)(mean, self.returns.astype(np.float64))

    def success_share(self, seed: int = 0) -> Estimate:
        """The share of wishes that came true, with its interval."""
        return Bootstrap(np.arange(len(self)), seed=seed).share(self.success.astype(np.float64))


class RandomPolicy:
    """Any actions ``(n, a)`` of ``spec``'s world, all equally likely."""

    def __init__(self, spec: WorldSpec, seed: int = 0) -> None:
        self.spec, self.rng = spec, np.random.default_rng(seed)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """See Stable-Baselines3's predict."""
        return self.spec.random_actions(self.rng, len(observation)), None


def evaluate(
    policy: Policy,
    eval_env: EvalEnv,
    episodes: int,
    deterministic: bool = True,
    tick: Callable[[int], None] | None = None,
    watch: Watch | None = None,
) -> PolicyEvalResult:
    """``policy`` from starts 0 to ``episodes`` - 1 of ``eval_env``, once each; actions are clipped to [-1, 1], and whole numbers
    are moves (see neuralsim.envs.wrappers.discrete_actions) or the world's own choices. ``tick`` is told of each wave's episodes; ``watch``
    of every step."""
    parts = []
    for first in range(0, episodes, eval_env.n_envs):
        count = min(eval_env.n_envs, episodes - first)
        parts.append(_wave(policy, eval_env, np.arange(first, first + count), deterministic, watch))
        if tick:
            tick(count)
    return PolicyEvalResult.join(parts)


def _wave(
    policy: Policy, eval_env: EvalEnv, starts: np.ndarray, deterministic: bool, watch: Watch | None
) -> PolicyEvalResult:
    n = eval_env.n_envs
    which = np.concatenate([starts, np.full(n - len(starts), starts[0])])
    live = np.arange(n) < len(starts)
    observation = eval_env.begin(which)
    returns, lengths = np.zeros(n), np.zeros(n, np.int64)
    success, doubted = np.zeros(n, bool), np.zeros(n, bool)
    memory, begun = None, np.ones(n, bool)
    if watch:
        watch(live, success)
    while live.any():
        chosen, memory = policy.predict(observation, memory, begun, deterministic)
        heard = eval_env.step(as_actions(chosen, eval_env.spec.action_size, eval_env.spec.action_choices), live)
        returns += np.where(live, heard.reward, 0)
        lengths += live
        success |= live & heard.success
        doubted |= live & heard.doubted
        live = live & ~(heard.terminated | heard.truncated)
        observation, begun = eval_env.observe(), np.zeros(n, bool)
        if watch:
            watch(live, success)
    kept = slice(0, len(starts))
    return PolicyEvalResult(returns[kept], lengths[kept], success[kept], doubted[kept])
