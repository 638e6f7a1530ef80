"""Ablations of the main rollouts: chunk-wise, with other numbers of denoising steps, and under other actions."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from neuralsim.evaluation.config import STRIDE, EvalConfig
from neuralsim.evaluation.report import Metric, metric_of
from neuralsim.evaluation.rollouts import ImaginedRolloutConfig, Rollouts, Ticker, Windows, roll_out
from neuralsim.evaluation.statistics import Bootstrap
from neuralsim.evaluation.world_metrics import WorldMetrics, pixel_headlines
from neuralsim.world_model import WorldModel


def variants_of(model: WorldModel, config: EvalConfig) -> dict[str, tuple[int | None, int]]:
    """Return other samplers: name -> (denoising steps or None for the model's own, chunk)."""
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
    metrics: WorldMetrics | None,
    config: EvalConfig,
    variants: Mapping[str, tuple[int | None, int]],
    tick: Ticker,
) -> Iterator[Metric]:
    """Compare the headlines of other samplers with those of the usual one, on the same rollouts."""
    steps = [s for s in (10, 30) if s in config.horizons]
    if not steps or not variants:
        return
    short = windows.cut(max(steps))
    estimator = None if metrics is None else metrics.estimator
    boot = Bootstrap(windows.episodes, seed=config.seed)
    found: dict[str, Rollouts] = {"one frame at a time": main}
    for name, (denoise, chunk) in variants.items():
        sampler = copy.copy(model)  # shares the weights; its plain attributes are its own
        if denoise is not None:
            sampler.denoise_steps = denoise  # type: ignore[assignment]
        settings = ImaginedRolloutConfig(chunk=chunk, batch=config.batch, seed=config.seed, precision=config.precision)
        found[name] = roll_out(sampler, short, steps, estimator, settings, tick)
    for name, r in found.items():
        for figure in pixel_headlines(r) if metrics is None else metrics.headlines(r):
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


def other_action_rows(
    model: WorldModel, windows: Windows, main: Rollouts, metrics: WorldMetrics | None, config: EvalConfig, tick: Ticker
) -> Iterator[Metric]:
    """Measure how much rollouts of ``windows``, the first of those of ``main``, lose when each is given the actions of another: 0 where a
    model ignores them. For worlds whose simulator cannot be put at a state, or that have none."""
    steps = [s for s in (STRIDE, 30) if s in config.horizons]
    if not steps or not windows.store.spec.action_size or len(windows) < 2:
        return
    plans = windows.cut(max(steps)).read().actions[:, windows.context - 1 :]
    swapped = replace(windows.cut(max(steps)), plans=np.roll(plans, 1, 0))
    estimator = None if metrics is None else metrics.estimator
    settings = ImaginedRolloutConfig(batch=config.batch, seed=config.seed, precision=config.precision)
    other = roll_out(model, swapped, steps, estimator, settings, tick)
    boot, n = Bootstrap(windows.episodes, seed=config.seed), len(windows)

    figures = [[*pixel_headlines(r), *(metrics.headlines(r) if metrics else ())] for r in (main, other)]
    for own, foreign in zip(*figures, strict=True):
        for step in steps:
            lost = own.values[:n, main.column(step)] - foreign.values[:, other.column(step)]
            lost = lost if own.better == "high" else -lost
            label = f"controllability: {own.label}, lost under the actions of another window"
            found = boot(own.statistic, lost)
            yield metric_of(found, f"heed/{own.key}", label, unit=own.unit, step=step, baseline=0.0, better="high")
