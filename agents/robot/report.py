"""Report on a run on a robot: outcomes of the episodes, the rate that was kept, and what was refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from neuralsim.agents.robot.control_loop import RobotEpisode
from neuralsim.agents.robot.loop_statistics import LoopStatistics
from neuralsim.evaluation.report import Metric, Report, metric_of
from neuralsim.evaluation.statistics import wilson
from neuralsim.runtime.machine import circumstances

COUNTS = {
    "starved": "ticks without a plan, at rest",
    "held": "ticks held after a refusal",
    "retreats": "actions undone",
    "denied": "actions that the robot did not take",
    "limited": "actions that the limits changed",
    "refusals": "chunks refused",
    "mismatches": "chunks that the world did not follow",
    "late": "chunks that came later than expected",
    "expired": "chunks that came too late to begin",
}


def report_of(
    title: str,
    episodes: Sequence[RobotEpisode],
    statistics: LoopStatistics,
    hz: float | None,
    settings: Mapping[str, Any],
) -> Report:
    """Build the report; ``hz`` is the rate to be kept, None in lock-step."""
    rows = [*_outcomes(episodes), *_rate(statistics, hz), *_inference(statistics), *_counts(statistics)]
    return Report(title, tuple(rows), {**settings, **circumstances()})


def _outcomes(episodes: Sequence[RobotEpisode]) -> Iterator[Metric]:
    known = [e for e in episodes if e.success is not None]
    if known:
        share = wilson(sum(bool(e.success) for e in known), len(known))
        yield metric_of(share, "success", "success in the true world", better="high")
        best = [e.best for e in known if e.best is not None]
        yield Metric("coverage", "best coverage of the goal, mean", float(np.mean(best)), n=len(best), better="high")
    steps = [e.steps for e in episodes]
    yield Metric("steps", "steps of an episode, mean", float(np.mean(steps)) if steps else float("nan"), n=len(steps))


def _rate(statistics: LoopStatistics, hz: float | None) -> Iterator[Metric]:
    if hz is None:
        yield Metric("rate", "steps a second", statistics.rate, "Hz", n=statistics.ticks)
        return
    yield Metric("rate", f"control rate held, of {hz:g} Hz", statistics.rate, "Hz", n=statistics.ticks, better="high")
    yield Metric("missed", "missed deadlines", float(statistics.missed), n=statistics.ticks, better="low")
    if statistics.lateness:
        late, n = float(np.quantile(statistics.lateness, 0.99)) * 1000, len(statistics.lateness)
        yield Metric("late_ms_p99", "ticks after their deadline, p99", late, "ms", n=n, better="low")
    if statistics.prefixes:
        prefix = float(np.median(statistics.prefixes))
        yield Metric("prefix", "settled actions a chunk begins with, median", prefix, n=len(statistics.prefixes))


def _inference(statistics: LoopStatistics) -> Iterator[Metric]:
    n = len(statistics.decisions)
    if not n:
        return
    yield Metric("ms_p50", "time per decision, p50", statistics.ms(0.5), "ms", n=n, better="low")
    yield Metric("ms_p99", "time per decision, p99", statistics.ms(0.99), "ms", n=n, better="low")
    if any(statistics.imagined):
        imagined = float(np.median(statistics.imagined)) * 1000
        yield Metric("imagine_ms_p50", "of it imagining what comes of it, p50", imagined, "ms", n=n, better="low")


def _counts(statistics: LoopStatistics) -> Iterator[Metric]:
    always = ("starved", "refusals")
    for key, label in COUNTS.items():
        value = getattr(statistics, key)
        if value or key in always:
            yield Metric(key, label, float(value))
