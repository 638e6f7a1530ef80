"""Codec: frame <-> a few continuous latent tokens.

Two stages. A small convolutional autoencoder turns a 64x64 frame into an 8x8 grid of latents that keeps place; an MLP autoencoder folds
the grid into a handful of tokens. The second bottleneck is what keeps long dreams sharp: whatever the dynamics ask it to draw, the
decoder can only draw scenes like those it has seen. Shapes: frames uint8 ``(b h w 3)``, grid ``(b g)`` with g = cells * channels,
tokens ``(b n d)``, standardised to zero mean and unit variance over the training data.
"""

from __future__ import annotations

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


class GridCodec(nn.Module):
    """Convolutional autoencoder: pixels ``(b 3 h w)`` <-> grid ``(b c h/8 w/8)``.

    The full resolution is only touched by a pixel (un)shuffle, so the cost is that of 32x32 maps.
    """

    def __init__(self, channels: int = 8, width: int = 32) -> None:
        super().__init__()
        w = width
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, w, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(w, 2 * w, 3, stride=2, padding=1),
            ResidualConv(2 * w),
            nn.Conv2d(2 * w, 4 * w, 3, stride=2, padding=1),
            ResidualConv(4 * w),
            nn.Conv2d(4 * w, channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, 4 * w, 3, padding=1),
            ResidualConv(4 * w),
            nn.Conv2d(4 * w, 8 * w, 1),
            nn.PixelShuffle(2),
            ResidualConv(2 * w),
            nn.Conv2d(2 * w, 4 * w, 1),
            nn.PixelShuffle(2),
            ResidualConv(w),
            nn.Conv2d(w, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )
        self.to(memory_format=torch.channels_last)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """-> grid ``(b c h/8 w/8)``."""
        return self.encoder(pixels.contiguous(memory_format=torch.channels_last))

    def decode(self, grid: torch.Tensor) -> torch.Tensor:
        """-> pixels ``(b 3 h w)``, about [-1, 1]."""
        return self.decoder(grid.contiguous(memory_format=torch.channels_last))


class MLP(nn.Module):
    """Linear in, ``depth`` residual blocks of ``width``, linear out."""

    def __init__(self, size_in: int, size_out: int, width: int, depth: int) -> None:
        super().__init__()
        self.inner = nn.Linear(size_in, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.outer = nn.Linear(width, size_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner(x)
        for block in self.blocks:
            x = x + block(x)
        return self.outer(F.silu(self.norm(x)))


class Codec(nn.Module):
    """frame <-> ``tokens`` latent tokens of ``size`` numbers each."""

    def __init__(
        self, height: int, width: int, channels: int, conv_width: int, tokens: int, size: int, fold_width: int
    ) -> None:
        super().__init__()
        self.cells = (height // 8, width // 8)
        self.channels, self.tokens, self.size = channels, tokens, size
        self.grid = GridCodec(channels, conv_width)
        self.grid_size = channels * self.cells[0] * self.cells[1]
        self.fold = MLP(self.grid_size, tokens * size, fold_width, 1)
        self.unfold = MLP(tokens * size, self.grid_size, fold_width, 2)
        self.grid_mean: torch.Tensor
        self.grid_std: torch.Tensor
        self.token_mean: torch.Tensor
        self.token_std: torch.Tensor
        # Standardisation: per channel of the grid, per number of the tokens; measured on training data when a stage ends.
        self.register_buffer("grid_mean", torch.zeros(channels))
        self.register_buffer("grid_std", torch.ones(channels))
        self.register_buffer("token_mean", torch.zeros(tokens * size))
        self.register_buffer("token_std", torch.ones(tokens * size))

    def frames_to_grid(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 ``(b h w 3)`` -> standardised grid ``(b g)``, cells outermost."""
        grid = self.grid.encode(to_pixels(frames)).float()
        return ((grid.movedim(1, -1) - self.grid_mean) / self.grid_std).flatten(1)

    def grid_to_pixels(self, grid: torch.Tensor) -> torch.Tensor:
        """The inverse: ``(b g)`` -> pixels ``(b 3 h w)``."""
        cells = grid.view(-1, *self.cells, self.channels) * self.grid_std + self.grid_mean
        return self.grid.decode(cells.movedim(-1, 1))

    def grid_to_tokens(self, grid: torch.Tensor) -> torch.Tensor:
        """``(b g)`` -> ``(b n d)``, standardised."""
        flat = (self.fold(grid).float() - self.token_mean) / self.token_std
        return flat.view(-1, self.tokens, self.size)

    def tokens_to_grid(self, tokens: torch.Tensor) -> torch.Tensor:
        """``(b n d)`` -> ``(b g)``."""
        return self.unfold(tokens.flatten(-2) * self.token_std + self.token_mean).float()

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 ``(b h w 3)`` -> tokens ``(b n d)``."""
        return self.grid_to_tokens(self.frames_to_grid(frames))

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens ``(b n d)`` -> uint8 ``(b h w 3)``."""
        return to_frames(self.grid_to_pixels(self.tokens_to_grid(tokens)))
