"""RealWorld: a true simulator in which episodes are tried; how it is opened, and where its episodes begin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from neuralsim.data.images import Size, height_and_width
from neuralsim.envs.gym_adapter.env import GymRealEnv, real_env_of
from neuralsim.pretrained.world import Starts, World
from neuralsim.spec import WorldSpec
from neuralsim.storage.manifest import TRAINING, read_object

LONGEST = 500
"""Steps of an episode at most, in worlds of other people's making."""
NAMED_STEPS = 300
"""Steps of an episode of a world that is no environment of other people's making."""


@dataclass(frozen=True)
class RealWorld:
    """make: opens the simulator, showing frames of a size. draw: a random state ``(s,)`` to begin at, as its own reset draws it;
    None where it cannot be put at a state, and episodes begin at resets by seed. steps: actions in an episode at most."""

    make: Callable[[Size], gym.Env[Any, Any]]
    draw: Callable[[np.random.Generator], np.ndarray] | None = None
    steps: int = NAMED_STEPS

    def starts(self, count: int, seed: int, size: Size) -> Starts:
        """``count`` beginnings of one frame each. They know their states, or else the seeds of the resets they are."""
        states = seeds = None
        if self.draw is None:
            seeds = self.reset_seeds(count, seed)
            resets: list[dict[str, Any]] = [{"seed": s} for s in seeds]
        else:
            rng = np.random.default_rng([seed, 77])
            states = [self.draw(rng) for _ in range(count)]
            resets = [{"options": {"state": s}} for s in states]
        env = self.make(size)
        try:
            frames = [env.reset(**reset)[0] for reset in resets]
        finally:
            env.close()
        spec: WorldSpec = env.get_wrapper_attr("spec_world")
        return Starts(
            np.stack(frames)[:, None],
            np.zeros((count, 0, spec.action_size), spec.action_dtype),
            None if states is None else np.stack(states)[:, None],
            None if seeds is None else np.array(seeds, np.int64),
        )

    @staticmethod
    def reset_seeds(count: int, seed: int) -> list[int]:
        """Seeds of ``count`` resets; the first of many are the few."""
        return [int(s) for s in np.random.default_rng([seed, 77]).integers(2**31, size=count)]


def real_world_of(world: World) -> RealWorld:
    """The simulator that ``world`` was learned from, if its folder says so or its name does; a ValueError says why not."""
    record = None if world.folder is None else world.folder / TRAINING
    source = read_object(record).get("source") if record is not None and record.is_file() else None
    make = partial(_open, world.spec, source)
    env = make((world.spec.height, world.spec.width))
    try:
        return RealWorld(make, steps=min(LONGEST, env.steps) if isinstance(env, GymRealEnv) else NAMED_STEPS)
    finally:
        env.close()


def _open(spec: WorldSpec, source: dict[str, Any] | None, size: Size) -> gym.Env[Any, Any]:
    height, width = height_and_width(size)
    return real_env_of(replace(spec, height=height, width=width), source)
