"""Recipe: a function that returns one complete, frozen training config; named after the world and the system it
follows."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from neuralsim.models.joint_stream import JointConfig
from neuralsim.models.latent_world import LatentConfig
from neuralsim.models.video_wam import CodecConfig, StreamConfig


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
class MovingCamera:
    """How frames are coded where nothing in them stands still: by convolutions; ``emphasis`` is the extra weight of pixels by
    how much they differ from their surroundings, ``jitter`` the noise on the code in standard deviations."""

    codec: CodecConfig = field(default_factory=lambda: CodecConfig(tokens=1, size=64, conv_width=24, kind="conv"))
    emphasis: float = 4.0
    jitter: float = 0.1


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
    also: tuple[str, ...] = ()
    """Further stores in data/ that it is learned from, where no others are named."""
    codec: CodecConfig = field(default_factory=CodecConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    codec_stage: StageConfig = StageConfig(steps=2500, batch=64, lr=2e-3)
    dynamics_stage: StageConfig = StageConfig(steps=7500, batch=768, lr=1e-3)
    readings_stage: StageConfig = StageConfig(steps=1500, batch=1024, lr=1e-3)
    emphasis: float = 15.0
    """Extra weight of pixels that differ from the background."""
    place_jitter: float = 0.003
    """Standard deviation of the noise on keypoints while the codec trains, in half frame widths."""
    moving: MovingCamera | None = None
    """What takes the place of these three where the data's camera moves; None: it is known to stand still."""
    read_states: bool = False
    """Learn to tell the states that the data know."""
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
    joint: JointConfig | None = None
    """What answers in the other roles: act, infer, foresee, dream; None for a world that simulates only."""
    joint_stage: StageConfig = StageConfig(steps=10000, batch=256, lr=1e-3)
    joint_mix: Mapping[str, float] = field(default_factory=lambda: {"demonstrations": 0.65, "play": 0.25, "video": 0.1})
    """Shares of the joint stage's batches by what they are made of; video is that whose actions are withheld."""
    demonstrator: str = "oracle"
    """The policy, by its name in the episodes' provenance (oracle, oracle-near-goal), whose actions are the ones to do."""
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


def pusht_wam() -> VideoRecipe:
    """Push-T in all roles: simulates as pusht-video does, and acts, infers, foresees and dreams besides."""
    return replace(pusht_video(), name="pusht-wam", also=("pusht-oracle", "pusht-filmed"), joint=JointConfig())


def pusht_wam_mini() -> VideoRecipe:
    """The same in miniature, for tests."""
    return replace(
        pusht_video_mini(),
        name="pusht-wam-mini",
        joint=JointConfig(chunk=6, patch=2),
        joint_stage=StageConfig(steps=60, batch=32, lr=2e-3, warmup=10),
    )


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


def carracing_video() -> VideoRecipe:
    """The shipped CarRacing: two hours on two cores."""
    return VideoRecipe(
        name="carracing-video",
        world="carracing",
        moving=MovingCamera(),
        read_states=True,
        codec_stage=StageConfig(steps=6000, batch=64, lr=2e-3),
        dynamics_stage=StageConfig(steps=6000, batch=512, lr=1e-3),
        readings_stage=StageConfig(steps=1500, batch=1024, lr=1e-3),
        rollout=(1, 2, 3, 4, 6, 8, 12, 16),
        alone=0.3,
        token_jitter=0.02,
    )


def _video(size: str) -> VideoRecipe:
    """Any world: it fits itself to the data's camera, actions and states; ``size`` is how much of everything."""
    codec, moving, stream, steps, batch = {
        "tiny": (CodecConfig(1, 16, 24), CodecConfig(1, 32, 12, "conv"), StreamConfig(96, 2, 3, 4), (600, 1500), 192),
        "small": (
            CodecConfig(1, 24, 40),
            CodecConfig(1, 48, 20, "conv"),
            StreamConfig(192, 3, 4, 4),
            (2000, 4000),
            384,
        ),
        "base": (CodecConfig(1, 32, 64), CodecConfig(1, 64, 24, "conv"), StreamConfig(256, 4, 4, 4), (4000, 8000), 768),
    }[size]
    return VideoRecipe(
        name=f"video-{size}",
        world="",
        codec=codec,
        moving=MovingCamera(moving),
        stream=stream,
        codec_stage=StageConfig(steps=steps[0], batch=48, lr=2e-3),
        dynamics_stage=StageConfig(steps=steps[1], batch=batch, lr=1e-3),
        readings_stage=StageConfig(steps=steps[0] // 2, batch=512, lr=1e-3),
        read_states=True,
        alone=0.4,
        token_jitter=0.01,
    )


SIZES = ("tiny", "small", "base")
"""The dial of the recipes that take any world: minutes, most of an hour, hours."""
RECIPES: dict[str, Callable[[], Recipe]] = {
    "pusht-video": pusht_video,
    "pusht-video-mini": pusht_video_mini,
    "pusht-wam": pusht_wam,
    "pusht-wam-mini": pusht_wam_mini,
    "pusht-latent": pusht_latent,
    "pusht-latent-mini": pusht_latent_mini,
    "carracing-video": carracing_video,
    "tworoom-latent": tworoom_latent,
    "tworoom-latent-mini": tworoom_latent_mini,
    **{f"video-{size}": functools.partial(_video, size) for size in SIZES},
}


def find_recipe(name: str, size: str | None = None) -> Recipe:
    """The recipe called ``name``, at ``size`` where it comes in several; an unknown one is a ValueError that names the nearest."""
    family = name.removesuffix(f"-{name.rsplit('-', 1)[-1]}") if name.endswith(SIZES) else name
    if f"{family}-{SIZES[0]}" in RECIPES:
        name = f"{family}-{size}" if size else name if name != family else f"{family}-small"
    elif size:
        raise ValueError(f"--size: recipe {name!r} comes in one size; leave it out, or choose the recipe 'video'")
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no recipe {name!r}; there are {sorted(RECIPES)}{hint}")
    return RECIPES[name]()
