"""Steering: keys for the quantities of any world, laid out by what its spec says of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neuralsim.agents.teleop.keyboard import GENTLE_SCALE, DiscreteKeyboard, Keyboard
from neuralsim.spec import WorldSpec

PAIRS = (("left", "right"), ("down", "up"), ("j", "l"), ("k", "i"), ("f", "h"), ("g", "t"))
"""Keys for less and for more, in the order they are given away."""
DOWNWARD = ("down", "downward", "downwards")
"""Names of dimensions that grow towards the foot of the screen."""
GUESSED = {2: ("left", "right"), 3: ("left", "none", "right")}
"""What so many choices usually are, where nobody says."""


def layout(spec: WorldSpec) -> dict[str, tuple[int, float]]:
    """Each key's dimension, and the action in [-1, 1] that it takes it to.

    A dimension that rests inside its range has a key for less and one for more: left and right first, then down and up. One that rests
    at an end of it, as a pedal does, has one key that pushes it to the other: up first, then down. Dimensions beyond the keys
    have none, and rest.
    """
    free, keys = [key for pair in PAIRS for key in pair], {}
    for i, rest in enumerate(spec.rest_action()):
        if abs(rest) == 1:
            wanted = ("up", "down", *free)
            key = next((k for k in wanted if k in free), None)
            if key is not None:
                keys[key] = (i, float(-rest))
                free.remove(key)
            continue
        pair = next((p for p in PAIRS if p[0] in free and p[1] in free), None)
        if pair is not None:
            less, more = pair[::-1] if spec.action_names[i] in DOWNWARD and pair == PAIRS[1] else pair
            keys |= {less: (i, -1.0), more: (i, 1.0)}
            free = [k for k in free if k not in pair]
    return keys


class BoxKeyboard(Keyboard):
    """Held keys as an action ``(a,)`` of any world of quantities; see :func:`layout`. Without a key the action is the world's
    rest; ``gentle`` goes a third of the way. ``ramp``: seconds that an action takes from the middle of its range to an end of it,
    or back; 0: it is there at once."""

    def __init__(self, spec: WorldSpec, ramp: float = 0.0) -> None:
        super().__init__()
        self.rest, self.layout = spec.rest_action(), layout(spec)
        self.keys = tuple(self.layout)
        self.pace = 1 / (ramp * spec.rate_hz) if ramp > 0 else float("inf")
        """How far an action goes in one step at most."""
        self._now = self.rest.copy()

    def _meant(self, pressed: list[str], gentle: bool) -> np.ndarray:
        wanted = self._wanted(pressed, gentle)
        step = np.float32(min(self.pace, 2.0))  # no two actions are farther apart
        self._now = np.clip(wanted, self._now - step, self._now + step)
        return self._now.copy()

    def _wanted(self, pressed: list[str], gentle: bool) -> np.ndarray:
        action = self.rest.copy()
        for key in pressed:
            dimension, target = self.layout[key]
            action[dimension] += (target - self.rest[dimension]) * (GENTLE_SCALE if gentle else 1.0)
        return np.clip(action, -1, 1)


class MultiDiscreteKeyboard(Keyboard):
    """Held keys in a world of several choices at once, ``(a,)``: each dimension rests at choice 0, and has a key for choice 1 and one
    for choice 2, as far as there are keys. Dimensions beyond them, and further choices, are for policies."""

    def __init__(self, spec: WorldSpec) -> None:
        super().__init__()
        self.rest = spec.rest_action()
        self.layout = {
            key: (i, choice)
            for i, (pair, count) in enumerate(zip(PAIRS, spec.action_choices, strict=False))
            for choice, key in enumerate(pair if count > 2 else pair[1:], 1)
            if choice < count
        }
        self.keys = tuple(self.layout)

    def _meant(self, pressed: list[str], gentle: bool) -> np.ndarray:
        action = self.rest.copy()
        for key in pressed:  # the newest last
            dimension, choice = self.layout[key]
            action[dimension] = choice
        return action


def keyboard_for(
    spec: WorldSpec, labels: Sequence[str] = (), ramp: float = 0.0
) -> tuple[Keyboard, tuple[tuple[str, str], ...]]:
    """Keys for the world, and what each does, in words. ``labels`` name its choices, where it has choices; two or three without
    a name are taken for left and right. ramp: see Steering."""
    if spec.discrete and spec.action_size > 1:
        pairs = MultiDiscreteKeyboard(spec)
        return pairs, tuple((key, f"{spec.action_names[i]} {choice}") for key, (i, choice) in pairs.layout.items())
    if not spec.discrete:
        steering = BoxKeyboard(spec, ramp)
        return steering, tuple(
            (key, f"{spec.action_names[i]} {'+' if target > 0 else '-'}")
            for key, (i, target) in steering.layout.items()
        )
    count = spec.action_choices[0]
    names = tuple(labels) or GUESSED.get(count, ())
    choices = DiscreteKeyboard(spec, names)
    said = names or tuple(f"choice {k}" for k in range(count))
    return choices, tuple(
        (str(k), name.lower() + (" (rest)" if k == choices.rest else "")) for k, name in enumerate(said)
    )
