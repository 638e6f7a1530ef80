"""Pairs: where to start and where to go. Pair i is a function of the source and ``(seed, i)`` alone, whatever else is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from neuralsim.data.episode import EpisodeStore
from neuralsim.envs.real_env import RealEnv
from neuralsim.envs.tasks.goal_task import GoalTask

TRIES = 10_000
"""Draws for one pair before the source is given up: all its pairs seem to be solved at the start."""
FRESH = 2_000_003
"""Keeps random pairs apart from everything that was collected, whose generators begin with the collection's seed."""


@dataclass(frozen=True, eq=False)
class StartGoal:
    """A start and a goal, true states float64 ``(s,)``, and the goal as it is seen, uint8 ``(h, w, 3)``.

    demonstration: actions ``(ahead, a)`` that once led from the one to the other, None where nobody knows any.
    left_out: how many draws were thrown away for this pair because they were solved at the start. origin: where it comes
    from, for people.
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
        """Pair ``index``."""


@dataclass(frozen=True)
class HeldOutStartGoals:
    """Start and goal ``ahead`` steps apart in one of ``episodes`` of ``store``; every such pair that is not solved at the
    start is equally likely."""

    store: EpisodeStore
    episodes: tuple[int, ...]
    course: GoalTask
    ahead: int
    seed: int
    _room: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.store.info.state_names != self.course.collector.state_names:
            raise ValueError(
                f"{self.store.folder}: holds states {self.store.info.state_names}, planning in {self.course.world} needs "
                f"{self.course.collector.state_names}"
            )
        room = np.maximum(self.store.lengths[list(self.episodes)] - self.ahead + 1, 0)
        if room.sum() == 0:
            raise ValueError(
                f"{self.store.folder}: none of its {len(self.episodes)} held-out episodes has {self.ahead} steps; ask for a "
                "shorter --ahead or give other episodes with --data"
            )
        object.__setattr__(self, "_room", np.cumsum(room))

    def __call__(self, index: int) -> StartGoal:
        """See StartGoalSource."""
        rng = np.random.default_rng([self.seed, index])
        for left_out in range(TRIES):
            window = int(rng.integers(self._room[-1]))
            row = int(np.searchsorted(self._room, window, side="right"))
            step = window - int(self._room[row - 1] if row else 0)
            episode = self.store[self.episodes[row]]
            if episode.states is None:
                raise ValueError(f"{self.store.folder}: episode {self.episodes[row]} does not know its true states")
            start, goal = (episode.states[i].astype(np.float64) for i in (step, step + self.ahead))
            if not self.course.solved(start, goal):
                return StartGoal(
                    index,
                    start,
                    goal,
                    np.array(episode.frames[step + self.ahead]),
                    np.array(episode.actions[step : step + self.ahead]),
                    left_out,
                    f"episode {self.episodes[row]} from step {step}",
                )
        raise ValueError(
            f"{self.store.folder}: {TRIES} pairs drawn, all solved at the start; give other episodes with --data"
        )


@dataclass(frozen=True)
class RandomStartGoals:
    """A random start, and where the scripted explorer got to from there in ``ahead`` steps; drawn at ``size`` pixels."""

    course: GoalTask
    size: int
    ahead: int
    seed: int

    def __call__(self, index: int) -> StartGoal:
        """See StartGoalSource."""
        rng = np.random.default_rng([FRESH, self.seed, index])
        env = self.course.make(self.size)
        for left_out in range(TRIES):
            start = self.course.collector.start(rng, False)
            actions = self._explore(env, start, int(rng.integers(2**31)))
            goal = env.state()
            if not self.course.solved(start, goal):
                return StartGoal(index, start, goal, env.frame(self.size), actions, left_out, "random")
        raise ValueError(f"world {self.course.world}: {TRIES} random pairs drawn, all solved at the start")

    def _explore(self, env: RealEnv, start: np.ndarray, seed: int) -> np.ndarray:
        policy, memory, actions = self.course.collector.explorer(env, seed), None, []
        observation, _ = env.reset(options={"state": start})
        for _ in range(self.ahead):
            action, memory = policy.predict(observation, memory)
            observation, *_ = env.step(action)
            actions.append(action)
        return np.stack(actions)


@dataclass(frozen=True, eq=False)
class ImageStartGoals:
    """Random starts, all with the goal that ``frame`` ``(h, w, 3)`` shows; ``goal`` ``(s,)`` is what was read off it."""

    course: GoalTask
    frame: np.ndarray
    goal: np.ndarray
    origin: Path
    seed: int

    def __call__(self, index: int) -> StartGoal:
        """See StartGoalSource."""
        rng = np.random.default_rng([FRESH, self.seed, index])
        for left_out in range(TRIES):
            start = self.course.collector.start(rng, False)
            if not self.course.solved(start, self.goal):
                return StartGoal(index, start, self.goal, self.frame, None, left_out, str(self.origin))
        raise ValueError(f"{self.origin}: {TRIES} random starts drawn, all at the goal already")
