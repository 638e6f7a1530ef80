"""Variants of the main rollouts: chunk-wise, and with other numbers of denoising steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

from neuralsim.evaluation.config import EvalConfig
from neuralsim.evaluation.report import Metric, metric_of
from neuralsim.evaluation.rollouts import Rollouts, Ticker, Windows, roll_out
from neuralsim.evaluation.statistics import Bootstrap
from neuralsim.evaluation.world_metrics import WorldMetrics, pixel_headlines
from neuralsim.world_model import WorldModel


def variants_of(model: WorldModel, config: EvalConfig) -> dict[str, tuple[int | None, int]]:
    """Other ways to run the model: name -> (denoising steps or None for the model's own, chunk)."""
    variants: dict[str, tuple[int | None, int]] = {}
    if config.chunk > 1:
        variants[f"{config.chunk} frames at once"] = (None, config.chunk)
    own = getattr(model, "denoise_steps", None)
    if own is not None:
        variants |= {f"{k} denoising steps": (k, 1) for k in config.denoise if k != own}
    return variants


def variant_rows(
    model: WorldModel,
    windows: Windows,
    main: Rollouts,
    judge: WorldMetrics | None,
    config: EvalConfig,
    variants: Mapping[str, tuple[int | None, int]],
    tick: Ticker,
) -> Iterator[Metric]:
    """The main figures of other ways to run the model, beside the usual way on the same rollouts."""
    steps = [s for s in (10, 30) if s in config.horizons]
    if not steps or not variants:
        return
    short = windows.cut(max(steps))
    reader = None if judge is None else judge.reader
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
        for figure in pixel_headlines(r) if judge is None else judge.headlines(r):
            for step in steps:
                value = figure.values[: len(windows), r.column(step)]
                label = f"{name}: " if name in variants else f"{name}, same rollouts: "
                yield metric_of(
                    boot(figure.statistic, value),
                    f"{name.replace(' ', '_')}/{figure.key}",
                    label + figure.label,
                    unit=figure.unit,
                    step=step,
                    better=figure.better,
                )
