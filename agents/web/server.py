"""The server: uvicorn in a thread of its own, with bounds on connections that uvicorn does not set."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

from neuralsim.agents.web.app import make_app
from neuralsim.agents.web.config import WebConfig
from neuralsim.agents.web.room import Room
from neuralsim.runtime.imports import require_extra

if TYPE_CHECKING:
    import uvicorn

CLOSE_SECONDS = 2
PING_SECONDS = 15.0


class WebServer:
    """Serves ``room`` while it is entered; entering raises OSError where the port is taken, ValueError without uvicorn."""

    def __init__(self, room: Room) -> None:
        self.room, self.config = room, room.config
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Address of the page, with the token in the fragment, which browsers keep to themselves."""
        assert self._socket is not None
        host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(self.config.host, self.config.host)
        host = f"[{host}]" if ":" in host else host
        token = "" if self.config.token is None else f"/#token={self.config.token}"
        return f"http://{host}:{self._socket.getsockname()[1]}{token}"

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until the server ends; return True while it runs."""
        assert self._thread is not None
        self._thread.join(seconds)
        return self._thread.is_alive()

    def __enter__(self) -> WebServer:
        with require_extra("play --web", "web"):
            import uvicorn
            import websockets  # noqa: F401  (uvicorn serves websockets with it)
        app = make_app(self.room)
        self._socket = _listen(self.config)
        config = uvicorn.Config(
            app,
            http=_bounded_protocol(self.config),
            ws="websockets-sansio",
            ws_max_size=self.config.largest_message,
            ws_ping_interval=PING_SECONDS,
            ws_ping_timeout=PING_SECONDS,
            ws_per_message_deflate=False,  # frames are compressed already
            log_config=None,
            log_level=logging.CRITICAL,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            lifespan="on",
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="neuralsim-web", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            self._thread.join(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.should_exit = True
        self._thread.join()
        if self._socket is not None:
            self._socket.close()

    def _run(self) -> None:
        assert self._server is not None
        asyncio.run(self._server.serve([self._socket] if self._socket else None))


def _listen(config: WebConfig) -> socket.socket:
    """Bind the port; an OSError that says what to do where that fails."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise OSError(
            f"cannot listen on {config.host} port {config.port}: {error.strerror}; give another --port or --host"
        ) from error
    return listener


def _bounded_protocol(config: WebConfig) -> type[asyncio.Protocol]:
    """Make uvicorn's HTTP protocol with a bound on open connections and on the time until a request is whole."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    everything: set[asyncio.Transport] = set()

    class BoundedProtocol(H11Protocol):
        """One connection."""

        def connection_made(self, transport: Any) -> None:
            everything.difference_update([t for t in everything if t.is_closing()])
            super().connection_made(transport)
            if len(everything) >= config.connections:
                transport.write(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 21\r\n\r\n")
                transport.write(b"too many connections\n")
                transport.close()
                return
            everything.add(transport)
            self.loop.call_later(config.request_s, self._expect_request)

        def _expect_request(self) -> None:
            if self not in self.connections:  # closed, or a websocket by now
                return
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()
            else:
                self.loop.call_later(config.request_s, self._expect_request)

    return BoundedProtocol
