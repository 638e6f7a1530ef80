"""The server of play: hostile clients, slow ones, several at once, and what a session leaves behind, over real sockets."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from web_client import WebClient, address, join, served
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from neuralsim.agents.teleop.config import PlayConfig
from neuralsim.agents.web.config import WebConfig
from neuralsim.agents.web.server import WebServer, _listen
from neuralsim.data.store import EpisodeStore

TOKEN = "0123456789abcdef0123"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PlayConfig:
    """Play of the random Push-T world, ten steps a second."""
    from tiny_model import build_tiny_model, real_starts

    folder = tmp_path_factory.mktemp("web")
    build_tiny_model().save_pretrained(str(folder / "tiny"))
    real_starts(6).save(folder / "tiny" / "starts.npz")
    return PlayConfig(
        world=str(folder / "tiny"), out=folder / "out", device="cpu", precision="float32", fps=10, web=True
    )


@pytest.fixture
def server(config: PlayConfig) -> Iterator[WebServer]:
    with served(config) as made:
        yield made


def steps(server: WebServer) -> int:
    return server.room.play.player.frame.step


def get(server: WebServer, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    host, _, port = address(server).removeprefix("ws://").removesuffix("/play").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request("GET", path, headers=headers)
    reply = connection.getresponse()
    found = reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()
    connection.close()
    return found


# -- a session -------------------------------------------------------------------------------------------------------------


def read_to_the_end(client: WebClient) -> None:
    """Read without an acknowledgement until the connection ends, which raises ConnectionClosed."""
    while True:
        client.socket.recv(10)


def test_keys_drive_both_worlds_and_the_frame_is_the_sessions_own(server: WebServer) -> None:
    client = join(server)
    first = client.frame()
    assert client.drives
    world = client.notes["world"]
    assert world["real"]
    assert first["image"].shape == (128, 64, 3)
    session = server.room.play.player.session
    before = session.frame.state[0]
    key, sign = ("right", 1) if before < 256 else ("left", -1)
    client.send("key", name=key, down=True, number=1)
    seen = client.until(lambda h: h["change"] == [client.number, 1])
    assert seen["held"] == [key]
    client.send("do", name="pause")
    still = client.until(lambda h: h["paused"])
    client.send("key", name=key, down=False, number=2)
    frame = session.frame
    assert frame.step == still["step"]
    assert sign * (frame.state[0] - before) > 20
    np.testing.assert_array_equal(still["image"], np.concatenate([frame.imagined, frame.real_image]))
    client.send("do", name="step")
    assert client.until(lambda h: h["step"] > still["step"])["step"] == still["step"] + 1
    client.send("do", name="rewind")
    assert client.until(lambda h: h["step"] == 0)["message"].startswith("rewound")
    client.send("passes", number=2)
    assert client.until(lambda h: h["passes"] == 2)
    episode, start = still["episode"], still["start"]
    client.send("do", name="new")
    assert client.until(lambda h: h["episode"] == episode + 1)["start"] != start
    client.send("do", name="policy")
    client.send("do", name="pause")
    assert client.until(lambda h: not h["paused"] and h["step"] > 2)["by"] == world["policy"]


def test_a_recording_is_downloaded_as_video_and_as_episodes(server: WebServer, tmp_path: Path) -> None:
    client = join(server)
    client.frame()
    client.send("do", name="record")
    client.until(lambda h: (h["recorded"] or 0) >= 0.5)
    client.send("do", name="record")
    client.until(lambda h: client.notes.get("downloads", {}).get("files"))
    files = {f["name"].rpartition(".")[2]: f["url"] for f in client.notes["downloads"]["files"]}
    status, headers, video = get(server, "/" + files["mp4"])
    assert (status, headers["content-type"]) == (200, "video/mp4")
    assert video == server.room.play.recordings[0].video.read_bytes()
    status, _, data = get(server, "/" + files["zip"])
    assert status == 200
    zipfile.ZipFile(io.BytesIO(data)).extractall(tmp_path)
    stores = [EpisodeStore(tmp_path / kind) for kind in ("true", "imagined")]
    assert [len(store) for store in stores] == [1, 1]
    ticket = files["mp4"].split("/")[1]
    for wrong in (
        f"/recordings/{ticket}/store.json",
        "/recordings/0/a.mp4",
        f"/recordings/{ticket}/..%2f..%2fetc%2fpasswd",
    ):
        assert get(server, wrong)[0] == 404


def test_a_world_is_chosen_from_those_offered_and_no_other(config: PlayConfig, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(config.world, other)
    with served(config, (str(other), "missing-world")) as server:
        client = join(server)
        client.frame()
        client.send("world", name="missing-world")
        assert client.until(lambda h: "missing-world: " in h["message"])
        client.until(lambda h: h["step"] > 1 and not h["paused"])
        client.send("world", name=str(other))
        client.until(lambda h: client.notes["world"]["world"] == str(other))
        client.send("world", name="/etc")
        with pytest.raises(ConnectionClosed, match="world: not one of those offered"):
            client.until(lambda h: False)


def test_an_empty_room_pauses_and_the_first_to_come_goes_on(config: PlayConfig) -> None:
    with served(config, reconnect_s=0.2) as server:
        time.sleep(0.5)
        assert steps(server) == 0, "no one has come yet"
        client = join(server)
        client.until(lambda h: h["step"] > 3)
        client.socket.close()
        deadline = time.monotonic() + 10
        while not server.room.play.player.session.paused and time.monotonic() < deadline:
            time.sleep(0.05)
        stopped = steps(server)
        time.sleep(0.5)
        assert steps(server) == stopped
        assert join(server).until(lambda h: h["step"] > stopped)


def test_a_paused_world_still_gives_signs_of_life(config: PlayConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuralsim.agents.web.room.HEARTBEAT_SECONDS", 0.2)
    with served(config) as server:
        client = join(server)
        client.frame()
        client.send("do", name="pause")
        client.until(lambda h: h["paused"])
        heard = [client.socket.recv(10) for _ in range(3)]
        assert '{"kind": "alive"}' in heard


# -- several ---------------------------------------------------------------------------------------------------------------


def test_one_drives_the_others_watch_and_the_seat_is_handed_over(server: WebServer) -> None:
    first, second = join(server), join(server)
    first.frame(), second.frame()
    assert first.drives
    assert not second.drives
    episode = server.room.play.player.session.episode
    second.send("do", name="new")
    second.send("key", name="left", down=True, number=1)
    second.until(lambda h: "refused" in second.notes)
    assert "watching" in second.notes["refused"]["reason"]
    assert server.room.play.player.session.episode == episode
    assert not server.room.play.player.session.keyboard.held
    second.send("seat", name="ask", number=0)
    first.until(lambda h: first.notes["people"]["asking"] == [second.number])
    first.send("key", name="left", down=True, number=1)
    first.until(lambda h: h["held"] == ["left"])
    first.send("seat", name="give", number=second.number)
    second.until(lambda h: second.drives and not h["held"])
    second.send("do", name="new")
    second.until(lambda h: h["episode"] == episode + 1)


def test_a_driver_that_was_cut_comes_back_to_the_seat(server: WebServer) -> None:
    first, second = join(server, "a" * 32), join(server, "b" * 32)
    first.frame(), second.frame()
    first.send("key", name="left", down=True, number=1)
    first.until(lambda h: h["held"] == ["left"])
    first.socket.socket.shutdown(socket.SHUT_RDWR)
    second.until(lambda h: not h["held"])
    back = join(server, "a" * 32)
    back.until(lambda h: back.drives)
    twice = join(server, "a" * 32)
    twice.until(lambda h: twice.drives)
    with pytest.raises(ConnectionClosed, match="connected again elsewhere"):
        back.until(lambda h: False)


def test_a_slow_client_gets_fewer_frames_and_never_an_older_one(server: WebServer) -> None:
    quick, slow = join(server), join(server)
    quick.frame()
    early = [slow.frame(acknowledge=False)["step"] for _ in range(2)]
    quick.until(lambda h: h["step"] >= early[-1] + 8)
    with pytest.raises(TimeoutError):
        slow.frame(acknowledge=False, timeout=0.2)
    here = steps(server)
    now = quick.until(lambda h: h["step"] >= here)["step"]  # so it was shown, and is not only under way
    slow.send("ack", number=2)
    late = slow.frame(acknowledge=False)["step"]
    assert late >= now, "the frame after a pause is the newest, not the one that waited"
    assert slow.frame(acknowledge=False)["step"] > late
    assert server.room.viewers[quick.number]._sent > server.room.viewers[slow.number]._sent + 4


def test_a_client_that_acknowledges_nothing_is_let_go(config: PlayConfig) -> None:
    with served(config, acknowledge_s=0.5) as server:
        with pytest.raises(ConnectionClosed, match="too slow"):
            read_to_the_end(join(server))
        assert join(server).frame()


def test_a_client_that_does_nothing_is_let_go(config: PlayConfig) -> None:
    with served(config, idle_s=1.0) as server:
        idle = join(server)
        with pytest.raises(ConnectionClosed, match="idle"):
            idle.until(lambda h: False)
        assert join(server).frame()


# -- hostile clients -------------------------------------------------------------------------------------------------------


def refusal(server: WebServer, protocols: list[str], origin: str) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as caught:
        connect(address(server), origin=origin, subprotocols=protocols, proxy=None)  # type: ignore[arg-type]
    body = caught.value.response.body
    return caught.value.response.status_code, (body or b"").decode()


def test_strangers_are_refused_by_name(config: PlayConfig) -> None:
    with served(config, token=TOKEN) as server:
        own = address(server).replace("ws", "http").removesuffix("/play")
        assert "#token=" in server.url
        protocol = "neuralsim.play.v1"
        assert refusal(server, [protocol], own) == (401, "no token: open the address that the server printed\n")
        assert refusal(server, [protocol, "token." + "x" * 20], own) == (401, "wrong token\n")
        status, reason = refusal(server, [protocol, f"token.{TOKEN}"], "http://evil.example")
        assert (status, "http://evil.example" in reason) == (403, True)
        assert refusal(server, [f"token.{TOKEN}"], own)[0] == 400
        assert not server.room.viewers
        assert steps(server) == 0
        assert join(server, token=TOKEN).until(lambda h: h["step"] > 0)


@pytest.mark.parametrize(
    ("hostile", "reason"),
    [
        ("{", "expected JSON"),
        (b"\x00" * 64, "expected text, got bytes"),
        ('{"kind":"do","name":"quit"}', "do: expected one of"),
        ('{"kind":"ack","number":100}', "ack: expected"),
        ("x" * 5000, ""),
        ('{"kind":"do","name":"' + "a" * 1900 + '"}', "out of range"),
    ],
)
def test_garbage_ends_the_connection_and_the_others_play_on(server: WebServer, hostile: Any, reason: str) -> None:
    driver, bad = join(server), join(server)
    driver.frame(), bad.frame()
    before = driver.frame()
    bad.socket.send(hostile)
    with pytest.raises(ConnectionClosed) as caught:
        bad.until(lambda h: False)
    closed = caught.value.rcvd
    assert closed is not None
    assert closed.code in (1008, 1009)
    assert reason in closed.reason
    after = driver.until(lambda h: h["step"] > before["step"] + 2)
    assert after["episode"] == before["episode"]
    assert driver.drives


def test_a_flood_of_messages_ends_the_connection(config: PlayConfig) -> None:
    with served(config, message_burst=30, messages_hz=20) as server:
        driver, bad = join(server), join(server)
        driver.frame()
        for _ in range(60):
            bad.send("clear")
        with pytest.raises(ConnectionClosed, match="more than 20 messages a second"):
            read_to_the_end(bad)
        assert driver.frame()


def received(connection: socket.socket) -> bytes:
    """Everything that the server sends before it closes."""
    whole = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1000):
            whole += part
    return whole


def test_two_hundred_connections_leave_the_session_untouched(config: PlayConfig) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(served(config, viewers=3, request_s=1.0))
        driver = join(server)
        driver.frame()
        others = [join(server) for _ in range(2)]
        status, reason = refusal(
            server, ["neuralsim.play.v1"], address(server).replace("ws", "http").removesuffix("/play")
        )
        assert (status, reason) == (503, "3 browsers are connected already (--viewers)\n")
        port = int(address(server).rpartition(":")[2].removesuffix("/play"))
        sockets = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(200)]
        answers = [received(one) for one in sockets[100:110]]
        assert [answer[-25:] for answer in answers if not answer.endswith(b"too many connections\n")] == []
        step = driver.frame()["step"]
        driver.until(lambda h: h["step"] > step + 5)
        time.sleep(1.2)  # those that were let in have sent no request
        assert get(server, "/")[0] == 200
        for one in sockets:
            one.close()
        assert driver.frame()
        assert len(server.room.viewers) == 3
        del others


def test_a_foreign_name_and_other_paths_get_no_page(server: WebServer) -> None:
    assert get(server, "/", Host="evil.example")[0] == 421
    for path in ("/static/page.js", "/../pyproject.toml", "/%2e%2e/pyproject.toml", "/index.html"):
        assert get(server, path)[0] == 404
    status, headers, body = get(server, "/")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers
    assert b"<canvas" in body


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}"):
            _listen(WebConfig(port=port))


# -- the command -----------------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_cleanly_and_keeps_the_recording(config: PlayConfig, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "neuralsim.cli", "play", config.world, "--web", "--port", "0", "--record"]
    command += ["--out", str(tmp_path), "--device", "cpu", "--precision", "float32"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "SDL_VIDEODRIVER": "dummy"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    killer = threading.Timer(120, process.kill)
    killer.start()
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    client = WebClient(
        connect(url.replace("http", "ws") + "/play", origin=url, subprotocols=["neuralsim.play.v1"], proxy=None)  # type: ignore[arg-type, list-item]
    )
    client.until(lambda h: h["step"] > 5)
    process.send_signal(signal.SIGINT)
    with pytest.raises(ConnectionClosed):
        client.until(lambda h: False)
    out, err = process.communicate(timeout=60)
    killer.cancel()
    assert process.returncode == 0, err
    assert "Traceback" not in err
    saved = re.findall(r"^saved (.*)$", out, re.MULTILINE)
    assert any(path.endswith(".mp4") and Path(path).stat().st_size > 0 for path in saved)
    assert len(EpisodeStore(tmp_path / "imagined")) == 1


def test_help_does_not_import_the_server() -> None:
    program = (
        "import sys; from neuralsim import cli; cli.main(['--help']); print({'starlette', 'uvicorn'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("set()")
