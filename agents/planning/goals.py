"""StartGoal pairs: where an episode starts and which state it is to reach.

Pair i is a function of the source and ``(seed, i)`` alone, whichever other pairs are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from neuralsim.data.store import EpisodeStore
from neuralsim.envs.real_env import RealEnv
from neuralsim.envs.tasks.goal_task import GoalTask

TRIES = 10_000
"""Draws for one pair before the source is given up: all its pairs seem to be solved at the start."""
FRESH = 2_000_003
"""Keeps random pairs apart from collected episodes, whose generators begin with the collection's seed."""


@dataclass(frozen=True, eq=False)
class StartGoal:
    """A start and a goal state, float64 ``(s,)``, and the goal's ``frame``, uint8 ``(h, w, 3)``.

    demonstration: actions ``(goal distance, a)`` that once led from start to goal, or None. left_out: draws rejected for
    this pair because they were solved at the start. origin: text for people.
    """

    index: int
    start: np.ndarray
    goal: np.ndarray
    frame: np.ndarray
    demonstration: np.ndarray | None
    left_out: int
    origin: str


class StartGoalSource(Protocol):
    """Makes pairs by number."""

    def __call__(self, index: int) -> StartGoal:
        """Return pair ``index``."""


@dataclass(frozen=True)
class HeldOutStartGoals:
    """Pairs ``distance`` steps apart in one of ``episodes`` of ``store``; every pair not solved at the start is equally likely.

    Raises ValueError for a store of another world or without an episode that long.
    """

    store: EpisodeStore
    episodes: tuple[int, ...]
    goal_task: GoalTask
    distance: int
    seed: int
    _windows: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        state_names = self.goal_task.real_world.state_names
        if self.store.info.state_names != state_names:
            raise ValueError(
                f"{self.store.folder}: holds states {self.store.info.state_names}, planning in {self.goal_task.world} needs "
                f"{state_names}"
            )
        windows = np.maximum(self.store.lengths[list(self.episodes)] - self.distance + 1, 0)
        if windows.sum() == 0:
            raise ValueError(
                f"{self.store.folder}: none of its {len(self.episodes)} held-out episodes has {self.distance} steps; ask for a "
                "shorter --goal-distance or give other episodes with --data"
            )
        object.__setattr__(self, "_windows", np.cumsum(windows))

    def __call__(self, index: int) -> StartGoal:
        rng = np.random.default_rng([self.seed, index])
        for left_out in range(TRIES):
            window = int(rng.integers(self._windows[-1]))
            row = int(np.searchsorted(self._windows, window, side="right"))
            step = window - int(self._windows[row - 1] if row else 0)
            episode = self.store[self.episodes[row]]
            if episode.states is None:
                raise ValueError(f"{self.store.folder}: episode {self.episodes[row]} has no states")
            start, goal = (episode.states[i].astype(np.float64) for i in (step, step + self.distance))
            if not self.goal_task.solved(start, goal):
                return StartGoal(
                    index,
                    start,
                    goal,
                    np.array(episode.frames[step + self.distance]),
                    np.array(episode.actions[step : step + self.distance]),
                    left_out,
                    f"episode {self.episodes[row]} from step {step}",
                )
        raise ValueError(
            f"{self.store.folder}: {TRIES} pairs drawn, all solved at the start; give other episodes with --data"
        )


@dataclass(frozen=True)
class RandomStartGoals:
    """Pairs of a random start and the state that the scripted explorer reaches from there in ``distance`` steps.

    Goal frames have ``size`` pixels.
    """

    goal_task: GoalTask
    size: int
    distance: int
    seed: int

    def __call__(self, index: int) -> StartGoal:
        rng = np.random.default_rng([FRESH, self.seed, index])
        env = self.goal_task.make_env(self.size)
        for left_out in range(TRIES):
            start = self.goal_task.real_world.draw_state(rng)
            actions = self._explore(env, start, int(rng.integers(2**31)))
            goal = env.state()
            if not self.goal_task.solved(start, goal):
                return StartGoal(index, start, goal, env.frame(self.size), actions, left_out, "random")
        raise ValueError(f"world {self.goal_task.world}: {TRIES} random pairs drawn, all solved at the start")

    def _explore(self, env: RealEnv, start: np.ndarray, seed: int) -> np.ndarray:
        policy, memory, actions = self.goal_task.real_world.policies.make_explorer(env, seed), None, []
        observation, _ = env.reset(options={"state": start})
        for _ in range(self.distance):
            action, memory = policy.predict(observation, memory)
            observation, *_ = env.step(action)
            actions.append(action)
        return np.stack(actions)


@dataclass(frozen=True, eq=False)
class ImageStartGoals:
    """Random starts, all with the goal in ``frame`` ``(h, w, 3)``; ``goal`` ``(s,)`` is the state estimated from it."""

    goal_task: GoalTask
    frame: np.ndarray
    goal: np.ndarray
    origin: Path
    seed: int

    def __call__(self, index: int) -> StartGoal:
        rng = np.random.default_rng([FRESH, self.seed, index])
        for left_out in range(TRIES):
            start = self.goal_task.real_world.draw_state(rng)
            if not self.goal_task.solved(start, self.goal):
                return StartGoal(index, start, self.goal, self.frame, None, left_out, str(self.origin))
        raise ValueError(f"{self.origin}: {TRIES} random starts drawn, all at the goal already")
