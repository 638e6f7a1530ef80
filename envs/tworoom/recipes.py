"""Recipes of TwoRoom's learned worlds."""

from __future__ import annotations

from neuralsim.models.latent_world import LatentConfig
from neuralsim.training.recipes import LatentRecipe, StageConfig


def tworoom_latent() -> LatentRecipe:
    """Return the recipe of the compact TwoRoom: a few minutes on two cores."""
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
    """Return tworoom-latent in miniature, for tests."""
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
