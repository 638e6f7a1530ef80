"""The curves of a measurement: what its pictures show, and which rollouts come first so that they show something."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np

from neuralsim.evaluation.rollouts import Rollouts, Windows
from neuralsim.evaluation.statistics import psnr
from neuralsim.evaluation.world_metrics import WorldMetrics

Line = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Middle, low and high at each step, ``(s,)`` each."""


def eventful_first(windows: Windows, judge: WorldMetrics | None) -> Windows:
    """The same windows, up to four first in which much happens: those the picture shows. The rest keep their order."""
    if judge is None:
        return windows
    first = np.array(list(islice(judge.showpieces(windows), 4)), np.int64)
    return windows.index(np.concatenate([first, np.setdiff1d(np.arange(len(windows)), first)]))


def middle(values: np.ndarray) -> Line:
    """Median and quartiles down each column of ``(n, s)`` that is not all NaN."""
    out = np.full((3, values.shape[1]), np.nan)
    for c in range(values.shape[1]):
        kept = values[:, c][~np.isnan(values[:, c])]
        if len(kept):
            out[:, c] = np.quantile(kept, [0.5, 0.25, 0.75])
    return out[0], out[1], out[2]


def curves_of(r: Rollouts, judge: WorldMetrics | None) -> dict[str, Any]:
    """For each drawn figure: steps, and lines name -> Line over rollouts."""
    copied = np.where(r.steps == 0, np.nan, r.error_copy)
    panels: dict[str, Any] = {"PSNR (dB)": {"dream": middle(psnr(r.error)), "copy last": middle(psnr(copied))}}
    if judge is not None:
        panels |= judge.panels(r)
    doubt = np.concatenate([np.full((len(r), 1), np.nan), r.uncertainty], 1)[:, r.steps]
    panels["uncertainty"] = {"dream": middle(doubt.astype(np.float64))}
    return {"steps": r.steps, "panels": panels}
