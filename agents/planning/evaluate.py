"""The command ``plan``: evaluate a planner in a learned world by the field's protocol, beside baselines and the real simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from neuralsim.agents.planning.actors import PlanRecorder
from neuralsim.agents.planning.baselines import BASELINES
from neuralsim.agents.planning.config import PlanConfig
from neuralsim.agents.planning.diagnostics import OracleRegret, SolverEfficiency, oracle_regret, solver_efficiency
from neuralsim.agents.planning.goal_trial import DecisionCost, GoalTrial, run_trial, system_load
from neuralsim.agents.planning.goals import StartGoal
from neuralsim.agents.planning.report import report_of, trials_in
from neuralsim.agents.planning.reward_trial import plan_for_reward
from neuralsim.agents.planning.setup import CONTENT, ORACLE, PLANNER, PlanningSetup, open_setup, resolve_goal_task
from neuralsim.agents.planning.video import record_trials
from neuralsim.agents.policies.policy import NamedPolicy
from neuralsim.envs.real_env import RealEnv
from neuralsim.envs.tasks.goal_task import GoalTask
from neuralsim.evaluation.report import Report
from neuralsim.runtime.progress import progress
from neuralsim.runtime.results_log import ResultsLog

FILMABLE = 20
"""Pairs among which the trials to be filmed are chosen."""

Work = Callable[[], GoalTrial | OracleRegret | SolverEfficiency]
"""One piece of work; its result goes into the results log."""


def plan(config: PlanConfig, show: bool = False) -> tuple[Report, list[Path]]:
    """Run the protocol and return the report and the files written.

    A world whose simulator cannot be put at a state is planned for its reward (see ``reward_trial``). Every finished
    trial is kept at once: interrupt and call again to go on. Raises ValueError for a world, model, goal or solver that
    does not fit, before anything runs, and where ``config.folder`` holds results of other settings.
    """
    resolved = resolve_goal_task(config)
    if resolved is None:
        return plan_for_reward(config, show)
    config = resolved
    with progress(show) as bar:
        task = bar.add_task("held-out episodes", visible=False)
        setup = open_setup(config, lambda done, wanted: bar.update(task, completed=done, total=wanted, visible=True))
    with ResultsLog(config.folder / "attempts.jsonl", setup.settings, config.fresh, added=(CONTENT,)) as log:
        missing = list(_missing(setup, log))
        solved = [setup.solved(trial) for trial in trials_in(log) if trial.actor == PLANNER]
        with progress(show) as bar:
            task = bar.add_task("planning", total=len(missing))
            for kind, work in missing:
                done = work()
                log.add({kind: done.to_dict()})
                if isinstance(done, GoalTrial) and done.actor == PLANNER:
                    solved.append(setup.solved(done))
                bar.update(task, advance=1, description=f"success {sum(solved)} of {len(solved)}")
        report = report_of(setup, log)
    files = [report.save(config.folder / "plan.json")]
    if config.video:
        pairs = [setup.pair(i) for i in range(min(FILMABLE, config.episodes))]
        files += record_trials(config.folder / "plan.mp4", setup, _farthest(pairs, setup.goal_task)[: config.video])
    if config.json is not None:
        files.append(report.save(config.json))
    return report, files


def _missing(setup: PlanningSetup, log: ResultsLog) -> Iterator[tuple[str, Work]]:
    """Work that is not in the log, in order: all of one pair before the next, slow work last."""
    config = setup.config
    trials = {(t.actor, t.pair) for t in trials_in(log)}
    regrets, efficiencies = ({line[k]["pair"] for line in log.lines if k in line} for k in ("gap", "thrift"))
    env = setup.goal_task.make_env(setup.oracle.spec.height)
    names = [
        name for name in BASELINES if config.controls and (name != "replay" or config.goal in ("held-out", "random"))
    ]

    def trial_of(name: str, index: int) -> Work:
        return lambda: _trial(setup, env, name, setup.pair(index))

    for index in range(config.episodes):
        for name in (PLANNER, *names):
            if (name, index) not in trials:
                yield "attempt", trial_of(name, index)
    few = range(min(config.oracle_episodes, config.episodes))
    if config.compare_solvers:
        yield from (("thrift", lambda i=i: _efficiency(setup, i)) for i in few if i not in efficiencies)
    if config.report and setup.name != ORACLE:
        yield from (("gap", lambda i=i: _regret(setup, i)) for i in few if i not in regrets)
        yield from (("attempt", trial_of(ORACLE, i)) for i in few if (ORACLE, i) not in trials)


def _trial(setup: PlanningSetup, env: RealEnv, name: str, pair: StartGoal) -> GoalTrial:
    budget = setup.config.budget
    if name in BASELINES:
        baseline = NamedPolicy(name, BASELINES[name](env, pair, setup.config.seed), "nothing")
        return run_trial(env, setup.goal_task, pair, baseline, budget)
    recorder = PlanRecorder()
    trial = run_trial(env, setup.goal_task, pair, setup.policy(name, env, pair, recorder), budget)
    return replace(trial, decisions=DecisionCost.of(recorder.decisions), load=system_load())


def _regret(setup: PlanningSetup, index: int) -> OracleRegret:
    pair = setup.pair(index)
    return oracle_regret(pair, setup.planner(pair), setup.oracle_planner(pair), setup.oracle)


def _efficiency(setup: PlanningSetup, index: int) -> SolverEfficiency:
    pair = setup.pair(index)
    return solver_efficiency(pair, lambda solver: setup.planner(pair, solver), setup.config.make_solver(), setup.oracle)


def _farthest(pairs: list[StartGoal], goal_task: GoalTask) -> list[StartGoal]:
    """Pairs by the first distance from start to goal, largest first."""
    return sorted(pairs, key=lambda p: -next(iter(goal_task.measure(p.start, p.goal).values())))
