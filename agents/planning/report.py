"""Report on planning: the trials, regrets and solver comparisons of a results log, with the targets they must reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from neuralsim.agents.planning.baselines import BASELINES
from neuralsim.agents.planning.config import STANDARD_DISTANCE, PlanConfig
from neuralsim.agents.planning.diagnostics import FIELD, LOOKAHEADS, OracleRegret, SolverEfficiency
from neuralsim.agents.planning.goal_trial import DecisionCost, GoalTrial, share_solved
from neuralsim.agents.planning.setup import ORACLE, PLANNER, PlanningSetup
from neuralsim.evaluation.report import Metric, Report, Target, metric_of
from neuralsim.evaluation.statistics import Bootstrap, mean, median
from neuralsim.runtime.machine import circumstances
from neuralsim.runtime.results_log import ResultsLog

TARGETS = {
    "ms_p50": Target(most=100),
    ("rank", 10): Target(least=0.8),
    "thrift_cost": Target(most=1.05),
    "thrift_evaluations": Target(most=0.1),
}
"""Targets of planning, beside the share of goals that each goal task asks for."""


def report_of(setup: PlanningSetup, log: ResultsLog) -> Report:
    """Return the report on the first ``episodes`` pairs in ``log``."""
    config = setup.config
    trials = [t for t in trials_in(log) if t.pair < config.episodes]
    by_actor = {name: [t for t in trials if t.actor == name] for name in (PLANNER, ORACLE, *BASELINES)}
    ours = by_actor[PLANNER]
    rows = [
        *_success_rows(setup, ours, PLANNER),
        *effort_rows([d for t in ours for d in t.decisions], timed=setup.name != ORACLE),
    ]
    for name in (ORACLE, *BASELINES):
        rows += _success_rows(setup, by_actor[name], name)
    regrets = [OracleRegret.from_dict(line["gap"]) for line in log.lines if "gap" in line]
    rows += _regret_rows([r for r in regrets if r.pair < config.episodes])
    efficiencies = [SolverEfficiency.from_dict(line["thrift"]) for line in log.lines if "thrift" in line]
    rows += _efficiency_rows([e for e in efficiencies if e.pair < config.episodes])
    left_out = sum(t.left_out for t in ours)
    facts = {
        "model": setup.name,
        "search": describe_solver(config),
        "goals": config.goal,
        "ahead": config.goal_distance,
        "steps_allowed": config.budget,
        "seed": config.seed,
        "solved_at_start_left_out": f"{left_out} of {left_out + len(ours)}",
        "load_while_planning": median_load([t.load for t in ours]),
    }
    title = f"planning in {setup.goal_task.world}, goals {config.goal_distance} steps ahead"
    return Report(title, tuple(rows), {**facts, **circumstances(), "settings": setup.settings})


def trials_in(log: ResultsLog) -> list[GoalTrial]:
    """Return every trial in ``log``, in order."""
    return [GoalTrial.from_dict(line["attempt"]) for line in log.lines if "attempt" in line]


def describe_solver(config: PlanConfig) -> str:
    """Return the solver's name and size for people, e.g. "icem 96x12"."""
    solver = config.make_solver()
    return f"{config.search} {solver.candidates}x{solver.rounds}"


def median_load(loads: Sequence[float | None]) -> float | None:
    """Return the median of the known loads; None where none is known."""
    known = [load for load in loads if load is not None]
    return round(float(np.median(known)), 2) if known else None


def _success_rows(setup: PlanningSetup, trials: Sequence[GoalTrial], actor: str) -> Iterator[Metric]:
    """Success by each rule, and for planners the distances at the end."""
    if not trials:
        return
    standard = actor == PLANNER and setup.config.goal == "held-out" and setup.config.goal_distance == STANDARD_DISTANCE
    key = actor.replace(" ", "_")
    for i, rule in enumerate(setup.goal_task.rules):
        target = Target(least=setup.goal_task.least) if standard and i == 0 else None
        name = "success" if i == 0 else f"success_{rule.replace(' ', '_')}"
        label = f"{actor}: reached the goal ({rule})"
        yield metric_of(share_solved(trials, rule), f"{key}_{name}", label, better="high", target=target)
    if actor in (PLANNER, ORACLE):
        boot = Bootstrap(np.array([t.pair for t in trials]))
        for name, (unit, _) in setup.goal_task.distances.items():
            off = np.array([t.distances[name] for t in trials])
            safe = name.replace(" ", "_").replace("'", "")
            yield metric_of(
                boot(median, off), f"{key}_{safe}", f"{actor}: {name} off at the end, median", unit=unit, better="low"
            )


def effort_rows(decisions: Sequence[DecisionCost], timed: bool = False) -> Iterator[Metric]:
    """Time and evaluations per decision; ``timed``: the time has a target."""
    if not decisions:
        return
    ms = np.array([d.ms for d in decisions])
    n, target = len(decisions), TARGETS["ms_p50"] if timed else None
    yield Metric("ms_p50", "time per decision, p50", float(np.median(ms)), "ms", n=n, better="low", target=target)
    yield Metric("ms_p99", "time per decision, p99", float(np.quantile(ms, 0.99)), "ms", n=n, better="low")
    evaluated = float(np.mean([d.evaluations for d in decisions]))
    yield Metric("evaluations", "plans evaluated per decision, mean", evaluated, n=n)


def _regret_rows(regrets: Sequence[OracleRegret]) -> Iterator[Metric]:
    """Regret, and rank correlations with the number of pairs left out."""
    if not regrets:
        return
    boot = Bootstrap(np.array([g.pair for g in regrets]))
    values_of: dict[str, tuple[str, list[float]]] = {
        "regret": ("regret: imagined plan's end minus the oracle's, mean", [g.regret for g in regrets]),
        "regret_begun": ("distance to the goal at the start, mean", [g.begun for g in regrets]),
        "regret_oracle": ("distance to the goal where the oracle's plan ends, mean", [g.oracle for g in regrets]),
    }
    for key, (label, values) in values_of.items():
        yield metric_of(boot(mean, np.array(values)), key, label, unit="units", better="low" if key == "regret" else "")
    for lookahead in LOOKAHEADS:
        ranks = np.array([np.nan if (r := g.ranks[str(lookahead)]) is None else r for g in regrets])
        left_out = int(np.isnan(ranks).sum())
        label = f"rank correlation of imagined and true cost ({left_out} starts left out)"
        yield metric_of(
            boot(mean, ranks), "rank", label, step=lookahead, better="high", target=TARGETS.get(("rank", lookahead))
        )


def _efficiency_rows(efficiencies: Sequence[SolverEfficiency]) -> Iterator[Metric]:
    """Ratios of sums: ours to the field's, and both to doing nothing."""
    if not efficiencies:
        return
    boot = Bootstrap(np.array([e.pair for e in efficiencies]))
    names = ("cost", "field_cost", "evaluations", "field_evaluations", "rest_cost")
    sums = {name: np.array([getattr(e, name) for e in efficiencies], np.float64) for name in names}
    theirs = f"CEM {FIELD.candidates}x{FIELD.rounds}"
    for key, over, under, label in (
        ("thrift_cost", "cost", "field_cost", f"predicted cost, ours over {theirs}"),
        ("thrift_evaluations", "evaluations", "field_evaluations", f"plans evaluated, ours over {theirs}"),
        ("thrift_left", "cost", "rest_cost", "predicted cost, ours over doing nothing"),
        ("thrift_field_left", "field_cost", "rest_cost", f"predicted cost, {theirs} over doing nothing"),
    ):
        both = np.stack([sums[over], sums[under]], 1)
        found = boot(lambda c: float(c[:, 0].sum() / c[:, 1].sum()), both)
        yield metric_of(found, key, label, better="low", target=TARGETS.get(key))
