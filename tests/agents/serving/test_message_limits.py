"""Bounds on messages to the policy server: small messages cannot cost gigabytes or minutes, and other clients go on."""

from __future__ import annotations

import dataclasses
import os
import re
import resource
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from neuralsim.agents.heads.chunk_policy import ObservationHistory
from neuralsim.agents.serving.client import PolicyClient
from neuralsim.agents.serving.protocol import ProtocolOptions
from neuralsim.agents.serving.request import ClientMessage, RequestReader
from neuralsim.agents.serving.server import PolicyServer, ServerConfig
from neuralsim.envs.pusht.env import pusht_spec
from neuralsim.envs.robots.message_limits import MessageLimits
from neuralsim.envs.robots.wire import pack, unpack
from neuralsim.spec import WorldSpec

SPEC = pusht_spec()
FUZZ = int(os.environ.get("NEURALSIM_FUZZ", "300"))
"""Mutated messages of the fuzz test."""
FRAME = np.full(SPEC.frame_shape, 90, np.uint8)


@dataclass(eq=False)
class NewestMean:
    """A policy that acts by the newest frame's brightness, and keeps the lengths of the histories that it was shown."""

    spec: WorldSpec = SPEC
    chunk: int = 4
    lengths: list[int] = field(default_factory=list)

    def predict_action_chunk(
        self, seen: ObservationHistory, seeds: Sequence[int], prefix: np.ndarray | None = None
    ) -> np.ndarray:
        self.lengths.append(seen.frames.shape[1])
        value = seen.frames[:, -1].mean((1, 2, 3)) / 255 - 0.5
        return np.broadcast_to(value[:, None, None], (len(seen), 4, 2)).astype(np.float32)


@pytest.fixture
def reader() -> RequestReader:
    return ProtocolOptions().reader(NewestMean(), MessageLimits())


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    with PolicyServer(NewestMean(), ServerConfig(port=0)) as running:
        yield running


def maps(count: int) -> bytes:
    return b"\xdf" + struct.pack(">I", count) + b"".join(b"\xce" + struct.pack(">I", i) + b"\x90" for i in range(count))


def nested(depth: int) -> bytes:
    return b"\x81\xa1a" * depth + b"\xc0"


BOMBS = {
    "pixels": (pack({"image": np.zeros((100_000, 1, 1, 3), np.uint8)}), "at most 4096 images of at most 8192 pixels a side"),
    "stripe": (pack({"image": np.zeros((1, 2_000_000, 1, 3), np.uint8)}), "at most 8192 pixels a side, got 1 of 2000000x1"),
    "keys": (maps(500_000), "at most 1000 keys in a map, got 500000"),
    "lists": (b"\x81\xa1a\xdd" + struct.pack(">I", 15_000_000) + b"\x90" * 15_000_000, "at most 100000 values in all"),
    "lists of lists": (b"\x81\xa1a\xdc\xea\x60" + (b"\xdc\x00\xff" + b"\x90" * 255) * 60_000, "at most 100000 values in all"),
    "promised": (b"\x81\xa1a\xdd" + struct.pack(">I", 2**32 - 1), "at most 100000 values in all"),
    "nested": (nested(100_000), "maps and lists at most 16 deep"),
    "nested lists": (b"\x81\xa1a" + b"\x91" * 1_000_000, "maps and lists at most 16 deep"),
    "actions": (pack({"image": FRAME, "actions_done": np.zeros((500_000, 2))}), "actions_done: expected at most 4096 actions"),
    "session": (pack({"image": FRAME, "session_id": np.zeros(1_000_000)}), "session_id: expected a text or a number, got 1000000"),
    "long session": (pack({"image": FRAME, "session_id": "x" * 10**6}), "session_id: expected at most 256 characters"),
    "endpoint": (pack({"image": FRAME, "endpoint": "x" * 10**6}), r"endpoint: expected 'infer' or 'reset', got 'xxx.*\.\.\."),
    "long keys": (pack({"x" * 10**6 + str(i): 1 for i in range(8)}), "expected an image under one of"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_costs_anything(name: str, reader: RequestReader) -> None:
    message, error = BOMBS[name]
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError, match=error) as refused:
        reader.decode(message)
    assert time.process_time() - began < 2
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10 < 200  # MiB
    assert len(str(refused.value)) < 3000


def test_what_fits_the_limits_is_scanned_as_msgpack_reads_it() -> None:
    rng, limits = np.random.default_rng(0), MessageLimits()
    values = [
        None,
        True,
        -1,
        127,
        200,
        40_000,
        -(2**40),
        2**63,
        0.5,
        "a" * 40,
        b"b" * 300,
        "c" * 70_000,
        list(range(20)),
    ]
    for _ in range(100):
        message = {str(i): values[rng.integers(len(values))] for i in range(rng.integers(40))}
        limits.check(msgpack.packb([message, {"deep": [[message]]}]))
    deep: Any = 0
    for _ in range(16):
        deep = [deep]
    limits.check(msgpack.packb(deep))
    with pytest.raises(ValueError, match="16 deep"):
        limits.check(msgpack.packb([deep]))
    with pytest.raises(ValueError, match="at most 10 values"):
        dataclasses.replace(limits, values=10).check(msgpack.packb(list(range(10))))
    dataclasses.replace(limits, values=11).check(msgpack.packb(list(range(10))))
    limits.check(msgpack.packb({i: msgpack.ExtType(3, b"x" * n) for i, n in enumerate((1, 2, 4, 8, 16, 300, 70_000))}))


def test_of_many_images_the_newest_count(reader: RequestReader) -> None:
    frames = np.stack([np.full((5, 7, 3), i, np.uint8) for i in range(40)])
    request = reader.read({"image": frames, "actions_done": np.zeros((40, 2))})
    assert request.frame_count == 40
    assert request.frames.shape == (SPEC.context, *SPEC.frame_shape)
    assert request.frames[:, 0, 0, 0].tolist() == list(range(40 - SPEC.context, 40))


def test_a_long_history_is_the_same_whole_or_in_steps() -> None:
    policy = NewestMean()
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (30, *SPEC.frame_shape)).astype(np.uint8)
    done = rng.uniform(-1, 1, (30, 2)).astype(np.float32)
    seen: list[ObservationHistory] = []
    inner = policy.predict_action_chunk
    policy.predict_action_chunk = lambda s, seeds, prefix=None: (seen.append(s), inner(s, seeds, prefix))[1]  # type: ignore[method-assign]
    with PolicyServer(policy, ServerConfig(port=0)) as server:
        for parts in ([30], [10] * 3, [1] * 30, [2, 3, 25]):
            with connect(server.uri, compression=None, max_size=None) as link:
                link.recv(5)
                link.send(pack({"image": FRAME, "normalized": True}))
                link.recv(5)
                first = 0
                for n in parts:
                    link.send(
                        pack(
                            {
                                "image": frames[first : first + n],
                                "actions_done": done[first : first + n],
                                "normalized": True,
                            }
                        )
                    )
                    link.recv(5)
                    first += n
            np.testing.assert_array_equal(seen[-1].frames[0], frames[-SPEC.context :])
            np.testing.assert_array_equal(seen[-1].actions[0], done[len(done) - (SPEC.context - 1) :])


def test_other_clients_are_answered_while_a_message_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop decodes nothing: a client whose message takes long to read keeps no other waiting."""
    decode, held, entered = RequestReader.decode, threading.Event(), threading.Event()

    def slow(self: RequestReader, data: bytes | str) -> ClientMessage:
        if b"slow" in data:
            entered.set()
            held.wait(20)
        return decode(self, data)

    monkeypatch.setattr(RequestReader, "decode", slow)
    with PolicyServer(NewestMean(), ServerConfig(port=0)) as server:
        links = [connect(server.uri, compression=None) for _ in range(2)]
        for link in links:
            link.recv(5)
        links[0].send(pack({"image": FRAME, "prompt": "slow"}))
        assert entered.wait(5)
        links[1].send(pack({"image": FRAME}))
        assert unpack(links[1].recv(5))["actions"].shape == (4, 2)
        held.set()
        assert unpack(links[0].recv(5))["actions"].shape == (4, 2)


def test_bombs_cost_the_server_one_client_each(server: PolicyServer) -> None:
    with connect(server.uri, compression=None) as other:
        other.recv(5)
        for message, error in BOMBS.values():
            with connect(server.uri, compression=None, max_size=None) as link:
                link.recv(5)
                link.send(message)
                text = link.recv(20)
                assert isinstance(text, str)
                assert re.search(error, text)
            other.send(pack({"image": FRAME}))
            assert unpack(other.recv(5))["actions"].shape == (4, 2)


def test_too_long_a_message_names_the_option_that_allows_it() -> None:
    with PolicyServer(NewestMean(), ServerConfig(port=0, largest=50_000)) as server:
        with connect(server.uri, compression=None) as link:
            link.recv(5)
            link.send(bytes(60_000))
            with pytest.raises(ConnectionClosed, match="larger --max-message") as closed:
                link.recv(5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        long = ObservationHistory(np.zeros((1, 40, *SPEC.frame_shape), np.uint8), np.zeros((1, 39, 2), np.float32))
        with (
            PolicyClient(server.uri) as client,
            pytest.raises(ValueError, match=r"a request of \d+ bytes is too long .*larger --max-message"),
        ):
            client.predict_action_chunk(long, [0])


# -- fuzz --------------------------------------------------------------------------------------------------------------


def mutated(rng: np.random.Generator) -> bytes:
    """A request with odd values under known keys, or with some of its bytes changed."""
    odd: list[Any] = [
        None, True, -1, 2**63, 1e400, float("nan"), "", "x" * 5000, b"\x00" * 300, [], [[]], {}, {"image": 3}, [1, "a", None],
        np.zeros(0), np.zeros((0, 2)), np.full((3, 2), np.nan), np.zeros((2, 2, 2)), np.array(["a"]), np.zeros((1, 1, 3)),
        FRAME[..., 0], FRAME[None], FRAME.astype(np.float64), np.moveaxis(FRAME, -1, 0), np.array(["2026-01-01"], "M8[D]"), np.int8(3),
    ]  # fmt: skip
    message: dict[Any, Any] = {"image": FRAME}
    names = ["image", "observation/image", "images", "actions_done", "observation/prefix_actions", "seed", "session_id",
             "prompt", "endpoint", "normalized", 7, b"bytes"]  # fmt: skip
    for _ in range(rng.integers(1, 4)):
        message[names[rng.integers(len(names))]] = odd[rng.integers(len(odd))]
    data = bytearray(pack(message))
    for _ in range(rng.integers(0, 4)):
        i = int(rng.integers(min(len(data), 200)))
        match rng.integers(3):
            case 0:
                data[i] = int(rng.integers(256))
            case 1:
                del data[i : i + int(rng.integers(1, 9))]
            case _:
                data[i:i] = rng.bytes(int(rng.integers(1, 9)))
    return bytes(data)


def test_fuzz_mutated_messages_are_read_or_refused_in_a_sentence(reader: RequestReader) -> None:
    rng, read = np.random.default_rng(0), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(FUZZ):
        data = mutated(rng)
        began = time.process_time()
        try:
            message = reader.decode(data)
        except (ValueError, TypeError) as error:
            assert 0 < len(str(error)) < 3000  # noqa: PT017 (most of them are refused, some are sound)
        else:
            read += 1
            request = message.request
            if request is not None:
                assert request.frames.dtype == np.uint8
                assert request.frames.shape[1:] == SPEC.frame_shape
                assert request.done is None or np.abs(request.done).max(initial=0) <= 1
        assert time.process_time() - began < 2
    assert 0 < read < FUZZ
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10 < 500  # MiB


def test_fuzz_mutated_messages_leave_the_server_serving(server: PolicyServer) -> None:
    rng = np.random.default_rng(1)
    for _ in range(FUZZ // 10):
        with connect(server.uri, compression=None, max_size=None) as link:
            link.recv(5)
            link.send(mutated(rng))
            assert link.recv(10)
    with connect(server.uri, compression=None) as link:
        link.recv(5)
        link.send(pack({"image": FRAME}))
        assert unpack(link.recv(5))["actions"].shape == (4, 2)
