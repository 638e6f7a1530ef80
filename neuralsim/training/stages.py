"""Curriculum: what a kind of world model learns, stage by stage. ``neuralsim.training.trainer`` walks through it; a recipe says how
long."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuralsim.data.store import EpisodeStore
from neuralsim.data.windows import WindowSampler
from neuralsim.noise import Noise
from neuralsim.training.recipes import StageConfig

Losses = dict[str, torch.Tensor]
Bar = Callable[[str, int, int], Iterator[int]]
"""Counts from a first number to a total, and shows it: ``bar(name, first, total)``."""


@dataclass(frozen=True)
class Stage:
    """One stage at work: its config, the parameters it moves, and its loss at a step (the sum of the returned
    scalars). ``watched`` are figures to show that are not optimised."""

    name: str
    config: StageConfig
    parameters: list[torch.nn.Parameter]
    loss: Callable[[int, np.random.Generator], Losses]
    watched: Callable[[], dict[str, float]] = dict


@dataclass(frozen=True)
class StageContext:
    """On what a curriculum is held, and where: ``cache`` keeps encoded frames."""

    store: EpisodeStore
    cache: Path
    seed: int
    device: torch.device
    dtype: torch.dtype
    bar: Bar

    def noise(self, draws: np.random.Generator, rows: int) -> Noise:
        """A noise value of ``rows`` slots."""
        return Noise.from_seeds(draws.integers(2**62, size=rows).tolist(), self.device)

    def median_frame(self) -> torch.Tensor:
        """``(3, h, w)`` in [-1, 1]: the median training frame, which is what stands still."""
        frames = WindowSampler(self.store, 1).sample(1024, np.random.default_rng([self.seed, 1001])).frames[:, 0]
        return torch.as_tensor(np.median(frames, axis=0), dtype=torch.float32).movedim(-1, 0) / 127.5 - 1


class TrainingStages(ABC):
    """The model, and the stages it learns in. Every draw is a function of (seed, stage, step)."""

    model: Any
    recipe: Any
    """The recipe, as fitted to the data."""
    run: StageContext

    @property
    @abstractmethod
    def makers(self) -> dict[str, Callable[[], Stage]]:
        """What makes each stage ready, by name and in order; called when the ones before it are done."""

    @abstractmethod
    def begin(self) -> None:
        """Before the first step of all: measure on the data what the model takes as given."""

    def finish(self, stage: str) -> None:  # noqa: B027 (most stages need nothing more)
        """After ``stage``, with its averaged weights in place."""

    @abstractmethod
    def redraw(
        self, stage: str, frames: torch.Tensor, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """For samples: frames ``(b h w c)`` of ``frames`` ``(b t h w c)`` and what the model makes of them in ``stage``; None
        where it cannot draw yet."""

    def dream_last(self, frames: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The last of ``frames``, and the model's dream of it from the first."""
        state = self.model.encode(frames[:, :1], actions[:, :0])
        rng = Noise.from_seeds(range(len(frames)), self.run.device)
        for i in range(actions.shape[1]):
            state = self.model.step(state, actions[:, i], rng.advance(i))
        return frames[:, -1], self.model.decode(state)
