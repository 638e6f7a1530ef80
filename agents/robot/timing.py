"""Timing of a control loop: absolute deadlines at a fixed rate, and the latency of inference."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

TOLERANCE = 0.25
"""Share of a period by which a tick may come late without counting as missed."""
TOO_LATE = 0.5
"""Share of a period after which a tick is skipped: the next deadline is nearer, and two ticks on top of each other are two
periods' motion in one."""


class Clock(Protocol):
    """Seconds that only go forward."""

    def now(self) -> float:
        """Return the seconds since some fixed moment."""

    def wait(self, until: float, alarm: threading.Event) -> None:
        """Return at ``until``, or as soon as ``alarm`` is set."""


class WallClock:
    """Monotonic clock of the system."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, until: float, alarm: threading.Event) -> None:
        remaining = until - time.monotonic()
        if remaining > 0:
            alarm.wait(remaining)


@dataclass(frozen=True)
class Tick:
    """One turn of the loop."""

    number: int
    """Number of its deadline."""
    deadline: float
    """Due time in seconds of the clock."""
    time: float
    """Time at which it came."""

    @property
    def late(self) -> float:
        """Seconds after the deadline."""
        return self.time - self.deadline


class FixedRateTimer:
    """Timer whose deadline i lies ``i / hz`` seconds after the first, however long the work between them takes.

    A tick that comes later than ``tolerance`` (seconds; a quarter of a period by default) is a missed deadline. One that would
    come later than half a period is skipped and counts as missed too: the loop goes on at the next deadline that can be kept.
    """

    def __init__(self, hz: float, clock: Clock | None = None, tolerance: float | None = None) -> None:
        if not 0 < hz < math.inf:
            raise ValueError(f"FixedRateTimer: expected a rate above 0 Hz, got {hz:g}")
        self.hz, self.period, self.clock = hz, 1 / hz, clock or WallClock()
        self.tolerance = TOLERANCE * self.period if tolerance is None else tolerance
        self.missed = self.ticks = 0
        self._first = self.clock.now()
        self._next = 0

    def begin(self) -> None:
        """Set the first deadline to now; counts go on."""
        self._first, self._next = self.clock.now(), 0

    def wait(self, alarm: threading.Event) -> Tick:
        """Wait for the next deadline, or for ``alarm``."""
        overdue = (self.clock.now() - self._first) * self.hz - self._next
        if overdue > TOO_LATE:
            skipped = math.ceil(overdue - TOO_LATE)
            self.missed += skipped
            self._next += skipped
        deadline = self._first + self._next * self.period
        self.clock.wait(deadline, alarm)
        tick = Tick(self._next, deadline, self.clock.now())
        self.missed += tick.late > self.tolerance
        self.ticks += 1
        self._next += 1
        return tick


class LatencyTracker:
    """Newest ``window`` latencies in seconds. The first of all is dropped as soon as there is a second: it warms up."""

    def __init__(self, window: int = 50, take: Literal["p95", "max"] = "max") -> None:
        self._seconds: deque[float] = deque(maxlen=window)
        self._warm = False
        self.take = take

    def add(self, seconds: float) -> None:
        """Add the newest latency."""
        if not self._warm and len(self._seconds) == 1:
            self._seconds.clear()
            self._warm = True
        self._seconds.append(seconds)

    @property
    def seconds(self) -> float:
        """Expected latency of the next inference: the p95 of those known, or the longest; 0 without any."""
        if not self._seconds:
            return 0.0
        return float(np.quantile(self._seconds, 0.95)) if self.take == "p95" else max(self._seconds)

    def periods(self, hz: float) -> int:
        """Return the control periods that pass meanwhile, rounded up; none pass in no time."""
        return math.ceil(self.seconds * hz - 1e-9)
