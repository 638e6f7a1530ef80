"""Ground: where an agent is trained, as one Stable-Baselines3 VecEnv: dreams of a world, or copies of the true simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvStepReturn, VecEnvWrapper

from neuralsim.agents.policies.policy import ObservationKind
from neuralsim.envs.imagined.sb3_vec_env import ImaginedVecEnv
from neuralsim.envs.tasks.rl_task import RLTask
from neuralsim.envs.wrappers.discrete_actions import DiscreteActionVecEnv
from neuralsim.envs.wrappers.features import FeatureVecEnv
from neuralsim.pretrained.starts import Starts
from neuralsim.pretrained.world import World
from neuralsim.task import Task, UncertaintyPenaltyTask


def make_imagined_vec_env(
    world: World,
    rl_task: RLTask,
    starts: Starts,
    n_envs: int,
    observation: ObservationKind,
    horizon: int | None = None,
    temperature: float = 1.0,
    doubt_limit: float | None = None,
    doubt_penalty: float = 0.0,
    ensemble: bool = True,
    moves: bool = False,
) -> VecEnv:
    """``n_envs`` dreams of ``world`` from ``starts``, judged by ``rl_task``."""
    task: Task = UncertaintyPenaltyTask(rl_task.task, doubt_penalty) if doubt_penalty else rl_task.task
    env: VecEnv = ImaginedVecEnv(
        replace(world, starts=starts),
        num_envs=n_envs,
        observation=observation,
        task=task,
        horizon=horizon or rl_task.horizon,
        temperature=temperature,
        uncertainty_limit=doubt_limit,
        lean=not ensemble,
    )
    return Sound(DiscreteActionVecEnv(env) if moves else env)


def make_real_vec_env(
    world: World, rl_task: RLTask, n_envs: int, observation: ObservationKind, moves: bool = False, processes: bool = False
) -> VecEnv:
    """``n_envs`` true simulators; ``world``'s encoder makes the features. ``processes``: each in a process of its own, which
    pays where there are as many processor cores."""
    makers = [partial(rl_task.env, (world.spec.height, world.spec.width))] * n_envs
    env: VecEnv = SubprocVecEnv(makers) if processes else DummyVecEnv(makers)  # type: ignore[arg-type]
    if observation == "features":
        env = FeatureVecEnv(env, world.model)
    return Sound(DiscreteActionVecEnv(env) if moves else env)


class Sound(VecEnvWrapper):
    """Stops at the first number that is none, in what the policy does or what the world answers, and says where: a
    FloatingPointError with step, slot and seed."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.steps = 0
        self.first_seed: int | None = None

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """See VecEnv."""
        self.first_seed = seed
        return self.venv.seed(seed)

    def reset(self) -> np.ndarray:
        """See VecEnv."""
        self.steps = 0
        return np.asarray(self.venv.reset())

    def step_async(self, actions: np.ndarray) -> None:
        """See VecEnv."""
        self._check("the policy's action", actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """See VecEnv."""
        observation, rewards, dones, infos = self.venv.step_wait()
        self.steps += 1
        self._check("the world's observation", np.asarray(observation))
        self._check("the world's reward", rewards)
        return observation, rewards, dones, infos

    def _check(self, what: str, array: Any) -> None:
        if array.dtype.kind != "f" or np.isfinite(array).all():
            return
        slot = int(np.argwhere(~np.isfinite(array.reshape(self.num_envs, -1)))[0][0])
        begun = self.venv.reset_infos[slot].get("start")
        where = f", which began at start {begun}" if begun is not None else ""
        raise FloatingPointError(
            f"{what} is not a number at step {self.steps} of slot {slot}{where}; the slots' seeds are {self.first_seed} + "
            "slot. The last checkpoint is whole; to see the step again, run with the same --seed from it"
        )
