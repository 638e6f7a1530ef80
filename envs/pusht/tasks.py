"""Tasks of Push-T: what agents learn there, and when a goal state is reached.

A goal does not change, so that observations need not carry one. Rewards are progress: what a step gains, so that doing nothing
returns 0, detours cost nothing in the end (potential-based shaping; Ng, Harada and Russell 1999), and the error of a state
estimate cancels from step to step.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from neuralsim.envs.pusht.env import BLOCK_OUTLINE, GOAL_POSE, PUSHER_RADIUS
from neuralsim.envs.tasks.goal_task import CIRCLE, GoalTask, moved_distance
from neuralsim.envs.tasks.rl_task import BONUS, UNIT, RLTask
from neuralsim.evaluation.statistics import turn

NEAR = 20.0
"""Units of the 512-wide workspace within which block and pusher are at the goal. Both this and the angle are the field's
(stable-worldmodel's PushT)."""
NEAR_ANGLE = 20.0
"""Degrees within which the block is turned as the goal is."""
TOUCH = 2.0
"""Units between pusher and block that count as touching."""
APPROACH = 0.2
"""Reward for a unit of the pusher's way to the block, beside a unit of the block's to its goal."""
LANDMARKS = np.array([(-60.0, 15.0), (60.0, 15.0), (0.0, 120.0)])
"""Ends of the T's bar and of its stem, in its own frame: their distances from the goal's are distance and angle at once."""
BOXES = np.array([((-60.0, 0.0), (60.0, 30.0)), ((-15.0, 30.0), (15.0, 120.0))])
"""Low and high corner of the T's bar and stem, in its own frame."""


# -- rewards -----------------------------------------------------------------------------------------------------------


def block_gap(states: np.ndarray, goal: tuple[float, float, float] = GOAL_POSE) -> np.ndarray:
    """Root-mean-square distance in units ``(b,)`` of the block's landmarks in ``states`` ``(b, 5)`` from the goal's."""
    return np.sqrt(np.square(_landmarks(states[:, 2:]) - _landmarks(np.array([goal]))).sum(-1).mean(-1))


def pusher_gap(states: np.ndarray) -> np.ndarray:
    """Units ``(b,)`` between the pusher's rim and the block; 0 where they touch."""
    away = states[:, :2] - states[:, 2:4]
    sine, cosine = np.sin(states[:, 4]), np.cos(states[:, 4])
    own = np.stack([away[:, 0] * cosine + away[:, 1] * sine, away[:, 1] * cosine - away[:, 0] * sine], 1)
    low, high = BOXES[:, 0], BOXES[:, 1]
    outside = np.maximum(np.maximum(low - own[:, None], own[:, None] - high), 0)
    return np.maximum(np.sqrt(np.square(outside).sum(-1)).min(1) - PUSHER_RADIUS, 0)


def _landmarks(poses: np.ndarray) -> np.ndarray:
    sine, cosine = np.sin(poses[:, 2, None]), np.cos(poses[:, 2, None])
    u, v = LANDMARKS.T
    return np.stack([poses[:, :1] + u * cosine - v * sine, poses[:, 1:2] + u * sine + v * cosine], -1)


def _is_home(states: np.ndarray) -> np.ndarray:
    turned = np.abs((states[:, 4] - GOAL_POSE[2] + np.pi) % (2 * np.pi) - np.pi)
    return (np.linalg.norm(states[:, 2:4] - GOAL_POSE[:2], axis=1) < NEAR) & (turned < np.pi / 9)


def _push(before: np.ndarray, actions: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gained = block_gap(before) - block_gap(after) + APPROACH * (pusher_gap(before) - pusher_gap(after))
    home = _is_home(after)
    return gained / UNIT + BONUS * home, home


def _touch(before: np.ndarray, actions: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    touching = pusher_gap(after) < TOUCH
    return (pusher_gap(before) - pusher_gap(after)) / UNIT + BONUS * touching, touching


_task = partial(RLTask, world="pusht")
RL_TASKS = {
    "push": _task("push", about="bring the block home: distance and angle to its goal", reward=_push),
    "touch": _task("touch", about="go and touch the block", reward=_touch, horizon=50),
    "cover": _task("cover", about="the world's own: the goal's coverage, until 95 %"),
}
"""Tasks for agents, the default first."""


# -- goal states -------------------------------------------------------------------------------------------------------


def block_distance(state: np.ndarray, goal: np.ndarray) -> float:
    """Units between the block's origin and the goal's."""
    return float(np.linalg.norm(state[2:4] - goal[2:4]))


def block_turn(state: np.ndarray, goal: np.ndarray) -> float:
    """Degrees between the block's angle and the goal's, 0..180."""
    return float(turn(state[4], goal[4]))


def block_reached(state: np.ndarray, goal: np.ndarray) -> bool:
    """Block nearer than 20 units and turned less than 20 degrees away, wherever the pusher is."""
    return block_distance(state, goal) < NEAR and block_turn(state, goal) < NEAR_ANGLE


def block_and_pusher_reached(state: np.ndarray, goal: np.ndarray) -> bool:
    """The field's rule: pusher and block together, four numbers, nearer than 20 units, and the same angle."""
    return float(np.linalg.norm(state[:4] - goal[:4])) < NEAR and block_turn(state, goal) < NEAR_ANGLE


def _outlines(state: np.ndarray) -> list[np.ndarray]:
    sine, cosine = np.sin(state[4]), np.cos(state[4])
    turned = BLOCK_OUTLINE @ np.array([[cosine, sine], [-sine, cosine]])
    return [turned + state[2:4], PUSHER_RADIUS * CIRCLE + state[:2]]


GOAL_TASK = GoalTask(
    world="pusht",
    rules={"block": block_reached, "block and pusher": block_and_pusher_reached},
    distances={
        "block": ("units", block_distance),
        "block's angle": ("°", block_turn),
        "pusher": ("units", moved_distance),
    },
    outlines=_outlines,
    least=0.85,
)
"""Planning to a goal state."""
