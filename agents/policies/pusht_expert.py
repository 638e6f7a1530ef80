"""A scripted policy that brings Push-T's block to a pose by planning in the real simulator.

It chooses among whole pushes rather than single actions: around the block to a free place, straight at a point of its
outline, and on for a few steps. Each proposal is simulated, the best ones are varied and simulated again, and the winner is
executed up to the step at which the block comes nearest to its goal. It sees the real state, so its episodes are
demonstrations, not results.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from neuralsim.agents.policies.scripted import Segment
from neuralsim.envs.pusht.env import (
    BLOCK_OUTLINE,
    GOAL_POSE,
    PUSHER_RADIUS,
    PUSHER_RANGE,
    STEP_UNITS,
    SUCCESS_COVERAGE,
    WORKSPACE,
)
from neuralsim.envs.pusht.simulator import PushTSimulator

MIDDLE = np.array([0.0, 45.0])
"""The T's centre of mass in its own frame."""
AROUND = 98.0
"""Radius about the middle on which the pusher goes around the block: its farthest corner, the pusher, and some room."""
STEPS = 30
"""Longest approach and push, in steps."""
PROPOSALS, KEPT, VARIATIONS = 24, 4, 12
"""Pushes proposed at first, the number of best ones that are varied, and the number of variations."""
PATIENCE = 0.15
"""Cost of a step, in units of distance."""
PROGRESS = 0.4
"""Units by which a push must bring the block nearer, or more are tried."""


@dataclass(frozen=True)
class Push:
    """One push at the block."""

    place: float
    """Point on the outline, 0..1 around it."""
    slant: float
    """Angle to the outline's normal, in radians."""
    speed: float
    """Largest component of an action."""


class PushTExpert:
    """A policy on real states ``(5,)``; the rest of the push under way travels as the policy's ``state``.

    ``goal``: the block's pose, x, y in units and angle; it rests once the block is there.
    """

    def __init__(self, seed: int = 0, goal: tuple[float, float, float] = GOAL_POSE) -> None:
        self.rng = np.random.default_rng(seed)
        self.goal = np.array([0.0, 0.0, *goal])
        self.simulator = PushTSimulator(size=8, context=1)
        self._aim = self._landmarks(self.goal[None])

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Return an action ``(2,)`` in the state ``observation`` ``(5,)``, and the rest of the push."""
        if not state or (episode_start is not None and np.any(episode_start)):
            state = self._plan(np.asarray(observation, np.float64))
        return state[0], state[1:]

    def distance(self, states: np.ndarray) -> np.ndarray:
        """Root-mean-square distance in units from the landmarks of the block in ``states`` ``(b, 5)`` to the goal's, ``(b,)``."""
        return np.sqrt(np.square(self._landmarks(states) - self._aim).sum(-1).mean(-1))

    def _landmarks(self, states: np.ndarray) -> np.ndarray:
        places = self.simulator.embed(torch.from_numpy(states)).numpy()[:, 2:]
        return places.reshape(len(states), -1, 2) * (WORKSPACE / 2)

    def _plan(self, here: np.ndarray) -> tuple[np.ndarray, ...]:
        """The actions of the best push found, at least one."""
        now = float(self.distance(here[None])[0])
        still = (np.zeros(2, np.float32),)
        if self._there(here):
            return still
        best: list[tuple[float, Push, tuple[np.ndarray, ...]]] = []
        for _ in range(3):
            best += [self._try(here, self._propose(now)) for _ in range(PROPOSALS)]
            best = sorted(best, key=lambda b: b[0])[:KEPT]
            best += [self._try(here, self._vary(best[i % KEPT][1])) for i in range(VARIATIONS)]
            best = sorted(best, key=lambda b: b[0])[:KEPT]
            if best[0][0] < now - PROGRESS:
                break
        return best[0][2] or still

    def _there(self, state: np.ndarray) -> bool:
        if np.array_equal(self.goal[2:], GOAL_POSE):
            return self.simulator.reward_and_end(state)[0] > SUCCESS_COVERAGE
        return bool(self.distance(state[None])[0] < 2.0)

    def _propose(self, now: float) -> Push:
        # The nearer the goal, the gentler: what is left is a few units.
        fastest = float(np.clip(now / 40, 0.15, 1.0))
        rng = self.rng
        return Push(float(rng.random()), float(rng.normal() * 0.4), float(rng.uniform(0.4, 1.0)) * fastest)

    def _vary(self, push: Push) -> Push:
        rng = self.rng
        speed = float(np.clip(push.speed * np.exp(rng.normal() * 0.3), 0.03, 1.0))
        return replace(
            push, place=(push.place + rng.normal() * 0.02) % 1.0, slant=push.slant + rng.normal() * 0.15, speed=speed
        )

    def _try(self, here: np.ndarray, push: Push) -> tuple[float, Push, tuple[np.ndarray, ...]]:
        """Simulate ``push``; returns its cost at its best step, the push, and its actions until then."""
        segment, state = self._segment(here, push), here
        states, actions = [], []
        for _ in range(STEPS):
            if segment.steps <= 0:
                break
            action, segment = segment.follow(state[:2], STEP_UNITS, self.rng)
            state = self.simulator.step(state[None], action[None])[0]
            states.append(state)
            actions.append(action)
        costs = self.distance(np.stack(states)) + PATIENCE * np.arange(1, len(states) + 1)
        last = int(costs.argmin())
        return float(costs[last]), push, tuple(actions[: last + 1])

    def _segment(self, here: np.ndarray, push: Push) -> Segment:
        """The segment of ``push``: out to the circle around the block, along it, straight in, and on."""
        pose = here[2:]
        sine, cosine = np.sin(pose[2]), np.cos(pose[2])
        turn = np.array([[cosine, -sine], [sine, cosine]])
        edges = np.roll(BLOCK_OUTLINE, -1, 0) - BLOCK_OUTLINE
        lengths = np.linalg.norm(edges, axis=1)
        at = push.place * lengths.sum()
        edge = int(np.searchsorted(np.cumsum(lengths), at, side="right"))
        along = edges[edge] / lengths[edge]
        touch = BLOCK_OUTLINE[edge] + along * (at - lengths[:edge].sum())
        c, s = np.cos(push.slant), np.sin(push.slant)
        inward = np.array([[c, -s], [s, c]]) @ np.array([-along[1], along[0]])
        # From the touch back along the push until the circle: |touch - t inward - MIDDLE| = AROUND.
        back = touch - MIDDLE
        b = float(back @ inward)
        t = b + np.sqrt(b * b - float(back @ back) + AROUND**2)
        entry, near = (turn @ p + pose[:2] for p in (touch - t * inward, touch - (PUSHER_RADIUS + 3) * inward))
        direction = turn @ inward
        middle = turn @ MIDDLE + pose[:2]
        way = self._around(here[:2], entry, middle)
        targets = tuple((float(x), float(y)) for x, y in np.clip([*way, near], *PUSHER_RANGE))
        action = direction * push.speed / np.abs(direction).max()
        return Segment("push", 14, 1.0, targets, (float(action[0]), float(action[1])))

    def _around(self, here: np.ndarray, entry: np.ndarray, middle: np.ndarray) -> list[np.ndarray]:
        """Waypoints from ``here`` to ``entry``, a point of the circle about ``middle``, outside of it."""
        away = here - middle
        start, end = np.arctan2(away[1], away[0]), np.arctan2(*(entry - middle)[::-1])
        sweep = (end - start + np.pi) % (2 * np.pi) - np.pi
        turns = start + sweep * np.linspace(0, 1, 2 + int(abs(sweep) / 0.5))
        radius = np.linalg.norm(away)
        ring = middle + AROUND * np.stack([np.cos(turns), np.sin(turns)], 1)
        return list(ring[1:] if radius > AROUND else ring)
