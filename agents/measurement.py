"""measurement: how true a trained world is, as the command line asks: world, held-out episodes, reader, simulator joined."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from neuralsim.agents.held_out import held_out_store
from neuralsim.catalog import World, open_world
from neuralsim.envs.pusht import PushTRealEnv
from neuralsim.envs.pusht_reader import PushTReader
from neuralsim.episode import EpisodeStore
from neuralsim.long_play import LongPlayConfig, long_play
from neuralsim.measure import MeasureConfig, measure
from neuralsim.report import Report

HELD_OUT = Path("data/pusht-held-out")


@dataclass(frozen=True)
class Measure(MeasureConfig):
    """Measure how true a world's dreams are, on episodes it has never seen."""

    world: str = "pusht"
    """Name of a shipped world, or the folder of one of your own."""
    data: Path | None = None
    """Episode store whose held-out episodes are used; by default fresh ones, collected once into data/pusht-held-out
    (and data/pusht-held-out-near: episodes near the goal, to ask about success)."""
    episodes: int = 256
    """How many fresh episodes."""
    minutes: float = 0.0
    """Also dream this many minutes on end under random keys, and see whether the block is still whole."""
    dreams: int = 4
    """How many dreams play for that long, side by side."""
    out: Path = Path("runs/measure")
    """Folder for measure.json, the drift curves (PNG) and a strip of frames (PNG)."""
    json: Path | None = None
    """Also write the figures to this file."""
    device: str = "auto"
    """Where the model runs: auto, cpu or cuda."""


def measure_world(config: Measure) -> tuple[Report, list[Path]]:
    """All figures as one Report, and the files written. Raises ValueError where a world other than Push-T comes without data."""
    if config.minutes < 0 or config.dreams < 1:
        raise ValueError(
            f"--minutes and --dreams: expected 0 and 1 or more, got {config.minutes:g} and {config.dreams}"
        )
    world = open_world(config.world, config.device)
    pusht, size = world.spec.name == "pusht", world.spec.height
    if config.data is None and not pusht:
        raise ValueError(
            f"world {world.spec.name!r}: no simulator to collect held-out episodes with; give a store with --data"
        )
    near = None
    if config.data is None:
        store, near = (_fresh_episodes(config, size, near_goal) for near_goal in (None, 1.0))
        config = replace(config, all_held_out=True)
    else:
        store = EpisodeStore(config.data)
    reader = PushTReader(size) if pusht else None
    truth = PushTRealEnv(size=size, observation="state") if pusht else None
    measurement = measure(world.model, store, reader, truth, config, near, show=True)
    curves, strip = measurement.draw(config.out / "measure.png")
    report: Report = measurement
    if config.minutes and reader is not None:
        long = _long_play(world, reader, truth, config)
        report = Report(measurement.title, (*measurement.rows, *long.rows), measurement.circumstances)
    files = [report.save(config.out / "measure.json"), curves, *([strip] if strip else [])]
    if config.json is not None:
        files.append(report.save(config.json))
    return report, files


def _fresh_episodes(config: Measure, size: int, near_goal: float | None) -> EpisodeStore:
    name = HELD_OUT.name + ("" if near_goal is None else "-near") + ("" if size == 64 else f"-{size}")
    with _progress() as bar:
        task = bar.add_task("held-out episodes", total=config.episodes)
        return held_out_store(
            HELD_OUT.with_name(name),
            config.episodes,
            size=size,
            near_goal=near_goal,
            progress=lambda done, wanted: bar.update(task, completed=done, total=wanted),
        )


def _long_play(world: World, reader: PushTReader, truth: PushTRealEnv | None, config: Measure) -> Report:
    starts = world.starts
    if starts is None:
        raise ValueError(f"world {config.world!r}: has no start states to play from (starts.npz)")
    steps = max(1, round(config.minutes * 60 * world.spec.rate_hz))
    rows = np.arange(config.dreams) % len(starts)
    with _progress() as bar:
        task = bar.add_task("long play", total=steps * config.dreams)
        return long_play(
            world.model,
            starts.frames[rows],
            starts.actions[rows],
            reader,
            truth,
            None if starts.states is None else starts.states[rows, -1].astype(np.float64),
            LongPlayConfig(steps=steps, seed=config.seed, precision=config.precision),
            tick=lambda n: bar.advance(task, n),
        )


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
