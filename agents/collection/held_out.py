"""Held-out episodes on a machine that has none: collected on the spot, from a seed that training never uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from neuralsim.agents.collection.collect import CollectConfig, collect
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.gym_adapter.env import GymEnvConfig
from neuralsim.spec import WorldSpec

HELD_OUT_SEED = 1_000_000
"""Collection seed of measuring. Training data come from small seeds (0 by default), so the two never share an episode."""
DEMONSTRATIONS = 60
"""How many held-out episodes of Push-T's expert there are by default."""


def held_out_folder(world: str, size: int = 64) -> Path:
    """Where held-out episodes of ``world`` at ``size`` pixels lie by default."""
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
    """The store of held-out demonstrations of ``world``'s expert in ``folder``, made or completed first where episodes are missing."""
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
    """The store of held-out episodes of ``world`` in ``folder``, made or completed first where episodes are missing.

    All of its episodes are held out: pass ``all_held_out=True`` to whatever measures on it. ``progress`` is told (done, wanted);
    ``steps``: actions in each, as many as the world's collections have by default. ``near_goal`` is the share of episodes that
    begin near the goal, if another than usual.
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
    """Held-out episodes of a world whose episodes were collected from a Gymnasium environment: ``source`` is their store's
    ``info.source``. They lie in data/<ID>-held-out; all of them are held out."""
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
        out=Path("data") / f"{spec.name.replace('/', '-')}-held-out{shape}",
        episodes=episodes,
        seed=HELD_OUT_SEED,
        workers=workers,
    )
    return _collected(config, progress)


def _collected(config: CollectConfig, progress: Callable[[int, int], None] | None) -> EpisodeStore:
    for done, wanted, _ in collect(config):
        if progress:
            progress(done, wanted)
    return EpisodeStore(config.folder)
