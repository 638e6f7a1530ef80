"""Wish: what an agent is to learn in a true world, told in true states; the same function judges dream and truth.

A standing goal, so that observations need not carry one. Rewards are progress: what a step gains, so that doing nothing
returns 0, detours cost nothing in the end (potential-based shaping; Ng, Harada and Russell 1999), and a reading's error
cancels from step to step.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import gymnasium as gym
import numpy as np

from neuralsim.data.images import Size, height_and_width
from neuralsim.envs.gym_adapter.env import NAMED
from neuralsim.envs.pusht.env import GOAL_POSE, PUSHER_RADIUS, PushTRealEnv
from neuralsim.envs.pusht.env import random_state as pusht_state
from neuralsim.envs.tasks.real_world import NAMED_STEPS, RealWorld, real_world_of
from neuralsim.envs.tworoom import env as tworoom
from neuralsim.envs.tworoom.env import TwoRoomRealEnv
from neuralsim.envs.tworoom.env import random_state as tworoom_state
from neuralsim.pretrained.world import Starts, World, open_world
from neuralsim.storage.resolve import list_worlds, resolve
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
class RLTask:
    """One thing to learn in one world.

    judge: None means the world's own reward and end (in imagination: as its heads learned them). is_success: whether states
    ``(b, s)`` are what was wished for, bool ``(b,)``; None: wherever the wish ends. A wish may ask its learner for a little more
    than what counts, since a dream tells its states with some error. horizon: steps until truncation. truth: the simulator to
    be tried in; None where nobody knows it, and ``unknown`` says why. outcome: what an end means, ``success``, or just that the
    episode ``terminated``, for most worlds end when something goes wrong.
    """

    name: str
    world: str
    about: str
    judge: Judge | None = None
    is_success: Callable[[np.ndarray], np.ndarray] | None = None
    horizon: int = 100
    truth: RealWorld | None = None
    unknown: str = ""
    outcome: str = "success"

    @cached_property
    def task(self) -> Task:
        """The wish as imagination judges it."""
        return LearnedTask() if self.judge is None else StateTask(self.judge)

    def env(self, size: Size = 64) -> TaskEnv:
        """The true world that wishes for this; its observations are frames. Raises ValueError where it is not known."""
        return TaskEnv(self.true_world().make(size), self)

    def starts(self, count: int, seed: int, size: Size = 64) -> Starts:
        """``count`` beginnings as the true world's reset makes them: where policies are tried, and dreams begin."""
        return self.true_world().starts(count, seed, size)

    def starts_in(self, world: World, count: int, seed: int) -> Starts:
        """The same in frames of ``world``'s size; histories that ``world`` ships with where the truth is not known."""
        if self.truth is not None:
            return self.starts(count, seed, (world.spec.height, world.spec.width))
        shipped = shipped_starts(world)
        rows = np.random.default_rng([seed, 77]).integers(len(shipped), size=count)
        return Starts(shipped.frames[rows], shipped.actions[rows])

    def true_world(self) -> RealWorld:
        """The truth; a ValueError where it is not known."""
        if self.truth is None:
            raise ValueError(f"world {self.world!r} can be tried in imagination alone: {self.unknown}")
        return self.truth


class TaskEnv(gym.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """A true world under a rl_task: its rewards and ends, and truncation at its horizon.

    ``info`` gains ``success``, ``elapsed``, and the world's own ``own_reward`` and ``own_terminated``.
    ``reset(options={"state": ...})`` starts exactly there, where the world can be put at a state.
    """

    def __init__(self, env: gym.Env[Any, Any], rl_task: RLTask) -> None:
        super().__init__(env)
        self.rl_task = rl_task
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
        judge = self.rl_task.judge
        before = self.state() if judge is not None else None
        observation, own_reward, own_terminated, own_truncated, info = self.env.step(action)
        reward, terminated = float(own_reward), bool(own_terminated)
        if judge is not None:
            rewards, ends = judge(before[None], np.asarray(action, np.float32)[None], self.state()[None])  # type: ignore[index]
            reward, terminated = float(rewards[0]), bool(ends[0])
        self.elapsed += 1
        info |= {"elapsed": self.elapsed, "success": terminated or self._came_true()}
        info |= {"own_reward": own_reward, "own_terminated": own_terminated}
        return observation, reward, terminated, bool(own_truncated) or self.elapsed >= self.rl_task.horizon, info

    def state(self) -> np.ndarray:
        """The true state ``(s,)`` now, where the world shows it."""
        return np.asarray(self.env.get_wrapper_attr("state")())

    def _came_true(self) -> bool:
        return self.rl_task.is_success is not None and bool(self.rl_task.is_success(self.state()[None])[0])


def find_task(world: str, name: str | None = None) -> RLTask:
    """The wish ``name`` of the world that is called ``world`` (None: its first); a ValueError lists those there are."""
    if world not in RL_TASKS:
        near = difflib.get_close_matches(world, RL_TASKS, 1, 0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"no true world {world!r} to learn in; there are {', '.join(RL_TASKS)}, and the folders of trained worlds{hint}"
        )
    return _chosen(RL_TASKS[world], world, name)


def task_of(world: World, name: str | None = None) -> RLTask:
    """The wish ``name`` in a learned ``world``: of those its name knows, else what its heads learned is wished for. The true
    world is the one that its folder says it was learned from."""
    spec = world.spec
    if spec.name in RL_TASKS and spec.height == spec.width:
        return find_task(spec.name, name)
    truth, unknown = None, ""
    try:
        truth = real_world_of(world)
    except ValueError as error:
        unknown = str(error)
    own = RLTask(
        OWN,
        spec.name,
        "the world's own reward and end",
        horizon=NAMED_STEPS if truth is None else truth.steps,
        truth=truth,
        unknown=unknown,
        outcome="terminated",
    )
    return _chosen({OWN: own}, spec.name, name)


def task_for(place: str | os.PathLike[str], name: str | None = None, device: str = "auto") -> RLTask:
    """The wish ``name`` in the world called ``place``, or in the learned one of that name or folder. Raises ValueError for a
    word that is neither, FileNotFoundError for a folder that is not there."""
    word = os.fspath(place)
    if word in RL_TASKS:
        return find_task(word, name)
    try:
        resolve(place)
    except FileNotFoundError:
        if os.sep in word:
            raise
        return find_task(word, name)  # says which there are
    return task_of(open_world(place, device), name)


def world_name(place: str | os.PathLike[str], device: str = "auto") -> str:
    """What the world that ``place`` names, or that was learned there, is called; the word itself where there is none."""
    word = os.fspath(place)
    if word in RL_TASKS:
        return word
    try:
        resolve(place)
    except FileNotFoundError:
        return word
    return open_world(place, device).spec.name


def learned_name(place: str | os.PathLike[str]) -> str:
    """The learned world that is dreamt in where only the world is named: itself, or the one that ships for a name."""
    word = os.fspath(place)
    if word not in RL_TASKS:
        try:
            resolve(place)
        except FileNotFoundError:
            return f"{word}-latent"
        return word
    shipped = list_worlds()
    return next((n for n in (f"{word}-latent", f"{word}-video", word) if n in shipped), f"{word}-latent")


def shipped_starts(world: World) -> Starts:
    """The histories that ``world`` may begin from; a ValueError where it has none."""
    if world.starts is None:
        raise ValueError(
            f"world {world.folder or world.spec.name}: has no starts.npz, so nothing says where its dreams begin; "
            "World(model, starts).save(folder) writes one"
        )
    return world.starts


def _chosen(wishes: Mapping[str, RLTask], world: str, name: str | None) -> RLTask:
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


def _pusht(size: Size) -> PushTRealEnv:
    return PushTRealEnv(height_and_width(size)[0])


def _tworoom(size: Size) -> TwoRoomRealEnv:
    return TwoRoomRealEnv(height_and_width(size)[0])


def _carracing(size: Size) -> gym.Env[Any, Any]:
    return gym.make(NAMED["carracing"], size=height_and_width(size)[0], disable_env_checker=True)


OWN = "own"
"""What the one wish of a world of other people's making is called."""
PUSHT, TWOROOM, CARRACING = RealWorld(_pusht, pusht_state), RealWorld(_tworoom, tworoom_state), RealWorld(_carracing)
_in_pusht, _in_tworoom = partial(RLTask, world="pusht", truth=PUSHT), partial(RLTask, world="tworoom", truth=TWOROOM)
RL_TASKS: Mapping[str, Mapping[str, RLTask]] = {
    "pusht": {
        "push": _in_pusht("push", about="bring the block home: distance and angle to its goal", judge=_push),
        "touch": _in_pusht("touch", about="go and touch the block", judge=_touch, horizon=50),
        "cover": _in_pusht("cover", about="the world's own: the goal's coverage, until 95 %"),
    },
    "tworoom": {
        "reach": _in_tworoom("reach", about="go to the goal, through the door", judge=_reach, is_success=_at_goal),
        "stay": _in_tworoom("stay", about="the world's own: straight distance to the goal"),
    },
    "carracing": {
        "drive": RLTask(
            "drive",
            "carracing",
            "the world's own: along the road, and fast",
            horizon=NAMED_STEPS,
            truth=CARRACING,
            outcome="terminated",
        )
    },
}
"""What can be learned, by world; the first is what is learned unless another is asked for."""
