"""ArmSimulator: one of Meta-World's tasks with seeds that count and an exact state.

Meta-World's own ``reset(seed=)`` ignores the seed, and its ``set_env_state`` does not restore exactly; both are mended here, from
outside. Meta-World: McLean et al. 2025, arXiv:2505.11289.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

try:
    import mujoco
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"Meta-World needs {error.name}, which is not installed: pip install 'neuralsim[arm]'", name=error.name
    ) from error

from neuralsim.envs.metaworld.renderer import hide_unseen

PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
"""MuJoCo's name for all numbers that a further step depends on."""
MODEL_FIELDS = (
    *("body_pos", "body_quat", "site_pos", "geom_pos", "geom_rgba", "site_rgba"),
    *("eq_data", "geom_friction", "dof_damping"),
)
"""Arrays of the model that tasks change when they lay out a scene."""
DATA_FIELDS = ("xpos", "xipos", "site_xpos", "geom_xpos", "xmat", "xquat", "qpos", "qvel", "mocap_pos")
"""Arrays of MuJoCo's data into which variables of a task may point."""
FINGERS = ("leftclaw", "rightclaw")
"""Bodies of the two fingers; the pads are children of theirs."""
TICK_HZ = 80.0
"""Steps of Meta-World a second."""
READING = 21
"""Numbers of a reading."""


@dataclass(frozen=True, eq=False)
class ArmState:
    """The exact state of an ArmSimulator, some 2 kB; a simulator of the same task in another process goes on from it to the bit."""

    task: str
    """Name of the task, without its version."""
    physics: np.ndarray
    """MuJoCo's state, float64 ``(n,)``."""
    model: dict[str, np.ndarray]
    """The arrays of MODEL_FIELDS."""
    variables: dict[str, Any]
    """Variables of the task's Python object: its goal, the object's first position, and so on; a MemoryView for one that follows a body."""


@dataclass(frozen=True)
class MemoryView:
    """A task's variable that is no array of its own but points into MuJoCo's memory, so that it follows a body or a site."""

    owner: str
    """``model`` or ``data``."""
    field: str
    """Name of the array there."""
    start: int
    """Number of the first element."""
    shape: tuple[int, ...]

    def open(self, env: Any) -> np.ndarray:
        """Return the same view into the memory of ``env``."""
        flat = getattr(getattr(env, self.owner), self.field).reshape(-1)
        return flat[self.start : self.start + math.prod(self.shape)].reshape(self.shape)


class ArmSimulator:
    """Meta-World's task ``task``, a name without its version."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.env = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
        self.env._freeze_rand_vec = False
        self.env.seeded_rand_vec = True
        self.env._set_task_called = True
        self.env._partially_observable = False  # else the goal is zeros, which the scripted experts read
        self.env.__dict__.pop("sawyer_observation_space", None)
        self.model: mujoco.MjModel = self.env.model
        self.data: mujoco.MjData = self.env.data
        hide_unseen(self.model)
        self._fingers = [_below(self.model, name) for name in FINGERS]
        self._first = self.state()

    def reset(self, seed: int) -> None:
        """Lay out the scene of ``seed``. It depends on nothing that happened before."""
        self.restore(self._first)
        self.env.seed(seed)
        self.env.reset()
        self._forward()

    def step(self, action: np.ndarray) -> tuple[float, dict[str, Any]]:
        """Take one of Meta-World's steps under ``action`` ``(4,)``; returns its reward, 0..10, and its info."""
        self.env.curr_path_length = 0  # Meta-World raises after 500 steps
        _, reward, _, _, info = self.env.step(action)
        return float(reward), info

    def evaluate(self) -> tuple[float, dict[str, Any]]:
        """Return the reward and info of the present state, as of a step without motion."""
        kept = _variables(self.env)
        reward, info = self.env.evaluate_state(self.observation(), np.zeros(4, np.float32))
        _set_variables(self.env, kept)
        return float(reward), info

    def reading(self) -> np.ndarray:
        """Return float64 ``(21,)``: hand (3), gripper opening, two objects (position 3, quaternion 4 each), goal (3)."""
        return np.concatenate([self.env._get_curr_obs_combined_no_goal(), self.env._get_pos_goal()])

    def observation(self) -> np.ndarray:
        """Return Meta-World's own observation ``(39,)``, which its scripted experts read."""
        present = self.env._get_curr_obs_combined_no_goal()
        return np.concatenate([present, self.env._prev_obs, self.env._get_pos_goal()])

    def contact_forces(self) -> np.ndarray:
        """Return the force on the left and the right finger in newtons, float64 ``(2,)``."""
        self._forward()  # forces depend on the solver's start, which a restored state has not
        sums, force = np.zeros((2, 3)), np.zeros(6)
        for i in range(self.data.ncon):
            contact = self.data.contact[i]
            bodies = {int(self.model.geom_bodyid[geom]) for geom in contact.geom}
            for finger, own in enumerate(self._fingers):
                if len(bodies & own) == 1:
                    mujoco.mj_contactForce(self.model, self.data, i, force)
                    sign = 1 if int(self.model.geom_bodyid[contact.geom[1]]) in own else -1
                    sums[finger] += sign * (contact.frame.reshape(3, 3).T @ force[:3])
        return np.linalg.norm(sums, axis=1)

    def state(self) -> ArmState:
        """Return the exact state."""
        model = {name: getattr(self.model, name).copy() for name in MODEL_FIELDS}
        return ArmState(self.task, self._physics(), model, _variables(self.env))

    def restore(self, state: ArmState) -> None:
        """Go to ``state``; a ValueError for one of another task."""
        if state.task != self.task:
            raise ValueError(f"state: expected one of task {self.task!r}, got one of {state.task!r}")
        for name, array in state.model.items():
            getattr(self.model, name)[:] = array
        _set_variables(self.env, copy.deepcopy(state.variables))
        self._set_physics(state.physics)
        self._forward()

    def _forward(self) -> None:
        """Compute positions and forces of the present state. MuJoCo's forward overwrites the solver's start, so it is put back."""
        physics = self._physics()
        mujoco.mj_forward(self.model, self.data)
        self._set_physics(physics)

    def _physics(self) -> np.ndarray:
        state = np.empty(mujoco.mj_stateSize(self.model, PHYSICS))
        mujoco.mj_getState(self.model, self.data, state, PHYSICS)
        return state

    def _set_physics(self, state: np.ndarray) -> None:
        mujoco.mj_setState(self.model, self.data, state, PHYSICS)


def _variables(env: Any) -> dict[str, Any]:
    """A copy of the variables of ``env``, but for spaces, generators and handles of MuJoCo, which stay what they are."""
    skipped = (gym.Space, mujoco.MjModel, mujoco.MjData, np.random.Generator)
    return {
        name: _find_view(env, name, value) if _points_into_mujoco(value) else copy.deepcopy(value)
        for name, value in env.__dict__.items()
        if not isinstance(value, skipped) and name != "mujoco_renderer"
    }


def _set_variables(env: Any, variables: dict[str, Any]) -> None:
    for name, value in variables.items():
        env.__dict__[name] = value.open(env) if isinstance(value, MemoryView) else value


def _points_into_mujoco(value: Any) -> bool:
    """True for an array whose memory belongs to MuJoCo."""
    while isinstance(value, np.ndarray) and not value.flags.owndata:
        if not isinstance(value.base, np.ndarray):
            return True
        value = value.base
    return False


def _find_view(env: Any, name: str, value: np.ndarray) -> MemoryView:
    for owner, fields in (("data", DATA_FIELDS), ("model", MODEL_FIELDS)):
        for field in fields:
            whole = getattr(getattr(env, owner), field)
            start, odd = divmod(value.ctypes.data - whole.ctypes.data, whole.itemsize)
            if start >= 0 and start + value.size <= whole.size and not odd and value.flags.c_contiguous:
                return MemoryView(owner, field, start, value.shape)
    raise RuntimeError(f"{type(env).__name__}.{name}: points into a part of MuJoCo's memory that a state does not know")


def _below(model: mujoco.MjModel, name: str) -> set[int]:
    """Numbers of the body ``name`` and of all that hang on it."""
    found = {int(model.body(name).id)}
    for body in range(model.nbody):  # parents come before their children
        if int(model.body_parentid[body]) in found:
            found.add(body)
    return found
