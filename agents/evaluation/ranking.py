"""rank: do imagined returns order policies as the truth does? Several policies of differing skill, the same starts in
imagination and in truth, and how well the two agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
from rich.table import Table

from neuralsim.agents.evaluation.paired_evaluation import PairedEvaluation
from neuralsim.agents.evaluation.plots import Score, draw_ranking
from neuralsim.agents.evaluation.rollout import PolicyEvalResult
from neuralsim.agents.policies.resolve import CandidatePolicy, note_of, resolve_policy, short_names
from neuralsim.envs.tasks.rl_task import RLTask, learned_name, task_for
from neuralsim.evaluation.report import Metric, Report, Target, circumstances, metric_of
from neuralsim.evaluation.statistics import CrossedBootstrap, Estimate, mmrv, pearson, rank_correlation
from neuralsim.runtime.progress import progress

ENOUGH = 8
"""With fewer policies than this, correlations tell little."""
BAR = Target(least=0.9)
"""What the correlation of imagined and true success must reach."""
KINDS = {"success": "success", "return": "returns"}
"""What is compared, and where a Tally keeps it. Success only where a wish knows one, see ``RLTask.outcome``."""


@dataclass(frozen=True)
class RankConfig:
    """Try policies in imagination and in truth, and see whether both put them in the same order."""

    world: str = "pusht"
    """Name of a world (pusht, tworoom, carracing), or the folder of one of your own."""
    policies: tuple[str, ...] = ()
    """Policies' .zip files, 8 or more of differing skill; also the words random (uniform actions) and still (none)."""
    task: str | None = None
    """What is to be done; by default what the policies were trained for."""
    model: str | None = None
    """The learned world (name or folder) to dream in, and whose features are seen; by default the folder given, or, for each
    policy, the one that it was trained with."""
    episodes: int = 100
    """Attempts of each policy on each side, from the same starts for all."""
    stochastic: bool = False
    """Draw actions as in training, instead of taking the likeliest."""
    doubt_limit: float = inf
    """Uncertainty at which an imagined episode is cut off. By default never: what is cut off can no longer succeed, and would
    make policies look the worse the farther they go, where the truth lets them go on."""
    out: Path | None = None
    """Folder for rank.json and rank.png; runs/rank/<world>-<task> by default."""
    seed: int = 0
    """Seed of the starts, of policies that act by chance, and of the intervals."""
    json: Path | None = None
    """Also write the figures to this file."""
    device: str = "auto"
    """Where the learned world runs: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name}: expected {least} or more, got {getattr(self, name)}")
        if not self.doubt_limit > 0:
            raise ValueError(f"--doubt-limit: expected a number above 0, got {self.doubt_limit:g}")
        object.__setattr__(self, "policies", tuple(dict.fromkeys(self.policies)))
        if len(self.policies) < 2:
            raise ValueError(f"--policies: to rank takes 2 or more that differ, got {list(self.policies)}")


@dataclass(frozen=True)
class Ranking:
    """What came of it, best policy in truth first. imagined, true: tallies by policy, episode by episode from the same starts.
    kinds: what is compared, the most important first."""

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
        """How well imagination and truth agree, with intervals over policies and starts."""
        resample = CrossedBootstrap(len(self.names), len(self.true[0]), seed=self.seed)
        for kind in self.kinds:
            name = KINDS[kind]
            imagined, true = (np.array([getattr(t, name) for t in side], float) for side in (self.imagined, self.true))
            bar = BAR if kind == self.kinds[0] and len(self.names) >= ENOUGH else None
            linear, order, worst = (resample(f, imagined, true) for f in (pearson, rank_correlation, mmrv))
            yield metric_of(linear, f"pearson_{kind}", f"{kind}: Pearson's correlation", better="high", bar=bar)
            yield metric_of(order, f"spearman_{kind}", f"{kind}: Spearman's rank correlation", better="high")
            yield metric_of(worst, f"mmrv_{kind}", f"{kind}: mean maximum rank violation", better="low")

    def scores(self, kind: str) -> list[Score]:
        """Each policy's imagined and true ``kind`` (success or return)."""
        pairs = zip(self.names, self.imagined, self.true, strict=True)
        return [Score(name, _estimate(dream, kind), _estimate(true, kind)) for name, dream, true in pairs]

    def table(self) -> Table:
        """A line for each policy."""
        table = Table(title=f"{len(self.names)} policies, {len(self.true[0])} attempts each, the same starts")
        table.add_column("")
        for kind in self.kinds:
            for side in ("true", "imagined"):
                table.add_column(f"{side} {kind}", justify="right", no_wrap=True)
        table.add_column("doubted", justify="right")
        by_kind = [self.scores(kind) for kind in self.kinds]
        for i, name in enumerate(self.names):
            cells = [_said(e) for scores in by_kind for e in (scores[i].true, scores[i].imagined)]
            table.add_row(name, *cells, f"{self.imagined[i].doubted.mean():.2f}")
        return table

    def tables(self, report: Report) -> list[Table]:
        """What people are to see: the policies, then the agreement, as :meth:`report` holds it."""
        return [self.table(), report.table([row for row in report.rows if "/" not in row.key])]

    def report(self, title: str, about: Mapping[str, object]) -> Report:
        """The agreement, then every policy's scores."""
        rows = list(self.agreement())
        for kind in self.kinds:
            for score in self.scores(kind):
                for side, found in (("imagined", score.imagined), ("true", score.true)):
                    rows.append(
                        metric_of(found, f"{side}_{kind}/{score.name}", f"{score.name}: {side} {kind}", better="high")
                    )
        return Report(title, tuple(rows), about)


def rank(config: RankConfig, show: bool = False) -> tuple[Ranking, Report, list[Path]]:
    """Try everybody; returns what came of it, the figures, and the files written. Raises ValueError or FileNotFoundError for
    policies, a task or a world that do not do, before anything runs."""
    contenders = _contenders(config)
    rl_task = _wish(config)
    rl_task.true_world()  # says why there is none
    contest = PairedEvaluation(rl_task, config.episodes, config.seed, config.doubt_limit, not config.stochastic)
    imagined, true = [], []
    with progress(show) as bar:
        task = bar.add_task("episodes", total=2 * config.episodes * len(contenders))
        for contender in contenders:
            bar.update(task, description=contender.name)
            imagined.append(contest.imagined(contender, lambda n: bar.advance(task, n)))
            true.append(contest.true(contender, lambda n: bar.advance(task, n)))
    kinds = tuple(KINDS) if rl_task.outcome == "success" else ("return",)
    ranking = Ranking(tuple(c.name for c in contenders), tuple(imagined), tuple(true), config.seed, kinds)
    about: dict[str, object] = {
        "task": rl_task.name,
        "steps_allowed": rl_task.horizon,
        "model": ", ".join(
            sorted({str(c.world.folder.name if c.world.folder else c.world.spec.name) for c in contenders})
        ),
        "actions": "drawn" if config.stochastic else "likeliest",
        "doubt_limit": config.doubt_limit,
        "seed": config.seed,
        "intervals": "policies and starts drawn anew",
        **({"beware": f"fewer than {ENOUGH} policies tell little"} if len(contenders) < ENOUGH else {}),
        **circumstances(),
        "policies": dict(zip(short_names(config.policies), config.policies, strict=True)),
    }
    report = ranking.report(f"ranking of policies in {rl_task.world}", about)
    folder = config.out or Path("runs/rank") / f"{rl_task.world}-{rl_task.name}".replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "rank.png"
    words = f"{rl_task.world}, {rl_task.name}: {len(contenders)} policies, {config.episodes} attempts each"
    draw_ranking(picture, words, {kind: ranking.scores(kind) for kind in kinds}, _captions(report, kinds))
    files = [report.save(folder / "rank.json"), picture]
    if config.json is not None:
        files.append(report.save(config.json))
    return ranking, report, files


def _wish(config: RankConfig) -> RLTask:
    notes = {source: note_of(source) for source in config.policies}
    tasks = {note.task: source for source, note in notes.items() if note.task}
    if config.task is None and len(tasks) > 1:
        said = ", ".join(f"{source} for {task}" for task, source in tasks.items())
        raise ValueError(f"--policies: trained for different tasks ({said}); say with --task what is to be done")
    return task_for(config.world, config.task or next(iter(tasks), None), config.device)


def _contenders(config: RankConfig) -> list[CandidatePolicy]:
    """Those who need no file are imagined where the first of the others is."""
    models = [note.model for source in config.policies if (note := note_of(source)).model]
    own, contenders = learned_name(config.world) == config.world, []
    for source, name in zip(config.policies, short_names(config.policies), strict=True):
        model = config.model or (None if own else note_of(source).model or next(iter(models), None))
        contenders.append(resolve_policy(source, config.world, model, name, config.seed, config.device))
    return contenders


def _estimate(tally: PolicyEvalResult, kind: str) -> Estimate:
    return tally.success_share() if kind == "success" else tally.mean_return()


def _said(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f}..{estimate.high:.2f})"


def _captions(report: Report, kinds: Sequence[str]) -> dict[str, str]:
    """What stands above each panel of the picture."""
    said = {}
    for kind in kinds:
        r, rho, worst = (report[f"{name}_{kind}"] for name in ("pearson", "spearman", "mmrv"))
        words = f"Pearson {r.value:.2f} ({r.low:.2f}..{r.high:.2f}), Spearman {rho.value:.2f}, MMRV {worst.value:.2f}"
        said[kind] = f"{kind}: {words}"
    return said
