"""The room: all browsers that watch one PlayThread, one of which drives."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from neuralsim.agents.web.access import PROTOCOL, refuse_client
from neuralsim.agents.web.config import WebConfig
from neuralsim.agents.web.messages import ViewerMessage, parse_message
from neuralsim.agents.web.play_thread import PlayThread
from neuralsim.agents.web.seat import DriverSeat
from neuralsim.agents.web.viewer import Viewer

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

CLIENT_PREFIX = "client."
"""Begin of the subprotocol by which a browser is known again after a cut."""
WATCHDOG_SECONDS = 0.5
HEARTBEAT_SECONDS = 4.0
"""Time between two notes to a viewer at most, so that its page notices a dead connection while the world is paused."""
WRONG, REPLACED, LET_GO = 1008, 4001, 4000
"""Close codes: a message that is not allowed; the same page has connected again; an idle or slow client."""


class Room:
    """Serves the websocket of every viewer; all methods but ``publish`` and ``world_opened`` belong to the event loop."""

    def __init__(self, config: WebConfig) -> None:
        self.config = config
        self.viewers: dict[int, Viewer] = {}
        self.seat = DriverSeat(config.seat_idle_s, config.reconnect_s, time.monotonic)
        self.downloads: dict[str, tuple[Path, tuple[Path, ...]]] = {}
        """Video and episodes of each recording, by the random ticket in its address."""
        self.play: PlayThread
        self._loop: asyncio.AbstractEventLoop | None = None
        self._count = 0
        self._frame: bytes | None = None
        self._empty_since: float | None = None
        self._people: dict[str, object] = {}

    # -- from the player's thread ---------------------------------------------------------------------------------------

    def publish(self, frame: bytes) -> None:
        """Offer a frame to all viewers."""
        self._call_soon(lambda: self._show(frame))

    def world_opened(self) -> None:
        """Describe the world again, after a change of it."""
        self._call_soon(self._describe_to_all)

    def _call_soon(self, call: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                self._loop.call_soon_threadsafe(call)

    # -- the event loop -------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Look after the room until the task is cancelled: slow and idle clients, an empty seat, no viewer at all."""
        self._loop = asyncio.get_running_loop()
        beat = 0.0
        while True:
            await asyncio.sleep(WATCHDOG_SECONDS)
            now = time.monotonic()
            if now - beat > HEARTBEAT_SECONDS:
                beat = now
                for viewer in self.viewers.values():
                    viewer.note("alive", {})
            for viewer in list(self.viewers.values()):
                if reason := viewer.overdue(now):
                    await viewer.close(LET_GO, reason)
                    self._leave(viewer)
            if self.seat.free and (waiting := self._next_driver()) is not None:
                self._sit(waiting)
            self._tell_people()
            if self._empty_since is not None and now - self._empty_since > self.config.reconnect_s:
                self._empty_since = None
                self.play.watch(False)

    async def serve(self, socket: WebSocket) -> None:
        """Serve one websocket from its handshake to its end."""
        from starlette.responses import PlainTextResponse
        from starlette.websockets import WebSocketDisconnect

        protocols = socket.scope.get("subprotocols") or []
        refused = refuse_client(socket.headers, protocols, self.config)
        if refused is None and len(self.viewers) >= self.config.viewers:
            refused = 503, f"{len(self.viewers)} browsers are connected already (--viewers)"
        if refused is not None:
            await socket.send_denial_response(PlainTextResponse(f"{refused[1]}\n", refused[0]))
            return
        client = next((p for p in protocols if p.startswith(CLIENT_PREFIX)), secrets.token_hex(16))[:100]
        self._count += 1
        viewer = Viewer(self._count, client, socket, self.config)
        replaced = [v for v in self.viewers.values() if v.client == client]
        self.viewers[viewer.number] = viewer
        sender: asyncio.Task[None] | None = None
        try:
            await socket.accept(PROTOCOL)
            for old in replaced:
                await old.close(REPLACED, "connected again elsewhere")
                self._leave(old)
            self._enter(viewer)
            sender = asyncio.create_task(viewer.send())
            await self._receive(viewer)
        except WebSocketDisconnect:
            pass
        except ValueError as error:
            await viewer.close(WRONG, str(error))
        finally:
            self._leave(viewer)
            if sender is not None:
                sender.cancel()
                with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError, OSError):
                    await sender

    async def _receive(self, viewer: Viewer) -> None:
        while True:
            event = await viewer.socket.receive()
            if event["type"] == "websocket.disconnect" or viewer.number not in self.viewers:
                return
            if not viewer.bucket.take(time.monotonic()):
                raise ValueError(f"more than {self.config.messages_hz:g} messages a second")
            text = event.get("text")
            self._handle(viewer, parse_message(event.get("bytes") or b"" if text is None else text))

    def _handle(self, viewer: Viewer, message: ViewerMessage) -> None:
        if message.kind == "ack":
            viewer.acknowledge(message.number)
            return
        viewer.acted = time.monotonic()
        if message.kind == "seat":
            self._handle_seat(viewer, message)
            return
        if viewer.number != self.seat.driver:
            if message.kind != "clear":
                viewer.note("refused", {"reason": "you are watching; only the driver can do that"})
            return
        self.seat.act()
        play = self.play
        if message.kind == "key":
            play.player.press(message.name, message.down, viewer.number, message.number)
        elif message.kind == "clear":
            play.player.release_keys()
        elif message.kind == "world":
            if message.name not in play.worlds:
                raise ValueError("world: not one of those offered")
            play.choose(message.name)
        else:
            command = message.name if message.kind == "do" else message.number
            play.call(lambda player: player.command(command))

    def _handle_seat(self, viewer: Viewer, message: ViewerMessage) -> None:
        if message.name == "give":
            other = self.viewers.get(message.number)
            if viewer.number != self.seat.driver or other is None:
                viewer.note("refused", {"reason": "only the driver can hand over, and to a viewer who is here"})
                return
            self._sit(other)
        elif self.seat.take(viewer.number, viewer.client):
            self.play.player.release_keys()
        self._tell_people()

    def _next_driver(self) -> Viewer | None:
        """Return the viewer who gets a free seat unasked: the first who asked for it, or the only one there."""
        if self.seat.asking:
            return self.viewers[self.seat.asking[0]]
        alone = len(self.viewers) == 1 and self.seat.driver is None
        return next(iter(self.viewers.values())) if alone else None

    def _sit(self, viewer: Viewer) -> None:
        self.play.player.release_keys()
        self.seat.give(viewer.number, viewer.client)

    def _enter(self, viewer: Viewer) -> None:
        self.seat.join(viewer.number, viewer.client)
        if self._empty_since is not None or len(self.viewers) == 1:
            self._empty_since = None
            self.play.watch(True)
        self._describe(viewer)
        if self._frame is not None:
            viewer.show(self._frame)
        self._people = {}
        self._tell_people()
        self._tell_downloads([viewer])

    def _leave(self, viewer: Viewer) -> None:
        if self.viewers.pop(viewer.number, None) is None:
            return
        if viewer.number == self.seat.driver:
            self.play.player.release_keys()
        self.seat.leave(viewer.number)
        if not self.viewers:
            self._empty_since = time.monotonic()
        self._tell_people()

    def _show(self, frame: bytes) -> None:
        self._frame = frame
        for viewer in self.viewers.values():
            viewer.show(frame)
        if len(self.play.recordings) > len(self.downloads):
            for recording in self.play.recordings[len(self.downloads) :]:
                self.downloads[secrets.token_urlsafe(16)] = recording.video, recording.episodes
            self._tell_downloads(list(self.viewers.values()))

    def _describe(self, viewer: Viewer) -> None:
        error = self.play.error
        if error is not None:
            viewer.note("refused", {"reason": f"the world has stopped: {error}"})
        viewer.note("world", {"you": viewer.number, "worlds": self.play.worlds, **self.play.player.describe()})

    def _describe_to_all(self) -> None:
        for viewer in self.viewers.values():
            self._describe(viewer)

    def _tell_people(self) -> None:
        people = {
            "driver": self.seat.driver,
            "viewers": sorted(self.viewers),
            "asking": self.seat.asking,
            "free": self.seat.free,
        }
        if people != self._people:
            self._people = {**people, "asking": list(self.seat.asking)}
            for viewer in self.viewers.values():
                viewer.note("people", people)

    def _tell_downloads(self, viewers: list[Viewer]) -> None:
        files = [
            {"name": name, "url": f"recordings/{ticket}/{name}"}
            for ticket, (video, episodes) in self.downloads.items()
            for name in (video.name, *([f"{video.stem}.zip"] if episodes else []))
        ]
        for viewer in viewers:
            viewer.note("downloads", {"files": files})
