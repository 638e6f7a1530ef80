"""RemoteRobot: a robot at the other end of a websocket, with the same verbs as one in this process."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from neuralsim.envs.robots.faults import Faults
from neuralsim.envs.robots.robot import ReadyRobot, RobotLost, StaleFrame
from neuralsim.envs.robots.wire import LARGEST, PING_EVERY, PING_TIMEOUT, PROTOCOL, pack, unpack
from neuralsim.runtime.imports import require_extra

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection


class RemoteRobot(ReadyRobot):
    """Client of a robot server such as ``neuralsim robot-sim``.

    A thread listens all the time and keeps the newest frame alone: frames that arrive twice, late or out of order never move
    time backwards. ``get_observation`` returns that frame at once.

    Args:
        address: for example ``ws://127.0.0.1:5555``.
        timeout: seconds for an answer; without one the link ends with RobotLost, and ``connect`` may be called again.
        stale_after: age of the newest frame, in seconds by the robot's own clock, from which StaleFrame is raised.
    """

    name = "remote"

    def __init__(self, address: str = "ws://127.0.0.1:5555", timeout: float = 2.0, stale_after: float = 0.5) -> None:
        self.address = address if "://" in address else f"ws://{address}"
        if not self.address.startswith(("ws://", "wss://")):
            raise ValueError(f"address: expected ws://host:port, got {address!r}")
        if not timeout > 0 or not stale_after > 0:
            raise ValueError(f"timeout and stale_after: expected more than 0 seconds, got {timeout} and {stale_after}")
        self.timeout, self.stale_after = timeout, stale_after
        self.discarded = 0
        """Frames that came twice or after a newer one."""
        self.telemetry: dict[str, int] = {}
        """Counts sent with the newest frame: actions ``waiting``, actions ``refused`` as too many waited, ticks that were ``late``."""
        self._welcome: dict[str, Any] | None = None
        self._link: ClientConnection | None = None
        self._listener: threading.Thread | None = None
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._clear()

    @property
    def observation_features(self) -> dict[str, type | tuple]:
        features = self._description()["observation_features"]
        return {name: float if kind == "float" else tuple(kind) for name, kind in features.items()}

    @property
    def action_features(self) -> dict[str, type]:
        return dict.fromkeys(self._description()["action_features"], float)

    @property
    def rate_hz(self) -> float:
        """Control periods a second."""
        return float(self._description()["rate_hz"])

    @property
    def pace(self) -> str:
        """Pace of the robot: real, or step where it waits for its driver."""
        return str(self._description()["pace"])

    @property
    def is_connected(self) -> bool:
        return self._link is not None and self._lost is None

    def connect(self, calibrate: bool = True) -> None:
        """Open the link. Raises RobotLost where no robot answers at the address."""
        with require_extra("a remote robot", "robot"):
            from websockets.exceptions import ConnectionClosed, WebSocketException
            from websockets.sync.client import connect
        if self.is_connected:
            raise ValueError(f"{self.address}: connected already; disconnect first")
        self.disconnect()
        self._clear()
        link = None
        try:
            link = connect(
                self.address,
                compression=None,
                proxy=None,
                open_timeout=self.timeout,
                close_timeout=1.0,
                max_size=LARGEST,
                ping_interval=PING_EVERY,
                ping_timeout=PING_TIMEOUT,
            )
            welcome = _message_of(link.recv(self.timeout))
            if welcome.get("type") != "welcome" or welcome.get("protocol") != PROTOCOL:
                raise ValueError(f"another program answers there, or another version: {str(welcome)[:80]}")
            self._note_clock(welcome)
        except (OSError, ValueError, TypeError, WebSocketException) as error:
            if link is not None:
                link.close()
            reason = _reason(error) if isinstance(error, ConnectionClosed) else str(error) or "no answer"
            raise RobotLost(
                f"no robot at {self.address}: {reason}. 'neuralsim robot-sim --port 5555' starts one"
            ) from error
        self._welcome, self._link = welcome, link
        self._listener = threading.Thread(target=self._listen, args=(link,), name=f"robot {self.address}", daemon=True)
        self._listener.start()

    def disconnect(self) -> None:
        """Close the link; harmless where there is none."""
        if self._link is not None:
            self._link.close()
        if self._listener is not None:
            self._listener.join(self.timeout)
        self._link = self._listener = None

    def get_observation(self) -> dict[str, Any]:
        """Return the newest frame; wait for the first one."""
        with self._changed:
            self._check_link()
            self._changed.wait_for(lambda: self._newest is not None or self._lost is not None, self.timeout)
            self._check_link()
            if self._newest is None:
                raise StaleFrame(f"{self.address}: no frame within {self.timeout:g} s; camera or link are lost")
            age = self._age(self._newest)
            if age > self.stale_after:
                raise StaleFrame(
                    f"{self.address}: the newest frame is {age:.2f} s old, more than {self.stale_after:g} s; camera or link "
                    "are lost or too slow"
                )
            return dict(self._newest["observation"])

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Send one action. Raises ValueError where the robot cannot carry it out."""
        try:
            values = {str(name): float(value) for name, value in action.items()}
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"action: expected numbers by name, got {action!r}") from error
        sent = self._request({"type": "action", "action": values}).get("sent")
        if not isinstance(sent, dict):
            raise ValueError(f"{self.address}: expected the action that was sent, got {type(sent).__name__}")  # noqa: TRY004
        return sent

    def reset(self, seed: int | None = None, state: np.ndarray | None = None) -> None:
        """Put the robot at a start; no frame from before is returned afterwards."""
        values = None if state is None else np.asarray(state, np.float64)
        self._request({"type": "reset", "seed": None if seed is None else int(seed), "state": values})

    def inject(self, faults: Faults) -> None:
        """Apply these faults to frames from now on; for evaluation."""
        self._request({"type": "faults", "faults": asdict(faults)})

    # -- the link

    def _clear(self) -> None:
        """Forget all that was received."""
        self._newest: dict[str, Any] | None = None
        self._answers: dict[int, dict[str, Any]] = {}
        self._lost: str | None = None
        self._first_sequence = 0
        self._clock_offset = math.inf

    def _listen(self, link: ClientConnection) -> None:
        """Receive messages until the link ends."""
        from websockets.exceptions import ConnectionClosed

        try:
            while True:
                message = _message_of(link.recv())
                with self._changed:
                    self._receive(message)
                    self._changed.notify_all()
        except ConnectionClosed as error:
            reason = _reason(error)
        except Exception as error:  # no message may end this thread without an end of the link
            reason = f"it sent what cannot be read: {error!r}"
        with self._changed:
            if self._lost is None:
                self._lost = reason
            self._changed.notify_all()
        link.close()

    def _receive(self, message: dict[str, Any]) -> None:
        if message["type"] != "frame":
            self._note_clock(message)
            if message["type"] == "reset":
                self._first_sequence = int(message["sequence"])
                if self._newest is not None and self._newest["sequence"] < self._first_sequence:
                    self._newest = None
            if message.get("id") is not None:
                self._answers[message["id"]] = message
            return
        newest = self._first_sequence - 1 if self._newest is None else self._newest["sequence"]
        if message["sequence"] <= newest:
            self.discarded += 1
            return
        timestamp = float(message["observation"]["timestamp"])
        if not math.isfinite(timestamp):  # its age would be unknown, so that it could never be stale
            raise ValueError(f"timestamp: expected finite seconds, got {timestamp}")
        self._newest = message
        self.telemetry = {name: message[name] for name in ("waiting", "refused", "late")}

    def _note_clock(self, message: Mapping[str, Any]) -> None:
        """Bound how far the robot's clock is behind ours, by the answer that took least time."""
        if "time" in message:
            robot_time = float(message["time"])
            if not math.isfinite(robot_time):
                raise ValueError(f"time: expected finite seconds, got {robot_time}")
            self._clock_offset = min(self._clock_offset, time.monotonic() - robot_time)

    def _age(self, frame: Mapping[str, Any]) -> float:
        """Age of a frame in seconds; 0 where the robot waits for its driver, and no time passes."""
        if self.pace == "step":
            return 0.0
        return time.monotonic() - self._clock_offset - float(frame["observation"]["timestamp"])

    def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send ``request`` and return the robot's answer."""
        from websockets.exceptions import ConnectionClosed

        number = next(self._numbers)
        with self._changed:
            self._check_link()
            assert self._link is not None
            link = self._link
        try:
            link.send(pack({**request, "id": number}))
        except ConnectionClosed as error:
            raise RobotLost(f"{self.address}: the robot is lost: {_reason(error)}") from error
        with self._changed:
            self._changed.wait_for(lambda: number in self._answers or self._lost is not None, self.timeout)
            answer = self._answers.pop(number, None)
            if answer is None and self._lost is None:
                self._lost = f"no answer within {self.timeout:g} s"
        if answer is None:
            link.close()  # so that it rests: the request may or may not have reached it
            raise RobotLost(f"{self.address}: the robot is lost: {self._lost}")
        if answer["type"] == "error":
            raise ValueError(f"{self.address}: {answer['message']}")
        return answer

    def _check_link(self) -> None:
        if self._link is None:
            raise RobotLost(f"{self.address}: not connected; call connect() first")
        if self._lost is not None:
            raise RobotLost(f"{self.address}: the robot is lost: {self._lost}; connect() may find it again")

    def _description(self) -> dict[str, Any]:
        """Return the robot's welcome; connect for a moment to a robot that was never connected."""
        if self._welcome is None:
            self.connect()
            self.disconnect()
        assert self._welcome is not None
        return self._welcome


def _message_of(data: str | bytes) -> dict[str, Any]:
    if isinstance(data, str):
        raise TypeError(f"expected bytes (msgpack), got the text {data[:80]!r}")
    message = unpack(data)
    if not isinstance(message, dict):
        raise TypeError(f"expected a map, got {type(message).__name__}")
    return message


def _reason(error: Any) -> str:
    """Reason for which a link was closed, in words."""
    text = error.rcvd.reason if error.rcvd is not None else ""
    return text or "the link was closed"
