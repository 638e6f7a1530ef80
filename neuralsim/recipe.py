"""Recipe: a function that returns one complete, frozen training config; named after the world and the system it
follows."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from neuralsim.models.video import CodecConfig, StreamConfig


@dataclass(frozen=True)
class StageConfig:
    """One stage of training: optimiser steps, rows in a batch, peak learning rate (warm-up, then cosine to a
    fiftieth), EMA decay."""

    steps: int
    batch: int
    lr: float
    ema: float = 0.998
    warmup: int = 100


@dataclass(frozen=True)
class VideoRecipe:
    """Everything that decides a trained VideoWAM, data aside.

    Three stages: the codec on single frames; the dynamics on tokens, on the model's own rollouts; the readings
    (reward, end) on true and imagined tokens. The dynamics stage's batch counts dreamt frames: rows times length.
    ``rollout`` are the lengths of the rollouts over the course of the dynamics stage, in equal parts.
    """

    name: str
    codec: CodecConfig = field(default_factory=CodecConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    codec_stage: StageConfig = StageConfig(steps=4000, batch=64, lr=2e-3)
    dynamics_stage: StageConfig = StageConfig(steps=15000, batch=768, lr=1e-3)
    readings_stage: StageConfig = StageConfig(steps=600, batch=1024, lr=1e-3)
    emphasis: float = 15.0
    """Extra weight of pixels that differ from the background."""
    place_jitter: float = 0.003
    """Standard deviation of the noise on keypoints while the codec trains, in half frame widths."""
    rollout: tuple[int, ...] = (1, 1, 2, 2, 3, 4, 6, 8, 12)
    alone: float = 0.8
    """Share of the rollouts that see the newest frame only: half the work, and where frames show the whole state as true
    (measured on Push-T: IoU after 10 steps 0.750 alone, 0.749 with four frames)."""
    sampler_every: int = 8
    """Every how many dynamics steps the rollout is made in chunks and by up to four denoising passes."""
    forcing_every: int = 16
    """Every how many dynamics steps diffusion forcing (noise levels of all kinds) is trained instead of a rollout."""
    token_jitter: float = 0.004
    """Standard deviation of the noise on the tokens a rollout starts from, in standard deviations of the data."""
    starts: int = 64
    """Start histories shipped with the world."""


def pusht_video() -> VideoRecipe:
    """The shipped Push-T: an hour or two on two cores."""
    return VideoRecipe(name="pusht-video")


def pusht_video_mini() -> VideoRecipe:
    """The same in miniature, for tests and for seeing a training end to end: some seconds, and no good for dreaming."""
    return VideoRecipe(
        name="pusht-video-mini",
        codec=CodecConfig(tokens=2, size=8, conv_width=16),
        stream=StreamConfig(width=32, layers=2, heads=2, window=3),
        codec_stage=StageConfig(steps=200, batch=16, lr=4e-3, warmup=10, ema=0.95),
        dynamics_stage=StageConfig(steps=60, batch=32, lr=2e-3, warmup=10),
        readings_stage=StageConfig(steps=40, batch=64, lr=2e-3, warmup=10),
        rollout=(2, 3),
        starts=8,
    )


RECIPES: dict[str, Callable[[], VideoRecipe]] = {"pusht-video": pusht_video, "pusht-video-mini": pusht_video_mini}


def find_recipe(name: str) -> VideoRecipe:
    """The recipe called ``name``; an unknown one is a ValueError that names the nearest."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no recipe {name!r}; there are {sorted(RECIPES)}{hint}")
    return RECIPES[name]()


@dataclass(frozen=True)
class Train:
    """Train a world from a store of episodes."""

    recipe: str = "pusht-video"
    """Name of the recipe."""
    data: Path = Path("data/pusht")
    """Episode store to learn from (see 'neuralsim collect')."""
    out: Path | None = None
    """Folder of the run; runs/<recipe> by default. Holds checkpoints, TensorBoard events and, at the end, the world."""
    init: str | None = None
    """Begin with the weights of this world (name or folder, of the recipe's shape) instead of random ones."""
    resume: bool = False
    """Go on from the run's last checkpoint."""
    seed: int = 0
    """Seed of initial weights and of every draw."""
    device: str = "auto"
    """cpu, cuda or auto."""
    precision: str = "auto"
    """float32, bfloat16 or auto: bfloat16 where the processor computes in it."""
    checkpoint_every: float = 180.0
    """Seconds between checkpoints."""
    threads: int = 0
    """Processor threads; 0 leaves torch's choice."""
    stop_after: float = float("inf")
    """Stop cleanly (with a checkpoint) after this many minutes."""

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return self.out or Path("runs") / self.recipe
