"""RobotEnv: any robot as a Gymnasium environment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from neuralsim.envs.robots.camera import Camera
from neuralsim.envs.robots.robot import (
    MOST_REFUSED,
    ActionRefused,
    ResettableRobot,
    Robot,
    StaleFrame,
    check_actions_fit,
    read_observation,
    read_step,
    read_timestamp,
    send_world_action,
)
from neuralsim.spec import WorldSpec


class RobotEnv(gym.Env[np.ndarray, Any]):
    """Gymnasium environment of a robot, with observations and actions as the world ``spec`` has them.

    Observation: the camera's picture cropped and resized, uint8 ``(h, w, 3)``. Action: ``spec.action_space()``, sent in the
    spec's units. Rewards are 0 and episodes do not end: the caller knows the task. ``info`` has the same keys after ``reset``
    and ``step``: ``action`` ``(a,)`` really sent (the rest action where the robot refused it), ``refused``, ``missed``
    deadlines so far, ``timestamp`` in seconds of the robot's clock, ``step`` (actions carried out), and ``truth`` where the
    robot reports it. For a robot that reports no time or step they are those of this environment.

    ``step`` sends the action and returns the frame of one control period after the last: absolute deadlines, so that lateness
    does not add up. ``reset`` connects a robot that is not connected; it puts a ResettableRobot at a start by seed, or at
    ``options["state"]``; any other stays where it is.

    Args:
        robot: LeRobot's verbs.
        spec: world whose frames and actions are used.
        camera: one of the robot's; the one named ``camera`` by default.
        paced: wait for deadlines. False where the robot is in lock-step, or the caller keeps time.
        stale_steps: steps without a newer frame after which StaleFrame is raised.
        render_mode: None or ``rgb_array``.
        clock: seconds that only go forward.
        sleep: waits for so many seconds of ``clock``.

    Raises:
        StaleFrame: no newer frame came for ``stale_steps`` steps.
        RobotLost: the robot is gone; ``reset`` connects again.
        ActionRefused: the robot refused 10 actions in a row.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self,
        robot: Robot,
        spec: WorldSpec,
        camera: Camera | None = None,
        paced: bool = True,
        stale_steps: int = 3,
        render_mode: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if stale_steps < 1:
            raise ValueError(f"stale_steps: expected at least 1, got {stale_steps}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: expected None or 'rgb_array', got {render_mode!r}")
        self.robot, self.spec_world = robot, spec
        self.camera = Camera() if camera is None else camera
        self.paced, self.stale_steps, self.render_mode = paced, stale_steps, render_mode
        self.observation_space = spaces.Box(0, 255, spec.frame_shape, np.uint8)
        self.action_space = spec.action_space()
        self._clock, self._sleep = clock, sleep
        self._frame: np.ndarray | None = None
        self._deadline = 0.0
        self._newest: float | None = None
        self._unmoved = self._missed = self._refused = self._accepted = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Connect if need be, put the robot at a start if it can be put there, and return its first frame."""
        super().reset(seed=seed)
        unknown = set(options or {}) - {"state"}
        if unknown:
            raise ValueError(f"options: unknown {sorted(unknown)}; RobotEnv.reset takes {{'state': (s,)}}")
        state = (options or {}).get("state")
        if not self.robot.is_connected:
            self.robot.connect()
        self._check_fit()
        if isinstance(self.robot, ResettableRobot):
            drawn = int(self.np_random.integers(2**31)) if seed is None and state is None else seed
            self.robot.reset(None if state is not None else drawn, state)
        elif state is not None:
            raise ValueError(f"options: robot {self.robot.name!r} cannot be put at a state; move it there by hand")
        self._newest = None
        self._unmoved = self._missed = self._refused = self._accepted = 0
        frame, info = self._observe(self.spec_world.rest_action())
        self._deadline = self._clock()
        return frame, info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Send ``action``, wait for the deadline, and return the newest frame."""
        if self._frame is None:
            raise gym.error.ResetNeeded("RobotEnv.step before reset: call env.reset() first")
        sent = send_world_action(self.robot, self.spec_world, self.spec_world.from_space(action))
        self._refused = self._refused + 1 if sent is None else 0
        self._accepted += sent is not None
        if self._refused >= MOST_REFUSED:
            raise ActionRefused(f"robot {self.robot.name!r} refused {self._refused} actions in a row")
        self._wait()
        frame, info = self._observe(self.spec_world.rest_action() if sent is None else sent)
        return frame, 0.0, False, False, info

    def render(self) -> np.ndarray:
        """Return the newest frame, uint8 ``(h, w, 3)``."""
        if self._frame is None:
            raise gym.error.ResetNeeded("RobotEnv.render before reset: call env.reset() first")
        return self._frame.copy()

    def close(self) -> None:
        """Disconnect the robot."""
        self._frame = None
        if self.robot.is_connected:
            self.robot.disconnect()

    def _check_fit(self) -> None:
        """Raise ValueError unless the robot has the world's actions, rate and camera."""
        spec, robot = self.spec_world, self.robot
        cameras = {name: kind for name, kind in robot.observation_features.items() if isinstance(kind, tuple)}
        if self.camera.name not in cameras:
            raise ValueError(
                f"camera {self.camera.name!r}: robot {robot.name!r} has no such camera; it has {', '.join(cameras) or 'none'}"
            )
        self.camera.check(cameras[self.camera.name])
        check_actions_fit(robot, spec)
        rate = getattr(robot, "rate_hz", None)
        if self.paced and rate is not None and not np.isclose(rate, spec.rate_hz):
            raise ValueError(
                f"robot {robot.name!r} does {rate:g} actions a second, but world {spec.name!r} is one of {spec.rate_hz:g}"
            )

    def _wait(self) -> None:
        """Wait until one control period after the last deadline; skip deadlines that have passed already."""
        if not self.paced:
            return
        period = 1 / self.spec_world.rate_hz
        self._deadline += period
        remaining = self._deadline - self._clock()
        if remaining >= 0:
            self._sleep(remaining)
            return
        skipped = int(-remaining // period)
        self._missed += 1 + skipped
        self._deadline += skipped * period

    def _observe(self, sent: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the newest frame, and the info after ``sent`` was sent."""
        observation = read_observation(self.robot)
        timestamp, step = read_timestamp(self.robot, observation), read_step(self.robot, observation)
        if timestamp is not None:
            self._unmoved = self._unmoved + 1 if self._newest is not None and timestamp <= self._newest else 0
            if self._unmoved >= self.stale_steps:
                raise StaleFrame(
                    f"robot {self.robot.name!r}: no newer frame for {self._unmoved} steps; camera or link are lost, or it is "
                    f"stepped faster than its {self.spec_world.rate_hz:g} times a second"
                )
            self._newest = timestamp if self._newest is None else max(timestamp, self._newest)
        self._frame = self.camera.frame(observation, self.spec_world)
        info = {
            "action": np.array(sent),
            "refused": self._refused > 0,
            "missed": self._missed,
            "timestamp": float(self._clock()) if timestamp is None else timestamp,
            "step": self._accepted if step is None else step,
        }
        return self._frame.copy(), info | ({"truth": observation["truth"]} if "truth" in observation else {})
