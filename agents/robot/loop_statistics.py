"""Gauges: what a robot loop counts while it drives, and the line in which it tells it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class LoopStatistics:
    """Counts of one run. ``starved``: ticks on which the robot rested for want of a plan. ``refusals``: chunks whose imagined future
    was not allowed; ``mismatches``: chunks that the world did not follow. ``limited``: actions that the limits changed. ``late``:
    plans that came after their prefix was done; ``expired``: that had nothing left to say. ``denied``: actions that the robot did
    not take. ``decisions`` and ``imagined``: seconds for each decision, and for its imagining alone."""

    episodes: int = 0
    ticks: int = 0
    missed: int = 0
    starved: int = 0
    held: int = 0
    retreats: int = 0
    refusals: int = 0
    mismatches: int = 0
    limited: int = 0
    late: int = 0
    expired: int = 0
    denied: int = 0
    seconds: float = 0.0
    decisions: list[float] = field(default_factory=list)
    imagined: list[float] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)
    prefixes: list[int] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Ticks a second; 0 before the first second is over."""
        return self.ticks / self.seconds if self.seconds > 0 else 0.0

    def ms(self, quantile: float) -> float:
        """Milliseconds that a decision took; NaN of none."""
        return float(np.quantile(self.decisions, quantile)) * 1000 if self.decisions else float("nan")

    def line(self) -> str:
        """One line for people."""
        thought = f"p50 {self.ms(0.5):.0f} ms p99 {self.ms(0.99):.0f} ms" if self.decisions else "no decision yet"
        parts = [f"{self.rate:.1f} Hz", f"missed {self.missed}", f"starved {self.starved}", f"refused {self.refusals}"]
        if self.mismatches:
            parts.append(f"mismatched {self.mismatches}")
        return "  ".join([*parts, thought])
