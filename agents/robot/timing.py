"""Pacemaker: when a control loop is due. Deadlines are absolute, so that what one period takes never shifts the next."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import Protocol

TOLERANCE = 0.25
"""Share of a period by which a tick may come late without counting as missed."""
TOO_LATE = 0.5
"""Share of a period after which a tick is left out: the next deadline is nearer, and two ticks on top of each other are two
periods' motion in one."""


class Clock(Protocol):
    """Seconds that only go forward."""

    def now(self) -> float:
        """Seconds since whenever."""

    def wait(self, until: float, alarm: threading.Event) -> None:
        """Return at ``until``, or as soon as ``alarm`` is set."""


class WallClock:
    """The system's own monotonic clock."""

    def now(self) -> float:
        """See Clock."""
        return time.monotonic()

    def wait(self, until: float, alarm: threading.Event) -> None:
        """See Clock."""
        remaining = until - time.monotonic()
        if remaining > 0:
            alarm.wait(remaining)


@dataclass(frozen=True)
class Tick:
    """One turn of the loop: the number of its deadline, when it was due and when it came, in seconds of the clock."""

    number: int
    deadline: float
    came: float

    @property
    def late(self) -> float:
        """Seconds after the deadline."""
        return self.came - self.deadline


class FixedRateTimer:
    """Deadline i lies ``i / hz`` seconds after the first, whatever happened before.

    A tick that comes later than ``tolerance`` (seconds; a quarter of a period by default) is a missed deadline. One that would
    come later than half a period is left out and missed too: the loop goes on at the next deadline that still can be kept.
    """

    def __init__(self, hz: float, clock: Clock | None = None, tolerance: float | None = None) -> None:
        if not 0 < hz < math.inf:
            raise ValueError(f"Pacemaker: expected a rate above 0 Hz, got {hz:g}")
        self.hz, self.period, self.clock = hz, 1 / hz, clock or WallClock()
        self.tolerance = TOLERANCE * self.period if tolerance is None else tolerance
        self.missed = self.ticks = 0
        self._first = self.clock.now()
        self._next = 0

    def begin(self) -> None:
        """The first deadline is now; counts go on."""
        self._first, self._next = self.clock.now(), 0

    def wait(self, alarm: threading.Event) -> Tick:
        """Wait for the next deadline, or for ``alarm``."""
        over = (self.clock.now() - self._first) * self.hz - self._next
        if over > TOO_LATE:
            left_out = math.ceil(over - TOO_LATE)
            self.missed += left_out
            self._next += left_out
        deadline = self._first + self._next * self.period
        self.clock.wait(deadline, alarm)
        tick = Tick(self._next, deadline, self.clock.now())
        self.missed += tick.late > self.tolerance
        self.ticks += 1
        self._next += 1
        return tick
