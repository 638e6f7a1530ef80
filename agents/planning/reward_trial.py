"""Outing: an episode of a true world that begins by seed, by whoever acts; and planning for the world's own reward, judged by outings.

Where a simulator cannot be put at a state there is no goal to reach from a given start. So the planner wishes for what the world's heads
learned of reward and end, looks ahead in imagination, and acts in truth (model-predictive control), beside chance, rest and the
explorer from the very same resets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np

from neuralsim.agents.evaluation.paired_evaluation import FIRST_SEED
from neuralsim.agents.planning.config import PlanConfig
from neuralsim.agents.planning.goal_trial import DecisionCost
from neuralsim.agents.planning.planner import Planner
from neuralsim.agents.planning.report import PLANNER, effort_rows
from neuralsim.agents.planning.setup import ORACLE, fingerprint
from neuralsim.agents.policies.policy import NamedPolicy
from neuralsim.agents.policies.random_policies import HoldActionPolicy, RandomActions
from neuralsim.agents.policies.registry import SCRIPTED_POLICIES, find_scripted_policies
from neuralsim.agents.policies.resolve import NoOpPolicy
from neuralsim.agents.teleop.recorder import VideoWriter
from neuralsim.envs.tasks.rl_task import RLTask, TaskEnv, learned_name, task_for
from neuralsim.evaluation.report import Metric, Report, circumstances, metric_of
from neuralsim.evaluation.statistics import Bootstrap, mean
from neuralsim.pretrained.world import WEIGHTS, World, open_world
from neuralsim.runtime.progress import progress
from neuralsim.runtime.results_log import ResultsLog

CONTROLS = ("random", "still", "explorer")
"""Who acts without planning: any actions, none, and whoever collects episodes of the world."""
LARGE = 256
"""Pixels that a film is high, about."""


@dataclass(frozen=True)
class RewardTrial:
    """How one episode went: who acted, which one it was, the sum of true rewards, the steps, and whether the world ended it."""

    actor: str
    episode: int
    total: float
    steps: int
    terminated: bool
    decisions: tuple[DecisionCost, ...] = ()
    load: float | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``asdict``."""
        return cls(**{**values, "decisions": tuple(DecisionCost(**d) for d in values["decisions"])})


@dataclass(frozen=True)
class RewardSetup:
    """What outings take: the wish and its true world, the world to plan in, and what it was called."""

    config: PlanConfig
    rl_task: RLTask
    world: World
    name: str

    @cached_property
    def seeds(self) -> list[int]:
        """Of the resets at which episodes begin: those of ``neuralsim evaluate`` with the same seed."""
        return self.rl_task.true_world().reset_seeds(self.config.episodes, FIRST_SEED + self.config.seed)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that the outcome of an outing depends on."""
        config = self.config
        kept = ("lookahead", "block", "budget_ms", "seed")
        return {
            "world": self.rl_task.world,
            **{name: getattr(config, name) for name in kept},
            "execute": config.n_action_steps,
            "horizon": self.rl_task.horizon,
            "search": {"name": type(config.searcher).__name__, **asdict(config.searcher)},
            "model": self.name,
            "weights": fingerprint(self.world.folder / WEIGHTS) if self.world.folder else None,
        }

    def planner(self, episode: int) -> Planner:
        """A planner for what the world's heads learned of reward and end."""
        c = self.config
        return Planner(
            self.world,
            self.rl_task.task,
            c.searcher,
            lookahead=c.lookahead,
            block=c.block,
            n_action_steps=c.n_action_steps,
            budget_ms=c.budget_ms,
            when="steps",
            seed=c.seed * 1_000_003 + episode,
            horizon=self.rl_task.horizon,
        )

    def driver(self, actor: str, env: TaskEnv, episode: int) -> NamedPolicy:
        """Who acts in ``env`` under the name ``actor``, by the true world's frames or states."""
        spec, seed = self.world.spec, self.config.seed * 1_000_003 + episode
        if actor == PLANNER:
            return NamedPolicy(actor, self.planner(episode), "pixels")
        if actor == "random":
            return NamedPolicy(actor, RandomActions(spec, seed), "pixels")
        if actor == "still":
            return NamedPolicy(actor, NoOpPolicy(spec), "pixels")
        if spec.name in SCRIPTED_POLICIES:
            return NamedPolicy(actor, find_scripted_policies(spec.name).explorer(env.unwrapped, seed), "state")
        return NamedPolicy(actor, HoldActionPolicy(spec, seed), "pixels")


def open_trip(config: PlanConfig) -> RewardSetup:
    """Everything that ``config`` names; raises ValueError or FileNotFoundError for what does not do, before anything runs."""
    for flag, given in (
        ("--goal", config.goal != "held-out"),
        ("--data", config.data is not None),
        ("--report", config.report),
        ("--quality", config.quality),
        (f"--model {ORACLE}", config.model == ORACLE),
    ):
        if given:
            raise ValueError(
                f"{flag}: world {config.world!r} has no simulator that can be put at a state, as this needs; it is planned for "
                "the world's own reward, from resets by seed. Leave it out"
            )
    rl_task = task_for(config.world, None, config.device)
    rl_task.true_world()  # says why there is none
    name = config.model or learned_name(config.world)
    world = open_world(name, config.device)
    if world.spec.name != rl_task.world:
        raise ValueError(f"--model: {name} is a world of {world.spec.name!r}, asked for {rl_task.world!r}")
    trip = RewardSetup(config, rl_task, world, name)
    trip.planner(0)
    return trip


def plan_outings(config: PlanConfig, show: bool = False) -> tuple[Report, list[Path]]:
    """Act, and tell; returns the figures and the files written. Every finished outing is kept at once: interrupt and call again to go
    on. Raises as ``open_trip`` does, and ValueError where ``config.folder`` holds outings of other settings."""
    trip, files = open_trip(config), []
    env = trip.rl_task.env((trip.world.spec.height, trip.world.spec.width))
    try:
        with ResultsLog(config.folder / "attempts.jsonl", trip.settings, config.fresh) as journal:
            done = {(o.actor, o.episode) for o in outings_in(journal)}
            actors = (PLANNER, *(CONTROLS if config.controls else ()))
            missing = [(a, i) for i in range(config.episodes) for a in actors if (a, i) not in done]
            with progress(show) as bar:
                task = bar.add_task("episodes", total=len(missing))
                for actor, i in missing:
                    bar.update(task, description=f"episode {i + 1}, {actor}")
                    film = _film(config, trip.world, i) if actor == PLANNER and i < config.video else None
                    try:
                        journal.add({"outing": asdict(go(trip, env, actor, i, film.add if film else None))})
                    finally:
                        if film:
                            film.close()
                            files.append(film.path)
                    bar.advance(task)
            report = report_of(trip, outings_in(journal))
    finally:
        env.close()
    files.insert(0, report.save(config.folder / "plan.json"))
    if config.json is not None:
        files.append(report.save(config.json))
    return report, files


def go(
    trip: RewardSetup, env: TaskEnv, actor: str, episode: int, watch: Callable[[np.ndarray], object] | None = None
) -> RewardTrial:
    """``actor``'s outing from the reset of ``episode``; ``watch`` is shown every frame, magnified."""
    spec, scale = trip.world.spec, max(1, LARGE // trip.world.spec.height)
    frame, _ = env.reset(seed=trip.seeds[episode])
    driver, memory = trip.driver(actor, env, episode), None
    total, steps, terminated, truncated = 0.0, 0, False, False
    while not (terminated or truncated):
        seen = frame[None] if driver.sees == "pixels" else env.state().astype(np.float32)
        chosen, memory = driver.policy.predict(seen, memory, np.array([steps == 0]))
        action = np.asarray(chosen, spec.action_dtype).reshape(-1)
        frame, reward, terminated, truncated, _ = env.step(spec.to_space(action))
        total, steps = total + reward, steps + 1
        if watch:
            watch(cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST))
    thought = memory[0].decisions if actor == PLANNER and memory else ()
    decisions = tuple(DecisionCost(d.total_ms, d.evaluations, d.cost) for d in thought)
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return RewardTrial(actor, episode, total, steps, terminated, decisions, load)


def outings_in(journal: ResultsLog) -> list[RewardTrial]:
    """Every outing in ``journal``, in order."""
    return [RewardTrial.from_dict(line["outing"]) for line in journal.lines if "outing" in line]


def report_of(trip: RewardSetup, outings: list[RewardTrial]) -> Report:
    """The figures of the first ``episodes`` outings of everybody, and how much more planning brings than each control."""
    config = trip.config
    mine = [o for o in outings if o.episode < config.episodes]
    by_actor = {a: sorted((o for o in mine if o.actor == a), key=lambda o: o.episode) for a in (PLANNER, *CONTROLS)}
    rows = [
        *_rows(PLANNER, by_actor[PLANNER], trip.rl_task.outcome),
        *effort_rows([d for o in by_actor[PLANNER] for d in o.decisions]),
    ]
    for name in CONTROLS:
        rows += _rows(name, by_actor[name], trip.rl_task.outcome)
    for name in CONTROLS:
        if by_actor[name]:
            more = np.array([a.total - b.total for a, b in zip(by_actor[PLANNER], by_actor[name], strict=True)])
            found = Bootstrap(np.arange(len(more)))(mean, more)
            label = f"planner's return minus {name}'s, same resets"
            rows.append(metric_of(found, f"more_than_{name}", label, better="high"))
    loads = [o.load for o in by_actor[PLANNER] if o.load is not None]
    about = {
        "model": trip.name,
        "search": f"{config.search} {config.searcher.candidates}x{config.searcher.rounds}",
        "wish": trip.rl_task.about,
        "lookahead": config.lookahead,
        "steps_allowed": trip.rl_task.horizon,
        "seed": config.seed,
        "load_while_planning": round(float(np.median(loads)), 2) if loads else None,
    }
    title = f"planning in {trip.rl_task.world} for its own reward, acting in truth"
    return Report(title, tuple(rows), {**about, **circumstances(), "settings": trip.settings})


def _rows(actor: str, outings: list[RewardTrial], outcome: str) -> Iterator[Metric]:
    if not outings:
        return
    boot = Bootstrap(np.arange(len(outings)))
    totals, lengths = (np.array([getattr(o, name) for o in outings], np.float64) for name in ("total", "steps"))
    ended = np.array([o.terminated for o in outings], np.float64)
    yield metric_of(boot(mean, totals), f"{actor}_return", f"{actor}: true return", better="high")
    yield metric_of(boot.share(ended), f"{actor}_{outcome}", f"{actor}: {outcome}")
    yield metric_of(boot(mean, lengths), f"{actor}_length", f"{actor}: length", unit="steps")


def _film(config: PlanConfig, world: World, episode: int) -> VideoWriter:
    return VideoWriter(config.folder / f"plan-{episode}.mp4", world.spec.rate_hz)
