"""Evaluate a world model on episodes that it has never seen.

Open-loop rollouts of 1 to 64 steps are compared with the truth: pixels, rewards, ends and states in every world, and with a world's own
WorldMetrics also the things seen in its frames. Every metric stands beside that of copying the last frame, beside the state
estimator's own error on true frames, and inside a 95 % confidence interval.
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
from neuralsim.evaluation.ablations import other_action_rows, variant_rows, variants_of
from neuralsim.evaluation.config import STRIDE, EvalConfig
from neuralsim.evaluation.head_metrics import ending_rows, reward_rows, state_rows, uncertainty_rows
from neuralsim.evaluation.plots import curves_of, draw_curves, draw_strip, eventful_first
from neuralsim.evaluation.report import Metric, Report, metric_of
from neuralsim.evaluation.rollouts import ImaginedRolloutConfig, Rollouts, held_out_episodes, roll_out, sample_windows
from neuralsim.evaluation.statistics import Bootstrap, mean
from neuralsim.evaluation.world_metrics import WorldMetrics
from neuralsim.models.latent_world import LatentWorld
from neuralsim.runtime.machine import circumstances
from neuralsim.world_model import WorldModel

__all__ = ["EvalConfig", "WorldEvaluation", "calibrate_uncertainty", "evaluate_world_model"]


CALIBRATION = ImaginedRolloutConfig(batch=64)
"""Settings of the rollouts that calibrate the uncertainty."""


@dataclass(frozen=True)
class WorldEvaluation(Report):
    """A Report of :func:`evaluate_world_model`, with the rollouts behind its pictures."""

    rollouts: Rollouts | None = None
    curves: Mapping[str, Any] | None = None

    def draw(self, path: str | os.PathLike[str]) -> tuple[Path, Path | None]:
        """Write the drift curves to ``path`` (PNG) and true above imagined frames to ``<name>-strip.png``; returns both paths."""
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
    metrics: WorldMetrics | None = None,
    config: EvalConfig | None = None,
    near: EpisodeStore | None = None,
    show: bool = False,
) -> WorldEvaluation:
    """Measure ``model`` on the held-out episodes of ``store``.

    Horizons that fewer than half of the episodes reach are left out. A model that draws frames is held to the targets of ``metrics``; a
    compact one is made for planning, and held to that (see 'neuralsim plan'). Raises ValueError where the store is of another world
    or has no held-out episode that is long enough.

    Args:
        metrics: the world's own metrics; without them only pixels, rewards and states are measured, and the loss under other actions.
        config: extent of the evaluation.
        near: further episodes, of which more end, to measure termination on.
        show: draw a progress bar.
    """
    config = config or EvalConfig()
    if store.spec.frame_shape != model.spec.frame_shape or store.spec.action_names != model.spec.action_names:
        raise ValueError(f"measure: the model is of {model.spec}, the episodes in {store.folder} of {store.spec}")
    rng = np.random.default_rng(config.seed)
    context, requested = model.spec.context, config.horizons
    config = replace(config, horizons=_reached(store, context, config))
    last = max(config.horizons)
    model.eval()
    windows = sample_windows(store, config.rollouts, context, last, rng, config.all_held_out)
    windows = eventful_first(windows, metrics)
    estimator = None if metrics is None else metrics.estimator
    small = config.side_rollouts
    variants = variants_of(model, config)
    work = config.rollouts * (last + STRIDE) + (len(variants) + 1) * small * 30
    work += 0 if metrics is None else metrics.simulator_steps(small)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn(),
        console=Console(stderr=True), disable=not show, transient=True,
    ) as progress:  # fmt: skip
        bar = progress.add_task("imagining", total=work)

        def tick(steps: int) -> None:
            progress.advance(bar, steps)

        rollouts = roll_out(
            model,
            windows,
            config.frame_steps,
            estimator,
            ImaginedRolloutConfig(config.horizons, 1, config.batch, config.seed, config.precision, keep=4),
            tick,
        )
        boot = Bootstrap(rollouts.episodes, seed=config.seed)
        rows = [*_frame_rows(rollouts, boot, config)]
        if metrics is not None:
            rows += metrics.rows(rollouts, boot, config)
        rows += state_rows(rollouts, store.info.state_names, boot, config)
        rows += reward_rows(rollouts, boot, config)
        meaning = () if metrics is None else (metrics.ending, metrics.near_miss)
        rows += ending_rows(model, near or store, config, tick, *meaning)
        rows += uncertainty_rows(rollouts, boot, config)
        few = windows.index(slice(small))
        progress.update(bar, description="other actions")
        if metrics is None or metrics.real_env is None:
            rows += other_action_rows(model, few, rollouts, metrics, config, tick)
        if metrics is not None:
            rows += metrics.simulator_rows(model, few, rollouts, config, tick)
        progress.update(bar, description="other samplers")
        rows += variant_rows(model, few, rollouts, metrics, config, variants, tick)
    if metrics is not None and not isinstance(model, LatentWorld):
        rows = [replace(row, target=metrics.targets.get((row.key, row.step))) for row in rows]
    settings = {"seed": config.seed, "denoise_steps": getattr(model, "denoise_steps", None)}
    if short := sorted(set(requested) - set(config.horizons)):
        settings["left_out"] = f"steps {' '.join(map(str, short))}: too few episodes are as long"
    return WorldEvaluation(
        title=f"{store.spec.name}: {config.rollouts} held-out rollouts, {len(np.unique(rollouts.episodes))} episodes",
        rows=tuple(rows),
        circumstances=circumstances() | settings,
        rollouts=rollouts,
        curves=curves_of(rollouts, metrics),
    )


def _reached(store: EpisodeStore, context: int, config: EvalConfig) -> tuple[int, ...]:
    """Return the horizons that at least half of the held-out episodes reach; the nearest, if none."""
    reach = store.lengths[held_out_episodes(store, config.all_held_out)] + 1 - context
    return tuple(h for h in config.horizons if 2 * (reach >= h).sum() >= len(reach)) or (min(config.horizons),)


def calibrate_uncertainty(
    model: WorldModel,
    store: EpisodeStore,
    quantile: float = 0.99,
    steps: int = 30,
    rollouts: int = 512,
    config: ImaginedRolloutConfig = CALIBRATION,
    all_held_out: bool = False,
) -> float:
    """Return the uncertainty that the worst of ``steps`` steps exceeds in 1 - ``quantile`` of held-out imagined rollouts.

    A trainer stores it as the model's threshold: past it a rollout counts as out of distribution.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"quantile: expected a share between 0 and 1, got {quantile!r}")
    rng = np.random.default_rng(config.seed)
    windows = sample_windows(store, rollouts, model.spec.context, steps, rng, all_held_out)
    found = roll_out(model, windows, (), None, config)
    return float(np.quantile(found.uncertainty.max(1), quantile))


def _frame_rows(r: Rollouts, boot: Bootstrap, config: EvalConfig) -> Iterator[Metric]:
    """Compare imagined frames with true ones, pixel by pixel, redrawn and at every horizon."""
    yield metric_of(boot(mean, r.psnr(0)), "codec_psnr", "redrawing a true frame: PSNR", unit="dB", better="high")
    for step in config.horizons:
        ours, theirs = (boot(mean, r.psnr(step, copy)) for copy in (False, True))
        yield metric_of(ours, "psnr", "PSNR", theirs, unit="dB", step=step, better="high")
    for step in config.horizons if np.isfinite(r.ssim).any() else ():
        ours, theirs = (boot(mean, x[:, r.column(step)]) for x in (r.ssim, r.ssim_copy))
        yield metric_of(ours, "ssim", "SSIM", theirs, step=step, better="high")
