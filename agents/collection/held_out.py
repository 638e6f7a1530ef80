"""Held-out episodes for evaluation, collected where they are missing, from a seed that training never uses."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from neuralsim.agents.collection.collect import CollectConfig, collect
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.gym_adapter.env import GymEnvConfig
from neuralsim.spec import WorldSpec, plain_name

HELD_OUT_SEED = 1_000_000
"""Collection seed of held-out episodes. Training data come from small seeds (0 by default), so the two never share an episode."""
DEMONSTRATIONS = 60
"""Held-out episodes of Push-T's expert, by default."""


def held_out_folder(world: str, size: int = 64) -> Path:
    """Default folder of held-out episodes of ``world`` at ``size`` pixels."""
    return Path("data") / (f"{world}-held-out" + ("" if size == 64 else f"-{size}"))


def demonstration_store(
    folder: str | os.PathLike[str],
    episodes: int = DEMONSTRATIONS,
    size: int = 64,
    seed: int = HELD_OUT_SEED,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
    world: str = "pusht",
) -> EpisodeStore:
    """Open the store of held-out demonstrations of ``world``'s expert in ``folder``; missing episodes are collected first."""
    config = CollectConfig(
        world,
        out=Path(folder),
        episodes=episodes,
        seed=seed,
        size=size,
        policy="oracle",
        near_goal=0.0,
        workers=workers,
    )
    return _collected(config, progress)


def held_out_store(
    folder: str | os.PathLike[str],
    episodes: int = 256,
    steps: int | None = None,
    size: int = 64,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
    world: str = "pusht",
    near_goal: float | None = None,
) -> EpisodeStore:
    """Open the store of held-out episodes of ``world``; missing episodes are collected first.

    All of its episodes are held out: evaluate on it with ``all_held_out=True``.

    Args:
        folder: of the store; one beside it where ``folder`` holds episodes of another environment.
        episodes: number of episodes.
        steps: actions in each; by default as in the world's collections.
        size: frame side in pixels.
        workers: processes.
        progress: called with (done, wanted).
        world: name of the real world.
        near_goal: share of episodes that begin near the goal, if another than usual.
    """
    config = CollectConfig(
        world, out=Path(folder), episodes=episodes, steps=steps, seed=HELD_OUT_SEED, size=size, workers=workers
    )
    if near_goal is not None:
        config = replace(config, near_goal=near_goal)
    return _collected(config, progress)


def held_out_again(
    spec: WorldSpec,
    source: Mapping[str, Any],
    episodes: int,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> EpisodeStore:
    """Open a store of held-out episodes of a world that was collected from a Gymnasium environment.

    ``source`` is the ``info.source`` of that collection. The store is data/<ID>-held-out, or one beside it where that holds
    episodes of another environment; missing episodes are collected first.
    """
    world = GymEnvConfig.of(spec, source)
    shape = "" if (spec.height, spec.width) == (64, 64) else f"-{spec.height}x{spec.width}"
    config = CollectConfig(
        env=world.env,
        env_kwargs=world.kwargs,
        frames=world.frames,
        fit=world.fit,
        repeat=world.repeat,
        rate=world.rate,
        action_names=world.action_names,
        steps=source.get("steps"),
        size=(spec.height, spec.width),
        out=Path("data") / f"{plain_name(spec.name)}-held-out{shape}",
        episodes=episodes,
        seed=HELD_OUT_SEED,
        workers=workers,
    )
    return _collected(config, progress)


def _collected(config: CollectConfig, progress: Callable[[int, int], None] | None) -> EpisodeStore:
    config = replace(config, out=_folder_of_same(config))
    for done, wanted, _ in collect(config):
        if progress:
            progress(done, wanted)
    return EpisodeStore(config.folder)


def _folder_of_same(config: CollectConfig) -> Path:
    """The folder of ``config``, or where that holds episodes of another environment, one named by a digest of this one's."""
    folder = config.folder
    if not (folder / "store.json").is_file():
        return folder
    info, spec = EpisodeStore(folder).info, config.real_world.make_spec(config.size)
    if (info.spec, info.source) == (replace(spec, name=plain_name(spec.name)), config.source):
        return folder
    text = f"{spec.to_json()} {json.dumps(config.source, sort_keys=True, default=str)}"
    return folder.with_name(f"{folder.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}")
