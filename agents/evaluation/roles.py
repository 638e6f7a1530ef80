"""``neuralsim roles``: measure one checkpoint in every role, on held-out episodes and beside the real simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuralsim.agents.collection.held_out import demonstration_store, held_out_folder, held_out_store
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.registry import find_real_world
from neuralsim.envs.tasks.real_world import load
from neuralsim.evaluation.report import Metric, Report
from neuralsim.evaluation.role_metrics import RoleMetrics
from neuralsim.evaluation.role_predictions import RolePredictions, RoleQueries, choose_windows
from neuralsim.models.roles import PASSES, joint_of
from neuralsim.models.video_wam import VideoWAM
from neuralsim.pretrained.world import World, open_world, training_record
from neuralsim.runtime.machine import circumstances
from neuralsim.runtime.progress import progress

MIX = {
    "demonstrations": "demonstrations",
    "play": "play",
    "video": "video whose actions are withheld",
}


@dataclass(frozen=True)
class RolesConfig:
    """Measure one checkpoint in every role, on held-out episodes, and test that each prediction follows what it is given."""

    world: str = "pusht"
    """Name or folder of a world model with all roles, of a real world with role metrics (pusht)."""
    data: Path | None = None
    """Store of play, for simulate and infer. data/<world>-held-out by default, collected where it is missing."""
    demos: Path | None = None
    """Store of demonstrations, for act, foresee and dream. data/<world>-demos-held-out by default, collected where it is missing."""
    windows: int = 600
    """Queries in each of the two."""
    passes: int = PASSES
    """Denoising passes; one is used where the prediction follows from what is given (infer, simulate)."""
    seed: int = 0
    """Seed of the choice of queries, of the predictions' noise and of the confidence intervals."""
    precision: str = "auto"
    """auto, float32 or bfloat16."""
    device: str = "auto"
    """Device of the model: auto, cpu or cuda."""
    out: Path = Path("runs/roles")
    """Folder for roles.json and the picture."""
    json: Path | None = None
    """Also write the figures to this file."""

    def __post_init__(self) -> None:
        for name, least in (("windows", 2), ("passes", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name}: expected {least} or more, got {getattr(self, name)}")


def measure_roles(config: RolesConfig, show: bool = False) -> tuple[Report, list[Path]]:
    """Measure the table; returns it and the files written. Raises ValueError for a model that simulates only, for a world without role
    metrics, and for stores without states or episodes that training has not seen."""
    world = open_world(config.world, config.device)
    model, joint = joint_of(world.model)
    metrics = _role_metrics(world)
    stores = _stores(config, world, show)
    play, demos = (_predictions(config, world, model, store, joint.chunk, aim) for aim, store in enumerate(stores))
    with progress(show) as bar:
        task = bar.add_task("roles", total=None)

        def tick(role: str, done: int, total: int) -> None:
            bar.update(task, description=role, completed=done, total=total)

        rows = metrics.rows(play, demos, tick) + _mix_rows(training_record(world))
        strip = metrics.draw(config.out / "roles-strip.png", demos)
    metrics.close()
    report = Report(
        f"{world.spec.name}: held-out queries, {_count(play.queries)} of play, {_count(demos.queries)} of demonstrations",
        tuple(rows),
        circumstances() | {"seed": config.seed, "passes": config.passes, "chunk": joint.chunk},
    )
    files = [report.save(config.out / "roles.json"), strip]
    if config.json is not None:
        files.append(report.save(config.json))
    return report, files


def _role_metrics(world: World) -> RoleMetrics:
    found = find_real_world(world.spec.name)
    if found is None or found.role_metrics is None or world.spec.height != world.spec.width:
        raise ValueError(
            f"roles: needs a real world with role metrics, such as Push-T; world {world.spec.name!r} has none"
        )
    metrics: RoleMetrics = load(found.role_metrics)(world.spec.height)
    return metrics


def _count(queries: RoleQueries) -> str:
    return f"{len(queries)} in {len(np.unique(queries.episodes))} episodes"


def _mix_rows(record: Mapping[str, Any]) -> list[Metric]:
    """Rows of the kinds of data in the joint stage's batches, as far as they are on record."""
    mix = (record.get("recipe") or {}).get("joint_mix") or {}
    return [
        Metric(f"mix/{name}", f"trained on: {kind} (share of batches, where there is any)", 100 * mix[name], "%")
        for name, kind in MIX.items()
        if name in mix
    ]


def _stores(config: RolesConfig, world: World, show: bool) -> tuple[EpisodeStore, EpisodeStore]:
    """Stores of play and of demonstrations, collected where they are missing."""
    name, size = world.spec.name, world.spec.height
    with progress(show) as bar:

        def watch(name: str) -> Callable[[int, int], None]:
            task = bar.add_task(name, total=None)
            return lambda done, wanted: bar.update(task, completed=done, total=wanted)

        play = (
            held_out_store(held_out_folder(name, size), size=size, world=name, progress=watch("held-out episodes"))
            if config.data is None
            else EpisodeStore(config.data)
        )
        demos = (
            demonstration_store(
                held_out_folder(f"{name}-demos", size), size=size, world=name, progress=watch("demonstrations")
            )
            if config.demos is None
            else EpisodeStore(config.demos)
        )
    return play, demos


def _predictions(
    config: RolesConfig, world: World, model: VideoWAM, store: EpisodeStore, chunk: int, aim: int
) -> RolePredictions:
    """Predictions on ``store``, at queries that training has not seen; on demonstrations (``aim`` 1) before their success."""
    if store.spec.frame_shape != model.spec.frame_shape or store.spec.action_names != model.spec.action_names:
        raise ValueError(f"{store.folder}: holds episodes of {store.spec}, the model is of {model.spec}")
    rng = np.random.default_rng([config.seed, aim])
    windows = choose_windows(
        store, config.windows, model.spec.context, chunk, rng, _unseen(world, store), underway=aim == 1
    )
    queries = RoleQueries.take(model, windows, config.precision)
    if queries.states is None:
        raise ValueError(f"{store.folder}: the simulator is put at true states, and these episodes have none")
    return RolePredictions(model, queries, aim, config.passes, config.seed, config.precision)


def _unseen(world: World, store: EpisodeStore) -> bool:
    """Report that training saw none of ``store``, as far as the collections it learned from are on record."""
    seen: set[int] = set()
    record: Mapping[str, Any] | None = training_record(world)
    while record:
        seen |= set(record.get("collection_seeds") or ())
        record = record.get("before")
    own = {int(store.provenance(i).get("collection_seed", -1)) for i in range(len(store))}
    return bool(seen) and -1 not in own and own.isdisjoint(seen)
