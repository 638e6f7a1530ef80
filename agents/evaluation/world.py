"""The command ``measure``: how accurate a trained world is on held-out episodes, by the metrics of its real world."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from neuralsim.agents.collection.held_out import held_out_again, held_out_folder, held_out_store
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.registry import find_frame_policies, find_metrics, find_real_world, get_real_world
from neuralsim.evaluation.config import EvalConfig
from neuralsim.evaluation.evaluate import evaluate_world_model
from neuralsim.evaluation.long_horizon import LongHorizonConfig, evaluate_long_horizon
from neuralsim.evaluation.report import Metric, Report
from neuralsim.evaluation.world_metrics import WorldMetrics
from neuralsim.pretrained.starts import Starts
from neuralsim.pretrained.world import World, open_world, training_record
from neuralsim.runtime.progress import progress

FRESH_STEPS = 25_600
"""Steps in as many fresh episodes as there are by default."""


@dataclass(frozen=True)
class MeasureConfig(EvalConfig):
    """Measure how accurate a world's predictions are, on episodes it has never seen."""

    world: str = "pusht"
    """Name of a shipped world, or the folder of one of your own."""
    data: Path | None = None
    """Episode store whose held-out episodes are used. By default fresh ones, collected once into data/<world>-held-out, where the
    true world can be made (pusht, tworoom, carracing, and worlds learned from 'neuralsim collect --env'); else those of the
    store that the world was trained on."""
    episodes: int | None = None
    """Number of fresh episodes; by default as many as make 25,600 steps (pusht: 256)."""
    minutes: float = 0.0
    """Also roll out for this many minutes on end, under random keys and by a scripted policy where the world has one, and measure
    whether the scene is still intact."""
    dreams: int = 4
    """Number of such rollouts, side by side."""
    out: Path = Path("runs/measure")
    """Folder for measure.json, the drift curves (PNG) and a strip of frames (PNG)."""
    json: Path | None = None
    """Also write the figures to this file."""
    device: str = "auto"
    """Device of the model: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minutes < 0 or self.dreams < 1:
            raise ValueError(
                f"--minutes and --dreams: expected 0 and 1 or more, got {self.minutes:g} and {self.dreams}"
            )
        if self.episodes is not None and self.episodes < 1:
            raise ValueError(f"--episodes: expected 1 or more, got {self.episodes}")


def measure_world(config: MeasureConfig) -> tuple[Report, list[Path]]:
    """Measure as ``config`` asks; returns the report and the files written. Raises ValueError where no episodes to measure on are known,
    or for long rollouts of a world without starts."""
    world = open_world(config.world, config.device)
    if config.minutes and world.starts is None:
        raise ValueError(f"world {config.world!r}: has no starts for long rollouts (starts.npz)")
    metrics = find_metrics(world.spec)
    store, near, fresh = _episodes(config, world)
    if fresh:
        config = replace(config, all_held_out=True)
    measurement = evaluate_world_model(world.model, store, metrics, config, near, show=True)
    curves, strip = measurement.draw(config.out / "measure.png")
    report: Report = measurement
    if config.minutes:
        rows = _long_horizon(world, metrics, config)
        report = Report(measurement.title, (*measurement.rows, *rows), measurement.circumstances)
    files = [report.save(config.out / "measure.json"), curves, *([strip] if strip else [])]
    if config.json is not None:
        files.append(report.save(config.json))
    return report, files


def _episodes(config: MeasureConfig, world: World) -> tuple[EpisodeStore, EpisodeStore | None, bool]:
    """The episodes to measure on, further ones near the goal where the world can begin there, and True if all are held out."""
    spec = world.spec
    if config.data is not None:
        return EpisodeStore(config.data), None, False
    if find_real_world(spec.name) is not None and spec.height == spec.width:
        near = None if get_real_world(spec.name).seeded else _fresh(config, world, 1.0)
        return _fresh(config, world), near, True
    record = training_record(world)
    source = record.get("source") or {}
    if "env" in source:
        steps = int(source.get("steps") or FRESH_STEPS)
        with progress() as bar:
            task = bar.add_task("held-out episodes", total=None)
            store = held_out_again(
                spec,
                source,
                config.episodes or int(np.clip(FRESH_STEPS // steps, 16, 256)),
                progress=lambda done, wanted: bar.update(task, completed=done, total=wanted),
            )
        return store, None, True
    if record.get("store") and (Path(record["store"]) / "store.json").is_file():
        return EpisodeStore(record["store"]), None, False
    raise ValueError(
        f"world {spec.name!r}: its real environment cannot be made here, and the episodes it was trained on are not known or not there; "
        "give a store with --data (its held-out episodes are measured on; all of them with --all-held-out)"
    )


def _fresh(config: MeasureConfig, world: World, near_goal: float | None = None) -> EpisodeStore:
    folder = held_out_folder(world.spec.name, world.spec.height)
    if near_goal is not None:
        folder = folder.with_name(folder.name.replace("-held-out", "-held-out-near"))
    episodes = config.episodes or max(1, FRESH_STEPS // get_real_world(world.spec.name).most_collected)
    with progress() as bar:
        task = bar.add_task("held-out episodes", total=episodes)
        return held_out_store(
            folder,
            episodes,
            size=world.spec.height,
            world=world.spec.name,
            near_goal=near_goal,
            progress=lambda done, wanted: bar.update(task, completed=done, total=wanted),
        )


def _long_horizon(world: World, metrics: WorldMetrics | None, config: MeasureConfig) -> list[Metric]:
    """Metrics of long rollouts under random keys, and of each scripted policy on frames."""
    starts = world.starts
    assert starts is not None
    steps = max(1, round(config.minutes * 60 * world.spec.rate_hz))
    chosen = np.arange(config.dreams) % len(starts)
    states = None if starts.states is None else starts.states[chosen]
    some = Starts(starts.frames[chosen], starts.actions[chosen], states)
    rows: list[Metric] = []
    with progress() as bar:
        for name, policy in {"": None, **find_frame_policies(world.spec)}.items():
            task = bar.add_task(f"long rollouts{', ' if name else ''}{name}", total=steps * config.dreams)
            rows += evaluate_long_horizon(
                world.model,
                some,
                metrics,
                LongHorizonConfig(steps=steps, seed=config.seed, precision=config.precision, name=name),
                None if policy is None else policy.predict,
                starts.frames[:, -1],
                lambda n, task=task: bar.advance(task, n),  # type: ignore[misc]
            ).rows
    return rows
