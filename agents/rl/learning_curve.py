"""Learning curves: the evaluations of an agent over its training, as ``curve.json`` of its run keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from neuralsim.agents.evaluation.rollout import PolicyEvalResult
from neuralsim.evaluation.report import Metric, Report
from neuralsim.runtime.files import write_atomically

FILE = "curve.json"
FIGURES = ("imagined", "imagined_success", "true", "true_success")
"""Fields of a Point that are means with intervals."""


@dataclass(frozen=True)
class MeanWithInterval:
    """A mean over ``n`` episodes with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Point:
    """One evaluation of the policy, from the same starts in imagination and in the real environment."""

    steps: int
    """Environment steps learned from."""
    true_steps: int
    """Those of them made in the real environment."""
    seconds: float
    """Time of learning; evaluation is not counted."""
    imagined: MeanWithInterval
    """Mean imagined return."""
    imagined_success: MeanWithInterval
    """Share of imagined successes (or of episodes that ended, see LearningCurve)."""
    true: MeanWithInterval | None
    """Mean real return; None where no real environment is known."""
    true_success: MeanWithInterval | None
    """Share of real successes."""
    doubted: float
    """Share of imagined episodes in which the uncertainty exceeded the world's limit."""
    policy: str = ""
    """The policy's file, relative to the run."""


@dataclass(frozen=True)
class LearningCurve:
    """A run with its evaluations."""

    label: str
    """imagined, real, refresh, clone, random, or the user's own."""
    world: str
    task: str
    algorithm: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings by their recorded keys, see RLConfig.recorded."""
    circumstances: Mapping[str, Any] = field(default_factory=dict)
    """Machine, date and versions."""
    points: tuple[Point, ...] = ()
    """The evaluations, oldest first."""
    outcome: str = "success"
    """Meaning of an end, see RLTask."""

    def save(self, folder: Path) -> Path:
        """Write ``folder/curve.json``, whole or not at all."""
        path = folder / FILE
        write_atomically(path, json.dumps(asdict(self), indent=1, default=str))
        return path


def summary(curve: LearningCurve) -> Report:
    """The last point of ``curve`` as a table."""
    last = curve.points[-1]
    rows = []
    for key, label in (
        ("true", "true return"),
        ("true_success", f"true {curve.outcome}"),
        ("imagined", "imagined return"),
        ("imagined_success", f"imagined {curve.outcome}"),
    ):
        f: MeanWithInterval | None = getattr(last, key)
        if f is None:
            continue
        better = "" if key.endswith("success") and curve.outcome != "success" else "high"
        rows.append(Metric(key, label, f.value, low=f.low, high=f.high, n=f.n, better=better))
    if last.true is not None:
        rows.append(Metric("gap", "gap: imagined - true return", last.imagined.value - last.true.value))
    rows += [
        Metric("doubted", "imagined episodes beyond the uncertainty limit", last.doubted),
        Metric("steps", "steps learned from", last.steps),
        Metric("true_steps", "of them in the real environment", last.true_steps),
        Metric("seconds", "time of learning", last.seconds, "s"),
    ]
    if last.seconds:
        rows.append(Metric("rate", "steps a second", last.steps / last.seconds))
    title = f"{curve.world}, {curve.task}: {curve.algorithm}, {curve.label}, seed {curve.seed}"
    return Report(title, tuple(rows), curve.circumstances)


def mean_return_and_success(result: PolicyEvalResult) -> tuple[MeanWithInterval, MeanWithInterval]:
    """Mean return and share of successes of ``result``."""
    found = result.mean_return(), result.success_share()
    returns, success = (MeanWithInterval(e.value, e.low, e.high, e.n) for e in found)
    return returns, success


def load_curve(folder: Path) -> LearningCurve:
    """Read the curve of the run in ``folder``; raises FileNotFoundError where there is none, ValueError for a damaged one."""
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no run of 'neuralsim rl' here ({FILE} is missing)")
    try:
        raw = json.loads(path.read_text())
        points = tuple(_point(point) for point in raw.pop("points"))
        return LearningCurve(**raw, points=points)
    except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({error}); train again into another --out") from error


def _point(raw: dict[str, Any]) -> Point:
    return Point(**(raw | {k: None if raw[k] is None else MeanWithInterval(**raw[k]) for k in FIGURES}))
