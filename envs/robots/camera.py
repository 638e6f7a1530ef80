"""Camera: converts a robot's picture to a frame of a world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from neuralsim.data.images import ImageResizer
from neuralsim.spec import WorldSpec


@dataclass(frozen=True)
class Camera:
    """Camera of a robot, and the part of its picture that is used."""

    name: str = "camera"
    """Entry of the observation."""
    crop: tuple[int, int, int, int] | None = None
    """Part that is kept, ``(top, left, height, width)`` in pixels of the camera; all of it by default."""
    how: Literal["stretch", "pad"] = "stretch"
    """Way to fit other proportions: see ImageResizer."""

    def __post_init__(self) -> None:
        if self.crop is not None and (min(self.crop[:2]) < 0 or min(self.crop[2:]) < 1):
            raise ValueError(
                f"camera {self.name!r}: crop: expected top, left >= 0 and height, width >= 1, got {self.crop}"
            )

    def frame(self, observation: Mapping[str, Any], spec: WorldSpec) -> np.ndarray:
        """Crop and resize the picture to uint8 ``(height, width, 3)`` of ``spec``. Raises ValueError for no such picture."""
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
        """Raise ValueError unless pictures of this shape, ``(h, w, 3)``, contain the crop."""
        if self.crop is None:
            return
        top, left, height, width = self.crop
        if top + height > shape[0] or left + width > shape[1]:
            raise ValueError(
                f"camera {self.name!r}: its crop {self.crop} (top, left, height, width) reaches beyond its picture of "
                f"{shape[0]}x{shape[1]} pixels"
            )
