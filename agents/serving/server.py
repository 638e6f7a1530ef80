"""PolicyServer: a policy for robot clients over a websocket.

It speaks openpi's protocol (github.com/Physical-Intelligence/openpi: the server's metadata first, then msgpack-numpy observations
against chunks of actions; an error is a traceback as text, then close 1011; ``GET /healthz``) and, to clients that name an
``endpoint``, RoboArena's (github.com/robo-arena/roboarena: bare arrays, ``reset successful``), on one port.
"""

from __future__ import annotations

import asyncio
import hmac
import http
import ipaddress
import logging
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING

from neuralsim.agents.heads.chunk_policy import ActionChunkPolicy
from neuralsim.agents.serving.batcher import DynamicBatcher
from neuralsim.agents.serving.client_session import ClientSession
from neuralsim.agents.serving.protocol import ProtocolOptions
from neuralsim.agents.serving.statistics import ServerStatistics
from neuralsim.envs.robots.wire import LARGEST, pack
from neuralsim.runtime.robot_extra import robot_extra

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request, Response

LOG = logging.getLogger("neuralsim.policy_server")
"""What the websocket library has to say; silent unless a program listens."""
LOG.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Listening:
    """Where a policy server listens, and what it bears. Port 0 is any free one. ``key``: what clients must show (header
    ``Authorization: Api-Key KEY``); ``largest``: bytes of a message; seconds between keepalive pings, and until one must be
    answered."""

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None
    clients: int = 16
    largest: int = LARGEST
    ping_interval: float = 20.0
    ping_timeout: float = 20.0

    @property
    def loopback(self) -> bool:
        """Whether this machine alone can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class PolicyServer:
    """Serves ``policy`` while it is entered, from threads of its own::

        with PolicyServer(policy) as server:
            print(server.uri)

    ``say`` is given a line for each connection and episode. Entering raises OSError where the port is taken.
    """

    def __init__(
        self,
        policy: ActionChunkPolicy,
        listening: Listening | None = None,
        manner: ProtocolOptions | None = None,
        name: str = "policy",
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.policy, self.name, self.say = policy, name, say
        self.listening, self.manner = listening or Listening(), manner or ProtocolOptions()
        self.tally = ServerStatistics()
        self._reader = self.manner.reader(policy)
        self._open: set[ServerConnection] = set()
        self._ready = threading.Event()
        self._failed: BaseException | None = None

    @property
    def uri(self) -> str:
        """What clients connect to."""
        host = f"[{self.listening.host}]" if ":" in self.listening.host else self.listening.host
        return f"ws://{host}:{self.listening.port}"

    def wait(self, seconds: float) -> None:
        """Until then, or until the server fails; its error is raised."""
        self._thread.join(seconds)
        if self._failed is not None:
            raise self._failed

    # -- its thread ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> PolicyServer:
        with robot_extra("serving a policy"):
            import websockets.asyncio.server  # noqa: F401  (before the thread, so that a lack is told here)
        self._thread = threading.Thread(target=self._run, name="policy server", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failed is not None:
            raise self._failed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._listen())
        except BaseException as error:
            self._failed = error
            self._ready.set()

    async def _listen(self) -> None:
        from websockets.asyncio.server import serve

        place = self.listening
        self._loop, self._stop, self._batcher = asyncio.get_running_loop(), asyncio.Event(), DynamicBatcher(self.policy)
        try:
            listener = await serve(
                self._serve,
                place.host,
                place.port,
                origins=[None],  # robots name none; pages in a browser do
                compression=None,
                process_request=self._admit,
                ping_interval=place.ping_interval,
                ping_timeout=place.ping_timeout,
                close_timeout=2,
                max_size=place.largest,
                max_queue=4,
                logger=LOG,
            )
        except OSError as error:
            raise OSError(
                f"cannot listen on {place.host} port {place.port}: {error.strerror}; give another --port"
            ) from error
        async with listener:
            self.listening = replace(place, port=next(iter(listener.sockets)).getsockname()[1])
            self._ready.set()
            await self._stop.wait()
        self._batcher.close()

    # -- one client ------------------------------------------------------------------------------------------------------

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answers plain HTTP and refuses strangers; None lets in."""
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        shown = ", ".join(request.headers.get_all("Authorization"))
        wanted = f"Api-Key {self.listening.key}"
        if self.listening.key is not None and not hmac.compare_digest(_bytes(shown), _bytes(wanted)):
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "expected the header 'Authorization: Api-Key KEY'\n"
            )
        return None

    async def _serve(self, connection: ServerConnection) -> None:
        from websockets.exceptions import ConnectionClosed

        if len(self._open) >= self.listening.clients:
            await connection.close(1013, f"serves {len(self._open)} clients already (--max-clients)")
            return
        self._open.add(connection)
        self.tally.clients += 1
        name, end = f"client {self.tally.clients}", "left"
        client = ClientSession(name, self._reader, self._batcher, self.tally, self.say, self.manner.seed)
        gone = asyncio.ensure_future(connection.wait_closed())
        try:
            self.say(f"{name} connected from {_place(connection)}")
            await connection.send(pack(self.manner.metadata(self.policy, self.name)))
            async for data in connection:
                reply = await client.reply(data, self.listening.largest, gone)
                if reply is not None:
                    await connection.send(reply)
                    client.sent()
        except ConnectionClosed as closed:
            end = f"lost: {closed}"
        except Exception as error:
            self.tally.errors += 1
            end = f"sent away: {' '.join(str(error).split()) or type(error).__name__}"
            await _tell(connection, traceback.format_exc())
        finally:
            gone.cancel()
            self._open.discard(connection)
            client.end_episode()
            self.say(f"{name} {end}")


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _place(connection: ServerConnection) -> str:
    host, port = connection.remote_address[:2]
    return f"{host} port {port}"


async def _tell(connection: ServerConnection, error: str) -> None:
    """As openpi's server does: the traceback as text, then close 1011."""
    from websockets.exceptions import ConnectionClosed

    try:
        await connection.send(error)
        await connection.close(1011, "Internal server error. Traceback included in previous frame.")
    except ConnectionClosed:
        pass
