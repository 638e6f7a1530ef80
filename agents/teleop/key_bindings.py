"""Key bindings: a keyboard for any world, laid out by its spec, and the names of the world's quantities on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuralsim.agents.teleop.keyboard import GENTLE_SCALE, DiscreteKeyboard, Keyboard
from neuralsim.envs.registry import TeleopSettings, find_real_world
from neuralsim.envs.tasks.real_world import load
from neuralsim.spec import WorldSpec

PAIRS = (("left", "right"), ("down", "up"), ("j", "l"), ("k", "i"), ("f", "h"), ("g", "t"))
"""Keys for less and for more, in the order they are assigned."""
DOWNWARD = ("down", "downward", "downwards")
"""Names of dimensions that grow towards the foot of the screen."""
USUAL_CHOICES = {2: ("left", "right"), 3: ("left", "none", "right")}
"""Usual labels of two and of three choices, for worlds that have none."""
RAMP_SECONDS = 0.15
"""Seconds from the middle of an action's range to an end of it: a wheel that turns at once jerks."""


@dataclass(frozen=True)
class Labels:
    """Names of a world's quantities on the screen, and its keys."""

    reward: str = "reward"
    end: str = "end"
    reward_is_share: bool = False
    """The reward lies in 0..1 and is drawn as a bar."""
    states: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    """Labels of the choices, in a world with one dimension of them."""
    spec: WorldSpec | None = None
    """Spec of the world, with names and units of its actions."""
    no_reference: str = ""
    """Reason for no real environment to show."""
    keys: tuple[tuple[str, str], ...] = ()
    """Keys that act, each with its effect."""


def layout(spec: WorldSpec) -> dict[str, tuple[int, float]]:
    """Assign each key a dimension, and the action in [-1, 1] that it takes it to.

    A dimension that rests inside its range has a key for less and one for more: left and right first, then down and up. One that
    rests at an end of it, as a pedal does, has one key that pushes it to the other: up first, then down. Dimensions beyond the
    keys have none, and rest.
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
    """Held keys as an action ``(a,)`` of any world of quantities; see :func:`layout`.

    Without a key the action is the world's rest; ``gentle`` goes a third of the way. ``ramp``: seconds that an action takes from
    the middle of its range to an end of it, or back; 0: it is there at once.
    """

    def __init__(self, spec: WorldSpec, ramp: float = 0.0) -> None:
        super().__init__()
        self.rest, self.layout = spec.rest_action(), layout(spec)
        self.keys = tuple(self.layout)
        self.largest_change = 1 / (ramp * spec.rate_hz) if ramp > 0 else float("inf")
        """Change of an action in one step at most."""
        self._action = self.rest.copy()

    def _action_for(self, pressed: list[str], gentle: bool) -> np.ndarray:
        target = self._target(pressed, gentle)
        step = np.float32(min(self.largest_change, 2.0))  # no two actions are farther apart
        self._action = np.clip(target, self._action - step, self._action + step)
        return self._action.copy()

    def _target(self, pressed: list[str], gentle: bool) -> np.ndarray:
        action = self.rest.copy()
        for key in pressed:
            dimension, target = self.layout[key]
            action[dimension] += (target - self.rest[dimension]) * (GENTLE_SCALE if gentle else 1.0)
        return np.clip(action, -1, 1)


class MultiDiscreteKeyboard(Keyboard):
    """Held keys in a world of several choices at once, ``(a,)``.

    Each dimension rests at choice 0, and has a key for choice 1 and one for choice 2, as far as there are keys. Dimensions beyond
    them, and further choices, are for policies.
    """

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

    def _action_for(self, pressed: list[str], gentle: bool) -> np.ndarray:
        action = self.rest.copy()
        for key in pressed:  # the newest last
            dimension, choice = self.layout[key]
            action[dimension] = choice
        return action


def keyboard_for(
    spec: WorldSpec, labels: Sequence[str] = (), ramp: float = 0.0
) -> tuple[Keyboard, tuple[tuple[str, str], ...]]:
    """Make a keyboard for the world; return it with its keys and the effect of each.

    ``labels`` name the choices of a world that has choices; two or three without labels count as left and right. ``ramp``: see
    `BoxKeyboard`.
    """
    if spec.discrete and spec.action_size > 1:
        several = MultiDiscreteKeyboard(spec)
        return several, tuple((key, f"{spec.action_names[i]} {choice}") for key, (i, choice) in several.layout.items())
    if not spec.discrete:
        box = BoxKeyboard(spec, ramp)
        names = ((key, spec.action_names[i], target) for key, (i, target) in box.layout.items())
        return box, tuple((key, f"{name} {'+' if target > 0 else '-'}") for key, name, target in names)
    count = spec.action_choices[0]
    known = tuple(labels) or USUAL_CHOICES.get(count, ())
    keyboard = DiscreteKeyboard(spec, known)
    shown = known or tuple(f"choice {k}" for k in range(count))
    return keyboard, tuple(
        (str(k), name.lower() + (" (rest)" if k == keyboard.rest else "")) for k, name in enumerate(shown)
    )


def teleop_settings(spec: WorldSpec) -> TeleopSettings:
    """Settings of the real world of that name; the defaults for any other."""
    world = find_real_world(spec.name)
    return TeleopSettings() if world is None else world.teleop


def keyboard_and_labels(
    spec: WorldSpec, states: tuple[str, ...] = (), no_reference: str = ""
) -> tuple[Keyboard, Labels]:
    """Make the keyboard that plays ``spec``'s world, and the labels of its quantities (``states``: those of its state)."""
    settings = teleop_settings(spec)
    choices: tuple[str, ...] = ()
    if settings.keyboard is not None:
        keyboard, keys = load(settings.keyboard)(), settings.keys
    else:
        keyboard, effects = keyboard_for(spec, ramp=RAMP_SECONDS)
        choices = tuple(effect for _, effect in effects) if spec.discrete and spec.action_size == 1 else ()
        keys = effects if spec.discrete else (*effects, ("shift", "gently, a third as far"))
    labels = Labels(settings.reward, settings.end, settings.reward_is_share, states, choices, spec, no_reference, keys)
    return keyboard, labels
