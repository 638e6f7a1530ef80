"""Wrappers that show a real environment's frames as the features that a model computes of them.

An agent that learned on features inside a world thereby runs unchanged outside of it: the same encoder reads the real frames,
with as much history as the model stacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvStepReturn, VecEnvWrapper

from neuralsim.runtime.device import inference, pick_dtype
from neuralsim.world_model import WorldModel


class FeatureEncoder:
    """The newest frames and actions of ``num_envs`` real environments, and the features that ``model`` computes of them."""

    def __init__(self, model: WorldModel, num_envs: int, precision: str = "auto") -> None:
        self.model = model
        self.context = model.spec.context
        self.dtype = pick_dtype(precision, torch.device(model.device))
        self.frames = np.zeros((num_envs, self.context, *model.spec.frame_shape), np.uint8)
        self.actions = np.zeros((num_envs, max(self.context - 1, 0), model.spec.action_size), model.spec.action_dtype)
        self.seen = np.zeros(num_envs, np.int64)

    @property
    def space(self) -> spaces.Box:
        """The space of one environment's features."""
        return spaces.Box(-np.inf, np.inf, (self.model.feature_size,), np.float32)

    def begin(self, rows: np.ndarray, frames: np.ndarray) -> None:
        """Begin an episode in ``rows`` ``(m,)`` at ``frames`` ``(m, h, w, 3)``."""
        self.frames[rows, -1], self.seen[rows] = frames, 1

    def append(self, actions: np.ndarray, frames: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Add the ``actions`` ``(m, a)`` that led to ``frames`` ``(m, h, w, 3)``, in ``rows`` or in all."""
        rows = np.arange(len(self.seen)) if rows is None else rows
        if self.context > 1:
            self.frames[rows, :-1], self.actions[rows, :-1] = self.frames[rows, 1:], self.actions[rows, 1:]
            self.actions[rows, -1] = actions if self.model.spec.discrete else np.clip(actions, -1, 1)
        self.frames[rows, -1] = frames
        self.seen[rows] = np.minimum(self.seen[rows] + 1, self.context)

    def features(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Return float32 ``(m, d)`` of ``rows``, or of all."""
        rows = np.arange(len(self.seen)) if rows is None else rows
        out = np.empty((len(rows), self.model.feature_size), np.float32)
        for length in np.unique(self.seen[rows]):
            same = np.flatnonzero(self.seen[rows] == length)
            frames = torch.from_numpy(self.frames[rows[same], self.context - length :]).to(self.model.device)
            actions = torch.from_numpy(self.actions[rows[same], self.context - length :]).to(self.model.device)
            with inference(torch.device(self.model.device), self.dtype):
                state = self.model.encode(frames, actions)
                out[same] = self.model.features(state).float().cpu().numpy()
        return out


class FeatureEnv(gym.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """A real environment of frames that shows ``model``'s features: ``evaluate_policy(policy, FeatureEnv(env, model))``."""

    def __init__(self, env: gym.Env[np.ndarray, np.ndarray], model: WorldModel, precision: str = "auto") -> None:
        super().__init__(env)
        _check_frames(env.observation_space, model)
        self.encoder = FeatureEncoder(model, 1, precision)
        self.observation_space = self.encoder.space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        frame, info = self.env.reset(seed=seed, options=options)
        self.encoder.begin(np.array([0]), frame[None])
        return self.encoder.features()[0], info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        frame, reward, terminated, truncated, info = self.env.step(action)
        self.encoder.append(self.encoder.model.spec.from_space(action)[None], frame[None])
        return self.encoder.features()[0], float(reward), terminated, truncated, info


class FeatureVecEnv(VecEnvWrapper):
    """FeatureEnv for Stable-Baselines3's vector environments: the frames of all are encoded in one batch."""

    def __init__(self, venv: VecEnv, model: WorldModel, precision: str = "auto") -> None:
        _check_frames(venv.observation_space, model)
        self.encoder = FeatureEncoder(model, venv.num_envs, precision)
        super().__init__(venv, observation_space=self.encoder.space)
        self.metadata = venv.get_attr("metadata")[0]  # VecEnv.__init__ sets one without a rate

    def reset(self) -> np.ndarray:
        self.encoder.begin(np.arange(self.num_envs), np.asarray(self.venv.reset()))
        return self.encoder.features()

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = self.encoder.model.spec.from_space(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Encode the frames of a step; ``terminal_observation`` is encoded as well."""
        observed, rewards, dones, infos = self.venv.step_wait()
        frames, ended = np.asarray(observed), np.flatnonzero(dones)
        last = frames.copy()
        for i in ended:
            last[i] = infos[i]["terminal_observation"]
        self.encoder.append(self._actions, last)
        observation = self.encoder.features()
        if len(ended):
            for i in ended:
                infos[i]["terminal_observation"] = observation[i].copy()
            self.encoder.begin(ended, frames[ended])
            observation[ended] = self.encoder.features(ended)
        return observation, rewards, dones, infos


def _check_frames(space: spaces.Space[Any], model: WorldModel) -> None:
    shape: Sequence[int] = model.spec.frame_shape
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or space.shape != tuple(shape):
        raise ValueError(
            f"features: expected an environment of frames uint8 {tuple(shape)}, got {space}; "
            f"make it with observation='pixels' and size={model.spec.height}"
        )
