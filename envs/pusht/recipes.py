"""Recipes of Push-T's learned worlds."""

from __future__ import annotations

from dataclasses import replace

from neuralsim.models.joint_stream import JointConfig
from neuralsim.models.latent_world import LatentConfig
from neuralsim.models.video_wam import CodecConfig, StreamConfig
from neuralsim.training.recipes import LatentRecipe, StageConfig, VideoRecipe


def pusht_video() -> VideoRecipe:
    """Return the recipe of the shipped Push-T: an hour or two on two cores."""
    return VideoRecipe(name="pusht-video", world="pusht")


def pusht_video_mini() -> VideoRecipe:
    """Return pusht-video in miniature, for tests and to see a training end to end: seconds, and useless rollouts."""
    return VideoRecipe(
        name="pusht-video-mini",
        world="pusht",
        codec=CodecConfig(tokens=2, size=8, conv_width=16),
        stream=StreamConfig(width=32, layers=2, heads=2, window=3),
        codec_stage=StageConfig(steps=200, batch=16, lr=4e-3, warmup=10, ema=0.95),
        dynamics_stage=StageConfig(steps=60, batch=32, lr=2e-3, warmup=10),
        readings_stage=StageConfig(steps=40, batch=64, lr=2e-3, warmup=10),
        rollout=(2, 3),
        starts=8,
    )


def pusht_wam() -> VideoRecipe:
    """Return the recipe of Push-T in all roles: it simulates as pusht-video does, and acts, infers, foresees and dreams."""
    return replace(pusht_video(), name="pusht-wam", also=("pusht-oracle", "pusht-filmed"), joint=JointConfig())


def pusht_wam_mini() -> VideoRecipe:
    """Return pusht-wam in miniature, for tests."""
    return replace(
        pusht_video_mini(),
        name="pusht-wam-mini",
        joint=JointConfig(chunk=6, patch=2),
        joint_stage=StageConfig(steps=60, batch=32, lr=2e-3, warmup=10),
    )


def pusht_latent() -> LatentRecipe:
    """Return the recipe of the compact Push-T, for planners: half an hour on two cores."""
    return LatentRecipe(name="pusht-latent", world="pusht")


def pusht_latent_mini() -> LatentRecipe:
    """Return pusht-latent in miniature, for tests."""
    return LatentRecipe(
        name="pusht-latent-mini",
        world="pusht",
        latent=LatentConfig(size=8, keypoints=8, conv_width=16, width=32, depth=1, members=2, block=3),
        encoder_stage=StageConfig(steps=120, batch=16, lr=4e-3, warmup=10, ema=0.95),
        decoder_stage=StageConfig(steps=60, batch=16, lr=4e-3, warmup=10, ema=0.95),
        dynamics_stage=StageConfig(steps=100, batch=64, lr=4e-3, warmup=10),
        readings_stage=StageConfig(steps=40, batch=64, lr=2e-3, warmup=10),
        hops=(1, 2, 3),
        starts=8,
    )
