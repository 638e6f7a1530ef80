"""Measure: how true a dream is, on episodes the model has never seen.

Open-loop rollouts of 1 to 64 steps are compared with the truth in numbers a person understands: where the pusher and the block are, whether
the block kept its shape, whether it moved though nothing touched it, whether another action makes another future. Every figure
stands beside that of copying the last frame, beside the reader's own error on true frames, and inside a 95 % confidence interval.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from neuralsim.dreaming import Rollouts, Ticker, Windows, dream, held_out_episodes, roll_out, sample_windows
from neuralsim.episode import Clip, EpisodeStore
from neuralsim.picture import draw_curves, draw_strip
from neuralsim.precision import pick_dtype
from neuralsim.reading import Reader, Reading, Truth
from neuralsim.report import Bar, Report, Row, circumstances, row_of
from neuralsim.score import Bootstrap, Estimate, auroc, mask_iou, mean, median, psnr, rank_correlation, turn
from neuralsim.task import inference
from neuralsim.world import WorldModel

MOVED = (5.0, 5.0)
"""The true block has moved when it is further than this from where it was: units, degrees."""
STILL = (0.5, 0.5)
"""The true block has not moved while it is within this: units, degrees."""
GHOST = (3.0, 3.0)
"""The imagined block has moved when it is read further than this from where it was."""
STRIDE = 10
"""Steps over which motion is looked at, over which success is foretold, and after which futures are compared."""
NEAR_MISS = 0.6
"""A step without success but with at least this reward is a near miss: success is told apart from these, not from easy cases."""
AREA_SLACK = 0.1
"""The block has kept its size within this share of its own."""
PLANS = 4
"""Different action sequences tried from each start for controllability."""

BARS: Mapping[tuple[str, int | None], Bar] = {
    ("codec_iou", None): Bar(least=0.95),
    ("codec_pusher", None): Bar(most=2.0),
    ("iou_moved", 10): Bar(least=0.80),
    ("pusher_moved", 10): Bar(most=10.0),
    ("iou_moved", 30): Bar(least=0.60),
    ("pusher_moved", 30): Bar(most=20.0),
    ("shape", 64): Bar(least=0.95),
    ("reward", 10): Bar(most=0.05),
    ("success_precision", 10): Bar(least=0.90),
    ("success_recall", 10): Bar(least=0.90),
    ("control_pusher", 10): Bar(0.8, 1.25),
    ("control_block", 10): Bar(0.8, 1.25),
}
"""What a shipped world must reach."""


@dataclass(frozen=True)
class MeasureConfig:
    """How much to measure."""

    rollouts: int = 256
    """Open-loop rollouts of 64 steps; every other sample size follows from it."""
    seed: int = 0
    """Seed of the choice of windows, of the dreams' noise and of the confidence intervals."""
    horizons: tuple[int, ...] = (1, 5, 10, 20, 30, 64)
    """Steps that are reported."""
    chunk: int = 3
    """Frames denoised together in the chunk-wise row; 1 leaves it out."""
    denoise: tuple[int, ...] = (1, 2, 4)
    """Numbers of denoising steps that are compared."""
    batch: int = 32
    """Rollouts dreamt at once."""
    precision: str = "auto"
    """auto, float32 or bfloat16."""
    all_held_out: bool = False
    """Measure on every episode of the store, because training never saw any of it."""

    def __post_init__(self) -> None:
        if self.rollouts < 2 or self.batch < 1 or not self.horizons or min(self.horizons) < 1:
            raise ValueError(
                f"MeasureConfig: rollouts must be 2 or more, batch 1 or more and horizons 1 or more; got {self.rollouts}, "
                f"{self.batch} and {self.horizons}"
            )

    @property
    def looked_at(self) -> tuple[int, ...]:
        """Steps whose frames are looked at: the horizons, every tenth, and enough between them for a smooth curve."""
        last = max(self.horizons)
        return tuple(
            sorted({*self.horizons, *range(0, last + 1, STRIDE), *range(min(10, last) + 1), *range(0, last + 1, 2)})
        )

    @property
    def small(self) -> int:
        """Rollouts of the side measurements (chunk-wise, denoising steps, controllability)."""
        return min(self.rollouts, max(8, self.rollouts // 4))


@dataclass(frozen=True)
class Measurement(Report):
    """A Report of :func:`measure`, with the rollouts behind its pictures."""

    rollouts: Rollouts | None = None
    curves: Mapping[str, Any] | None = None

    def draw(self, path: str | os.PathLike[str]) -> tuple[Path, Path | None]:
        """Write the drift curves to ``path`` (PNG) and truth above dream to ``<name>-strip.png``; returns both paths."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        draw_curves(target, self.title, self.curves or {})
        if self.rollouts is None or self.rollouts.frames is None or not len(self.rollouts.frames[0]):
            return target, None
        strip = target.with_name(f"{target.stem}-strip{target.suffix}")
        columns = [
            self.rollouts.column(s) for s in sorted({0, *(r.step for r in self.rows if r.key == "psnr" and r.step)})
        ]
        imagined, true = (f[:, columns] for f in self.rollouts.frames)
        draw_strip(strip, true, imagined, [int(self.rollouts.steps[c]) for c in columns])
        return target, strip


def measure(
    model: WorldModel,
    store: EpisodeStore,
    reader: Reader | None = None,
    truth: Truth | None = None,
    config: MeasureConfig | None = None,
    show: bool = False,
) -> Measurement:
    """Measure ``model`` on the held-out episodes of ``store``.

    Without a ``reader`` only what pixels and rewards tell is measured; without a ``truth`` simulator there is no controllability. ``show``
    draws a progress bar. Raises ValueError where the store is of another world or has no held-out episode that is long enough.
    """
    config = config or MeasureConfig()
    if store.spec.frame_shape != model.spec.frame_shape or store.spec.action_names != model.spec.action_names:
        raise ValueError(f"measure: the model is of {model.spec}, the episodes in {store.folder} of {store.spec}")
    rng = np.random.default_rng(config.seed)
    context, last = model.spec.context, max(config.horizons)
    model.eval()
    windows = sample_windows(store, config.rollouts, context, last, rng, config.all_held_out)
    windows = _moving_first(windows, reader)
    small = config.small
    variants = _variants(model, config)
    work = config.rollouts * (last + STRIDE) + len(variants) * small * 30 + small * PLANS * STRIDE
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn(),
        console=Console(stderr=True), disable=not show, transient=True,
    ) as progress:  # fmt: skip
        bar = progress.add_task("dreaming", total=work)

        def tick(steps: int) -> None:
            progress.advance(bar, steps)

        rollouts = roll_out(
            model,
            windows,
            config.looked_at,
            reader,
            ssim_steps=config.horizons,
            batch=config.batch,
            seed=config.seed,
            precision=config.precision,
            keep=4,
            tick=tick,
        )
        boot = Bootstrap(rollouts.episodes, seed=config.seed)
        rows = [*_frame_rows(rollouts, boot, config)]
        if reader is not None:
            rows += _scene_rows(rollouts, reader, boot, config)
        rows += _reward_rows(rollouts, boot, config)
        rows += _success_rows(model, store, config, tick)
        rows += _uncertainty_rows(rollouts, boot, config)
        if reader is not None and rollouts.pusher is not None:
            progress.update(bar, description="other actions")
            if truth is not None and last >= STRIDE:
                rows += _control_rows(model, windows.index(slice(small)), reader, truth, config, tick)
            progress.update(bar, description="other samplers")
            rows += _variant_rows(model, windows.index(slice(small)), rollouts, reader, config, variants, tick)
            if truth is not None:
                rows += _restart_rows(windows.index(slice(small)), rollouts, reader, truth, config)
    rows = [replace(row, bar=BARS.get((row.key, row.step))) for row in rows]
    return Measurement(
        title=f"{store.spec.name}: {config.rollouts} held-out rollouts, {len(np.unique(rollouts.episodes))} episodes",
        rows=tuple(rows),
        circumstances=circumstances() | {"seed": config.seed, "denoise_steps": getattr(model, "denoise_steps", None)},
        rollouts=rollouts,
        curves=_curves(rollouts, reader),
    )


def calibrate_uncertainty(
    model: WorldModel,
    store: EpisodeStore,
    quantile: float = 0.99,
    steps: int = 30,
    dreams: int = 512,
    *,
    seed: int = 0,
    batch: int = 64,
    precision: str = "auto",
    all_held_out: bool = False,
) -> float:
    """The uncertainty that the worst step of a held-out dream of ``steps`` true actions passes in 1 - ``quantile`` of dreams.

    A trainer stores it as the model's threshold: past it a dream counts as having left what the model knows.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"quantile: expected a share between 0 and 1, got {quantile!r}")
    rng = np.random.default_rng(seed)
    windows = sample_windows(store, dreams, model.spec.context, steps, rng, all_held_out)
    rollouts = roll_out(model, windows, (), None, batch=batch, seed=seed, precision=precision)
    return float(np.quantile(rollouts.uncertainty.max(1), quantile))


# -- figures -------------------------------------------------------------------------------------------------------------------------


def _frame_rows(r: Rollouts, boot: Bootstrap, config: MeasureConfig) -> Iterator[Row]:
    for step in config.horizons:
        yield row_of(
            boot(mean, r.psnr(step)),
            "psnr",
            "PSNR",
            unit="dB",
            step=step,
            baseline=mean(r.psnr(step, copy=True)),
            better="high",
        )
    for step in config.horizons:
        column = r.column(step)
        yield row_of(
            boot(mean, r.likeness[:, column]),
            "ssim",
            "SSIM",
            step=step,
            baseline=mean(r.likeness_copy[:, column]),
            better="high",
        )


@dataclass(frozen=True)
class _Scene:
    """What the reader makes of rollouts, each ``(n, s)``; NaN where a figure does not apply. The same for the imagined frames, for the
    last true frame copied, and for the true frames themselves (the reader's floor)."""

    iou: np.ndarray
    pusher: np.ndarray
    place: np.ndarray
    angle: np.ndarray
    shape: np.ndarray
    ghost: np.ndarray
    missed: np.ndarray


def _moved(r: Rollouts) -> np.ndarray:
    """bool ``(n, s)``: whether the true block has moved since step 0."""
    assert r.block is not None
    return _beyond(r.block, r.block[:, :1], MOVED)


def _beyond(block: np.ndarray, other: np.ndarray, limit: tuple[float, float]) -> np.ndarray:
    """Whether two poses ``(..., 3)`` are further apart than ``limit`` (units, degrees) in place or in angle."""
    return (np.linalg.norm(block[..., :2] - other[..., :2], axis=-1) > limit[0]) | (
        turn(block[..., 2], other[..., 2]) > limit[1]
    )


def _scene(r: Rollouts, seen: Reading, reader: Reader) -> _Scene:
    """``seen`` ``(n, s)`` against the truth."""
    assert r.true_reading is not None
    assert r.pusher is not None
    assert r.block is not None
    assert r.in_sight is not None
    true = r.true_reading
    pusher = np.linalg.norm(seen.pusher - r.pusher, axis=-1)
    pusher = np.where(seen.pusher_found, pusher, reader.extent)
    place = np.linalg.norm(seen.block[..., :2] - r.block[..., :2], axis=-1)
    place = np.where(seen.block_found, np.minimum(place, reader.extent), reader.extent)
    angle = np.where(seen.block_found, turn(seen.block[..., 2], r.block[..., 2]), 180.0)
    kept = (np.abs(seen.size - 1) <= AREA_SLACK) & (seen.pieces == 1)
    # Motion over every STRIDE steps: before and after, both wholly in sight.
    tens = [c for c, step in enumerate(r.steps) if step % STRIDE == 0]
    a, b = tens[:-1], tens[1:]
    sight = r.in_sight[:, a] & r.in_sight[:, b]
    still = sight & ~_beyond(r.block[:, a], r.block[:, b], STILL)
    went = sight & _beyond(r.block[:, a], r.block[:, b], MOVED)
    there = seen.block_found[:, a] & seen.block_found[:, b]
    goes = _beyond(seen.block[:, a], seen.block[:, b], GHOST) | ~there
    return _Scene(
        iou=mask_iou(seen.mask, true.mask),
        pusher=pusher,
        place=np.where(r.in_sight, place, np.nan),
        angle=np.where(r.in_sight, angle, np.nan),
        shape=np.where(r.in_sight, kept, np.nan),
        ghost=np.where(still, goes, np.nan),
        missed=np.where(went, ~goes, np.nan),
    )


def _copied(reading: Reading) -> Reading:
    """The reading of step 0 at every step: copy-last-frame."""
    n, s = reading.area.shape
    rows = np.repeat(np.arange(n), s)
    return Reading(**{k: getattr(reading, k)[rows, 0] for k in Reading.__dataclass_fields__}).reshape(n, s)


def _scene_rows(r: Rollouts, reader: Reader, boot: Bootstrap, config: MeasureConfig) -> Iterator[Row]:
    assert r.reading is not None
    assert r.true_reading is not None
    if r.pusher is None:
        iou, copy = (
            mask_iou(r.reading.mask, r.true_reading.mask),
            mask_iou(_copied(r.true_reading).mask, r.true_reading.mask),
        )
        for step in config.horizons:
            c = r.column(step)
            yield row_of(boot(mean, iou[:, c]), "iou", "block IoU", step=step, baseline=mean(copy[:, c]), better="high")
        return
    scene, copy_scene, floor = (
        _scene(r, seen, reader) for seen in (r.reading, _copied(r.true_reading), r.true_reading)
    )
    moved = np.where(_moved(r), 0.0, np.nan)  # added to a figure, it leaves only where the block moved
    everywhere = np.zeros_like(moved)
    yield row_of(boot(mean, scene.iou[:, 0]), "codec_iou", "redrawing a true frame: block IoU", better="high")
    yield row_of(
        boot(mean, scene.pusher[:, 0]),
        "codec_pusher",
        "redrawing a true frame: mean pusher error",
        unit="units",
        floor=mean(floor.pusher[:, 0]),
        better="low",
    )
    figures: tuple[tuple[str, str, str, Callable[[np.ndarray], float], str, np.ndarray, str], ...] = (
        ("iou", "block IoU", "iou", mean, "", everywhere, "high"),
        ("iou_moved", "block IoU where it moved", "iou", mean, "", moved, "high"),
        ("pusher_mean", "pusher error, mean", "pusher", mean, "units", everywhere, "low"),
        ("pusher", "pusher error, median", "pusher", median, "units", everywhere, "low"),
        ("pusher_moved", "pusher error where the block moved, median", "pusher", median, "units", moved, "low"),
        ("place_mean", "block place error, mean", "place", mean, "units", everywhere, "low"),
        ("place", "block place error, median", "place", median, "units", everywhere, "low"),
        ("place_moved", "block place error where it moved, median", "place", median, "units", moved, "low"),
        ("angle", "block angle error, median", "angle", median, "°", everywhere, "low"),
        ("angle_moved", "block angle error where it moved, median", "angle", median, "°", moved, "low"),
        ("shape", "block is one piece of the right size", "shape", mean, "", everywhere, "high"),
    )
    for key, label, name, statistic, unit, where, better in figures:
        for step in config.horizons:
            c = r.column(step)
            value, copied, exact = (getattr(s, name)[:, c] + where[:, c] for s in (scene, copy_scene, floor))
            found = boot.share(value) if name == "shape" else boot(statistic, value)
            yield row_of(
                found,
                key,
                label,
                unit=unit,
                step=step,
                baseline=statistic(copied),
                floor=None if name == "iou" else statistic(exact),
                better=better,
            )
    for name, label in (
        ("ghost", f"ghost motion: moves within {STRIDE} steps though the true block lies still"),
        ("missed", f"missed motion: lies still for {STRIDE} steps though the true block moves"),
    ):
        value, copied, exact = (getattr(s, name) for s in (scene, copy_scene, floor))
        if value.size:
            found = _rate(boot, value)
            yield row_of(found, name, label, baseline=mean(copied.ravel()), floor=mean(exact.ravel()), better="low")


def _rate(boot: Bootstrap, happened: np.ndarray) -> Estimate:
    """The share of 1s in ``(n, w)`` with NaNs, resampled by rollout; n counts the entries."""
    counts = np.stack([np.nansum(happened, 1), (~np.isnan(happened)).sum(1)], 1)
    found = boot(lambda c: float(c[:, 0].sum() / c[:, 1].sum()) if c[:, 1].sum() else math.nan, counts)
    return replace(found, n=int(counts[:, 1].sum()))


def _reward_rows(r: Rollouts, boot: Bootstrap, config: MeasureConfig) -> Iterator[Row]:
    if "reward" not in r.heads:
        return
    for step in config.horizons:
        true = r.true_reward[:, step - 1]
        yield row_of(
            boot(mean, np.abs(r.heads["reward"][:, step - 1] - true)),
            "reward",
            "reward error, mean",
            step=step,
            baseline=mean(np.abs(r.reward_before - true)),
            better="low",
        )


def _success_rows(model: WorldModel, store: EpisodeStore, config: MeasureConfig, tick: Ticker) -> Iterator[Row]:
    """Reward and success ``STRIDE`` steps ahead, on as many successes as near misses."""
    if "terminated" not in model.head_names:
        return
    windows = _success_windows(store, model.spec.context, config)
    if windows is None:
        return
    r = roll_out(model, windows, (), None, batch=config.batch, seed=config.seed, precision=config.precision, tick=tick)
    boot = Bootstrap(r.episodes, seed=config.seed)
    true = r.true_terminated[:, STRIDE - 1].astype(np.float64)
    told = (r.heads["terminated"][:, STRIDE - 1] > 0.5).astype(np.float64)
    counts = f"{int(true.sum())} successes, {int((1 - true).sum())} others"
    precision = np.where(told > 0, true, np.nan)
    recall = np.where(true > 0, told, np.nan)
    yield row_of(
        boot.share(precision), "success_precision", f"success: precision ({counts})", step=STRIDE, better="high"
    )
    yield row_of(boot.share(recall), "success_recall", f"success: recall ({counts})", step=STRIDE, better="high")
    if "reward" in r.heads:
        error = np.abs(r.heads["reward"][:, STRIDE - 1] - r.true_reward[:, STRIDE - 1])
        copied = np.abs(r.reward_before - r.true_reward[:, STRIDE - 1])
        yield row_of(
            boot(mean, error),
            "reward_near",
            "reward error near success, mean",
            step=STRIDE,
            baseline=mean(copied),
            better="low",
        )


def _success_windows(store: EpisodeStore, context: int, config: MeasureConfig) -> Windows | None:
    """Up to ``rollouts`` windows whose last step is a success (half) or a near miss (half); other steps where near misses are few."""
    rng = np.random.default_rng([config.seed, 1])
    kinds: dict[str, list[tuple[int, int]]] = {"success": [], "near": [], "other": []}
    for i in held_out_episodes(store, config.all_held_out):
        episode = store[int(i)]
        for k in range(context + STRIDE - 2, len(episode)):
            kind = "success" if episode.terminated[k] else "near" if episode.rewards[k] >= NEAR_MISS else "other"
            kinds[kind].append((int(i), k - (context + STRIDE - 2)))
    if not kinds["success"]:
        return None
    half = config.rollouts // 2

    def pick(kind: str, count: int) -> list[tuple[int, int]]:
        found = kinds[kind]
        return [found[j] for j in rng.permutation(len(found))[:count]]

    chosen = pick("success", half) + pick("near", half)
    chosen += pick("other", max(0, min(half, len(kinds["success"])) - len(kinds["near"])))
    episodes, starts = np.array(chosen).T
    return Windows(store, episodes, starts, context, STRIDE)


def _uncertainty_rows(r: Rollouts, boot: Bootstrap, config: MeasureConfig) -> Iterator[Row]:
    """Does doubt follow error? Error is the root-mean-square difference of the frames at that step."""
    for step in (s for s in (10, 30) if s in config.horizons):
        doubt = r.uncertainty[:, step - 1].astype(np.float64)
        error = np.sqrt(r.error[:, r.column(step)])
        worst = (error > np.quantile(error, 0.9)).astype(np.float64)
        found = boot(rank_correlation, doubt, error)
        yield row_of(found, "doubt_rank", "uncertainty: rank correlation with frame error", step=step, better="high")
        found = boot(lambda d, w: auroc(d, w > 0), doubt, worst)
        yield row_of(
            found, "doubt_auroc", "uncertainty: AUROC for the worst tenth of frame errors", step=step, better="high"
        )


# -- other actions, other samplers ---------------------------------------------------------------------------------------------------


def _control_rows(
    model: WorldModel, windows: Windows, reader: Reader, truth: Truth, config: MeasureConfig, tick: Ticker
) -> Iterator[Row]:
    """The spread of futures under different actions from one start, imagined over true.

    From each start ``PLANS`` futures of ``STRIDE`` steps: its own recorded actions and those of other windows. The spread is the mean
    distance between pairs of futures; the ratio is that of the sums over starts.
    """
    context, n = windows.context, len(windows)
    clip = windows.read()
    assert clip.states is not None
    rng = np.random.default_rng([config.seed, 2])
    plan = clip.actions[:, context - 1 : context - 1 + STRIDE]
    others = np.stack([(np.arange(n) + shift) % n for shift in _shifts(rng, n)], 1)  # n plans
    plans = plan[others]  # n plans k a
    ends = np.empty((n, plans.shape[1], clip.states.shape[-1]))
    for i in range(n):
        for j in range(plans.shape[1]):
            truth.reset(options={"state": clip.states[i, context - 1]})
            for action in plans[i, j]:
                truth.step(action)
            ends[i, j] = truth.state()
    pusher, block, in_sight = reader.of_state(ends)
    imagined = np.empty((n, plans.shape[1], *clip.frames.shape[2:]), np.uint8)
    for first in range(0, n, max(1, config.batch // PLANS)):
        rows = np.arange(n)[first : first + max(1, config.batch // PLANS)]
        wide = np.repeat(rows, plans.shape[1])
        past = clip.actions[wide, : context - 1]
        actions = np.concatenate([past, plans[rows].reshape(len(wide), STRIDE, -1)], 1)
        branch = Clip(clip.frames[wide, :context], actions, clip.rewards[wide], clip.terminated[wide], None)
        with inference(model.device, pick_dtype(config.precision, model.device)):
            for state in dream(model, branch, context, [config.seed * 1_000_003 + int(w) for w in wide]):
                final = state
            frames = model.decode(final).cpu().numpy()
        imagined[rows] = frames.reshape(len(rows), plans.shape[1], *frames.shape[1:])
        tick(len(wide) * STRIDE)
    seen = reader(imagined.reshape(-1, *imagined.shape[2:])).reshape(n, plans.shape[1])
    # What is lost tells nothing of where it is; it counts as not having moved.
    start_pusher, start_block, _ = reader.of_state(clip.states[:, None, context - 1].astype(np.float64))
    pusher_seen = np.where(seen.pusher_found[..., None], seen.pusher, start_pusher)
    block_seen = np.where(seen.block_found[..., None], seen.block, start_block)
    whole = in_sight.all(1)
    boot = Bootstrap(windows.episodes, seed=config.seed)
    for key, label, true_end, seen_end, apart in (
        ("control_pusher", "controllability: spread of the pusher, imagined over true", pusher, pusher_seen, _distance),
        ("control_block", "controllability: spread of the block, imagined over true", block, block_seen, _distance),
        (
            "control_angle",
            "controllability: spread of the block's angle, imagined over true",
            block,
            block_seen,
            _turned,
        ),
    ):
        spreads = np.stack([_spread(seen_end, apart), _spread(true_end, apart)], 1)
        spreads[~whole] = np.nan
        found = boot(_ratio_of_sums, spreads)
        yield row_of(found, key, label, step=STRIDE, baseline=0.0)


def _shifts(rng: np.random.Generator, n: int) -> list[int]:
    """0 (a window's own actions) and up to ``PLANS - 1`` other windows'."""
    return [0, *(rng.permutation(n - 1)[: PLANS - 1] + 1)]


def _ratio_of_sums(pairs: np.ndarray) -> float:
    total = pairs[:, 1].sum()
    return float(pairs[:, 0].sum() / total) if total > 0 else math.nan


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a[..., :2] - b[..., :2], axis=-1)


def _turned(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return turn(a[..., 2], b[..., 2])


def _spread(ends: np.ndarray, apart: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Mean over pairs of ``(n, plans, d)`` futures, ``(n,)``."""
    first, second = np.triu_indices(ends.shape[1], 1)
    return apart(ends[:, first], ends[:, second]).mean(1)


def _variants(model: WorldModel, config: MeasureConfig) -> dict[str, tuple[int | None, int]]:
    """Other ways to run the model: name -> (denoising steps or None for the model's own, chunk)."""
    variants: dict[str, tuple[int | None, int]] = {}
    if config.chunk > 1:
        variants[f"{config.chunk} frames at once"] = (None, config.chunk)
    own = getattr(model, "denoise_steps", None)
    if own is not None:
        variants |= {f"{k} denoising steps": (k, 1) for k in config.denoise if k != own}
    return variants


def _variant_rows(
    model: WorldModel,
    windows: Windows,
    main: Rollouts,
    reader: Reader,
    config: MeasureConfig,
    variants: Mapping[str, tuple[int | None, int]],
    tick: Ticker,
) -> Iterator[Row]:
    """The main figures of other ways to run the model, beside the usual way on the same rollouts."""
    steps = [s for s in (10, 30) if s in config.horizons]
    if not steps or not variants:
        return
    short = Windows(windows.store, windows.episodes, windows.starts, windows.context, max(steps))
    boot = Bootstrap(windows.episodes, seed=config.seed)
    found: dict[str, Rollouts] = {"one frame at a time": main}
    for name, (denoise, chunk) in variants.items():
        sampler = copy.copy(model)  # shares the weights; its plain attributes are its own
        if denoise is not None:
            sampler.denoise_steps = denoise  # type: ignore[assignment]
        found[name] = roll_out(
            sampler,
            short,
            steps,
            reader,
            chunk=chunk,
            batch=config.batch,
            seed=config.seed,
            precision=config.precision,
            tick=tick,
        )
    for name, r in found.items():
        assert r.reading is not None
        scene = _scene(r, r.reading, reader)
        moved = np.where(_moved(r), 0.0, np.nan)
        for step in steps:
            c, n = r.column(step), len(windows)
            tail = f"{name}: " if name in variants else f"{name}, same rollouts: "
            key = name.replace(" ", "_")
            iou = boot(mean, (scene.iou + moved)[:n, c])
            yield row_of(iou, f"{key}/iou_moved", tail + "block IoU where it moved", step=step, better="high")
            pusher = boot(median, (scene.pusher + moved)[:n, c])
            label = tail + "pusher error where the block moved, median"
            yield row_of(pusher, f"{key}/pusher_moved", label, unit="units", step=step, better="low")


def _restart_rows(
    windows: Windows, main: Rollouts, reader: Reader, truth: Truth, config: MeasureConfig
) -> Iterator[Row]:
    """What the true simulator reaches when it, too, knows no more than the state at the start: the most that can be asked of a dream.

    Contact is chaotic, and a state holds no velocities, so this is less than perfect.
    """
    steps = [s for s in (10, 30) if s in config.horizons]
    if not steps or main.true_reading is None:
        return
    clip, n = windows.read(), len(windows)
    assert clip.states is not None
    frames = np.empty((n, len(steps), *clip.frames.shape[2:]), np.uint8)
    for i in range(n):
        truth.reset(options={"state": clip.states[i, windows.context - 1]})
        for step in range(1, max(steps) + 1):
            truth.step(clip.actions[i, windows.context - 2 + step])
            if step in steps:
                frames[i, steps.index(step)] = truth.render()
    seen = reader(frames.reshape(-1, *frames.shape[2:])).reshape(n, len(steps))
    moved = _moved(main)
    boot = Bootstrap(windows.episodes, seed=config.seed)
    for j, step in enumerate(steps):
        c = main.column(step)
        iou = np.where(moved[:n, c], mask_iou(seen.mask[:, j], main.true_reading.mask[:n, c]), np.nan)
        label = "true simulator restarted from the start: block IoU where it moved"
        yield row_of(boot(mean, iou), "restart/iou_moved", label, step=step, better="high")


# -- pictures ------------------------------------------------------------------------------------------------------------------------


def _moving_first(windows: Windows, reader: Reader | None) -> Windows:
    """The same windows with four first in which the block moves a lot: those the picture shows. The rest keep their order."""
    if reader is None or windows.store[int(windows.episodes[0])].states is None:
        return windows
    first: list[int] = []
    for i, (episode, start) in enumerate(zip(windows.episodes, windows.starts, strict=True)):
        states = windows.store[int(episode)].states
        assert states is not None
        at = start + windows.context - 1
        _, block, in_sight = reader.of_state(np.asarray(states[[at, at + windows.steps]], np.float64))
        if in_sight.all() and _beyond(block[0], block[1], (30.0, 45.0)):
            first.append(i)
        if len(first) == 4:
            break
    rest = np.setdiff1d(np.arange(len(windows)), first)
    return windows.index(np.concatenate([np.array(first, np.int64), rest]))


def _curves(r: Rollouts, reader: Reader | None) -> dict[str, Any]:
    """For each drawn figure: steps, and lines name -> (middle, low, high) over rollouts."""
    curves: dict[str, Any] = {"steps": r.steps, "panels": {}}
    panels = curves["panels"]

    def middle(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Median and quartiles down each column that is not all NaN."""
        out = np.full((3, values.shape[1]), np.nan)
        for c in range(values.shape[1]):
            kept = values[:, c][~np.isnan(values[:, c])]
            if len(kept):
                out[:, c] = np.quantile(kept, [0.5, 0.25, 0.75])
        return out[0], out[1], out[2]

    copy_error = np.where(r.steps == 0, np.nan, r.error_copy)
    panels["PSNR (dB)"] = {
        "dream": middle(psnr(r.error)),
        "copy last": middle(psnr(copy_error)),
    }
    if reader is not None and r.reading is not None and r.true_reading is not None and r.pusher is not None:
        scene, copied, floor = (_scene(r, s, reader) for s in (r.reading, _copied(r.true_reading), r.true_reading))
        moved = np.where(_moved(r), 0.0, np.nan)
        panels["block IoU where it moved"] = {
            "dream": middle(scene.iou + moved),
            "copy last": middle(copied.iou + moved),
        }
        for name, title in (
            ("pusher", "pusher error (units)"),
            ("place", "block place error (units)"),
            ("angle", "block angle error (°)"),
        ):
            panels[title] = {
                "dream": middle(getattr(scene, name) + moved),
                "copy last": middle(getattr(copied, name) + moved),
                "reader's floor": middle(getattr(floor, name) + moved),
            }
        share = np.array([mean(scene.shape[:, c]) for c in range(len(r.steps))])
        panels["share whose block is one piece of its size"] = {"dream": (share, share, share)}
    doubt = np.concatenate([np.full((len(r), 1), np.nan), r.uncertainty], 1)[:, r.steps]
    panels["uncertainty"] = {"dream": middle(doubt.astype(np.float64))}
    return curves
