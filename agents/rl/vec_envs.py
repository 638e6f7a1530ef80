"""Training environments as one Stable-Baselines3 VecEnv: imagined episodes of a world, or real environments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecCheckNan
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvObs, VecEnvStepReturn

from neuralsim.agents.policies.policy import ObservationKind
from neuralsim.envs.imagined.config import ImaginedEnvConfig
from neuralsim.envs.imagined.sb3_vec_env import ImaginedVecEnv
from neuralsim.envs.tasks.rl_task import RLTask
from neuralsim.envs.wrappers.discrete_actions import DiscreteActionVecEnv
from neuralsim.envs.wrappers.features import FeatureVecEnv
from neuralsim.pretrained.starts import Starts
from neuralsim.pretrained.world import World
from neuralsim.task import Task, UncertaintyPenaltyTask

NAMES = {
    "actions": "the policy's action",
    "observations": "the world's observation",
    "rewards": "the world's reward",
}
"""Names of the checked arrays in errors, by their names in VecCheckNan."""


def make_imagined_vec_env(
    world: World,
    rl_task: RLTask,
    starts: Starts,
    n_envs: int,
    config: ImaginedEnvConfig | None = None,
    uncertainty_penalty: float = 0.0,
    moves: bool = False,
) -> VecEnv:
    """Make ``n_envs`` imagined episodes of ``world`` under ``rl_task``.

    Args:
        world, rl_task, starts: the learned world, the task, and the initial histories.
        n_envs: episodes side by side.
        config: its ``task`` is ignored; by default features, and the task's horizon.
        uncertainty_penalty: reward subtracted per unit of uncertainty.
        moves: actions are indices of discrete moves (see neuralsim.envs.wrappers.discrete_actions).
    """
    config = config or ImaginedEnvConfig("features", horizon=rl_task.horizon)
    task: Task = UncertaintyPenaltyTask(rl_task.task, uncertainty_penalty) if uncertainty_penalty else rl_task.task
    env: VecEnv = ImaginedVecEnv(replace(world, starts=starts), n_envs, replace(config, task=task))
    return FiniteVecEnv(DiscreteActionVecEnv(env) if moves else env)


def make_real_vec_env(
    world: World,
    rl_task: RLTask,
    n_envs: int,
    observation: ObservationKind,
    moves: bool = False,
    processes: bool = False,
) -> VecEnv:
    """Make ``n_envs`` real environments under ``rl_task``; ``world``'s encoder makes the features. ``processes``: run each in a process
    of its own, which pays where there are as many processor cores."""
    makers = [partial(rl_task.env, (world.spec.height, world.spec.width))] * n_envs
    env: VecEnv = SubprocVecEnv(makers) if processes else DummyVecEnv(makers)  # type: ignore[arg-type]
    if observation == "features":
        env = FeatureVecEnv(env, world.model)
    return FiniteVecEnv(DiscreteActionVecEnv(env) if moves else env)


class FiniteVecEnv(VecCheckNan):
    """Stops at the first NaN or infinity with a FloatingPointError that names its origin, step, environment and seed."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv, raise_exception=True)
        self.steps = 0
        self.first_seed: int | None = None

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        self.first_seed = seed
        return self.venv.seed(seed)

    def reset(self) -> VecEnvObs:
        self.steps = 0
        return super().reset()

    def step_wait(self) -> VecEnvStepReturn:
        self.steps += 1
        return super().step_wait()

    def check_array_value(self, name: str, value: np.ndarray) -> list[tuple[str, str]]:
        if value.dtype.kind != "f" or np.isfinite(value).all():
            return []
        i = int(np.argwhere(~np.isfinite(value.reshape(self.num_envs, -1)))[0][0])
        start = self.venv.reset_infos[i].get("start")
        where = f", which began at start {start}" if start is not None else ""
        raise FloatingPointError(
            f"{NAMES.get(name, name)} is not a number at step {self.steps} of environment {i}{where}; the environments' seeds are "
            f"{self.first_seed} + index. The last checkpoint is whole; to see the step again, run with the same --seed from it"
        )
