"""Legend: what the things of a world are called on the screen, and which keys do what."""

from __future__ import annotations

from dataclasses import dataclass

from neuralsim.agents.teleop.key_bindings import keyboard_for
from neuralsim.agents.teleop.keyboard import Keyboard
from neuralsim.spec import WorldSpec

RAMP_SECONDS = 0.15
"""A wheel takes that long from straight on to full lock: at once, it jerks."""
PUSHT_KEYS = (
    ("arrows, W A S D", "push; two neighbours push diagonally"),
    ("shift", "push gently, a third as far"),
)


@dataclass(frozen=True)
class Legend:
    """reward, end: what these mean; ``share``: the reward lies in 0..1 and is drawn as a bar. states: names; ``choices``: what
    the choices of a world with one dimension of them are called. spec: of the world, which names actions and their units. untrue: why
    there is no truth to show. keys: what acts, and how."""

    reward: str = "reward"
    end: str = "end"
    share: bool = False
    states: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    spec: WorldSpec | None = None
    untrue: str = ""
    keys: tuple[tuple[str, str], ...] = PUSHT_KEYS


def keys_and_legend(spec: WorldSpec, states: tuple[str, ...] = (), untrue: str = "") -> tuple[Keyboard, Legend]:
    """What a hand plays ``spec``'s world with, and what the screen says of it."""
    if spec.name == "pusht":
        return Keyboard(), Legend("coverage", "success", True, states, spec=spec, untrue=untrue)
    keyboard, told = keyboard_for(spec, ramp=RAMP_SECONDS)
    choices = tuple(does for _, does in told) if spec.discrete and spec.action_size == 1 else ()
    gentle = () if spec.discrete else (("shift", "gently, a third as far"),)
    return keyboard, Legend(states=states, choices=choices, spec=spec, untrue=untrue, keys=(*told, *gentle))
