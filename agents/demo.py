"""The command ``demo``: an imagined episode beside the real one, from the same start under the same actions, as a table, a video
and a picture."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from neuralsim.agents.collection.collect import CollectConfig, collect_episode
from neuralsim.agents.collection.held_out import HELD_OUT_SEED
from neuralsim.data.store import EpisodeStore
from neuralsim.data.video_writer import VideoWriter
from neuralsim.envs.registry import find_metrics, find_real_world
from neuralsim.evaluation.image_metrics import squared_error
from neuralsim.evaluation.plots import draw_strip
from neuralsim.evaluation.rollouts import ImaginedRolloutConfig, Rollouts, Windows, roll_out, sample_windows
from neuralsim.evaluation.world_metrics import WorldMetrics, pixel_headlines
from neuralsim.pretrained.world import World, open_world, training_record
from neuralsim.runtime.command import CommandOutput
from neuralsim.runtime.files import write_atomically

HORIZONS = (1, 5, 10, 20, 30, 45, 60)
"""Steps that the table and the picture show, as far as the episode goes."""
CANDIDATES = 6
"""Real episodes to choose from; the one whose frames change most is imagined."""
MAGNIFIED = 256
"""Height of a panel of the video in pixels, about."""
GAP = 8
"""Pixels between them."""


@dataclass(frozen=True)
class DemoConfig:
    """Imagine an episode beside the real one: same start, same actions."""

    world: str = "pusht"
    """Name of a shipped world, or the folder of one of your own."""
    data: Path | None = None
    """Episode store whose held-out episodes are shown. By default one is collected in the real environment, where the world has one,
    or taken from the store that the world was trained on."""
    steps: int = 60
    """Imagined steps, or fewer where no episode is as long."""
    seed: int = 0
    """Seed of episode and noise."""
    out: Path = Path("runs/demo")
    """Folder for the video and the picture."""
    json: Path | None = None
    """Also write the results to this file."""
    device: str = "auto"
    """Device of the model: auto, cpu or cuda."""
    precision: str = "auto"
    """Arithmetic of the model: auto, float32 or bfloat16."""

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raise ValueError for values out of range."""
        if self.steps < 1:
            raise ValueError(f"--steps: expected 1 or more, got {self.steps}")
        if self.seed < 0:
            raise ValueError(f"--seed: expected 0 or more, got {self.seed}")


@dataclass(frozen=True)
class Agreement:
    """Agreement of imagination and reality after ``step`` steps.

    values: by metric, its value, and the value of a copy of the first frame; None where it does not apply. Recorded as "figures".
    """

    step: int
    values: Mapping[str, tuple[float | None, float | None]]


@dataclass(frozen=True)
class DemoReport:
    """Results of the demo, and the paths of its video and picture."""

    world: str
    episode: str
    steps: int
    seconds: float
    agreement: tuple[Agreement, ...]
    video: str
    picture: str

    def table(self) -> Table:
        """Return the agreement as a table for people."""
        table = Table(
            title=f"dream against truth, {self.world}, {self.episode}", caption="in brackets: a copy of the first frame"
        )
        table.add_column("steps", justify="right")
        for name in self.agreement[0].values:
            table.add_column(name, justify="right")
        for a in self.agreement:
            table.add_row(str(a.step), *(f"{_format(v)} ({_format(still)})" for v, still in a.values.values()))
        return table

    def to_json(self) -> str:
        """Return indented JSON."""
        body = asdict(self)
        body["agreement"] = [{"step": a.step, "figures": a.values} for a in self.agreement]
        return json.dumps(body, indent=1)


def demo(config: DemoConfig) -> DemoReport:
    """Imagine an episode from its first frames and its actions, compare it with the real one, and write the results.

    Raises ValueError where there are no episodes to show.
    """
    world = open_world(config.world, config.device)
    metrics = find_metrics(world.spec)
    with _candidates(config, world) as windows:
        chosen = _most_changing(windows)
        begin = time.perf_counter()
        r = roll_out(
            world.model,
            chosen,
            range(chosen.steps + 1),
            None if metrics is None else metrics.estimator,
            ImaginedRolloutConfig(seed=config.seed, precision=config.precision, keep=1),
        )
        seconds = time.perf_counter() - begin
        where = _name(chosen, config)
    assert r.frames is not None
    imagined, real = (frames[0] for frames in r.frames)
    config.out.mkdir(parents=True, exist_ok=True)
    video = VideoWriter(config.out / "demo.mp4", world.spec.rate_hz)
    try:
        for pair in zip(imagined, real, strict=True):
            video.add(_panels(*pair))
    finally:
        video.close()
    shown = sorted({0, *(h for h in HORIZONS if h <= chosen.steps), chosen.steps})
    picture = config.out / "demo.png"
    draw_strip(picture, real[None, shown], imagined[None, shown], shown)
    report = DemoReport(
        world=config.world,
        episode=where,
        steps=chosen.steps,
        seconds=round(seconds, 3),
        agreement=_agreement(r, metrics, shown[1:]),
        video=os.fspath(video.path),
        picture=os.fspath(picture),
    )
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(config.json, report.to_json() + "\n")
    return report


@contextmanager
def _candidates(config: DemoConfig, world: World) -> Iterator[Windows]:
    """Windows of episodes that the world was not trained on."""
    spec, rng = world.spec, np.random.default_rng(config.seed)
    trained: str = training_record(world).get("store", "")
    if config.data is None and find_real_world(spec.name) is not None and spec.height == spec.width:
        with tempfile.TemporaryDirectory(prefix="neuralsim-demo-") as folder:
            steps = spec.context - 1 + config.steps
            collection = CollectConfig(spec.name, out=Path(folder), steps=steps, seed=HELD_OUT_SEED, size=spec.height)
            real_world = collection.real_world
            first = CANDIDATES * config.seed
            episodes = [collect_episode(collection, first + i) for i in range(CANDIDATES)]
            store = EpisodeStore.create(folder, real_world.make_spec(spec.height), real_world.state_names)
            store.add(episodes)
            yield _windows(store, config.steps, spec.context, rng, all_held_out=True)
    elif config.data is not None or (trained and (Path(trained) / "store.json").is_file()):
        store = EpisodeStore(trained if config.data is None else config.data)
        if store.spec.frame_shape != spec.frame_shape or store.spec.action_names != spec.action_names:
            raise ValueError(f"demo: the world is {spec}, the episodes in {store.folder} are of {store.spec}")
        yield _windows(store, config.steps, spec.context, rng, all_held_out=False)
    else:
        raise ValueError(
            f"world {spec.name!r}: its real environment cannot be made here, and the episodes it was trained on are not known or not "
            "there; give a store with --data"
        )


def _windows(store: EpisodeStore, steps: int, context: int, rng: np.random.Generator, all_held_out: bool) -> Windows:
    """CANDIDATES windows of ``steps`` steps, or as many as the longest episode has."""
    kept = store.lengths if all_held_out else store.lengths[store.split(True)]
    longest = int(kept.max()) + 1 - context if len(kept) else steps
    return sample_windows(store, CANDIDATES, context, min(steps, max(1, longest)), rng, all_held_out)


def _most_changing(windows: Windows) -> Windows:
    """The window whose frames differ most from its first."""
    frames = windows.read().frames[:, windows.context - 1 :]
    change = squared_error(frames[:, 1:], np.broadcast_to(frames[:, :1], frames[:, 1:].shape))
    return windows.index(np.array([int(np.sqrt(change).mean(1).argmax())]))


def _name(window: Windows, config: DemoConfig) -> str:
    episode, start = int(window.episodes[0]), int(window.starts[0])
    collected = config.data is None and window.store.folder.name.startswith("neuralsim-demo-")
    return "a new episode" if collected else f"{window.store.folder}, episode {episode} from step {start}"


def _agreement(r: Rollouts, metrics: WorldMetrics | None, steps: list[int]) -> tuple[Agreement, ...]:
    figures = (*pixel_headlines(r), *(metrics.headlines(r) if metrics is not None else ()))
    found = []
    for step in steps:
        c = r.column(step)
        found.append(
            Agreement(
                step,
                {
                    f.label.removesuffix(", median") + (f" ({f.unit})" if f.unit else ""): (
                        _rounded(f.values[0, c]),
                        None if f.copied is None else _rounded(f.copied[0, c]),
                    )
                    for f in figures
                },
            )
        )
    return tuple(found)


def _panels(imagined: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Imagined frame, real frame and their difference side by side, magnified, with even sides for the encoder."""
    scale = max(1, MAGNIFIED // imagined.shape[0])
    difference = np.abs(imagined.astype(np.int16) - real).astype(np.uint8)
    panels = [p.repeat(scale, 0).repeat(scale, 1) for p in (imagined, real, difference)]
    gap = np.full((len(panels[0]), GAP, 3), 24, np.uint8)
    return np.concatenate([panels[0], gap, panels[1], gap, panels[2]], 1)


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def demo_command(config: DemoConfig) -> CommandOutput:
    """Run `demo` and return its table and the places of its files."""
    report = demo(config)
    lines = (
        f"{report.steps} steps, imagined and real, in {report.seconds:.1f} s",
        f"video    {report.video}",
        f"picture  {report.picture}",
    )
    return CommandOutput(tables=[report.table()], lines=lines)
