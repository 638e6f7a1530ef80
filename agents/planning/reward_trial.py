"""RewardTrial: the result of one episode of planning for a real world's own reward, by a planner or a baseline.

Where a simulator cannot be put at a state there is no goal to reach from a given start. The planner then maximizes the reward that
the world model predicts, and acts in the real environment (model-predictive control), beside random actions, rest and the explorer
from the same resets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np

from neuralsim.agents.evaluation.paired_evaluation import FIRST_SEED
from neuralsim.agents.planning.config import PlanConfig, record_solver
from neuralsim.agents.planning.goal_trial import DecisionCost, system_load
from neuralsim.agents.planning.planner import Decision, Planner, PlannerConfig
from neuralsim.agents.planning.report import describe_solver, effort_rows, median_load
from neuralsim.agents.planning.setup import ORACLE, PLANNER, fingerprint, planner_seed
from neuralsim.agents.policies.policy import NamedPolicy
from neuralsim.agents.policies.resolve import resolve_policy
from neuralsim.agents.policies.rollout import SingleEnv, run
from neuralsim.data.video_writer import VideoWriter
from neuralsim.envs.tasks.rl_task import RLTask, TaskEnv, learned_name, task_for
from neuralsim.evaluation.report import Metric, Report, metric_of
from neuralsim.evaluation.statistics import Bootstrap, mean
from neuralsim.pretrained.world import World, open_world
from neuralsim.runtime.machine import circumstances
from neuralsim.runtime.progress import progress
from neuralsim.runtime.results_log import ResultsLog
from neuralsim.storage.manifest import WEIGHTS

BASELINES = ("random", "still", "explorer")
"""Policies without planning: random actions, none, and the explorer that collects episodes of the world."""
LARGE = 256
"""Height of a video in pixels, about."""


@dataclass(frozen=True)
class RewardTrial:
    """Result of one episode: name of the policy, number of the episode, sum of real rewards, steps, and end by the world."""

    actor: str
    episode: int
    total: float
    steps: int
    terminated: bool
    decisions: tuple[DecisionCost, ...] = ()
    load: float | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Invert ``asdict``."""
        return cls(**{**values, "decisions": tuple(DecisionCost(**d) for d in values["decisions"])})


@dataclass(frozen=True)
class RewardSetup:
    """Opened and checked contents of a PlanConfig: the task, and the world to plan in, called ``name``."""

    config: PlanConfig
    rl_task: RLTask
    world: World
    name: str

    @cached_property
    def seeds(self) -> list[int]:
        """Seeds of the episodes' resets: those of ``neuralsim evaluate`` with the same seed."""
        return self.rl_task.real_world().reset_seeds(self.config.episodes, FIRST_SEED + self.config.seed)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that the result of an episode depends on, as results logs keep it."""
        config = self.config
        kept = ("lookahead", "block", "budget_ms", "seed")
        return {
            "world": self.rl_task.world,
            **{name: getattr(config, name) for name in kept},
            "execute": config.n_action_steps,
            "horizon": self.rl_task.horizon,
            "search": record_solver(config.make_solver()),
            "model": self.name,
            "weights": fingerprint(self.world.folder / WEIGHTS) if self.world.folder else None,
        }

    def planner(self, episode: int, on_decision: Callable[[Decision], object] | None = None) -> Planner:
        """Return a planner for the reward and termination that the world model predicts."""
        c = self.config
        return Planner(
            self.world,
            self.rl_task.task,
            c.make_solver(),
            PlannerConfig(
                lookahead=c.lookahead,
                block=c.block,
                n_action_steps=c.n_action_steps,
                budget_ms=c.budget_ms,
                when="steps",
                seed=planner_seed(c, episode),
                horizon=self.rl_task.horizon,
            ),
            on_decision=on_decision,
        )

    def policy(self, actor: str, env: TaskEnv, episode: int, on_decision: Callable[[Decision], object]) -> NamedPolicy:
        """Return the policy called ``actor`` for episode ``episode`` of ``env``."""
        if actor == PLANNER:
            return NamedPolicy(actor, self.planner(episode, on_decision), "env")
        return resolve_policy(actor, self.world, env.unwrapped, planner_seed(self.config, episode))


def open_reward_setup(config: PlanConfig) -> RewardSetup:
    """Open everything that ``config`` names; raises ValueError or FileNotFoundError for settings that do not fit."""
    for flag, given in (
        ("--goal", config.goal != "held-out"),
        ("--data", config.data is not None),
        ("--report", config.report),
        ("--compare-solvers", config.compare_solvers),
        (f"--model {ORACLE}", config.model == ORACLE),
    ):
        if given:
            raise ValueError(
                f"{flag}: world {config.world!r} has no simulator that can be put at a state, as this needs; it is planned for "
                "the world's own reward, from resets by seed. Leave it out"
            )
    rl_task = task_for(config.world, None, config.device)
    rl_task.real_world()  # says why there is none
    name = config.model or learned_name(config.world)
    world = open_world(name, config.device)
    if world.spec.name != rl_task.world:
        raise ValueError(f"--model: {name} is a world of {world.spec.name!r}, asked for {rl_task.world!r}")
    setup = RewardSetup(config, rl_task, world, name)
    setup.planner(0)
    return setup


def plan_for_reward(config: PlanConfig, show: bool = False) -> tuple[Report, list[Path]]:
    """Run all episodes and return the report and the files written. Every finished episode is kept at once: interrupt and call
    again to go on. Raises as ``open_reward_setup`` does, and ValueError where ``config.folder`` holds results of other settings."""
    setup, files = open_reward_setup(config), []
    env = setup.rl_task.env((setup.world.spec.height, setup.world.spec.width))
    try:
        with ResultsLog(config.folder / "attempts.jsonl", setup.settings, config.fresh) as log:
            done = {(o.actor, o.episode) for o in trials_in(log)}
            actors = (PLANNER, *(BASELINES if config.controls else ()))
            missing = [(a, i) for i in range(config.episodes) for a in actors if (a, i) not in done]
            with progress(show) as bar:
                task = bar.add_task("episodes", total=len(missing))
                for actor, i in missing:
                    bar.update(task, description=f"episode {i + 1}, {actor}")
                    video = _video(config, setup.world, i) if actor == PLANNER and i < config.video else None
                    try:
                        log.add({"outing": asdict(run_episode(setup, env, actor, i, video.add if video else None))})
                    finally:
                        if video:
                            video.close()
                            files.append(video.path)
                    bar.advance(task)
            report = report_of(setup, trials_in(log))
    finally:
        env.close()
    files.insert(0, report.save(config.folder / "plan.json"))
    if config.json is not None:
        files.append(report.save(config.json))
    return report, files


def run_episode(
    setup: RewardSetup, env: TaskEnv, actor: str, episode: int, on_frame: Callable[[np.ndarray], object] | None = None
) -> RewardTrial:
    """Run the policy called ``actor`` from the reset of ``episode``; ``on_frame`` is called with every frame, magnified."""
    scale = max(1, LARGE // setup.world.spec.height)
    decisions: list[Decision] = []
    policy = setup.policy(actor, env, episode, decisions.append)
    single, total = SingleEnv(env, policy.observation, {"seed": setup.seeds[episode]}), 0.0
    for result, _ in run(policy.policy, single, np.ones(1, bool)):
        total += float(result.reward[0])
        if on_frame:
            on_frame(cv2.resize(single.observation, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST))
    terminated, _ = single.ended
    return RewardTrial(actor, episode, total, single.taken, terminated, DecisionCost.of(decisions), system_load())


def trials_in(log: ResultsLog) -> list[RewardTrial]:
    """Return every trial in ``log``, in order."""
    return [RewardTrial.from_dict(line["outing"]) for line in log.lines if "outing" in line]


def report_of(setup: RewardSetup, trials: list[RewardTrial]) -> Report:
    """Return the report on the first ``episodes`` episodes of each policy, and the planner's gain over each baseline."""
    config = setup.config
    mine = [o for o in trials if o.episode < config.episodes]
    by_actor = {a: sorted((o for o in mine if o.actor == a), key=lambda o: o.episode) for a in (PLANNER, *BASELINES)}
    rows = [
        *_rows(PLANNER, by_actor[PLANNER], setup.rl_task.outcome),
        *effort_rows([d for o in by_actor[PLANNER] for d in o.decisions]),
    ]
    for name in BASELINES:
        rows += _rows(name, by_actor[name], setup.rl_task.outcome)
    for name in BASELINES:
        if by_actor[name]:
            more = np.array([a.total - b.total for a, b in zip(by_actor[PLANNER], by_actor[name], strict=True)])
            found = Bootstrap(np.arange(len(more)))(mean, more)
            label = f"planner's return minus {name}'s, same resets"
            rows.append(metric_of(found, f"more_than_{name}", label, better="high"))
    facts = {
        "model": setup.name,
        "search": describe_solver(config),
        "wish": setup.rl_task.about,
        "lookahead": config.lookahead,
        "steps_allowed": setup.rl_task.horizon,
        "seed": config.seed,
        "load_while_planning": median_load([o.load for o in by_actor[PLANNER]]),
    }
    title = f"planning in {setup.rl_task.world} for its own reward, acting in the real environment"
    return Report(title, tuple(rows), {**facts, **circumstances(), "settings": setup.settings})


def _rows(actor: str, trials: list[RewardTrial], outcome: str) -> Iterator[Metric]:
    if not trials:
        return
    boot = Bootstrap(np.arange(len(trials)))
    totals, lengths = (np.array([getattr(o, name) for o in trials], np.float64) for name in ("total", "steps"))
    ended = np.array([o.terminated for o in trials], np.float64)
    yield metric_of(boot(mean, totals), f"{actor}_return", f"{actor}: real return", better="high")
    yield metric_of(boot.share(ended), f"{actor}_{outcome}", f"{actor}: {outcome}")
    yield metric_of(boot(mean, lengths), f"{actor}_length", f"{actor}: length", unit="steps")


def _video(config: PlanConfig, world: World, episode: int) -> VideoWriter:
    return VideoWriter(config.folder / f"plan-{episode}.mp4", world.spec.rate_hz)
