"""The command ``evaluate``: one policy in the real environment and in imagination, from the same starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import ClassVar

import numpy as np

from neuralsim.agents.evaluation.candidate import find_candidate, model_name, note_of
from neuralsim.agents.evaluation.paired_evaluation import PairedEvaluation
from neuralsim.agents.evaluation.policy_video import film_policy
from neuralsim.agents.evaluation.rollout import PolicyEvalResult
from neuralsim.envs.tasks.rl_task import task_for
from neuralsim.evaluation.report import Metric, Report, metric_of
from neuralsim.evaluation.statistics import Bootstrap, mean
from neuralsim.runtime.machine import circumstances
from neuralsim.runtime.progress import progress

FILMED = 4
"""Episodes in the video."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a policy in the real environment and in imagination, from the same starts."""

    OLD_FLAGS: ClassVar[dict[str, str]] = {"--doubt-limit": "--uncertainty-limit"}

    world: str = "pusht"
    """Name of a world (pusht, tworoom, carracing), or the folder of one of your own."""
    policy: str = "random"
    """A policy's .zip, as 'neuralsim rl' or Stable-Baselines3's save() writes it; or random (uniform actions), noop or still (none),
    or a head of a world action model."""
    task: str | None = None
    """The task; by default the one that the policy was trained for, or the world's first."""
    model: str | None = None
    """The learned world (name or folder) for imagination and features; by default the folder given, or the one that the policy was
    trained with, or what ships for the name."""
    real: bool = False
    """In the real environment alone."""
    imagined: bool = False
    """In imagination alone."""
    episodes: int = 100
    """Episodes on each side."""
    stochastic: bool = False
    """Draw actions as in training, instead of taking the most likely ones."""
    uncertainty_limit: float = inf
    """Uncertainty at which an imagined episode is truncated; by default never, so that both sides take equally many steps."""
    video: Path | None = None
    """Also write a video of some episodes, real and imagined, to this file (mp4)."""
    seed: int = 0
    """Seed of the starts, and of policies that draw random numbers."""
    json: Path | None = None
    """Also write the figures to this file."""
    device: str = "auto"
    """Device of the learned world: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name}: expected {least} or more, got {getattr(self, name)}")
        if self.real and self.imagined:
            raise ValueError("--real and --imagined exclude each other; without either, both sides are evaluated")
        if not self.uncertainty_limit > 0:
            raise ValueError(f"--uncertainty-limit: expected a number above 0, got {self.uncertainty_limit:g}")


def evaluate_transfer(config: EvaluateConfig, show: bool = False) -> tuple[Report, list[Path]]:
    """Evaluate as ``config`` asks; returns the report and the files written. Raises ValueError or FileNotFoundError for a policy,
    task or world that is not there or does not fit."""
    note = note_of(config.policy)
    candidate = find_candidate(config.policy, config.world, config.model, seed=config.seed, device=config.device)
    rl_task = task_for(config.world, config.task or note.task or None, config.device)
    if config.real:
        rl_task.real_world()  # says why there is none
    paired = PairedEvaluation(rl_task, config.episodes, config.seed, config.uncertainty_limit, not config.stochastic)
    sides = {"true": paired.real, "imagined": paired.imagined}
    if config.real:
        del sides["imagined"]
    elif config.imagined or not rl_task.has_real_world:
        del sides["true"]
    with progress(show) as bar:
        task = bar.add_task("episodes", total=len(sides) * config.episodes)
        found = {name: side(candidate, lambda n: bar.advance(task, n)) for name, side in sides.items()}
    rows = [row for name, result in found.items() for row in _rows(name, result, rl_task.outcome)]
    if len(found) == 2:
        rows += _gap_rows(found["imagined"], found["true"], rl_task.outcome)
    about = {
        "policy": config.policy,
        "steps_allowed": rl_task.horizon,
        "model": config.model or model_name(config.world, note),
        "trained_steps": note.steps or None,
        "actions": "drawn" if config.stochastic else "likeliest",
        "doubt_limit": config.uncertainty_limit,
        "seed": config.seed,
    }
    if not rl_task.has_real_world:
        about["true_world"] = f"not known, all figures are imagined alone: {rl_task.unknown}"
    report = Report(f"a policy in {rl_task.world}: {rl_task.name}", tuple(rows), about | circumstances())
    files = []
    if config.video is not None:
        starts = replace(paired, episodes=min(FILMED, config.episodes)).starts(candidate.world)
        shown = film_policy(config.video, candidate.make(), candidate.world, rl_task, starts, candidate.observation)
        files.append(shown)
    if config.json is not None:
        files.append(report.save(config.json))
    return report, files


def _rows(side: str, result: PolicyEvalResult, outcome: str) -> Iterator[Metric]:
    starts = Bootstrap(np.arange(len(result)))
    yield metric_of(result.mean_return(), f"{side}_return", f"{side}: return", better="high")
    better = "high" if outcome == "success" else ""
    yield metric_of(result.success_share(), f"{side}_{outcome}", f"{side}: {outcome}", better=better)
    yield metric_of(starts(mean, result.lengths.astype(np.float64)), f"{side}_length", f"{side}: length", unit="steps")
    if side == "imagined" and result.doubted.any():
        yield metric_of(
            starts.share(result.doubted.astype(np.float64)),
            "doubted",
            "imagined: share of uncertain episodes",
            better="low",
        )


def _gap_rows(imagined: PolicyEvalResult, true: PolicyEvalResult, outcome: str) -> Iterator[Metric]:
    """Imagined minus real, start by start."""
    starts = Bootstrap(np.arange(len(true)))
    for name, key in (("return", "returns"), (outcome, "success")):
        gap = getattr(imagined, key).astype(np.float64) - getattr(true, key)
        yield metric_of(starts(mean, gap), f"gap_{name}", f"gap: imagined - true {name}")
