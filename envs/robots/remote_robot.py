"""RemoteRobot: a robot at the other end of a websocket, behind the same verbs as one in this process."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from neuralsim.envs.pusht.robot_server import PING_EVERY, PING_PATIENCE, PROTOCOL
from neuralsim.envs.robots.faults import Faults
from neuralsim.envs.robots.robot import ReadyRobot, RobotLost, StaleFrame
from neuralsim.envs.robots.wire import LARGEST, pack, unpack
from neuralsim.runtime.robot_extra import robot_extra

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection


class RemoteRobot(ReadyRobot):
    """The robot at ``address``, e.g. ``ws://127.0.0.1:5555``, which speaks as ``robot_sim`` does. See Robot.

    A thread listens all the time and keeps the newest frame alone: what comes twice, late or out of order never takes time back.
    ``get_observation`` gives that frame at once, and raises StaleFrame where it is older than ``stale_after`` seconds by the
    robot's own clock. Whatever is not answered within ``timeout`` seconds ends the link: RobotLost. ``connect`` may then be called again.
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
        """What the newest frame told of the robot: actions ``waiting``, ``refused`` for too many waited, and ticks that were ``late``."""
        self._welcome: dict[str, Any] | None = None
        self._link: ClientConnection | None = None
        self._listener: threading.Thread | None = None
        self._news = threading.Condition()
        self._numbers = itertools.count()
        self._forget()

    @property
    def observation_features(self) -> dict[str, type | tuple]:
        """See Robot. A robot that was never connected is asked for a moment."""
        told = self._told()["observation_features"]
        return {name: float if kind == "float" else tuple(kind) for name, kind in told.items()}

    @property
    def action_features(self) -> dict[str, type]:
        """See Robot. A robot that was never connected is asked for a moment."""
        return dict.fromkeys(self._told()["action_features"], float)

    @property
    def rate_hz(self) -> float:
        """Control periods a second. A robot that was never connected is asked for a moment."""
        return float(self._told()["rate_hz"])

    @property
    def pace(self) -> str:
        """real, or step: it waits for its driver. A robot that was never connected is asked for a moment."""
        return str(self._told()["pace"])

    @property
    def is_connected(self) -> bool:
        """See Robot."""
        return self._link is not None and self._lost is None

    def connect(self, calibrate: bool = True) -> None:
        """See Robot; a RobotLost says why there is none at the address."""
        with robot_extra("a remote robot"):
            from websockets.exceptions import ConnectionClosed, WebSocketException
            from websockets.sync.client import connect
        if self.is_connected:
            raise ValueError(f"{self.address}: connected already; disconnect first")
        self.disconnect()
        self._forget()
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
                ping_timeout=PING_PATIENCE,
            )
            welcome = _message_of(link.recv(self.timeout))
            if welcome.get("type") != "welcome" or welcome.get("protocol") != PROTOCOL:
                raise ValueError(f"something else speaks there, or another version: {str(welcome)[:80]}")
        except (OSError, ValueError, TypeError, WebSocketException) as error:
            if link is not None:
                link.close()
            why = _reason(error) if isinstance(error, ConnectionClosed) else str(error) or "no answer"
            raise RobotLost(
                f"no robot at {self.address}: {why}. 'neuralsim robot-sim --port 5555' starts one"
            ) from error
        self._welcome, self._link = welcome, link
        self._note_clock(welcome)
        self._listener = threading.Thread(target=self._listen, args=(link,), name=f"robot {self.address}", daemon=True)
        self._listener.start()

    def disconnect(self) -> None:
        """See Robot; harmless where it is not connected."""
        if self._link is not None:
            self._link.close()
        if self._listener is not None:
            self._listener.join(self.timeout)
        self._link = self._listener = None

    def get_observation(self) -> dict[str, Any]:
        """See Robot: the newest frame; the first one is waited for."""
        with self._news:
            self._check_link()
            self._news.wait_for(lambda: self._newest is not None or self._lost is not None, self.timeout)
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
        """See Robot. A ValueError says what the robot has against it."""
        try:
            values = {str(name): float(value) for name, value in action.items()}
        except (TypeError, ValueError) as error:
            raise ValueError(f"action: expected numbers by name, got {action!r}") from error
        return dict(self._ask({"type": "action", "action": values})["sent"])

    def reset(self, seed: int | None = None, state: np.ndarray | None = None) -> None:
        """See ResettableRobot; frames from before are not seen after it."""
        told = None if state is None else np.asarray(state, np.float64)
        self._ask({"type": "reset", "seed": None if seed is None else int(seed), "state": told})

    def inject(self, faults: Faults) -> None:
        """From now on its frames meet these faults; for evaluation."""
        self._ask({"type": "faults", "faults": asdict(faults)})

    # -- the link

    def _forget(self) -> None:
        """As before anything was heard."""
        self._newest: dict[str, Any] | None = None
        self._answers: dict[int, dict[str, Any]] = {}
        self._lost: str | None = None
        self._least = 0
        self._behind = math.inf

    def _listen(self, link: ClientConnection) -> None:
        """Take what comes until the link ends."""
        from websockets.exceptions import ConnectionClosed

        try:
            while True:
                message = _message_of(link.recv())
                with self._news:
                    self._hear(message)
                    self._news.notify_all()
        except ConnectionClosed as error:
            why = _reason(error)
        except (ValueError, KeyError, TypeError) as error:
            why = f"it sent what cannot be read: {error!r}"
        with self._news:
            if self._lost is None:
                self._lost = why
            self._news.notify_all()
        link.close()

    def _hear(self, message: dict[str, Any]) -> None:
        if message["type"] != "frame":
            self._note_clock(message)
            if message["type"] == "reset":
                self._least = int(message["sequence"])
                if self._newest is not None and self._newest["sequence"] < self._least:
                    self._newest = None
            if message.get("id") is not None:
                self._answers[message["id"]] = message
            return
        newest = self._least - 1 if self._newest is None else self._newest["sequence"]
        if message["sequence"] <= newest:
            self.discarded += 1
            return
        float(message["observation"]["timestamp"])  # or it cannot be read, and nobody is to find out later
        self._newest = message
        self.telemetry = {name: message[name] for name in ("waiting", "refused", "late")}

    def _note_clock(self, message: Mapping[str, Any]) -> None:
        """How far the robot's clock is behind ours, at most: by the answer that took least to come."""
        if "time" in message:
            self._behind = min(self._behind, time.monotonic() - float(message["time"]))

    def _age(self, frame: Mapping[str, Any]) -> float:
        """Seconds since a frame was taken; 0 where the robot waits for its driver, and no time passes."""
        if self.pace == "step":
            return 0.0
        return time.monotonic() - self._behind - float(frame["observation"]["timestamp"])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Its answer to ``request``."""
        from websockets.exceptions import ConnectionClosed

        number = next(self._numbers)
        with self._news:
            self._check_link()
            assert self._link is not None
            link = self._link
        try:
            link.send(pack({**request, "id": number}))
        except ConnectionClosed as error:
            raise RobotLost(f"{self.address}: the robot is lost: {_reason(error)}") from error
        with self._news:
            self._news.wait_for(lambda: number in self._answers or self._lost is not None, self.timeout)
            answer = self._answers.pop(number, None)
            if answer is None and self._lost is None:
                self._lost = f"no answer within {self.timeout:g} s"
        if answer is None:
            link.close()  # so that it rests: nobody knows whether it has heard
            raise RobotLost(f"{self.address}: the robot is lost: {self._lost}")
        if answer["type"] == "error":
            raise ValueError(f"{self.address}: {answer['message']}")
        return answer

    def _check_link(self) -> None:
        if self._link is None:
            raise RobotLost(f"{self.address}: not connected; call connect() first")
        if self._lost is not None:
            raise RobotLost(f"{self.address}: the robot is lost: {self._lost}; connect() may find it again")

    def _told(self) -> dict[str, Any]:
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
    """Why a link was closed, in words."""
    told = error.rcvd.reason if error.rcvd is not None else ""
    return told or "the link was closed"
