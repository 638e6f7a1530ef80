"""Latency: how long thinking has taken of late, and how many control periods a new chunk must therefore leave as they are."""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

import numpy as np


class LatencyTracker:
    """The newest ``window`` latencies in seconds. The first of all is left out as soon as there is a second: it warms up."""

    def __init__(self, window: int = 50, take: Literal["p95", "max"] = "max") -> None:
        self._seconds: deque[float] = deque(maxlen=window)
        self._warm = False
        self.take = take

    def add(self, seconds: float) -> None:
        """One more."""
        if not self._warm and len(self._seconds) == 1:
            self._seconds.clear()
            self._warm = True
        self._seconds.append(seconds)

    @property
    def seconds(self) -> float:
        """What to expect of the next one: the p95 of those known, or the longest; 0 of none."""
        if not self._seconds:
            return 0.0
        return float(np.quantile(self._seconds, 0.95)) if self.take == "p95" else max(self._seconds)

    def periods(self, hz: float) -> int:
        """Control periods that go by meanwhile, rounded up; nothing goes by in no time."""
        return math.ceil(self.seconds * hz - 1e-9)
