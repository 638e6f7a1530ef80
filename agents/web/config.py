"""Options of the server of ``neuralsim play --web``, and its limits."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass

from neuralsim.agents.teleop.config import PlayConfig
from neuralsim.runtime.network import is_loopback

TOKEN = "NEURALSIM_WEB_TOKEN"
"""Environment variable that may hold the token: every user of a machine can read a command's arguments."""
LEAST_TOKEN = 16
"""Characters of a token at least."""


@dataclass(frozen=True)
class WebConfig:
    """Address of the server, who may connect, and limits that keep one client from harming the others."""

    host: str = "127.0.0.1"
    port: int = 8080
    """0: any free one."""
    token: str | None = None
    """Token that clients must have; None asks for none, which only loopback may."""
    origins: tuple[str, ...] = ()
    """Origins of pages that may connect, besides the server's own."""
    viewers: int = 16
    """Browsers at a time."""
    largest_message: int = 2048
    """Bytes of a client's longest message."""
    messages_hz: float = 100.0
    """Messages a second that a client may send in the long run."""
    message_burst: int = 200
    """Messages at once."""
    in_flight: int = 2
    """Frames sent to a client that it has not yet acknowledged, at most: a slow one gets fewer, and always the newest."""
    acknowledge_s: float = 20.0
    """Seconds until a frame must be acknowledged."""
    idle_s: float = 1800.0
    """Seconds without a key or a button after which a client is let go."""
    seat_idle_s: float = 60.0
    """Seconds without a key or a button after which the driver's seat may be taken."""
    reconnect_s: float = 10.0
    """Seconds for which the seat is kept for a driver whose connection was cut, and the world goes on with no viewer."""
    request_s: float = 10.0
    """Seconds within which a connection must send its request."""

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < LEAST_TOKEN:
            raise ValueError(f"token: expected at least {LEAST_TOKEN} characters, got {len(self.token)}")
        if self.token is None and not is_loopback(self.host):
            raise ValueError(f"host {self.host}: other machines could reach it; a token is needed")

    @classmethod
    def from_play(cls, config: PlayConfig) -> WebConfig:
        """Take the options of ``play``; a host that other machines reach gets a random token where none is given."""
        token = config.token or os.environ.get(TOKEN) or None
        if token is None and not is_loopback(config.host):
            token = secrets.token_urlsafe(24)
        return cls(config.host, config.port, token, config.origin, config.viewers)

    @property
    def connections(self) -> int:
        """Open connections of any kind at most: those of the viewers, and some for their pages and refusals."""
        return 2 * self.viewers + 16
