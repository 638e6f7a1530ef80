"""PolicyServer: serves a policy to robot clients over a websocket.

It speaks openpi's protocol (github.com/Physical-Intelligence/openpi: the server's metadata first, then msgpack-numpy observations
against chunks of actions; an error is a traceback as text, then close 1011; ``GET /healthz``) and, to clients that name an
``endpoint``, RoboArena's (its package ``roboarena``: bare arrays, ``reset successful``), on one port.
"""

from __future__ import annotations

import asyncio
import hmac
import http
import logging
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from neuralsim.agents.heads.chunk_policy import ActionChunkPolicy
from neuralsim.agents.serving.batcher import DynamicBatcher
from neuralsim.agents.serving.client_session import ClientSession
from neuralsim.agents.serving.protocol import ProtocolOptions
from neuralsim.agents.serving.statistics import ServerStatistics
from neuralsim.envs.robots.message_limits import MessageLimits
from neuralsim.envs.robots.wire import LARGEST, pack
from neuralsim.runtime.imports import require_extra
from neuralsim.runtime.network import is_loopback

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request, Response

LOG = logging.getLogger("neuralsim.policy_server")
"""The websocket library's messages; silent unless a program listens."""
LOG.addHandler(logging.NullHandler())
DECODERS = 2
"""Threads that decode messages."""
TOO_BIG = 1009
"""The websocket close code for a message that is too long."""


@dataclass(frozen=True)
class ServerConfig:
    """Address of a policy server, and its limits."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free one."""
    key: str | None = None
    """Key that clients must send, in the header ``Authorization: Api-Key KEY``."""
    clients: int = 16
    """Connections at a time."""
    largest: int = LARGEST
    """Bytes of the longest message."""
    ping_interval: float = 20.0
    """Seconds between keepalive pings."""
    ping_timeout: float = 20.0
    """Seconds until a ping must be answered."""

    @property
    def loopback(self) -> bool:
        """True if only this machine can connect."""
        return is_loopback(self.host)


class PolicyServer:
    """Serves ``policy`` while it is entered, from threads of its own::

        with PolicyServer(policy) as server:
            print(server.uri)

    ``say`` is given a line for each connection and episode. Entering raises OSError where the port is taken.
    """

    def __init__(
        self,
        policy: ActionChunkPolicy,
        config: ServerConfig | None = None,
        options: ProtocolOptions | None = None,
        name: str = "policy",
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.policy, self.name, self.say = policy, name, say
        self.config, self.options = config or ServerConfig(), options or ProtocolOptions()
        self.statistics = ServerStatistics()
        self._reader = self.options.reader(policy, MessageLimits(size=self.config.largest))
        self._open: set[ServerConnection] = set()
        self._ready = threading.Event()
        self._failed: BaseException | None = None

    @property
    def uri(self) -> str:
        """The address that clients connect to."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"ws://{host}:{self.config.port}"

    def wait(self, seconds: float) -> None:
        """Wait so long, or until the server fails; its error is raised."""
        self._thread.join(seconds)
        if self._failed is not None:
            raise self._failed

    # -- its thread ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> PolicyServer:
        with require_extra("serving a policy", "robot"):
            import websockets.asyncio.server  # noqa: F401  (before the thread, so that it is missed here)
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

        config = self.config
        self._loop, self._stop, self._batcher = asyncio.get_running_loop(), asyncio.Event(), DynamicBatcher(self.policy)
        self._decoder = ThreadPoolExecutor(DECODERS, "decoder")
        try:
            listener = await serve(
                self._serve,
                config.host,
                config.port,
                origins=[None],  # robots name none; pages in a browser do
                compression=None,
                process_request=self._admit,
                ping_interval=config.ping_interval,
                ping_timeout=config.ping_timeout,
                close_timeout=2,
                max_size=config.largest,
                max_queue=4,
                logger=LOG,
                create_connection=_explaining_connection(),
            )
        except OSError as error:
            raise OSError(
                f"cannot listen on {config.host} port {config.port}: {error.strerror}; give another --port"
            ) from error
        async with listener:
            self.config = replace(config, port=next(iter(listener.sockets)).getsockname()[1])
            self._ready.set()
            await self._stop.wait()
        self._batcher.close()
        self._decoder.shutdown(wait=False, cancel_futures=True)

    # -- one client ------------------------------------------------------------------------------------------------------

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer plain HTTP and refuse clients without the key; None admits one."""
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        shown = ", ".join(request.headers.get_all("Authorization"))
        expected = f"Api-Key {self.config.key}"
        if self.config.key is not None and not hmac.compare_digest(_bytes(shown), _bytes(expected)):
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "expected the header 'Authorization: Api-Key KEY'\n"
            )
        return None

    async def _serve(self, connection: ServerConnection) -> None:
        from websockets.exceptions import ConnectionClosed

        if len(self._open) >= self.config.clients:
            await connection.close(1013, f"serves {len(self._open)} clients already (--max-clients)")
            return
        self._open.add(connection)
        self.statistics.clients += 1
        name, end = f"client {self.statistics.clients}", "left"
        client = ClientSession(
            name, self._reader, self._batcher, self.statistics, self.say, self._decoder, self.options.seed
        )
        gone = asyncio.ensure_future(connection.wait_closed())
        try:
            self.say(f"{name} connected from {_address(connection)}")
            await connection.send(pack(self.options.metadata(self.policy, self.name)))
            async for data in connection:
                reply = await client.reply(data, gone)
                if reply is not None:
                    await connection.send(reply)
                    client.sent()
        except ConnectionClosed as closed:
            end = f"lost: {closed}"
        except Exception as error:
            self.statistics.errors += 1
            end = f"refused: {' '.join(str(error).split()) or type(error).__name__}"
            await _send_error(connection, traceback.format_exc())
        finally:
            gone.cancel()
            self._open.discard(connection)
            client.end_episode()
            self.say(f"{name} {end}")


def _explaining_connection() -> type[ServerConnection]:
    """Return a ServerConnection that names --max-message where it closes for too long a message."""
    from websockets.asyncio.server import ServerConnection

    class ExplainingConnection(ServerConnection):
        def __init__(self, protocol: Any, *args: Any, **settings: Any) -> None:
            super().__init__(protocol, *args, **settings)
            fail = protocol.fail

            def explain(code: int, reason: str = "") -> None:
                if code == TOO_BIG:  # a close reason holds 123 bytes
                    reason = f"{reason[:60]}; send smaller images, or start the server with a larger --max-message"
                fail(code, reason)

            protocol.fail = explain

    return ExplainingConnection


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _address(connection: ServerConnection) -> str:
    host, port = connection.remote_address[:2]
    return f"{host} port {port}"


async def _send_error(connection: ServerConnection, error: str) -> None:
    """Send the traceback as text, then close with 1011, as openpi's server does."""
    from websockets.exceptions import ConnectionClosed

    try:
        await connection.send(error)
        await connection.close(1011, "Internal server error. Traceback included in previous frame.")
    except ConnectionClosed:
        pass
