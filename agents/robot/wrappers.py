"""Robot wrappers: TimeoutRobot gives up calls that hang, DryRunRobot never moves."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuralsim.agents.robot.emergency_stop import StopButton
from neuralsim.envs.robots.robot import ResettableRobot, Robot, RobotLost, physical_action, read_observation
from neuralsim.spec import WorldSpec

RESET_SECONDS, DISCONNECT_SECONDS = 10.0, 2.0
"""Least time that these calls may take."""
POLL_SECONDS, GRACE_SECONDS = 0.05, 0.2
"""Interval at which a waiting call looks at the stop button, and the time that it still has once that was pressed."""


class _Wrapper:
    """Robot with the name and the features of ``robot``."""

    def __init__(self, robot: Robot) -> None:
        self.robot, self.name = robot, robot.name

    @property
    def observation_features(self) -> dict[str, type | tuple]:
        return self.robot.observation_features

    @property
    def action_features(self) -> dict[str, type]:
        return self.robot.action_features


@dataclass(eq=False)
class _Call:
    """One call of a driver, and its outcome once it is ``done``."""

    work: Callable[[], Any]
    done: threading.Event
    result: Any = None
    error: BaseException | None = None


class _CallThread:
    """Thread that makes one call of a driver after the other; it ends when it is closed, after the call under way."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="neuralsim-robot", daemon=True).start()

    def start(self, work: Callable[[], Any]) -> _Call:
        call = _Call(work, threading.Event())
        self._calls.put(call)
        return call

    def close(self) -> None:
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call.result = call.work()
            except BaseException as error:  # SystemExit in a driver must not end this thread unnoticed
                call.error = error
            call.done.set()


class TimeoutRobot(_Wrapper):
    """``robot``, called from a thread of its own. A call that takes too long raises RobotLost, and so does every later one.

    ``send_rest`` and ``disconnect`` still work then: they run in another thread, beside the call that hangs. ``connect`` may
    take as long as it needs: some robots ask for a hand.

    Args:
        robot: robot to call.
        timeout: seconds that a call may take.
        stop: button that also ends a call under way; a call that has not returned shortly after is given up.
    """

    def __init__(self, robot: Robot, timeout: float, stop: StopButton | None = None) -> None:
        super().__init__(robot)
        self.timeout = timeout
        self._stop = stop
        self._thread: _CallThread | None = None
        self._lost = ""

    @property
    def is_connected(self) -> bool:
        return not self._lost and bool(self.robot.is_connected)

    def connect(self, calibrate: bool = True) -> None:
        self._lost = ""
        self._call("connect", lambda: self.robot.connect(calibrate), None)

    def get_observation(self) -> dict[str, Any]:
        return self._call("get_observation", self.robot.get_observation, self.timeout)

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        return self._call("send_action", lambda: self.robot.send_action(action), self.timeout)

    def send_rest(self, action: dict[str, Any]) -> dict[str, Any]:
        """Send the rest action ``action``, even while another call hangs or the stop button is pressed."""
        return self._call("send_action", lambda: self.robot.send_action(action), self.timeout, last=True)

    def reset(self, seed: int | None = None, state: np.ndarray | None = None) -> None:
        """Put the robot at a start. Raises ValueError for one that cannot be put there."""
        if not isinstance(self.robot, ResettableRobot):
            raise ValueError(f"robot {self.name!r} cannot be put at a start; move it there by hand")  # noqa: TRY004
        resettable = self.robot
        self._call("reset", lambda: resettable.reset(seed, state), max(self.timeout, RESET_SECONDS))

    def disconnect(self) -> None:
        try:
            self._call("disconnect", self.robot.disconnect, max(self.timeout, DISCONNECT_SECONDS), last=True)
        finally:
            self._abandon()

    def _call(self, verb: str, work: Callable[[], Any], seconds: float | None, last: bool = False) -> Any:
        """Return ``work()``; ``last``: also after a call was given up, and whatever the stop button says."""
        if self._lost and not last:
            raise RobotLost(self._lost)
        self._thread = self._thread or _CallThread()
        call = self._thread.start(work)
        finished = False
        try:
            finished = self._wait(call, seconds, None if last else self._stop)
        finally:
            if not finished:  # or ctrl-C came: the next call must not queue behind this one
                self._abandon()
                self._lost = f"robot {self.name!r}: {verb} has not returned" + (
                    "" if seconds is None else f" for {seconds:g} s"
                )
        if not finished:
            if not last and self._stop is not None:
                self._stop.check()
            raise RobotLost(self._lost)
        if call.error is None:
            return call.result
        if isinstance(call.error, Exception):
            raise call.error
        raise RobotLost(f"robot {self.name!r}: {verb} raised {type(call.error).__name__}: {call.error}") from call.error

    def _wait(self, call: _Call, seconds: float | None, stop: StopButton | None) -> bool:
        """Wait for ``call``; True if it ended in time, and not long after ``stop`` was pressed."""
        until = None if seconds is None else time.monotonic() + seconds
        while not call.done.is_set():
            remaining = POLL_SECONDS if until is None else until - time.monotonic()
            if remaining <= 0:
                return False
            if stop is not None and stop.pressed.is_set():
                return call.done.wait(min(remaining, GRACE_SECONDS) if until is not None else GRACE_SECONDS)
            call.done.wait(min(remaining, POLL_SECONDS))
        return True

    def _abandon(self) -> None:
        """Let the thread end after the call under way."""
        if self._thread is not None:
            self._thread.close()
        self._thread = None


class DryRunRobot(_Wrapper):
    """``robot``, observed and never moved: actions are handed to ``show`` and counted, and its ``step`` is that count."""

    def __init__(self, robot: Robot, spec: WorldSpec, show: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(robot)
        self.show = show
        self._rest = physical_action(spec, spec.rest_action())
        self._steps = 0

    @property
    def is_connected(self) -> bool:
        return self.robot.is_connected

    def connect(self, calibrate: bool = True) -> None:
        self.robot.connect(calibrate)

    def get_observation(self) -> dict[str, Any]:
        return {**read_observation(self.robot), "step": self._steps}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Show ``action`` and return a rest: nothing is really sent."""
        self.show(action)
        self._steps += 1
        return dict(self._rest)

    def disconnect(self) -> None:
        self.robot.disconnect()
