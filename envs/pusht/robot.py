"""PushTRobot: the real Push-T as a robot in this process, in lock-step: every action advances it by one control period."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from neuralsim.envs.pusht.env import SUCCESS_COVERAGE, PushTRealEnv
from neuralsim.envs.robots.robot import ReadyRobot, RobotLost, world_action

CAMERA_SIZE = 128
"""Side of the camera's picture in pixels. Resized to a world's 64 its pictures are the world's own frames to one grey level in 255;
at 96, which is no multiple, edges differ by up to 30."""


class PushTRobot(ReadyRobot):
    """Push-T with a camera and one pusher; deterministic.

    Observes ``camera`` uint8 ``(size, size, 3)``, ``pusher_x`` and ``pusher_y`` (workspace units, 0..512), ``timestamp`` (seconds)
    and ``step``. Takes ``right`` and ``down``: the pusher's displacement in units per control period, limited to 24 either way.

    Args:
        camera_size: side of the camera's picture in pixels.
        seed: seed of the first start.
        truth: also observe ``truth``, for evaluation: ``state`` ``(5,)``, ``coverage`` and ``success``, which no policy may see.
    """

    name = "pusht"

    def __init__(self, camera_size: int = CAMERA_SIZE, seed: int = 0, truth: bool = False) -> None:
        if camera_size < 8:
            raise ValueError(f"camera_size: expected at least 8 pixels, got {camera_size}")
        self.camera_size, self.truth = camera_size, truth
        self._env = PushTRealEnv()
        self.spec = self._env.spec_world
        """Spec of the real Push-T, whose actions it takes."""
        self._connected = False
        self._periods = self._step = 0
        self.reset(seed)

    @property
    def observation_features(self) -> dict[str, type | tuple]:
        return {"camera": (self.camera_size, self.camera_size, 3), "pusher_x": float, "pusher_y": float}

    @property
    def action_features(self) -> dict[str, type]:
        return dict.fromkeys(self.spec.action_names, float)

    @property
    def rate_hz(self) -> float:
        """Control periods a second, of its own time."""
        return self.spec.rate_hz

    @property
    def clock(self) -> float:
        """Seconds of its own time."""
        return self._periods / self.rate_hz

    @property
    def is_connected(self) -> bool:
        return self._connected

    def connect(self, calibrate: bool = True) -> None:
        """Connect; the world is where it was."""
        if self._connected:
            raise ValueError("PushTRobot: connected already; disconnect first")
        self._connected = True

    def disconnect(self) -> None:
        """Disconnect; harmless where it is not connected."""
        self._connected = False

    def reset(self, seed: int | None = None, state: np.ndarray | None = None) -> None:
        """Put it where ``PushTRealEnv.reset(seed=seed)`` begins, or at ``state`` ``(5,)``. Time starts again from 0."""
        if seed is not None and state is not None:
            raise ValueError("reset: expected a seed or a state, got both")
        if seed is not None and (not isinstance(seed, int) or seed < 0):
            raise ValueError(f"reset: expected a whole seed of at least 0, got {seed!r}")
        self._env.reset(seed=seed, options=None if state is None else {"state": state})
        self._periods = self._step = 0

    def get_observation(self) -> dict[str, Any]:
        self._check_connected()
        state = self._env.state()
        observation = {
            "camera": self._env.frame(self.camera_size),
            "pusher_x": float(state[0]),
            "pusher_y": float(state[1]),
            "timestamp": self.clock,
            "step": self._step,
        }
        if self.truth:
            coverage = self._env.coverage()
            observation["truth"] = {"state": state, "coverage": coverage, "success": coverage > SUCCESS_COVERAGE}
        return observation

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Carry out one action. Raises ValueError for other names than its own, and for values that are not finite numbers."""
        self._check_connected()
        sent = self.limited(action)
        self._env.advance(self._env.state(), world_action(self.spec, sent))
        self._periods += 1
        self._step += 1
        return sent

    def rest(self) -> None:
        """Let a control period pass without an action."""
        self._check_connected()
        self._env.advance(self._env.state(), self.spec.rest_action())
        self._periods += 1

    def limited(self, action: Mapping[str, Any]) -> dict[str, float]:
        """Return ``action`` with each value clipped to its limit."""
        if set(action) != set(self.spec.action_names):
            raise ValueError(
                f"action: expected {', '.join(self.spec.action_names)}, got {', '.join(map(str, action)) or 'nothing'}"
            )
        sent = {}
        for name, limit in zip(self.spec.action_names, self.spec.action_scale, strict=True):
            try:
                value = float(action[name])
            except (TypeError, ValueError, OverflowError) as error:
                raise ValueError(f"action: {name!r}: expected a number, got {action[name]!r}") from error
            if not math.isfinite(value):
                raise ValueError(f"action: {name!r}: expected a finite number, got {value}")
            sent[name] = min(max(value, -limit), limit)
        return sent

    def _check_connected(self) -> None:
        if not self._connected:
            raise RobotLost("PushTRobot: not connected; call connect() first")
