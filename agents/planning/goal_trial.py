"""GoalTrial: the result of one episode from a start to a goal state in the real environment, by a planner or a baseline."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from neuralsim.agents.planning.goals import StartGoal
from neuralsim.agents.planning.planner import Decision
from neuralsim.agents.policies.policy import NamedPolicy
from neuralsim.agents.policies.rollout import SingleEnv, run
from neuralsim.envs.real_env import RealEnv
from neuralsim.envs.tasks.goal_task import GoalTask
from neuralsim.evaluation.statistics import Estimate, wilson


@dataclass(frozen=True)
class DecisionCost:
    """Cost of one decision: milliseconds of wall time, plans evaluated, and the plan's predicted cost."""

    ms: float
    evaluations: int
    cost: float

    @classmethod
    def of(cls, decisions: Sequence[Decision]) -> tuple[Self, ...]:
        """Return the cost of each of a planner's ``decisions``."""
        return tuple(cls(d.total_ms, d.evaluations, d.cost) for d in decisions)


@dataclass(frozen=True)
class GoalTrial:
    """Result of one trial.

    solved_at: by rule, the first step after which it held, or None; a goal reached once counts, as is usual in the field.
    distances: at the end. A trial ends after its budget of steps, or when every rule has held.
    """

    actor: str
    pair: int
    steps: int
    solved_at: Mapping[str, int | None]
    distances: Mapping[str, float]
    left_out: int
    decisions: tuple[DecisionCost, ...] = ()
    load: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Invert ``to_dict``."""
        decisions = tuple(DecisionCost(**d) for d in values.get("decisions", ()))
        return cls(**{**values, "decisions": decisions})


def run_to_goal(
    env: RealEnv, goal_task: GoalTask, pair: StartGoal, policy: NamedPolicy, budget: int
) -> tuple[int, dict[str, int | None]]:
    """Run ``policy`` from the pair's start; returns the steps taken, and for each rule the step after which it first held."""
    solved: dict[str, int | None] = dict.fromkeys(goal_task.rules)
    episode = SingleEnv(env, policy.observation, {"options": {"state": pair.start}}, budget, stop_at_end=False)
    for _ in run(policy.policy, episode, np.ones(1, bool)):
        for rule, held in goal_task.reached(env.state(), pair.goal).items():
            if held and solved[rule] is None:
                solved[rule] = episode.taken
        if None not in solved.values():
            break
    return episode.taken, solved


def run_trial(env: RealEnv, goal_task: GoalTask, pair: StartGoal, policy: NamedPolicy, budget: int) -> GoalTrial:
    """Run one trial of ``policy`` and return its result."""
    steps, solved = run_to_goal(env, goal_task, pair, policy, budget)
    return GoalTrial(policy.name, pair.index, steps, solved, goal_task.measure(env.state(), pair.goal), pair.left_out)


def share_solved(trials: Sequence[GoalTrial], rule: str) -> Estimate:
    """Return the share of ``trials`` in which ``rule`` ever held."""
    return wilson(sum(t.solved_at[rule] is not None for t in trials), len(trials))


def system_load() -> float | None:
    """Return the machine's load average over a minute; None where the system has none."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
