"""A learned world as a Stable-Baselines3 VecEnv: many imagined episodes on one batched model.

Autoreset is SB3's same-step kind: where an episode ends, the observation returned is the next one's first, and the one
that ended it is in ``infos[i]["terminal_observation"]``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Self

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from neuralsim.envs.imagined.config import RENDER_FPS, RENDER_MODES, ImaginedEnvConfig
from neuralsim.envs.imagined.session import ImaginedSession
from neuralsim.pretrained.world import World
from neuralsim.snapshot import Snapshot


class ImaginedVecEnv(VecEnv):
    """``num_envs`` imagined episodes on one batched model: ``PPO("MlpPolicy", ImaginedVecEnv("pusht", num_envs=256,
    observation="features"))``.

    world, config, settings: as ImaginedEnv's; infos too, with SB3's ``TimeLimit.truncated`` and ``terminal_observation`` where an
    episode ends. Rows of one Imagination are no environments of their own: ``get_attr`` gives what is true of all of them,
    ``set_attr`` sets for all or raises, and ``env_method`` knows only ``render``.
    """

    metadata = {"render_modes": RENDER_MODES, "render_fps": RENDER_FPS}  # type: ignore[dict-item]  # noqa: RUF012 (Gymnasium's own form)
    spec: gym.envs.registration.EnvSpec | None = None
    """None: made without a Gymnasium id."""

    def __init__(
        self,
        world: str | os.PathLike[str] | World = "pusht",
        num_envs: int = 1,
        config: ImaginedEnvConfig | None = None,
        **settings: Any,
    ) -> None:
        self._attach(ImaginedSession.open(num_envs, world, ImaginedEnvConfig.from_keywords(config, settings)))

    @classmethod
    def from_session(cls, session: ImaginedSession) -> Self:
        """Return a VecEnv on ``session``."""
        env = cls.__new__(cls)
        env._attach(session)
        return env

    def _attach(self, session: ImaginedSession) -> None:
        self.session = session
        self.imagination = session.imagination
        self.render_mode = session.config.render_mode  # before super().__init__, which asks for it
        self._actions: np.ndarray | None = None
        super().__init__(session.num_envs, session.observation_space, session.action_space)
        self.metadata = session.metadata  # after it, which sets one without a rate

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Give row i ``seed + i`` at the next reset; None: fresh seeds, without touching numpy's global state."""
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        return super().seed(seed)

    def reset(self) -> np.ndarray:
        """Begin an episode in every row, with the seeds of ``seed`` and the options of ``set_options`` if there are any."""
        with self.imagination.all_or_nothing():
            groups = {id(o): [j for j, p in enumerate(self._options) if p is o] for o in self._options if o}
            if len(groups) == 1 and len(next(iter(groups.values()))) == self.num_envs:
                self.imagination.reset(None, self._seeds, self._options[0])
            else:
                self.imagination.reset(None, self._seeds)
                for rows in groups.values():
                    mask = np.isin(np.arange(self.num_envs), rows)
                    self.imagination.reset(mask, self._seeds, self._options[rows[0]])
            observation = self.session.observe()
        self._reset_seeds()
        self._reset_options()
        self._record_resets(range(self.num_envs))
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Keep ``actions`` ``(num_envs, a)``, or ``(num_envs,)`` of a Discrete, for :meth:`step_wait`, which does the work."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step every row with the actions of ``step_async``, and reset the rows that ended."""
        if self._actions is None:
            raise RuntimeError("step_wait without step_async: call step(actions), or step_async(actions) first")
        actions, self._actions = self._actions, None
        checked = self.session.check_actions(actions)
        with self.imagination.all_or_nothing():
            transition = self.session.advance(checked)
            batched = self.session.infos(transition)
            observation = self.session.observe()
            done = transition.terminated | transition.truncated
            last = observation
            if done.any():
                self.imagination.reset(done)
                observation = self.session.observe()
        infos = [self.session.row_info(batched, i) for i in range(self.num_envs)]
        finished = np.flatnonzero(done).tolist()
        for i in finished:
            infos[i]["terminal_observation"] = last[i].copy()
            infos[i]["TimeLimit.truncated"] = bool(transition.truncated[i] and not transition.terminated[i])
        self._record_resets(finished)
        return observation, transition.reward, done, infos

    def _record_resets(self, rows: Iterable[int]) -> None:
        """Fill ``reset_infos`` of ``rows`` as ImaginedEnv's reset would."""
        rows = list(rows)
        if rows:
            infos = self.session.infos()
            for i in rows:
                self.reset_infos[i] = self.session.row_info(infos, i)

    def close(self) -> None:
        """Nothing to close: no processes, no windows."""

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Return the current frames, one per row."""
        frames = self.session.render()
        return [None] * self.num_envs if frames is None else list(frames)

    def snapshot(self) -> Snapshot:
        """Return the state of all rows as a value; see Imagination."""
        return self.imagination.snapshot()

    def restore(self, snap: Snapshot) -> None:
        """Go back to ``snap``; the same actions then give the same frames to the bit."""
        self.imagination.restore(snap)

    def fork(self, n: int) -> ImaginedVecEnv:
        """Return every row n times, row ``i * n + j`` being copy j of row i; see Imagination.fork."""
        return type(self).from_session(self.session.fork(n))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return the attribute of this VecEnv, once per row asked for: it is true of each."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set for all rows; a ValueError for some of them only, for they share one model."""
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(
                f"set_attr {attr_name!r}: rows share one Imagination and cannot differ; set it for all of them"
            )
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Return each row's frame for ``render``; there is no environment per row to have other methods."""
        if method_name != "render" or method_args or method_kwargs:
            raise AttributeError(
                f"env_method {method_name!r}: rows of one Imagination are no environments; "
                "only 'render' (without arguments) can be asked of one. See .imagination for the rest"
            )
        images = self.get_images()
        return [images[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Return False for each row: it is no environment that could be wrapped."""
        return [False] * len(list(self._get_indices(indices)))
