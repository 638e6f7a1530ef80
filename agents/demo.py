"""demo: a dream beside the truth, from the same start under the same actions, as a table, a video and a picture."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from neuralsim.agents.dream import Dream
from neuralsim.agents.driver import Driver
from neuralsim.agents.explorer import PushTExplorer
from neuralsim.agents.keyboard import Keyboard
from neuralsim.agents.recorder import VideoWriter
from neuralsim.agents.session import Moment, Session
from neuralsim.agents.window import Painter
from neuralsim.catalog import open_world
from neuralsim.envs.pusht import PushTRealEnv
from neuralsim.envs.pusht_reader import PushTReader
from neuralsim.episode import write_atomically
from neuralsim.picture import draw_strip
from neuralsim.score import mask_iou, psnr, squared_error

HORIZONS = (1, 5, 10, 20, 30, 45, 60)
"""Steps of the dream that the table and the picture show, as far as the episode goes."""
CANDIDATES = 12
"""True episodes tried; the one in which the block is pushed most is dreamt, because little is to be seen in the others."""


@dataclass(frozen=True)
class Demo:
    """Dream an episode beside the true one: same start, same actions."""

    world: str = "pusht"
    """Name of a shipped world, or the folder of one of your own."""
    steps: int = 60
    """Length of the episode; ten steps are a second."""
    seed: int = 0
    """Seed of start, actions and the dream's noise."""
    out: Path = Path("runs/demo")
    """Folder for the video and the picture."""
    json: Path | None = None
    """Also write the figures to this file."""
    device: str = "auto"
    """Where the model runs: auto, cpu or cuda."""
    precision: str = "auto"
    """Arithmetic of the model: auto, float32 or bfloat16."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"--steps: expected 1 or more, got {self.steps}")
        if self.seed < 0:
            raise ValueError(f"--seed: expected 0 or more, got {self.seed}")


@dataclass(frozen=True)
class Agreement:
    """How well dream and truth agree after ``step`` steps.

    pusher_error in units of the 512-wide workspace, None where no pusher is seen in the dream; block_iou: overlap of the two
    blocks' pixels, 0..1, None where neither shows a block; block_iou_still: the same had nothing moved since the start; psnr
    in dB.
    """

    step: int
    pusher_error: float | None
    block_iou: float | None
    block_iou_still: float | None
    psnr: float


@dataclass(frozen=True)
class DemoReport:
    """What the demo found, and where it wrote the video and the picture."""

    world: str
    start: int
    steps: int
    seconds: float
    agreement: tuple[Agreement, ...]
    video: str
    picture: str

    def table(self) -> Table:
        """The agreement for people."""
        table = Table(title=f"dream against truth, {self.world}, start {self.start}")
        for name in ("steps", "pusher off by", "block IoU", "had nothing moved", "PSNR"):
            table.add_column(name, justify="right")
        for a in self.agreement:
            off = "not seen" if a.pusher_error is None else f"{a.pusher_error:.1f} of 512"
            overlaps = ("not seen" if x is None else f"{x:.2f}" for x in (a.block_iou, a.block_iou_still))
            table.add_row(str(a.step), off, *overlaps, f"{a.psnr:.1f} dB")
        return table

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(asdict(self), indent=1)


def demo(config: Demo) -> DemoReport:
    """Dream, compare, write. The true simulator is in the same state at the start and gets the same actions, nothing more."""
    world = open_world(config.world, config.device)
    dream = Dream(world, config.precision)
    start, seed = _liveliest(dream, config)
    session = Session(dream, Driver("explorer", PushTExplorer(seed), "state"), Keyboard(), config.seed)
    session.start = start
    moments = [session.same_start()]
    session.hand_over()
    painter = Painter()
    config.out.mkdir(parents=True, exist_ok=True)
    video = VideoWriter(config.out / "demo.mp4", dream.spec.rate_hz)
    seconds = 0.0
    try:
        video.add(painter.video_frame(moments[0], dream.doubt_limit))
        for _ in range(config.steps):
            begin = time.perf_counter()
            moment = session.advance()
            seconds += time.perf_counter() - begin
            assert moment is not None  # the session is not paused
            moments.append(moment)
            video.add(painter.video_frame(moment, dream.doubt_limit))
    finally:
        video.close()
        session.close()
    shown = sorted({0, *(h for h in HORIZONS if h <= config.steps), config.steps})
    picture = config.out / "demo.png"
    true, imagined = (np.stack([getattr(moments[s], name) for s in shown])[None] for name in ("truth", "dream"))
    draw_strip(picture, true, imagined, shown)
    report = DemoReport(
        world=config.world,
        start=start,
        steps=config.steps,
        seconds=round(seconds, 3),
        agreement=_agreement(moments, shown[1:]),
        video=os.fspath(video.path),
        picture=os.fspath(picture),
    )
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(config.json, report.to_json() + "\n")
    return report


def _liveliest(dream: Dream, config: Demo) -> tuple[int, int]:
    """A start and an explorer's seed that push the block about in the true simulator (the dream is not asked)."""
    env = PushTRealEnv(size=8, observation="state")
    rng = np.random.default_rng(config.seed)
    best = (-1.0, 0, 0)
    for _ in range(CANDIDATES):
        start, seed = int(rng.integers(len(dream.start_states))), int(rng.integers(2**31))
        explorer, segment = PushTExplorer(seed), None
        observation, _ = env.reset(options={"state": dream.start_states[start]})
        way = 0.0
        for left in range(config.steps, 0, -1):
            before = observation
            action, segment = explorer.predict(observation, segment)
            observation, *_ = env.step(action)
            # A block half outside the workspace is half out of sight.
            inside = (observation[2:4] > 60).all() and (observation[2:4] < 452).all()
            way += left * float(np.linalg.norm(observation[2:4] - before[2:4])) * inside  # rather early than late
        best = max(best, (way, start, seed))
    env.close()
    return best[1:]


def _agreement(moments: list[Moment], steps: list[int]) -> tuple[Agreement, ...]:
    reader = PushTReader(moments[0].dream.shape[0])
    dreamt, true = (np.stack([getattr(m, name) for m in moments]) for name in ("dream", "truth"))
    seen, real = reader(dreamt[steps]), reader(true[[0, *steps]])
    overlap = mask_iou(seen.mask, real.mask[1:])
    still = mask_iou(np.repeat(real.mask[:1], len(steps), 0), real.mask[1:])
    likeness = psnr(squared_error(dreamt[steps], true[steps]))
    places = np.stack([moments[s].state[:2] for s in steps])
    error = np.linalg.norm(seen.pusher - places, axis=-1)
    error = np.where(seen.pusher_found, error, np.nan)
    return tuple(
        Agreement(
            step, _figure(error[i], 2), _figure(overlap[i], 4), _figure(still[i], 4), round(float(likeness[i]), 2)
        )
        for i, step in enumerate(steps)
    )


def _figure(value: float, digits: int) -> float | None:
    return round(float(value), digits) if np.isfinite(value) else None
