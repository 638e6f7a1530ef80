"""Camera: how a robot's picture becomes a frame of a world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from neuralsim.data.images import ImageResizer
from neuralsim.spec import WorldSpec


@dataclass(frozen=True)
class Camera:
    """name: which entry of an observation it is. crop: the part that is looked at, ``(top, left, height, width)`` in pixels of
    the camera; all of it by default. how: see ImageResizer."""

    name: str = "camera"
    crop: tuple[int, int, int, int] | None = None
    how: Literal["stretch", "pad"] = "stretch"

    def __post_init__(self) -> None:
        if self.crop is not None and (min(self.crop[:2]) < 0 or min(self.crop[2:]) < 1):
            raise ValueError(
                f"camera {self.name!r}: crop: expected top, left >= 0 and height, width >= 1, got {self.crop}"
            )

    def frame(self, observation: Mapping[str, Any], spec: WorldSpec) -> np.ndarray:
        """uint8 ``(height, width, 3)`` as ``spec`` has it, or a ValueError that says what is wrong with the picture."""
        if self.name not in observation:
            raise ValueError(f"camera {self.name!r}: not among what the robot observes: {', '.join(observation)}")
        picture = np.asarray(observation[self.name])
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
            raise ValueError(
                f"camera {self.name!r}: expected uint8 (h, w, 3), got {picture.dtype} {picture.shape}; colours last, 0..255"
            )
        if self.crop is not None:
            self.check(picture.shape)
            top, left, height, width = self.crop
            picture = picture[top : top + height, left : left + width]
        return ImageResizer(spec.height, spec.width, self.how)(picture)

    def check(self, shape: tuple[int, ...]) -> None:
        """A ValueError unless pictures of this shape, ``(h, w, 3)``, hold the crop."""
        if self.crop is None:
            return
        top, left, height, width = self.crop
        if top + height > shape[0] or left + width > shape[1]:
            raise ValueError(
                f"camera {self.name!r}: its crop {self.crop} (top, left, height, width) reaches beyond its picture of "
                f"{shape[0]}x{shape[1]} pixels"
            )
