"""Long play: minutes of dreaming under a keyboard's random keys, and whether the world is still whole at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from neuralsim.noise import Noise
from neuralsim.precision import pick_dtype
from neuralsim.reading import Reader, Reading, Truth
from neuralsim.report import Bar, Report, Row, circumstances, resident_megabytes, row_of
from neuralsim.score import Bootstrap, mean, median
from neuralsim.task import inference
from neuralsim.world import WorldModel

LAST_SHARE = 0.2
"""The figures are of this last part of the play: two minutes of ten."""
AREA_SLACK = 0.1
"""The block has kept its size within this share of its own."""


@dataclass(frozen=True)
class LongPlayConfig:
    """How long to play."""

    steps: int = 6000
    """Steps: ten minutes at 10 Hz."""
    look_every: int = 5
    """Every how many steps the frame is read."""
    seed: int = 0
    """Seed of the keys and of the dreams' noise."""
    precision: str = "auto"
    """auto, float32 or bfloat16."""


def random_keys(rng: np.random.Generator, steps: int, size: int) -> np.ndarray:
    """What random hands do on arrow keys: hold one combination for 3 to 19 steps, then another; float32 ``(steps, size)`` of -1, 0, 1."""
    out = np.zeros((steps, size), np.float32)
    at = 0
    while at < steps:
        hold = int(rng.integers(3, 20))
        out[at : at + hold] = rng.integers(-1, 2, size)
        at += hold
    return out


def long_play(
    model: WorldModel,
    frames: np.ndarray,
    actions: np.ndarray,
    reader: Reader,
    truth: Truth | None = None,
    states: np.ndarray | None = None,
    config: LongPlayConfig | None = None,
    tick: Callable[[int], None] | None = None,
) -> Report:
    """Dream on from ``b`` histories, ``frames`` ``(b, t, h, w, 3)`` and ``actions`` ``(b, t-1, a)``, under random keys.

    With ``truth`` and the true ``states`` ``(b, s)`` at the histories' ends, the true world plays the same keys and its figures stand in
    the baseline column (a true block can be squeezed out of the picture too). ``tick`` is told of steps done.
    """
    config = config or LongPlayConfig()
    b, size = len(frames), model.spec.action_size
    keys = np.stack([random_keys(np.random.default_rng([config.seed, i]), config.steps, size) for i in range(b)])
    plan = torch.as_tensor(keys).to(model.device)
    rng = Noise.from_seeds([config.seed * 1_000_003 + i for i in range(b)], model.device)
    look = [s for s in range(1, config.steps + 1) if s % config.look_every == 0 or s == config.steps]
    looked = set(look)
    seen: list[np.ndarray] = []
    bad, megabytes_early = 0, math.nan
    model.eval()
    with inference(model.device, pick_dtype(config.precision, model.device)):
        state = model.encode(
            torch.as_tensor(frames).to(model.device), torch.as_tensor(actions, dtype=torch.float32).to(model.device)
        )
        for step in range(1, config.steps + 1):
            state = model.step(state, plan[:, step - 1], rng.advance(step - 1))
            frame = model.decode(state)
            bad += int((~torch.isfinite(model.features(state))).any(1).sum())
            if step in looked:
                seen.append(frame.cpu().numpy())
            if step == max(1, config.steps // 10):
                megabytes_early = resident_megabytes() - _megabytes(seen)
            if tick:
                tick(b)
    growth = resident_megabytes() - _megabytes(seen) - megabytes_early
    reading = _read(reader, seen)
    baseline: tuple[float | None, ...] = (None, None, None)
    tail = slice(-max(1, round(LAST_SHARE * len(look))), None)
    if truth is not None and states is not None:
        baseline = tuple(
            mean(x.ravel()) for x in _wholeness(_read(reader, _true_frames(truth, states, keys, looked)), tail)
        )
    boot = Bootstrap(np.arange(b), seed=config.seed)
    whole, found, misfit = _wholeness(reading, tail)
    minutes = config.steps / model.spec.rate_hz / 60
    rows = (
        row_of(
            boot(mean, whole.mean(1)),
            "rigid",
            "frames whose block is one piece of its size, last fifth",
            baseline=baseline[0],
            better="high",
            bar=Bar(least=0.95),
        ),
        row_of(
            boot(mean, found.mean(1)),
            "pusher_found",
            "frames with a pusher, last fifth",
            baseline=baseline[1],
            better="high",
            bar=Bar(least=0.99),
        ),
        row_of(
            boot(median, np.median(misfit, 1)),
            "misfit",
            "block's misfit to its rigid shape (0 none), last fifth, median",
            baseline=baseline[2],
            better="low",
        ),
        Row("not_finite", "steps with a number that is not finite", float(bad), n=b * config.steps, bar=Bar(most=0)),
        Row("growth", "memory grown after the first tenth", growth, unit="MB", bar=Bar(most=50)),
    )
    return Report(f"{minutes:.1f} minutes of imagined play, {b} dreams, random keys", rows, circumstances())


def _read(reader: Reader, frames: list[np.ndarray]) -> Reading:
    """Frames of s looks, each ``(b, h, w, 3)`` -> Reading ``(b, s)``."""
    stacked = np.stack(frames, 1)
    return reader(stacked.reshape(-1, *stacked.shape[2:])).reshape(*stacked.shape[:2])


def _wholeness(reading: Reading, tail: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Over the last looks: block is whole, pusher is there (0 or 1), misfit; each float ``(b, looks)``."""
    whole = (np.abs(reading.size - 1) <= AREA_SLACK) & (reading.pieces == 1)
    return (
        whole[:, tail].astype(np.float64),
        reading.pusher_found[:, tail].astype(np.float64),
        reading.misfit[:, tail].astype(np.float64),
    )


def _true_frames(truth: Truth, states: np.ndarray, keys: np.ndarray, looked: set[int]) -> list[np.ndarray]:
    columns = []
    for state, plan in zip(states, keys, strict=True):
        truth.reset(options={"state": state})
        shown = []
        for step, action in enumerate(plan, 1):
            truth.step(action)
            if step in looked:
                shown.append(truth.render())
        columns.append(np.stack(shown))
    return list(np.stack(columns, 1))


def _megabytes(frames: list[np.ndarray]) -> float:
    return sum(f.nbytes for f in frames) / 1e6
