"""The ASGI app: the page, the websocket, and downloads of recordings."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import zipfile
from collections.abc import AsyncIterator, Iterator
from importlib import resources
from pathlib import Path
from typing import IO, TYPE_CHECKING

from neuralsim.agents.web.access import refuse_host
from neuralsim.agents.web.room import Room
from neuralsim.runtime.imports import require_extra

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

PAGE = {"/": "index.html", "/style.css": "style.css", "/page.js": "page.js", "/gamepad.js": "gamepad.js"}
"""File of the page at each path."""
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of every response: nothing from elsewhere, in no one's frame, sent on to no one."""
CHUNK = 1 << 16


def make_app(room: Room) -> Starlette:
    """Make the app that serves ``room``; a ValueError where Starlette is not installed."""
    with require_extra("play --web", "web"):
        from starlette.applications import Starlette
        from starlette.responses import PlainTextResponse, Response, StreamingResponse
        from starlette.routing import Route, WebSocketRoute
    folder = resources.files("neuralsim.agents.web") / "static"
    files = {path: (folder / name).read_bytes() for path, name in PAGE.items()}

    def refused(request: Request) -> Response | None:
        reason = refuse_host(request.headers, room.config)
        return PlainTextResponse(f"{reason}\n", 421, SECURITY) if reason else None

    async def page(request: Request) -> Response:
        kind = TYPES[PAGE[request.url.path].rpartition(".")[2]]
        return refused(request) or Response(files[request.url.path], 200, SECURITY, kind)

    async def recording(request: Request) -> Response:
        name = request.path_params["name"]
        video, episodes = room.downloads.get(request.path_params["ticket"], (None, ()))
        if (no := refused(request)) is not None:
            return no
        if video is None or name not in (video.name, f"{video.stem}.zip"):
            return PlainTextResponse("no such recording\n", 404, SECURITY)
        headers = SECURITY | {"Content-Disposition": f'attachment; filename="{name}"'}
        try:
            source = await asyncio.to_thread(_open_video if name == video.name else _zip_episodes, video, episodes)
        except OSError as error:
            return PlainTextResponse(f"the recording cannot be read: {error.strerror}\n", 410, SECURITY)
        kind = "video/mp4" if name == video.name else "application/zip"
        return StreamingResponse(_chunks(source), 200, headers, kind)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(room.watch())
        yield
        watching.cancel()

    routes = [Route(path, page) for path in PAGE]
    return Starlette(
        routes=[
            *routes,
            Route("/recordings/{ticket}/{name}", recording),
            WebSocketRoute("/play", room.serve),
        ],
        lifespan=lifespan,
    )


def _open_video(video: Path, episodes: tuple[Path, ...]) -> IO[bytes]:
    return video.open("rb")


def _zip_episodes(video: Path, episodes: tuple[Path, ...]) -> IO[bytes]:
    """Pack the recording's episodes as a zip of one episode store for each kind."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 (the response closes it)
    with zipfile.ZipFile(file, "w") as archive:
        for info in sorted({shard.parent / "store.json" for shard in episodes}):
            archive.write(info, f"{info.parent.name}/{info.name}")
        for shard in episodes:
            for path in sorted(p for p in shard.rglob("*") if p.is_file()):
                archive.write(path, f"{shard.parent.name}/{path.relative_to(shard.parent)}")
    file.seek(0)
    return file


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while data := file.read(CHUNK):
            yield data
