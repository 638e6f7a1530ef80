"""Plots of policies: imagined against real results, and learning curves. Drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuralsim.evaluation.plots import save_figure
from neuralsim.evaluation.statistics import Estimate

COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b7791f", "#b83280", "#2c7a7b", "#718096")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""With the colours, enough to tell 56 policies apart."""


@dataclass(frozen=True)
class Score:
    """A policy's imagined and real score, each with its interval."""

    name: str
    imagined: Estimate
    true: Estimate


@dataclass(frozen=True, eq=False)
class Line:
    """A label's mean curve ``(g,)``: the real return with its minimum and maximum over seeds, and the imagined one, over ``x`` (name of
    an axis -> ``(g,)``). A label that was evaluated once has g = 1."""

    name: str
    x: Mapping[str, np.ndarray]
    true: np.ndarray
    least: np.ndarray
    most: np.ndarray
    imagined: np.ndarray


def draw_ranking(path: Path, title: str, panels: Mapping[str, Sequence[Score]], captions: Mapping[str, str]) -> None:
    """Draw one panel per kind of score: a point per policy, imagined against real, with 95 % intervals both ways. On the diagonal the two
    are equal; if imagination ranks correctly, the points rise from left to right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6 * len(panels) + 2.6, 5.4), layout="constrained", dpi=110)
    figure.suptitle(title)
    for i, (kind, scores) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        ends = [e for s in scores for found in (s.imagined, s.true) for e in (found.low, found.high)]
        axes.axline((ends[0], ends[0]), slope=1, color="#a0aec0", linewidth=1, linestyle="--", zorder=0)
        for k, score in enumerate(scores):
            axes.errorbar(
                score.imagined.value,
                score.true.value,
                xerr=_reach(score.imagined),
                yerr=_reach(score.true),
                color=COLOURS[k % len(COLOURS)],
                marker=MARKERS[k // len(COLOURS) % len(MARKERS)],
                elinewidth=0.8,
                label=f"{k + 1}  {score.name}",
            )
            axes.annotate(
                str(k + 1),
                (score.imagined.value, score.true.value),
                xytext=(5, 4),
                textcoords="offset points",
                fontsize=8,
            )
        axes.set_title(captions[kind], fontsize=9)
        axes.set_xlabel(f"imagined {kind}")
        axes.set_ylabel(f"true {kind}")
        axes.grid(alpha=0.25)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    save_figure(figure, path)


def draw_learning(path: Path, title: str, axes: Mapping[str, str], lines: Sequence[Line]) -> None:
    """Draw one panel per axis (its key in ``Line.x``, and its name): real return as a line, minimum to maximum over seeds as a band,
    imagined return dashed. A run that does not move along an axis is a level: one that was evaluated once, or that took no
    step in the real environment."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(axes) + 1.8, 4.4), layout="constrained", dpi=110)
    figure.suptitle(title)
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for i, (axis, words) in enumerate(axes.items()):
        panel = panels[i]
        for k, line in enumerate(lines):
            x, colour = line.x[axis], COLOURS[k % len(COLOURS)]
            if np.ptp(x) == 0:
                panel.axhline(line.true[-1], color=colour, linestyle=":", linewidth=1.6, label=line.name)
                panel.axhspan(line.least[-1], line.most[-1], color=colour, alpha=0.10, linewidth=0)
                continue
            panel.plot(x, line.true, color=colour, linewidth=1.8, label=line.name)
            panel.fill_between(x, line.least, line.most, color=colour, alpha=0.18, linewidth=0)
            panel.plot(x, line.imagined, color=colour, linewidth=1.1, linestyle="--")
        panel.set_xlabel(words)
        panel.set_ylabel("return" if i == 0 else "")
        panel.grid(alpha=0.25)
        panel.ticklabel_format(axis="x", style="sci", scilimits=(-3, 5), useMathText=True)
    _name_styles(figure, panel)
    save_figure(figure, path)


def _name_styles(figure: Any, panel: Any) -> None:
    """Draw the legend: labels by colour, then the meaning of the styles."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    grey = "#4a5568"
    styles = {
        "true return": Line2D([], [], color=grey, linewidth=1.8),
        "least to most, over seeds": Patch(color=grey, alpha=0.18, linewidth=0),
        "imagined return": Line2D([], [], color=grey, linewidth=1.1, linestyle="--"),
        "true return, no steps along this axis": Line2D([], [], color=grey, linewidth=1.6, linestyle=":"),
    }
    both = handles | styles
    figure.legend(both.values(), both.keys(), loc="outside right center", frameon=False, fontsize=8)


def _reach(found: Estimate) -> list[list[float]]:
    """Extent of the interval below and above its value."""
    return [[max(found.value - found.low, 0.0)], [max(found.high - found.value, 0.0)]]
