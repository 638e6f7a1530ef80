"""Wrappers that offer a few fixed actions in place of continuous ones, for agents that choose among few (DQN).

A world whose actions are choices needs none.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvStepReturn, VecEnvWrapper


def discrete_actions(action_size: int) -> np.ndarray:
    """Return float32 ``(n, a)``: rest, and every combination of -1, 0, 1 for up to three dimensions; one dimension at a time
    for more. The first is rest."""
    if action_size <= 3:
        every = sorted(itertools.product((-1.0, 0.0, 1.0), repeat=action_size), key=lambda m: sum(map(abs, m)))
        return np.array(every, np.float32)
    one = np.eye(action_size, dtype=np.float32)
    return np.concatenate([np.zeros((1, action_size), np.float32), one, -one])


def to_actions(chosen: np.ndarray, action_size: int, choices: Sequence[int] = ()) -> np.ndarray:
    """Return a policy's output, ``(n, a)`` numbers or ``(n,)`` indices of discrete actions, as actions float32 ``(n, a)`` in
    [-1, 1]; in a world of ``choices``, ``(n,)`` or ``(n, a)`` of them, as int64 ``(n, a)``."""
    array = np.asarray(chosen)
    if choices:
        return array[:, None] if array.ndim == 1 and action_size == 1 else array
    if np.issubdtype(array.dtype, np.integer):
        return np.array(discrete_actions(action_size)[array])
    return np.clip(array, -1, 1).astype(np.float32)


class DiscreteActionEnv(gym.ActionWrapper[np.ndarray, np.int64, np.ndarray]):
    """An environment whose action is an index into :func:`discrete_actions`."""

    def __init__(self, env: gym.Env[np.ndarray, np.ndarray]) -> None:
        super().__init__(env)
        self.actions = discrete_actions(_action_size(env.action_space))
        self.action_space = spaces.Discrete(len(self.actions))

    def action(self, action: np.int64) -> np.ndarray:
        """Return the continuous action ``(a,)`` of that index."""
        return np.array(self.actions[int(action)])


class DiscreteActionVecEnv(VecEnvWrapper):
    """DiscreteActionEnv for Stable-Baselines3's vector environments."""

    def __init__(self, venv: VecEnv) -> None:
        self.actions = discrete_actions(_action_size(venv.action_space))
        super().__init__(venv, action_space=spaces.Discrete(len(self.actions)))
        self.metadata = venv.get_attr("metadata")[0]  # VecEnv.__init__ sets one without a rate

    def reset(self) -> np.ndarray:
        return np.asarray(self.venv.reset())

    def step_async(self, actions: np.ndarray) -> None:
        self.venv.step_async(self.actions[np.asarray(actions)])

    def step_wait(self) -> VecEnvStepReturn:
        return self.venv.step_wait()


def _action_size(space: spaces.Space[Any]) -> int:
    """Return the dimensions of a Box ``(a,)``; a ValueError for a space of choices."""
    if not isinstance(space, spaces.Box):
        raise ValueError(  # noqa: TRY004
            f"discrete actions stand for continuous ones, a Box (a,); {space} has choices of its own, and needs none"
        )
    return int(space.shape[-1])
