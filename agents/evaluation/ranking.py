"""The command ``rank``: whether imagination orders several policies as the real environment does, from the same starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import ClassVar

import numpy as np
from rich.table import Table

from neuralsim.agents.evaluation.candidate import CandidatePolicy, find_candidate, note_of, short_names
from neuralsim.agents.evaluation.paired_evaluation import PairedEvaluation
from neuralsim.agents.evaluation.plots import Score, draw_ranking
from neuralsim.agents.evaluation.rollout import PolicyEvalResult
from neuralsim.envs.tasks.rl_task import RLTask, learned_name, task_for
from neuralsim.evaluation.report import Metric, Report, Target, metric_of
from neuralsim.evaluation.statistics import CrossedBootstrap, Estimate, mmrv, pearson, rank_correlation
from neuralsim.runtime.machine import circumstances
from neuralsim.runtime.progress import progress

ENOUGH = 8
"""With fewer policies than this, correlations say little."""
TARGET = Target(least=0.9)
"""Target of the correlation between imagined and real success."""
KINDS = {"success": "success", "return": "returns"}
"""Compared quantities, and their fields in PolicyEvalResult. Success only where the task has one, see ``RLTask.outcome``."""


@dataclass(frozen=True)
class RankConfig:
    """Evaluate policies in imagination and in the real environment, and compare the two orders."""

    OLD_FLAGS: ClassVar[dict[str, str]] = {"--doubt-limit": "--uncertainty-limit"}

    world: str = "pusht"
    """Name of a world (pusht, tworoom, carracing), or the folder of one of your own."""
    policies: tuple[str, ...] = ()
    """Policies' .zip files, 8 or more of differing skill; also words: random (uniform actions), noop or still (none),
    heads of a world action model."""
    task: str | None = None
    """The task; by default the one that the policies were trained for."""
    model: str | None = None
    """The learned world (name or folder) for imagination and features; by default the folder given, or, for each policy, the one
    that it was trained with."""
    episodes: int = 100
    """Episodes of each policy on each side, from the same starts for all."""
    stochastic: bool = False
    """Draw actions as in training, instead of taking the most likely ones."""
    uncertainty_limit: float = inf
    """Uncertainty at which an imagined episode is truncated. By default never: a truncated episode can no longer succeed, so
    policies would look worse the farther they go, where the real environment lets them go on."""
    out: Path | None = None
    """Folder for rank.json and rank.png; runs/rank/<world>-<task> by default."""
    seed: int = 0
    """Seed of the starts, of policies that draw random numbers, and of the intervals."""
    json: Path | None = None
    """Also write the figures to this file."""
    device: str = "auto"
    """Device of the learned world: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name}: expected {least} or more, got {getattr(self, name)}")
        if not self.uncertainty_limit > 0:
            raise ValueError(f"--uncertainty-limit: expected a number above 0, got {self.uncertainty_limit:g}")
        object.__setattr__(self, "policies", tuple(dict.fromkeys(self.policies)))
        if len(self.policies) < 2:
            raise ValueError(f"--policies: to rank takes 2 or more that differ, got {list(self.policies)}")


@dataclass(frozen=True)
class Ranking:
    """The results of every policy, the best real one first. ``imagined`` and ``true``: results by policy, episode by episode from the
    same starts. ``kinds``: the compared quantities, the most important first."""

    names: tuple[str, ...]
    imagined: tuple[PolicyEvalResult, ...]
    true: tuple[PolicyEvalResult, ...]
    seed: int = 0
    kinds: tuple[str, ...] = tuple(KINDS)

    def __post_init__(self) -> None:
        order = sorted(range(len(self.names)), key=lambda i: -self.true[i].returns.mean())
        if "success" in self.kinds:
            order.sort(key=lambda i: -self.true[i].success.mean())
        for name in ("names", "imagined", "true"):
            object.__setattr__(self, name, tuple(getattr(self, name)[i] for i in order))

    def agreement(self) -> Iterator[Metric]:
        """Yield how well imagined and real results agree, with intervals over policies and starts."""
        resample = CrossedBootstrap(len(self.names), len(self.true[0]), seed=self.seed)
        for kind in self.kinds:
            name = KINDS[kind]
            imagined, true = (np.array([getattr(t, name) for t in side], float) for side in (self.imagined, self.true))
            target = TARGET if kind == self.kinds[0] and len(self.names) >= ENOUGH else None
            linear, order, worst = (resample(f, imagined, true) for f in (pearson, rank_correlation, mmrv))
            yield metric_of(linear, f"pearson_{kind}", f"{kind}: Pearson's correlation", better="high", target=target)
            yield metric_of(order, f"spearman_{kind}", f"{kind}: Spearman's rank correlation", better="high")
            yield metric_of(worst, f"mmrv_{kind}", f"{kind}: mean maximum rank violation", better="low")

    def scores(self, kind: str) -> list[Score]:
        """Each policy's imagined and true ``kind`` (success or return)."""
        rows = zip(self.names, self.imagined, self.true, strict=True)
        return [Score(name, _estimate(imagined, kind), _estimate(real, kind)) for name, imagined, real in rows]

    def table(self) -> Table:
        """One row per policy."""
        table = Table(title=f"{len(self.names)} policies, {len(self.true[0])} episodes each, the same starts")
        table.add_column("")
        for kind in self.kinds:
            for side in ("true", "imagined"):
                table.add_column(f"{side} {kind}", justify="right", no_wrap=True)
        table.add_column("uncertain", justify="right")
        by_kind = [self.scores(kind) for kind in self.kinds]
        for i, name in enumerate(self.names):
            cells = [_format(e) for scores in by_kind for e in (scores[i].true, scores[i].imagined)]
            table.add_row(name, *cells, f"{self.imagined[i].doubted.mean():.2f}")
        return table

    def tables(self, report: Report) -> list[Table]:
        """Tables for the screen: the policies, then the agreement, as :meth:`report` holds it."""
        return [self.table(), report.table([row for row in report.rows if "/" not in row.key])]

    def report(self, title: str, about: Mapping[str, object]) -> Report:
        """All metrics: the agreement, then every policy's scores."""
        rows = list(self.agreement())
        for kind in self.kinds:
            for score in self.scores(kind):
                for side, found in (("imagined", score.imagined), ("true", score.true)):
                    rows.append(
                        metric_of(found, f"{side}_{kind}/{score.name}", f"{score.name}: {side} {kind}", better="high")
                    )
        return Report(title, tuple(rows), about)


def rank(config: RankConfig, show: bool = False) -> tuple[Ranking, Report, list[Path]]:
    """Evaluate every policy; returns the ranking, its report, and the files written. Raises ValueError or FileNotFoundError for
    policies, a task or a world that are not there or do not fit, before anything runs."""
    candidates = _candidates(config)
    rl_task = _task(config)
    rl_task.real_world()  # says why there is none
    paired = PairedEvaluation(rl_task, config.episodes, config.seed, config.uncertainty_limit, not config.stochastic)
    imagined, true = [], []
    with progress(show) as bar:
        task = bar.add_task("episodes", total=2 * config.episodes * len(candidates))
        for candidate in candidates:
            bar.update(task, description=candidate.name)
            imagined.append(paired.imagined(candidate, lambda n: bar.advance(task, n)))
            true.append(paired.real(candidate, lambda n: bar.advance(task, n)))
    kinds = tuple(KINDS) if rl_task.outcome == "success" else ("return",)
    ranking = Ranking(tuple(c.name for c in candidates), tuple(imagined), tuple(true), config.seed, kinds)
    about: dict[str, object] = {
        "task": rl_task.name,
        "steps_allowed": rl_task.horizon,
        "model": ", ".join(
            sorted({str(c.world.folder.name if c.world.folder else c.world.spec.name) for c in candidates})
        ),
        "actions": "drawn" if config.stochastic else "likeliest",
        "doubt_limit": config.uncertainty_limit,
        "seed": config.seed,
        "intervals": "policies and starts drawn anew",
        **({"beware": f"fewer than {ENOUGH} policies tell little"} if len(candidates) < ENOUGH else {}),
        **circumstances(),
        "policies": dict(zip(short_names(config.policies), config.policies, strict=True)),
    }
    report = ranking.report(f"ranking of policies in {rl_task.world}", about)
    folder = config.out or Path("runs/rank") / f"{rl_task.world}-{rl_task.name}".replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "rank.png"
    words = f"{rl_task.world}, {rl_task.name}: {len(candidates)} policies, {config.episodes} episodes each"
    draw_ranking(picture, words, {kind: ranking.scores(kind) for kind in kinds}, _captions(report, kinds))
    files = [report.save(folder / "rank.json"), picture]
    if config.json is not None:
        files.append(report.save(config.json))
    return ranking, report, files


def _task(config: RankConfig) -> RLTask:
    notes = {source: note_of(source) for source in config.policies}
    tasks = {note.task: source for source, note in notes.items() if note.task}
    if config.task is None and len(tasks) > 1:
        found = ", ".join(f"{source} for {task}" for task, source in tasks.items())
        raise ValueError(f"--policies: trained for different tasks ({found}); say with --task which one")
    return task_for(config.world, config.task or next(iter(tasks), None), config.device)


def _candidates(config: RankConfig) -> list[CandidatePolicy]:
    """Open the policies; those without a file are imagined in the same world as the first of the others."""
    models = [note.model for source in config.policies if (note := note_of(source)).model]
    own, candidates = learned_name(config.world) == config.world, []
    for source, name in zip(config.policies, short_names(config.policies), strict=True):
        model = config.model or (None if own else note_of(source).model or next(iter(models), None))
        candidates.append(find_candidate(source, config.world, model, name, config.seed, config.device))
    return candidates


def _estimate(result: PolicyEvalResult, kind: str) -> Estimate:
    return result.success_share() if kind == "success" else result.mean_return()


def _format(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f}..{estimate.high:.2f})"


def _captions(report: Report, kinds: Sequence[str]) -> dict[str, str]:
    """The caption of each panel of the picture."""
    captions = {}
    for kind in kinds:
        r, rho, worst = (report[f"{name}_{kind}"] for name in ("pearson", "spearman", "mmrv"))
        words = f"Pearson {r.value:.2f} ({r.low:.2f}..{r.high:.2f}), Spearman {rho.value:.2f}, MMRV {worst.value:.2f}"
        captions[kind] = f"{kind}: {words}"
    return captions
