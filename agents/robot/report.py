"""The report on a drive: how the episodes ended, what the loop kept to, and what was refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from neuralsim.agents.planning.goal_trial import wilson
from neuralsim.agents.robot.control_loop import RobotEpisode
from neuralsim.agents.robot.loop_statistics import LoopStatistics
from neuralsim.evaluation.report import Metric, Report, circumstances, metric_of

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
    title: str, outings: Sequence[RobotEpisode], gauges: LoopStatistics, hz: float | None, about: Mapping[str, Any]
) -> Report:
    """The figures of ``outings``; ``hz``: the rate to be kept, None in lock-step."""
    rows = [*_ends(outings), *_pace(gauges, hz), *_thought(gauges), *_counts(gauges)]
    return Report(title, tuple(rows), {**about, **circumstances()})


def _ends(outings: Sequence[RobotEpisode]) -> Iterator[Metric]:
    known = [o for o in outings if o.success is not None]
    if known:
        share = wilson(sum(bool(o.success) for o in known), len(known))
        yield metric_of(share, "success", "success in the true world", better="high")
        best = [o.best for o in known if o.best is not None]
        yield Metric("coverage", "best coverage of the goal, mean", float(np.mean(best)), n=len(best), better="high")
    steps = [o.steps for o in outings]
    yield Metric("steps", "steps of an episode, mean", float(np.mean(steps)) if steps else float("nan"), n=len(steps))


def _pace(gauges: LoopStatistics, hz: float | None) -> Iterator[Metric]:
    if hz is None:
        yield Metric("rate", "steps a second", gauges.rate, "Hz", n=gauges.ticks)
        return
    yield Metric("rate", f"control rate held, of {hz:g} Hz", gauges.rate, "Hz", n=gauges.ticks, better="high")
    yield Metric("missed", "missed deadlines", float(gauges.missed), n=gauges.ticks, better="low")
    if gauges.lateness:
        late = float(np.quantile(gauges.lateness, 0.99)) * 1000
        yield Metric("late_ms_p99", "ticks after their deadline, p99", late, "ms", n=len(gauges.lateness), better="low")
    if gauges.prefixes:
        prefix = float(np.median(gauges.prefixes))
        yield Metric("prefix", "settled actions a chunk begins with, median", prefix, n=len(gauges.prefixes))


def _thought(gauges: LoopStatistics) -> Iterator[Metric]:
    n = len(gauges.decisions)
    if not n:
        return
    yield Metric("ms_p50", "time per decision, p50", gauges.ms(0.5), "ms", n=n, better="low")
    yield Metric("ms_p99", "time per decision, p99", gauges.ms(0.99), "ms", n=n, better="low")
    if any(gauges.imagined):
        imagined = float(np.median(gauges.imagined)) * 1000
        yield Metric("imagine_ms_p50", "of it imagining what comes of it, p50", imagined, "ms", n=n, better="low")


def _counts(gauges: LoopStatistics) -> Iterator[Metric]:
    always = ("starved", "refusals")
    for key, label in COUNTS.items():
        value = getattr(gauges, key)
        if value or key in always:
            yield Metric(key, label, float(value))
