"""Moves: a handful of whole moves in place of continuous actions, for agents that choose among few (DQN)."""

from __future__ import annotations

import itertools

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


def as_actions(chosen: np.ndarray, action_size: int) -> np.ndarray:
    """What a policy answered, ``(n, a)`` numbers or ``(n,)`` moves, as actions float32 ``(n, a)`` in [-1, 1]."""
    array = np.asarray(chosen)
    if np.issubdtype(array.dtype, np.integer):
        return np.array(moves(action_size)[array])
    return np.clip(array, -1, 1).astype(np.float32)


class MoveEnv(gym.ActionWrapper[np.ndarray, np.int64, np.ndarray]):
    """An environment whose action is the number of a move."""

    def __init__(self, env: gym.Env[np.ndarray, np.ndarray]) -> None:
        super().__init__(env)
        shape = env.action_space.shape
        assert shape is not None
        self.moves = moves(shape[-1])
        self.action_space = spaces.Discrete(len(self.moves))

    def action(self, action: np.int64) -> np.ndarray:
        """The move itself, ``(a,)``."""
        return np.array(self.moves[int(action)])


class MoveVecEnv(VecEnvWrapper):
    """The same for Stable-Baselines3's vector environments."""

    def __init__(self, venv: VecEnv) -> None:
        shape = venv.action_space.shape
        assert shape is not None
        self.moves = moves(shape[-1])
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
