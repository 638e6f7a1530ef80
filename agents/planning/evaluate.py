"""plan: the field's protocol of planning, as the command line asks for it: pairs of start and goal in the true world, a planner
in a learned one, controls beside it, and everything that is needed to believe the figures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from neuralsim.agents.planning.actors import OracleActor
from neuralsim.agents.planning.config import PlanConfig
from neuralsim.agents.planning.diagnostics import OracleRegret, oracle_regret
from neuralsim.agents.planning.goal_trial import CONTROLS, GoalTrial, attempt
from neuralsim.agents.planning.goals import StartGoal
from neuralsim.agents.planning.report import PLANNER, attempts_in, report_of
from neuralsim.agents.planning.reward_trial import plan_outings
from neuralsim.agents.planning.setup import ORACLE, PlanningSetup, open_setup, resolve_goal_task
from neuralsim.agents.planning.thrift import SolverEfficiency, solver_efficiency
from neuralsim.agents.planning.video import film
from neuralsim.envs.real_env import RealEnv
from neuralsim.envs.tasks.goal_task import GoalTask
from neuralsim.evaluation.report import Report
from neuralsim.runtime.progress import progress
from neuralsim.runtime.results_log import ResultsLog

FILMABLE = 20
"""Pairs among which those to be filmed are looked for."""

Work = Callable[[], GoalTrial | OracleRegret | SolverEfficiency]
"""Something still to be done; what it returns goes into the journal."""


def plan(config: PlanConfig, show: bool = False) -> tuple[Report, list[Path]]:
    """Run the protocol, or where the world's simulator begins by seed alone, plan for its reward (see ``agents.outing``); returns
    the figures and the files written.

    Every finished attempt is kept at once: interrupt and call again to go on. Raises ValueError for a world, model, goal
    or search that does not do, before anything runs, and where ``config.folder`` holds attempts of other settings.
    """
    settled = resolve_goal_task(config)
    if settled is None:
        return plan_outings(config, show)
    config = settled
    with progress(show) as bar:
        task = bar.add_task("held-out episodes", visible=False)
        stage = open_setup(config, lambda done, wanted: bar.update(task, completed=done, total=wanted, visible=True))
    with ResultsLog(config.folder / "attempts.jsonl", stage.settings, config.fresh) as journal:
        missing = list(_missing(stage, journal))
        solved = [stage.solved(a) for a in attempts_in(journal) if a.actor == PLANNER]
        with progress(show) as bar:
            task = bar.add_task("planning", total=len(missing))
            for kind, work in missing:
                done = work()
                journal.add({kind: done.to_dict()})
                if isinstance(done, GoalTrial) and done.actor == PLANNER:
                    solved.append(stage.solved(done))
                bar.update(task, advance=1, description=f"success {sum(solved)} of {len(solved)}")
        report = report_of(stage, journal)
    files = [report.save(config.folder / "plan.json")]
    if config.video:
        pairs = _far_apart([stage.pair(i) for i in range(min(FILMABLE, config.episodes))], stage.course)[: config.video]
        files += film(config.folder / "plan.mp4", stage.course, pairs, stage.actor, stage.oracle, config.budget)
    if config.json is not None:
        files.append(report.save(config.json))
    return report, files


def _missing(stage: PlanningSetup, journal: ResultsLog) -> Iterator[tuple[str, Work]]:
    """What is still to be done, in order: all of one pair before the next, what is slow last."""
    config = stage.config
    attempts = {(a.actor, a.pair) for a in attempts_in(journal)}
    gaps, thrifts = ({line[k]["pair"] for line in journal.lines if k in line} for k in ("gap", "thrift"))
    env = stage.course.make(stage.oracle.spec.height)
    names = [
        name for name in CONTROLS if config.controls and (name != "replay" or config.goal in ("held-out", "random"))
    ]

    def attempt_by(name: str, index: int) -> Work:
        return lambda: _attempt(stage, env, name, stage.pair(index))

    for index in range(config.episodes):
        for name in (PLANNER, *names):
            if (name, index) not in attempts:
                yield "attempt", attempt_by(name, index)
    few = range(min(config.oracle_episodes, config.episodes))
    if config.quality:
        yield from (("thrift", lambda i=i: _thrift(stage, i)) for i in few if i not in thrifts)
    if config.report and stage.name != ORACLE:
        yield from (("gap", lambda i=i: _gap(stage, i)) for i in few if i not in gaps)
        yield from (("attempt", attempt_by(ORACLE, i)) for i in few if (ORACLE, i) not in attempts)


def _attempt(stage: PlanningSetup, env: RealEnv, name: str, pair: StartGoal) -> GoalTrial:
    if name in CONTROLS:
        actor = CONTROLS[name](pair, stage.config.seed)
        return attempt(env, stage.course, pair, name, actor, stage.config.budget)
    planning = OracleActor(stage.oracle_planner(pair)) if name == ORACLE else stage.actor(pair)
    done = attempt(env, stage.course, pair, name, planning, stage.config.budget)
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return replace(done, decisions=planning.decisions, load=load)


def _gap(stage: PlanningSetup, index: int) -> OracleRegret:
    pair = stage.pair(index)
    return oracle_regret(pair, stage.planner(pair), stage.oracle_planner(pair), stage.oracle)


def _thrift(stage: PlanningSetup, index: int) -> SolverEfficiency:
    pair = stage.pair(index)
    return solver_efficiency(pair, lambda search: stage.planner(pair, search), stage.config.searcher, stage.oracle)


def _far_apart(pairs: list[StartGoal], course: GoalTask) -> list[StartGoal]:
    """Those with most to do first."""
    return sorted(pairs, key=lambda p: -next(iter(course.measure(p.start, p.goal).values())))
