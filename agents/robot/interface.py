"""RobotInterface: a robot in the terms of a world: frames and actions as its models have them, numbered by the robot's steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from neuralsim.agents.robot.timing import Clock
from neuralsim.agents.robot.trajectory import TimedObservation
from neuralsim.agents.robot.wrappers import TimeoutRobot
from neuralsim.envs.robots.camera import Camera
from neuralsim.envs.robots.robot import (
    Robot,
    StaleFrame,
    check_actions_fit,
    physical_action,
    read_observation,
    read_step,
    read_timestamp,
    send_world_action,
)
from neuralsim.spec import WorldSpec

NO_READINGS = ("timestamp", "step", "truth")
"""Numbers of an observation that are no readings of the robot."""


class RobotInterface:
    """Frames and actions of ``spec`` on ``robot``.

    Args:
        robot: LeRobot's verbs.
        spec: world of the policy.
        clock: clock of the loop.
        camera: one of the robot's; needed where it has several.
        stale: seconds without a newer frame after which StaleFrame is raised; infinity for never. A robot that reports no
            ``timestamp`` must notice that itself.
    """

    def __init__(
        self, robot: Robot, spec: WorldSpec, clock: Clock, camera: Camera | None = None, stale: float = float("inf")
    ) -> None:
        self.robot, self.spec, self.clock, self.stale = robot, spec, clock, stale
        self._camera = camera
        self.begin()

    def connect(self) -> None:
        """Reach the robot. Raises ValueError for one whose actions or cameras are not the world's."""
        robot, spec = self.robot, self.spec
        robot.connect()
        check_actions_fit(robot, spec)
        pictures = {
            n: kind for n, kind in robot.observation_features.items() if isinstance(kind, tuple) and len(kind) == 3
        }
        if self._camera is None and len(pictures) == 1:
            self._camera = Camera(next(iter(pictures)))
        if self._camera is None or self._camera.name not in pictures:
            asked = "" if self._camera is None else f", but none called {self._camera.name!r}"
            raise ValueError(
                f"robot {robot.name!r} has cameras {', '.join(pictures) or '(none)'}{asked}: choose one with --camera"
            )
        self._camera.check(pictures[self._camera.name])

    def begin(self) -> None:
        """Begin an episode: the robot may have been put somewhere else, and its clock and count may have been reset."""
        self._count = 0
        self._newest: float | None = None
        self._received = self.clock.now()

    def observe(self) -> TimedObservation:
        """Return the newest observation."""
        if self._camera is None:
            raise RuntimeError("RobotInterface.observe before connect")
        observation, now = read_observation(self.robot), self.clock.now()
        timestamp, step = read_timestamp(self.robot, observation), read_step(self.robot, observation)
        timestamp = now if timestamp is None else timestamp
        if self._newest is None or timestamp > self._newest:
            self._newest, self._received = timestamp, now
        elif now - self._received > self.stale:
            raise StaleFrame(
                f"robot {self.robot.name!r}: no new frame for {now - self._received:.2f} s: camera or link are lost"
            )
        return TimedObservation(
            step=self._count if step is None else step,
            frame=self._camera.frame(observation, self.spec),
            timestamp=timestamp,
            received=self._received,
            readings=_readings(observation),
            ground_truth=observation.get("truth"),
        )

    def send(self, action: np.ndarray) -> np.ndarray | None:
        """Send ``action`` ``(a,)``; return the one really sent, or None where the robot refused it."""
        sent = send_world_action(self.robot, self.spec, action)
        self._count += sent is not None
        return sent

    def rest(self) -> None:
        """Send the action that does nothing, beside a call that hangs where there is one. Raises RuntimeError where the robot
        refuses it."""
        action = physical_action(self.spec, self.spec.rest_action())
        send = self.robot.send_rest if isinstance(self.robot, TimeoutRobot) else self.robot.send_action
        answer: Any = send(action)
        if isinstance(answer, Mapping) and not answer:
            raise RuntimeError(f"robot {self.robot.name!r} refused it")


def _readings(observation: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among ``observation`` by name."""
    values = {name: value for name, value in observation.items() if name not in NO_READINGS and np.ndim(value) == 0}
    readings = {}
    for name, value in values.items():
        try:
            readings[name] = float(value)
        except (TypeError, ValueError, OverflowError):  # a text or None is no reading
            continue
    return readings
