"""TrainingStages: the stages in which a kind of world model is trained. ``neuralsim.training.trainer`` runs them, for as long as
the recipe says."""

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
"""Progress bar that counts from a first number to a total: ``bar(name, first, total)``."""


@dataclass(frozen=True)
class Stage:
    """One stage, ready to run."""

    name: str
    config: StageConfig
    parameters: list[torch.nn.Parameter]
    """Parameters that it trains."""
    loss: Callable[[int, np.random.Generator], Losses]
    """Scalars at a step, whose sum is minimised."""
    watched: Callable[[], dict[str, float]] = dict
    """Values to display that are not optimised."""


@dataclass(frozen=True)
class StageContext:
    """Data, device and settings of a run; ``cache`` is the folder of encoded frames."""

    store: EpisodeStore
    cache: Path
    seed: int
    device: torch.device
    dtype: torch.dtype
    bar: Bar

    def noise(self, draws: np.random.Generator, rows: int) -> Noise:
        """Draw the seeds of ``rows`` noise streams."""
        return Noise.from_seeds(draws.integers(2**62, size=rows).tolist(), self.device)

    def median_frame(self) -> torch.Tensor:
        """Return the median training frame ``(3, h, w)`` in [-1, 1]: the background."""
        frames = WindowSampler(self.store, 1).sample(1024, np.random.default_rng([self.seed, 1001])).frames[:, 0]
        return torch.as_tensor(np.median(frames, axis=0), dtype=torch.float32, device="cpu").movedim(-1, 0) / 127.5 - 1


class TrainingStages(ABC):
    """A model and its stages. Every random draw is a function of (seed, stage, step)."""

    model: Any
    recipe: Any
    """The recipe, as fitted to the data."""
    run: StageContext

    @property
    @abstractmethod
    def makers(self) -> dict[str, Callable[[], Stage]]:
        """Constructor of each stage, by name and in order; called when the stages before it are done."""

    @abstractmethod
    def begin(self) -> None:
        """Measure constants of the model on the data, before the first step of all."""

    def finish(self, stage: str) -> None:  # noqa: B027 (most stages need nothing more)
        """Measure constants after ``stage``, with its averaged weights in place."""

    @abstractmethod
    def redraw(
        self, stage: str, frames: torch.Tensor, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return frames ``(b h w c)`` of ``frames`` ``(b t h w c)`` and the model's reconstruction of them after ``stage``, for samples;
        None where it cannot decode yet."""

    def roll_out_last(self, frames: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last of ``frames``, and the model's rollout to it from the first."""
        state = self.model.encode(frames[:, :1], actions[:, :0])
        noise = Noise.from_seeds(range(len(frames)), self.run.device)
        for i in range(actions.shape[1]):
            state = self.model.step(state, actions[:, i], noise.advance(i))
        return frames[:, -1], self.model.decode(state)
