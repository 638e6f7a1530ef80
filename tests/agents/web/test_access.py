"""Access, messages and the driver's seat, without a socket."""

from __future__ import annotations

import json
import random

import pytest

from neuralsim.agents.teleop.config import PlayConfig
from neuralsim.agents.web.access import PROTOCOL, TokenBucket, refuse_client, refuse_host
from neuralsim.agents.web.config import WebConfig
from neuralsim.agents.web.messages import FIELDS, ViewerMessage, parse_message
from neuralsim.agents.web.play import offered_worlds
from neuralsim.agents.web.seat import DriverSeat

TOKEN = "0123456789abcdef0123"


def ask(host: str, origin: str, config: WebConfig | None = None, token: str = "") -> tuple[int, str] | None:
    protocols = [PROTOCOL, *([f"token.{token}"] if token else [])]
    return refuse_client({"host": host, "origin": origin}, protocols, config or WebConfig())


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:9000", "[::1]:8080", "localhost"])
def test_the_own_page_is_admitted_also_through_a_forwarded_port(host: str) -> None:
    assert ask(host, f"http://{host}") is None


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:8080", "http://evil.example", 403),
        ("127.0.0.1:8080", "", 403),
        ("127.0.0.1:8080", "null", 403),
        ("127.0.0.1:8080", "http://127.0.0.1:8081", 403),
        ("127.0.0.1:8080", "https://127.0.0.1:8080", 403),
        ("evil.example:8080", "http://evil.example:8080", 421),
        ("localhost.evil.example", "http://localhost.evil.example", 421),
        ("evil.example@localhost", "http://evil.example@localhost", 421),
        ("127.0.0.1.evil.example:80", "http://127.0.0.1.evil.example:80", 421),
        ("[::1", "http://[::1", 421),
        ("", "http://", 421),
    ],
)
def test_foreign_pages_and_rebound_names_are_refused_by_name(host: str, origin: str, status: int) -> None:
    refused = ask(host, origin)
    assert refused is not None
    assert refused[0] == status
    assert "\n" not in refused[1]


def test_an_origin_may_be_admitted_for_a_proxy() -> None:
    config = WebConfig(origins=("https://play.example.org",))
    assert ask("play.example.org", "https://play.example.org", config) is None
    assert ask("127.0.0.1:8080", "https://play.example.org", config) is None
    assert ask("other.example.org", "https://play.example.org", config) is not None


def test_another_host_needs_the_token() -> None:
    config = WebConfig(host="0.0.0.0", token=TOKEN)
    host = "10.0.0.7:8080"
    assert ask(host, f"http://{host}", config, TOKEN) is None
    for wrong in ("", TOKEN[:-1], TOKEN + "0", "ä" * 20):
        refused = ask(host, f"http://{host}", config, wrong)
        assert refused is not None
        assert refused[0] == 401
        assert TOKEN not in refused[1]
    assert ask(host, "http://10.0.0.8:8080", config, TOKEN) is not None, "the origin counts with a token too"
    assert refuse_host({"host": host}, config) == ""


def test_another_host_without_a_token_cannot_be_configured_and_play_makes_one() -> None:
    with pytest.raises(ValueError, match="a token is needed"):
        WebConfig(host="0.0.0.0")
    with pytest.raises(ValueError, match="at least 16 characters, got 5"):
        WebConfig(token="short")
    assert WebConfig.from_play(PlayConfig()).token is None
    first, second = (WebConfig.from_play(PlayConfig(host="0.0.0.0")).token for _ in range(2))
    assert first is not None
    assert len(first) >= 32
    assert first != second


def test_options_that_do_not_go_with_a_browser_are_refused() -> None:
    with pytest.raises(ValueError, match="--web takes its keys from browsers"):
        PlayConfig(web=True, script="0 quit").validate()
    with pytest.raises(ValueError, match="port and viewers"):
        PlayConfig(web=True, port=70000).validate()


def test_the_chooser_offers_each_shipped_world_once_and_the_first_first() -> None:
    worlds = offered_worlds("carracing")
    assert worlds[0] == "carracing"
    assert "pusht" in worlds
    assert len(set(worlds)) == len(worlds)
    assert "pusht-wam" not in worlds, "pusht is that one"


# -- messages --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"kind":"ack","number":3}', ViewerMessage("ack", number=3)),
        ('{"kind":"key","name":"left","down":true,"number":1}', ViewerMessage("key", "left", 1, True)),
        ('{"kind":"clear"}', ViewerMessage("clear")),
        ('{"kind":"do","name":"rewind"}', ViewerMessage("do", "rewind")),
        ('{"kind":"passes","number":4}', ViewerMessage("passes", number=4)),
        ('{"kind":"seat","name":"give","number":2}', ViewerMessage("seat", "give", 2)),
    ],
)
def test_messages_of_the_page(data: str, message: ViewerMessage) -> None:
    assert parse_message(data) == message


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01", "", "{", "[" * 2000, "[]", "null", "1", '"ack"', "{}", '{"kind":1}', '{"kind":[]}', '{"kind":"quit"}',
        '{"kind":"ack"}', '{"kind":"ack","number":"3"}', '{"kind":"ack","number":true}', '{"kind":"ack","number":-1}',
        '{"kind":"ack","number":1e999}', '{"kind":"ack","number":NaN}', '{"kind":"ack","number":99999999999999999999}',
        '{"kind":"ack","number":1,"more":2}', '{"kind":"do","name":"quit"}', '{"kind":"do","name":"__class__"}',
        '{"kind":"passes","number":0}', '{"kind":"passes","number":5}', '{"kind":"key","name":"left","down":1,"number":1}',
        '{"kind":"clear","down":true}', '{"kind":"seat","name":"steal","number":0}',
        '{"kind":"world","name":"' + "x" * 301 + '"}', '{"kind":"clear","self":1}',
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_a_reason(data: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"^.{5,120}$"):
        parse_message(data)


def outcome(text: str) -> str:
    """Kind of a message, or the reason to refuse it."""
    try:
        return parse_message(text).kind
    except ValueError as error:
        return str(error)


def test_fuzz_messages_are_parsed_or_refused() -> None:
    rng = random.Random(0)
    values = [None, True, 0, -1, 2**70, 0.5, "", "left", "do", [], {}, {"kind": "ack"}]
    names = ["kind", "name", "number", "down", "", "self"]
    for _ in range(3000):
        fields = {name: rng.choice(values) for name in rng.sample(names, rng.randint(0, 5))}
        if rng.random() < 0.8:
            fields["kind"] = rng.choice(list(FIELDS))
        text = json.dumps(fields)
        if rng.random() < 0.2:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice('{}[]",:0e\x00é') + text[at + 1 :]
        assert outcome(text) in FIELDS or len(outcome(text)) <= 120


def test_messages_are_limited_in_the_long_run_and_at_once() -> None:
    bucket = TokenBucket(10, 5, 0.0)
    assert [bucket.take(0.0) for _ in range(6)] == [True] * 5 + [False]
    assert bucket.take(0.11)
    assert not bucket.take(0.12)
    assert sum(bucket.take(100 + i / 1000) for i in range(1000)) == pytest.approx(15, abs=1)


# -- the seat --------------------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_first_drives_and_hands_over() -> None:
    seat = DriverSeat(60, 10, Clock())
    seat.join(1, "a")
    seat.join(2, "b")
    assert seat.driver == 1
    assert not seat.take(2, "b")
    assert seat.asking == [2]
    seat.give(2, "b")
    assert (seat.driver, seat.asking) == (2, [])


def test_a_driver_that_was_cut_finds_the_seat_again_for_a_while() -> None:
    seat = DriverSeat(60, 10, clock := Clock())
    seat.join(1, "a")
    seat.join(2, "b")
    seat.leave(1)
    assert not seat.free
    seat.join(3, "c")
    assert seat.driver is None
    seat.join(4, "a")
    assert seat.driver == 4
    seat.leave(4)
    clock.now = 10.5
    assert seat.free
    assert seat.take(2, "b")


def test_an_idle_driver_can_be_relieved_and_a_busy_one_not() -> None:
    seat = DriverSeat(60, 10, clock := Clock())
    seat.join(1, "a")
    clock.now = 50
    seat.act()
    clock.now = 100
    assert not seat.take(2, "b")
    clock.now = 111
    assert seat.take(2, "b")
    assert seat.driver == 2
