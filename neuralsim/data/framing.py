"""Framing: how the images of other people's cameras become one frame of a world."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neuralsim.data.errors import CorruptDataError
from neuralsim.formats.dataset_reader import Images


@dataclass(frozen=True)
class Framing:
    """Each image is area-resized into a square of side ``size``, its aspect kept and the rest left black; several cameras
    stand side by side. With ``size`` None an image stays as it is.
    """

    size: int | None

    def shape(self, cameras: int) -> tuple[int, int]:
        """Height and width of the frames that ``cameras`` images make; needs a size."""
        assert self.size is not None
        return self.size, self.size * cameras

    def __call__(self, images: Images) -> np.ndarray:
        """Images uint8 ``(h, w, 3)`` -> one frame uint8 ``(height, width, 3)``."""
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
                raise CorruptDataError(f"expected uint8 images (h, w, 3), got {image.dtype} {image.shape}")
        return np.concatenate([self._fit(image) for image in images], axis=1)

    def about(self, camera: str, height: int, width: int) -> str:
        """What happens to ``camera``'s images of this size; empty where nothing does."""
        if self.size is None or height == width == self.size:
            return ""
        inner = self._inner(height, width)
        padded = "" if height == width else f", the rest of {self.size} x {self.size} left black"
        return f"camera {camera}: frames of {height} x {width} are resized to {inner[0]} x {inner[1]}{padded}"

    def _inner(self, height: int, width: int) -> tuple[int, int]:
        assert self.size is not None
        longest = max(height, width)
        return max(1, round(height * self.size / longest)), max(1, round(width * self.size / longest))

    def _fit(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        if self.size is None or height == width == self.size:
            return image
        import cv2  # heavy

        inner = self._inner(height, width)
        how = cv2.INTER_AREA if max(height, width) > self.size else cv2.INTER_LINEAR
        small = cv2.resize(image, (inner[1], inner[0]), interpolation=how)
        frame = np.zeros((self.size, self.size, 3), np.uint8)
        top, left = (self.size - inner[0]) // 2, (self.size - inner[1]) // 2
        frame[top : top + inner[0], left : left + inner[1]] = small
        return frame
