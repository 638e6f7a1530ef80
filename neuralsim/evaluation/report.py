"""Report: measured figures as one value; a table for people, JSON for programs."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from neuralsim.evaluation.statistics import Estimate
from neuralsim.runtime.files import write_atomically


@dataclass(frozen=True)
class Target:
    """Required range of a metric: ``least <= value <= most``; with ``beats`` it must be better than copy-last-frame, and their 95 %
    intervals apart; with ``surely`` the whole of its 95 % interval must lie within, and not on the edge."""

    least: float = -math.inf
    most: float = math.inf
    beats: bool = False
    surely: bool = False

    def passed(self, value: float) -> bool:
        """Report that ``value`` lies within the range; NaN does not."""
        return self.least < value < self.most if self.surely else self.least <= value <= self.most

    def __str__(self) -> str:
        if self.beats:
            return "beats copy-last"
        below, above, sure = ("<", ">", " (95 %)") if self.surely else ("≤", "≥", "")
        if math.isinf(self.least):
            return f"{below} {self.most:g}{sure}"
        return (f"{above} {self.least:g}" if math.isinf(self.most) else f"{self.least:g} to {self.most:g}") + sure


@dataclass(frozen=True)
class Metric:
    """One measured value. None where a field does not apply."""

    key: str
    """Its name for programs, together with ``step``."""
    label: str
    """Its name for people."""
    value: float
    """Best of the repeats, where there are any."""
    unit: str = ""
    """Unit of ``value``."""
    step: int | None = None
    """Step of a rollout."""
    low: float | None = None
    """Lower end of the 95 % confidence interval."""
    high: float | None = None
    """Upper end of it."""
    n: int | None = None
    """Sample size."""
    baseline: float | None = None
    """Value of copy-last-frame."""
    floor: float | None = None
    """Value of true frames: the state estimator's own error."""
    better: str = ""
    """``high``, ``low``, or empty where neither is better."""
    median: float | None = None
    """Median of the repeats."""
    target: Target | None = None
    """Required range; ``bar`` in JSON."""
    baseline_low: float | None = None
    """Lower end of the baseline's interval."""
    baseline_high: float | None = None
    """Upper end of it."""

    @property
    def passed(self) -> bool | None:
        """The target is reached; None without a target."""
        if self.target is None:
            return None
        values = [self.value, *((self.low, self.high) if self.target.surely else ())]
        within = all(x is not None and self.target.passed(x) for x in values)
        return within and (self.beats_copying or not self.target.beats)

    @property
    def beats_copying(self) -> bool:
        """This is better than the baseline, and their intervals are apart."""
        ours, theirs = (self.low, self.baseline_high) if self.better == "high" else (self.baseline_low, self.high)
        return ours is not None and theirs is not None and ours > theirs


def metric_of(estimate: Estimate, key: str, label: str, copied: Estimate | None = None, **rest: Any) -> Metric:
    """Make the Metric of an Estimate, beside that of copy-last-frame if ``copied`` is given."""
    if copied is not None:
        rest |= {"baseline": copied.value, "baseline_low": copied.low, "baseline_high": copied.high}
    return Metric(key, label, estimate.value, low=estimate.low, high=estimate.high, n=estimate.n, **rest)


@dataclass(frozen=True)
class Report:
    """Metrics with their title and circumstances (when, where, how)."""

    title: str
    rows: tuple[Metric, ...]
    circumstances: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: str | tuple[str, int | None]) -> Metric:
        """The row of ``key`` or ``(key, step)``."""
        wanted = (key, None) if isinstance(key, str) else key
        for row in self.rows:
            if (row.key, row.step) == wanted:
                return row
        raise KeyError(f"{wanted!r}; there are {sorted({(r.key, r.step or 0) for r in self.rows})}")

    @property
    def missed(self) -> tuple[Metric, ...]:
        """The rows that do not reach their bar."""
        return tuple(r for r in self.rows if r.passed is False)

    def table(self, rows: Sequence[Metric] | None = None) -> Table:
        """Make a rich table of ``rows`` (all by default)."""
        rows = self.rows if rows is None else rows
        table = Table(
            title=self.title, caption=", ".join(f"{k} {v}" for k, v in self.circumstances.items() if _plain(v))
        )
        table.add_column("")
        columns = {
            "step": any(r.step is not None for r in rows),
            "value": True,
            "median": any(r.median is not None for r in rows),
            "95 %": any(r.low is not None for r in rows),
            "copy-last": any(r.baseline is not None for r in rows),
            "floor": any(r.floor is not None for r in rows),
            "n": any(r.n is not None for r in rows),
            "target": any(r.target is not None for r in rows),
        }
        shown = [name for name, wanted in columns.items() if wanted]
        for name in shown:
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            colour = {None: "", True: "green", False: "red"}[row.passed]
            value = f"{_number(row.value)} {row.unit}".strip()
            cells = {
                "step": "" if row.step is None else str(row.step),
                "value": f"[{colour}]{value}[/]" if colour else value,
                "median": _number(row.median),
                "95 %": "" if row.low is None or row.high is None else f"{_number(row.low)}..{_number(row.high)}",
                "copy-last": _number(row.baseline),
                "floor": _number(row.floor),
                "n": "" if row.n is None else str(row.n),
                "target": "" if row.target is None else f"{row.target} {'✓' if row.passed else '✗'}",
            }
            table.add_row(row.label, *(cells[name] for name in shown))
        return table

    def grid(self, rows: Sequence[Metric]) -> Table:
        """Make the table of metrics at several steps: one column per step; below each value its interval, baseline and floor."""
        steps = sorted({r.step for r in rows if r.step is not None})
        table = Table(title="by imagined steps")
        table.add_column("")
        for step in steps:
            table.add_column(str(step), justify="right", no_wrap=True)
        for key in dict.fromkeys(r.key for r in rows):
            line = {r.step: r for r in rows if r.key == key}
            first = next(iter(line.values()))
            last = [
                ("  95 %", lambda r: "" if r.low is None else f"{_number(r.low)}..{_number(r.high)}"),
                ("  copy last", lambda r: _number(r.baseline)),
                (
                    "  its 95 %",
                    lambda r: (
                        "" if r.baseline_low is None else f"{_number(r.baseline_low)}..{_number(r.baseline_high)}"
                    ),
                ),
                ("  estimator's floor", lambda r: _number(r.floor)),
            ]
            table.add_row(
                first.label + (f" ({first.unit})" if first.unit else ""),
                *(_number(line[s].value) if s in line else "" for s in steps),
            )
            for label, cell in last:
                cells = [cell(line[s]) if s in line else "" for s in steps]
                if any(cells):
                    table.add_row(label, *cells, style="dim")
        return table

    def tables(self) -> list[Table]:
        """Make the tables there are: metrics with a target, then those by imagined steps, then the rest."""
        counts = Counter(r.key for r in self.rows)
        targets = [r for r in self.rows if r.target is not None]
        by_step = [r for r in self.rows if counts[r.key] > 2]
        rest = [r for r in self.rows if r.target is None and counts[r.key] <= 2]
        if not targets or not by_step:
            return [self.table()]
        return [self.table(targets), self.grid(by_step), *([replace(self, title="more").table(rest)] if rest else [])]

    def __rich__(self) -> Group:
        return Group(*self.tables())

    def to_json(self) -> str:
        """Return indented JSON; numbers that are not finite become null, since JSON has none."""
        body: dict[str, Any] = {
            "title": self.title,
            "circumstances": dict(self.circumstances),
            "rows": [
                {"bar" if k == "target" else k: v for k, v in asdict(r).items()} | {"passed": r.passed}
                for r in self.rows
            ],
        }
        return json.dumps(_finite(body), indent=1)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the JSON to ``path``, whole or not at all."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, self.to_json() + "\n")
        return target


def _plain(value: object) -> bool:
    return value is not None and not isinstance(value, (dict, list, tuple))


def _number(value: float | None) -> str:
    """Format three significant digits, fewer where they mean nothing."""
    if value is None:
        return ""
    if math.isnan(value):
        return "-"
    size = abs(value)
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1 or size == 0:
        return f"{value:.2f}"
    return f"{value:.3f}" if size >= 0.001 else f"{value:.1e}"


def _finite(value: Any) -> Any:
    """Replace every number in ``value`` that is not finite by None."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
