"""Body: a robot in the terms of a world: frames and actions as its models have them, numbered by the robot's steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuralsim.agents.robot.timing import Clock
from neuralsim.agents.robot.trajectory import TimedObservation
from neuralsim.envs.robots.camera import Camera
from neuralsim.envs.robots.robot import Robot, StaleFrame, check_actions_fit, physical_action, world_action
from neuralsim.spec import WorldSpec

UNSEEN = ("timestamp", "step", "truth")


class RobotInterface:
    """``robot`` as ``spec`` has it. ``stale``: seconds without a new frame after which StaleFrame is raised, infinity for never; a
    robot that tells no ``timestamp`` must notice that itself. Where it tells no ``step``, a frame is taken to be of the moment it is
    asked for."""

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
        """Count and wait anew: the robot was put somewhere else."""
        self._count = 0
        self._taken: float | None = None
        self._came = self.clock.now()

    def look(self) -> TimedObservation:
        """The newest frame."""
        if self._camera is None:
            raise RuntimeError("RobotInterface.look before connect")
        observation, now = self.robot.get_observation(), self.clock.now()
        taken = float(observation.get("timestamp", now))
        if taken != self._taken:
            self._taken, self._came = taken, now
        elif now - self._came > self.stale:
            raise StaleFrame(
                f"robot {self.robot.name!r}: no new frame for {now - self._came:.2f} s: camera or link are lost"
            )
        return TimedObservation(
            step=int(observation.get("step", self._count)),
            frame=self._camera.frame(observation, self.spec),
            taken=taken,
            came=self._came,
            place={k: float(v) for k, v in observation.items() if k not in UNSEEN and np.ndim(v) == 0},
            truth=observation.get("truth"),
        )

    def send(self, action: np.ndarray) -> np.ndarray | None:
        """Ask for ``action`` ``(a,)``; what was really sent, or None where the robot took nothing."""
        asked = physical_action(self.spec, action)
        sent: dict[str, Any] = self.robot.send_action(asked)
        if not sent:
            return None
        self._count += 1
        # What came back unchanged is the action itself, not what is left of it after a division.
        return action if all(sent.get(k) == v for k, v in asked.items()) else world_action(self.spec, sent)

    def rest(self) -> None:
        """Ask for what does nothing."""
        self.send(self.spec.rest_action())
