"""Codec: the interface between frames and a few continuous latent tokens, and the layers that codecs share.

Shapes: frames uint8 ``(b h w 3)``, pixels float32 ``(b 3 h w)`` in [-1, 1], tokens ``(b n d)``, standardised over the data.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import nn


def to_pixels(frames: torch.Tensor) -> torch.Tensor:
    """Convert frames uint8 ``(b h w 3)`` to pixels float32 ``(b 3 h w)`` in [-1, 1]."""
    return frames.movedim(-1, -3).to(torch.float32) / 127.5 - 1


def to_frames(pixels: torch.Tensor) -> torch.Tensor:
    """Convert pixels ``(b 3 h w)`` in [-1, 1] to frames uint8 ``(b h w 3)``."""
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1).contiguous()


class ResidualConv(nn.Module):
    """x + conv(silu(conv(silu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class Codec(nn.Module):
    """Encoder and decoder between frames and ``tokens`` latent tokens of ``size`` numbers, standardised over the data."""

    background: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, height: int, width: int, tokens: int, size: int) -> None:
        super().__init__()
        self.tokens, self.size = tokens, size
        # Measured on training data: the median frame, mean and standard deviation of each number.
        self.register_buffer("background", torch.zeros(3, height, width, dtype=torch.float32))
        self.register_buffer("mean", torch.zeros(tokens * size, dtype=torch.float32))
        self.register_buffer("std", torch.ones(tokens * size, dtype=torch.float32))

    @abstractmethod
    def numbers(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode pixels ``(b 3 h w)`` to numbers ``(b m)``, not standardised; m = tokens * size."""

    @abstractmethod
    def draw(self, numbers: torch.Tensor) -> torch.Tensor:
        """Decode numbers ``(b m)`` to pixels ``(b 3 h w)``."""

    @abstractmethod
    def loss(self, frames: torch.Tensor, noise: torch.Tensor, jitter: float, emphasis: float) -> torch.Tensor:
        """Return the squared error per frame ``(b,)`` of reconstructing uint8 ``frames``; ``emphasis`` is extra weight of detail.

        ``noise`` ``(b m)`` times ``jitter`` is added to the numbers, so that decoding tolerates small errors of the dynamics.
        """

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Encode frames uint8 ``(b h w 3)`` to float32 tokens ``(b n d)``."""
        flat = (self.numbers(to_pixels(frames)).float() - self.mean) / self.std
        return flat.view(-1, self.tokens, self.size)

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Decode tokens ``(b n d)`` to frames uint8 ``(b h w 3)``."""
        return to_frames(self.draw(tokens.flatten(1).float() * self.std + self.mean))

    def reconstruction_error(self, frames: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the root-mean-square error ``(b,)`` in grey levels of decoding ``frames`` from their ``tokens``."""
        return (self.decode(tokens).float() - frames.float()).square().mean((1, 2, 3)).sqrt()
