"""Segment: one short behaviour of a scripted explorer, under way. Explorers string segments together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Segment:
    """Go to each of ``targets`` (x, y in the world's units) at ``speed``, then repeat ``action`` (if any) for ``steps``
    steps, all of it shaken by ``noise``."""

    kind: str
    steps: int
    speed: float = 1.0
    targets: tuple[tuple[float, float], ...] = ()
    action: tuple[float, float] = (0.0, 0.0)
    noise: float = 0.0

    def follow(self, here: np.ndarray, step_units: float, rng: np.random.Generator) -> tuple[np.ndarray, Segment]:
        """From ``here`` ``(2,)``, where an action of 1 moves ``step_units``: the action, float32 ``(2,)`` in [-1, 1], and
        what is then left of the segment."""
        if self.targets:
            action, arrived = _towards(here, np.array(self.targets[0]), self.speed, step_units)
            rest = self.targets[1:] if arrived else self.targets
            # A target that cannot be reached (something is in the way) is given up with the segment's steps.
            following = replace(self, targets=rest, steps=self.steps - (0 if arrived and rest else 1))
        else:
            action = np.array(self.action)
            following = replace(self, steps=self.steps - 1)
        if self.noise:
            action = action + rng.normal(size=2) * self.noise
        return np.clip(action, -1, 1).astype(np.float32), following


def _towards(here: np.ndarray, there: np.ndarray, speed: float, step_units: float) -> tuple[np.ndarray, bool]:
    """An action of at most ``speed`` (largest component) from here to there, and whether it arrives."""
    wanted = (there - here) / step_units
    size = np.abs(wanted).max()
    return (wanted, True) if size <= speed else (wanted * (speed / size), False)
