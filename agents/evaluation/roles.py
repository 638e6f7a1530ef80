"""roles_report: what one checkpoint answers in each role, as the command ``roles`` asks for it: world, held-out episodes and the true
simulator joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuralsim.agents.collection.held_out import demonstration_store, held_out_folder, held_out_store
from neuralsim.agents.evaluation.world import training_record
from neuralsim.data.episode import EpisodeStore
from neuralsim.envs.pusht.env import PushTRealEnv
from neuralsim.envs.pusht.executability import Execution, executability_rows, execute
from neuralsim.envs.pusht.replay import film, heeded, replay
from neuralsim.envs.pusht.role_metrics import pose_rows, spread_rows
from neuralsim.envs.pusht.scene_metrics import MOVED, beyond
from neuralsim.envs.pusht.state_estimator import PushTStateEstimator
from neuralsim.evaluation.moments import RoleQueries, choose_windows
from neuralsim.evaluation.plots import draw_films
from neuralsim.evaluation.report import Metric, Report, circumstances
from neuralsim.evaluation.role_metrics import (
    act_rows,
    closure_rows,
    dream_rows,
    foresee_rows,
    infer_rows,
    prefix_rows,
    simulate_rows,
    value_rows,
)
from neuralsim.evaluation.role_predictions import RolePredictions
from neuralsim.evaluation.statistics import Bootstrap
from neuralsim.models.roles import PASSES, joint_of
from neuralsim.models.video_wam import VideoWAM
from neuralsim.pretrained.world import World, open_world
from neuralsim.runtime.progress import progress

SHOWN = 4
"""Moments in the picture."""
MIX = {
    "demonstrations": "demonstrations",
    "play": "play",
    "video": "video whose actions are withheld, which only foresees",
}


@dataclass(frozen=True)
class RolesConfig:
    """Ask one checkpoint in every role, on held-out episodes of Push-T, and test that each answer follows what it is given."""

    world: str = "pusht"
    """Name or folder of a Push-T world that answers in all roles."""
    data: Path | None = None
    """Store of play: simulate and infer are asked there. data/pusht-held-out by default, collected where it is missing."""
    demos: Path | None = None
    """Store of demonstrations: act, foresee and dream are asked there. data/pusht-demos-held-out by default, collected where
    it is missing."""
    windows: int = 600
    """Moments asked about, in each of the two."""
    passes: int = PASSES
    """Denoising passes of an answer; where it follows from what is given (infer, simulate), one."""
    seed: int = 0
    """Seed of the choice of moments, of the answers' noise and of the confidence intervals."""
    precision: str = "auto"
    """auto, float32 or bfloat16."""
    device: str = "auto"
    """Where the model runs: auto, cpu or cuda."""
    out: Path = Path("runs/roles")
    """Folder for roles.json and the picture."""
    json: Path | None = None
    """Also write the figures to this file."""

    def __post_init__(self) -> None:
        for name, least in (("windows", 2), ("passes", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name}: expected {least} or more, got {getattr(self, name)}")


def measure_roles(config: RolesConfig, show: bool = False) -> tuple[Report, list[Path]]:
    """The table, and the files written. Raises ValueError for a world that simulates only or is not Push-T, and for stores without
    states or episodes that training has not seen."""
    world = open_world(config.world, config.device)
    model, joint = joint_of(world.model)
    if world.spec.name != "pusht" or world.spec.height != world.spec.width:
        raise ValueError(f"roles: are told beside Push-T's simulator alone, got a world of {world.spec.name!r}")
    truth, reader = PushTRealEnv(size=world.spec.height), PushTStateEstimator(world.spec.height)
    played, shown = _stores(config, world, show)
    play, demos = (_answers(config, world, model, store, joint.chunk, aim) for aim, store in enumerate((played, shown)))
    with progress(show) as bar:
        task = bar.add_task("roles", total=None)

        def tick(role: str, done: int, all_of_them: int) -> None:
            bar.update(task, description=role, completed=done, total=all_of_them)

        foreseen = execute(demos, truth, demos.foreseen)
        rows = _rows(world, play, demos, foreseen, truth, reader, tick)
        strip = _draw(config.out / "roles-strip.png", demos, foreseen, truth)
    truth.close()
    report = Report(
        f"{world.spec.name}: held-out moments, {_count(play.moments)} of play, {_count(demos.moments)} of demonstrations",
        tuple(rows),
        circumstances() | {"seed": config.seed, "passes": config.passes, "chunk": joint.chunk},
    )
    files = [report.save(config.out / "roles.json"), strip]
    if config.json is not None:
        files.append(report.save(config.json))
    return report, files


def _rows(
    world: World,
    play: RolePredictions,
    demos: RolePredictions,
    foreseen: Execution,
    truth: PushTRealEnv,
    reader: PushTStateEstimator,
    tick: Callable[[str, int, int], None],
) -> list[Metric]:
    """All rows, role by role."""
    playing, showing = (Bootstrap(x.moments.episodes, seed=x.seed) for x in (play, demos))
    actions, states = play.moments.actions.cpu().numpy(), play.moments.states
    assert states is not None
    others = actions[play.moments.others]
    own, other = (replay(truth, states[:, 0], x) for x in (actions, others))
    told, told_otherwise = heeded(own, actions), heeded(other, others)
    roles: Sequence[tuple[str, Callable[[], Iterator[Metric]]]] = (
        ("simulate", lambda: simulate_rows(play, playing)),
        ("simulate", lambda: spread_rows(play, own[:, -1], other[:, -1], reader, playing)),
        ("act", lambda: act_rows(demos, showing)),
        ("infer", lambda: infer_rows(play, told, playing)),
        ("infer", lambda: closure_rows(play, told, told_otherwise, playing)),
        ("foresee", lambda: foresee_rows(demos, showing)),
        ("foresee", lambda: pose_rows(demos, foreseen.frames, reader, showing)),
        ("dream", lambda: dream_rows(demos, showing)),
        ("prefixes", lambda: prefix_rows(demos, showing)),
        ("value", lambda: value_rows(demos, showing)),
        ("executability", lambda: executability_rows(demos, foreseen, truth, reader, showing)),
    )
    rows = []
    for i, (role, ask) in enumerate(roles):
        tick(role, i, len(roles))
        rows += list(ask())
    return rows + _mix_rows(training_record(world))


def _count(moments: RoleQueries) -> str:
    return f"{len(moments)} in {len(np.unique(moments.episodes))} episodes"


def _mix_rows(record: Mapping[str, Any]) -> list[Metric]:
    """What the joint stage's batches were made of, as far as it is on record."""
    mix = (record.get("recipe") or {}).get("joint_mix") or {}
    return [
        Metric(f"mix/{name}", f"trained on: {told} (share of batches, where there is any)", 100 * mix[name], "%")
        for name, told in MIX.items()
        if name in mix
    ]


def _stores(config: RolesConfig, world: World, show: bool) -> tuple[EpisodeStore, EpisodeStore]:
    """Play and demonstrations, collected where they are missing."""
    size = world.spec.height
    with progress(show) as bar:

        def told(name: str) -> Callable[[int, int], None]:
            task = bar.add_task(name, total=None)
            return lambda done, wanted: bar.update(task, completed=done, total=wanted)

        play = (
            held_out_store(held_out_folder("pusht", size), size=size, progress=told("held-out episodes"))
            if config.data is None
            else EpisodeStore(config.data)
        )
        demos = (
            demonstration_store(held_out_folder("pusht-demos", size), size=size, progress=told("demonstrations"))
            if config.demos is None
            else EpisodeStore(config.demos)
        )
    return play, demos


def _answers(
    config: RolesConfig, world: World, model: VideoWAM, store: EpisodeStore, chunk: int, aim: int
) -> RolePredictions:
    """Answers about moments of ``store`` that training has not seen; of demonstrations (``aim`` 1) before their success."""
    if store.spec.frame_shape != model.spec.frame_shape or store.spec.action_names != model.spec.action_names:
        raise ValueError(f"{store.folder}: holds episodes of {store.spec}, the model is of {model.spec}")
    rng = np.random.default_rng([config.seed, aim])
    windows = choose_windows(
        store, config.windows, model.spec.context, chunk, rng, _unseen(world, store), underway=aim == 1
    )
    moments = RoleQueries.take(model, windows, config.precision)
    if moments.states is None:
        raise ValueError(f"{store.folder}: the simulator is put at true states, and these episodes do not know theirs")
    return RolePredictions(model, moments, aim, config.passes, config.seed, config.precision)


def _unseen(world: World, store: EpisodeStore) -> bool:
    """Whether training saw none of ``store``, as far as the collections it learned from are on record."""
    seen: set[int] = set()
    record: Mapping[str, Any] | None = training_record(world)
    while record:
        seen |= set(record.get("collection_seeds") or ())
        record = record.get("before")
    own = {int(store.provenance(i).get("collection_seed", -1)) for i in range(len(store))}
    return bool(seen) and -1 not in own and own.isdisjoint(seen)


def _draw(path: Path, demos: RolePredictions, foreseen: Execution, truth: PushTRealEnv) -> Path:
    """True future frames, foreseen ones, and those of the replay, where the true block moves; of different episodes as far as
    possible."""
    moments, k = demos.moments, demos.moments.steps
    assert moments.states is not None
    moved = beyond(moments.states[:, -1, 2:5], moments.states[:, 0, 2:5], MOVED)
    _, first = np.unique(moments.episodes, return_index=True)
    fresh = np.isin(np.arange(len(moments)), first)
    rows = np.argsort(-(2 * moved + fresh.astype(int)), kind="stable")[:SHOWN]
    steps = sorted({round(x) for x in np.linspace(0, k, 7)})
    true = moments.frames[rows][:, steps]
    seen = np.concatenate([moments.frames[rows, :1], foreseen.frames[rows]], 1)[:, steps]
    done = film(truth, foreseen.states[rows][:, steps])
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_films(path, {"true": true, "foreseen": seen, "replayed": done}, steps)
    return path
