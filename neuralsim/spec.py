"""WorldSpec: what a world looks like from outside, in one value.

Everything that must agree between data, model, environments and robots stands here once: frame size, the action space
with names, units and scale, the control rate, and how many past frames a model may read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class WorldSpec:
    """A world's outward contract.

    Frames are uint8 ``(height, width, 3)``. Actions are float32 in ``[-1, 1]`` per dimension, and physically
    ``action_offset + action_scale * action`` in ``action_units`` per control step (no offset given: none).
    """

    name: str
    height: int
    width: int
    action_names: tuple[str, ...]
    action_units: tuple[str, ...]
    action_scale: tuple[float, ...]
    rate_hz: float
    context: int
    action_offset: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for field in ("action_names", "action_units", "action_scale"):  # JSON gives lists back
            object.__setattr__(self, field, tuple(getattr(self, field)))
        object.__setattr__(self, "action_offset", tuple(self.action_offset) or (0.0,) * len(self.action_names))
        if not len(self.action_offset) == len(self.action_names) == len(self.action_units) == len(self.action_scale):
            raise ValueError(
                f"WorldSpec {self.name!r}: action_names, action_units, action_scale and action_offset must be equally "
                f"long; got {len(self.action_names)}, {len(self.action_units)}, {len(self.action_scale)} and "
                f"{len(self.action_offset)}"
            )
        if self.height <= 0 or self.width <= 0 or self.height % 8 or self.width % 8:
            raise ValueError(
                f"WorldSpec {self.name!r}: frame size must be a positive multiple of 8, got {self.height}x{self.width}"
            )
        if self.rate_hz <= 0 or self.context < 1:
            raise ValueError(
                f"WorldSpec {self.name!r}: rate_hz must be > 0 and context >= 1, got {self.rate_hz} and {self.context}"
            )

    @property
    def action_size(self) -> int:
        """Number of action dimensions."""
        return len(self.action_names)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """``(height, width, 3)``."""
        return (self.height, self.width, 3)

    def to_json(self) -> str:
        """One line of JSON; ``from_json`` gives an equal spec back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> WorldSpec:
        """The inverse of ``to_json``."""
        return cls(**json.loads(text))

    def check_frames(self, frames: object, what: str = "frames") -> np.ndarray:
        """Return ``frames`` as uint8 ``(..., h, w, 3)`` or raise a ValueError that names what came and what is
        expected."""
        array = np.asarray(frames)
        if array.dtype != np.uint8:
            raise ValueError(
                f"{what}: expected uint8 pixels in 0..255, got dtype {array.dtype}; "
                "convert with (x * 255).round().astype(np.uint8) if yours are floats in 0..1"
            )
        if array.ndim < 3 or array.shape[-3:] != self.frame_shape:
            raise ValueError(
                f"{what}: expected shape (..., {self.height}, {self.width}, 3) for world {self.name!r}, got {array.shape}; "
                "resize the frames and put channels last"
            )
        return array

    def check_actions(self, actions: object, what: str = "action") -> np.ndarray:
        """Return ``actions`` as float32 ``(..., a)`` in [-1, 1] or raise a ValueError that says what is wrong."""
        try:
            array = np.asarray(actions, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{what}: expected numbers of shape (..., {self.action_size}), got {actions!r}") from error
        if array.ndim < 1 or array.shape[-1] != self.action_size:
            raise ValueError(
                f"{what}: expected shape (..., {self.action_size}) ({', '.join(self.action_names)}), got {array.shape}"
            )
        if not np.isfinite(array).all():
            raise ValueError(
                f"{what}: expected finite numbers, got NaN or infinity at {np.argwhere(~np.isfinite(array))[0].tolist()}"
            )
        if array.size and np.abs(array).max() > 1 + 1e-6:
            raise ValueError(
                f"{what}: expected values in [-1, 1], got a value of magnitude {np.abs(array).max():.4g}; one unit means "
                f"{', '.join(f'{s:g} {u}' for s, u in zip(self.action_scale, self.action_units, strict=True))} per step"
            )
        return np.clip(array, -1, 1)
