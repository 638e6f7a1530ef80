"""Real worlds made from any registered Gymnasium environment, and the real world behind a store or a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import gymnasium as gym

from neuralsim.data.images import Size
from neuralsim.envs.gym_adapter.env import GymEnvConfig, GymRealEnv
from neuralsim.envs.tasks.real_world import RealWorld, find_real_world, real_worlds
from neuralsim.pretrained.world import World
from neuralsim.runtime.json_files import read_object
from neuralsim.spec import WorldSpec
from neuralsim.storage.manifest import TRAINING

LONGEST = 500
"""Steps of an episode of a Gymnasium world at most, where a policy is evaluated or trained."""


@cache
def gym_real_world(config: GymEnvConfig) -> RealWorld:
    """The real world of ``config``; a ValueError where its environment cannot be one. The environment is made once to find out."""
    known = GymRealEnv(config)
    known.close()
    env = partial(GymRealEnv, config)

    def remarks(size: Size) -> tuple[str, ...]:
        shown = env(size)
        try:
            return shown.remarks()
        finally:
            shown.close()

    return RealWorld(
        name=known.spec_world.name,
        env=env,
        spec=known.resized,
        state=known.state_names,
        horizon=min(LONGEST, known.steps),
        collect_steps=known.steps,
        square=False,
        fresh_env=True,
        source=config.source,
        remarks=remarks,
    )


def real_env_of(spec: WorldSpec, source: Mapping[str, Any] | None = None) -> gym.Env[Any, Any]:
    """The real environment of a world, behind the world's own spaces, with frames as observations.

    ``spec`` and ``source`` are a store's (``store.spec``, ``store.info.source``). Raises ValueError where neither says which
    environment it was, or where that has changed since.
    """
    if source and "env" in source:
        env: gym.Env[Any, Any] = GymRealEnv(
            GymEnvConfig.of(spec, source), (spec.height, spec.width), render_mode="rgb_array"
        )
        present = env.spec_world  # type: ignore[attr-defined]
        if (present.action_scale, present.action_offset, present.action_choices) != (
            spec.action_scale,
            spec.action_offset,
            spec.action_choices,
        ):
            raise ValueError(f"{source['env']}: its actions are {env.action_space} by now, the episodes' were {spec}")
        return env
    world = find_real_world(spec.name)
    if world is None or (world.square and spec.height != spec.width):
        raise ValueError(
            f"world {spec.name!r} ({spec.height}x{spec.width}): nothing says which real environment it comes from; expected "
            f"episodes made by 'neuralsim collect --env ID', or one of {', '.join(real_worlds())} in square frames"
        )
    if world.env_id is None:
        return world.make_env((spec.height, spec.width), "pixels", "rgb_array")
    size = spec.height if world.square else (spec.height, spec.width)
    return gym.make(world.env_id, size=size, render_mode="rgb_array", disable_env_checker=True)


def real_world_of(world: World) -> RealWorld:
    """The real world that ``world`` was learned from: as its folder says, or by its name; a ValueError says why there is none."""
    record = None if world.folder is None else world.folder / TRAINING
    source = read_object(record).get("source") if record is not None and record.is_file() else None
    real_env_of(world.spec, source).close()  # says why it cannot be made
    found = find_real_world(world.spec.name)
    if found is not None and not (source and "env" in source):
        return found
    return replace(gym_real_world(GymEnvConfig.of(world.spec, source or {})), name=world.spec.name)
