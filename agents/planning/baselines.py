"""Baselines: policies without a model that a planner must beat, in episodes from a start to a goal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from neuralsim.agents.planning.goals import StartGoal
from neuralsim.agents.policies.policy import Policy
from neuralsim.agents.policies.random_policies import NoOpPolicy, RandomPolicy
from neuralsim.envs.real_env import RealEnv


class StraightToGoal:
    """Moves what the actions move straight to its place at the goal, as fast as it can, through whatever lies in between."""

    def __init__(self, env: RealEnv, goal: np.ndarray) -> None:
        self.env, self.goal = env, goal

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Return the action ``(a,)``; the state is read from the environment."""
        move = (self.goal[:2] - self.env.state()[:2]) / np.array(self.env.spec_world.action_scale)
        return (move / max(1.0, float(np.abs(move).max()))).astype(np.float32), state


class ReplayPolicy:
    """Repeats the actions ``(l, a)`` of a demonstration, then rests: the best that can be expected."""

    def __init__(self, actions: np.ndarray) -> None:
        self.actions = actions

    def predict(
        self, observation: Any, state: int | None = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, int]:
        """Return the action ``(a,)`` and the number of actions so far."""
        step = state or 0
        return self.actions[step] if step < len(self.actions) else np.zeros_like(self.actions[0]), step + 1


def random_actions(env: RealEnv, pair: StartGoal, seed: int) -> Policy:
    """Policy of uniformly random actions, drawn independently at every step."""
    return RandomPolicy(env.spec_world, (seed, pair.index), batched=False)


def do_nothing(env: RealEnv, pair: StartGoal, seed: int) -> Policy:
    """Policy that rests."""
    return NoOpPolicy(env.spec_world, batched=False)


def straight_to_goal(env: RealEnv, pair: StartGoal, seed: int) -> Policy:
    """Policy that moves straight to the goal."""
    return StraightToGoal(env, pair.goal)


def replay(env: RealEnv, pair: StartGoal, seed: int) -> Policy:
    """Policy that repeats the pair's demonstration; a ValueError where it has none."""
    if pair.demonstration is None:
        raise ValueError(f"pair {pair.index} ({pair.origin}) has no demonstration to replay")
    return ReplayPolicy(pair.demonstration)


BASELINES: Mapping[str, Callable[[RealEnv, StartGoal, int], Policy]] = {
    "random": random_actions,
    "do nothing": do_nothing,
    "straight to goal": straight_to_goal,
    "replay": replay,
}
"""By name: (env, pair, seed) -> a policy for that pair in that environment, which needs no observation."""
