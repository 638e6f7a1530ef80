"""Recipes: complete, frozen training configurations. A world's own are in its record (envs/registry); here are those for any world."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from neuralsim.models.joint_stream import JointConfig
from neuralsim.models.latent_world import LatentConfig
from neuralsim.models.video_wam import CodecConfig, StreamConfig
from neuralsim.training.recipe_registry import load_recipe, recipe_names, register_recipe


@dataclass(frozen=True)
class StageConfig:
    """Duration and optimiser settings of one stage of training."""

    steps: int
    """Optimiser steps."""
    batch: int
    """Rows per batch."""
    lr: float
    """Peak learning rate: after the warm-up, a cosine down to a fiftieth."""
    ema: float = 0.998
    """Decay of the averaged weights."""
    warmup: int = 100
    """Steps of linear warm-up."""


@dataclass(frozen=True)
class MovingCamera:
    """Settings for a camera that moves: frames are encoded by convolutions."""

    codec: CodecConfig = field(default_factory=lambda: CodecConfig(tokens=1, size=64, conv_width=24, kind="conv"))
    emphasis: float = 4.0
    """Extra weight of pixels per difference from their surroundings."""
    jitter: float = 0.1
    """Standard deviation of the noise on the code while the codec trains, in standard deviations of the code."""


@dataclass(frozen=True)
class VideoRecipe:
    """All settings of training a VideoWAM except the data.

    Stages: the codec on single frames; the dynamics on tokens, on the model's own rollouts; the heads (reward, end, state) on real
    and imagined tokens; with a joint stream, that on chunks. The dynamics stage's batch counts imagined frames: rows times length.
    """

    name: str
    world: str
    """World whose episodes it learns from; by default they lie in data/<world>. Empty for any world."""
    also: tuple[str, ...] = ()
    """Further stores in data/ that it learns from, unless others are given."""
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
    """Replacement of codec, emphasis and place_jitter where the data's camera moves; None: the camera is fixed."""
    read_states: bool = False
    """Learn to estimate the simulator states in the data."""
    rollout: tuple[int, ...] = (1, 1, 2, 2, 3, 4, 6, 8, 12)
    """Lengths of the rollouts over the course of the dynamics stage, in equal parts."""
    alone: float = 0.8
    """Share of the rollouts that read the newest frame only: half the work, and as accurate where a frame shows the whole state
    (measured on Push-T: IoU after 10 steps 0.750 alone, 0.749 with four frames)."""
    sampler_every: int = 8
    """Dynamics steps from one rollout in chunks, by up to four denoising passes, to the next."""
    forcing_every: int = 16
    """Dynamics steps from one batch of diffusion forcing (independent noise levels), instead of a rollout, to the next."""
    token_jitter: float = 0.004
    """Standard deviation of the noise on the tokens that a rollout starts from, in standard deviations of the data."""
    joint: JointConfig | None = None
    """Sizes of the joint stream, for the roles act, infer, foresee and dream; None for a world that simulates only."""
    joint_stage: StageConfig = StageConfig(steps=10000, batch=256, lr=1e-3)
    joint_mix: Mapping[str, float] = field(default_factory=lambda: {"demonstrations": 0.65, "play": 0.25, "video": 0.1})
    """Shares of the joint stage's batches by kind of data; video has no actions."""
    demonstrator: str = "oracle"
    """Policy to imitate, by its name in the episodes' provenance (oracle, oracle-near-goal)."""
    starts: int = 64
    """Start histories shipped with the world."""


@dataclass(frozen=True)
class LatentRecipe:
    """All settings of training a LatentWorld except the data.

    Stages: encoder, first predictors and state probe together; the decoder; the predictors alone; the heads. The encoder stage's
    batch counts windows of three frames, the dynamics stage's predictions: rows times blocks.
    """

    name: str
    world: str
    """World whose episodes it learns from; by default they lie in data/<world>. Empty for any world."""
    latent: LatentConfig = field(default_factory=LatentConfig)
    encoder_stage: StageConfig = StageConfig(steps=2000, batch=48, lr=1.5e-3)
    decoder_stage: StageConfig = StageConfig(steps=1200, batch=64, lr=2e-3)
    dynamics_stage: StageConfig = StageConfig(steps=16000, batch=1024, lr=1.5e-3)
    readings_stage: StageConfig = StageConfig(steps=1500, batch=1024, lr=1e-3)
    regularity: float = 0.05
    """Weight of the pull towards a standard normal (SIGReg): too little, and the vectors collapse."""
    probe: float = 1.0
    """Weight of the linear probe of the simulator state, where states are known; 0 learns without them."""
    emphasis: float = 15.0
    """Extra weight, for the decoder, of pixels that differ from the background."""
    jitter: float = 0.01
    """Standard deviation of the noise on the vectors that rollouts start from and the decoder reads."""
    hops: tuple[int, ...] = (1, 1, 2, 2, 3, 4, 5)
    """Blocks per rollout over the course of the dynamics stage, in equal parts."""
    starts: int = 64
    """Start histories shipped with the world."""


Recipe = VideoRecipe | LatentRecipe


def _video(size: str) -> VideoRecipe:
    """Return the recipe for any world, which adapts to the data's camera, actions and states, at ``size``."""
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
"""Sizes of the recipes for any world: minutes, most of an hour, hours."""
for _size in SIZES:
    register_recipe(f"video-{_size}", functools.partial(_video, _size))


def find_recipe(name: str, size: str | None = None) -> Recipe:
    """Return the recipe ``name``, at ``size`` where it has several; an unknown one is a ValueError that names the nearest."""
    names = recipe_names()
    family = name.removesuffix(f"-{name.rsplit('-', 1)[-1]}") if name.endswith(SIZES) else name
    if f"{family}-{SIZES[0]}" in names:
        name = f"{family}-{size}" if size else name if name != family else f"{family}-small"
    elif size:
        raise ValueError(f"--size: recipe {name!r} has one size; leave it out, or choose the recipe 'video'")
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no recipe {name!r}; there are {names}{hint}")
    recipe: Recipe = load_recipe(name)
    return recipe
