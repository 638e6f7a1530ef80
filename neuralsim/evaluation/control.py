"""Control over a dream: does it heed the actions, or go its own way?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from neuralsim.evaluation.config import STRIDE, EvalConfig
from neuralsim.evaluation.report import Metric, metric_of
from neuralsim.evaluation.rollouts import Rollouts, Ticker, Windows, roll_out
from neuralsim.evaluation.statistics import Bootstrap
from neuralsim.evaluation.world_metrics import WorldMetrics, pixel_headlines
from neuralsim.world_model import WorldModel


def heed_rows(
    model: WorldModel, windows: Windows, main: Rollouts, judge: WorldMetrics | None, config: EvalConfig, tick: Ticker
) -> Iterator[Metric]:
    """By how much dreams of ``windows``, the first of those of ``main``, lose in truth when each is given the actions of
    another: 0 where a model is deaf to them. For worlds whose simulator cannot be put at a state, or that have none."""
    steps = [s for s in (STRIDE, 30) if s in config.horizons]
    if not steps or not windows.store.spec.action_size or len(windows) < 2:
        return
    plans = windows.cut(max(steps)).read().actions[:, windows.context - 1 :]
    swapped = replace(windows.cut(max(steps)), plans=np.roll(plans, 1, 0))
    reader = None if judge is None else judge.reader
    other = roll_out(
        model, swapped, steps, reader, batch=config.batch, seed=config.seed, precision=config.precision, tick=tick
    )
    boot, n = Bootstrap(windows.episodes, seed=config.seed), len(windows)

    figures = [[*pixel_headlines(r), *(judge.headlines(r) if judge else ())] for r in (main, other)]
    for own, foreign in zip(*figures, strict=True):
        for step in steps:
            lost = own.values[:n, main.column(step)] - foreign.values[:, other.column(step)]
            lost = lost if own.better == "high" else -lost
            label = f"controllability: {own.label}, lost under another window's actions"
            found = boot(own.statistic, lost)
            yield metric_of(found, f"heed/{own.key}", label, unit=own.unit, step=step, baseline=0.0, better="high")
