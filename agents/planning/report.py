"""The report on planning: what a journal's attempts, gaps and thrifts come to, with the bars they must reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from neuralsim.agents.planning.config import STANDARD_AHEAD
from neuralsim.agents.planning.diagnostics import LOOKAHEADS, OracleRegret
from neuralsim.agents.planning.goal_trial import CONTROLS, DecisionCost, GoalTrial, share_solved
from neuralsim.agents.planning.setup import ORACLE, PlanningSetup
from neuralsim.agents.planning.thrift import FIELD, SolverEfficiency
from neuralsim.evaluation.report import Metric, Report, Target, circumstances, metric_of
from neuralsim.evaluation.statistics import Bootstrap, mean, median
from neuralsim.runtime.results_log import ResultsLog

PLANNER = "planner"
"""Who made an attempt that was planned in the world to plan in; the others are ORACLE and the controls."""
BARS = {
    "ms_p50": Target(most=100),
    ("rank", 10): Target(least=0.8),
    "thrift_cost": Target(most=1.05),
    "thrift_evaluations": Target(most=0.1),
}
"""What planning must reach, beside the share of goals that each course asks for."""


def report_of(stage: PlanningSetup, journal: ResultsLog) -> Report:
    """The figures of the first ``episodes`` pairs in ``journal``."""
    config = stage.config
    attempts = [a for a in attempts_in(journal) if a.pair < config.episodes]
    by_actor = {name: [a for a in attempts if a.actor == name] for name in (PLANNER, ORACLE, *CONTROLS)}
    ours = by_actor[PLANNER]
    rows = [
        *_success_rows(stage, ours, PLANNER),
        *effort_rows([d for a in ours for d in a.decisions], timed=stage.name != ORACLE),
    ]
    for name in (ORACLE, *CONTROLS):
        rows += _success_rows(stage, by_actor[name], name)
    gaps = [OracleRegret.from_dict(line["gap"]) for line in journal.lines if "gap" in line]
    rows += _gap_rows([g for g in gaps if g.pair < config.episodes])
    thrifts = [SolverEfficiency.from_dict(line["thrift"]) for line in journal.lines if "thrift" in line]
    rows += _thrift_rows([t for t in thrifts if t.pair < config.episodes])
    left_out = sum(a.left_out for a in ours)
    loads = [a.load for a in ours if a.load is not None]
    about = {
        "model": stage.name,
        "search": f"{config.search} {config.searcher.candidates}x{config.searcher.rounds}",
        "goals": config.goal,
        "ahead": config.ahead,
        "steps_allowed": config.budget,
        "seed": config.seed,
        "solved_at_start_left_out": f"{left_out} of {left_out + len(ours)}",
        "load_while_planning": round(float(np.median(loads)), 2) if loads else None,
    }
    title = f"planning in {stage.course.world}, goals {config.ahead} steps ahead"
    return Report(title, tuple(rows), {**about, **circumstances(), "settings": stage.settings})


def attempts_in(journal: ResultsLog) -> list[GoalTrial]:
    """Every attempt in ``journal``, in order."""
    return [GoalTrial.from_dict(line["attempt"]) for line in journal.lines if "attempt" in line]


def _success_rows(stage: PlanningSetup, attempts: Sequence[GoalTrial], actor: str) -> Iterator[Metric]:
    """Shares by each rule, and for planners how far off they ended."""
    if not attempts:
        return
    standard = actor == PLANNER and stage.config.goal == "held-out" and stage.config.ahead == STANDARD_AHEAD
    key = actor.replace(" ", "_")
    for i, rule in enumerate(stage.course.rules):
        bar = Target(least=stage.course.least) if standard and i == 0 else None
        name = "success" if i == 0 else f"success_{rule.replace(' ', '_')}"
        label = f"{actor}: reached the goal ({rule})"
        yield metric_of(share_solved(attempts, rule), f"{key}_{name}", label, better="high", bar=bar)
    if actor in (PLANNER, ORACLE):
        boot = Bootstrap(np.array([a.pair for a in attempts]))
        for name, (unit, _) in stage.course.distances.items():
            off = np.array([a.distances[name] for a in attempts])
            safe = name.replace(" ", "_").replace("'", "")
            yield metric_of(
                boot(median, off), f"{key}_{safe}", f"{actor}: {name} off at the end, median", unit=unit, better="low"
            )


def effort_rows(decisions: Sequence[DecisionCost], timed: bool = False) -> Iterator[Metric]:
    """Time and evaluations per decision; ``timed``: whether there is a time to keep to."""
    if not decisions:
        return
    ms = np.array([d.ms for d in decisions])
    n, bar = len(decisions), BARS["ms_p50"] if timed else None
    yield Metric("ms_p50", "time per decision, p50", float(np.median(ms)), "ms", n=n, better="low", bar=bar)
    yield Metric("ms_p99", "time per decision, p99", float(np.quantile(ms, 0.99)), "ms", n=n, better="low")
    tried = float(np.mean([d.evaluations for d in decisions]))
    yield Metric("evaluations", "plans evaluated per decision, mean", tried, n=n)


def _gap_rows(gaps: Sequence[OracleRegret]) -> Iterator[Metric]:
    """Regret, and rank correlations with the number of starts that do not count."""
    if not gaps:
        return
    boot = Bootstrap(np.array([g.pair for g in gaps]))
    figures: dict[str, tuple[str, list[float]]] = {
        "regret": ("regret: imagined plan's end minus the oracle's, mean", [g.regret for g in gaps]),
        "regret_begun": ("distance to the goal at the start, mean", [g.begun for g in gaps]),
        "regret_oracle": ("distance to the goal where the oracle's plan ends, mean", [g.oracle for g in gaps]),
    }
    for key, (label, values) in figures.items():
        yield metric_of(boot(mean, np.array(values)), key, label, unit="units", better="low" if key == "regret" else "")
    for lookahead in LOOKAHEADS:
        ranks = np.array([np.nan if (r := g.ranks[str(lookahead)]) is None else r for g in gaps])
        left_out = int(np.isnan(ranks).sum())
        label = f"rank correlation of imagined and true cost ({left_out} starts left out)"
        yield metric_of(
            boot(mean, ranks), "rank", label, step=lookahead, better="high", bar=BARS.get(("rank", lookahead))
        )


def _thrift_rows(thrifts: Sequence[SolverEfficiency]) -> Iterator[Metric]:
    """Ratios of sums: ours to the field's, and both to doing nothing."""
    if not thrifts:
        return
    boot = Bootstrap(np.array([t.pair for t in thrifts]))
    names = ("cost", "field_cost", "evaluations", "field_evaluations", "rest_cost")
    sums = {name: np.array([getattr(t, name) for t in thrifts], np.float64) for name in names}
    theirs = f"CEM {FIELD.candidates}x{FIELD.rounds}"
    for key, over, under, label in (
        ("thrift_cost", "cost", "field_cost", f"predicted cost, ours over {theirs}"),
        ("thrift_evaluations", "evaluations", "field_evaluations", f"plans evaluated, ours over {theirs}"),
        ("thrift_left", "cost", "rest_cost", "predicted cost, ours over doing nothing"),
        ("thrift_field_left", "field_cost", "rest_cost", f"predicted cost, {theirs} over doing nothing"),
    ):
        both = np.stack([sums[over], sums[under]], 1)
        found = boot(lambda c: float(c[:, 0].sum() / c[:, 1].sum()), both)
        yield metric_of(found, key, label, better="low", bar=BARS.get(key))
