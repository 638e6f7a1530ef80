"""Compare runs of 'neuralsim rl' by label, over seeds: learning curves, and the time that imagination saves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from neuralsim.agents.evaluation.plots import Line, draw_learning
from neuralsim.agents.rl.config import ELSEWHERE, RLConfig
from neuralsim.agents.rl.learning_curve import FILE, LearningCurve, MeanWithInterval, load_curve
from neuralsim.evaluation.report import Metric, Report, Target, metric_of
from neuralsim.evaluation.statistics import Estimate, ratio, student
from neuralsim.runtime.machine import circumstances

IMAGINED = "imagined"
"""Label of the runs that there are targets for."""
TARGETS = {"share_at_steps": Target(least=0.9), "sooner_90": Target(least=5)}
"""Targets of these metrics."""
ASIDE = ("seed", "label", "device", "threads", "looks", "trials", *ELSEWHERE)
"""Settings in which runs of one label may differ."""
AXES = {"seconds": "wall-clock of learning (s)", "true_steps": "steps in the real environment", "steps": "steps in all"}


@dataclass(frozen=True)
class CompareConfig:
    """Compare runs of 'neuralsim rl': by label, over seeds."""

    runs: tuple[Path, ...] = ()
    """Folders of runs of one task: several labels (imagined, real, ...), several seeds each."""
    baseline: str = "real"
    """The label that the others are compared with."""
    out: Path = Path("runs/compare")
    """Folder for compare.json and compare.png."""
    json: Path | None = None
    """Also write the figures to this file."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("--runs: expected folders of runs of 'neuralsim rl', e.g. runs/rl/*; got none")


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    name: str
    curves: tuple[LearningCurve, ...]

    def final(self, what: str) -> np.ndarray:
        """``what`` of each run's last point, ``(n,)``."""
        return np.array([_number(getattr(c.points[-1], what)) for c in self.curves])

    def at(self, what: str, places: np.ndarray | float, axis: str = "steps") -> np.ndarray:
        """``what`` of each run at ``places`` ``(g,)`` along ``axis``, between its points in proportion: ``(n, g)``, or ``(n,)`` at
        one place."""
        return np.array([np.interp(places, _column(c, axis), _column(c, what)) for c in self.curves])

    def steps(self) -> np.ndarray:
        """All steps at which a run was evaluated, within the range of every run, ``(g,)``."""
        evaluated = np.unique(np.concatenate([_column(c, "steps") for c in self.curves]))
        first, last = (f([c.points[k].steps for c in self.curves]) for f, k in ((max, 0), (min, -1)))
        return evaluated[(evaluated >= first) & (evaluated <= last)]

    def end(self, axis: str) -> float:
        """The largest value on ``axis`` that every run reaches."""
        return float(min(_column(c, axis)[-1] for c in self.curves))

    def seconds_to(self, level: float) -> float:
        """Seconds of learning after which the mean true return over seeds first reaches ``level``; NaN where it never does."""
        steps = self.steps()
        return first_reaching(self.at("seconds", steps).mean(0), self.at("true", steps).mean(0), level)

    def line(self) -> Line:
        """The mean curve."""
        steps = self.steps()
        true = self.at("true", steps)
        axes = {axis: self.at(axis, steps).mean(0) for axis in AXES}
        return Line(self.name, axes, true.mean(0), true.min(0), true.max(0), self.at("imagined", steps).mean(0))


def first_reaching(times: np.ndarray, values: np.ndarray, level: float) -> float:
    """The time at which ``values`` ``(g,)`` at ``times`` ``(g,)`` first reach ``level``, interpolated linearly; NaN where they never do."""
    there = np.flatnonzero(values >= level)
    if not len(there):
        return math.nan
    k = int(there[0])
    if k == 0:
        return float(times[0])
    share = (level - values[k - 1]) / (values[k] - values[k - 1])
    return float(times[k - 1] + share * (times[k] - times[k - 1]))


@dataclass(frozen=True)
class Comparison:
    """Runs of one task by folder, in groups, of which one may be the baseline."""

    runs: Mapping[Path, LearningCurve]
    groups: tuple[Group, ...]
    baseline: Group | None = None

    @property
    def outcome(self) -> str:
        """Meaning of the end of an episode in these runs."""
        return next(iter(self.runs.values())).outcome

    def tables(self, report: Report) -> list[Table]:
        """Tables for the screen: the last evaluations of every label, its savings, and how the runs were made."""
        saved = list(self.comparisons())
        return [self.table(), *([report.table(saved)] if saved else []), runs_table(self.runs)]

    def table(self) -> Table:
        """One row per label: the last evaluation of each of its runs."""
        table = Table(title="at the end, mean over seeds (95 %)")
        names = (
            "",
            "seeds",
            "steps",
            "true steps",
            "seconds",
            "true return",
            f"true {self.outcome}",
            "imagined return",
            "gap",
            "uncertain",
        )
        for i, name in enumerate(names):
            table.add_column(name, justify="right" if i else "left", no_wrap=i > 0)
        for group in self.groups:
            rows = {row.key.rpartition("/")[2]: row for row in self._ends(group)}
            counts = [f"{rows[k].value:.0f}" for k in ("steps", "true_steps", "seconds")]
            cells = [_format(rows[k]) for k in ("true", "true_success", "imagined", "gap", "doubted")]
            table.add_row(group.name, str(len(group.curves)), *counts, *cells)
        return table

    def report(self, title: str, about: Mapping[str, object]) -> Report:
        """All metrics, for programs."""
        return Report(title, (*self.comparisons(), *(row for g in self.groups for row in self._ends(g))), about)

    def comparisons(self) -> Iterator[Metric]:
        """Compare every label with the baseline: at equal steps, at equal wall-clock, and in time to the same return."""
        base = self.baseline
        if base is None or base.end("steps") == 0:
            return
        level = 0.9 * float(base.final("true").mean())
        yield _time(base, "seconds_to_90", level, f"90 % of {base.name}'s end")
        for group in self.groups:
            if group is base:
                continue
            if group.end("steps") == 0:
                found = ratio(group.final("true"), base.final("true"))
                yield _row(
                    found,
                    f"{group.name}/share",
                    f"{group.name}: true return as a share of {base.name}'s end",
                    better="high",
                )
                continue
            for axis, unit in (("steps", "steps"), ("seconds", "s")):
                place = min(group.end(axis), base.end(axis))
                found = ratio(group.at("true", place, axis), base.at("true", place, axis))
                label = f"{group.name}: true return as a share of {base.name}'s, both after {place:,.0f} {unit}"
                key = f"share_at_{axis}"
                yield _row(found, f"{group.name}/{key}", label, better="high", target=_target(group, key))
            yield _time(group, "seconds_to_90", level, f"90 % of {base.name}'s end")
            yield self._sooner(group, base, "sooner_90", level)
            own = float(group.final("true").mean())
            yield _time(group, "seconds_to_own", own, f"{group.name}'s end")
            yield replace(_time(base, "", own, f"{group.name}'s end"), key=f"{group.name}/seconds_to_own_{base.name}")
            yield self._sooner(group, base, "sooner_own", own)

    def _sooner(self, group: Group, base: Group, key: str, level: float) -> Metric:
        """The baseline's seconds to a true return of ``level``, divided by the group's."""
        ours, theirs = group.seconds_to(level), base.seconds_to(level)
        label = f"{group.name}: times sooner than {base.name} at true return {level:.2f}"
        return Metric(
            f"{group.name}/{key}",
            label,
            theirs / ours if ours > 0 else math.nan,
            better="high",
            target=_target(group, key),
        )

    def _ends(self, group: Group) -> Iterator[Metric]:
        gap = group.final("imagined") - group.final("true")
        figures = {
            "true": ("true return", student(group.final("true"))),
            "true_success": (f"true {self.outcome}", student(group.final("true_success"))),
            "imagined": ("imagined return", student(group.final("imagined"))),
            "imagined_success": (f"imagined {self.outcome}", student(group.final("imagined_success"))),
            "gap": ("gap: imagined - true return", student(gap)),
            "doubted": ("imagined episodes beyond the uncertainty limit", student(group.final("doubted"))),
        }
        for key, (label, found) in figures.items():
            yield _row(found, f"{group.name}/{key}", f"{group.name}: {label}")
        for key, unit in (("steps", ""), ("true_steps", ""), ("seconds", "s")):
            yield Metric(
                f"{group.name}/{key}",
                f"{group.name}: {key.replace('_', ' ')}, mean",
                float(group.final(key).mean()),
                unit,
            )


def compare(config: CompareConfig) -> tuple[Comparison, Report, list[Path]]:
    """The comparison, its figures, and the files written.

    Folders without a run, or with one that was never evaluated, are left out and named. Raises ValueError where none is left,
    for a damaged run, and for runs of different tasks.
    """
    curves, left_out = {}, []
    for folder in config.runs:
        curve = load_curve(folder) if (folder / FILE).is_file() else None
        if curve is None or not curve.points:
            left_out.append(str(folder))
        else:
            curves[folder] = curve
    if not curves:
        raise ValueError(
            f"--runs: none of {', '.join(left_out)} is a run of 'neuralsim rl' that was evaluated ({FILE})"
        )
    for folder, curve in curves.items():
        if curve.points[-1].true is None:
            raise ValueError(
                f"{folder}: was evaluated in imagination alone, and runs are compared by their real returns"
            )
    tasks = {(c.world, c.task): folder for folder, c in curves.items()}
    if len(tasks) > 1:
        different = ", ".join(f"{world} {task}: {folder}" for (world, task), folder in tasks.items())
        raise ValueError(f"--runs: of different tasks ({different}); compare those of one")
    groups = tuple(group_runs(list(curves.values())))
    found = [g for g in groups if g.name == config.baseline] or [
        g for g in groups if g.curves[0].label == config.baseline
    ]
    if len(found) > 1:
        raise ValueError(f"--baseline {config.baseline!r}: there are {[g.name for g in found]}; name one of them")
    comparison = Comparison(curves, groups, found[0] if found else None)
    (world, task), *_ = tasks
    about = {
        "seconds": "of learning alone, the learned world's own training not counted",
        "intervals": "Student's, over seeds",
        **({"beware": f"no runs labelled {config.baseline!r} to compare with"} if not found else {}),
        **{k: v for k, v in circumstances().items() if k == "date"},
        "left_out": left_out,
        "runs": [_origin(folder, curve) for folder, curve in curves.items()],
    }
    report = comparison.report(f"learning {world}, {task}", about)
    config.out.mkdir(parents=True, exist_ok=True)
    picture = config.out / "compare.png"
    draw_learning(picture, report.title, AXES, [g.line() for g in groups])
    files = [report.save(config.out / "compare.json"), picture]
    if config.json is not None:
        files.append(report.save(config.json))
    return comparison, report, files


def group_runs(curves: Sequence[LearningCurve]) -> Iterator[Group]:
    """Runs that differ in their seed alone, together; a label with several such groups gets the settings that differ in its name. A
    ValueError names a seed that is there twice."""
    together: dict[tuple[str, str], list[LearningCurve]] = {}
    for curve in curves:
        together.setdefault((curve.label, repr(_settings(curve))), []).append(curve)
    for (label, _), members in together.items():
        rivals = [_settings(other[0]) for (name, _), other in together.items() if name == label]
        own = _settings(members[0])
        differing = [k for k in own if any(other.get(k) != own[k] for other in rivals)]
        name = " ".join((label, *(f"{k}={own[k]}" for k in differing)))
        seeds = [c.seed for c in members]
        if len(set(seeds)) < len(seeds):
            raise ValueError(
                f"--runs: {name!r} with the seeds {sorted(seeds)}; give runs that are not alike a --label each"
            )
        yield Group(name, tuple(sorted(members, key=lambda c: c.seed)))


def runs_table(curves: Mapping[Path, LearningCurve]) -> Table:
    """List every run with its circumstances: seconds compare only where these are alike."""
    origins = [_origin(folder, curve) for folder, curve in curves.items()]
    table = Table(title="the runs: seconds compare only where the circumstances are alike")
    names = list(dict.fromkeys(k for origin in origins for k in origin))
    for name in names:
        table.add_column(name.replace("_", " "), justify="left" if name == "run" else "right")
    for origin in origins:
        table.add_row(*("" if origin.get(k) is None else str(origin[k]) for k in names))
    return table


def _settings(curve: LearningCurve) -> dict[str, object]:
    # A run from before a setting existed was made as its default makes it now.
    whole = RLConfig().recorded | dict(curve.settings) | {"algo": curve.algorithm}
    return {k: v for k, v in whole.items() if k not in ASIDE}


def _origin(folder: Path, curve: LearningCurve) -> dict[str, object]:
    last = curve.points[-1]
    made = {k: v for k, v in curve.circumstances.items() if isinstance(v, str | int | float)}
    rate = round(last.steps / last.seconds) if last.seconds else None
    own = {
        "run": folder.name,
        "label": curve.label,
        "seed": curve.seed,
        "steps": last.steps,
        "seconds": round(last.seconds),
    }
    return own | {"steps_per_second": rate} | made


def _number(value: float | MeanWithInterval) -> float:
    return value.value if isinstance(value, MeanWithInterval) else float(value)


def _column(curve: LearningCurve, what: str) -> np.ndarray:
    return np.array([_number(getattr(p, what)) for p in curve.points])


def _time(group: Group, key: str, level: float, words: str) -> Metric:
    """Seconds of learning to a true return of ``level``."""
    label = f"{group.name}: time to true return {level:.2f} ({words})"
    return Metric(f"{group.name}/{key}", label, group.seconds_to(level), "s", better="low")


def _target(group: Group, key: str) -> Target | None:
    return TARGETS.get(key) if group.name == IMAGINED else None


def _row(found: Estimate, key: str, label: str, **rest: Any) -> Metric:
    """A Row, without an interval where one seed gives none."""
    row = metric_of(found, key, label, **rest)
    return replace(row, low=None, high=None) if math.isnan(found.low) else row


def _format(row: Metric) -> str:
    return f"{row.value:.2f}" if row.low is None else f"{row.value:.2f} ({row.low:.2f}..{row.high:.2f})"
