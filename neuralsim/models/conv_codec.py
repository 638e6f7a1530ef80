"""ConvCodec: a convolutional autoencoder for moving cameras, where no background stands still.

Its bottleneck is one vector. During training its numbers are standardised over the batch and perturbed by noise, so that they
fill their range evenly and nearby numbers decode to similar frames (the two virtues of a variational autoencoder without its
loss; Kingma and Welling 2013, arXiv 1312.6114). Edges have more weight than flat colour.
Shapes as in ``neuralsim.models.codec``; height and width any multiple of 8.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from neuralsim.models.codec import Codec, ResidualConv, to_pixels

NARROW = 16
"""Channels of the encoder's last map, of an eighth of the frame's width and height."""
FOLDED, RANK = 512, 128
"""Width of the decoder's first layer, and rank of the layer after it: at full rank that would hold a quarter of all weights."""


class ConvCodec(Codec):
    """Autoencoder of a frame to one vector, cut into tokens."""

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
        moving = (pixels - self.background).contiguous(memory_format=torch.channels_last)
        return self.encoder(moving).float()

    def draw(self, numbers: torch.Tensor) -> torch.Tensor:
        # The decoder reads standardised numbers.
        return self._decode_standardized((numbers - self.mean) / self.std)

    def loss(self, frames: torch.Tensor, noise: torch.Tensor, jitter: float, emphasis: float) -> torch.Tensor:
        """Weight pixels that differ from their surroundings; ``jitter`` is in standard deviations."""
        pixels = to_pixels(frames)
        detail = (pixels - F.avg_pool2d(pixels, 5, 1, 2)).abs().amax(1, keepdim=True)
        raw = self.numbers(pixels)
        standard = (raw - raw.mean(0)) / (raw.var(0, correction=0) + 1e-5).sqrt()
        drawn = self._decode_standardized(standard + jitter * noise)
        return ((drawn - pixels).square() * (1 + emphasis * detail)).mean((1, 2, 3))

    def _decode_standardized(self, standard: torch.Tensor) -> torch.Tensor:
        return self.decoder(standard).float() + self.background
