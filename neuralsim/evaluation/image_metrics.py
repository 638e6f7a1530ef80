"""Image metrics: squared error, PSNR, SSIM and mask overlap of uint8 frames."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

ROUNDING_ERROR = 1 / 12
"""Mean squared error of rounding to whole grey levels: smaller errors count as this one, which caps PSNR at 58.9 dB."""


def squared_error(frames: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the mean squared difference in grey levels of uint8 ``(..., h, w, 3)``, float64 ``(...)``."""
    difference = frames.astype(np.int16) - other.astype(np.int16)
    return np.square(difference, dtype=np.int32).mean((-3, -2, -1))


def psnr(error: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio in dB of a mean squared error in grey levels; at most 58.9."""
    return 10 * np.log10(255.0**2 / np.maximum(error, ROUNDING_ERROR))


def ssim(frames: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the structural similarity of uint8 ``(n, h, w, 3)`` pairs, ``(n,)`` in -1..1, 1 for equal frames.

    Wang et al. 2004: Gaussian window of 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, per channel, mean over whole windows; as
    scikit-image gives with ``gaussian_weights=True, use_sample_covariance=False`` away from the border.
    """
    x, y = (
        torch.from_numpy(np.ascontiguousarray(f)).movedim(-1, 1).flatten(0, 1)[:, None].double()
        for f in (frames, other)
    )
    line = torch.exp(-0.5 * ((torch.arange(11, dtype=torch.float32) - 5) / 1.5) ** 2).double()
    line = line / line.sum()

    def blur(image: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(image, line.view(1, 1, 11, 1)), line.view(1, 1, 1, 11))

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    cov = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean((1, 2, 3)).view(len(frames), -1).mean(1).numpy()


def mask_iou(mask: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the intersection over union of bool ``(..., h, w)``; NaN where both are empty, so that an empty frame scores nothing."""
    union = (mask | other).sum((-2, -1))
    with np.errstate(invalid="ignore"):
        return np.where(union > 0, (mask & other).sum((-2, -1)) / np.maximum(union, 1), np.nan)
