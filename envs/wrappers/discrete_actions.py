"""Moves: a handful of whole moves in place of continuous actions, for agents that choose among few (DQN).

A world whose actions are choices needs none: its own choices are moves.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvStepReturn, VecEnvWrapper


def moves(action_size: int) -> np.ndarray:
    """float32 ``(n, a)``: standing still and every combination of -1, 0, 1 for up to three dimensions; one dimension at a time
    for more. The first is standing still."""
    if action_size <= 3:
        every = sorted(itertools.product((-1.0, 0.0, 1.0), repeat=action_size), key=lambda m: sum(map(abs, m)))
        return np.array(every, np.float32)
    one = np.eye(action_size, dtype=np.float32)
    return np.concatenate([np.zeros((1, action_size), np.float32), one, -one])


def as_actions(chosen: np.ndarray, action_size: int, choices: Sequence[int] = ()) -> np.ndarray:
    """What a policy answered, ``(n, a)`` numbers or ``(n,)`` moves, as actions float32 ``(n, a)`` in [-1, 1]; in a world of
    ``choices``, ``(n,)`` or ``(n, a)`` of them, as int64 ``(n, a)``."""
    array = np.asarray(chosen)
    if choices:
        return array[:, None] if array.ndim == 1 and action_size == 1 else array
    if np.issubdtype(array.dtype, np.integer):
        return np.array(moves(action_size)[array])
    return np.clip(array, -1, 1).astype(np.float32)


class DiscreteActionEnv(gym.ActionWrapper[np.ndarray, np.int64, np.ndarray]):
    """An environment whose action is the number of a move."""

    def __init__(self, env: gym.Env[np.ndarray, np.ndarray]) -> None:
        super().__init__(env)
        self.moves = moves(_size(env.action_space))
        self.action_space = spaces.Discrete(len(self.moves))

    def action(self, action: np.int64) -> np.ndarray:
        """The move itself, ``(a,)``."""
        return np.array(self.moves[int(action)])


class DiscreteActionVecEnv(VecEnvWrapper):
    """The same for Stable-Baselines3's vector environments."""

    def __init__(self, venv: VecEnv) -> None:
        self.moves = moves(_size(venv.action_space))
        super().__init__(venv, action_space=spaces.Discrete(len(self.moves)))

    def reset(self) -> np.ndarray:
        """See VecEnv."""
        return np.asarray(self.venv.reset())

    def step_async(self, actions: np.ndarray) -> None:
        """See VecEnv; ``actions`` ``(num_envs,)`` are numbers of moves."""
        self.venv.step_async(self.moves[np.asarray(actions)])

    def step_wait(self) -> VecEnvStepReturn:
        """See VecEnv."""
        return self.venv.step_wait()


def _size(space: spaces.Space[Any]) -> int:
    """Dimensions of a Box ``(a,)``; a ValueError for what has choices already."""
    if not isinstance(space, spaces.Box):
        raise ValueError(  # noqa: TRY004
            f"moves stand for continuous actions, a Box (a,); {space} has choices of its own, and needs none"
        )
    return int(space.shape[-1])
