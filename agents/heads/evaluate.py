"""head_trial: the policy heads side by side, as the command ``heads`` asks for it. Same data, same budget, the same starts in truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from neuralsim.agents.evaluation.eval_envs import TrueArena
from neuralsim.agents.evaluation.rollout import Tally, evaluate
from neuralsim.agents.heads.chunk_policy import ChunkRunner
from neuralsim.agents.heads.training import KINDS, HeadBudget, train_head
from neuralsim.agents.heads.wam_policies import NAMES, find_head
from neuralsim.agents.planning.goal_trial import wilson
from neuralsim.data.episode import EpisodeStore
from neuralsim.envs.tasks.rl_task import Wish, wish_of
from neuralsim.evaluation.report import Bar, Report, Row, circumstances
from neuralsim.evaluation.statistics import Estimate, student
from neuralsim.models.roles import joint_of
from neuralsim.pretrained.world import Starts, World, open_world
from neuralsim.runtime.progress import progress
from neuralsim.runtime.results_log import Journal
from neuralsim.training.token_dataset import fingerprint

SHARE_OF_ORACLE = 0.8
"""What the best head must reach of the success of who demonstrated."""
LATENCY_MS = 50.0
"""What a decision of the joint head may take at one denoising pass."""


@dataclass(frozen=True)
class Heads:
    """Try the policy heads in the true simulator, from the same held-out starts: success, time per decision."""

    world: str = "pusht"
    """Name or folder of a world that answers in all roles."""
    task: str = "cover"
    """What is to be done; Push-T's own is to cover the goal."""
    heads: tuple[str, ...] = ("joint", "dream", "best", "cascade", "post", "bc")
    """Which heads; post and bc are trained first where they are not yet in --out."""
    passes: tuple[int, ...] = (1, 4)
    """Denoising passes to try."""
    execute: tuple[int, ...] = (4,)
    """How many actions of a chunk are done before looking again; several are tried with the joint head."""
    episodes: int = 200
    """Attempts, from starts as the true world's reset makes them."""
    steps: int = 300
    """Actions in an attempt at most; 300 is gym-pusht's own limit."""
    oracle: bool = True
    """Also try who demonstrated, looking ahead in the true simulator."""
    demos: Path | None = None
    """Demonstrations that post and bc learn from; data/<world>-oracle by default."""
    out: Path | None = None
    """Folder of trained heads and finished attempts; runs/heads/<world> by default. The same command goes on where it stopped."""
    seed: int = 0
    """Seed of starts, training and noise."""
    device: str = "auto"
    """cpu, cuda or auto."""
    json: Path | None = None
    """Also write the figures to this file."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.heads) - set(NAMES)):
            raise ValueError(f"--heads: there is no {', '.join(unknown)}; choose from {', '.join(NAMES)}")
        for name, least in (("episodes", 1), ("steps", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name}: expected {least} or more, got {getattr(self, name)}")
        for name in ("passes", "execute"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"--{name}: expected numbers of 1 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class Trial:
    """One head at one setting."""

    head: str
    passes: int
    execute: int

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.head}, {self.passes} pass{'es' if self.passes > 1 else ''}, {self.execute} of a chunk"


def heads(config: Heads, show: bool = False) -> tuple[Report, list[Path]]:
    """The table, and the files written."""
    world = open_world(config.world, config.device)
    model, joint = joint_of(world.model)
    out = config.out or Path("runs") / "heads" / world.spec.name
    wish = replace(wish_of(world, config.task), horizon=config.steps)
    starts = wish.starts_in(world, config.episodes, config.seed)
    demos = config.demos or Path("data") / f"{world.spec.name}-oracle"
    for name in sorted(set(config.heads) & set(KINDS)):
        if not (out / name / "config.json").is_file():
            train_head(name, model, EpisodeStore(demos), out, HeadBudget(), config.seed, show)
    settings = {"model": _weights(world), "seed": config.seed, "episodes": config.episodes, "steps": config.steps}
    trials = _trials(config, joint.chunk)
    with Journal(out / "trials.jsonl", settings) as journal, progress(show) as bar:
        task = bar.add_task("attempts", total=config.episodes * (len(trials) + config.oracle))
        done = {line["name"]: line for line in journal.lines}
        for trial in trials:
            if trial.label not in done:
                bar.update(task, description=trial.label)
                found = _try(world, wish, starts, trial, out, config, lambda n: bar.advance(task, n))
                journal.add({"name": trial.label, **found})
            else:
                bar.advance(task, config.episodes)
        if config.oracle and "oracle" not in done:
            bar.update(task, description="oracle")
            journal.add({"name": "oracle", **_demonstrator(wish, starts, config, lambda n: bar.advance(task, n))})
        done = {line["name"]: line for line in journal.lines}
    report = Report(
        f"{world.spec.name}: policy heads from {config.episodes} held-out starts, at most {config.steps} steps",
        tuple(_rows(config, trials, done)),
        circumstances() | {"seed": config.seed, "chunk": joint.chunk},
    )
    if config.json is not None:
        report.save(config.json)
    return report, [out / "trials.jsonl", *([config.json] if config.json else [])]


def _trials(config: Heads, chunk: int) -> list[Trial]:
    first = config.execute[0]
    if max(config.execute) > chunk:
        raise ValueError(f"--execute: the world's chunks have {chunk} actions, got {max(config.execute)}")
    found = [Trial(head, passes, first) for head in config.heads for passes in config.passes]
    return found + [Trial("joint", max(config.passes), n) for n in config.execute[1:]]


def _try(
    world: World, wish: Wish, starts: Starts, trial: Trial, out: Path, config: Heads, tick: Callable[[int], None]
) -> dict[str, Any]:
    """One head from all starts; and how long one decision of one robot takes."""
    head = find_head(trial.head, world, trial.passes, trial.execute, out)
    arena = TrueArena(world, wish, starts, min(64, config.episodes), "pixels")
    tally = evaluate(ChunkRunner(head, seed=config.seed), arena, config.episodes, tick=tick)
    took: list[float] = []
    alone = ChunkRunner(head, execute=1, seed=config.seed, tick=lambda _, seconds: took.append(1e3 * seconds))
    memory = None
    for i in range(60):
        _, memory = alone.predict(starts.frames[i % len(starts), -1], memory)
    return _told(tally) | {"ms": [round(t, 2) for t in took[10:]]}


def _demonstrator(wish: Wish, starts: Starts, config: Heads, tick: Callable[[int], None]) -> dict[str, Any]:
    """Who demonstrated, from the same starts, under the same limit of steps."""
    from neuralsim.agents.policies.registry import find_collector

    collector = find_collector(wish.world)
    if collector.expert is None or starts.states is None:
        raise ValueError(f"nobody demonstrates world {wish.world!r}; leave out the oracle with --no-oracle")
    success, lengths = np.zeros(config.episodes, bool), np.full(config.episodes, config.steps)
    env = collector.env(starts.frames.shape[2])
    for i, start in enumerate(starts.states[: config.episodes, -1].astype(np.float64)):
        expert, memory = collector.expert(config.seed * 1_000_003 + i), None
        seen, _ = env.reset(options={"state": start})
        for step in range(config.steps):
            action, memory = expert.predict(seen, memory)
            seen, _, success[i], _, _ = env.step(action)
            if success[i]:
                lengths[i] = step + 1
                break
        tick(1)
    none = np.zeros(config.episodes)
    return _told(Tally(none, lengths, success, none.astype(bool))) | {"ms": []}


def _told(tally: Tally) -> dict[str, Any]:
    return {"success": tally.success.astype(int).tolist(), "lengths": tally.lengths.tolist()}


def _rows(config: Heads, trials: Sequence[Trial], done: dict[str, dict[str, Any]]) -> Iterator[Row]:
    """Success, steps of those that succeed, milliseconds per decision; then the best head's share of the oracle's success."""

    for name in [t.label for t in trials] + (["oracle"] if config.oracle else []):
        line = done[name]
        hits = np.array(line["success"], bool)
        yield _row(f"success/{name}", f"{name}: success", wilson(int(hits.sum()), len(hits)))
        if hits.any():
            yield _row(
                f"steps/{name}", f"{name}: steps to success", student(np.array(line["lengths"], np.float64)[hits])
            )
        for quantile in (50, 99) if line["ms"] else ():
            one = name.startswith("joint, 1 pass,") and quantile == 50
            yield Row(
                f"ms/{name}/p{quantile}",
                f"{name}: decision, p{quantile}",
                float(np.percentile(line["ms"], quantile)),
                unit="ms",
                n=len(line["ms"]),
                better="low",
                bar=Bar(most=LATENCY_MS) if one else None,
            )
    rivals = {t.label: float(np.mean(done[t.label]["success"])) for t in trials if t.head != "bc"}
    if config.oracle and rivals:
        best = max(rivals, key=lambda name: rivals[name])
        yield Row(
            "share_of_oracle",
            f"best head ({best}) over the oracle",
            rivals[best] / max(float(np.mean(done["oracle"]["success"])), 1e-9),
            n=config.episodes,
            better="high",
            bar=Bar(least=SHARE_OF_ORACLE),
        )


def _row(key: str, label: str, found: Estimate) -> Row:
    return Row(key, label, found.value, low=found.low, high=found.high, n=found.n, better="high")


def _weights(world: World) -> str:
    """Which model was tried."""
    return fingerprint(world.model.state_dict())
