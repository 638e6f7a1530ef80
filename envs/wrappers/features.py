"""Features of the truth: the very vector that an agent reads in imagination, made of a true world's frames.

What an agent learned inside a world thereby runs outside of it unchanged: the same encoder sees the true frames, with as
much history as the model stacks.
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


class Encoder:
    """The newest frames and actions of ``slots`` true worlds, and what ``model`` makes of them."""

    def __init__(self, model: WorldModel, slots: int, precision: str = "auto") -> None:
        self.model = model
        self.context = model.spec.context
        self.dtype = pick_dtype(precision, torch.device(model.device))
        self.frames = np.zeros((slots, self.context, *model.spec.frame_shape), np.uint8)
        self.actions = np.zeros((slots, max(self.context - 1, 0), model.spec.action_size), model.spec.action_dtype)
        self.seen = np.zeros(slots, np.int64)

    @property
    def space(self) -> spaces.Box:
        """Of one slot's features."""
        return spaces.Box(-np.inf, np.inf, (self.model.feature_size,), np.float32)

    def begin(self, slots: np.ndarray, frames: np.ndarray) -> None:
        """``slots`` ``(m,)`` start anew at ``frames`` ``(m, h, w, 3)``."""
        self.frames[slots, -1], self.seen[slots] = frames, 1

    def follow(self, actions: np.ndarray, frames: np.ndarray, slots: np.ndarray | None = None) -> None:
        """``actions`` ``(m, a)`` led to ``frames`` ``(m, h, w, 3)``, in ``slots`` or in all."""
        rows = np.arange(len(self.seen)) if slots is None else slots
        if self.context > 1:
            self.frames[rows, :-1], self.actions[rows, :-1] = self.frames[rows, 1:], self.actions[rows, 1:]
            self.actions[rows, -1] = actions if self.model.spec.discrete else np.clip(actions, -1, 1)
        self.frames[rows, -1] = frames
        self.seen[rows] = np.minimum(self.seen[rows] + 1, self.context)

    def features(self, slots: np.ndarray | None = None) -> np.ndarray:
        """float32 ``(m, d)`` of ``slots``, or of all."""
        rows = np.arange(len(self.seen)) if slots is None else slots
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
    """A true world of frames that shows ``model``'s features instead: ``evaluate_policy(policy, FeatureEnv(env, model))``."""

    def __init__(self, env: gym.Env[np.ndarray, np.ndarray], model: WorldModel, precision: str = "auto") -> None:
        super().__init__(env)
        _check_frames(env.observation_space, model)
        self.encoder = Encoder(model, 1, precision)
        self.observation_space = self.encoder.space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """See the true world."""
        frame, info = self.env.reset(seed=seed, options=options)
        self.encoder.begin(np.array([0]), frame[None])
        return self.encoder.features()[0], info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """See the true world."""
        frame, reward, terminated, truncated, info = self.env.step(action)
        self.encoder.follow(self.encoder.model.spec.from_space(action)[None], frame[None])
        return self.encoder.features()[0], float(reward), terminated, truncated, info


class FeatureVecEnv(VecEnvWrapper):
    """Several true worlds of frames at once, their frames encoded in one batch; Stable-Baselines3's kind."""

    def __init__(self, venv: VecEnv, model: WorldModel, precision: str = "auto") -> None:
        _check_frames(venv.observation_space, model)
        self.encoder = Encoder(model, venv.num_envs, precision)
        super().__init__(venv, observation_space=self.encoder.space)

    def reset(self) -> np.ndarray:
        """See VecEnv."""
        self.encoder.begin(np.arange(self.num_envs), _array(self.venv.reset()))
        return self.encoder.features()

    def step_async(self, actions: np.ndarray) -> None:
        """See VecEnv."""
        self._actions = self.encoder.model.spec.from_space(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """See VecEnv; ``terminal_observation`` is encoded as well."""
        frames, rewards, dones, infos = self.venv.step_wait()
        ended = np.flatnonzero(dones)
        last = _array(frames).copy()
        for i in ended:
            last[i] = infos[i]["terminal_observation"]
        self.encoder.follow(self._actions, last)
        observation = self.encoder.features()
        if len(ended):
            for i in ended:
                infos[i]["terminal_observation"] = observation[i].copy()
            self.encoder.begin(ended, _array(frames)[ended])
            observation[ended] = self.encoder.features(ended)
        return observation, rewards, dones, infos


def _array(observation: Any) -> np.ndarray:
    return np.asarray(observation)


def _check_frames(space: spaces.Space[Any], model: WorldModel) -> None:
    shape: Sequence[int] = model.spec.frame_shape
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or space.shape != tuple(shape):
        raise ValueError(
            f"features: expected an environment of frames uint8 {tuple(shape)}, got {space}; "
            f"make it with observation='pixels' and size={model.spec.height}"
        )
