"""Tasks of TwoRoom: what agents learn there, and when a goal state is reached. Rewards are progress, as in Push-T."""

from __future__ import annotations

from functools import partial

import numpy as np

from neuralsim.envs.tasks.goal_task import CIRCLE, GoalTask, moved_distance
from neuralsim.envs.tasks.rl_task import BONUS, UNIT, RLTask
from neuralsim.envs.tworoom.env import GOAL, RADIUS, SUCCESS_DISTANCE, WALL

ARRIVED = 12.0
"""Units from the goal at which ``reach`` ends: somewhat less than what counts as success."""
BEHIND_DOOR = np.array([WALL[1] + RADIUS, 190.0])
"""Just past the door, on the way to the goal."""


def goal_path(states: np.ndarray) -> np.ndarray:
    """Units ``(b,)`` to the goal, through the door where that is in the way."""
    goal = np.array(GOAL)
    direct = np.linalg.norm(states - goal, axis=1)
    through = np.linalg.norm(states - BEHIND_DOOR, axis=1) + np.linalg.norm(goal - BEHIND_DOOR)
    return np.where(states[:, 0] < BEHIND_DOOR[0], through, direct)


def _is_success(states: np.ndarray) -> np.ndarray:
    return np.linalg.norm(states - GOAL, axis=1) <= SUCCESS_DISTANCE


def _reach(before: np.ndarray, actions: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    arrived = np.linalg.norm(after - GOAL, axis=1) <= ARRIVED
    return (goal_path(before) - goal_path(after)) / UNIT + BONUS * arrived, arrived


_task = partial(RLTask, world="tworoom")
RL_TASKS = {
    "reach": _task("reach", about="go to the goal, through the door", reward=_reach, is_success=_is_success),
    "stay": _task("stay", about="the world's own: straight distance to the goal"),
}
"""Tasks for agents, the default first."""


def agent_reached(state: np.ndarray, goal: np.ndarray) -> bool:
    """Nearer than 16 units (two pixels of a 64-pixel frame)."""
    return moved_distance(state, goal) < SUCCESS_DISTANCE


def _outlines(state: np.ndarray) -> list[np.ndarray]:
    return [RADIUS * CIRCLE + state[:2]]


GOAL_TASK = GoalTask(
    world="tworoom",
    rules={"agent": agent_reached},
    distances={"agent": ("units", moved_distance)},
    outlines=_outlines,
    least=0.97,
)
"""Planning to a goal state."""
