"""Scripted keys: pressed by the clock instead of a person, for tests, demos and benchmarks.

One event a line, ``SECONDS VERB [KEY]``, ``#`` begins a comment; lines may also be joined by ``;``. Verbs: ``down``, ``up``, ``tap`` (down
and up at once), ``close`` (as the window manager does) and ``quit``. Keys are pygame's names without ``K_``: ``RIGHT``, ``a``, ``SPACE``,
``LSHIFT``, ``BACKSPACE``, ``PERIOD``. A script without ``quit`` or ``close`` ends with its last line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pygame

VERBS = ("down", "up", "tap", "close", "quit")


@dataclass(frozen=True)
class ScriptEvent:
    """At ``time`` seconds of the session, ``verb`` (one of VERBS) on the pygame key code ``key`` (0 for close and quit)."""

    time: float
    verb: str
    key: int = 0


def parse_script(text: str) -> tuple[ScriptEvent, ...]:
    """Parse a script into events in order of time; raises a ValueError that names the line."""
    events = []
    for number, line in enumerate(text.replace(";", "\n").splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        try:
            time = float(words[0])
        except ValueError:
            raise ValueError(f"script line {number}: expected 'SECONDS VERB [KEY]', got {_shortened(line)!r}") from None
        verb = words[1].lower() if len(words) > 1 else ""
        if verb not in VERBS or not 0 <= time < float("inf"):
            raise ValueError(
                f"script line {number}: expected a time of at least 0 and one of {VERBS}, got {_shortened(line)!r}"
            )
        if (verb in ("close", "quit")) != (len(words) == 2) or len(words) > 3:
            raise ValueError(
                f"script line {number}: down, up and tap take one key, close and quit none; got {_shortened(line)!r}"
            )
        events.append(ScriptEvent(time, verb, key_code(words[2], number) if len(words) == 3 else 0))
    if not events:
        raise ValueError("script: expected at least one event such as '0.0 down RIGHT', got none")
    events.sort(key=lambda e: e.time)  # stable: lines with the same time keep their order
    if not any(e.verb in ("close", "quit") for e in events):
        events.append(ScriptEvent(events[-1].time, "quit"))
    return tuple(events)


def read_script(source: str) -> tuple[ScriptEvent, ...]:
    """Parse the file ``source``, or ``source`` itself where it is no file."""
    if not _is_file(source):
        return parse_script(source)
    try:
        return parse_script(Path(source).read_text())
    except UnicodeDecodeError as error:
        raise ValueError(f"script {source}: not a text file ({error.reason} at byte {error.start})") from error
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _is_file(source: str) -> bool:
    try:
        return "\n" not in source and Path(source).is_file()
    except OSError:  # a text on one line can be longer than any file's name
        return False


def key_code(name: str, line: int = 0) -> int:
    """Return pygame's code of a key: ``RIGHT`` -> ``pygame.K_RIGHT``."""
    for spelling in (name, name.lower(), name.upper()):
        code = getattr(pygame, f"K_{spelling}", None)
        if code is not None:
            return int(code)
    raise ValueError(
        f"script line {line}: no key is called {_shortened(name)!r}; use pygame's names without K_, e.g. RIGHT, a, SPACE, PERIOD"
    )


def _shortened(text: str, most: int = 80) -> str:
    text = text.strip()
    return text if len(text) <= most else f"{text[:most]}..."


ARROWS = (pygame.K_LEFT, pygame.K_RIGHT, pygame.K_UP, pygame.K_DOWN)


def random_keys(seconds: float, seed: int = 0, keys: Sequence[int] = ARROWS) -> tuple[ScriptEvent, ...]:
    """Hold one of ``keys`` or two for a third of a second on average, then others, until ``seconds``: the benchmark's keys."""
    rng = np.random.default_rng(seed)
    events, time = [], 0.5
    while keys and time < seconds - 0.5:
        held = rng.choice(len(keys), size=min(len(keys), 1 + int(rng.random() < 0.3)), replace=False)
        # Never on the beat of the world's clock: a key falls anywhere between two steps.
        end = time + float(rng.uniform(0.15, 0.5))
        events += [ScriptEvent(time, "down", keys[k]) for k in held]
        events += [ScriptEvent(end, "up", keys[k]) for k in held]
        time = end + float(rng.uniform(0.05, 0.2))
    return (*sorted(events, key=lambda e: e.time), ScriptEvent(seconds, "quit"))


def post(event: pygame.event.Event) -> None:
    """Put ``event`` into pygame's queue, if there still is one."""
    with contextlib.suppress(pygame.error):  # the window may be gone already
        pygame.event.post(event)


def press(scripted: ScriptEvent, begin: float) -> None:
    """Put the events of one line of a script into pygame's queue, as a person's keys are."""
    due = begin + scripted.time
    if scripted.verb == "close":
        post(pygame.event.Event(pygame.QUIT))
    elif scripted.verb == "quit":
        post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE))
    if scripted.verb in ("down", "tap"):
        post(pygame.event.Event(pygame.KEYDOWN, key=scripted.key, due=due))
    if scripted.verb in ("up", "tap"):
        post(pygame.event.Event(pygame.KEYUP, key=scripted.key, due=due))
