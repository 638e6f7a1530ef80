"""EvalConfig: how much of a world model is evaluated, and at which steps."""

from __future__ import annotations

from dataclasses import dataclass

STRIDE = 10
"""Steps over which motion is measured, over which success is predicted, and after which futures are compared."""


@dataclass(frozen=True)
class EvalConfig:
    """Extent of an evaluation."""

    rollouts: int = 256
    """Open-loop rollouts of 64 steps; every other sample size follows from it."""
    seed: int = 0
    """Seed of the choice of windows, of the model's noise and of the confidence intervals."""
    horizons: tuple[int, ...] = (1, 5, 10, 20, 30, 64)
    """Steps that are reported."""
    chunk: int = 3
    """Frames denoised together in the chunk-wise row; 1 leaves it out."""
    denoise: tuple[int, ...] = (1, 2, 4)
    """Numbers of denoising steps to compare."""
    batch: int = 32
    """Rollouts imagined at once."""
    precision: str = "auto"
    """auto, float32 or bfloat16."""
    all_held_out: bool = False
    """Measure on every episode of the store, because training never saw any of it."""

    def __post_init__(self) -> None:
        if self.rollouts < 2 or self.batch < 1 or not self.horizons or min(self.horizons) < 1:
            raise ValueError(
                f"EvalConfig: rollouts must be 2 or more, batch 1 or more and horizons 1 or more; got {self.rollouts}, "
                f"{self.batch} and {self.horizons}"
            )

    @property
    def frame_steps(self) -> tuple[int, ...]:
        """Steps whose frames are compared: the horizons, every tenth, and enough between them for a smooth curve."""
        last = max(self.horizons)
        return tuple(
            sorted({*self.horizons, *range(0, last + 1, STRIDE), *range(min(10, last) + 1), *range(0, last + 1, 2)})
        )

    @property
    def side_rollouts(self) -> int:
        """Rollouts of the side measurements (chunk-wise, denoising steps, controllability)."""
        return min(self.rollouts, max(8, self.rollouts // 4))
