"""Recipe: a function that returns one complete, frozen training config; named after the world and the system it
follows."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from neuralsim.models.latent import LatentConfig
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
    world: str = "pusht"
    """The true world whose episodes are learned from; they lie in data/<world> unless said otherwise."""
    codec: CodecConfig = field(default_factory=CodecConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    codec_stage: StageConfig = StageConfig(steps=2500, batch=64, lr=2e-3)
    dynamics_stage: StageConfig = StageConfig(steps=7500, batch=768, lr=1e-3)
    readings_stage: StageConfig = StageConfig(steps=1500, batch=1024, lr=1e-3)
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


@dataclass(frozen=True)
class LatentRecipe:
    """Everything that decides a trained LatentWorld, data aside.

    Four stages: encoder, first predictors and state probe together; the decoder; the predictors alone; the readings. The
    encoder stage's batch counts windows of three frames, the dynamics stage's predictions: rows times hops. ``hops`` are
    the lengths of the rollouts over the course of the dynamics stage, in equal parts.
    """

    name: str
    world: str = "pusht"
    """The true world whose episodes are learned from; they lie in data/<world> unless said otherwise."""
    latent: LatentConfig = field(default_factory=LatentConfig)
    encoder_stage: StageConfig = StageConfig(steps=2000, batch=48, lr=1.5e-3)
    decoder_stage: StageConfig = StageConfig(steps=1200, batch=64, lr=2e-3)
    dynamics_stage: StageConfig = StageConfig(steps=16000, batch=1024, lr=1.5e-3)
    readings_stage: StageConfig = StageConfig(steps=1500, batch=1024, lr=1e-3)
    regularity: float = 0.05
    """Weight of the pull towards a standard normal (SIGReg): too little, and the vectors collapse."""
    probe: float = 1.0
    """Weight of the linear probe of the true state, where states are known; 0 learns without them."""
    emphasis: float = 15.0
    """Extra weight, for the decoder, of pixels that differ from the background."""
    jitter: float = 0.01
    """Standard deviation of the noise on the vectors that rollouts start from and the decoder sees."""
    hops: tuple[int, ...] = (1, 1, 2, 2, 3, 4, 5)
    starts: int = 64
    """Start histories shipped with the world."""


Recipe = VideoRecipe | LatentRecipe


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


def pusht_latent() -> LatentRecipe:
    """The compact Push-T, for planners: half an hour on two cores."""
    return LatentRecipe(name="pusht-latent")


def pusht_latent_mini() -> LatentRecipe:
    """The same in miniature, for tests."""
    return LatentRecipe(
        name="pusht-latent-mini",
        latent=LatentConfig(size=8, keypoints=8, conv_width=16, width=32, depth=1, members=2, block=3),
        encoder_stage=StageConfig(steps=120, batch=16, lr=4e-3, warmup=10, ema=0.95),
        decoder_stage=StageConfig(steps=60, batch=16, lr=4e-3, warmup=10, ema=0.95),
        dynamics_stage=StageConfig(steps=100, batch=64, lr=4e-3, warmup=10),
        readings_stage=StageConfig(steps=40, batch=64, lr=2e-3, warmup=10),
        hops=(1, 2, 3),
        starts=8,
    )


def tworoom_latent() -> LatentRecipe:
    """The compact TwoRoom: a few minutes on two cores."""
    return LatentRecipe(
        name="tworoom-latent",
        world="tworoom",
        latent=LatentConfig(size=8, keypoints=4, conv_width=24, width=128, depth=2),
        encoder_stage=StageConfig(steps=600, batch=32, lr=3e-3, ema=0.99),
        decoder_stage=StageConfig(steps=600, batch=32, lr=3e-3, ema=0.99),
        dynamics_stage=StageConfig(steps=3500, batch=512, lr=2e-3),
        readings_stage=StageConfig(steps=1000, batch=512, lr=2e-3),
    )


def tworoom_latent_mini() -> LatentRecipe:
    """The same in miniature, for tests."""
    return LatentRecipe(
        name="tworoom-latent-mini",
        world="tworoom",
        latent=LatentConfig(size=6, keypoints=4, conv_width=16, width=64, depth=1, members=2),
        encoder_stage=StageConfig(steps=120, batch=16, lr=4e-3, warmup=10, ema=0.95),
        decoder_stage=StageConfig(steps=40, batch=16, lr=4e-3, warmup=10, ema=0.95),
        dynamics_stage=StageConfig(steps=500, batch=128, lr=4e-3, warmup=10),
        readings_stage=StageConfig(steps=40, batch=64, lr=2e-3, warmup=10),
        starts=8,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "pusht-video": pusht_video,
    "pusht-video-mini": pusht_video_mini,
    "pusht-latent": pusht_latent,
    "pusht-latent-mini": pusht_latent_mini,
    "tworoom-latent": tworoom_latent,
    "tworoom-latent-mini": tworoom_latent_mini,
}


def find_recipe(name: str) -> Recipe:
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
    data: Path | None = None
    """Episode store to learn from (see 'neuralsim collect'); data/<the recipe's world> by default."""
    episodes: int | None = None
    """Learn from the store's first so many episodes only."""
    also: tuple[Path, ...] = ()
    """Further stores of the same world to learn from."""
    stages: tuple[str, ...] = ()
    """Go through these stages alone (all by default); the rest stays as --init has it."""
    out: Path | None = None
    """Folder of the run; runs/<recipe> by default. Holds checkpoints, TensorBoard events and, at the end, the world."""
    init: str | None = None
    """Begin with the weights of this world (name or folder, of the recipe's shape) instead of random ones."""
    effort: float = 1.0
    """Share of the recipe's steps to take in each stage: less is a try, or a touching-up of --init."""
    rate: float = 1.0
    """Factor on the recipe's learning rates: less than 1 touches --init up without undoing it."""
    cache: Path | None = None
    """Folder that keeps encoded frames; in the run by default."""
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

    def __post_init__(self) -> None:
        for name in ("effort", "rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name}: expected a number above 0, got {getattr(self, name):g}")

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return self.out or Path("runs") / self.recipe

    @property
    def plan(self) -> Recipe:
        """The recipe, with as many steps as ``effort`` asks for, at ``rate``."""
        recipe = find_recipe(self.recipe)
        stages = {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name.endswith("_stage")}
        asked = {
            name: replace(stage, steps=max(1, round(stage.steps * self.effort)), lr=stage.lr * self.rate)
            for name, stage in stages.items()
        }
        return replace(recipe, **asked)
