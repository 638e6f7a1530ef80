"""Codec: the interface between frames and a few continuous latent tokens, and the layers that codecs share.

Shapes: frames uint8 ``(b h w 3)``, pixels float32 ``(b 3 h w)`` in [-1, 1], tokens ``(b n d)``, standardised over the data.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import nn


def to_pixels(frames: torch.Tensor) -> torch.Tensor:
    """uint8 ``(b h w 3)`` -> float32 ``(b 3 h w)`` in [-1, 1]."""
    return frames.movedim(-1, -3).to(torch.float32) / 127.5 - 1


def to_frames(pixels: torch.Tensor) -> torch.Tensor:
    """float ``(b 3 h w)`` in [-1, 1] -> uint8 ``(b h w 3)``."""
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
    """frame <-> ``tokens`` latent tokens of ``size`` numbers each, standardised over the data."""

    background: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, height: int, width: int, tokens: int, size: int) -> None:
        super().__init__()
        self.tokens, self.size = tokens, size
        # Measured on training data: the median frame, and the mean and spread of each number.
        self.register_buffer("background", torch.zeros(3, height, width))
        self.register_buffer("mean", torch.zeros(tokens * size))
        self.register_buffer("std", torch.ones(tokens * size))

    @abstractmethod
    def numbers(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels ``(b 3 h w)`` in [-1, 1] -> the frame's numbers ``(b m)``, not standardised; m = tokens * size."""

    @abstractmethod
    def draw(self, numbers: torch.Tensor) -> torch.Tensor:
        """numbers ``(b m)`` -> pixels ``(b 3 h w)``."""

    @abstractmethod
    def loss(self, frames: torch.Tensor, noise: torch.Tensor, jitter: float, emphasis: float) -> torch.Tensor:
        """Squared error per frame ``(b,)`` of redrawing uint8 ``frames``, with ``emphasis`` more weight on what matters.

        ``noise`` ``(b m)`` times ``jitter`` is added to the numbers, so that drawing forgives small errors of the dynamics.
        """

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 ``(b h w 3)`` -> float32 tokens ``(b n d)``."""
        flat = (self.numbers(to_pixels(frames)).float() - self.mean) / self.std
        return flat.view(-1, self.tokens, self.size)

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens ``(b n d)`` -> uint8 ``(b h w 3)``."""
        return to_frames(self.draw(tokens.flatten(1).float() * self.std + self.mean))

    def redraw_error(self, frames: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Root-mean-square error ``(b,)`` in grey levels of drawing ``frames`` from their ``tokens``."""
        return (self.decode(tokens).float() - frames.float()).square().mean((1, 2, 3)).sqrt()
