"""TimeoutRobot: a robot whose every call is answered in time or given up, so that a hanging cable hangs nothing else; and DryRunRobot,
which is watched and never moved."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from neuralsim.envs.robots.robot import ResettableRobot, Robot, RobotLost, physical_action
from neuralsim.spec import WorldSpec


class _Around:
    """What is round ``robot`` has its name, sees what it sees and takes what it takes."""

    def __init__(self, robot: Robot) -> None:
        self.robot, self.name = robot, robot.name

    @property
    def observation_features(self) -> dict[str, type | tuple]:
        """See Robot."""
        return self.robot.observation_features

    @property
    def action_features(self) -> dict[str, type]:
        """See Robot."""
        return self.robot.action_features


class TimeoutRobot(_Around):
    """``robot``, called from one thread of its own. A call that takes longer than ``patience`` seconds raises RobotLost, and so does
    every later one but ``disconnect``, which may try once more. ``connect`` may take as long as it likes: some ask for a hand."""

    def __init__(self, robot: Robot, patience: float) -> None:
        super().__init__(robot)
        self.patience = patience
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]] | None] = queue.SimpleQueue()
        self._lost = ""
        threading.Thread(target=self._run, name="neuralsim-robot", daemon=True).start()

    @property
    def is_connected(self) -> bool:
        """See Robot."""
        return not self._lost and bool(self.robot.is_connected)

    def connect(self, calibrate: bool = True) -> None:
        """See Robot."""
        self._ask("connect", lambda: self.robot.connect(calibrate), None)

    def get_observation(self) -> dict[str, Any]:
        """See Robot."""
        return self._ask("get_observation", self.robot.get_observation, self.patience)

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """See Robot."""
        return self._ask("send_action", lambda: self.robot.send_action(action), self.patience)

    def reset(self, seed: int | None = None, state: np.ndarray | None = None) -> None:
        """See ResettableRobot; a ValueError where the robot is none. For a connected one."""
        if not isinstance(self.robot, ResettableRobot):
            raise ValueError(f"robot {self.name!r}: nobody but you can put it at a start")  # noqa: TRY004
        resettable = self.robot
        self._ask("reset", lambda: resettable.reset(seed, state), max(self.patience, 10.0))

    def disconnect(self) -> None:
        """See Robot."""
        self._lost = ""
        try:
            self._ask("disconnect", self.robot.disconnect, max(self.patience, 2.0))
        finally:
            self._calls.put(None)

    def _ask(self, verb: str, call: Callable[[], Any], seconds: float | None) -> Any:
        if self._lost:
            raise RobotLost(self._lost)
        reply: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._calls.put((call, reply))
        try:
            worked, answer = reply.get(timeout=seconds)
        except queue.Empty:
            self._lost = f"robot {self.name!r}: {verb} has not returned for {seconds:g} s"
            raise RobotLost(self._lost) from None
        if not worked:
            raise answer
        return answer

    def _run(self) -> None:
        while (asked := self._calls.get()) is not None:
            call, reply = asked
            try:
                reply.put((True, call()))
            except Exception as error:
                reply.put((False, error))


class DryRunRobot(_Around):
    """``robot``, watched and never moved: what would be sent is told to ``tell``, and is only counted. Its ``step`` is that count."""

    def __init__(self, robot: Robot, spec: WorldSpec, tell: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(robot)
        self.tell = tell
        self._rest = physical_action(spec, spec.rest_action())
        self._steps = 0

    @property
    def is_connected(self) -> bool:
        """See Robot."""
        return self.robot.is_connected

    def connect(self, calibrate: bool = True) -> None:
        """See Robot."""
        self.robot.connect(calibrate)

    def get_observation(self) -> dict[str, Any]:
        """See Robot."""
        return {**self.robot.get_observation(), "step": self._steps}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Returns a rest: nothing was really sent."""
        self.tell(action)
        self._steps += 1
        return dict(self._rest)

    def disconnect(self) -> None:
        """See Robot."""
        self.robot.disconnect()
