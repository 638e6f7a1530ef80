"""Curve: how a learner fared over its training, as the file ``curve.json`` of its run keeps it."""

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
"""What of a point is a Figure."""


@dataclass(frozen=True)
class MeanWithInterval:
    """A mean over ``n`` episodes with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Point:
    """One look at the policy. steps: environment steps it has learned from; true_steps: those of them made in the true world;
    seconds: of learning alone, evaluation not counted. imagined and true: mean return from the same starts; the
    ``_success`` the share of wishes that came true (or of episodes that ended, see Curve); true ones are None where no true
    world is known. doubted: share of imagined episodes in which the world came to doubt its dream. policy: its file, relative
    to the run."""

    steps: int
    true_steps: int
    seconds: float
    imagined: MeanWithInterval
    imagined_success: MeanWithInterval
    true: MeanWithInterval | None
    true_success: MeanWithInterval | None
    doubted: float
    policy: str = ""


@dataclass(frozen=True)
class LearningCurve:
    """A run: label (imagined, real, refresh, clone, random, or the user's own), world, task, algorithm, seed, the settings it was
    made with, under what circumstances, its points, oldest first, and what an end means there (see Wish)."""

    label: str
    world: str
    task: str
    algorithm: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    circumstances: Mapping[str, Any] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    outcome: str = "success"

    def save(self, folder: Path) -> Path:
        """Write ``folder/curve.json``, whole or not at all."""
        path = folder / FILE
        write_atomically(path, json.dumps(asdict(self), indent=1, default=str))
        return path


def summary(curve: LearningCurve) -> Report:
    """The last point, as a table."""
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
        Metric("doubted", "imagined episodes that the world doubts", last.doubted),
        Metric("steps", "steps learned from", last.steps),
        Metric("true_steps", "of them in the true world", last.true_steps),
        Metric("seconds", "time of learning", last.seconds, "s"),
    ]
    if last.seconds:
        rows.append(Metric("rate", "steps a second", last.steps / last.seconds))
    title = f"{curve.world}, {curve.task}: {curve.algorithm}, {curve.label}, seed {curve.seed}"
    return Report(title, tuple(rows), curve.circumstances)


def figures_of(tally: PolicyEvalResult) -> tuple[MeanWithInterval, MeanWithInterval]:
    """Mean return and success of ``tally``."""
    found = tally.mean_return(), tally.success_share()
    returns, success = (MeanWithInterval(e.value, e.low, e.high, e.n) for e in found)
    return returns, success


def load_curve(folder: Path) -> LearningCurve:
    """The curve of the run in ``folder``; FileNotFoundError where there is none, ValueError for a damaged one."""
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
