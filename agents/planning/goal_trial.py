"""Attempt: one try at one pair in the true world, by whoever acts; and the controls that a planner must beat."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from neuralsim.agents.planning.goals import StartGoal
from neuralsim.envs.real_env import RealEnv
from neuralsim.envs.tasks.goal_task import GoalTask
from neuralsim.evaluation.statistics import Estimate

BUDGET = 2
"""Steps allowed for a goal that is ``ahead`` steps away: this many times as many."""
Z = 1.959963984540054
"""The standard normal's 97.5 % quantile."""

Actor = Callable[[RealEnv, int], np.ndarray]
"""The true environment (to look at) and the step number -> the action ``(a,)``."""


@dataclass(frozen=True)
class DecisionCost:
    """What one decision took: milliseconds of wall time, and plans evaluated; and the plan's predicted cost."""

    ms: float
    evaluations: int
    cost: float


@dataclass(frozen=True)
class GoalTrial:
    """How one try went. solved_at: rule -> the first step after which it held, None for never; a goal reached once counts,
    as in the field. distances: at the end. An attempt ends with its budget, or when every rule has held."""

    actor: str
    pair: int
    steps: int
    solved_at: Mapping[str, int | None]
    distances: Mapping[str, float]
    left_out: int
    decisions: tuple[DecisionCost, ...] = ()
    load: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        decisions = tuple(DecisionCost(**d) for d in values.get("decisions", ()))
        return cls(**{**values, "decisions": decisions})


def play(
    env: RealEnv, course: GoalTask, pair: StartGoal, actor: Actor, budget: int
) -> tuple[int, dict[str, int | None]]:
    """Let ``actor`` act from the pair's start; returns the steps taken, and for each rule the step after which it first
    held."""
    env.reset(options={"state": pair.start})
    solved: dict[str, int | None] = dict.fromkeys(course.rules)
    for step in range(budget):
        env.step(actor(env, step))
        for rule, held in course.reached(env.state(), pair.goal).items():
            if held and solved[rule] is None:
                solved[rule] = step + 1
        if None not in solved.values():
            return step + 1, solved
    return budget, solved


def attempt(env: RealEnv, course: GoalTask, pair: StartGoal, name: str, actor: Actor, budget: int) -> GoalTrial:
    """The outcome of letting ``actor``, called ``name``, try."""
    steps, solved = play(env, course, pair, actor, budget)
    return GoalTrial(name, pair.index, steps, solved, course.measure(env.state(), pair.goal), pair.left_out)


# -- controls ----------------------------------------------------------------------------------------------------------


def do_nothing(pair: StartGoal, seed: int) -> Actor:
    """Zeros."""
    return lambda env, step: np.zeros(env.spec_world.action_size, np.float32)


def random_actions(pair: StartGoal, seed: int) -> Actor:
    """Uniform in the whole action space, anew at every step."""
    rng = np.random.default_rng([seed, pair.index])
    return lambda env, step: rng.uniform(-1, 1, env.spec_world.action_size).astype(np.float32)


def straight_to_goal(pair: StartGoal, seed: int) -> Actor:
    """What the actions move goes straight to its place at the goal, as fast as it can, whatever lies in between."""

    def act(env: RealEnv, step: int) -> np.ndarray:
        wanted = (pair.goal[:2] - env.state()[:2]) / np.array(env.spec_world.action_scale)
        return (wanted / max(1.0, float(np.abs(wanted).max()))).astype(np.float32)

    return act


def replay(pair: StartGoal, seed: int) -> Actor:
    """The demonstration's own actions, then nothing: what could be reached at all."""
    demonstration = pair.demonstration
    if demonstration is None:
        raise ValueError(f"pair {pair.index} ({pair.origin}) has no demonstration to replay")
    return lambda env, step: demonstration[step] if step < len(demonstration) else np.zeros_like(demonstration[0])


CONTROLS: Mapping[str, Callable[[StartGoal, int], Actor]] = {
    "random": random_actions,
    "do nothing": do_nothing,
    "straight to goal": straight_to_goal,
    "replay": replay,
}
"""Name -> (pair, seed) -> actor."""


# -- shares ------------------------------------------------------------------------------------------------------------


def wilson(successes: int, n: int) -> Estimate:
    """``successes / n`` with its Wilson 95 % interval; NaN for n = 0.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    share = successes / n
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), n)


def share_solved(attempts: Sequence[GoalTrial], rule: str) -> Estimate:
    """The share of ``attempts`` in which ``rule`` ever held."""
    return wilson(sum(a.solved_at[rule] is not None for a in attempts), len(attempts))
