"""gym_collector: the Collector of any registered Gymnasium environment."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from neuralsim.agents.policies.random_policies import HoldActionPolicy
from neuralsim.agents.policies.registry import ScriptedPolicies
from neuralsim.envs.gym_adapter.env import GymEnvConfig, GymRealEnv
from neuralsim.spec import WorldSpec

if TYPE_CHECKING:
    from neuralsim.agents.policies.policy import Policy
    from neuralsim.data.images import Size


@cache
def gym_collector(world: GymEnvConfig) -> ScriptedPolicies:
    """The collector of ``world``; raises ValueError where its environment cannot be a world. It is made once to find out."""
    known = GymRealEnv(world)
    known.close()
    kind = "state" if known.state_names else "pixels"

    def env(size: Size) -> GymRealEnv:
        return GymRealEnv(world, size, observation="state" if kind == "state" else "pixels")

    def spec(size: Size) -> WorldSpec:
        return known.resized(size)

    def explorer(env: gym.Env[np.ndarray, Any], seed: int) -> Policy:
        return HoldActionPolicy(known.spec_world, seed)

    def remarks(size: Size) -> tuple[str, ...]:
        shown = env(size)
        try:
            return shown.remarks()
        finally:
            shown.close()

    return ScriptedPolicies(
        spec,
        known.state_names,
        env,
        explorer,
        steps=known.steps,
        anew=True,
        source=world.source,
        remarks=remarks,
    )
