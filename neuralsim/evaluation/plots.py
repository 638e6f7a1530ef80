"""Pictures of an evaluation: drift curves, and true above imagined frames. Drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from neuralsim.evaluation.image_metrics import psnr
from neuralsim.evaluation.rollouts import Rollouts, Windows
from neuralsim.evaluation.world_metrics import WorldMetrics
from neuralsim.runtime.files import atomic_file

Line = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Middle, low and high at each step, ``(s,)`` each."""


def eventful_first(windows: Windows, metrics: WorldMetrics | None) -> Windows:
    """Reorder the windows: up to four in which much happens come first, for the picture. The rest keep their order."""
    if metrics is None:
        return windows
    first = np.array(list(islice(metrics.eventful(windows), 4)), np.int64)
    return windows.index(np.concatenate([first, np.setdiff1d(np.arange(len(windows)), first)]))


def quartiles(values: np.ndarray) -> Line:
    """Return median and quartiles of each column of ``(n, s)`` that is not all NaN."""
    out = np.full((3, values.shape[1]), np.nan)
    for c in range(values.shape[1]):
        kept = values[:, c][~np.isnan(values[:, c])]
        if len(kept):
            out[:, c] = np.quantile(kept, [0.5, 0.25, 0.75])
    return out[0], out[1], out[2]


def curves_of(r: Rollouts, metrics: WorldMetrics | None) -> dict[str, Any]:
    """Return the steps, and for each panel its lines over rollouts by name."""
    copied = np.where(r.steps == 0, np.nan, r.error_copy)
    panels: dict[str, Any] = {"PSNR (dB)": {"imagined": quartiles(psnr(r.error)), "copy last": quartiles(psnr(copied))}}
    if metrics is not None:
        panels |= metrics.panels(r)
    uncertainty = np.concatenate([np.full((len(r), 1), np.nan), r.uncertainty], 1)[:, r.steps]
    panels["uncertainty"] = {"imagined": quartiles(uncertainty.astype(np.float64))}
    return {"steps": r.steps, "panels": panels}


COLOURS = {"imagined": "#2b6cb0", "copy last": "#c05621", "estimator's floor": "#718096"}


def draw_curves(path: Path, title: str, curves: Mapping[str, Any]) -> None:
    """Draw one panel per metric: the median over rollouts as a line, the middle half as a band, over the imagined steps.

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
        axes.set_xlabel("imagined steps")
        axes.grid(alpha=0.25)
        if i == 0:
            axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def draw_strip(path: Path, true: np.ndarray, imagined: np.ndarray, steps: Sequence[int]) -> None:
    """Draw rollouts ``(n, s, h, w, 3)`` uint8 at ``steps``: for each, the true frames above the imagined ones."""
    draw_videos(path, {"true": true, "imagined": imagined}, steps)


def draw_videos(path: Path, videos: Mapping[str, np.ndarray], steps: Sequence[int]) -> None:
    """Draw several videos ``(n, s, h, w, 3)`` uint8 of the same ``n`` scenes at ``steps``, by name: for each scene one above the other."""
    from matplotlib.figure import Figure

    n, s = next(iter(videos.values())).shape[:2]
    figure = Figure(figsize=(1.3 * s + 0.5, 1.35 * len(videos) * n), layout="constrained", dpi=110)
    axes = figure.subplots(len(videos) * n, s, squeeze=False)
    for i in range(n):
        for j, step in enumerate(steps):
            for k, (name, frames) in enumerate(videos.items()):
                panel = axes[len(videos) * i + k, j]
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

    FigureCanvasAgg(figure)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
