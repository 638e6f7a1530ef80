"""KeypointCodec: a codec for objects that move in front of a fixed camera. It represents a frame by keypoint positions.

The encoder subtracts the learned background; each of its channels responds to some part of what moves, and a channel's
centre of mass is a keypoint. The decoder paints keypoints as small Gaussians (with their slopes, so that sub-pixel shifts are
linear) and convolves them to pixels over the background. No labels: the parts are whatever helps to reconstruct the frame.
Positions move linearly with objects, so the dynamics need not learn rendering, and for any positions the decoder draws a scene
like those it was trained on: long rollouts stay sharp.
Sources: Jakab et al. 2018 (arXiv 1806.07823), Minderer et al. 2019 (arXiv 1906.07889). Rectified and squared heatmaps on
background-subtracted frames are ours: with softmax heatmaps small objects are never found (measured: the pusher was missing
in 100 % of frames).
Shapes: positions ``(b k 2)`` in [-1, 1] (x right, y down); tokens ``(b n d)`` with n * d = 2 k.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from neuralsim.models.codec import Codec, ResidualConv, to_pixels


def cell_centres(height: int, width: int) -> torch.Tensor:
    """Return the cell centres of a map in [-1, 1]: ``(2, height, width)``, x then y."""
    y = (torch.arange(height, dtype=torch.float32) + 0.5) / height * 2 - 1
    x = (torch.arange(width, dtype=torch.float32) + 0.5) / width * 2 - 1
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)])


class KeypointEncoder(nn.Module):
    """Network from background-subtracted pixels ``(b 3 h w)`` to keypoint positions ``(b k 2)``."""

    def __init__(self, keypoints: int, width: int, height_width: tuple[int, int]) -> None:
        super().__init__()
        self.lift = nn.Conv2d(12, width // 2, 3, padding=1)
        self.fine = ResidualConv(width // 2)
        self.down = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.coarse = ResidualConv(width)
        self.up = nn.Conv2d(width, 2 * width, 1)
        self.heat = nn.Conv2d(width // 2, keypoints, 3, padding=1)
        self.register_buffer("cells", cell_centres(height_width[0] // 2, height_width[1] // 2), persistent=False)
        for layer in self.modules():  # zero biases at first: an empty frame activates nothing
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, moving: torch.Tensor) -> torch.Tensor:
        x = F.pixel_unshuffle(moving, 2).contiguous(memory_format=torch.channels_last)
        x = self.fine(F.relu(self.lift(x)))
        x = F.relu(x + F.pixel_shuffle(self.up(self.coarse(self.down(x))), 2))
        heat = F.relu(self.heat(x).float().flatten(2)).square()
        share = heat / (heat.sum(-1, keepdim=True) + 1e-3)
        return torch.einsum("bks,cs->bkc", share, self.cells.flatten(1).float())  # type: ignore[operator]


class KeypointDecoder(nn.Module):
    """Network from keypoint positions ``(b k 2)`` to pixels ``(b 3 h w)`` that are added to the background."""

    def __init__(self, keypoints: int, width: int, height_width: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("cells", cell_centres(height_width[0] // 4, height_width[1] // 4), persistent=False)
        self.reach = 2.4 * 4 / max(height_width)  # standard deviation of a Gaussian: 1.2 cells of four pixels
        self.net = nn.Sequential(
            nn.Conv2d(3 * keypoints + 2, width, 3, padding=1),
            ResidualConv(width),
            ResidualConv(width),
            nn.Conv2d(width, 2 * width, 1),
            nn.PixelShuffle(2),
            ResidualConv(width // 2),
            nn.SiLU(),
            nn.Conv2d(width // 2, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        cells: torch.Tensor = self.cells  # type: ignore[assignment]
        offset = (positions[..., None, None] - cells) / self.reach
        blob = torch.exp(-0.5 * offset.square().sum(2))
        maps = torch.cat(
            [blob, offset[:, :, 0] * blob, offset[:, :, 1] * blob, cells.expand(len(positions), -1, -1, -1)], 1
        )
        return self.net(maps.contiguous(memory_format=torch.channels_last)).float()


class KeypointCodec(Codec):
    """Codec of tokens * size / 2 keypoints, decoded over a fixed background."""

    def __init__(self, height: int, width: int, tokens: int, size: int, conv_width: int) -> None:
        super().__init__(height, width, tokens, size)
        if tokens * size % 2:
            raise ValueError(
                f"KeypointCodec: tokens * size must be even (x and y of each keypoint), got {tokens} * {size}"
            )
        self.keypoints = tokens * size // 2
        self.encoder = KeypointEncoder(self.keypoints, conv_width, (height, width))
        self.decoder = KeypointDecoder(self.keypoints, conv_width, (height, width))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def positions(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the keypoint positions ``(b k 2)`` in pixels ``(b 3 h w)``."""
        return self.encoder(pixels - self.background)

    def paint(self, positions: torch.Tensor) -> torch.Tensor:
        """Decode keypoint positions ``(b k 2)`` to pixels ``(b 3 h w)``."""
        return self.decoder(positions) + self.background

    def numbers(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return x and y of each keypoint in turn."""
        return self.positions(pixels).flatten(1)

    def draw(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.paint(numbers.view(-1, self.keypoints, 2))

    def loss(self, frames: torch.Tensor, noise: torch.Tensor, jitter: float, emphasis: float) -> torch.Tensor:
        """Weight pixels that differ from the background; ``jitter`` is in half frame widths."""
        pixels = to_pixels(frames)
        with torch.no_grad():
            weight = 1 + emphasis * ((pixels - self.background).abs().amax(1, keepdim=True) > 0.15)
        drawn = self.paint(self.positions(pixels) + jitter * noise.view(-1, self.keypoints, 2))
        return ((drawn - pixels).square() * weight).mean((1, 2, 3))
