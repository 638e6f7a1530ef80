"""Measure: how true a dream is, on episodes the model has never seen.

Open-loop rollouts of 1 to 64 steps are compared with the truth in numbers a person understands: where the pusher and the block are, whether
the block kept its shape, whether it moved though nothing touched it, whether another action makes another future. Every figure
stands beside that of copying the last frame, beside the reader's own error on true frames, and inside a 95 % confidence interval.
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

from neuralsim.claims import reward_rows, success_rows, uncertainty_rows
from neuralsim.control import PLANS, control_rows
from neuralsim.curves import curves_of, moving_first
from neuralsim.dreaming import Rollouts, roll_out, sample_windows
from neuralsim.episode import EpisodeStore
from neuralsim.models.latent import LatentWorld
from neuralsim.picture import draw_curves, draw_strip
from neuralsim.reading import Reader, Truth
from neuralsim.report import Bar, Report, Row, circumstances, row_of
from neuralsim.scene import scene_rows
from neuralsim.score import Bootstrap, mean
from neuralsim.variants import restart_rows, variant_rows, variants_of
from neuralsim.world import WorldModel
from neuralsim.yardstick import STRIDE, MeasureConfig

__all__ = ["BARS", "MeasureConfig", "Measurement", "calibrate_uncertainty", "measure"]

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
"""What a world that redraws frames must reach; a compact one is there to be planned in, and held to that (see 'neuralsim plan')."""


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
    near: EpisodeStore | None = None,
    show: bool = False,
) -> Measurement:
    """Measure ``model`` on the held-out episodes of ``store``.

    ``near``: further episodes, of which more succeed, to ask about success. Without a ``reader`` only what pixels and rewards
    tell is measured; without a ``truth`` simulator there is no controllability. ``show`` draws a progress bar. Raises
    ValueError where the store is of another world or has no held-out episode that is long enough.
    """
    config = config or MeasureConfig()
    if store.spec.frame_shape != model.spec.frame_shape or store.spec.action_names != model.spec.action_names:
        raise ValueError(f"measure: the model is of {model.spec}, the episodes in {store.folder} of {store.spec}")
    rng = np.random.default_rng(config.seed)
    context, last = model.spec.context, max(config.horizons)
    model.eval()
    windows = sample_windows(store, config.rollouts, context, last, rng, config.all_held_out)
    windows = moving_first(windows, reader)
    small = config.small
    variants = variants_of(model, config)
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
            rows += scene_rows(rollouts, reader, boot, config)
        rows += reward_rows(rollouts, boot, config)
        rows += success_rows(model, near or store, config, tick)
        rows += uncertainty_rows(rollouts, boot, config)
        if reader is not None and rollouts.pusher is not None:
            progress.update(bar, description="other actions")
            if truth is not None and last >= STRIDE:
                rows += control_rows(model, windows.index(slice(small)), reader, truth, config, tick)
            progress.update(bar, description="other samplers")
            rows += variant_rows(model, windows.index(slice(small)), rollouts, reader, config, variants, tick)
            if truth is not None:
                rows += restart_rows(windows.index(slice(small)), rollouts, reader, truth, config)
    if not isinstance(model, LatentWorld):
        rows = [replace(row, bar=BARS.get((row.key, row.step))) for row in rows]
    return Measurement(
        title=f"{store.spec.name}: {config.rollouts} held-out rollouts, {len(np.unique(rollouts.episodes))} episodes",
        rows=tuple(rows),
        circumstances=circumstances() | {"seed": config.seed, "denoise_steps": getattr(model, "denoise_steps", None)},
        rollouts=rollouts,
        curves=curves_of(rollouts, reader),
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


def _frame_rows(r: Rollouts, boot: Bootstrap, config: MeasureConfig) -> Iterator[Row]:
    """How like the true frames the imagined ones are, pixel by pixel, at every horizon."""
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
