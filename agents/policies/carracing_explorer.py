"""A scripted policy that explores CarRacing as people and planners might: along the road at all speeds, by keys or by wheel, and off it.

It strings short behaviours together. It takes the course of the road from the simulator, so that the exploration is not limited by
a camera that sees little of the road ahead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neuralsim.envs.carracing.env import CarRacingRealEnv

BEHAVIOURS = {"follow": 0.52, "keys": 0.28, "wander": 0.12, "coast": 0.03, "brake": 0.05}
"""Each behaviour's share of the segments (not of the steps)."""


@dataclass(frozen=True)
class DrivingSegment:
    """One behaviour under way: for ``steps`` more steps, at ``speed`` units a second, ``aside`` units from the middle of the road, or
    holding ``controls``; with normal noise of standard deviation ``noise``."""

    kind: str
    steps: int
    speed: float = 0.0
    aside: float = 0.0
    controls: tuple[float, float, float] = (0.0, 0.0, 0.0)
    noise: float = 0.0


class CarRacingExplorer:
    """Explores the CarRacing of ``env`` by its states ``(5,)``, see CarRacingRealEnv."""

    def __init__(self, env: CarRacingRealEnv, seed: int = 0) -> None:
        self.env = env
        self.rng = np.random.default_rng(seed)

    def predict(
        self,
        observation: np.ndarray,
        state: DrivingSegment | None = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, DrivingSegment]:
        """Return an action ``(3,)`` in [-1, 1], and the segment, to be passed to the next call."""
        if state is None or state.steps <= 0 or (episode_start is not None and np.any(episode_start)):
            state = self._next_segment()
        steer, gas, brake = state.controls
        if state.kind in ("follow", "keys"):
            steer, gas, brake = self._follow(observation, state)
        if state.noise:
            steer += self.rng.normal() * state.noise
            gas += self.rng.normal() * state.noise * 0.5
        action = np.clip([steer, 2 * gas - 1, 2 * brake - 1], -1, 1).astype(np.float32)
        return action, replace(state, steps=state.steps - 1)

    def _follow(self, observation: np.ndarray, segment: DrivingSegment) -> tuple[float, float, float]:
        speed, slip, turn = map(float, observation[:3])
        if abs(slip) > 8 or abs(turn) > 5:  # skidding: more steering or gas would make it a spin
            return 0.0, 0.0, 0.5
        right, front = self.env.road_ahead(6 + 0.25 * max(speed, 0))
        bend_right, bend_front = self.env.road_ahead(12 + 0.6 * max(speed, 0))
        bend = abs(np.arctan2(bend_right, max(bend_front, 0.1)))
        wanted = max(segment.speed / (1 + 0.9 * bend), 18.0)
        angle = np.arctan2(right + segment.aside, front)
        steer = 1.6 * np.clip(angle, -1.2, 1.2) - 0.06 * turn
        if abs(angle) > 1:  # the road is behind: turn round slowly
            wanted = min(wanted, 12.0)
        gas, brake = np.clip((wanted - speed) * 0.08, 0, 1), np.clip((speed - wanted - 8) * 0.04, 0, 0.8)
        if segment.kind == "keys":  # all or nothing, as keys are
            return float(np.sign(steer) * (abs(steer) > 0.25)), float(gas > 0.3), float(brake > 0.15)
        return float(np.clip(steer, -1, 1)), float(gas), float(brake)

    def _next_segment(self) -> DrivingSegment:
        rng = self.rng
        kind = str(rng.choice(list(BEHAVIOURS), p=list(BEHAVIOURS.values())))
        noise = 0.0 if rng.random() < 0.5 else float(rng.uniform(0.05, 0.35))
        if kind in ("follow", "keys"):
            aside = float(rng.normal() * 2.5) if rng.random() < 0.5 else 0.0
            return DrivingSegment(kind, int(rng.integers(15, 90)), float(rng.uniform(15, 65)), aside, noise=noise)
        if kind == "wander":
            full = rng.random() < 0.5
            steer = float(rng.choice([-1, 0, 1])) if full else float(rng.uniform(-1, 1))
            gas = float(rng.random() < 0.6) if full else float(rng.uniform(0, 0.7))
            return DrivingSegment(kind, int(rng.integers(3, 22)), controls=(steer, gas, 0.0), noise=noise)
        if kind == "coast":
            return DrivingSegment(kind, int(rng.integers(5, 25)), controls=(float(rng.uniform(-0.4, 0.4)), 0.0, 0.0))
        controls = (float(rng.uniform(-0.6, 0.6)), 0.0, float(rng.uniform(0.2, 1)))
        return DrivingSegment(kind, int(rng.integers(3, 15)), controls=controls)
