"""Timing of play: events per second, and the latency from a key to the first frame computed with it."""

from __future__ import annotations

from collections import deque

import numpy as np

RECENT_SECONDS = 2.0
RECENT_CHANGES = 50


class Rate:
    """Events a second over the last two seconds; times in seconds, any clock."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self.count = 0
        """All events so far."""

    def add(self, now: float) -> None:
        """One event at ``now``."""
        self.count += 1
        self._times.append(now)
        while now - self._times[0] > RECENT_SECONDS:
            self._times.popleft()

    def forget(self) -> None:
        """Start over, as after a pause; ``count`` stays."""
        self._times.clear()

    def value(self, now: float) -> float:
        """Events a second; 0 before the second event or where the last is over two seconds ago."""
        if len(self._times) < 2 or now - self._times[-1] > RECENT_SECONDS:
            return 0.0
        span = self._times[-1] - self._times[0]
        return (len(self._times) - 1) / span if span > 0 else 0.0


class InputLatency:
    """Time from a key's event to the presentation of the first frame computed with it, in seconds.

    ``pressed(serial, now)`` when a key changes, ``presented(serial, now)`` when a frame that took changes up to ``serial`` into account is
    on the screen.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[int, float]] = deque()
        self._recent: deque[float] = deque(maxlen=RECENT_CHANGES)
        self.all: list[float] = []
        """Every latency measured so far."""

    def pressed(self, serial: int, now: float) -> None:
        """Change number ``serial`` came at ``now``."""
        self._pending.append((serial, now))

    def presented(self, serial: int, now: float) -> None:
        """A frame that knows all changes up to ``serial`` was shown at ``now``."""
        while self._pending and self._pending[0][0] <= serial:
            latency = now - self._pending.popleft()[1]
            self._recent.append(latency)
            self.all.append(latency)

    def forget(self) -> None:
        """Drop changes not yet shown: the world is paused and does not answer."""
        self._pending.clear()

    def median(self) -> float | None:
        """Median of the last 50, or None before the first."""
        return float(np.median(self._recent)) if self._recent else None
