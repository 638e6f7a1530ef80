"""Faults of real links and cameras: frames that are late, lost, repeated, out of order, or frozen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Faults:
    """Faults that each frame meets on its way; none by default."""

    latency: float = 0.0
    """Delay of a frame in milliseconds."""
    jitter: float = 0.0
    """Largest deviation from that delay in milliseconds, either way, uniformly distributed."""
    drop: float = 0.0
    """Share of frames that are lost."""
    duplicate: float = 0.0
    """Share of frames that come twice."""
    reorder: float = 0.0
    """Share of frames that are held back until after the next one."""
    freeze: float | None = None
    """Seconds from the start of a connection until the camera hangs: the picture stands still, all else goes on. Never by default."""

    def __post_init__(self) -> None:
        for name in ("latency", "jitter"):
            if not 0 <= getattr(self, name) <= 60_000:
                raise ValueError(f"{name}: expected 0 to 60000 milliseconds, got {getattr(self, name)}")
        for name in ("drop", "duplicate", "reorder"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {getattr(self, name)}")
        if self.freeze is not None and not self.freeze >= 0:
            raise ValueError(f"freeze: expected 0 or more seconds, got {self.freeze}")

    @property
    def in_the_link(self) -> bool:
        """True if frames can be late, lost, repeated or out of order."""
        return any((self.latency, self.jitter, self.drop, self.duplicate, self.reorder))

    def arrivals(self, rng: np.random.Generator, period: float) -> tuple[float, ...]:
        """Draw the delays in seconds of all copies of one frame; empty where it is lost. Frames are ``period`` seconds apart."""
        chances = rng.random(3)  # always all of them, so that one fault does not change another's draws
        delays = (self.latency + self.jitter * rng.uniform(-1, 1, 2)) / 1000
        delays = np.maximum(delays + 1.5 * period * (chances[0] < self.reorder), 0)
        if chances[1] < self.drop:
            return ()
        return tuple(delays[: 2 if chances[2] < self.duplicate else 1].tolist())
