"""LoopStatistics: counts and times of a control loop, and the line that shows them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class LoopStatistics:
    """Counts of one run."""

    episodes: int = 0
    ticks: int = 0
    missed: int = 0
    """Missed deadlines."""
    starved: int = 0
    """Ticks at rest for want of a chunk."""
    held: int = 0
    """Ticks at rest after a refused chunk."""
    retreats: int = 0
    """Actions undone."""
    refusals: int = 0
    """Chunks whose imagined future is not allowed."""
    mismatches: int = 0
    """Chunks whose imagined future differs from the observations."""
    limited: int = 0
    """Actions changed by the limits."""
    late: int = 0
    """Chunks that arrived after their prefix was done."""
    expired: int = 0
    """Chunks that arrived after all their actions."""
    denied: int = 0
    """Actions that the robot refused."""
    seconds: float = 0.0
    decisions: list[float] = field(default_factory=list)
    """Seconds of each inference."""
    imagined: list[float] = field(default_factory=list)
    """Seconds of it spent on imagining."""
    lateness: list[float] = field(default_factory=list)
    """Seconds by which each action came after its deadline."""
    prefixes: list[int] = field(default_factory=list)
    """Settled actions that each chunk begins with."""

    @property
    def rate(self) -> float:
        """Ticks a second; 0 before any time has passed."""
        return self.ticks / self.seconds if self.seconds > 0 else 0.0

    def ms(self, quantile: float) -> float:
        """Return a quantile of the inference time in milliseconds; NaN before the first."""
        return float(np.quantile(self.decisions, quantile)) * 1000 if self.decisions else float("nan")

    def line(self) -> str:
        """Return one line for people."""
        times = f"p50 {self.ms(0.5):.0f} ms p99 {self.ms(0.99):.0f} ms" if self.decisions else "no decision yet"
        parts = [f"{self.rate:.1f} Hz", f"missed {self.missed}", f"starved {self.starved}", f"refused {self.refusals}"]
        if self.mismatches:
            parts.append(f"mismatched {self.mismatches}")
        return "  ".join([*parts, times])
