"""Access to the server: the checks of host, origin and token, and the limit of messages a second.

A page of any site can open a websocket to this machine, so the Origin that the browser sends must be the server's own; a name that an
attacker resolves to 127.0.0.1 (DNS rebinding) makes the two equal, so on loopback the name must be a loopback one.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from neuralsim.agents.web.config import WebConfig
from neuralsim.runtime.network import is_loopback

PROTOCOL = "neuralsim.play.v1"
"""The websocket's subprotocol."""
TOKEN_PREFIX = "token."
"""Begin of the subprotocol that holds the token: a browser can send no header of its own, and a URL ends up in logs."""


def refuse_host(headers: Mapping[str, str], config: WebConfig) -> str:
    """Return the reason to refuse a request by its ``Host``; empty for none."""
    host = headers.get("host", "")
    name, known = _name(host), {origin.partition("://")[2] for origin in config.origins}
    if not name or (is_loopback(config.host) and not is_loopback(name) and host not in known):
        return f"host {_quote(host)} is not this server; open the address that it printed"
    return ""


def refuse_client(headers: Mapping[str, str], protocols: Sequence[str], config: WebConfig) -> tuple[int, str] | None:
    """Return status and reason to refuse a websocket by its headers and subprotocols; None admits it."""
    if reason := refuse_host(headers, config):
        return 421, reason
    origin = headers.get("origin", "")
    if not origin:
        return 403, "no Origin: only pages of this server may connect"
    if origin != f"http://{headers['host']}" and origin not in config.origins:
        return 403, f"origin {_quote(origin)} may not connect; --origin admits another"
    if config.token is not None:
        sent = next((p.removeprefix(TOKEN_PREFIX) for p in protocols if p.startswith(TOKEN_PREFIX)), "")
        if not secrets.compare_digest(sent.encode(), config.token.encode()):
            return 401, "wrong token" if sent else "no token: open the address that the server printed"
    if PROTOCOL not in protocols:
        return 400, f"expected the subprotocol {PROTOCOL}"
    return None


class TokenBucket:
    """Limit of events: ``burst`` at once, ``rate`` a second in the long run; times in seconds, any clock."""

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self.rate, self.burst = rate, burst
        self._left, self._then = float(burst), now

    def take(self, now: float) -> bool:
        """Count one event at ``now``; False where it is one too many."""
        self._left = min(self.burst, self._left + self.rate * (now - self._then))
        self._then = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _name(host: str) -> str:
    """Return the name in ``name:port``; empty where the text is no host."""
    try:
        return "" if set(host) & set("@/\\?#") else urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _quote(text: str) -> str:
    return ascii(text[:80])
