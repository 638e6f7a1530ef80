"""GoalTask: planning in a real world to a goal state: when the goal is reached, and how far a state is from it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from neuralsim.envs.real_env import RealEnv
from neuralsim.envs.tasks.real_world import RealWorld, find_real_world, get_real_world, load, real_worlds

EXTENT = 512.0
"""Side of the square world of every goal task, in its units."""
CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 25)[:-1]) for f in (np.cos, np.sin)], 1)
"""Points on the unit circle, ``(24, 2)``."""

Distance = Callable[[np.ndarray, np.ndarray], float]
"""A state ``(s,)`` and the goal's ``(s,)`` -> how far apart they are."""


@dataclass(frozen=True)
class GoalTask:
    """One world's test of planning. The first two numbers of its state are the place of what the actions move."""

    world: str
    """The real world's name."""
    rules: Mapping[str, Callable[[np.ndarray, np.ndarray], bool]]
    """By name: (state, goal) -> the goal is reached. The first decides which pairs count as solved before any action."""
    distances: Mapping[str, tuple[str, Distance]]
    """By name: unit and distance."""
    outlines: Callable[[np.ndarray], list[np.ndarray]]
    """A state -> closed lines ``(k, 2)`` around the things in it, in units."""
    least: float
    """Share of goals that a planner must reach."""

    @property
    def real_world(self) -> RealWorld:
        """The record of the world: simulator, random starts and scripted explorer."""
        return get_real_world(self.world)

    def make_env(self, size: int) -> RealEnv:
        """The real environment in frames of ``size`` pixels; its observations are states."""
        return cast(RealEnv, self.real_world.make_env(size))

    def reached(self, state: np.ndarray, goal: np.ndarray) -> dict[str, bool]:
        """The answer of each rule."""
        return {name: rule(state, goal) for name, rule in self.rules.items()}

    def solved(self, state: np.ndarray, goal: np.ndarray) -> bool:
        """The answer of the first rule."""
        return next(iter(self.rules.values()))(state, goal)

    def measure(self, state: np.ndarray, goal: np.ndarray) -> dict[str, float]:
        """Each distance."""
        return {name: measure(state, goal) for name, (_, measure) in self.distances.items()}


def has_goal_task(world: str) -> bool:
    """Report whether the real world of that name has a goal task."""
    found = find_real_world(world)
    return found is not None and found.goal_task is not None


def goal_task_of(world: str) -> GoalTask:
    """The goal task of ``world``; a ValueError lists those there are."""
    if not has_goal_task(world):
        known = [name for name, record in real_worlds().items() if record.goal_task is not None]
        near = difflib.get_close_matches(world, known, 1, 0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"no real world {world!r} to plan in{hint}; there are {', '.join(known)}. A model of your own is given with "
            f"--model FOLDER"
        )
    entry = get_real_world(world).goal_task
    assert entry is not None
    task: GoalTask = load(entry)
    return task


def moved_distance(state: np.ndarray, goal: np.ndarray) -> float:
    """Units between what the actions move and where it is at the goal."""
    return float(np.linalg.norm(state[:2] - goal[:2]))
