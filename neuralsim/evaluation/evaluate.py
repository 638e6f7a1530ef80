"""Measure: how true a dream is, on episodes the model has never seen.

Open-loop rollouts of 1 to 64 steps are compared with the truth: pixels, rewards, ends and states in every world, and where
there is a Judge, what is to be seen in the frames in numbers a person understands. Every figure stands beside that of copying
the last frame, beside the reader's own error on true frames, and inside a 95 % confidence interval.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from neuralsim.data.store import EpisodeStore
from neuralsim.evaluation.ablations import heed_rows, variant_rows, variants_of
from neuralsim.evaluation.config import STRIDE, EvalConfig
from neuralsim.evaluation.head_metrics import ending_rows, reward_rows, state_rows, uncertainty_rows
from neuralsim.evaluation.plots import curves_of, draw_curves, draw_strip, eventful_first
from neuralsim.evaluation.report import Metric, Report, metric_of
from neuralsim.evaluation.rollouts import Rollouts, held_out_episodes, roll_out, sample_windows
from neuralsim.evaluation.statistics import Bootstrap, mean
from neuralsim.evaluation.world_metrics import WorldMetrics
from neuralsim.models.latent_world import LatentWorld
from neuralsim.runtime.machine import circumstances
from neuralsim.world_model import WorldModel

__all__ = ["EvalConfig", "WorldEvaluation", "calibrate_uncertainty", "evaluate_world_model"]


@dataclass(frozen=True)
class WorldEvaluation(Report):
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


def evaluate_world_model(
    model: WorldModel,
    store: EpisodeStore,
    judge: WorldMetrics | None = None,
    config: EvalConfig | None = None,
    near: EpisodeStore | None = None,
    show: bool = False,
) -> WorldEvaluation:
    """Measure ``model`` on the held-out episodes of ``store``.

    ``near``: further episodes, of which more end, to ask about termination. Without a ``judge`` only what pixels, rewards and
    states tell is measured, and how much worse a dream is under other actions. Horizons that fewer than half of the episodes
    reach are left out. A world that redraws frames is held to the judge's bars; a compact one is there to be planned in, and
    held to that (see 'neuralsim plan'). ``show`` draws a progress bar. Raises ValueError where the store is of another world or
    has no held-out episode that is long enough.
    """
    config = config or EvalConfig()
    if store.spec.frame_shape != model.spec.frame_shape or store.spec.action_names != model.spec.action_names:
        raise ValueError(f"measure: the model is of {model.spec}, the episodes in {store.folder} of {store.spec}")
    rng = np.random.default_rng(config.seed)
    context, asked = model.spec.context, config.horizons
    config = replace(config, horizons=_reached(store, context, config))
    last = max(config.horizons)
    model.eval()
    windows = sample_windows(store, config.rollouts, context, last, rng, config.all_held_out)
    windows = eventful_first(windows, judge)
    reader = None if judge is None else judge.reader
    small = config.small
    variants = variants_of(model, config)
    work = config.rollouts * (last + STRIDE) + (len(variants) + 1) * small * 30
    work += 0 if judge is None else judge.trial_steps(small)
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
        if judge is not None:
            rows += judge.rows(rollouts, boot, config)
        rows += state_rows(rollouts, store.info.state_names, boot, config)
        rows += reward_rows(rollouts, boot, config)
        meaning = () if judge is None else (judge.ending, judge.near_miss)
        rows += ending_rows(model, near or store, config, tick, *meaning)
        rows += uncertainty_rows(rollouts, boot, config)
        few = windows.index(slice(small))
        progress.update(bar, description="other actions")
        if judge is None or judge.truth is None:
            rows += heed_rows(model, few, rollouts, judge, config, tick)
        if judge is not None:
            rows += judge.trials(model, few, rollouts, config, tick)
        progress.update(bar, description="other samplers")
        rows += variant_rows(model, few, rollouts, judge, config, variants, tick)
    if judge is not None and not isinstance(model, LatentWorld):
        rows = [replace(row, bar=judge.bars.get((row.key, row.step))) for row in rows]
    told = {"seed": config.seed, "denoise_steps": getattr(model, "denoise_steps", None)}
    if short := sorted(set(asked) - set(config.horizons)):
        told["left_out"] = f"steps {' '.join(map(str, short))}: too few episodes are as long"
    return WorldEvaluation(
        title=f"{store.spec.name}: {config.rollouts} held-out rollouts, {len(np.unique(rollouts.episodes))} episodes",
        rows=tuple(rows),
        circumstances=circumstances() | told,
        rollouts=rollouts,
        curves=curves_of(rollouts, judge),
    )


def _reached(store: EpisodeStore, context: int, config: EvalConfig) -> tuple[int, ...]:
    """The horizons that at least half of the held-out episodes reach; the nearest, if none."""
    reach = store.lengths[held_out_episodes(store, config.all_held_out)] + 1 - context
    return tuple(h for h in config.horizons if 2 * (reach >= h).sum() >= len(reach)) or (min(config.horizons),)


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


def _frame_rows(r: Rollouts, boot: Bootstrap, config: EvalConfig) -> Iterator[Metric]:
    """How like the true frames the imagined ones are, pixel by pixel, redrawn and at every horizon."""
    yield metric_of(boot(mean, r.psnr(0)), "codec_psnr", "redrawing a true frame: PSNR", unit="dB", better="high")
    for step in config.horizons:
        ours, theirs = (boot(mean, r.psnr(step, copy)) for copy in (False, True))
        yield metric_of(ours, "psnr", "PSNR", theirs, unit="dB", step=step, better="high")
    for step in config.horizons if np.isfinite(r.likeness).any() else ():
        ours, theirs = (boot(mean, x[:, r.column(step)]) for x in (r.likeness, r.likeness_copy))
        yield metric_of(ours, "ssim", "SSIM", theirs, step=step, better="high")
