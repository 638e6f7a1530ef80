"""Push-T as a robot in a process of its own, driven over a websocket, with the faults that real robots have.

Messages are maps as in ``wire``, each with a ``type``. A driver sends ``action``, and for evaluation ``reset`` and ``faults``, each
with an ``id``, and is answered with that id; ``time`` is then the robot's clock. Frames come by themselves.

| from   | message                                        | answer                                                          |
|--------|------------------------------------------------|-----------------------------------------------------------------|
| robot  | ``welcome``: protocol, robot, features, rate_hz, pace, time |                                                    |
| robot  | ``frame``: sequence, observation, waiting, refused, late    |                                                    |
| driver | ``action``: id, action                         | ``sent``: id, sent (empty: refused), waiting, time              |
| driver | ``reset``: id, seed or state                   | ``reset``: id, sequence of the first frame thereafter, time     |
| driver | ``faults``: id, faults                         | ``faults``: id, time                                            |

A wrong request is answered by ``error``: id, message. A message that cannot be read ends the connection (1007), as does one that
is too large (1009). There is one driver at a time; another is turned away (1013). When a driver is gone the robot rests.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
import tyro

from neuralsim.envs.pusht.robot import CAMERA_SIZE, PushTRobot
from neuralsim.envs.robots.faults import Faults
from neuralsim.envs.robots.robot import RobotLost
from neuralsim.envs.robots.wire import PING_EVERY, PING_TIMEOUT, PROTOCOL, pack, unpack
from neuralsim.runtime.imports import require_extra

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection

MOST_WAITING = 2
"""Actions that wait to be carried out, at most."""
SILENCE_SECONDS = 0.5
"""Time without a message after which actions that still wait are dropped."""
LARGEST_REQUEST = 64 * 1024
"""Bytes of a driver's message, at most."""
MOST_IN_FLIGHT = 64
"""Frames on their way, at most; a driver that does not read loses the others."""
UNREADABLE, ENGAGED = 1007, 1013
"""Close codes: a message cannot be read; there is a driver already."""


@dataclass(frozen=True)
class RobotSimConfig:
    """Run Push-T as a robot in a process of its own, with the faults of real links and cameras."""

    port: int = 5555
    """Port to listen at; 0 for any free one."""
    host: str = "127.0.0.1"
    """Address to listen at. Any program that reaches it can drive it; by default, those on this machine alone."""
    pace: Literal["real", "step"] = "real"
    """real: a clock of its own; at each tick it carries out the next action that waits, or rests, and takes a frame.
    step: no clock; each action is carried out at once and answered by one frame, for fast evaluation."""
    rate: float = 10.0
    """Ticks a second with --pace real; the world's own 10 by default. Others make its time pass faster or slower."""
    camera_size: int = CAMERA_SIZE
    """Side of the camera's picture in pixels."""
    faults: tyro.conf.OmitArgPrefixes[Faults] = field(default_factory=Faults)
    seed: int = 0
    """Seed of the first start, and of the faults."""
    truth: bool = False
    """Also send the ground-truth state with each frame, for evaluation."""
    until_eof: bool = False
    """End when standard input does, so that it never outlives the program that started it."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: expected 0 to 65535, got {self.port}")
        if not 0 < self.rate <= 1000:
            raise ValueError(f"rate: expected more than 0 and at most 1000 ticks a second, got {self.rate}")
        _check_pace(self.pace, self.faults)


def robot_sim(config: RobotSimConfig, ready: Callable[[str], None]) -> None:
    """Run the robot until it is interrupted; ``ready`` is called with its address once it can be reached."""
    asyncio.run(_Server(config).run(ready))


@contextmanager
def spawn_robot_sim(config: RobotSimConfig | None = None, timeout: float = 60.0) -> Iterator[str]:
    """Run a robot in a process of its own inside the context, and yield its address; at a free port by default."""
    with RobotProcess(RobotSimConfig(port=0) if config is None else config, timeout) as process:
        yield process.address


class RobotProcess:
    """Process with a robot: started on entering, ended on leaving, or when this process ends.

    Raises RobotLost where it does not answer within ``timeout`` seconds, with the text that it printed.
    """

    def __init__(self, config: RobotSimConfig, timeout: float = 60.0) -> None:
        self.config, self.timeout = config, timeout
        self.address = ""
        """Address ``ws://host:port``, once it runs."""
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> RobotProcess:
        with tempfile.TemporaryFile("w+") as errors:  # a pipe that is not read would fill and stop it
            self._start(errors)
        return self

    def _start(self, errors: IO[str]) -> None:
        command = [sys.executable, "-m", "neuralsim.cli", "robot-sim", *_flags(self.config), "--until-eof"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=errors,
            text=True,
            start_new_session=True,  # ctrl-C is for the driver
        )
        alarm = threading.Timer(self.timeout, self._process.kill)
        alarm.start()
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                found = [word for word in line.split() if word.startswith("ws://")]
                if found:
                    self.address = found[0]
                    return
        except BaseException:
            self.kill()
            raise
        finally:
            alarm.cancel()
        self.kill()
        errors.seek(0)
        output = " ".join(errors.read().split()) or f"nothing within {self.timeout:g} s"
        raise RobotLost(f"robot-sim did not start; it printed: {output}")

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Id of the process."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Kill the process at once, as when its plug is pulled."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


class _Server:
    """Robot behind a socket."""

    def __init__(self, config: RobotSimConfig) -> None:
        self.config, self.faults = config, config.faults
        self.robot = PushTRobot(config.camera_size, config.seed, config.truth)
        self.robot.connect()
        self.period = 1 / config.rate
        self.waiting: deque[dict[str, float]] = deque()
        self.driver: ServerConnection | None = None
        self.driver_lock = asyncio.Lock()  # the next driver waits until the one before has wholly gone
        self.started = time.monotonic()
        self.last_message = self.connected_at = 0.0
        self.sequence = self.refused = self.late = 0
        self.shown_picture: np.ndarray | None = None
        self.in_flight: set[asyncio.Task[None]] = set()

    async def run(self, ready: Callable[[str], None]) -> None:
        """Serve until the task is cancelled, or standard input ends where that was asked for."""
        with require_extra("robot-sim", "robot"):
            from websockets.asyncio.server import serve

        host, port = self.config.host, self.config.port
        async with serve(
            self._drive,
            host,
            port,
            compression=None,
            close_timeout=1.0,
            max_size=LARGEST_REQUEST,
            ping_interval=PING_EVERY,
            ping_timeout=PING_TIMEOUT,
        ) as server:
            where, port = next(iter(server.sockets)).getsockname()[:2]
            ready(f"ws://{f'[{where}]' if ':' in where else where}:{port}")
            if self.config.until_eof:
                threading.Thread(target=_at_eof, args=(asyncio.get_running_loop(), server.close), daemon=True).start()
            await server.wait_closed()

    # -- one driver

    async def _drive(self, link: ServerConnection) -> None:
        from websockets.protocol import State

        if self.driver is not None and self.driver.state is State.OPEN:
            await link.close(ENGAGED, "this robot has a driver already")
            return
        self.driver = link
        async with self.driver_lock:
            await self._serve(link)

    async def _serve(self, link: ServerConnection) -> None:
        from websockets.exceptions import ConnectionClosed

        self.shown_picture = None
        self.last_message, self.connected_at = time.monotonic(), self._now()
        ticking = None
        try:
            await link.send(pack(self._welcome()))
            if self.config.pace == "real":
                ticking = asyncio.create_task(self._tick(link))
            else:
                await link.send(self._frame())
            async for message in link:
                self.last_message = time.monotonic()
                try:
                    request = _request_of(message)
                except (ValueError, TypeError) as error:
                    await link.send(pack({"type": "error", "id": None, "message": str(error)}))
                    await link.close(UNREADABLE, "message cannot be read")
                    break
                for answer in self._answers(request):
                    await link.send(answer)
        except ConnectionClosed:
            pass
        finally:
            for task in (ticking, *self.in_flight):
                if task is not None:
                    task.cancel()
            self.waiting.clear()

    def _answers(self, request: dict[str, Any]) -> list[bytes]:
        """Carry out ``request`` and return the answers to it."""
        number, kind = request.get("id"), request.get("type")
        answer: dict[str, Any]
        try:
            if kind == "action":
                answer = {"type": "sent", "sent": self._take(request.get("action"))}
            elif kind == "reset":
                self.robot.reset(request.get("seed"), request.get("state"))
                self.waiting.clear()
                answer = {"type": "reset", "sequence": self.sequence}
            elif kind == "faults":
                faults = _faults_of(request.get("faults"))
                _check_pace(self.config.pace, faults)
                self.faults = faults
                answer = {"type": "faults"}
            else:
                raise ValueError(f"type: expected action, reset or faults, got {str(kind)[:40]!r}")
        except (ValueError, TypeError) as error:
            return [pack({"type": "error", "id": number, "message": str(error)})]
        frames = [self._frame()] if self.config.pace == "step" and kind != "faults" else []
        return [*frames, pack({**answer, "id": number, "waiting": len(self.waiting), "time": self._now()})]

    def _take(self, action: object) -> dict[str, float]:
        if not isinstance(action, dict):
            raise TypeError(f"action: expected a map of names to numbers, got {type(action).__name__}")
        if self.config.pace == "step":
            return self.robot.send_action(action)
        sent = self.robot.limited(action)
        if len(self.waiting) >= MOST_WAITING:
            self.refused += 1
            return {}
        self.waiting.append(sent)
        return sent

    # -- its own time

    def _now(self) -> float:
        """Return the seconds of the robot's clock."""
        return time.monotonic() - self.started if self.config.pace == "real" else self.robot.clock

    async def _tick(self, link: ServerConnection) -> None:
        """At each tick send a frame of the last action's outcome, then begin the next action."""
        due = time.monotonic()
        while True:
            self._send_frame(link)
            if due - self.last_message > SILENCE_SECONDS:  # by the deadline: the driver is not to blame for a late tick
                self.waiting.clear()
            if self.waiting:
                self.robot.send_action(self.waiting.popleft())
            else:
                self.robot.rest()
            due += self.period
            behind = time.monotonic() - due
            if behind > 0:  # this machine stood still; whole ticks are skipped, or actions would follow too fast
                self.late += 1
                due += behind // self.period * self.period
            await asyncio.sleep(due - time.monotonic())

    def _send_frame(self, link: ServerConnection) -> None:
        """Send a frame, as late and as often as the faults demand."""
        rng = np.random.default_rng([self.config.seed, self.sequence])
        frame = self._frame()
        for delay in self.faults.arrivals(rng, self.period):
            if len(self.in_flight) < MOST_IN_FLIGHT:
                task = asyncio.create_task(_deliver(link, frame, delay))
                self.in_flight.add(task)
                task.add_done_callback(self.in_flight.discard)

    # -- messages

    def _frame(self) -> bytes:
        observation = self.robot.get_observation() | {"timestamp": self._now()}
        if (
            self.shown_picture is None
            or self.faults.freeze is None
            or self._now() - self.connected_at < self.faults.freeze
        ):
            self.shown_picture = observation["camera"]
        observation["camera"] = self.shown_picture
        frame = {"type": "frame", "sequence": self.sequence, "observation": observation, **self._counts()}
        self.sequence += 1
        return pack(frame)

    def _counts(self) -> dict[str, int]:
        return {"waiting": len(self.waiting), "refused": self.refused, "late": self.late}

    def _welcome(self) -> dict[str, Any]:
        observed = self.robot.observation_features
        return {
            "type": "welcome",
            "protocol": PROTOCOL,
            "robot": self.robot.name,
            "observation_features": {name: _feature(kind) for name, kind in observed.items()},
            "action_features": {name: _feature(kind) for name, kind in self.robot.action_features.items()},
            "rate_hz": self.config.rate if self.config.pace == "real" else self.robot.rate_hz,
            "pace": self.config.pace,
            "time": self._now(),
        }


def _at_eof(loop: asyncio.AbstractEventLoop, then: Callable[[], None]) -> None:
    """Wait until standard input ends, then call ``then`` on ``loop``."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    loop.call_soon_threadsafe(then)


async def _deliver(link: ServerConnection, frame: bytes, delay: float) -> None:
    from websockets.exceptions import ConnectionClosed

    await asyncio.sleep(delay)
    with suppress(ConnectionClosed):
        await link.send(frame)


def _request_of(message: str | bytes) -> dict[str, Any]:
    if isinstance(message, str):
        raise TypeError("message: expected bytes (msgpack), got a text")
    request = unpack(message, LARGEST_REQUEST)
    if not isinstance(request, dict):
        raise TypeError(f"message: expected a map, got {type(request).__name__}")
    return request


def _faults_of(values: object) -> Faults:
    if not isinstance(values, dict):
        raise TypeError(f"faults: expected a map, got {type(values).__name__}")
    return Faults(**values)


def _check_pace(pace: str, faults: Faults) -> None:
    if pace == "step" and faults.in_the_link:
        raise ValueError(
            "faults: with --pace step each action waits for its frame, so none can be late or lost; use --pace real"
        )


def _feature(kind: Any) -> Any:
    """Return a feature as messages have it: ``float`` by name, a picture by its shape."""
    return list(kind) if isinstance(kind, tuple) else kind.__name__


def _flags(config: RobotSimConfig) -> Iterator[str]:
    """Yield ``config`` as words of the command line."""
    values = asdict(config)
    values.pop("until_eof")
    for name, value in (values.pop("faults") | values).items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            yield flag
        elif value is not None and value is not False:
            yield from (flag, str(value))


def robot_sim_command(config: RobotSimConfig, say: Callable[[str], None] = print) -> None:
    """Run `robot_sim` and report the robot's address."""
    robot_sim(config, lambda address: say(f"robot pusht ({config.pace}) at {address} - ctrl-C ends it"))
