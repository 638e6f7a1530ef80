"""Course: a true world as a test of planning; what counts as reaching a goal there, and how far one is from it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from neuralsim.agents.policies.registry import ScriptedPolicies, find_scripted_policies
from neuralsim.envs.pusht.env import BLOCK_OUTLINE, PUSHER_RADIUS
from neuralsim.envs.real_env import RealEnv
from neuralsim.envs.tworoom import env as tworoom
from neuralsim.evaluation.statistics import turn

EXTENT = 512.0
"""Side of every course's square world, in its units."""
NEAR = 20.0
"""Push-T: units of the 512-wide workspace within which block and pusher are where they should be. Both this and the
angle are the field's (stable-worldmodel's PushT)."""
NEAR_ANGLE = 20.0
"""Push-T: degrees within which the block is turned as it should be."""

Measure = Callable[[np.ndarray, np.ndarray], float]
"""A true state ``(s,)`` and the goal's ``(s,)`` -> how far apart."""


@dataclass(frozen=True)
class GoalTask:
    """One world's test. The first two numbers of its state are the place of what the actions move.

    rules: name -> whether a state is at the goal; the first decides which pairs count as solved before anything was done.
    distances: name -> (unit, measure). outlines: state -> closed lines ``(k, 2)`` around the things in it, in units. least:
    the share of goals that must be reached.
    """

    world: str
    rules: Mapping[str, Callable[[np.ndarray, np.ndarray], bool]]
    distances: Mapping[str, tuple[str, Measure]]
    outlines: Callable[[np.ndarray], list[np.ndarray]]
    least: float

    @property
    def collector(self) -> ScriptedPolicies:
        """The world's simulator, random starts and scripted explorer."""
        return find_scripted_policies(self.world)

    def make(self, size: int) -> RealEnv:
        """The true world, drawn at ``size`` pixels."""
        return cast(RealEnv, self.collector.env(size))

    def reached(self, state: np.ndarray, goal: np.ndarray) -> dict[str, bool]:
        """What each rule says."""
        return {name: rule(state, goal) for name, rule in self.rules.items()}

    def solved(self, state: np.ndarray, goal: np.ndarray) -> bool:
        """What the first rule says."""
        return next(iter(self.rules.values()))(state, goal)

    def measure(self, state: np.ndarray, goal: np.ndarray) -> dict[str, float]:
        """What each distance is."""
        return {name: measure(state, goal) for name, (_, measure) in self.distances.items()}


def goal_task_of(world: str) -> GoalTask:
    """The course of ``world``; a ValueError lists those there are."""
    if world not in COURSES:
        near = difflib.get_close_matches(world, COURSES, 1, 0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"no true world {world!r} to plan in{hint}; there are {', '.join(COURSES)}. A model of your own is given with "
            f"--model FOLDER"
        )
    return COURSES[world]


def hand_distance(state: np.ndarray, goal: np.ndarray) -> float:
    """Units between what the actions move and where it is at the goal."""
    return float(np.linalg.norm(state[:2] - goal[:2]))


def block_distance(state: np.ndarray, goal: np.ndarray) -> float:
    """Push-T: units between the block's origin and the goal's."""
    return float(np.linalg.norm(state[2:4] - goal[2:4]))


def block_turn(state: np.ndarray, goal: np.ndarray) -> float:
    """Push-T: degrees between the block's angle and the goal's, 0..180."""
    return float(turn(state[4], goal[4]))


def block_there(state: np.ndarray, goal: np.ndarray) -> bool:
    """Push-T: block nearer than 20 units and turned less than 20 degrees away, wherever the pusher is."""
    return block_distance(state, goal) < NEAR and block_turn(state, goal) < NEAR_ANGLE


def block_and_pusher_there(state: np.ndarray, goal: np.ndarray) -> bool:
    """Push-T, the field's rule: pusher and block together, four numbers, nearer than 20 units, and the same angle."""
    return float(np.linalg.norm(state[:4] - goal[:4])) < NEAR and block_turn(state, goal) < NEAR_ANGLE


def agent_there(state: np.ndarray, goal: np.ndarray) -> bool:
    """TwoRoom: nearer than 16 units (two pixels of a 64-pixel frame)."""
    return hand_distance(state, goal) < tworoom.SUCCESS_DISTANCE


_ROUND = np.stack([f(np.linspace(0, 2 * np.pi, 25)[:-1]) for f in (np.cos, np.sin)], 1)


def _pusht_outlines(state: np.ndarray) -> list[np.ndarray]:
    sine, cosine = np.sin(state[4]), np.cos(state[4])
    turned = BLOCK_OUTLINE @ np.array([[cosine, sine], [-sine, cosine]])
    return [turned + state[2:4], PUSHER_RADIUS * _ROUND + state[:2]]


def _tworoom_outlines(state: np.ndarray) -> list[np.ndarray]:
    return [tworoom.RADIUS * _ROUND + state[:2]]


PUSHT = GoalTask(
    world="pusht",
    rules={"block": block_there, "block and pusher": block_and_pusher_there},
    distances={
        "block": ("units", block_distance),
        "block's angle": ("°", block_turn),
        "pusher": ("units", hand_distance),
    },
    outlines=_pusht_outlines,
    least=0.85,
)
TWOROOM = GoalTask(
    world="tworoom",
    rules={"agent": agent_there},
    distances={"agent": ("units", hand_distance)},
    outlines=_tworoom_outlines,
    least=0.97,
)
COURSES: Mapping[str, GoalTask] = {course.world: course for course in (PUSHT, TWOROOM)}
"""The courses, by world."""
