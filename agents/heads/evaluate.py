"""The command ``heads``: policy heads side by side; same data, same budget, the same starts in the real environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from neuralsim.agents.evaluation.eval_envs import RealEvalEnv
from neuralsim.agents.evaluation.rollout import PolicyEvalResult, evaluate
from neuralsim.agents.heads.chunk_policy import ActionChunkBroker
from neuralsim.agents.heads.training import KINDS, HeadBudget, read_origin, train_head
from neuralsim.agents.heads.wam_policies import NAMES, find_head
from neuralsim.agents.policies.rollout import SingleEnv, run
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.registry import get_real_world
from neuralsim.envs.tasks.rl_task import RLTask, task_of
from neuralsim.evaluation.report import Metric, Report, Target
from neuralsim.evaluation.statistics import Estimate, student, wilson
from neuralsim.models.roles import joint_of
from neuralsim.models.video_wam import VideoWAM
from neuralsim.pretrained.starts import Starts
from neuralsim.pretrained.world import World, open_world
from neuralsim.runtime.machine import circumstances
from neuralsim.runtime.progress import progress
from neuralsim.runtime.results_log import ResultsLog
from neuralsim.storage.fingerprint import fingerprint, store_fingerprint

SHARE_OF_ORACLE = 0.8
"""Share of the demonstrator's success that the best head must reach."""
LATENCY_MS = 50.0
"""Milliseconds that a decision of the joint head may take at one denoising pass."""
STANDARD_TASK = "cover"
N_TIMED, N_WARMUP = 60, 10
"""Decisions made to measure their time, and how many of them do not count."""


@dataclass(frozen=True)
class HeadsConfig:
    """Try the policy heads in the real simulator, from the same held-out starts: success, time per decision."""

    OLD_FLAGS: ClassVar[dict[str, str]] = {"--execute": "--n-action-steps"}
    world: str = "pusht"
    """Name or folder of a world that answers in all roles."""
    task: str = STANDARD_TASK
    """Task to be done; Push-T's own is to cover the goal."""
    heads: tuple[str, ...] = ("joint", "dream", "best", "cascade", "post", "bc")
    """Heads to try; post and bc are trained first where --out has none of this world, these demonstrations and this seed."""
    passes: tuple[int, ...] = (1, 4)
    """Denoising passes to try."""
    n_action_steps: tuple[int, ...] = (4,)
    """Actions of a chunk executed before the next observation; several are tried with the joint head."""
    episodes: int = 200
    """Episodes, from starts as the real environment's reset makes them."""
    steps: int = 300
    """Actions in an episode at most; 300 is gym-pusht's own limit."""
    oracle: bool = True
    """Also try the demonstrator, which looks ahead in the real simulator."""
    demos: Path | None = None
    """Demonstrations that post and bc learn from; data/<world>-oracle by default."""
    out: Path | None = None
    """Folder of trained heads and finished trials; runs/heads/<world> by default. The same command continues there."""
    fresh: bool = False
    """Delete the finished trials in that folder and start again; trained heads stay."""
    seed: int = 0
    """Seed of starts, training and noise."""
    device: str = "auto"
    """cpu, cuda or auto."""
    json: Path | None = None
    """Also write the results to this file."""

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raise ValueError for values out of range."""
        if unknown := sorted(set(self.heads) - set(NAMES)):
            raise ValueError(f"--heads: there is no {', '.join(unknown)}; choose from {', '.join(NAMES)}")
        for name, least in (("episodes", 1), ("steps", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name}: expected {least} or more, got {getattr(self, name)}")
        for name in ("passes", "n_action_steps"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag}: expected numbers of 1 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class HeadTrial:
    """One head at one setting."""

    head: str
    passes: int
    n_action_steps: int

    @property
    def label(self) -> str:
        """Text for people, and the trial's name in the results log."""
        return f"{self.head}, {self.passes} pass{'es' if self.passes > 1 else ''}, {self.n_action_steps} of a chunk"


def evaluate_heads(config: HeadsConfig, show: bool = False) -> tuple[Report, list[Path]]:
    """Run all trials that are not in the results log; returns the report and the files written."""
    world = open_world(config.world, config.device)
    model, joint = joint_of(world.model)
    out = config.out or Path("runs") / "heads" / world.spec.name
    rl_task = replace(task_of(world, config.task), horizon=config.steps)
    starts = rl_task.starts_in(world, config.episodes, config.seed)
    trials = _trials(config, joint.chunk)
    settings: dict[str, Any] = {
        "model": fingerprint(model.state_dict()),
        "seed": config.seed,
        "episodes": config.episodes,
        "steps": config.steps,
    }
    if config.task != STANDARD_TASK:
        settings["task"] = config.task
    with ResultsLog(out / "trials.jsonl", settings, config.fresh) as log:
        origins = _train_missing(config, world, model, out, show)
        with progress(show) as bar:
            task = bar.add_task("episodes", total=config.episodes * (len(trials) + config.oracle))
            done = {line["name"]: line for line in log.lines}
            for trial in trials:
                origin = origins.get(trial.head)
                if trial.label not in done or done[trial.label].get("origin") != origin:
                    bar.update(task, description=trial.label)
                    found = _try(world, rl_task, starts, trial, out, config, lambda n: bar.advance(task, n))
                    log.add({"name": trial.label, **found, **({} if origin is None else {"origin": origin})})
                else:
                    bar.advance(task, config.episodes)
            if config.oracle and "oracle" not in done:
                bar.update(task, description="oracle")
                log.add({"name": "oracle", **_demonstrator(rl_task, starts, config, lambda n: bar.advance(task, n))})
        done = {line["name"]: line for line in log.lines}
    report = Report(
        f"{world.spec.name}: policy heads from {config.episodes} held-out starts, at most {config.steps} steps",
        tuple(_rows(config, trials, done)),
        circumstances() | {"seed": config.seed, "chunk": joint.chunk},
    )
    if config.json is not None:
        report.save(config.json)
    return report, [out / "trials.jsonl", *([config.json] if config.json else [])]


def _train_missing(config: HeadsConfig, world: World, model: VideoWAM, out: Path, show: bool) -> dict[str, Any]:
    """Train heads that ``out`` has not for these weights, demonstrations and seed; returns the origin of each trained head.

    Where the demonstrations are gone, a head trained beside these weights still counts.
    """
    demos = config.demos or Path("data") / f"{world.spec.name}-oracle"
    origins, wanted = {}, {"world": fingerprint(model.state_dict()), "seed": config.seed}
    names = sorted(set(config.heads) & set(KINDS))
    if names and (demos / "store.json").is_file():
        wanted["data"] = store_fingerprint(EpisodeStore(demos))
    for name in names:
        there = read_origin(out / name)
        if any(there.get(key) != value for key, value in wanted.items()):
            train_head(name, model, EpisodeStore(demos), out, HeadBudget(), config.seed, show)
        origins[name] = read_origin(out / name)
    return origins


def _trials(config: HeadsConfig, chunk: int) -> list[HeadTrial]:
    first = config.n_action_steps[0]
    if max(config.n_action_steps) > chunk:
        raise ValueError(f"--n-action-steps: the world's chunks have {chunk} actions, got {max(config.n_action_steps)}")
    found = [HeadTrial(head, passes, first) for head in config.heads for passes in config.passes]
    return found + [HeadTrial("joint", max(config.passes), n) for n in config.n_action_steps[1:]]


def _try(
    world: World,
    rl_task: RLTask,
    starts: Starts,
    trial: HeadTrial,
    out: Path,
    config: HeadsConfig,
    tick: Callable[[int], None],
) -> dict[str, Any]:
    """Run one head from all starts, and time single decisions of one robot."""
    head = find_head(trial.head, world, trial.passes, trial.n_action_steps, out)
    eval_env = RealEvalEnv(world, rl_task, starts, min(64, config.episodes), "pixels")
    result = evaluate(ActionChunkBroker(head, seed=config.seed), eval_env, config.episodes, tick=tick)
    times: list[float] = []
    single = ActionChunkBroker(
        head, n_action_steps=1, seed=config.seed, tick=lambda _, seconds: times.append(1e3 * seconds)
    )
    memory = None
    for i in range(N_TIMED):
        _, memory = single.predict(starts.frames[i % len(starts), -1], memory)
    return _recorded(result) | {"ms": [round(t, 2) for t in times[N_WARMUP:]]}


def _demonstrator(rl_task: RLTask, starts: Starts, config: HeadsConfig, tick: Callable[[int], None]) -> dict[str, Any]:
    """Run the demonstrator from the same starts, under the same limit of steps."""
    real_world = get_real_world(rl_task.world)
    if real_world.policies.expert is None or starts.states is None:
        raise ValueError(f"world {rl_task.world!r} has no demonstrator; leave out the oracle with --no-oracle")
    success, lengths = np.zeros(config.episodes, bool), np.full(config.episodes, config.steps)
    env = real_world.make_env(starts.frames.shape[2])
    for i, start in enumerate(starts.states[: config.episodes, -1].astype(np.float64)):
        expert = real_world.policies.make_expert(config.seed * 1_000_003 + i)
        episode = SingleEnv(env, "env", {"options": {"state": start}}, config.steps, stop_at_end=False)
        for _ in run(expert, episode, np.ones(1, bool)):
            success[i], _ = episode.ended
            if success[i]:
                break
        lengths[i] = episode.taken
        tick(1)
    none = np.zeros(config.episodes)
    return _recorded(PolicyEvalResult(none, lengths, success, none.astype(bool))) | {"ms": []}


def _recorded(result: PolicyEvalResult) -> dict[str, Any]:
    return {"success": result.success.astype(int).tolist(), "lengths": result.lengths.tolist()}


def _rows(config: HeadsConfig, trials: Sequence[HeadTrial], done: dict[str, dict[str, Any]]) -> Iterator[Metric]:
    """Success, steps of successful episodes, milliseconds per decision; then the best head's share of the oracle's success."""
    for name in [t.label for t in trials] + (["oracle"] if config.oracle else []):
        line = done[name]
        hits = np.array(line["success"], bool)
        yield _row(f"success/{name}", f"{name}: success", wilson(int(hits.sum()), len(hits)))
        if hits.any():
            yield _row(
                f"steps/{name}", f"{name}: steps to success", student(np.array(line["lengths"], np.float64)[hits])
            )
        for quantile in (50, 99) if line["ms"] else ():
            timed = name.startswith("joint, 1 pass,") and quantile == 50
            yield Metric(
                f"ms/{name}/p{quantile}",
                f"{name}: decision, p{quantile}",
                float(np.percentile(line["ms"], quantile)),
                unit="ms",
                n=len(line["ms"]),
                better="low",
                target=Target(most=LATENCY_MS) if timed else None,
            )
    rivals = {t.label: float(np.mean(done[t.label]["success"])) for t in trials if t.head != "bc"}
    if config.oracle and rivals:
        best = max(rivals, key=lambda name: rivals[name])
        yield Metric(
            "share_of_oracle",
            f"best head ({best}) over the oracle",
            rivals[best] / max(float(np.mean(done["oracle"]["success"])), 1e-9),
            n=config.episodes,
            better="high",
            target=Target(least=SHARE_OF_ORACLE),
        )


def _row(key: str, label: str, found: Estimate) -> Metric:
    return Metric(key, label, found.value, low=found.low, high=found.high, n=found.n, better="high")
