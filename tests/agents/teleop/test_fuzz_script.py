"""Fuzz of teleop scripts: any text is parsed or refused with a ValueError that says "script". NEURALSIM_FUZZ=N tries N texts."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path

import pygame
import pytest

from neuralsim.agents.teleop.scripted_keys import VERBS, ScriptEvent, parse_script, read_script

TEXTS = int(os.environ.get("NEURALSIM_FUZZ", "400"))
WORDS = (
    *VERBS,
    "DOWN",
    "RIGHT",
    "a",
    "SPACE",
    "PERIOD",
    "LSHIFT",
    "K_RIGHT",
    "",
    "#",
    ";",
    "\n",
    "0",
    "1.5",
    "-1",
    "1e3",
    "1e400",
    "nan",
)
WORDS += (
    "inf",
    "0x1",
    "٣",
    "½",
    "\x00",
    "\ud800",
    "\t",
    "🙂",
    "quit;",
    "__class__",
    "SCANCODE_MASK",
    "9" * 400,
    "1_0",
    "..",
    "/",
    "./",
)
SOUND = "0 down RIGHT; 1.5 up RIGHT  # push\n2 tap SPACE\n3 quit"


def random_text(rng: random.Random) -> str:
    """Words at random, or a sound script with a few characters changed, left out or doubled."""
    if rng.random() < 0.5:
        return "".join(rng.choice(WORDS) + rng.choice((" ", " ", " ", ";", "\n", "")) for _ in range(rng.randrange(40)))
    letters = list(SOUND)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(letters))
        letters[at] = rng.choice(("", letters[at] * 2, chr(rng.randrange(1, 0x3000)), rng.choice(WORDS)))
    return "".join(letters)


def refusal(source: str) -> str:
    """Read ``source`` and check its events; return the error's text instead where it is refused."""
    try:
        check(read_script(source))
    except ValueError as error:
        return str(error)
    return ""


def check(events: tuple[ScriptEvent, ...]) -> None:
    """Events of a script that was accepted: in order of time, each a verb with a key or without, with an end."""
    times = [event.time for event in events]
    assert times == sorted(times)
    assert all(math.isfinite(t) and t >= 0 for t in times)
    for event in events:
        assert event.verb in VERBS
        assert (event.key == 0) == (event.verb in ("close", "quit")) or event.key == pygame.K_UNKNOWN
    assert any(event.verb in ("close", "quit") for event in events)


@pytest.mark.parametrize("seed", range(4))
def test_any_text_is_a_script_or_refused_as_one(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a text may be the name of a file
    rng = random.Random(seed)
    for _ in range(max(1, TEXTS // 4)):
        text = random_text(rng)
        error = refusal(text)
        assert not error or "script" in error, repr(text)
        assert len(error) < 1000, "the error does not repeat a whole file"


@pytest.mark.parametrize("seed", range(2))
def test_any_file_is_a_script_or_refused_by_its_name(seed: int, tmp_path: Path) -> None:
    rng, path = random.Random(seed), tmp_path / "keys.txt"
    for _ in range(max(1, TEXTS // 8)):
        data = bytearray(random_text(rng).encode(errors="surrogatepass"))
        for _ in range(rng.randrange(3)):
            data.insert(rng.randrange(len(data) + 1), rng.randrange(256))
        path.write_bytes(data)
        error = refusal(str(path))
        assert not error or str(path) in error


def test_a_long_script_on_one_line_is_not_taken_for_a_file() -> None:
    text = "; ".join(f"{i} tap RIGHT" for i in range(200))
    assert len(read_script(text)) == 201
    assert parse_script(text) == read_script(text)
