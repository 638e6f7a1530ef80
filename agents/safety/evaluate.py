"""The ``safety`` command: measures the safety monitor's detection rate of injected faults, and its rate of false alarms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from neuralsim.agents.collection.held_out import demonstration_store, held_out_folder, held_out_store
from neuralsim.agents.safety.anomaly_detector import RECORDED_AS, AnomalyDetector, AnomalyScores, weights_digest
from neuralsim.agents.safety.calibration import BATCH, ChunkIndex, calibrate, history_steps, observe_chunks
from neuralsim.agents.safety.fault_injection import Fault, visible
from neuralsim.agents.safety.limits import Limits
from neuralsim.agents.safety.monitor import SafetyMonitor
from neuralsim.agents.safety.transition_classifier import TRAINING
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.registry import RealWorld, find_real_world, real_worlds
from neuralsim.envs.tasks.real_world import load
from neuralsim.evaluation.report import Metric, Report, Target
from neuralsim.evaluation.statistics import Estimate, wilson
from neuralsim.pretrained.world import World, open_world
from neuralsim.runtime.machine import circumstances
from neuralsim.runtime.progress import progress
from neuralsim.runtime.results_log import ResultsLog
from neuralsim.storage.fingerprint import store_fingerprint
from neuralsim.storage.manifest import SAFETY, FileEntry

MORE = {Path("data/pusht"): 2400, Path("data/pusht-oracle"): 720}
"""Stores that the classifier learns from where they exist, and episodes of each: more play makes it much sharper. Their own
held-out episodes set the limits, and are never learned from."""
MEASURING = 400
"""Most of those held-out episodes."""
EVERY = 3
"""Every third episode calibrates, the others measure."""
SMALL_PUSH = "pushed-10"
"""A push of little more than a pixel; reported, but without a target."""
DEMONSTRATION_SEED = 21
"""Collection seed of the expert's episodes."""


@dataclass(frozen=True)
class SafetyConfig:
    """Measure how often the safety monitor detects faults injected into a real world, and how often it raises false alarms."""

    world: str = "pusht"
    """Real world, one with known faults."""
    model: str = "pusht-latent"
    """Learned world that imagines: a shipped one, or a folder."""
    chunks: int = 500
    """Chunks per fault; clean ones are four times as many."""
    length: int = 8
    """Actions in a chunk."""
    calibrate: bool = False
    """Measure the thresholds again and keep them in the model's folder (safety.json). Without it those there are used; where there are
    none, thresholds are measured for this run alone."""
    data: Path | None = None
    """Episode store of held-out episodes instead of data/pusht-held-out and data/pusht-demos, which are collected where missing, and
    of the stores that calibrate beside these, data/pusht and data/pusht-oracle, where they exist."""
    out: Path = Path("runs/safety")
    """Folder for safety.json and the picture."""
    json: Path | None = None
    """Also write the figures to this file."""
    seed: int = 0
    """Seed of the faults."""
    device: str = "auto"
    """Device of the model: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        _record(self.world)
        for name, least in (("chunks", 1), ("length", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name}: expected {least} or more, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class DetectionResult:
    """Trials of a fault."""

    fault: Fault
    at: np.ndarray
    """``(n,)``: step at which it begins, 1 to the chunk's length."""
    visible: np.ndarray
    """``(n,)``: True where it can be seen."""
    alarm: np.ndarray
    """``(n,)``: first step with an alarm from then on, of two chunks' steps; 0 for none."""

    def to_json(self) -> dict[str, Any]:
        """Return plain lists."""
        return {"at": self.at.tolist(), "visible": self.visible.astype(int).tolist(), "alarm": self.alarm.tolist()}

    @classmethod
    def of_json(cls, fault: Fault, line: Mapping[str, Any]) -> Self:
        """Read the result of :meth:`to_json`."""
        return cls(fault, np.array(line["at"]), np.array(line["visible"], bool), np.array(line["alarm"]))

    def within(self, steps: int) -> Estimate:
        """Return the share of visible faults that is detected by step ``steps``, counted from the chunk's beginning."""
        alarm = self.alarm[self.visible]
        return wilson(int(((alarm > 0) & (alarm <= steps)).sum()), len(alarm))

    def after(self, steps: int) -> Estimate:
        """Return the share of visible faults that is detected in the first ``steps`` frames that the fault changes."""
        alarm, at = self.alarm[self.visible], self.at[self.visible]
        return wilson(int(((alarm > 0) & (alarm - at < steps)).sum()), len(alarm))


def measure_safety(config: SafetyConfig, show: bool = False) -> tuple[Report, list[Path]]:
    """Calibrate where asked to, then measure; return the report and the files written. A stopped run resumes where it stopped.

    Raises ValueError for a model of another world, or too few episodes for a chunk."""
    world = open_world(config.model, config.device)
    if world.spec.name != config.world:
        raise ValueError(f"--model {config.model}: expected a world of {config.world}, got one of {world.spec.name!r}")
    record = _record(config.world)
    limits = record.robot.limits
    monitor = SafetyMonitor(world, Limits() if limits is None else load(limits)())
    stores = _stores(config, world, show)
    fitted = config.calibrate or monitor.detector is None
    past, length = history_steps(world), config.length
    rng = np.random.default_rng([config.seed, 2024])
    with progress(show) as bar, _results_log(config, world, stores) as log:

        def task(name: str, total: int) -> Callable[[int], None]:
            made = bar.add_task(name, total=total)
            return lambda n: bar.advance(made, n)

        done = {str(line["piece"]): line for line in log.lines}
        if fitted and ("calibration" not in done or done["calibration"]["sha256"] != _stamp(world)):
            monitor, done = replace(monitor, detector=_calibrated(config, monitor, stores, past, task)), {}
            if config.calibrate:
                assert monitor.detector is not None
                assert world.folder is not None
                monitor.detector.save(world.folder)
                log.add({"piece": "calibration", "sha256": _stamp(world)})
        measured = _thirds(stores, False)
        clean_chunks = _cut(measured, past, length, length)
        clean_chunks = replace(clean_chunks, rows=_sample(clean_chunks.rows, 4 * config.chunks, rng))
        tick = task("clean chunks", len(clean_chunks))
        if "clean" not in done:
            done["clean"] = {"piece": "clean", **measure_false_alarms(monitor, clean_chunks, length, tick).to_json()}
            log.add(done["clean"])
        clean = FalseAlarmResult.of_json(done["clean"])
        scenes = _cut(measured, past, 2 * length, length)
        assert record.robot.faults is not None  # checked by _record
        faults: tuple[Fault, ...] = load(record.robot.faults)(*_other_frames(stores, world))
        tick = task("faults", len(faults) * config.chunks)
        for fault in faults:
            if fault.name in done:
                tick(config.chunks)
                continue
            done[fault.name] = {"piece": fault.name, **inject(monitor, fault, scenes, config, tick).to_json()}
            log.add(done[fault.name])
    results = [DetectionResult.of_json(fault, done[fault.name]) for fault in faults]
    settings = {"model": config.model, "seed": config.seed, "calibrated": "now" if fitted else "before"}
    rows = (*_detection_rows(results, length), *_false_alarm_rows(stores, clean_chunks, clean))
    report = Report(
        f"safety: {config.model} on the real {config.world}, chunks of {length}", rows, circumstances() | settings
    )
    files = [report.save(config.out / "safety.json"), _draw(config.out / "safety.png", report.title, results, length)]
    if config.json is not None:
        files.append(report.save(config.json))
    if config.calibrate and world.folder is not None:
        files.append(world.folder / SAFETY)
    log.path.unlink(missing_ok=True)
    return report, files


@dataclass(frozen=True, eq=False)
class FalseAlarmResult:
    """Alarms on clean chunks."""

    alarms: np.ndarray
    """``(n, scores)``: True for each anomaly score above its limit."""
    refused: np.ndarray
    """``(n,)``: True where the imagined future is refused as too uncertain."""

    def to_json(self) -> dict[str, Any]:
        """Return plain lists."""
        return {"alarms": self.alarms.astype(int).tolist(), "refused": self.refused.astype(int).tolist()}

    @classmethod
    def of_json(cls, line: Mapping[str, Any]) -> Self:
        """Read the result of :meth:`to_json`."""
        return cls(np.array(line["alarms"], bool), np.array(line["refused"], bool))


def measure_false_alarms(
    monitor: SafetyMonitor, chunks: ChunkIndex, length: int, tick: Callable[[int], None]
) -> FalseAlarmResult:
    """Return the alarms of the monitor on clean ``chunks``."""
    assert monitor.detector is not None
    assert monitor.max_uncertainty is not None
    alarms, refused = [], []
    for frames, actions in chunks.batches(history_steps(monitor.world), length, tick):
        observed = observe_chunks(monitor, frames, actions, length)
        scores = monitor.detector.scores(observed)
        exceeded = [(getattr(scores, n) > monitor.detector.limit(n)).any(1) for n in AnomalyScores.NAMES]
        alarms.append(np.stack(exceeded, 1))
        refused.append((observed.uncertainty[:, 1:] > monitor.max_uncertainty).any(1))
    return FalseAlarmResult(np.concatenate(alarms), np.concatenate(refused))


def inject(
    monitor: SafetyMonitor, fault: Fault, chunks: ChunkIndex, config: SafetyConfig, tick: Callable[[int], None]
) -> DetectionResult:
    """Run ``config.chunks`` trials of ``fault``, each over two chunks; the second is imagined from the frame seen then."""
    assert monitor.detector is not None
    past, length = history_steps(monitor.world), config.length
    rng = np.random.default_rng([config.seed, *fault.name.encode()])
    rows = rng.choice(len(chunks), config.chunks, replace=config.chunks > len(chunks))
    ats = rng.integers(1, length + 1, config.chunks)
    env: Any = _record(config.world).make_env(monitor.world.spec.height, observation="pixels")
    seen, alarm = np.zeros(config.chunks, bool), np.zeros(config.chunks, np.int64)
    try:
        for i in range(0, config.chunks, BATCH):
            batch = slice(i, min(i + BATCH, config.chunks))
            scenes = [chunks.scene(int(row), past, 2 * length) for row in rows[batch]]
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
    """Return the first step with an alarm from ``ats`` ``(n,)`` on, of the steps of two chunks after ``past`` of history, ``(n,)``;
    0 without one."""
    assert monitor.detector is not None
    alarm, quiet = np.zeros(len(ats), np.int64), np.arange(len(ats))
    for begin in (0, length):
        if not len(quiet):
            break
        steps = begin + np.arange(1, length + 1)
        shown = frames[quiet, begin : begin + past + length + 1], actions[quiet, begin : begin + past + length]
        raised = monitor.detector.exceeded(monitor.detector.scores(observe_chunks(monitor, *shown, length)))
        raised &= steps >= ats[quiet, None]
        alarm[quiet] = np.where(raised.any(1), steps[raised.argmax(1)], 0)
        quiet = quiet[~raised.any(1)]
    return alarm


# -- chunks ----------------------------------------------------------------------------------------------------------


def _record(name: str) -> RealWorld:
    """Return the real world ``name``. Raises ValueError for one without known faults."""
    record = find_real_world(name)
    if record is None or record.robot.faults is None:
        known = ", ".join(other for other, world in real_worlds().items() if world.robot.faults is not None)
        raise ValueError(f"safety: faults are known for the real worlds {known}, got {name!r}")
    return record


def _stores(config: SafetyConfig, world: World, show: bool) -> list[EpisodeStore]:
    """Return episodes that the model has never seen: of the explorer, and of the expert."""
    if config.data is not None:
        return [EpisodeStore(config.data)]
    name, size = world.spec.name, world.spec.height
    with progress(show) as bar:

        def report(name: str) -> Callable[[int, int], None]:
            task = bar.add_task(name, total=None)
            return lambda done, wanted: bar.update(task, completed=done, total=wanted)

        explored = held_out_store(
            held_out_folder(name, size), size=size, world=name, progress=report("held-out episodes")
        )
        shown = demonstration_store(
            Path("data") / f"{name}-demos{'' if size == 64 else f'-{size}'}",
            size=size,
            seed=DEMONSTRATION_SEED,
            world=name,
            progress=report("demonstrations"),
        )
    return [explored, shown]


Part = tuple[EpisodeStore, np.ndarray]
"""Some episodes of a store, by index."""


def _thirds(stores: Sequence[EpisodeStore], calibrating: bool) -> list[Part]:
    """Return the episodes that calibrate, or the others, which are measured on."""
    return [(store, np.flatnonzero((np.arange(len(store)) % EVERY == 0) == calibrating)) for store in stores]


def _cut(parts: Sequence[Part], past: int, length: int, stride: int) -> ChunkIndex:
    rows = [
        (s, i, begin)
        for s, (store, episodes) in enumerate(parts)
        for i in episodes
        for begin in range(past, int(store.lengths[i]) - length + 1, stride)
    ]
    if len(rows) < 2:
        raise ValueError(
            f"{', '.join(str(store.folder) for store, _ in parts)}: too few episodes with {past + length} actions; "
            f"one in {2 * EVERY} is learned from, one in {2 * EVERY} sets the limits, the others are measured on"
        )
    return ChunkIndex([store for store, _ in parts], np.array(rows, np.int64))


def _calibrated(
    config: SafetyConfig,
    monitor: SafetyMonitor,
    stores: Sequence[EpisodeStore],
    past: int,
    task: Callable[[str, int], Callable[[int], None]],
) -> AnomalyDetector:
    """Calibrate on the held-out episodes for it, and on the stores of MORE that exist."""
    ours = _thirds(stores, True)
    more = list(_more(monitor.world.spec.frame_shape)) if config.data is None else []
    if more:
        training = [(store, store.split(held_out=False)[:most]) for store, most in more]
        measuring = [*ours, *((store, store.split(held_out=True)[:MEASURING]) for store, _ in more)]
    else:
        training, measuring = ([(store, rows[k::2]) for store, rows in ours] for k in (0, 1))
    learn, measure = (_cut(parts, past, config.length, config.length) for parts in (training, measuring))
    tick = task("calibrating", len(learn) + len(measure) + (TRAINING if monitor.state_names else 0))
    return calibrate(monitor, learn, measure, config.length, tick, config.seed)


def _more(frame_shape: tuple[int, int, int]) -> Iterator[tuple[EpisodeStore, int]]:
    """Yield the stores of MORE that exist, and the number of episodes to learn from."""
    for folder, most in MORE.items():
        if (folder / "store.json").is_file() and (store := EpisodeStore(folder)).spec.frame_shape == frame_shape:
            yield store, most


def _results_log(config: SafetyConfig, world: World, stores: Sequence[EpisodeStore]) -> ResultsLog:
    """Open the log that keeps the finished pieces of just this run until it ends."""
    stamp = None if config.calibrate else _stamp(world)
    kept = {name: getattr(config, name) for name in ("chunks", "length", "calibrate", "seed")}
    settings = kept | {
        "weights": weights_digest(world.folder),
        "stores": [str(s.folder) for s in stores],
        "sizes": [[len(s), s.frames] for s in stores],
        "contents": [store_fingerprint(s) for s in stores],
        "stamp": stamp,
    }
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return ResultsLog(config.out / f"trial-{name}.jsonl", settings)


def _stamp(world: World) -> str | None:
    """Return the SHA-256 of the calibration in the world's folder."""
    path = None if world.folder is None else world.folder / SAFETY
    return FileEntry.of(path).sha256 if path is not None and path.is_file() else None


def _sample(rows: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= most else rows[np.sort(rng.choice(len(rows), most, replace=False))]


def _other_frames(stores: Sequence[EpisodeStore], world: World) -> tuple[np.ndarray, np.ndarray]:
    """Return frames of another Push-T's camera, and of a camera in another world."""
    last = stores[0][len(stores[0]) - 1].frames
    from neuralsim.envs.tworoom.env import TwoRoomRealEnv

    env = TwoRoomRealEnv(size=world.spec.height)
    try:
        other = np.stack([env.reset(seed=i)[0] for i in range(16)])
    finally:
        env.close()
    return last, other


# -- rows and picture --------------------------------------------------------------------------------------------------


def _detection_rows(results: Sequence[DetectionResult], length: int) -> Iterator[Metric]:
    targeted = [r for r in results if r.fault.name != SMALL_PUSH]
    overall = _joined([r.after(length) for r in targeted])
    yield _row(overall, "caught", f"detected within {length} frames, all faults", Target(least=95))
    for r in results:
        target = None if r.fault.name == SMALL_PUSH else Target(least=95)
        yield _row(r.after(length), f"caught-{r.fault.name}", f"{r.fault.group}: {r.fault.description}", target)
    early = _joined([r.within(length) for r in targeted])
    yield _row(early, "caught-in-chunk", "in the chunk it began in, all faults")
    for r in results:
        label = f"in the chunk it began in: {r.fault.description}"
        yield _row(r.within(length), f"caught-in-chunk-{r.fault.name}", label)
    for r in results:
        if not r.visible.all():
            share = wilson(int((~r.visible).sum()), len(r.visible))
            label = f"invisible in {length} frames, not counted: {r.fault.description}"
            yield _row(share, f"unseen-{r.fault.name}", label)


def _joined(parts: Sequence[Estimate]) -> Estimate:
    return wilson(round(sum(e.value * e.n for e in parts if e.n)), sum(e.n for e in parts))


def _false_alarm_rows(stores: Sequence[EpisodeStore], chunks: ChunkIndex, clean: FalseAlarmResult) -> Iterator[Metric]:
    any_alarm: np.ndarray = np.any(clean.alarms, axis=1, keepdims=True)[:, 0]
    yield _row(_share(any_alarm), "false-alarms", "false alarms, of clean chunks", Target(most=1))
    for s, store in enumerate(stores):
        mine = chunks.rows[:, 0] == s
        label = f"false alarms in {store.folder.name}"
        yield _row(_share(any_alarm[mine]), f"false-alarms-{store.folder.name}", label, Target(most=1))
    for i, name in enumerate(AnomalyScores.NAMES):
        yield _row(_share(clean.alarms[:, i]), f"false-alarms-{RECORDED_AS[name]}", f"false alarms of the score {name}")
    label = "clean chunks whose imagined future is refused as too uncertain"
    yield _row(_share(clean.refused), "refused", label, Target(most=1))


def _share(happened: np.ndarray) -> Estimate:
    return wilson(int(happened.sum()), len(happened))


def _row(estimate: Estimate, key: str, label: str, target: Target | None = None) -> Metric:
    value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
    return Metric(key, label, value, "%", low=low, high=high, n=estimate.n, target=target)


def _draw(path: Path, title: str, results: Sequence[DetectionResult], length: int) -> Path:
    """Draw the share detected by frames since the fault began, a line per fault."""
    from matplotlib.figure import Figure

    from neuralsim.agents.evaluation.plots import COLOURS, MARKERS
    from neuralsim.evaluation.plots import save_figure

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(8.4, 4.6), layout="constrained", dpi=110)
    figure.suptitle(title)
    axes = figure.add_subplot()
    steps = np.arange(1, length + 1)
    for k, result in enumerate(results):
        shares = [100 * result.after(int(s)).value for s in steps]
        marker = MARKERS[k // len(COLOURS) % len(MARKERS)]
        axes.plot(
            steps, shares, color=COLOURS[k % len(COLOURS)], marker=marker, markersize=4, label=result.fault.description
        )
    axes.axhline(95, color="#a0aec0", linewidth=1, linestyle="--")
    axes.set_xlabel("frames since the fault began")
    axes.set_ylabel("detected (%)")
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save_figure(figure, path)
    return path
