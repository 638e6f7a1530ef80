"""Twin: the true simulator beside a dream, at the very state in which the dream began."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from neuralsim.envs.real_env import RealEnv
from neuralsim.envs.registry import RealWorld, find_real_world, get_real_world
from neuralsim.pretrained.starts import Starts
from neuralsim.spec import WorldSpec


@dataclass(frozen=True, eq=False)
class ReferenceEnv:
    """``env``, which shows its states, named ``state_names``; ``real_world`` knows its explorer."""

    env: RealEnv
    state_names: tuple[str, ...]
    real_world: RealWorld


def find_reference_env(spec: WorldSpec, starts: Starts) -> ReferenceEnv:
    """The twin of dreams that begin at ``starts``; a ValueError says in a line why there is none."""
    if find_real_world(spec.name) is None:
        raise ValueError("no true simulator of it can be put where a dream begins")
    real_world = get_real_world(spec.name)
    if real_world.seeded:
        raise ValueError("its simulator cannot be put where a dream begins")
    if spec.height != spec.width:
        raise ValueError(f"its simulator draws squares, not {spec.height}x{spec.width}")
    if starts.states is None or starts.states.shape[-1] != len(real_world.state_names):
        raise ValueError(f"its starts do not know the true states ({', '.join(real_world.state_names)})")
    env = cast(RealEnv, real_world.make_env(spec.height))
    if not np.array_equal(env.spec_world.action_scale, spec.action_scale):
        env.close()
        raise ValueError("its actions are not those of the simulator")
    return ReferenceEnv(env, real_world.state_names, real_world)
