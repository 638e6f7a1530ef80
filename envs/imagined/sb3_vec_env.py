"""ImaginedVecEnv: a learned world as a Stable-Baselines3 VecEnv, on the same heart as the Gymnasium faces.

Autoreset is SB3's same-step kind: where an episode ends, the observation returned is already the next one's first, and
the one that ended it is in ``infos[i]["terminal_observation"]``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Unpack

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from neuralsim.envs.imagined.env import ImaginedEnvSettings, ImaginedSession
from neuralsim.pretrained.world import World


class ImaginedVecEnv(VecEnv):
    """``num_envs`` dreams on one batched model: ``PPO("MlpPolicy", ImaginedVecEnv("pusht", num_envs=256,
    observation="features"))``.

    Arguments as ImaginedEnv's. Slots are rows of one Imagination, not environments of their own: ``get_attr`` gives
    what is true of all of them, ``set_attr`` sets for all or raises, and ``env_method`` knows only ``render``.
    """

    def __init__(
        self,
        world: str | os.PathLike[str] | World = "pusht",
        num_envs: int = 1,
        **settings: Unpack[ImaginedEnvSettings],
    ) -> None:
        self.face = ImaginedSession.open(num_envs, world, **settings)
        self.imagination = self.face.imagination
        self.render_mode = self.face.render_mode  # before super().__init__, which asks for it
        self._actions: np.ndarray | None = None
        super().__init__(num_envs, self.face.observation_space, self.face.action_space)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Slot i gets ``seed + i`` at the next reset; None: fresh seeds, without touching numpy's global state."""
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        return super().seed(seed)

    def reset(self) -> np.ndarray:
        """Begin all dreams, with the seeds of ``seed`` and the options of ``set_options`` if there are any."""
        with self.imagination.all_or_nothing():
            groups = {id(o): [j for j, p in enumerate(self._options) if p is o] for o in self._options if o}
            if len(groups) == 1 and len(next(iter(groups.values()))) == self.num_envs:
                self.imagination.reset(None, self._seeds, self._options[0])
            else:
                self.imagination.reset(None, self._seeds)
                for slots in groups.values():
                    mask = np.isin(np.arange(self.num_envs), slots)
                    self.imagination.reset(mask, self._seeds, self._options[slots[0]])
            observation = self.face.observe()
        self._reset_seeds()
        self._reset_options()
        self._note_beginnings(range(self.num_envs))
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Keep ``actions`` ``(num_envs, a)``, or ``(num_envs,)`` of a Discrete, for :meth:`step_wait`, which does the work."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """See VecEnv."""
        if self._actions is None:
            raise RuntimeError("step_wait without step_async: call step(actions), or step_async(actions) first")
        actions, self._actions = self._actions, None
        with self.imagination.all_or_nothing():
            transition = self.face.play(self.face.spec.from_space(actions))
            extra = self.face.played(transition)
            observation = self.face.observe()
            done = transition.terminated | transition.truncated
            last = observation
            if done.any():
                self.imagination.reset(done)
                observation = self.face.observe()
        infos: list[dict[str, Any]] = [{"uncertainty": float(u)} for u in transition.uncertainty]
        for name, value in extra.items():
            for i, info in enumerate(infos):
                info[name] = int(value[i]) if name == "played" else value[i, : transition.played[i]]
        finished = np.flatnonzero(done).tolist()
        for i in finished:
            infos[i]["terminal_observation"] = last[i].copy()
            infos[i]["TimeLimit.truncated"] = bool(transition.truncated[i] and not transition.terminated[i])
            infos[i]["truncated_by"] = transition.truncated_by[i]
        self._note_beginnings(finished)
        return observation, transition.reward, done, infos

    def _note_beginnings(self, slots: Iterable[int]) -> None:
        """Fill ``reset_infos`` of ``slots`` as ImaginedEnv's reset would."""
        slots = list(slots)
        if not slots:
            return
        beginnings, uncertainty = self.face.beginnings(), self.imagination.uncertainty()
        for i in slots:
            info: dict[str, Any] = {"uncertainty": float(uncertainty[i]), "start": int(beginnings["start"][i])}
            if info["start"] >= 0 and "state" in beginnings:
                info["state"] = beginnings["state"][i]
            self.reset_infos[i] = info

    def close(self) -> None:
        """Nothing to close: no processes, no windows."""

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The present frames, one per slot."""
        return list(self.imagination.frames()) if self.render_mode == "rgb_array" else [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of this VecEnv, once per slot asked for: it is true of each."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set for all slots; a ValueError for some of them only, for they share one model."""
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(
                f"set_attr {attr_name!r}: slots share one Imagination and cannot differ; set it for all of them"
            )
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """``render`` gives each slot's frame; there is no environment per slot to have other methods."""
        if method_name != "render" or method_args or method_kwargs:
            raise AttributeError(
                f"env_method {method_name!r}: slots are rows of one Imagination, not environments; "
                "only 'render' (without arguments) can be asked of one. See .imagination for the rest"
            )
        images = self.get_images()
        return [images[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Never: a slot is no environment that could be wrapped."""
        return [False] * len(list(self._get_indices(indices)))
