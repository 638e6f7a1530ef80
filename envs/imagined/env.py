"""A learned world as a Gymnasium environment: every frame is predicted by the world's model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Self

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding

from neuralsim.envs.imagined.config import RENDER_FPS, RENDER_MODES, ImaginedEnvConfig
from neuralsim.envs.imagined.session import ImaginedSession
from neuralsim.envs.imagined.vector_env import ImaginedVectorEnv
from neuralsim.pretrained.world import World
from neuralsim.snapshot import Snapshot


class ImaginedEnv(gym.Env[np.ndarray, np.ndarray]):
    """A learned world to act in, ``gym.make("neuralsim/PushT-v0")``.

    world: a shipped world's name, a folder, a hub id or a World. settings: the fields of ImaginedEnvConfig, over those of
    ``config``. Observation: uint8 ``(h, w, 3)`` or float32 ``(d,)``. Action: float32 ``(a,)`` in [-1, 1] as WorldSpec says, a
    Discrete or MultiDiscrete where it says choices, with ``chunk=k`` k of them. Infos: see ImaginedSession.

    ``reset(options=...)`` takes ``{"start": index}`` or any history, ``{"frames": uint8 (t, h, w, 3), "actions": (t-1, a)}``.
    Reset with seed s, it shows what row i of an ImaginedVectorEnv reset with seed s - i shows, up to rounding.
    """

    metadata = {"render_modes": RENDER_MODES, "render_fps": RENDER_FPS}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self,
        world: str | os.PathLike[str] | World = "pusht",
        config: ImaginedEnvConfig | None = None,
        **settings: Any,
    ) -> None:
        self._attach(ImaginedSession.open(1, world, ImaginedEnvConfig.from_keywords(config, settings)))

    @classmethod
    def from_session(cls, session: ImaginedSession) -> Self:
        """Return an environment on a session of one row."""
        if session.num_envs != 1:
            raise ValueError(f"ImaginedEnv: expected a session of one row, got one of {session.num_envs}")
        env = cls.__new__(cls)
        env._attach(session)
        return env

    def _attach(self, session: ImaginedSession) -> None:
        self.session = session
        self.imagination = session.imagination
        self.render_mode = session.config.render_mode
        self.observation_space = session.observation_space
        self.action_space = session.action_space
        self.metadata = session.metadata

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; the seed settles the start and all noise to come."""
        if seed is not None:
            seeding.np_random(seed)  # raises for a bad seed before anything has changed
        self.imagination.reset(seeds=None if seed is None else [seed], options=options)
        super().reset(seed=seed)
        return self.session.observe()[0], self.session.row_info(self.session.infos(), 0)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Predict what ``action`` leads to."""
        transition = self.session.advance(self.session.check_action(action))
        info = self.session.row_info(self.session.infos(transition), 0)
        reward, terminated, truncated = transition.reward[0], transition.terminated[0], transition.truncated[0]
        return self.session.observe()[0], float(reward), bool(terminated), bool(truncated), info

    def render(self) -> np.ndarray | None:
        """Return the current frame, uint8 ``(h, w, 3)``; None without a render mode."""
        frames = self.session.render()
        return None if frames is None else frames[0]

    def snapshot(self) -> Snapshot:
        """Return the episode's state as a value; see Imagination."""
        return self.imagination.snapshot()

    def restore(self, snap: Snapshot) -> None:
        """Go back to ``snap``; the same actions then give the same frames to the bit."""
        self.imagination.restore(snap)

    def fork(self, n: int) -> ImaginedVectorEnv:
        """Return n copies of this episode as a vector environment, ready to step; see Imagination.fork."""
        return ImaginedVectorEnv.from_session(self.session.fork(n))
