"""The real environment beside an imagined one, put into the state in which the imagined episode begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from neuralsim.envs.real_env import RealEnv
from neuralsim.envs.registry import find_real_world
from neuralsim.pretrained.starts import Starts
from neuralsim.spec import WorldSpec


@dataclass(frozen=True, eq=False)
class ReferenceEnv:
    """A real environment whose observations are its states, and the names of these."""

    env: RealEnv
    state_names: tuple[str, ...]


def find_reference_env(spec: WorldSpec, starts: Starts) -> ReferenceEnv:
    """Make the real environment of ``spec`` for imagined episodes that begin at ``starts``.

    Raises a ValueError that says in a line why there is none.
    """
    world = find_real_world(spec.name)
    if world is None:
        raise ValueError("no true simulator of it can be put where a dream begins")
    if world.seeded:
        raise ValueError("its simulator cannot be put where a dream begins")
    if spec.height != spec.width:
        raise ValueError(f"its simulator draws squares, not {spec.height}x{spec.width}")
    if starts.states is None or starts.states.shape[-1] != len(world.state_names):
        raise ValueError(f"its starts do not know the true states ({', '.join(world.state_names)})")
    env = cast(RealEnv, world.make_env(spec.height))
    if not np.array_equal(env.spec_world.action_scale, spec.action_scale):
        env.close()
        raise ValueError("its actions are not those of the simulator")
    return ReferenceEnv(env, world.state_names)
