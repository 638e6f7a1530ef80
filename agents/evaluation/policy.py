"""transfer: how one policy fares in imagination and in truth from the same starts, as the command ``evaluate`` asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import numpy as np

from neuralsim.agents.evaluation.paired_evaluation import PairedEvaluation
from neuralsim.agents.evaluation.policy_video import film_policy
from neuralsim.agents.evaluation.rollout import PolicyEvalResult
from neuralsim.agents.policies.resolve import model_name, note_of, resolve_policy
from neuralsim.envs.tasks.rl_task import task_for
from neuralsim.evaluation.report import Metric, Report, circumstances, metric_of
from neuralsim.evaluation.statistics import Bootstrap, mean
from neuralsim.runtime.progress import progress

FILMED = 4
"""Episodes on film."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Try a policy in the true simulator and in imagination, from the same starts."""

    world: str = "pusht"
    """Name of a world (pusht, tworoom, carracing), or the folder of one of your own."""
    policy: str = "random"
    """A policy's .zip, as 'neuralsim rl' or Stable-Baselines3's save() writes it, or random (uniform actions), or still (none)."""
    task: str | None = None
    """What is to be done; by default what the policy was trained for, or the world's first task."""
    model: str | None = None
    """The learned world (name or folder) to dream in, and whose features are seen; by default the folder given, or the one that
    the policy was trained with, or what ships for the name."""
    real: bool = False
    """In the true simulator alone."""
    imagined: bool = False
    """In imagination alone."""
    episodes: int = 100
    """Attempts on each side."""
    stochastic: bool = False
    """Draw actions as in training, instead of taking the likeliest."""
    doubt_limit: float = inf
    """Uncertainty at which an imagined episode is cut off; by default never, so that both sides play equally many steps."""
    video: Path | None = None
    """Also film some attempts in truth and dream, to this file (mp4)."""
    seed: int = 0
    """Seed of the starts, and of policies that act by chance."""
    json: Path | None = None
    """Also write the figures to this file."""
    device: str = "auto"
    """Where the learned world runs: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name}: expected {least} or more, got {getattr(self, name)}")
        if self.real and self.imagined:
            raise ValueError("--real and --imagined exclude each other; without either, both sides are tried")
        if not self.doubt_limit > 0:
            raise ValueError(f"--doubt-limit: expected a number above 0, got {self.doubt_limit:g}")


def evaluate_transfer(config: EvaluateConfig, show: bool = False) -> tuple[Report, list[Path]]:
    """The figures, and the files written. Raises ValueError or FileNotFoundError for a policy, task or world that does not do."""
    note = note_of(config.policy)
    contender = resolve_policy(config.policy, config.world, config.model, seed=config.seed, device=config.device)
    rl_task = task_for(config.world, config.task or note.task or None, config.device)
    if config.real:
        rl_task.true_world()  # says why there is none
    contest = PairedEvaluation(rl_task, config.episodes, config.seed, config.doubt_limit, not config.stochastic)
    sides = {"true": contest.true, "imagined": contest.imagined}
    if config.real:
        del sides["imagined"]
    elif config.imagined or rl_task.truth is None:
        del sides["true"]
    with progress(show) as bar:
        task = bar.add_task("episodes", total=len(sides) * config.episodes)
        found = {name: side(contender, lambda n: bar.advance(task, n)) for name, side in sides.items()}
    rows = [row for name, tally in found.items() for row in _rows(name, tally, rl_task.outcome)]
    if len(found) == 2:
        rows += _gap_rows(found["imagined"], found["true"], rl_task.outcome)
    about = {
        "policy": config.policy,
        "steps_allowed": rl_task.horizon,
        "model": config.model or model_name(config.world, note),
        "trained_steps": note.steps or None,
        "actions": "drawn" if config.stochastic else "likeliest",
        "doubt_limit": config.doubt_limit,
        "seed": config.seed,
    }
    if rl_task.truth is None:
        about["true_world"] = f"not known, figures are imagined alone: {rl_task.unknown}"
    report = Report(f"a policy in {rl_task.world}: {rl_task.name}", tuple(rows), about | circumstances())
    files = []
    if config.video is not None:
        starts = replace(contest, episodes=min(FILMED, config.episodes)).starts(contender.world)
        shown = film_policy(config.video, contender.make(), contender.world, rl_task, starts, contender.sees)
        files.append(shown)
    if config.json is not None:
        files.append(report.save(config.json))
    return report, files


def _rows(side: str, tally: PolicyEvalResult, outcome: str) -> Iterator[Metric]:
    starts = Bootstrap(np.arange(len(tally)))
    yield metric_of(tally.mean_return(), f"{side}_return", f"{side}: return", better="high")
    better = "high" if outcome == "success" else ""
    yield metric_of(tally.success_share(), f"{side}_{outcome}", f"{side}: {outcome}", better=better)
    yield metric_of(starts(mean, tally.lengths.astype(np.float64)), f"{side}_length", f"{side}: length", unit="steps")
    if side == "imagined" and tally.doubted.any():
        yield metric_of(
            starts.share(tally.doubted.astype(np.float64)), "doubted", "imagined: doubted by the world", better="low"
        )


def _gap_rows(imagined: PolicyEvalResult, true: PolicyEvalResult, outcome: str) -> Iterator[Metric]:
    """Imagined minus true, start by start."""
    starts = Bootstrap(np.arange(len(true)))
    for name, key in (("return", "returns"), (outcome, "success")):
        gap = getattr(imagined, key).astype(np.float64) - getattr(true, key)
        yield metric_of(starts(mean, gap), f"gap_{name}", f"gap: imagined - true {name}")
