"""ConvCodec: frame <-> latent tokens for a camera that moves, where nothing in the frame stands still.

A convolutional autoencoder whose narrow middle is folded to a vector. Its numbers are standardised over the batch while
it learns, and shaken by noise, so that they fill their range evenly and near numbers draw near frames (a variational
autoencoder's two virtues without its loss; Kingma and Welling 2013, arXiv 1312.6114). Detail counts more than flat colour:
edges are what the eye and the driver go by.
Shapes as in ``neuralsim.models.codec``; height and width any multiple of 8.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from neuralsim.models.codec import Codec, ResidualConv, to_pixels

NARROW = 16
"""Channels of the encoder's last map, an eighth of the frame wide and high."""
FOLDED, RANK = 512, 128
"""Width of the decoder's first layer, and how much of it goes on to the map: in one piece that would be a quarter of all weights."""


class ConvCodec(Codec):
    """See the module's text."""

    def __init__(self, height: int, width: int, tokens: int, size: int, conv_width: int) -> None:
        super().__init__(height, width, tokens, size)
        w, cells, numbers = conv_width, (height // 8, width // 8), tokens * size
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, w, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(w, 2 * w, 4, 2, 1),
            ResidualConv(2 * w),
            nn.SiLU(),
            nn.Conv2d(2 * w, 4 * w, 4, 2, 1),
            ResidualConv(4 * w),
            nn.SiLU(),
            nn.Conv2d(4 * w, NARROW, 1),
            nn.Flatten(),
            nn.Linear(NARROW * cells[0] * cells[1], numbers),
        )
        self.decoder = nn.Sequential(
            nn.Linear(numbers, FOLDED),
            nn.SiLU(),
            nn.Linear(FOLDED, RANK, bias=False),
            nn.Linear(RANK, 2 * w * cells[0] * cells[1]),
            nn.Unflatten(1, (2 * w, *cells)),
            nn.Conv2d(2 * w, 4 * w, 3, padding=1),
            ResidualConv(4 * w),
            nn.SiLU(),
            nn.Conv2d(4 * w, 8 * w, 1),
            nn.PixelShuffle(2),
            ResidualConv(2 * w),
            nn.SiLU(),
            nn.Conv2d(2 * w, 4 * w, 1),
            nn.PixelShuffle(2),
            ResidualConv(w),
            nn.SiLU(),
            nn.Conv2d(w, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def numbers(self, pixels: torch.Tensor) -> torch.Tensor:
        """See Codec."""
        moving = (pixels - self.background).contiguous(memory_format=torch.channels_last)
        return self.encoder(moving).float()

    def draw(self, numbers: torch.Tensor) -> torch.Tensor:
        """See Codec: the decoder knows the numbers standardised."""
        return self._paint((numbers - self.mean) / self.std)

    def loss(self, frames: torch.Tensor, noise: torch.Tensor, jitter: float, emphasis: float) -> torch.Tensor:
        """See Codec: detail matters, where a pixel differs from its surroundings; ``jitter`` is in standard deviations."""
        pixels = to_pixels(frames)
        detail = (pixels - F.avg_pool2d(pixels, 5, 1, 2)).abs().amax(1, keepdim=True)
        raw = self.numbers(pixels)
        standard = (raw - raw.mean(0)) / (raw.var(0, correction=0) + 1e-5).sqrt()
        drawn = self._paint(standard + jitter * noise)
        return ((drawn - pixels).square() * (1 + emphasis * detail)).mean((1, 2, 3))

    def _paint(self, standard: torch.Tensor) -> torch.Tensor:
        return self.decoder(standard).float() + self.background
