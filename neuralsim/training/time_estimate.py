"""TimeEstimate: the expected duration of a training on this machine, measured on a few of its own steps."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from neuralsim.data.store import EpisodeStore, JoinedStore
from neuralsim.runtime.device import arithmetic
from neuralsim.training.stages import Stage
from neuralsim.training.trainer import Trainer

EPISODES = 3
"""Training episodes that the measured steps use."""


@dataclass(frozen=True)
class TimeEstimate:
    """Expected seconds of each stage, by name, and the model's parameters in millions."""

    seconds: dict[str, float]
    parameters: float

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_time(s)}" for name, s in self.seconds.items())
        return f"{self.parameters:.1f} M parameters; expected time here {_time(sum(self.seconds.values()))} ({parts})"


def estimate_time(trainer: Trainer) -> TimeEstimate:
    """Estimate the duration of ``trainer``'s run from two steps at the beginning, in the middle and at the end of each stage, on few
    episodes and a model of its own. Reading and encoding all frames is not included.
    """
    few = JoinedStore([_few(store) for store in (trainer.home, *map(EpisodeStore, trainer.config.further))])
    seconds = {}
    with tempfile.TemporaryDirectory() as cache, torch.random.fork_rng(devices=[]):
        training_stages = trainer.rehearsal(few, Path(cache))
        for index, name in trainer.stages:
            stage = training_stages.makers[name]()
            done = trainer.progress.step if index == trainer.progress.stage else 0
            steps = 0 if index < trainer.progress.stage else stage.config.steps - done
            seconds[name] = steps * _step(stage, trainer)
    return TimeEstimate(seconds, sum(p.numel() for p in training_stages.model.parameters()) / 1e6)


def _few(store: EpisodeStore) -> EpisodeStore:
    """Return the part of ``store`` that has EPISODES training episodes."""
    kept = store.split(held_out=False)
    return EpisodeStore(store.folder, int(kept[min(EPISODES, len(kept)) - 1]) + 1 if len(kept) else None)


def _step(stage: Stage, trainer: Trainer) -> float:
    """Measure the seconds of one step of ``stage``."""
    optimizer = torch.optim.AdamW(stage.parameters, lr=1e-6)
    took = []
    for step in (0, stage.config.steps // 2 + 1, stage.config.steps - 1):
        for repeat in range(2):
            began = time.perf_counter()
            with arithmetic(trainer.dtype, trainer.device):
                losses = stage.loss(step, np.random.default_rng([trainer.config.seed, step, repeat]))
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            if repeat:  # the first one allocates memory that the second reuses
                took.append(time.perf_counter() - began)
    return float(np.mean(took))


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
