"""Faults: what real links and cameras do to frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Faults:
    """What happens to each frame on its way; nothing by default."""

    latency: float = 0.0
    """Milliseconds that a frame takes."""
    jitter: float = 0.0
    """Milliseconds by which that varies, either way, all equally likely."""
    drop: float = 0.0
    """Share of frames that are lost."""
    duplicate: float = 0.0
    """Share of frames that come twice."""
    reorder: float = 0.0
    """Share of frames that are held back until after the next one."""
    freeze: float | None = None
    """Seconds after a driver comes until the camera hangs: the picture stands still, though all else goes on. Never by default."""

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
        """Whether frames are late or lost, whatever the camera does."""
        return any((self.latency, self.jitter, self.drop, self.duplicate, self.reorder))

    def arrivals(self, rng: np.random.Generator, period: float) -> tuple[float, ...]:
        """Seconds after which copies of one frame arrive, of which there is one per ``period`` seconds; none where it is lost."""
        chances = rng.random(3)  # always all of them, so that one fault does not change another's luck
        delays = (self.latency + self.jitter * rng.uniform(-1, 1, 2)) / 1000
        delays = np.maximum(delays + 1.5 * period * (chances[0] < self.reorder), 0)
        if chances[1] < self.drop:
            return ()
        return tuple(delays[: 2 if chances[2] < self.duplicate else 1].tolist())
