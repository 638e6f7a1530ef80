"""Keyboard: held keys as a Policy.

It knows nothing of windows: the receiver of the events calls ``hold`` and ``release``, the owner of the world ``predict``, and the
two may be different threads. A tap shorter than a step still pushes for one step, so no key is lost to a slow model.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuralsim.spec import WorldSpec

DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
"""Action of each key, in [-1, 1] (right, down)."""
GENTLE = "gentle"
"""Key that makes a push gentle."""
GENTLE_SCALE = 1 / 3
DIGITS = tuple("0123456789")
RESTS = ("none", "noop", "nothing", "still", "stay", "idle", "rest")
"""Labels of choices that do nothing."""


@dataclass(frozen=True)
class Press:
    """The keys at the beginning of a step."""

    action: np.ndarray
    """float32 ``(2,)`` in [-1, 1], or the choice, int64 ``(1,)``."""
    active: bool
    """True while a key that acts is pressed."""
    serial: int
    """Number of the newest change of keys that the action takes into account (see :attr:`Keyboard.serial`)."""


class Keyboard:
    """Stable-Baselines3's ``predict`` on held keys: ``left right up down`` push at full scale, ``gentle`` makes it a third.

    Opposite keys cancel; two neighbouring ones push diagonally, both at full scale.
    """

    keys: tuple[str, ...] = tuple(DIRECTIONS)
    """The keys that act."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, None] = {}  # in the order of pressing
        self._taps: dict[str, int | None] = {}  # pressed since the last read -> the change that released it, if any
        self.serial = 0
        """Number of changes of the keys that changed the action."""

    @property
    def held(self) -> frozenset[str]:
        """The keys now down."""
        return frozenset(self._held)

    def hold(self, key: str) -> int | None:
        """Record that ``key`` went down; return the number of this change, None where it changes nothing."""
        if key != GENTLE and key not in self.keys:
            raise ValueError(f"key: expected one of {[*self.keys, GENTLE]}, got {key!r}")
        with self._lock:
            if key in self._held:
                return None
            self._held[key] = None
            if key == GENTLE:
                return self._changed() if self._pushes() else None
            self._taps[key] = None
            return self._changed()

    def release(self, key: str) -> int | None:
        """Record that ``key`` went up; return the number of this change, None where it changes nothing."""
        with self._lock:
            if key not in self._held:
                return None
            del self._held[key]
            if key == GENTLE and not self._pushes():
                return None
            serial = self._changed()
            if key in self._taps:
                self._taps[key] = serial
            return serial

    def clear(self) -> None:
        """Release all keys, as when the window loses the focus."""
        for key in self.held:
            self.release(key)
        with self._lock:
            self._taps.clear()

    def read(self) -> Press:
        """Return the action of the step that begins now. Taps count once: they are used up."""
        with self._lock:
            pressed = [k for k in {**self._held, **self._taps} if k != GENTLE]
            # A tap still pushes though its key is up again: that release is only seen by the next step.
            unseen = [s for s in self._taps.values() if s is not None]
            serial = min(unseen) - 1 if unseen else self.serial
            self._taps.clear()
            gentle = GENTLE in self._held
        return Press(self._action_for(pressed, gentle), bool(pressed), serial)

    def predict(
        self, observation: Any = None, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Return the keys' action and ``state`` as it is; the observation is not used."""
        return self.read().action, state

    def _action_for(self, pressed: list[str], gentle: bool) -> np.ndarray:
        """Return the action for the ``pressed`` keys, the newest last."""
        action = np.zeros(2, np.float32)
        for key in pressed:
            action += np.array(DIRECTIONS[key], np.float32) * (GENTLE_SCALE if gentle else 1.0)
        return action

    def _pushes(self) -> bool:
        return any(k in self.keys for k in self._held)

    def _changed(self) -> int:
        self.serial += 1
        return self.serial


class DiscreteKeyboard(Keyboard):
    """Keys for a world with one dimension of choices: digits take the choice of that number, and directions the one whose label
    names them, if ``labels`` (one per choice) are known. Of several keys the newest counts, unless a label names all of them.

    Without a key the choice is the one labelled as doing nothing, else choice 0.
    """

    keys = (*DIRECTIONS, *DIGITS)

    def __init__(self, spec: WorldSpec, labels: Sequence[str] = ()) -> None:
        super().__init__()
        if not spec.discrete or spec.action_size != 1:
            raise ValueError(
                f"world {spec.name!r}: keys choose in one dimension of choices, got actions {spec.action_space()}; "
                "let a policy drive"
            )
        count = spec.action_choices[0]
        if labels and len(labels) != count:
            raise ValueError(f"world {spec.name!r}: expected {count} labels, one per choice, got {len(labels)}")
        self._labels = [label.lower() for label in labels]
        self._digits = {digit: k for k, digit in enumerate(DIGITS) if k < count}
        self.rest = next((k for k, label in enumerate(self._labels) if label in RESTS), 0)
        """The choice without a key."""

    def _action_for(self, pressed: list[str], gentle: bool) -> np.ndarray:
        directions = [key for key in pressed if key in DIRECTIONS]
        choice = self._find_label(directions) if directions == pressed else None
        for key in reversed(pressed):
            if choice is None:
                choice = self._digits.get(key) if key in DIGITS else self._find_label([key])
        return np.array([self.rest if choice is None else choice], np.int64)

    def _find_label(self, directions: list[str]) -> int | None:
        """Return the choice whose label names just these directions, or None."""
        for k, label in enumerate(self._labels):
            if directions and {d for d in DIRECTIONS if d in label} == set(directions):
                return k
        return None
