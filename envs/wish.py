"""Wish: what an agent is to learn in a true world, told in true states; the same function judges dream and truth.

A standing goal, so that observations need not carry one. Rewards are progress: what a step gains, so that doing nothing
returns 0, detours cost nothing in the end (potential-based shaping; Ng, Harada and Russell 1999), and a reading's error
cancels from step to step.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np

from neuralsim.catalog import Starts
from neuralsim.envs import tworoom
from neuralsim.envs.pusht import GOAL_POSE, PUSHER_RADIUS, PushTRealEnv
from neuralsim.envs.pusht import random_state as pusht_state
from neuralsim.envs.tworoom import TwoRoomRealEnv
from neuralsim.envs.tworoom import random_state as tworoom_state
from neuralsim.task import LearnedTask, StateTask, Task

Judge = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""States before ``(b, s)``, actions ``(b, a)``, states after -> rewards ``(b,)``, terminated bool ``(b,)``."""

UNIT = 50.0
"""Units of the 512-wide world whose gain is a reward of 1."""
BONUS = 1.0
"""Reward for arriving."""
NEAR, NEAR_ANGLE = 20.0, np.pi / 9
"""Push-T's block counts as brought home within 20 units and 20 degrees."""
TOUCH = 2.0
"""Units between pusher and block that count as touching."""
APPROACH = 0.2
"""What a unit of the pusher's way to the block counts beside a unit of the block's to its goal."""
LANDMARKS = np.array([(-60.0, 15.0), (60.0, 15.0), (0.0, 120.0)])
"""Ends of the T's bar and of its stem, in its own frame: how far they are from where they belong is distance and angle at
once."""
BOXES = np.array([((-60.0, 0.0), (60.0, 30.0)), ((-15.0, 30.0), (15.0, 120.0))])
"""Low and high corner of the T's bar and stem, in its own frame."""


@dataclass(frozen=True)
class Wish:
    """One thing to learn in one true world.

    judge: None means the world's own reward and end (in imagination: as its heads learned them). came_true: whether states
    ``(b, s)`` are what was wished for, bool ``(b,)``; None: wherever the wish ends. A wish may ask its learner for a little more
    than what counts, since a dream tells its states with some error. horizon: steps until truncation.
    """

    name: str
    world: str
    about: str
    judge: Judge | None = None
    came_true: Callable[[np.ndarray], np.ndarray] | None = None
    horizon: int = 100

    @cached_property
    def task(self) -> Task:
        """The wish as imagination judges it."""
        return LearnedTask() if self.judge is None else StateTask(self.judge)

    def env(self, size: int = 64) -> WishedEnv:
        """The true world that wishes for this; its observations are frames."""
        return WishedEnv(TRUE_WORLDS[self.world](size), self)

    def starts(self, count: int, seed: int, size: int = 64) -> Starts:
        """``count`` states as the true world's reset draws them, with their frames: where dreams begin."""
        rng, env = np.random.default_rng([seed, 77]), TRUE_WORLDS[self.world](size)
        states = np.stack([START_STATES[self.world](rng) for _ in range(count)])
        frames = []
        for state in states:
            env.set_state(state)
            frames.append(env.frame(size))
        actions = np.zeros((count, 0, env.spec_world.action_size), np.float32)
        return Starts(np.stack(frames)[:, None], actions, states[:, None])


class WishedEnv(gym.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """A true world under a wish: its rewards and ends, and truncation at its horizon.

    ``info`` gains ``success``, ``elapsed``, and the world's own ``own_reward`` and ``own_terminated``.
    ``reset(options={"state": ...})`` starts exactly there.
    """

    env: PushTRealEnv | TwoRoomRealEnv

    def __init__(self, env: PushTRealEnv | TwoRoomRealEnv, wish: Wish) -> None:
        super().__init__(env)
        self.wish = wish
        self.elapsed = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """See the true world."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.elapsed = 0
        return observation, info | {"elapsed": 0, "success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """See the true world."""
        before = self.env.state()
        observation, own_reward, own_terminated, _, info = self.env.step(action)
        reward, terminated, after = own_reward, own_terminated, self.env.state()
        if self.wish.judge is not None:
            actions = np.asarray(action, np.float32)
            rewards, ends = self.wish.judge(before[None], actions[None], after[None])
            reward, terminated = float(rewards[0]), bool(ends[0])
        self.elapsed += 1
        info |= {"elapsed": self.elapsed, "success": bool(terminated) or self._came_true(after)}
        info |= {"own_reward": own_reward, "own_terminated": own_terminated}
        return observation, reward, terminated, self.elapsed >= self.wish.horizon, info

    def _came_true(self, state: np.ndarray) -> bool:
        return self.wish.came_true is not None and bool(self.wish.came_true(state[None])[0])


def find_wish(world: str, name: str | None = None) -> Wish:
    """The wish ``name`` of ``world`` (None: its first); a ValueError lists those there are."""
    if world not in WISHES:
        near = difflib.get_close_matches(world, WISHES, 1, 0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no true world {world!r} to learn in; there are {', '.join(WISHES)}{hint}")
    wishes = WISHES[world]
    if name is None:
        return next(iter(wishes.values()))
    if name not in wishes:
        near = difflib.get_close_matches(name, wishes, 1, 0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no task {name!r} in world {world!r}; there are {', '.join(wishes)}{hint}")
    return wishes[name]


# -- Push-T ------------------------------------------------------------------------------------------------------------


def block_gap(states: np.ndarray, goal: tuple[float, float, float] = GOAL_POSE) -> np.ndarray:
    """Root-mean-square way in units ``(b,)`` from the block's landmarks in ``states`` ``(b, 5)`` to where they belong."""
    return np.sqrt(np.square(_landmarks(states[:, 2:]) - _landmarks(np.array([goal]))).sum(-1).mean(-1))


def pusher_gap(states: np.ndarray) -> np.ndarray:
    """Units ``(b,)`` between the pusher's rim and the block; 0 where they touch."""
    away = states[:, :2] - states[:, 2:4]
    sine, cosine = np.sin(states[:, 4]), np.cos(states[:, 4])
    own = np.stack([away[:, 0] * cosine + away[:, 1] * sine, away[:, 1] * cosine - away[:, 0] * sine], 1)
    low, high = BOXES[:, 0], BOXES[:, 1]
    outside = np.maximum(np.maximum(low - own[:, None], own[:, None] - high), 0)
    return np.maximum(np.sqrt(np.square(outside).sum(-1)).min(1) - PUSHER_RADIUS, 0)


def _landmarks(poses: np.ndarray) -> np.ndarray:
    sine, cosine = np.sin(poses[:, 2, None]), np.cos(poses[:, 2, None])
    u, v = LANDMARKS.T
    return np.stack([poses[:, :1] + u * cosine - v * sine, poses[:, 1:2] + u * sine + v * cosine], -1)


def _home(states: np.ndarray) -> np.ndarray:
    turned = np.abs((states[:, 4] - GOAL_POSE[2] + np.pi) % (2 * np.pi) - np.pi)
    return (np.linalg.norm(states[:, 2:4] - GOAL_POSE[:2], axis=1) < NEAR) & (turned < NEAR_ANGLE)


def _push(before: np.ndarray, actions: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gained = block_gap(before) - block_gap(after) + APPROACH * (pusher_gap(before) - pusher_gap(after))
    home = _home(after)
    return gained / UNIT + BONUS * home, home


def _touch(before: np.ndarray, actions: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    touching = pusher_gap(after) < TOUCH
    return (pusher_gap(before) - pusher_gap(after)) / UNIT + BONUS * touching, touching


# -- TwoRoom -----------------------------------------------------------------------------------------------------------

ARRIVED = 12.0
"""Units from the goal at which ``reach`` ends: somewhat less than what counts as there."""
BEHIND_DOOR = np.array([tworoom.WALL[1] + tworoom.RADIUS, 190.0])
"""Just past the door, on the way to the goal."""


def way_home(states: np.ndarray) -> np.ndarray:
    """Units ``(b,)`` to the standing goal, through the door where that is in the way."""
    goal = np.array(tworoom.GOAL)
    direct = np.linalg.norm(states - goal, axis=1)
    through = np.linalg.norm(states - BEHIND_DOOR, axis=1) + np.linalg.norm(goal - BEHIND_DOOR)
    return np.where(states[:, 0] < BEHIND_DOOR[0], through, direct)


def _at_goal(states: np.ndarray) -> np.ndarray:
    return np.linalg.norm(states - tworoom.GOAL, axis=1) <= tworoom.SUCCESS_DISTANCE


def _reach(before: np.ndarray, actions: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    arrived = np.linalg.norm(after - tworoom.GOAL, axis=1) <= ARRIVED
    return (way_home(before) - way_home(after)) / UNIT + BONUS * arrived, arrived


TRUE_WORLDS: Mapping[str, Callable[[int], PushTRealEnv | TwoRoomRealEnv]] = {
    "pusht": PushTRealEnv,
    "tworoom": TwoRoomRealEnv,
}
"""The true simulators, by name, drawn at so many pixels."""
START_STATES: Mapping[str, Callable[[np.random.Generator], np.ndarray]] = {
    "pusht": pusht_state,
    "tworoom": tworoom_state,
}
"""How their resets draw a state."""
WISHES: Mapping[str, Mapping[str, Wish]] = {
    "pusht": {
        "push": Wish("push", "pusht", "bring the block home: distance and angle to its goal", _push),
        "touch": Wish("touch", "pusht", "go and touch the block", _touch, horizon=50),
        "cover": Wish("cover", "pusht", "the world's own: the goal's coverage, until 95 %"),
    },
    "tworoom": {
        "reach": Wish("reach", "tworoom", "go to the goal, through the door", _reach, _at_goal),
        "stay": Wish("stay", "tworoom", "the world's own: straight distance to the goal"),
    },
}
"""What can be learned, by world; the first is what is learned unless another is asked for."""
