"""Facts about this installation, a world or an episode store: what ``neuralsim info`` shows."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuralsim.data.inspect import summarize_store
from neuralsim.data.store import EpisodeStore
from neuralsim.runtime.command import CommandOutput
from neuralsim.storage.resolve import list_worlds
from neuralsim.version import __version__

PACKAGES = ("torch", "diffusers", "gymnasium", "stable-baselines3", "gym-pusht", "minari", "numpy")


def describe(what: str | None = None) -> dict[str, Any]:
    """Facts about ``what``: a store's folder, a world's name or folder, or (None) the installation; ready for JSON.

    Raises FileNotFoundError for what is neither.
    """
    if what is None:
        return _installation()
    if (Path(what) / "store.json").is_file():
        return summarize_store(EpisodeStore(what))
    return _world(what)


def _installation() -> dict[str, Any]:
    import torch

    from neuralsim.runtime.device import pick_device, pick_dtype
    from neuralsim.runtime.machine import cpu_model

    device = pick_device()
    return {
        "neuralsim": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "processor": cpu_model(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "precision": str(pick_dtype("auto", device)).removeprefix("torch."),
        "worlds": list_worlds(),
    }


def _world(what: str) -> dict[str, Any]:
    from neuralsim.pretrained.world import open_world

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
            f"{name}: one of {choices}"
            if choices
            else f"{name}: {offset - scale:g} to {offset + scale:g} {unit} per step"
            for name, unit, scale, offset, choices in zip(
                spec.action_names,
                spec.action_units,
                spec.action_scale,
                spec.action_offset,
                spec.action_choices or (0,) * spec.action_size,
                strict=True,
            )
        ],
        "rate_hz": spec.rate_hz,
        "context": spec.context,
        "reads": list(model.head_names),
        "starts": 0 if world.starts is None else len(world.starts),
    }
    return facts | ({"card": str(folder / "README.md")} if folder is not None and world.card else {})


@dataclass(frozen=True)
class InfoConfig:
    """Show facts about this installation, a world, or an episode store."""

    what: str | None = None
    """Name or folder of a world, or the folder of an episode store; the installation by default."""
    json: Path | None = None
    """Also write it to this file."""


def info_command(config: InfoConfig) -> CommandOutput:
    """Return the facts of `describe`, lists on one line each."""
    facts = describe(config.what)
    shown = {k: ", ".join(map(str, v)) or "none" if isinstance(v, list) else v for k, v in facts.items()}
    return CommandOutput(facts=shown, json=config.json, figures=facts)
