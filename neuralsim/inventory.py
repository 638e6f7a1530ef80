"""Inventory: what there is, in plain facts: this installation, a world, or an episode store."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

import neuralsim
from neuralsim.episode import EpisodeStore, WindowSampler

PACKAGES = ("torch", "diffusers", "gymnasium", "stable-baselines3", "gym-pusht", "minari", "numpy")
WINDOW, BATCH = 16, 32
"""Frames in a window and windows in a batch with which a store's reading speed is told."""


def describe(what: str | None = None) -> dict[str, Any]:
    """Facts about ``what``: a store's folder, a world's name or folder, or (None) the installation; ready for JSON.

    Raises FileNotFoundError for what is neither.
    """
    if what is None:
        return _installation()
    if (Path(what) / "store.json").is_file():
        return _store(EpisodeStore(what))
    return _world(what)


def _installation() -> dict[str, Any]:
    import torch

    from neuralsim.catalog import list_worlds
    from neuralsim.precision import pick_device, pick_dtype
    from neuralsim.report import cpu_model

    device = pick_device()
    return {
        "neuralsim": neuralsim.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "processor": cpu_model(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "precision": str(pick_dtype("auto", device)).removeprefix("torch."),
        "worlds": list_worlds(),
    }


def _world(what: str) -> dict[str, Any]:
    from neuralsim.catalog import open_world

    world = open_world(what, device="cpu")
    spec, model, folder = world.spec, world.model, world.folder
    facts = {
        "world": what,
        "folder": str(folder),
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "megabytes": None if folder is None else round(sum(f.stat().st_size for f in folder.iterdir()) / 1e6, 2),
        "frames": f"{spec.height} x {spec.width}",
        "actions": [
            f"{name}: {scale:g} {unit} per step"
            for name, scale, unit in zip(spec.action_names, spec.action_scale, spec.action_units, strict=True)
        ],
        "rate_hz": spec.rate_hz,
        "context": spec.context,
        "reads": list(model.head_names),
        "starts": 0 if world.starts is None else len(world.starts),
    }
    return facts | ({"card": str(folder / "README.md")} if folder is not None and world.card else {})


def _store(store: EpisodeStore) -> dict[str, Any]:
    if not len(store):
        return {"store": str(store.folder), "world": store.spec.name, "episodes": 0}
    origins = [store.provenance(i) for i in range(len(store))]
    return {
        "store": str(store.folder),
        "world": store.spec.name,
        "episodes": len(store),
        "frames": int((store.lengths + 1).sum()),
        "held_out_episodes": len(store.split(held_out=True)),
        "steps": f"{store.lengths.min()} to {store.lengths.max()}",
        "shards": len(store.shards),
        "megabytes": round(sum(f.stat().st_size for f in store.folder.rglob("*") if f.is_file()) / 1e6, 1),
        "states": list(store.info.state_names),
        "policies": sorted({str(o.get("policy")) for o in origins}),
        "versions": sorted({str(o.get("version")) for o in origins}),
        "windows_per_second": _reading_speed(store),
    }


def _reading_speed(store: EpisodeStore) -> float:
    """Training windows of WINDOW frames (or as many as there are) read per second, best of three; frames in them included."""
    length = min(WINDOW, int(store.lengths.max()) + 1)
    sampler = WindowSampler(store, length, held_out=not len(store.split(held_out=False)))
    rng = np.random.default_rng(0)
    best = 0.0
    for _ in range(3):
        begin = time.perf_counter()
        for _ in range(10):
            sampler.sample(BATCH, rng)
        best = max(best, 10 * BATCH / (time.perf_counter() - begin))
    return round(best, 1)
