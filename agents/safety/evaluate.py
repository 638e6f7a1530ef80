"""Safety trial: how often a monitor notices faults that are made on purpose in the true Push-T, and how often it cries wolf."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from neuralsim.agents.collection.held_out import demonstration_store, held_out_folder, held_out_store
from neuralsim.agents.heads.chunk_policy import ObservationHistory
from neuralsim.agents.safety.anomaly_detector import AnomalyDetector, AnomalyScores, Watched, fingerprint
from neuralsim.agents.safety.fault_injection import Fault, FaultScene, pusht_faults, visible
from neuralsim.agents.safety.limits import pusht_limits
from neuralsim.agents.safety.monitor import SafetyMonitor
from neuralsim.agents.safety.transition_classifier import TRAINING, WINDOW, TransitionClassifier, Transitions
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.pusht.env import PushTRealEnv
from neuralsim.envs.registry import find_real_world, real_worlds
from neuralsim.evaluation.report import Metric, Report, Target
from neuralsim.evaluation.statistics import Estimate, wilson
from neuralsim.pretrained.world import World, open_world
from neuralsim.runtime.machine import circumstances
from neuralsim.runtime.progress import progress
from neuralsim.runtime.results_log import ResultsLog
from neuralsim.storage.manifest import SAFETY, FileEntry

BATCH = 64
"""Chunks that are encoded and dreamt at once."""
MORE = {Path("data/pusht"): 2400, Path("data/pusht-oracle"): 720}
"""Stores that the Witness learns from where they are, and how many episodes of each: more play makes it much sharper. Their own
held-out episodes set the limits, and are never learned from."""
JUDGING = 400
"""How many of those held-out episodes at most."""
EVERY = 3
"""Every third episode calibrates, the others measure."""
SMALL_PUSH = "pushed-10"
"""A push of little more than a pixel; told, but held to no bar."""
DEMONSTRATION_SEED = 21
"""Collection seed of the expert's episodes."""


@dataclass(frozen=True)
class SafetyConfig:
    """Measure how often the safety monitor notices injected faults, and how often it cries wolf, in the true Push-T."""

    world: str = "pusht"
    """The true world: pusht is the one there is."""
    model: str = "pusht-latent"
    """The learned world that imagines: a shipped one, or a folder."""
    chunks: int = 500
    """Chunks per fault; clean ones are four times as many."""
    length: int = 8
    """Actions in a chunk."""
    calibrate: bool = False
    """Measure the thresholds anew and keep them in the model's folder (safety.json). Without it those there are used; where there are
    none, thresholds are measured for this run alone."""
    data: Path | None = None
    """Episode store of held-out episodes instead of data/pusht-held-out and data/pusht-demos, which are collected where missing, and
    of what calibrates beside these, data/pusht and data/pusht-oracle, where they are."""
    out: Path = Path("runs/safety")
    """Folder for safety.json and the picture."""
    json: Path | None = None
    """Also write the figures to this file."""
    seed: int = 0
    """Seed of the faults."""
    device: str = "auto"
    """Where the model runs: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        real_world = find_real_world(self.world)
        if real_world is None or real_world.robot.faults is None:
            known = ", ".join(name for name, world in real_worlds().items() if world.robot.faults is not None)
            raise ValueError(f"safety: faults are known for the real worlds {known}, got {self.world!r}")
        for name, least in (("chunks", 1), ("length", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name}: expected {least} or more, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class Places:
    """Where chunks are cut: store, episode and first step of each."""

    stores: Sequence[EpisodeStore]
    where: np.ndarray

    def __len__(self) -> int:
        return len(self.where)

    def kinds(self) -> np.ndarray:
        """``(n,)``: 0 for play, 1 for demonstrations."""
        return np.array(
            ["oracle" in str(self.stores[s].provenance(int(i)).get("policy")) for s, i, _ in self.where], int
        )

    def scene(self, row: int, past: int, length: int) -> FaultScene:
        """The scene of ``past`` steps before the chunk's beginning and ``length`` after it."""
        store, index, begin = (int(x) for x in self.where[row])
        episode = self.stores[store][index]
        steps = slice(begin - past, begin + length)
        frames = slice(begin - past, begin + length + 1)
        assert episode.states is not None
        return FaultScene(episode.frames[frames], episode.actions[steps], episode.states[frames].astype(np.float64))


def watch(monitor: SafetyMonitor, frames: np.ndarray, actions: np.ndarray, length: int) -> Watched:
    """Of chunks of ``length``, whose frames ``(n, h + length + 1, ...)`` and planned actions ``(n, h + length, a)`` begin with h steps of
    history."""
    past = actions.shape[1] - length
    features, strange, steps = monitor.look(
        ObservationHistory(frames, actions), frames.shape[1], bool(monitor.state_names)
    )
    dream, _ = monitor.dream(ObservationHistory(frames[:, : past + 1], actions[:, :past]), actions[:, past:])
    same = (frames[:, past + 1 :] == frames[:, past:-1]).all((2, 3, 4))
    return Watched(features[:, past:], dream.features, dream.doubts, strange[:, past:], same, steps)


@dataclass(frozen=True, eq=False)
class DetectionResult:
    """Trials of a fault: when it came ``at`` ``(n,)`` (1 to the chunk's length), whether it can be seen ``visible`` ``(n,)``, and the first
    step with an alarm from then on ``(n,)`` of two chunks' steps; 0 for none."""

    fault: Fault
    at: np.ndarray
    visible: np.ndarray
    alarm: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """As plain lists."""
        return {"at": self.at.tolist(), "visible": self.visible.astype(int).tolist(), "alarm": self.alarm.tolist()}

    @classmethod
    def of_json(cls, fault: Fault, line: Mapping[str, Any]) -> Self:
        """What :meth:`to_json` made."""
        return cls(fault, np.array(line["at"]), np.array(line["visible"], bool), np.array(line["alarm"]))

    def within(self, steps: int) -> Estimate:
        """The share of visible ones caught by step ``steps``, counted from the chunk's beginning."""
        alarm = self.alarm[self.visible]
        return wilson(int(((alarm > 0) & (alarm <= steps)).sum()), len(alarm))

    def after(self, steps: int) -> Estimate:
        """The share of visible ones caught in the first ``steps`` frames that the fault touches."""
        alarm, at = self.alarm[self.visible], self.at[self.visible]
        return wilson(int(((alarm > 0) & (alarm - at < steps)).sum()), len(alarm))


def measure_safety(config: SafetyConfig, show: bool = False) -> tuple[Report, list[Path]]:
    """Calibrate where asked to, then measure; the figures and the files written. A trial that was stopped goes on where it stopped.

    Raises ValueError for a model of another world, or too few episodes for a chunk."""
    world = open_world(config.model, config.device)
    if world.spec.name != config.world:
        raise ValueError(f"--model {config.model}: expected a world of {config.world}, got one of {world.spec.name!r}")
    monitor = SafetyMonitor(world, pusht_limits())
    stores = _stores(config, world, show)
    fitted = config.calibrate or monitor.mismatch is None
    past, length = _past(world), config.length
    rng = np.random.default_rng([config.seed, 2024])
    with progress(show) as bar, _journal(config, world, stores) as journal:

        def task(name: str, total: int) -> Callable[[int], None]:
            made = bar.add_task(name, total=total)
            return lambda n: bar.advance(made, n)

        done = {str(line["piece"]): line for line in journal.lines}
        if fitted and ("calibration" not in done or done["calibration"]["sha256"] != _stamp(world)):
            monitor, done = replace(monitor, mismatch=_calibrated(config, monitor, stores, past, task)), {}
            if config.calibrate:
                assert monitor.mismatch is not None
                assert world.folder is not None
                monitor.mismatch.save(world.folder)
                journal.add({"piece": "calibration", "sha256": _stamp(world)})
        measured = _thirds(stores, False)
        places = _cut(measured, past, length, length)
        places = replace(places, where=_some(places.where, 4 * config.chunks, rng))
        tick = task("clean chunks", len(places))
        if "clean" not in done:
            done["clean"] = {"piece": "clean", **measure_false_alarms(monitor, places, length, tick).to_json()}
            journal.add(done["clean"])
        clean = FalseAlarmResult.of_json(done["clean"])
        scenes = _cut(measured, past, 2 * length, length)
        faults = pusht_faults(*_other_frames(stores, world))
        tick = task("faults", len(faults) * config.chunks)
        for fault in faults:
            if fault.name in done:
                tick(config.chunks)
                continue
            done[fault.name] = {"piece": fault.name, **inject(monitor, fault, scenes, config, tick).to_json()}
            journal.add(done[fault.name])
    caught = [DetectionResult.of_json(fault, done[fault.name]) for fault in faults]
    told = {"model": config.model, "seed": config.seed, "calibrated": "now" if fitted else "before"}
    rows = (*_rows_caught(caught, length), *_rows_clean(stores, places, clean))
    report = Report(f"safety: {config.model} watches the true Push-T, chunks of {length}", rows, circumstances() | told)
    files = [report.save(config.out / "safety.json"), _draw(config.out / "safety.png", report.title, caught, length)]
    if config.json is not None:
        files.append(report.save(config.json))
    if config.calibrate and world.folder is not None:
        files.append(world.folder / SAFETY)
    journal.path.unlink(missing_ok=True)
    return report, files


def calibrate(
    monitor: SafetyMonitor, learn: Places, judge: Places, length: int, tick: Callable[[int], None], seed: int = 0
) -> AnomalyDetector:
    """The thresholds of ``monitor``'s model on clean chunks: a Witness learns from those of ``learn``, where the model tells states, and
    all limits are measured on those of ``judge``. ``tick`` is told of chunks and of steps of training."""
    witness, names = None, monitor.state_names
    if names:
        past = monitor.world.spec.context - 1
        parts = [watch(monitor, *chunks, length).steps for chunks in _clean(learn, past, length, tick)]
        steps = [part.map(lambda x: x[:, -length:].reshape(-1, *x.shape[2:])) for part in parts if part is not None]
        witness = TransitionClassifier.fit(names, Transitions.join(steps), seed, tick)
    watched = Watched.join(
        [watch(monitor, *chunks, length) for chunks in _clean(judge, _past(monitor.world), length, tick)]
    )
    return AnomalyDetector.fit(watched, judge.kinds(), witness, fingerprint(monitor.world.folder))


@dataclass(frozen=True, eq=False)
class FalseAlarmResult:
    """Of clean chunks: which kinds of Evidence were too much ``(n, kinds)``, and whether the dream itself was refused as too doubtful
    ``(n,)``."""

    alarms: np.ndarray
    refused: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """As plain lists."""
        return {"alarms": self.alarms.astype(int).tolist(), "refused": self.refused.astype(int).tolist()}

    @classmethod
    def of_json(cls, line: Mapping[str, Any]) -> Self:
        """What :meth:`to_json` made."""
        return cls(np.array(line["alarms"], bool), np.array(line["refused"], bool))


def measure_false_alarms(
    monitor: SafetyMonitor, places: Places, length: int, tick: Callable[[int], None]
) -> FalseAlarmResult:
    """What the monitor says of clean chunks."""
    assert monitor.mismatch is not None
    assert monitor.uncertainty is not None
    alarms, refused = [], []
    for frames, actions in _clean(places, _past(monitor.world), length, tick):
        watched = watch(monitor, frames, actions, length)
        evidence = monitor.mismatch.evidence(watched)
        kinds = [(getattr(evidence, n) > monitor.mismatch.limit(n)).any(1) for n in AnomalyScores.NAMES]
        alarms.append(np.stack(kinds, 1))
        refused.append((watched.doubts[:, 1:] > monitor.uncertainty).any(1))
    return FalseAlarmResult(np.concatenate(alarms), np.concatenate(refused))


def inject(
    monitor: SafetyMonitor, fault: Fault, places: Places, config: SafetyConfig, tick: Callable[[int], None]
) -> DetectionResult:
    """``config.chunks`` trials of ``fault``, each over two chunks, the second of which is imagined anew from what is seen then."""
    assert monitor.mismatch is not None
    past, length = _past(monitor.world), config.length
    rng = np.random.default_rng([config.seed, *fault.name.encode()])
    rows = rng.choice(len(places), config.chunks, replace=config.chunks > len(places))
    ats = rng.integers(1, length + 1, config.chunks)
    env = PushTRealEnv(size=monitor.world.spec.height)
    seen, alarm = np.zeros(config.chunks, bool), np.zeros(config.chunks, np.int64)
    try:
        for i in range(0, config.chunks, BATCH):
            batch = slice(i, min(i + BATCH, config.chunks))
            scenes = [places.scene(int(row), past, 2 * length) for row in rows[batch]]
            frames, actions = np.stack([s.frames for s in scenes]), np.stack([s.actions for s in scenes])
            for j, (scene, at) in enumerate(zip(scenes, ats[batch], strict=True)):
                changed = fault.happen(scene, past + int(at), rng, env)
                seen[i + j] = visible(scene, past + int(at), changed[:length])
                frames[j, past + at :] = changed
            alarm[batch] = _first_alarm(monitor, frames, actions, ats[batch], past, length)
            tick(len(scenes))
    finally:
        env.close()
    return DetectionResult(fault, ats, seen, alarm)


def _first_alarm(
    monitor: SafetyMonitor, frames: np.ndarray, actions: np.ndarray, ats: np.ndarray, past: int, length: int
) -> np.ndarray:
    """``(n,)``: the first step, of those of two chunks after ``past`` of history, from ``ats`` ``(n,)`` on at which there is an alarm; 0
    where there is none."""
    assert monitor.mismatch is not None
    alarm, quiet = np.zeros(len(ats), np.int64), np.arange(len(ats))
    for begin in (0, length):
        if not len(quiet):
            break
        steps = begin + np.arange(1, length + 1)
        shown = frames[quiet, begin : begin + past + length + 1], actions[quiet, begin : begin + past + length]
        raised = monitor.mismatch.exceeded(monitor.mismatch.evidence(watch(monitor, *shown, length)))
        raised &= steps >= ats[quiet, None]
        alarm[quiet] = np.where(raised.any(1), steps[raised.argmax(1)], 0)
        quiet = quiet[~raised.any(1)]
    return alarm


# -- what is watched ---------------------------------------------------------------------------------------------------


def _past(world: World) -> int:
    """Steps of history before a chunk: as many as the model reads, or a Witness sums over."""
    return max(world.spec.context, WINDOW) - 1


def _stores(config: SafetyConfig, world: World, show: bool) -> list[EpisodeStore]:
    """Episodes the model has never seen: of the explorer, and of the expert."""
    if config.data is not None:
        return [EpisodeStore(config.data)]
    name, size = world.spec.name, world.spec.height
    with progress(show) as bar:

        def told(name: str) -> Callable[[int, int], None]:
            task = bar.add_task(name, total=None)
            return lambda done, wanted: bar.update(task, completed=done, total=wanted)

        explored = held_out_store(held_out_folder(name, size), size=size, world=name, progress=told("held-out episodes"))
        shown = demonstration_store(
            Path("data") / f"{name}-demos{'' if size == 64 else f'-{size}'}",
            size=size,
            seed=DEMONSTRATION_SEED,
            progress=told("demonstrations"),
        )
    return [explored, shown]


Part = tuple[EpisodeStore, np.ndarray]
"""Some episodes of a store, by index."""


def _thirds(stores: Sequence[EpisodeStore], calibrating: bool) -> list[Part]:
    """The episodes that calibrate, or the others, which are measured on."""
    return [(store, np.flatnonzero((np.arange(len(store)) % EVERY == 0) == calibrating)) for store in stores]


def _cut(parts: Sequence[Part], past: int, length: int, stride: int) -> Places:
    where = [
        (s, i, begin)
        for s, (store, rows) in enumerate(parts)
        for i in rows
        for begin in range(past, int(store.lengths[i]) - length + 1, stride)
    ]
    if len(where) < 2:
        raise ValueError(
            f"{', '.join(str(store.folder) for store, _ in parts)}: too few episodes with {past + length} actions; "
            f"one in {2 * EVERY} is learned from, one in {2 * EVERY} sets the limits, the others are measured on"
        )
    return Places([store for store, _ in parts], np.array(where, np.int64))


def _calibrated(
    config: SafetyConfig,
    monitor: SafetyMonitor,
    stores: Sequence[EpisodeStore],
    past: int,
    task: Callable[[str, int], Callable[[int], None]],
) -> AnomalyDetector:
    """The calibration on what held-out episodes are for it, and on what MORE there is."""
    ours = _thirds(stores, True)
    more = list(_more(monitor.world.spec.frame_shape)) if config.data is None else []
    if more:
        learns = [(store, store.split(held_out=False)[:most]) for store, most in more]
        judges = [*ours, *((store, store.split(held_out=True)[:JUDGING]) for store, _ in more)]
    else:
        learns, judges = ([(store, rows[k::2]) for store, rows in ours] for k in (0, 1))
    learn, judge = (_cut(parts, past, config.length, config.length) for parts in (learns, judges))
    tick = task("calibrating", len(learn) + len(judge) + (TRAINING if monitor.state_names else 0))
    return calibrate(monitor, learn, judge, config.length, tick, config.seed)


def _more(frame_shape: tuple[int, int, int]) -> Iterator[tuple[EpisodeStore, int]]:
    """The stores of MORE that are here, and how many episodes to learn from."""
    for folder, most in MORE.items():
        if (folder / "store.json").is_file() and (store := EpisodeStore(folder)).spec.frame_shape == frame_shape:
            yield store, most


def _journal(config: SafetyConfig, world: World, stores: Sequence[EpisodeStore]) -> ResultsLog:
    """Where the finished pieces of just this trial are kept until it ends."""
    stamp = None if config.calibrate else _stamp(world)
    kept = {name: getattr(config, name) for name in ("chunks", "length", "calibrate", "seed")}
    settings = kept | {"weights": fingerprint(world.folder), "stores": [str(s.folder) for s in stores], "stamp": stamp}
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return ResultsLog(config.out / f"trial-{name}.jsonl", settings)


def _stamp(world: World) -> str | None:
    """SHA-256 of the calibration in the world's folder."""
    path = None if world.folder is None else world.folder / SAFETY
    return FileEntry.of(path).sha256 if path is not None and path.is_file() else None


def _some(where: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    return where if len(where) <= most else where[np.sort(rng.choice(len(where), most, replace=False))]


def _clean(
    places: Places, past: int, length: int, tick: Callable[[int], None]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames and actions of whole batches of ``places``, with ``past`` steps of history."""
    for i in range(0, len(places), BATCH):
        scenes = [places.scene(row, past, length) for row in range(i, min(i + BATCH, len(places)))]
        yield np.stack([s.frames for s in scenes]), np.stack([s.actions for s in scenes])
        tick(len(scenes))


def _other_frames(stores: Sequence[EpisodeStore], world: World) -> tuple[np.ndarray, np.ndarray]:
    """What another Push-T's camera shows, and one of another world (drawn anew where none ships)."""
    last = stores[0][len(stores[0]) - 1].frames
    from neuralsim.envs.tworoom.env import TwoRoomRealEnv

    env = TwoRoomRealEnv(size=world.spec.height)
    try:
        other = np.stack([env.reset(seed=i)[0] for i in range(16)])
    finally:
        env.close()
    return last, other


# -- what is told ------------------------------------------------------------------------------------------------------


def _rows_caught(caught: Sequence[DetectionResult], length: int) -> Iterator[Metric]:
    barred = [c for c in caught if c.fault.name != SMALL_PUSH]
    overall = _joined([c.after(length) for c in barred])
    yield _row(overall, "caught", f"caught within {length} frames, all faults", Target(least=95))
    for c in caught:
        bar = None if c.fault.name == SMALL_PUSH else Target(least=95)
        yield _row(c.after(length), f"caught-{c.fault.name}", f"{c.fault.group}: {c.fault.told}", bar)
    yield _row(_joined([c.within(length) for c in barred]), "caught-in-chunk", "in the chunk it began in, all faults")
    for c in caught:
        yield _row(c.within(length), f"caught-in-chunk-{c.fault.name}", f"in the chunk it began in: {c.fault.told}")
    for c in caught:
        if not c.visible.all():
            share = wilson(int((~c.visible).sum()), len(c.visible))
            yield _row(
                share, f"unseen-{c.fault.name}", f"not to be seen in {length} frames, not counted: {c.fault.told}"
            )


def _joined(parts: Sequence[Estimate]) -> Estimate:
    return wilson(round(sum(e.value * e.n for e in parts if e.n)), sum(e.n for e in parts))


def _rows_clean(stores: Sequence[EpisodeStore], places: Places, clean: FalseAlarmResult) -> Iterator[Metric]:
    any_alarm: np.ndarray = np.any(clean.alarms, axis=1, keepdims=True)[:, 0]
    yield _row(_share(any_alarm), "false-alarms", "false alarms, of clean chunks", Target(most=1))
    for s, store in enumerate(stores):
        mine = places.where[:, 0] == s
        label = f"false alarms in {store.folder.name}"
        yield _row(_share(any_alarm[mine]), f"false-alarms-{store.folder.name}", label, Target(most=1))
    for i, name in enumerate(AnomalyScores.NAMES):
        yield _row(_share(clean.alarms[:, i]), f"false-alarms-{name}", f"false alarms for what is {name}")
    yield _row(_share(clean.refused), "refused", "clean chunks refused in imagination as too doubtful", Target(most=1))


def _share(happened: np.ndarray) -> Estimate:
    return wilson(int(happened.sum()), len(happened))


def _row(estimate: Estimate, key: str, label: str, bar: Target | None = None) -> Metric:
    value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
    return Metric(key, label, value, "%", low=low, high=high, n=estimate.n, bar=bar)


def _draw(path: Path, title: str, caught: Sequence[DetectionResult], length: int) -> Path:
    """The share caught by frames since the fault began, a line per fault."""
    from matplotlib.figure import Figure

    from neuralsim.agents.evaluation.plots import COLOURS, MARKERS
    from neuralsim.evaluation.plots import save_figure

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(8.4, 4.6), layout="constrained", dpi=110)
    figure.suptitle(title)
    axes = figure.add_subplot()
    steps = np.arange(1, length + 1)
    for k, c in enumerate(caught):
        shares = [100 * c.after(int(s)).value for s in steps]
        marker = MARKERS[k // len(COLOURS) % len(MARKERS)]
        axes.plot(steps, shares, color=COLOURS[k % len(COLOURS)], marker=marker, markersize=4, label=c.fault.told)
    axes.axhline(95, color="#a0aec0", linewidth=1, linestyle="--")
    axes.set_xlabel("frames since the fault began")
    axes.set_ylabel("caught (%)")
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save_figure(figure, path)
    return path
