"""Evaluate a policy from given starts, many episodes side by side, with one success and one return per start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from neuralsim.agents.evaluation.eval_envs import EvalEnv
from neuralsim.agents.policies.policy import Policy
from neuralsim.agents.policies.rollout import run
from neuralsim.evaluation.statistics import Bootstrap, Estimate, mean

Watch = Callable[[np.ndarray, np.ndarray], None]
"""Called at the start and after every step with two bool arrays ``(n,)``: the rows that go on, and the rows that have succeeded."""
MAX_ENVS = 64
"""Episodes run side by side at most."""


@dataclass(frozen=True)
class PolicyEvalResult:
    """The outcome of n episodes by start, each ``(n,)``: sum of rewards, steps taken, success, and whether the world model's
    uncertainty ever exceeded its limit (``doubted``)."""

    returns: np.ndarray
    lengths: np.ndarray
    success: np.ndarray
    doubted: np.ndarray

    def __len__(self) -> int:
        return len(self.returns)

    @classmethod
    def join(cls, parts: list[PolicyEvalResult]) -> Self:
        """Concatenate results."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})

    def mean_return(self, seed: int = 0) -> Estimate:
        """The mean return with its interval."""
        return Bootstrap(np.arange(len(self)), seed=seed)(mean, self.returns.astype(np.float64))

    def success_share(self, seed: int = 0) -> Estimate:
        """The share of successful episodes with its interval."""
        return Bootstrap(np.arange(len(self)), seed=seed).share(self.success.astype(np.float64))


def evaluate(
    policy: Policy,
    eval_env: EvalEnv,
    episodes: int,
    deterministic: bool = True,
    tick: Callable[[int], None] | None = None,
    watch: Watch | None = None,
) -> PolicyEvalResult:
    """Run ``policy`` once from each of the starts 0 to ``episodes`` - 1 of ``eval_env``.

    Actions are clipped to [-1, 1]; whole numbers are indices of discrete actions (see
    neuralsim.envs.wrappers.discrete_actions). ``tick`` gets the number of episodes that just ended; ``watch`` see Watch.
    """
    parts = []
    for first in range(0, episodes, eval_env.n_envs):
        count = min(eval_env.n_envs, episodes - first)
        parts.append(_evaluate_starts(policy, eval_env, np.arange(first, first + count), deterministic, watch))
        if tick:
            tick(count)
    return PolicyEvalResult.join(parts)


def _evaluate_starts(
    policy: Policy, eval_env: EvalEnv, starts: np.ndarray, deterministic: bool, watch: Watch | None
) -> PolicyEvalResult:
    """Run as many episodes as there are rows, or fewer; rows without a start of their own never go live."""
    n = eval_env.n_envs
    live = np.arange(n) < len(starts)
    eval_env.begin(np.concatenate([starts, np.full(n - len(starts), starts[0])]))
    returns, lengths = np.zeros(n), np.zeros(n, np.int64)
    success, doubted = np.zeros(n, bool), np.zeros(n, bool)
    if watch:
        watch(live, success)
    for result, still_live in run(policy, eval_env, live, deterministic):
        returns += np.where(live, result.reward, 0)
        lengths += live
        success |= live & result.success
        doubted |= live & result.doubted
        live = still_live
        if watch:
            watch(live, success)
    kept = slice(0, len(starts))
    return PolicyEvalResult(returns[kept], lengths[kept], success[kept], doubted[kept])
