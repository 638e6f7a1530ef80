"""Twin: the true simulator beside a dream, at the very state in which the dream began."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from neuralsim.agents.policies.registry import SCRIPTED_POLICIES, ScriptedPolicies, find_scripted_policies
from neuralsim.envs.real_env import RealEnv
from neuralsim.pretrained.world import Starts
from neuralsim.spec import WorldSpec


@dataclass(frozen=True, eq=False)
class ReferenceEnv:
    """``env``, which shows its states, named ``state_names``; ``collector`` knows its explorer."""

    env: RealEnv
    state_names: tuple[str, ...]
    collector: ScriptedPolicies


def find_reference_env(spec: WorldSpec, starts: Starts) -> ReferenceEnv:
    """The twin of dreams that begin at ``starts``; a ValueError says in a line why there is none."""
    if spec.name not in SCRIPTED_POLICIES:
        raise ValueError("no true simulator of it can be put where a dream begins")
    collector = find_scripted_policies(spec.name)
    if collector.seeded:
        raise ValueError("its simulator cannot be put where a dream begins")
    if spec.height != spec.width:
        raise ValueError(f"its simulator draws squares, not {spec.height}x{spec.width}")
    if starts.states is None or starts.states.shape[-1] != len(collector.state_names):
        raise ValueError(f"its starts do not know the true states ({', '.join(collector.state_names)})")
    env = cast(RealEnv, collector.env(spec.height))
    if not np.array_equal(env.spec_world.action_scale, spec.action_scale):
        env.close()
        raise ValueError("its actions are not those of the simulator")
    return ReferenceEnv(env, collector.state_names, collector)
