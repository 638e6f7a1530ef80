"""Image fitting: images of any size become frames of a world's size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from neuralsim.data.errors import CorruptDataError

Size = int | tuple[int, int]
"""A frame's side in pixels, or its height and width."""
COLOURS = (3, 4)
"""Channels of an image: red, green, blue, and perhaps transparency."""
SMALLEST = 8
"""Least height and width of an image whose channels come first; ``(3, 4, 4)`` is rather a stack of matrices."""
Images = tuple[np.ndarray, ...]
"""Simultaneous images of the chosen cameras: uint8 ``(h, w, 3)`` each."""


def height_and_width(size: Size) -> tuple[int, int]:
    """Return ``size`` as two numbers."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@dataclass(frozen=True)
class ImageResizer:
    """Fits images of any size into frames ``(height, width, 3)``; averages over areas where they shrink.

    ``stretch`` fills the frame; ``pad`` keeps the aspect and leaves the rest black.
    """

    height: int
    width: int
    how: Literal["stretch", "pad"] = "stretch"

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Resize uint8 ``(h, w, 3)`` to uint8 ``(height, width, 3)``."""
        inner = self.inner(*image.shape[:2])
        if image.shape[:2] != inner:
            import cv2  # heavy

            shrinks = inner[0] <= image.shape[0] and inner[1] <= image.shape[1]
            image = cv2.resize(image, inner[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        if inner == (self.height, self.width):
            return np.array(image)
        frame = np.zeros((self.height, self.width, 3), np.uint8)
        top, left = (self.height - inner[0]) // 2, (self.width - inner[1]) // 2
        frame[top : top + inner[0], left : left + inner[1]] = image
        return frame

    def about(self, height: int, width: int) -> str:
        """Describe the change to images of this size, e.g. ``400x600 -> 64x96, resized``."""
        if (height, width) == (self.height, self.width):
            return f"{height}x{width}, as they come"
        change, inner = f"{height}x{width} -> {self.height}x{self.width}, ", self.inner(height, width)
        if inner != (self.height, self.width):
            return change + f"resized to {inner[0]}x{inner[1]} and padded with black"
        return change + ("resized" if height * self.width == width * self.height else "resized and stretched")

    def inner(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the part of the frame that an image of this size fills."""
        if self.how == "stretch":
            return self.height, self.width
        scale = min(self.height / height, self.width / width)
        return max(1, round(height * scale)), max(1, round(width * scale))


@dataclass(frozen=True)
class PixelLayout:
    """Order and number of the channels of an array of images."""

    first: bool
    channels: int

    @classmethod
    def of(cls, shape: tuple[int, ...], dtype: np.dtype[Any] | type) -> PixelLayout | None:
        """The layout of images of ``shape``, ``(h, w, c)`` or ``(c, h, w)``; None for what is no image with colours."""
        kind = np.dtype(dtype)
        if len(shape) != 3 or not (kind == np.uint8 or kind.kind == "f") or 0 in shape:
            return None
        if shape[-1] in COLOURS:
            return cls(False, shape[-1])
        return cls(True, shape[0]) if shape[0] in COLOURS and min(shape[1:]) >= SMALLEST else None

    def pixels(self, block: np.ndarray, brightest: float) -> np.ndarray:
        """Convert images ``(n, ...)`` to uint8 ``(n, h, w, 3)``; transparency is dropped, floats in 0..``brightest`` are rounded.

        Raises CorruptDataError for floats out of range.
        """
        block = np.moveaxis(block, 1, -1)[..., :3] if self.first else block[..., :3]
        if block.dtype == np.uint8:
            return block
        if block.size and (not np.isfinite(block).all() or block.min() < 0 or block.max() > brightest):
            raise CorruptDataError(f"expected pixels in 0..{brightest:g}, got {block.min():g} to {block.max():g}")
        return np.round(block * (255 / brightest)).astype(np.uint8)


@dataclass(frozen=True)
class CameraLayout:
    """Places the images of several cameras side by side, each padded into a square of side ``size``.

    With ``size`` None an image keeps its own size.
    """

    size: int | None

    def shape(self, cameras: int) -> tuple[int, int]:
        """Height and width of a frame of ``cameras`` images; needs a size."""
        assert self.size is not None
        return self.size, self.size * cameras

    def __call__(self, images: Images) -> np.ndarray:
        """Join images uint8 ``(h, w, 3)`` into one frame uint8 ``(height, width, 3)``."""
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
                raise CorruptDataError(f"expected uint8 images (h, w, 3), got {image.dtype} {image.shape}")
        if self.size is None:
            return np.concatenate(images, axis=1)
        fit = ImageResizer(self.size, self.size, "pad")
        return np.concatenate([fit(image) for image in images], axis=1)

    def about(self, camera: str, height: int, width: int) -> str:
        """Describe the change to ``camera``'s images of this size; empty where there is none."""
        if self.size is None or height == width == self.size:
            return ""
        inner = ImageResizer(self.size, self.size, "pad").inner(height, width)
        padded = "" if height == width else f", the rest of {self.size} x {self.size} left black"
        return f"camera {camera}: frames of {height} x {width} are resized to {inner[0]} x {inner[1]}{padded}"
