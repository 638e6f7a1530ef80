"""Recipes of CarRacing's learned worlds."""

from __future__ import annotations

from neuralsim.training.recipes import MovingCamera, StageConfig, VideoRecipe


def carracing_video() -> VideoRecipe:
    """Return the recipe of the shipped CarRacing: two hours on two cores."""
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
