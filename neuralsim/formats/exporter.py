"""Export of an episode store to another project's format."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from neuralsim.data.store import EpisodeStore, find_store
from neuralsim.runtime.command import CommandOutput
from neuralsim.runtime.progress import progress

TARGETS = {"lerobot": "lerobot:folder/", "minari": "minari:my/dataset-v0"}
"""Formats that can be written, and the form of their addresses."""


@dataclass(frozen=True)
class ExportConfig:
    """Write an episode store as a LeRobotDataset v3.0 or a local Minari dataset."""

    store: str
    """Name of a store below data/, or its folder."""
    to: str
    """Target: lerobot:folder/ or minari:my/dataset-v0."""
    pixels: Literal["yuv444p", "yuv420p"] = "yuv444p"
    """Colour of LeRobot's mp4: yuv444p is as sharp as brightness, yuv420p plays everywhere."""
    root: Path | None = None
    """Folder of all Minari datasets; Minari's own by default."""
    json: Path | None = None
    """Also write the figures to this file."""

    def __post_init__(self) -> None:
        kind, _, where = self.to.partition(":")
        if kind not in TARGETS or not where:
            raise ValueError(f"--to {self.to}: expected {' or '.join(TARGETS.values())}")

    def open(self) -> EpisodeStore:
        """The store to write; FileNotFoundError where there is none."""
        return EpisodeStore(find_store(self.store))


def export_dataset(
    config: ExportConfig,
    store: EpisodeStore,
    env_id: str | None = None,
    watch: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Write ``store``; returns the figures, ready for JSON.

    ``env_id``: a registered Gymnasium id of the world, for Minari; ``watch`` is called with the number of episodes written. Raises
    FileExistsError where the target exists, DiskFullError, ValueError where the format cannot hold the store.
    """
    kind, _, where = config.to.partition(":")
    figures: dict[str, Any] = {"store": str(store.folder), "to": config.to, "episodes": len(store)}
    if kind == "minari":
        from neuralsim.formats.minari import write_minari

        return figures | {"folder": str(write_minari(store, where, config.root, env_id, watch))}
    from neuralsim.formats.lerobot_writer import write_lerobot

    written = write_lerobot(store, Path(where).expanduser(), config.pixels, watch)
    psnr = None if written.psnr_db is None else round(written.psnr_db, 2)
    return figures | {"folder": str(written.folder), "psnr_db": psnr}


def export_command(config: ExportConfig) -> CommandOutput:
    """Run `export_dataset` behind a progress bar and return its figures."""
    store = config.open()
    real = importlib.import_module("neuralsim.envs.registry").find_real_world(store.spec.name)  # a layer above
    with progress(passing=False) as bar:
        task = bar.add_task("episodes", total=len(store))
        env_id = None if real is None else real.env_id
        figures = export_dataset(config, store, env_id, lambda done: bar.update(task, completed=done))
    lines = [f"wrote {figures['episodes']} episodes to {figures['folder']}"]
    if psnr := figures.get("psnr_db"):
        lines.append(f"frames went through mp4: {psnr:.1f} dB peak signal-to-noise ratio (first episode)")
    return CommandOutput(lines=lines, json=config.json, figures=figures)
