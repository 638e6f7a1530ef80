"""Keyboard: held keys as a Policy.

It knows nothing of windows: whoever sees the events says ``hold`` and ``release``, whoever steps the world calls ``predict``, and the two
may live in different threads. A tap shorter than a step still pushes for one step, so no key is lost to a slow model.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
"""What each key pushes, in action units (right, down)."""
GENTLE = "gentle"
"""The key that turns a push into a gentle one."""
GENTLE_SCALE = 1 / 3


@dataclass(frozen=True)
class Press:
    """What the keys said at one moment.

    action float32 ``(2,)`` in [-1, 1]; ``active``: some direction is pressed; ``serial``: number of the newest change of keys that this
    action takes into account (see :attr:`Keyboard.serial`).
    """

    action: np.ndarray
    active: bool
    serial: int


class Keyboard:
    """Stable-Baselines3's ``predict`` on held keys: ``left right up down`` push at full scale, ``gentle`` makes it a third.

    Opposite keys cancel; two neighbouring ones push diagonally, both at full scale.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: set[str] = set()
        self._taps: dict[str, int | None] = {}  # pressed since the last read -> the change that released it, if any
        self.serial = 0
        """How often the keys have changed what is asked of the world."""

    @property
    def held(self) -> frozenset[str]:
        """The keys now down."""
        return frozenset(self._held)

    def hold(self, key: str) -> int | None:
        """``key`` went down. Returns the number of this change, or None where it changes nothing."""
        if key != GENTLE and key not in DIRECTIONS:
            raise ValueError(f"key: expected one of {[*DIRECTIONS, GENTLE]}, got {key!r}")
        with self._lock:
            if key in self._held:
                return None
            self._held.add(key)
            if key == GENTLE:
                return self._changed() if self._pushes() else None
            self._taps[key] = None
            return self._changed()

    def release(self, key: str) -> int | None:
        """``key`` went up. Returns the number of this change, or None where it changes nothing."""
        with self._lock:
            if key not in self._held:
                return None
            self._held.discard(key)
            if key == GENTLE and not self._pushes():
                return None
            serial = self._changed()
            if key in self._taps:
                self._taps[key] = serial
            return serial

    def clear(self) -> None:
        """All keys up, as when the window loses the focus."""
        for key in self.held:
            self.release(key)
        with self._lock:
            self._taps.clear()

    def read(self) -> Press:
        """What to do in the step that begins now. Taps count once: they are used up."""
        with self._lock:
            pressed = [k for k in DIRECTIONS if k in self._held or k in self._taps]
            # A tap still pushes though its key is up again: that release is only seen by the next step.
            unseen = [s for s in self._taps.values() if s is not None]
            serial = min(unseen) - 1 if unseen else self.serial
            self._taps.clear()
            scale = GENTLE_SCALE if GENTLE in self._held else 1.0
        action = np.zeros(2, np.float32)
        for key in pressed:
            action += np.array(DIRECTIONS[key], np.float32) * scale
        return Press(action, bool(pressed), serial)

    def predict(
        self, observation: Any = None, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """The action ``(2,)`` that the keys ask for; observation and state are not looked at."""
        return self.read().action, state

    def _pushes(self) -> bool:
        return any(k in DIRECTIONS for k in self._held)

    def _changed(self) -> int:
        self.serial += 1
        return self.serial
