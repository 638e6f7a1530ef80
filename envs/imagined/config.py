"""Settings of an imagined environment, shared by its three interfaces. Cheap to import: no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from neuralsim.task import Task

RENDER_MODES = ["rgb_array"]
RENDER_FPS = 10
"""Frames per second in the metadata of a class; an environment renders at its world's own rate."""


@dataclass(frozen=True)
class ImaginedEnvConfig:
    """Settings of ImaginedEnv, ImaginedVectorEnv and ImaginedVecEnv; each is also a keyword of ``gym.make`` and ``gym.make_vec``."""

    observation: Literal["pixels", "features"] = "pixels"
    """``pixels``: uint8 ``(h, w, 3)``; ``features``: float32 ``(d,)``, the model's own; pixels are then decoded only to render."""
    task: Task | None = None
    """Reward and termination (None: the heads that the model learned)."""
    horizon: int | None = 300
    """Steps until truncation (None: never)."""
    render_mode: str | None = None
    """``rgb_array``, or None for no rendering."""
    chunk: int | None = None
    """Actions per step (None: one, without a chunk axis). A step with k actions plays k frames, sums their rewards and stops at the
    first end."""
    denoise_steps: int | None = None
    """Denoising steps per frame, for models that have them (None: the model's own)."""
    temperature: float = 1.0
    """Scale of the model's noise."""
    uncertainty_limit: float | None = None
    """Uncertainty beyond which an episode is truncated (None: the world's calibrated threshold)."""
    lean: bool = False
    """Compute only what the features need, of an ensemble one member; the uncertainty is then meaningless."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    precision: str = "auto"
    """``auto`` (bfloat16 where the hardware multiplies in it), ``float32`` or ``bfloat16``."""

    def __post_init__(self) -> None:
        if self.observation not in ("pixels", "features"):
            raise ValueError(f"observation: expected 'pixels' or 'features', got {self.observation!r}")
        if self.render_mode not in (None, *RENDER_MODES):
            raise ValueError(f"render_mode: expected None or one of {RENDER_MODES}, got {self.render_mode!r}")
        if self.chunk is not None and (
            isinstance(self.chunk, bool) or not isinstance(self.chunk, int) or self.chunk < 1
        ):
            raise ValueError(f"chunk: expected None or a whole number of at least 1, got {self.chunk!r}")

    @classmethod
    def from_keywords(cls, config: Self | None, keywords: Mapping[str, Any]) -> Self:
        """Return ``config`` (None: the defaults) with ``keywords`` in place of its values; a TypeError for an unknown one."""
        if config is not None and not isinstance(config, cls):
            raise TypeError(f"config: expected an {cls.__name__} or None, got {config!r}; give settings as keywords")
        for name, hint in cls.unknown(keywords).items():  # in Python's words: TorchRL looks for them
            raise TypeError(f"got an unexpected keyword argument {name!r}; {hint}")
        return replace(cls() if config is None else config, **keywords)

    @classmethod
    def unknown(cls, keywords: Iterable[str]) -> dict[str, str]:
        """Return those of ``keywords`` that are no settings, each with a hint at what there is instead."""
        names = [field.name for field in fields(cls)]
        near = {name: difflib.get_close_matches(name, names, 1) for name in keywords if name not in names}
        return {n: f"did you mean {m[0]!r}?" if m else f"there are {', '.join(names)}" for n, m in near.items()}
