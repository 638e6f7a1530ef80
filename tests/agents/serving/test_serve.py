"""Promises of the policy server: clients that exist drive it unmodified; histories are apart; nothing hangs, nothing leaks in."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from neuralsim.agents.heads.chunk_policy import ObservationHistory
from neuralsim.agents.serving.client import PolicyClient
from neuralsim.agents.serving.protocol import ProtocolOptions
from neuralsim.agents.serving.serve import ServeConfig, serve
from neuralsim.agents.serving.server import PolicyServer, ServerConfig
from neuralsim.envs.pusht.env import pusht_spec
from neuralsim.envs.robots.wire import pack, unpack
from neuralsim.noise import Noise
from neuralsim.pretrained.world import open_world
from neuralsim.spec import WorldSpec

SPEC = pusht_spec()
ANYWHERE = ServerConfig(port=0)


@dataclass(eq=False)
class MeanColour:
    """A policy whose goal is a grey frame: it moves by how red and how green the newest frame is on average, shifted by what was done
    before, by how much was seen, and by a little noise of its seed. It can be held up, and counts its rows."""

    spec: WorldSpec = SPEC
    chunk: int = 6
    rows: list[int] = field(default_factory=list)
    free: threading.Event = field(default_factory=threading.Event)
    held: bool = False
    delay: float = 0.0

    def predict_action_chunk(
        self, seen: ObservationHistory, seeds: Sequence[int], prefix: np.ndarray | None = None
    ) -> np.ndarray:
        self.rows.append(len(seen))
        time.sleep(self.delay)
        if self.held:
            self.free.wait(300)
        newest = seen.frames[:, -1].mean((1, 2))[:, :2] / 255 - 0.5
        if (newest < -0.49).all(1).any() and len(self.rows) > 1:
            raise RuntimeError("nothing but black")
        base = newest + 0.1 * seen.actions.sum(1) + 0.01 * seen.frames.shape[1]
        noise = np.stack([np.random.default_rng(seed).normal(size=(self.chunk, 2)) for seed in seeds])
        actions = np.clip(base[:, None] + 0.05 * noise, -1, 1).astype(np.float32)
        if prefix is not None:
            actions[:, : prefix.shape[1]] = prefix
        return actions


@dataclass(eq=False)
class Dreamer:
    """A policy that dreams: of four chunks drawn by its seed, the one whose imagined rewards are highest, in the compact world."""

    model: Any
    chunk: int = 5

    @property
    def spec(self) -> WorldSpec:
        return self.model.spec

    @torch.no_grad()
    def predict_action_chunk(
        self, seen: ObservationHistory, seeds: Sequence[int], prefix: np.ndarray | None = None
    ) -> np.ndarray:
        state = self.model.encode(torch.from_numpy(seen.frames.copy()), torch.from_numpy(seen.actions.copy()))
        plans = np.stack([np.random.default_rng(s).uniform(-1, 1, (4, self.chunk, 2)) for s in seeds]).astype(
            np.float32
        )
        if prefix is not None:
            plans[:, :, : prefix.shape[1]] = prefix[:, None]
        values = [
            self.model.read(self.model.unroll_last(state, torch.from_numpy(plans[:, j]), Noise.from_seeds(seeds)))[
                "reward"
            ]
            for j in range(4)
        ]
        best = torch.stack(values, 1).argmax(1).numpy()
        return plans[np.arange(len(plans)), best]


def frame(seed: int = 0, height: int = SPEC.height, width: int = SPEC.width) -> np.ndarray:
    """A picture that is bright enough."""
    return np.random.default_rng(seed).integers(60, 256, (height, width, 3)).astype(np.uint8)


def answer_to(policy: Any, *frames: np.ndarray, actions: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """What ``policy`` itself says, in the world's units."""
    done = np.zeros((0, 2), np.float32) if actions is None else actions
    seen = ObservationHistory(np.stack(frames)[None], done[None])
    return policy.spec.to_units(policy.predict_action_chunk(seen, [seed])[0])


@pytest.fixture
def policy() -> Iterator[MeanColour]:
    made = MeanColour()
    yield made
    made.free.set()  # no thread is left waiting


@pytest.fixture
def server(policy: MeanColour) -> Iterator[PolicyServer]:
    with PolicyServer(policy, ANYWHERE) as running:
        yield running


def openpi(server: PolicyServer, api_key: str | None = None) -> WebsocketClientPolicy:
    """openpi's own client, as PyPI ships it."""
    return WebsocketClientPolicy("127.0.0.1", server.config.port, api_key)


def talk(server: PolicyServer) -> ClientConnection:
    """A bare connection, past the metadata."""
    link = connect(server.uri, compression=None, max_size=None)
    assert isinstance(unpack(link.recv(5)), dict)
    return link


def exchange(link: ClientConnection, message: bytes) -> bytes | str:
    """The answer to ``message``."""
    link.send(message)
    return link.recv(5)


def wait_for(what: Callable[[], bool]) -> None:
    """Until ``what`` is so; at most a minute."""
    until = time.monotonic() + 60
    while not what():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)


# -- openpi's client ---------------------------------------------------------------------------------------------------------------


def test_openpis_own_client_and_broker_drive_it_for_50_steps(server: PolicyServer, policy: MeanColour) -> None:
    client = openpi(server)
    broker = ActionChunkBroker(client, policy.chunk)
    for step in range(50):
        observation = {"observation/image": frame(step), "observation/state": np.zeros(8), "prompt": "push"}
        reply = broker.infer(observation)
        made, i = divmod(step, policy.chunk)
        expected = answer_to(policy, frame(made * policy.chunk), seed=1_000_003 * made)[i]
        assert np.array_equal(reply["actions"], expected)
        assert set(reply["server_timing"]) == {"infer_ms", "prev_total_ms"} - (
            {"prev_total_ms"} if made == 0 else set()
        )
        assert reply["server_timing"]["infer_ms"] >= reply["policy_timing"]["infer_ms"] > 0
    assert server.statistics.requests == -(-50 // policy.chunk)


def test_the_first_words_tell_both_dialects_what_is_served(server: PolicyServer) -> None:
    words = openpi(server).get_server_metadata()
    assert words["image_resolution"] == [64, 64]
    assert (words["needs_wrist_camera"], words["n_external_cameras"], words["needs_stereo_camera"]) == (False, 1, False)
    assert words["needs_session_id"] is True
    assert words["action_space"] == "physical"
    assert WorldSpec(**words["world"]) == SPEC
    assert words["chunk"] == words["action_horizon"] == 6
    assert words["action_units"] == list(SPEC.action_units)


def test_actions_come_in_the_worlds_units_or_normalized_on_request(policy: MeanColour) -> None:
    own = policy.predict_action_chunk(ObservationHistory.first(frame()[None], SPEC), [0])[0]
    with PolicyServer(policy, ANYWHERE) as server:
        physical = openpi(server).infer({"image": frame()})["actions"]
        asked = openpi(server).infer({"image": frame(), "normalized": True})["actions"]
    with PolicyServer(policy, ANYWHERE, ProtocolOptions(normalized=True)) as server:
        client = openpi(server)
        always = client.infer({"image": frame()})["actions"]
        assert client.get_server_metadata()["action_space"] == "normalized"
    assert np.allclose(physical, own * SPEC.action_scale, rtol=1e-6)
    assert np.array_equal(asked, own)
    assert np.array_equal(always, own)


def test_units_go_there_and_back_and_beyond_the_limits_no_further() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 2)).astype(np.float32)
    assert np.allclose(SPEC.from_units(SPEC.to_units(actions)), actions, atol=1e-6)
    assert SPEC.from_units([[1e9, -1e9]]).tolist() == [[1, -1]]
    choices = WorldSpec("c", 8, 8, ("key",), ("",), (1.0,), 10.0, 1, action_offset=(3.0,), action_choices=(4,))
    assert choices.from_units(choices.to_units(np.array([[0], [3]]))).tolist() == [[0], [3]]
    for wrong in ("right", [[np.nan, 0]], [[1, 2, 3]], 5):
        with pytest.raises(ValueError, match=r"expected (finite )?numbers"):
            SPEC.from_units(wrong)


@pytest.mark.parametrize(
    "observation",
    [
        {"observation/image": frame(), "observation/wrist_image": frame(1)},
        {"image": frame()},
        {"frame": frame()},
        {"observation/exterior_image_1_left": frame()},
        {"observation/exterior_image_0_left": frame()},
        {"images": {"cam_high": np.moveaxis(frame(), -1, 0)}},
        {"observation": {"image": frame()}},
        {"image": frame()[None]},
        {"image": np.stack([frame(4), frame(5), frame()])},
        {"image": (frame() / 255).astype(np.float32)},
        {"image": frame().repeat(3, 0).repeat(3, 1)},
        {"mine": frame()},
    ],
    ids=lambda o: "+".join(f"{k}{np.shape(v)}" for k, v in o.items()),
)
def test_images_are_taken_under_the_fields_names_in_any_size_and_layout(policy: MeanColour, observation: Any) -> None:
    with PolicyServer(policy, ANYWHERE, ProtocolOptions(image_key="mine")) as server:
        assert np.array_equal(openpi(server).infer(observation)["actions"], answer_to(policy, frame()))


def test_images_of_another_aspect_are_stretched_or_padded(policy: MeanColour) -> None:
    wide = np.full((48, 96, 3), 200, np.uint8)
    padded = np.zeros(SPEC.frame_shape, np.uint8)
    padded[16:48] = 200
    for fit, seen in (("stretch", np.full(SPEC.frame_shape, 200, np.uint8)), ("pad", padded)):
        with PolicyServer(policy, ANYWHERE, ProtocolOptions(fit=fit)) as server:
            assert np.allclose(openpi(server).infer({"image": wide})["actions"], answer_to(policy, seen), atol=1e-5)


# -- RoboArena's dialect -----------------------------------------------------------------------------------------------------------


def test_roboarenas_dialect_is_spoken_on_the_same_port(server: PolicyServer, policy: MeanColour) -> None:
    observation = {"observation/exterior_image_0_left": frame(), "session_id": np.zeros(1, np.int32), "prompt": "push"}
    with talk(server) as link:
        for made in range(2):
            link.send(pack(observation | {"endpoint": "infer"}))
            actions = unpack(link.recv(5))
            assert isinstance(actions, np.ndarray)
            assert np.array_equal(actions, answer_to(policy, frame(), seed=1_000_003 * made))
        link.send(pack({"endpoint": "reset"}))
        assert link.recv(5) == "reset successful"
        link.send(pack(observation | {"endpoint": "infer"}))
        assert np.array_equal(unpack(link.recv(5)), answer_to(policy, frame()))
        link.send(pack(observation))
        assert set(unpack(link.recv(5))) == {"actions", "server_timing", "policy_timing"}
    assert server.statistics.episodes == 2


def test_strict_roboarena_clients_are_told_their_six_fields_alone(policy: MeanColour) -> None:
    six = dataclasses.make_dataclass(  # roboarena/policy_server.py: PolicyServerConfig(**metadata)
        "PolicyServerConfig",
        [
            "image_resolution",
            "needs_wrist_camera",
            "n_external_cameras",
            "needs_stereo_camera",
            "needs_session_id",
            "action_space",
        ],
    )
    with PolicyServer(policy, ANYWHERE, ProtocolOptions(announce="roboarena")) as server:
        assert six(**openpi(server).get_server_metadata()).n_external_cameras == 1


# -- histories ---------------------------------------------------------------------------------------------------------------------


def test_what_was_done_between_frames_makes_a_history(server: PolicyServer, policy: MeanColour) -> None:
    client = openpi(server)
    done = np.array([[0.5, -0.25], [0.1, 0.2], [-0.3, 0.9]], np.float32)
    first = {"image": frame(0), "seed": 7, "normalized": True}
    client.infer(first)
    one = client.infer(first | {"image": frame(1), "actions_done": done[:1]})["actions"]
    assert np.array_equal(one, one_of(policy, [0, 1], done[:1]))
    two = client.infer(first | {"image": np.stack([frame(2), frame(3)]), "actions_done": done[1:]})["actions"]
    assert np.array_equal(two, one_of(policy, [0, 1, 2, 3], done))
    unseen = client.infer(first | {"image": frame(5), "actions_done": done})["actions"]
    assert np.array_equal(unseen, one_of(policy, [5], done[:0])), "three steps, one frame: what lay between is unknown"
    whole = client.infer(first | {"image": np.stack([frame(i) for i in range(4)]), "actions_done": done})["actions"]
    assert np.array_equal(whole, one_of(policy, [0, 1, 2, 3], done)), "three steps between four frames: all is told"
    unknown = client.infer(first | {"image": frame(1)})["actions"]
    assert np.array_equal(unknown, one_of(policy, [1], done[:0]))


def one_of(policy: MeanColour, seeds: list[int], done: np.ndarray) -> np.ndarray:
    """What the policy says of these frames and what was done between them, in the world's own actions."""
    length = min(len(seeds), SPEC.context)
    frames = np.stack([frame(seed) for seed in seeds[-length:]])
    return policy.predict_action_chunk(ObservationHistory(frames[None], done[None, len(done) - (length - 1) :]), [7])[0]


def test_a_done_action_counts_in_the_worlds_units(server: PolicyServer, policy: MeanColour) -> None:
    client = openpi(server)
    done = np.array([[0.5, -0.25]], np.float32)
    client.infer({"image": frame(0), "seed": 7})
    got = client.infer({"image": frame(1), "seed": 7, "actions_done": SPEC.to_units(done)})["actions"]
    assert np.allclose(got, SPEC.to_units(one_of(policy, [0, 1], done)), atol=1e-4)


@pytest.mark.parametrize(
    "anew",
    [
        lambda client, message: client.infer(message | {"session_id": "b"}),
        lambda client, message: client.infer(message | {"prompt": "<reset> push it"}),
    ],
    ids=["session_id", "prompt"],
)
def test_a_new_episode_begins_where_the_client_says_so(
    server: PolicyServer, policy: MeanColour, anew: Callable[[Any, Any], Any]
) -> None:
    client = openpi(server)
    message = {"image": frame(0), "session_id": "a"}
    client.infer(message)
    client.infer(message)
    following = message | {"image": frame(1), "actions_done": np.ones((1, 2))}
    assert np.array_equal(anew(client, following)["actions"], answer_to(policy, frame(1)))
    assert server.statistics.episodes == 2


def test_two_clients_have_histories_of_their_own(server: PolicyServer, policy: MeanColour) -> None:
    done = {0: np.array([[0.5, 0.5]], np.float32), 1: np.array([[-0.5, 0.0]], np.float32)}
    clients = [openpi(server), openpi(server)]
    for i, client in enumerate(clients):
        client.infer({"image": frame(10 * i), "seed": 7, "normalized": True})
    for i, client in enumerate(clients):
        asked = {"image": frame(10 * i + 1), "seed": 7, "normalized": True, "actions_done": done[i]}
        assert np.array_equal(client.infer(asked)["actions"], one_of(policy, [10 * i, 10 * i + 1], done[i]))


def test_a_prefix_under_way_comes_back_bit_equal(server: PolicyServer) -> None:
    prefix = np.random.default_rng(1).uniform(-1, 1, (2, 2)).astype(np.float32)
    asked = {"image": frame(), "observation/prefix_actions": prefix, "normalized": True}
    client = openpi(server)
    assert np.array_equal(client.infer(asked)["actions"][:2], prefix)
    with pytest.raises(RuntimeError, match="prefix_actions: expected fewer than 6"):
        client.infer(asked | {"observation/prefix_actions": np.zeros((6, 2))})


# -- batching ----------------------------------------------------------------------------------------------------------------------


def test_who_asks_while_a_forward_runs_is_answered_by_one_forward(server: PolicyServer, policy: MeanColour) -> None:
    alone = [answer_to(policy, frame(i)) for i in range(5)]
    policy.rows.clear()
    policy.held = True
    with ThreadPoolExecutor(5) as threads:
        clients = [openpi(server) for _ in range(5)]
        replies = [threads.submit(clients[0].infer, {"image": frame(0)})]
        wait_for(lambda: policy.rows == [1])
        replies += [threads.submit(clients[i].infer, {"image": frame(i)}) for i in range(1, 5)]
        wait_for(lambda: len(server._batcher._waiting) == 4)
        policy.free.set()
        got = [reply.result(10) for reply in replies]
    assert policy.rows == [1, 4]
    assert [reply["policy_timing"]["rows"] for reply in got] == [1, 4, 4, 4, 4]
    assert all(np.allclose(reply["actions"], own, atol=1e-5) for reply, own in zip(got, alone, strict=True))
    assert server.statistics.figures()["requests_per_forward"] == 2.5


def test_histories_and_prefixes_of_other_lengths_are_answered_apart(server: PolicyServer, policy: MeanColour) -> None:
    policy.held = True
    asked = [
        {"image": frame(0)},
        {"image": frame(1)},
        {"image": np.stack([frame(1), frame(2)]), "actions_done": np.zeros((1, 2))},
        {"image": frame(3), "observation/prefix_actions": np.zeros((2, 2))},
        {"image": frame(4)},
    ]
    with ThreadPoolExecutor(5) as threads:
        clients = [openpi(server) for _ in asked]
        replies = []
        for i, (client, message) in enumerate(zip(clients, asked, strict=True)):
            replies.append(threads.submit(client.infer, message))
            wait_for(lambda i=i: len(policy.rows) == 1 and len(server._batcher._waiting) == i)
        policy.free.set()
        assert [reply.result(10)["policy_timing"]["rows"] for reply in replies] == [1, 2, 1, 1, 2]


def test_a_request_the_policy_chokes_on_harms_no_other_in_its_batch(server: PolicyServer, policy: MeanColour) -> None:
    policy.held = True
    black = np.zeros(SPEC.frame_shape, np.uint8)
    with ThreadPoolExecutor(3) as threads:
        clients = [openpi(server) for _ in range(3)]
        replies = [threads.submit(clients[0].infer, {"image": frame(0)})]
        wait_for(lambda: policy.rows == [1])
        replies += [
            threads.submit(clients[1].infer, {"image": black}),
            threads.submit(clients[2].infer, {"image": frame(2)}),
        ]
        wait_for(lambda: len(server._batcher._waiting) == 2)
        policy.free.set()
        assert np.array_equal(replies[2].result(10)["actions"], answer_to(policy, frame(2)))
        with pytest.raises(RuntimeError, match="nothing but black"):
            replies[1].result(10)


# -- faults ------------------------------------------------------------------------------------------------------------------------


def test_a_policy_slower_than_the_keepalive_loses_nobody(policy: MeanColour) -> None:
    quick = dataclasses.replace(ANYWHERE, ping_interval=0.2, ping_timeout=1.0)
    policy.delay = 2.0
    with PolicyServer(policy, quick) as server:
        link = connect(server.uri, compression=None, ping_interval=0.2, ping_timeout=1.0)  # both sides are impatient
        link.recv(5)
        for _ in range(2):
            link.send(pack({"image": frame()}))
            assert unpack(link.recv(10))["server_timing"]["infer_ms"] > 1000
        link.close()


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (
            pack({"picture": frame(), "state": np.zeros(8)}),
            "expected an image under one of observation/image, .* got picture, state",
        ),
        (pack({}), "got nothing"),
        (pack({"image": frame()[..., 0]}), r"expected an image \(h, w, 3\)"),
        (pack({"image": frame().astype(np.float32)}), "expected uint8 pixels or floats in"),
        (pack({"image": "a picture"}), "expected an image"),
        (pack({"image": np.zeros((0, 5, 3), np.uint8)}), "expected an image"),
        (pack({"image": frame(), "actions_done": [[1, 2, 3]]}), "actions_done: expected finite numbers"),
        (pack({"image": frame(), "actions_done": [[np.nan, 0]]}), "actions_done: expected finite numbers"),
        (pack({"image": frame(), "actions_done": [5, 5]}), r"actions_done: expected shape \(n, 2\)"),
        (pack({"image": frame(), "seed": "x"}), "seed: expected a whole number"),
        (pack({"image": frame(), "endpoint": "kill"}), "endpoint: expected 'infer' or 'reset', got 'kill'"),
        (pack([frame()]), "expected a map in a binary frame, got list"),
        ("hello", "expected a map in a binary frame, got str"),
        (b"GET / HTTP/1.1\r\n\r\n", "not msgpack"),
        (b"\x80\x04\x95\x10\x00\x00\x00cposix\nsystem\n.", "not msgpack"),  # a pickle
    ],
)
def test_what_is_no_request_gets_a_traceback_as_text_and_1011(server: PolicyServer, message: Any, error: str) -> None:
    others = openpi(server)
    with talk(server) as link:
        link.send(message)
        told = link.recv(5)
        assert isinstance(told, str)
        assert told.startswith("Traceback")
        assert re.search(error, told)
        with pytest.raises(ConnectionClosed) as closed:
            link.recv(5)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1011
    assert others.infer({"image": frame()})["actions"].shape == (6, 2)
    assert server.statistics.errors == 1


def test_an_oversized_message_is_refused_and_nobody_else_notices(policy: MeanColour) -> None:
    with PolicyServer(policy, dataclasses.replace(ANYWHERE, largest=50_000)) as server:
        others = openpi(server)
        with talk(server) as link, pytest.raises(ConnectionClosed) as closed:
            exchange(link, pack({"image": frame(0, 400, 400)}))
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        assert others.infer({"image": frame()})["actions"].shape == (6, 2)


def test_what_is_no_websocket_at_all_is_dropped_quietly(
    server: PolicyServer, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(("127.0.0.1", server.config.port)) as raw:
        raw.sendall(bytes(range(256)) * 8)
        raw.settimeout(5)
        while raw.recv(4096):
            pass
    assert openpi(server).infer({"image": frame()})["actions"].shape == (6, 2)
    assert capfd.readouterr() == ("", "")


def test_a_client_that_vanishes_mid_inference_is_forgotten(server: PolicyServer, policy: MeanColour) -> None:
    policy.held = True
    first, second = talk(server), talk(server)
    first.send(pack({"image": frame(0)}))
    wait_for(lambda: policy.rows == [1])
    second.send(pack({"image": frame(1)}))
    wait_for(lambda: len(server._batcher._waiting) == 1)
    for link in (first, second):
        link.socket.shutdown(socket.SHUT_RDWR)  # no farewell
    wait_for(lambda: not server._open)
    policy.free.set()
    policy.held = False
    assert np.array_equal(openpi(server).infer({"image": frame(2)})["actions"], answer_to(policy, frame(2)))
    assert policy.rows[:2] == [1, 1], "the one that waited and went was never worked on"
    assert server.statistics.requests == 1


def test_the_server_stops_at_once_though_the_policy_is_at_work(policy: MeanColour) -> None:
    policy.held = True
    with PolicyServer(policy, ANYWHERE) as server:
        link = talk(server)
        link.send(pack({"image": frame()}))
        wait_for(lambda: policy.rows == [1])
        begin = time.monotonic()
    assert time.monotonic() - begin < 250  # the policy is at work for 300
    with pytest.raises(ConnectionClosed):
        link.recv(5)


def test_a_policy_that_says_nan_sends_no_robot_a_nan(server: PolicyServer, policy: MeanColour) -> None:
    policy.predict_action_chunk = lambda seen, seeds, prefix=None: np.full((len(seen), 6, 2), np.nan)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the policy's actions: expected finite numbers"):
        openpi(server).infer({"image": frame()})


# -- the door ----------------------------------------------------------------------------------------------------------------------


def test_healthz_says_ok_in_plain_http(server: PolicyServer) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.config.port}/healthz", timeout=5) as reply:
        assert (reply.status, reply.read()) == (200, b"OK\n")


def test_without_the_key_nobody_comes_in(policy: MeanColour) -> None:
    with PolicyServer(policy, dataclasses.replace(ANYWHERE, key="sesame")) as server:
        assert openpi(server, "sesame").infer({"image": frame()})["actions"].shape == (6, 2)
        for wrong in (None, "sesam", "sesame2", "Sesame", "ключ".encode().decode("latin-1")):
            with pytest.raises(InvalidStatus) as refused:
                openpi(server, wrong)
            assert refused.value.response.status_code == 401
            with pytest.raises(PermissionError, match="requires another api_key"):
                PolicyClient(server.uri, wrong)
        with urllib.request.urlopen(f"http://127.0.0.1:{server.config.port}/healthz", timeout=5) as reply:
            assert reply.status == 200
        with PolicyClient(server.uri, "sesame") as remote:
            assert remote.spec == SPEC


def test_a_page_in_a_browser_is_not_let_in(server: PolicyServer) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(server.uri, origin="http://example.org")  # type: ignore[arg-type]
    assert refused.value.response.status_code == 403


def test_one_client_too_many_is_turned_away_until_another_leaves(policy: MeanColour) -> None:
    with PolicyServer(policy, dataclasses.replace(ANYWHERE, clients=1)) as server:
        first = talk(server)
        with pytest.raises(ConnectionClosed, match="serves 1 clients already") as closed:
            openpi(server)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013
        first.close()
        wait_for(lambda: not server._open)
        assert openpi(server).infer({"image": frame()})["actions"].shape == (6, 2)


def test_other_machines_are_served_only_with_a_key_or_by_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEURALSIM_API_KEY", raising=False)
    with pytest.raises(ValueError, match=r"other machines could reach it; give --api-key .* or --open"):
        _ = ServeConfig(host="0.0.0.0").server
    assert ServeConfig(host="0.0.0.0", open=True).server.key is None
    assert ServeConfig(host="0.0.0.0", api_key="k").server.key == "k"
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        assert ServeConfig(host=host).server.key is None
    monkeypatch.setenv("NEURALSIM_API_KEY", "hidden")
    assert ServeConfig(host="0.0.0.0").server.key == "hidden"


# -- our own client ----------------------------------------------------------------------------------------------------------------


def test_a_remote_policy_answers_as_the_policy_itself(server: PolicyServer, policy: MeanColour) -> None:
    frames = np.stack([[frame(10 * i + j) for j in range(3)] for i in range(4)])
    done = np.random.default_rng(0).uniform(-1, 1, (4, 2, 2)).astype(np.float32)
    prefix = np.random.default_rng(1).uniform(-1, 1, (4, 2, 2)).astype(np.float32)
    with PolicyClient(server.uri) as remote:
        assert (remote.spec, remote.chunk) == (policy.spec, policy.chunk)
        for seen in (
            ObservationHistory.first(frames[:, 0], SPEC),
            ObservationHistory(frames, done),
            ObservationHistory(frames[:1], done[:1]),
        ):
            for fixed in (None, prefix[: len(seen)]):
                seeds = list(range(3, 3 + len(seen)))
                here = policy.predict_action_chunk(seen, seeds, fixed)
                assert np.allclose(remote.predict_action_chunk(seen, seeds, fixed), here, atol=1e-6)
                if fixed is not None:
                    assert np.array_equal(remote.predict_action_chunk(seen, seeds, fixed)[:, :2], fixed)


def test_the_compact_world_acts_over_the_wire_as_it_does_here() -> None:
    torch.set_num_threads(1)
    world = open_world("pusht-latent", "cpu")
    assert world.starts is not None
    policy = Dreamer(world.model)
    starts, context = world.starts, policy.spec.context
    seen = ObservationHistory(
        starts.frames[:3, -context:], starts.actions[:3, starts.actions.shape[1] - (context - 1) :]
    )
    prefix = starts.actions[:3, :2]
    with PolicyServer(policy, ANYWHERE) as server, PolicyClient(server.uri) as remote:
        for fixed in (None, prefix):
            assert np.allclose(
                remote.predict_action_chunk(seen, [1, 2, 3], fixed),
                policy.predict_action_chunk(seen, [1, 2, 3], fixed),
                atol=1e-5,
            )
        first = openpi(server).infer({"observation/image": starts.frames[0, -1], "normalized": True})["actions"]
        assert np.allclose(
            first,
            policy.predict_action_chunk(ObservationHistory.first(starts.frames[:1, -1], policy.spec), [0])[0],
            atol=1e-5,
        )


def test_a_server_killed_and_started_again_is_found_again(policy: MeanColour) -> None:
    seen = ObservationHistory.first(frame()[None], SPEC)
    expected = policy.predict_action_chunk(seen, [1])
    with PolicyServer(policy, ANYWHERE) as server:
        port = server.config.port
        remote = PolicyClient(server.uri, connect_timeout=120)
        assert np.array_equal(remote.predict_action_chunk(seen, [1]), expected)
    with ThreadPoolExecutor(1) as thread:
        reply = thread.submit(remote.predict_action_chunk, seen, [1])
        time.sleep(0.3)
        assert not reply.done(), "nobody is there"
        with PolicyServer(policy, ServerConfig(port=port)):
            assert np.array_equal(reply.result(120), expected)
            remote.close()
            assert np.array_equal(remote.predict_action_chunk(seen, [1]), expected)
    remote.connect_timeout = 0.3
    with pytest.raises(ConnectionError, match=r"no policy server for 0\.3 s .*'neuralsim serve' starts one"):
        remote.predict_action_chunk(seen, [1])
    with PolicyServer(MeanColour(chunk=4), ServerConfig(port=port)), pytest.raises(ValueError, match="another policy"):
        remote.predict_action_chunk(seen, [1])


def test_a_connection_that_breaks_mid_request_is_asked_anew(policy: MeanColour) -> None:
    seen = ObservationHistory.first(frame()[None], SPEC)
    expected = policy.predict_action_chunk(seen, [1])
    policy.held = True
    with PolicyServer(policy, ANYWHERE) as server, PolicyClient(server.uri) as remote, ThreadPoolExecutor(1) as thread:
        reply = thread.submit(remote.predict_action_chunk, seen, [1])
        wait_for(lambda: len(policy.rows) == 2)
        link = remote._links[0]
        assert link is not None
        link.socket.shutdown(socket.SHUT_RDWR)
        wait_for(lambda: server.statistics.clients == 2)
        policy.free.set()
        assert np.array_equal(reply.result(10), expected)


def test_a_late_answer_is_an_error_and_never_taken_for_the_next(server: PolicyServer, policy: MeanColour) -> None:
    first, second = ObservationHistory.first(frame(0)[None], SPEC), ObservationHistory.first(frame(1)[None], SPEC)
    with PolicyClient(server.uri, timeout=0.3) as remote:
        policy.delay = 0.8
        with pytest.raises(TimeoutError, match=r"no answer within 0\.3 s"):
            remote.predict_action_chunk(first, [0])
        policy.delay, remote.timeout = 0.0, 10
        assert np.array_equal(remote.predict_action_chunk(second, [0]), policy.predict_action_chunk(second, [0]))


def test_what_the_server_says_went_wrong_is_said_here(server: PolicyServer, policy: MeanColour) -> None:
    black = ObservationHistory.first(np.zeros((1, *SPEC.frame_shape), np.uint8), SPEC)
    policy.rows.append(0)
    with PolicyClient(server.uri) as remote:
        with pytest.raises(ConnectionError, match="the server reports: RuntimeError: nothing but black"):
            remote.predict_action_chunk(black, [0])
        assert remote.predict_action_chunk(ObservationHistory.first(frame()[None], SPEC), [0]).shape == (1, 6, 2)


def test_a_remote_policy_knows_its_own_kind(policy: MeanColour) -> None:
    with (
        PolicyServer(policy, ANYWHERE, ProtocolOptions(announce="roboarena")) as server,
        pytest.raises(ValueError, match="expected a policy of NeuralSim; its server announces image_resolution"),
    ):
        PolicyClient(server.uri)
    with pytest.raises(ValueError, match="no address of a websocket"):
        PolicyClient("http://127.0.0.1:1")
    with pytest.raises(ConnectionError, match="no policy server"):
        PolicyClient("127.0.0.1:1", connect_timeout=0.2)


# -- the command -------------------------------------------------------------------------------------------------------------------


def test_a_taken_port_is_said_so(server: PolicyServer, policy: MeanColour) -> None:
    port = server.config.port
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}: .*give another --port"):
        serve(ServeConfig(port=port), lambda line: None, policy)


def test_serve_tells_of_each_client_and_sums_up_at_ctrl_c(tmp_path: Path, policy: MeanColour) -> None:
    lines: list[str] = []

    def drive() -> None:
        wait_for(lambda: len(lines) == 2)
        client = WebsocketClientPolicy(lines[0].split()[0])
        for session in ("a", "a", "b"):
            client.infer({"image": frame(), "session_id": session})
        client._ws.close()
        wait_for(lambda: lines[-1] == "client 1 left")

    with ThreadPoolExecutor(1) as thread:
        driven = thread.submit(drive)
        driven.add_done_callback(lambda _: os.kill(os.getpid(), signal.SIGINT))
        figures = serve(ServeConfig(port=0, json=tmp_path / "figures.json"), lines.append, policy)
        driven.result()
    assert "serves 'head' of world 'pusht': 6 actions at 10 Hz" in lines[0]
    text = "\n".join(lines)
    assert "client 1 connected from 127.0.0.1" in text
    assert "client 1 episode 1: 2 requests, infer p50" in text
    assert "client 1 episode 2: 1 requests" in text
    assert "3 requests of 1 clients in 2 episodes, 0 errors; infer p50" in lines[-1]
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    assert (figures["requests"], figures["episodes"], figures["clients"], figures["chunk"]) == (3, 2, 1, 6)
    assert figures["infer_ms_p99"] >= figures["infer_ms_p50"] > 0


def test_a_policy_is_asked_once_before_anybody_comes_so_a_broken_one_is_found_at_once() -> None:
    policy = MeanColour()
    policy.rows.append(0)
    with pytest.raises(RuntimeError, match="nothing but black"):
        serve(ServeConfig(port=0), lambda line: None, policy)
