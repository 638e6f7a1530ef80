"""robot_sim: Push-T as a robot in a process of its own, driven over a websocket, with the faults that robots have.

Messages are maps as in ``wire``, each with a ``type``. A driver sends ``action``, and for evaluation ``reset`` and ``faults``, each
with an ``id``, and is answered with that id; ``time`` is then the robot's clock. Frames come by themselves.

| from   | message                                        | answer                                                          |
|--------|------------------------------------------------|-----------------------------------------------------------------|
| robot  | ``welcome``: protocol, robot, features, rate_hz, pace, time |                                                    |
| robot  | ``frame``: sequence, observation, waiting, refused, late    |                                                    |
| driver | ``action``: id, action                         | ``sent``: id, sent (empty: refused), waiting, time              |
| driver | ``reset``: id, seed or state                   | ``reset``: id, sequence of the first frame thereafter, time     |
| driver | ``faults``: id, faults                         | ``faults``: id, time                                            |

What is wrong with a request is told in ``error``: id, message. What cannot be read ends the connection (1007), as do messages that
are too large (1009). There is one driver at a time; another is turned away (1013). When a driver is gone the robot rests.
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
from neuralsim.envs.robots.wire import pack, unpack
from neuralsim.runtime.robot_extra import robot_extra

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection

PROTOCOL = 1
"""Version of the messages."""
WAITING = 2
"""Actions that wait to be carried out, at most."""
SILENCE = 0.5
"""Seconds without a message after which actions that still wait are forgotten."""
LARGEST_REQUEST = 64 * 1024
"""Bytes of a driver's message, at most."""
IN_FLIGHT = 64
"""Frames under way, at most; a driver that does not read loses the others."""
UNREADABLE, ENGAGED = 1007, 1013
"""Close codes: what came cannot be read; there is a driver already."""
PING_EVERY, PING_PATIENCE = 2.0, 10.0
"""Seconds: how a link is found to be dead on which nothing more comes, not even an end."""


@dataclass(frozen=True)
class RobotSimConfig:
    """Push-T as a "robot" in a process of its own, with real-life faults."""

    port: int = 5555
    """Where it listens; 0 for any free port."""
    host: str = "127.0.0.1"
    """The address it listens at. Whoever reaches it can drive it; by default, this machine alone."""
    pace: Literal["real", "step"] = "real"
    """real: a clock of its own; at each tick it carries out the next action that waits, or rests, and takes a frame.
    step: no clock; each action is carried out at once and answered by one frame, for fast evaluation."""
    rate: float = 10.0
    """Ticks a second with --pace real; the world's own 10 by default. Others make its time pass faster or slower."""
    camera_size: int = CAMERA_SIZE
    """The camera's side in pixels."""
    faults: tyro.conf.OmitArgPrefixes[Faults] = field(default_factory=Faults)
    seed: int = 0
    """Of the first start, and of the faults."""
    truth: bool = False
    """Frames also tell the true state, for judging."""
    until_eof: bool = False
    """End when standard input does: so it never outlives a program that started it."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: expected 0 to 65535, got {self.port}")
        if not 0 < self.rate <= 1000:
            raise ValueError(f"rate: expected more than 0 and at most 1000 ticks a second, got {self.rate}")
        _check_pace(self.pace, self.faults)


def robot_sim(config: RobotSimConfig, ready: Callable[[str], None]) -> None:
    """Run the robot until it is interrupted; ``ready`` is told its address once it can be reached."""
    asyncio.run(_Server(config).run(ready))


@contextmanager
def spawn_robot_sim(config: RobotSimConfig | None = None, patience: float = 60.0) -> Iterator[str]:
    """A robot in a process of its own, for as long as the context: gives its address. ``config`` says which; a free port by default."""
    with RobotProcess(RobotSimConfig(port=0) if config is None else config, patience) as process:
        yield process.address


class RobotProcess:
    """A process with a robot: started on entering, gone on leaving, or when this process is gone.

    A RobotLost says that it did not answer within ``patience`` seconds, or what it said instead.
    """

    def __init__(self, config: RobotSimConfig, patience: float = 60.0) -> None:
        self.config, self.patience = config, patience
        self.address = ""
        """Where it can be reached, ``ws://host:port``, once it runs."""
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> RobotProcess:
        with tempfile.TemporaryFile("w+") as errors:  # a pipe that nobody reads would fill and stop it
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
        alarm = threading.Timer(self.patience, self._process.kill)
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
        said = " ".join(errors.read().split()) or f"nothing within {self.patience:g} s"
        raise RobotLost(f"robot-sim did not start; it said: {said}")

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End it at once, as when its plug is pulled."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


class _Server:
    """The robot behind a socket."""

    def __init__(self, config: RobotSimConfig) -> None:
        self.config, self.faults = config, config.faults
        self.robot = PushTRobot(config.camera_size, config.seed, config.truth)
        self.robot.connect()
        self.period = 1 / config.rate
        self.waiting: deque[dict[str, float]] = deque()
        self.driver: ServerConnection | None = None
        self.seat = asyncio.Lock()  # the next driver waits until the one before has wholly gone
        self.began = time.monotonic()
        self.heard = self.came = 0.0
        self.sequence = self.refused = self.late = 0
        self.picture: np.ndarray | None = None
        self.under_way: set[asyncio.Task[None]] = set()

    async def run(self, ready: Callable[[str], None]) -> None:
        """Serve until the task is cancelled, or standard input ends where that was asked for."""
        with robot_extra("robot-sim"):
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
            ping_timeout=PING_PATIENCE,
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
        async with self.seat:
            await self._obey(link)

    async def _obey(self, link: ServerConnection) -> None:
        from websockets.exceptions import ConnectionClosed

        self.picture = None
        self.heard, self.came = time.monotonic(), self._now()
        ticking = None
        try:
            await link.send(pack(self._welcome()))
            if self.config.pace == "real":
                ticking = asyncio.create_task(self._tick(link))
            else:
                await link.send(self._frame())
            async for message in link:
                self.heard = time.monotonic()
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
            for task in (ticking, *self.under_way):
                if task is not None:
                    task.cancel()
            self.waiting.clear()

    def _answers(self, request: dict[str, Any]) -> list[bytes]:
        """Obey ``request``; what it is answered with."""
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
        if len(self.waiting) >= WAITING:
            self.refused += 1
            return {}
        self.waiting.append(sent)
        return sent

    # -- its own time

    def _now(self) -> float:
        """Seconds of the robot's clock."""
        return time.monotonic() - self.began if self.config.pace == "real" else self.robot.clock

    async def _tick(self, link: ServerConnection) -> None:
        """At each tick: a frame of what the last action led to; then the next action begins."""
        due = time.monotonic()
        while True:
            self._film(link)
            if due - self.heard > SILENCE:  # at the time it was due: the driver is not to blame for a tick that is late
                self.waiting.clear()
            if self.waiting:
                self.robot.send_action(self.waiting.popleft())
            else:
                self.robot.rest()
            due += self.period
            behind = time.monotonic() - due
            if (
                behind > 0
            ):  # this machine stood still; whole ticks are not made up for, or actions would follow too fast
                self.late += 1
                due += behind // self.period * self.period
            await asyncio.sleep(due - time.monotonic())

    def _film(self, link: ServerConnection) -> None:
        """Send a frame, as late and as often as the faults have it."""
        luck = np.random.default_rng([self.config.seed, self.sequence])
        frame = self._frame()
        for delay in self.faults.arrivals(luck, self.period):
            if len(self.under_way) < IN_FLIGHT:
                task = asyncio.create_task(_deliver(link, frame, delay))
                self.under_way.add(task)
                task.add_done_callback(self.under_way.discard)

    # -- what it says

    def _frame(self) -> bytes:
        observation = self.robot.get_observation() | {"timestamp": self._now()}
        if self.picture is None or self.faults.freeze is None or self._now() - self.came < self.faults.freeze:
            self.picture = observation["camera"]
        observation["camera"] = self.picture
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
            "observation_features": {name: _told(kind) for name, kind in observed.items()},
            "action_features": {name: _told(kind) for name, kind in self.robot.action_features.items()},
            "rate_hz": self.config.rate if self.config.pace == "real" else self.robot.rate_hz,
            "pace": self.config.pace,
            "time": self._now(),
        }


def _at_eof(loop: asyncio.AbstractEventLoop, then: Callable[[], None]) -> None:
    """Wait until standard input ends."""
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


def _faults_of(told: object) -> Faults:
    if not isinstance(told, dict):
        raise TypeError(f"faults: expected a map, got {type(told).__name__}")
    return Faults(**told)


def _check_pace(pace: str, faults: Faults) -> None:
    if pace == "step" and faults.in_the_link:
        raise ValueError(
            "faults: with --pace step each action waits for its frame, so none can be late or lost; use --pace real"
        )


def _told(kind: Any) -> Any:
    """A feature as a message has it: ``float`` by name, a picture by its shape."""
    return list(kind) if isinstance(kind, tuple) else kind.__name__


def _flags(config: RobotSimConfig) -> Iterator[str]:
    """``config`` as words of the command line."""
    told = asdict(config)
    told.pop("until_eof")
    for name, value in (told.pop("faults") | told).items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            yield flag
        elif value is not None and value is not False:
            yield from (flag, str(value))
