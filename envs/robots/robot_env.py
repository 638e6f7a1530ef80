"""RobotEnv: any robot behind Gymnasium."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from neuralsim.envs.robots.camera import Camera
from neuralsim.envs.robots.robot import (
    ResettableRobot,
    Robot,
    StaleFrame,
    check_actions_fit,
    physical_action,
    world_action,
)
from neuralsim.spec import WorldSpec


class RobotEnv(gym.Env[np.ndarray, Any]):
    """``robot``, seen and moved as the world ``spec`` is.

    Observation: the camera's picture cropped and resized, uint8 ``(h, w, 3)``. Action: ``spec.action_space()``, sent in the spec's
    units. No rewards and no ends: who drives knows what is wished for. ``info``: ``action`` ``(a,)`` that was really sent, the rest
    action where the robot refused (``refused``); ``missed`` deadlines so far; and what the robot tells of ``timestamp``, ``step`` and
    ``truth``.

    ``step`` sends the action, and returns what is seen one control period after it was looked before: absolute deadlines by
    ``clock`` and ``sleep`` (seconds), so that lateness does not add up. With ``paced`` False nothing is waited for: the robot is in
    lock-step, or the caller keeps time. A StaleFrame says that no newer frame came for ``stale_steps`` steps, a RobotLost that the
    robot is gone; ``reset`` then connects again. ``reset`` puts a ResettableRobot at a start by seed, or at ``options["state"]``;
    any other stays where it is.
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
        self._due = 0.0
        self._newest: float | None = None
        self._unmoved = self._missed = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Connect if need be, begin anew if the robot can, and look."""
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
        self._newest, self._unmoved, self._missed = None, 0, 0
        frame, told = self._look()
        self._due = self._clock()
        return frame, told

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Send ``action``, wait for the deadline, and look."""
        if self._frame is None:
            raise gym.error.ResetNeeded("RobotEnv.step before reset: call env.reset() first")
        sent = self.robot.send_action(physical_action(self.spec_world, self.spec_world.from_space(action)))
        done = world_action(self.spec_world, sent) if sent else self.spec_world.rest_action()
        self._wait()
        frame, told = self._look()
        return frame, 0.0, False, False, {"action": done, "refused": not sent, "missed": self._missed, **told}

    def render(self) -> np.ndarray:
        """The newest frame, uint8 ``(h, w, 3)``."""
        if self._frame is None:
            raise gym.error.ResetNeeded("RobotEnv.render before reset: call env.reset() first")
        return self._frame.copy()

    def close(self) -> None:
        """Let go of the robot."""
        self._frame = None
        if self.robot.is_connected:
            self.robot.disconnect()

    def _check_fit(self) -> None:
        """A ValueError unless the robot has what the world wants of it."""
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
        """Until one control period after the deadline before; where that is over, on with the next that is still to come."""
        if not self.paced:
            return
        period = 1 / self.spec_world.rate_hz
        self._due += period
        left = self._due - self._clock()
        if left >= 0:
            self._sleep(left)
            return
        skipped = int(-left // period)
        self._missed += 1 + skipped
        self._due += skipped * period

    def _look(self) -> tuple[np.ndarray, dict[str, Any]]:
        observation = self.robot.get_observation()
        taken = observation.get("timestamp")
        if taken is not None:
            self._unmoved = self._unmoved + 1 if self._newest is not None and taken <= self._newest else 0
            if self._unmoved >= self.stale_steps:
                raise StaleFrame(
                    f"robot {self.robot.name!r}: no newer frame for {self._unmoved} steps; camera or link are lost, or it is "
                    f"stepped faster than its {self.spec_world.rate_hz:g} times a second"
                )
            self._newest = taken if self._newest is None else max(taken, self._newest)
        self._frame = self.camera.frame(observation, self.spec_world)
        return self._frame.copy(), {
            name: observation[name] for name in ("timestamp", "step", "truth") if name in observation
        }
