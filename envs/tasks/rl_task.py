"""RLTask: what an agent learns in a world, as a reward and an end of states; the same function serves imagination and reality."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import gymnasium as gym
import numpy as np

from neuralsim.data.images import Size
from neuralsim.envs.tasks.gym_world import real_world_of
from neuralsim.envs.tasks.real_world import RealWorld, find_real_world, load, real_worlds
from neuralsim.pretrained.starts import Starts
from neuralsim.pretrained.world import World, open_world
from neuralsim.storage.resolve import list_worlds, resolve
from neuralsim.task import LearnedTask, StateTask, Task

RewardAndEnd = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""States before ``(b, s)``, actions ``(b, a)``, states after -> rewards ``(b,)``, terminated bool ``(b,)``."""

UNIT = 50.0
"""Units of a 512-wide world whose gain is a reward of 1."""
BONUS = 1.0
"""Reward for arriving."""
OWN = "own"
"""Name of the task that is a world's own reward and end."""
IMAGINED_HORIZON = 300
"""Steps in an episode of a world that is known in imagination alone."""


@dataclass(frozen=True)
class RLTask:
    """One thing to learn in one world."""

    name: str
    """Its name on the command line."""
    world: str
    """The name of the world's spec."""
    about: str
    """One line for tables."""
    reward: RewardAndEnd | None = None
    """Reward and end; None: the world's own (in imagination: as its heads learned them)."""
    is_success: Callable[[np.ndarray], np.ndarray] | None = None
    """States ``(b, s)`` -> success, bool ``(b,)``; None: where the task ends. A task may ask its learner for a little more than
    success, since imagination estimates states with some error."""
    horizon: int = 100
    """Steps until truncation."""
    known_world: RealWorld | None = None
    """The real world to be tried in; None: the registered one of the name ``world``."""
    unknown: str = ""
    """Reason why there is no real world."""
    outcome: str = "success"
    """Meaning of an end: ``success``, or just ``terminated``, for most worlds end when something goes wrong."""

    @cached_property
    def task(self) -> Task:
        """The task in imagination."""
        return LearnedTask() if self.reward is None else StateTask(self.reward)

    def env(self, size: Size = 64) -> TaskEnv:
        """The real world under this task; its observations are frames. Raises ValueError where there is none."""
        return TaskEnv(self.real_world().make_env(size, "pixels"), self)

    def starts(self, count: int, seed: int, size: Size = 64) -> Starts:
        """``count`` initial histories as the real world's reset makes them, for evaluation and for imagination."""
        return self.real_world().starts(count, seed, size)

    def starts_in(self, world: World, count: int, seed: int) -> Starts:
        """The same in frames of ``world``'s size; histories that ``world`` ships with where there is no real world."""
        if self.has_real_world:
            return self.starts(count, seed, (world.spec.height, world.spec.width))
        shipped = shipped_starts(world)
        rows = np.random.default_rng([seed, 77]).integers(len(shipped), size=count)
        return Starts(shipped.frames[rows], shipped.actions[rows])

    @property
    def has_real_world(self) -> bool:
        """There is a real world to be tried in."""
        return not self.unknown

    def real_world(self) -> RealWorld:
        """The real world; a ValueError where there is none."""
        found = self.known_world or find_real_world(self.world)
        if self.unknown or found is None:
            raise ValueError(f"world {self.world!r} can be tried in imagination alone: {self.unknown}")
        return found


class TaskEnv(gym.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """A real environment under an RLTask: its rewards and ends, and truncation at its horizon.

    ``info`` gains ``success``, ``elapsed``, and the world's own ``own_reward`` and ``own_terminated`` (0 and False at reset).
    ``reset(options={"state": ...})`` starts exactly there, where the world can be put at a state.
    """

    def __init__(self, env: gym.Env[Any, Any], rl_task: RLTask) -> None:
        super().__init__(env)
        self.rl_task = rl_task
        self.elapsed = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self.elapsed = 0
        return observation, info | {"elapsed": 0, "success": False, "own_reward": 0.0, "own_terminated": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        task_reward = self.rl_task.reward
        before = self.state() if task_reward is not None else None
        observation, own_reward, own_terminated, own_truncated, info = self.env.step(action)
        reward, terminated = float(own_reward), bool(own_terminated)
        if task_reward is not None:
            rewards, ends = task_reward(before[None], np.asarray(action, np.float32)[None], self.state()[None])  # type: ignore[index]
            reward, terminated = float(rewards[0]), bool(ends[0])
        self.elapsed += 1
        info |= {"elapsed": self.elapsed, "success": terminated or self._is_success()}
        info |= {"own_reward": float(own_reward), "own_terminated": bool(own_terminated)}
        return observation, reward, terminated, bool(own_truncated) or self.elapsed >= self.rl_task.horizon, info

    def state(self) -> np.ndarray:
        """The state ``(s,)`` now, where the world shows it."""
        return np.asarray(self.env.get_wrapper_attr("state")())

    def _is_success(self) -> bool:
        return self.rl_task.is_success is not None and bool(self.rl_task.is_success(self.state()[None])[0])


def tasks_of(world: RealWorld) -> Mapping[str, RLTask]:
    """The tasks of a registered world, the default first; its own reward and end where its record lists none."""
    if world.tasks is None:
        return _own_task(world)
    tasks: Mapping[str, RLTask] = load(world.tasks) if isinstance(world.tasks, str) else world.tasks
    return tasks


@cache
def _own_task(world: RealWorld) -> Mapping[str, RLTask]:
    task = RLTask(OWN, world.name, "the world's own reward and end", None, None, world.horizon, world, "", "terminated")
    return {OWN: task}


def find_task(world: str, name: str | None = None) -> RLTask:
    """The task ``name`` of the registered world ``world`` (None: its first); a ValueError lists those there are."""
    found = find_real_world(world)
    if found is None:
        near = difflib.get_close_matches(world, real_worlds(), 1, 0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"no real world {world!r} to learn in; there are {', '.join(real_worlds())}, and the folders of trained worlds{hint}"
        )
    return _pick(tasks_of(found), world, name)


def task_of(world: World, name: str | None = None) -> RLTask:
    """The task ``name`` in a learned ``world``: one of those of its name, else its own reward and end. The real world is the one that
    its folder names as its source."""
    spec = world.spec
    registered = find_real_world(spec.name)
    if registered is not None and (spec.height == spec.width or not registered.square):
        return find_task(spec.name, name)
    found, unknown = None, ""
    try:
        found = real_world_of(world)
    except ValueError as error:
        unknown = str(error)
    horizon = IMAGINED_HORIZON if found is None else found.horizon
    own = RLTask(OWN, spec.name, "the world's own reward and end", None, None, horizon, found, unknown, "terminated")
    return _pick({OWN: own}, spec.name, name)


def task_for(place: str | os.PathLike[str], name: str | None = None, device: str = "auto") -> RLTask:
    """The task ``name`` in the real world ``place``, or in the learned one of that name or folder. Raises ValueError for a
    word that is neither, FileNotFoundError for a folder that is not there."""
    word = os.fspath(place)
    if find_real_world(word) is not None:
        return find_task(word, name)
    try:
        resolve(place)
    except FileNotFoundError:
        if os.sep in word:
            raise
        return find_task(word, name)  # its message lists them
    return task_of(open_world(place, device), name)


def world_name(place: str | os.PathLike[str], device: str = "auto") -> str:
    """The name of the real world that ``place`` names, or from which the model there was learned; else the word itself."""
    word = os.fspath(place)
    if find_real_world(word) is not None:
        return word
    try:
        resolve(place)
    except FileNotFoundError:
        return word
    return open_world(place, device).spec.name


def learned_name(place: str | os.PathLike[str]) -> str:
    """The learned world for imagination where only a world is named: itself, or the one that ships for a real world's name."""
    word = os.fspath(place)
    if find_real_world(word) is None:
        try:
            resolve(place)
        except FileNotFoundError:
            return f"{word}-latent"
        return word
    shipped = list_worlds()
    return next((n for n in (f"{word}-latent", f"{word}-video", word) if n in shipped), f"{word}-latent")


def shipped_starts(world: World) -> Starts:
    """The initial histories of ``world``; a ValueError where it has none."""
    if world.starts is None:
        raise ValueError(
            f"world {world.folder or world.spec.name}: has no starts.npz, so imagined rollouts have no initial histories; "
            "World(model, starts).save(folder) writes one"
        )
    return world.starts


def _pick(tasks: Mapping[str, RLTask], world: str, name: str | None) -> RLTask:
    if name is None:
        return next(iter(tasks.values()))
    if name not in tasks:
        near = difflib.get_close_matches(name, tasks, 1, 0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no task {name!r} in world {world!r}; there are {', '.join(tasks)}{hint}")
    return tasks[name]
