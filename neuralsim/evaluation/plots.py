"""Pictures of a measurement: drift curves, and truth above dream. Drawn without a display."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from neuralsim.evaluation.image_metrics import psnr
from neuralsim.evaluation.rollouts import Rollouts, Windows
from neuralsim.evaluation.world_metrics import WorldMetrics

Line = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Middle, low and high at each step, ``(s,)`` each."""


def eventful_first(windows: Windows, judge: WorldMetrics | None) -> Windows:
    """The same windows, up to four first in which much happens: those the picture shows. The rest keep their order."""
    if judge is None:
        return windows
    first = np.array(list(islice(judge.showpieces(windows), 4)), np.int64)
    return windows.index(np.concatenate([first, np.setdiff1d(np.arange(len(windows)), first)]))


def quartiles(values: np.ndarray) -> Line:
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
    panels: dict[str, Any] = {"PSNR (dB)": {"dream": quartiles(psnr(r.error)), "copy last": quartiles(psnr(copied))}}
    if judge is not None:
        panels |= judge.panels(r)
    doubt = np.concatenate([np.full((len(r), 1), np.nan), r.uncertainty], 1)[:, r.steps]
    panels["uncertainty"] = {"dream": quartiles(doubt.astype(np.float64))}
    return {"steps": r.steps, "panels": panels}


COLOURS = {"dream": "#2b6cb0", "copy last": "#c05621", "reader's floor": "#718096"}


def draw_curves(path: Path, title: str, curves: Mapping[str, Any]) -> None:
    """One panel per figure: the median over rollouts as a line, the middle half as a band, over the steps dreamt.

    ``curves``: ``steps`` ``(s,)`` and ``panels``, title -> line name -> (middle, low, high), each ``(s,)``.
    """
    from matplotlib.figure import Figure

    panels: Mapping[str, Any] = curves["panels"]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows), layout="constrained", dpi=110)
    figure.suptitle(title)
    for i, (name, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        for line, (middle, low, high) in lines.items():
            axes.plot(curves["steps"], middle, color=COLOURS.get(line), label=line)
            axes.fill_between(curves["steps"], low, high, color=COLOURS.get(line), alpha=0.18, linewidth=0)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("steps dreamt")
        axes.grid(alpha=0.25)
        if i == 0:
            axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def draw_strip(path: Path, true: np.ndarray, imagined: np.ndarray, steps: Sequence[int]) -> None:
    """Rollouts ``(n, s, h, w, 3)`` uint8 at ``steps``: for each, the true frames above the imagined ones."""
    draw_videos(path, {"true": true, "dream": imagined}, steps)


def draw_videos(path: Path, films: Mapping[str, np.ndarray], steps: Sequence[int]) -> None:
    """Several films ``(n, s, h, w, 3)`` uint8 of the same ``n`` scenes at ``steps``, by name: for each scene one above the other."""
    from matplotlib.figure import Figure

    n, s = next(iter(films.values())).shape[:2]
    figure = Figure(figsize=(1.3 * s + 0.5, 1.35 * len(films) * n), layout="constrained", dpi=110)
    axes = figure.subplots(len(films) * n, s, squeeze=False)
    for i in range(n):
        for j, step in enumerate(steps):
            for k, (name, frames) in enumerate(films.items()):
                panel = axes[len(films) * i + k, j]
                panel.imshow(frames[i, j], interpolation="nearest")
                panel.set_xticks([])
                panel.set_yticks([])
                if j == 0:
                    panel.set_ylabel(name)
                if i == 0 and k == 0:
                    panel.set_title(f"step {step}" if step else "start", fontsize=9)
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Write ``figure`` as PNG, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    FigureCanvasAgg(figure)
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)
