"""ImageResizer: how an environment's own images become frames of a world's size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

Size = int | tuple[int, int]
"""A frame's side in pixels, or its height and width."""


def height_and_width(size: Size) -> tuple[int, int]:
    """``size`` as two numbers."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@dataclass(frozen=True)
class ImageResizer:
    """Images of any size -> frames ``(height, width, 3)``; averaged over areas where they shrink. ``stretch`` fills the frame,
    ``pad`` keeps the aspect and leaves the rest black."""

    height: int
    width: int
    how: Literal["stretch", "pad"] = "stretch"

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 ``(h, w, 3)`` -> uint8 ``(height, width, 3)``."""
        inner = self._inner(*image.shape[:2])
        if image.shape[:2] != inner:
            shrinks = inner[0] <= image.shape[0] and inner[1] <= image.shape[1]
            image = cv2.resize(image, inner[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        if inner == (self.height, self.width):
            return np.array(image)
        frame = np.zeros((self.height, self.width, 3), np.uint8)
        top, left = (self.height - inner[0]) // 2, (self.width - inner[1]) // 2
        frame[top : top + inner[0], left : left + inner[1]] = image
        return frame

    def about(self, height: int, width: int) -> str:
        """What happens to images of this size, e.g. ``400x600 -> 64x96, resized``."""
        if (height, width) == (self.height, self.width):
            return f"{height}x{width}, as they come"
        told, inner = f"{height}x{width} -> {self.height}x{self.width}, ", self._inner(height, width)
        if inner != (self.height, self.width):
            return told + f"resized to {inner[0]}x{inner[1]} and padded with black"
        return told + ("resized" if height * self.width == width * self.height else "resized and stretched")

    def _inner(self, height: int, width: int) -> tuple[int, int]:
        """The part of the frame that an image of this size fills."""
        if self.how == "stretch":
            return self.height, self.width
        scale = min(self.height / height, self.width / width)
        return max(1, round(height * scale)), max(1, round(width * scale))
