"""One browser at the websocket: a sender with back-pressure, and the counts by which it is let go."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from neuralsim.agents.web.access import TokenBucket
from neuralsim.agents.web.config import WebConfig

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

CLOSE_SECONDS = 1.0
"""Longest wait for a client that takes no bytes."""


class Viewer:
    """Sends notes in order, and of the frames the newest alone: at most ``in_flight`` of them wait to be acknowledged."""

    def __init__(self, number: int, client: str, socket: WebSocket, config: WebConfig) -> None:
        self.number, self.client, self.socket, self.config = number, client, socket, config
        self.bucket = TokenBucket(config.messages_hz, config.message_burst, time.monotonic())
        self.acted = time.monotonic()
        """Time of the last key or button."""
        self._notes: dict[str, str] = {}
        self._frame: bytes | None = None
        self._sent = self._acknowledged = 0
        self._waiting_since = 0.0
        self._changed = asyncio.Event()

    def note(self, kind: str, content: Mapping[str, Any]) -> None:
        """Queue a note; it takes the place of one of its kind that is still to be sent."""
        self._notes.pop(kind, None)
        self._notes[kind] = json.dumps({"kind": kind, **content}, allow_nan=False)
        self._changed.set()

    def show(self, frame: bytes) -> None:
        """Offer the newest frame; one offered before and not yet sent is dropped."""
        self._frame = frame
        self._changed.set()

    def acknowledge(self, count: int) -> None:
        """Take up that the client has shown ``count`` frames; a ValueError for a number that cannot be."""
        if not self._acknowledged < count <= self._sent:
            raise ValueError(f"ack: expected {self._acknowledged + 1} to {self._sent}")
        self._acknowledged, self._waiting_since = count, time.monotonic()
        self._changed.set()

    def overdue(self, now: float) -> str:
        """Return the reason to let this client go; empty for none."""
        if self._sent > self._acknowledged and now - self._waiting_since > self.config.acknowledge_s:
            return "too slow: no frame was acknowledged"
        if now - self.acted > self.config.idle_s:
            return "idle: no key for a long time"
        return ""

    async def send(self) -> None:
        """Send what is offered until the task is cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._notes:
                await self.socket.send_text(self._notes.pop(next(iter(self._notes))))
            if self._frame is not None and self._sent - self._acknowledged < self.config.in_flight:
                frame, self._frame = self._frame, None
                if self._sent == self._acknowledged:
                    self._waiting_since = time.monotonic()
                self._sent += 1
                await self.socket.send_bytes(frame)

    async def close(self, code: int, reason: str) -> None:
        """Close the connection; one that is already closed stays so, and one that takes no bytes is left to its ping."""
        from starlette.websockets import WebSocketDisconnect

        with contextlib.suppress(RuntimeError, OSError, TimeoutError, WebSocketDisconnect):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.socket.close(code, reason[:120])
