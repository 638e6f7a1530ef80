"""RealEnv: base class of real environments behind NeuralSim's spaces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from neuralsim.spec import WorldSpec


class RealEnv(gym.Env[np.ndarray, np.ndarray], ABC):
    """A real environment that shows its state and starts from any: ``reset(options={"state": (s,)})``.

    Observation: the frame, uint8 ``(size, size, 3)``, or with ``observation="state"`` the state, float32 ``(s,)`` within
    ``states``. Action: float32 ``(a,)`` in [-1, 1]. Other arguments than these are a ValueError.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self, spec: WorldSpec, states: spaces.Box, observation: Literal["pixels", "state"], render_mode: str | None
    ) -> None:
        check_views(observation, render_mode)
        self.spec_world = spec
        self.observation_kind = observation
        self.render_mode = render_mode
        self.action_space = spaces.Box(-1.0, 1.0, (spec.action_size,), np.float32)
        self.observation_space = states if observation == "state" else spaces.Box(0, 255, spec.frame_shape, np.uint8)

    def render(self) -> np.ndarray:
        """Return the current frame, uint8 ``(size, size, 3)``."""
        return self.frame(self.spec_world.height)

    @abstractmethod
    def state(self) -> np.ndarray:
        """Return the true state, float64 ``(s,)``."""

    @abstractmethod
    def set_state(self, state: object) -> None:
        """Put everything at ``state``, at rest; a ValueError for an invalid one."""

    @abstractmethod
    def frame(self, size: int) -> np.ndarray:
        """Draw the scene, uint8 ``(size, size, 3)``."""

    def _observe(self) -> np.ndarray:
        return self.render() if self.observation_kind == "pixels" else self.state().astype(np.float32)

    def _checked(self, action: np.ndarray) -> np.ndarray:
        """Check ``action``; returns it as float32 ``(a,)`` or raises a ValueError that names its fault."""
        action = self.spec_world.check_actions(action)
        if action.ndim != 1:
            raise ValueError(f"action: expected shape ({self.spec_world.action_size},), got {action.shape}")
        return action


def check_views(observation: str, render_mode: str | None) -> None:
    """Raise ValueError unless ``observation`` is "pixels" or "state" and ``render_mode`` "rgb_array" or None."""
    if observation not in ("pixels", "state"):
        raise ValueError(f"observation: expected 'pixels' or 'state', got {observation!r}")
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode: expected None or 'rgb_array', got {render_mode!r}")
