"""JointStream: a transformer that denoises the next frames and actions together, reading the simulating stream's history.

A chunk is the next ``chunk`` actions and frames. Each of them has its own noise level: 0 is given, 1 is unknown, and denoising
goes from 1 to 0; so the part that is given decides the role (UWM, Zhu et al. 2025, arXiv 2504.02792: separate levels of
actions and frames; one level per action, so that a prefix may be given: training-time real-time chunking). ``patch`` steps
make one token of actions and one of frames: a third of the tokens is a third of the work. The tokens attend to each other and
to the keys and values that the simulating stream made of the history (a mixture of transformers, Liang et al. 2024, arXiv
2411.04996); the history does not attend to them, so simulation is the same to the bit without them. A modality that is
neither given nor requested may be left out: at level 1 it has no influence.
Shapes: frames ``(b k n d)`` tokens of the codec, actions ``(b k a)``, levels ``(b k)``, memory ``(b layers 2 heads s e)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from neuralsim.models.token_stream import OCTAVES, Block, fourier
from neuralsim.world_model import check_sizes

WAVES = 16
"""Numbers that encode a level."""


@dataclass(frozen=True)
class JointConfig:
    """Sizes of a JointStream."""

    chunk: int = 12
    """Steps that are denoised at once."""
    patch: int = 3
    """Steps that share a token."""
    expand: int = 2
    """Width of the MLPs over the stream's."""

    def __post_init__(self) -> None:
        check_sizes(self, chunk=1024, patch=1024, expand=16)
        if self.chunk % self.patch:
            raise ValueError(
                f"JointConfig: expected a chunk of whole patches, got {self.chunk} steps in patches of {self.patch}"
            )


class JointStream(nn.Module):
    """Denoiser of chunks: ``n`` tokens of ``d`` numbers per frame, ``a`` numbers per action; width, layers and heads are those of
    the simulating stream, whose keys and values it reads."""

    def __init__(
        self,
        n: int,
        d: int,
        a: int,
        width: int,
        layers: int,
        heads: int,
        config: JointConfig,
    ) -> None:
        super().__init__()
        chunk, patch = config.chunk, config.patch
        self.chunk, self.patch, self.tokens, self.size = chunk, patch, n, d
        wide = 1 + 2 * OCTAVES
        self.here_in = nn.Linear(n * d * wide, width)
        self.frame_in, self.action_in = nn.Linear(patch * n * d * wide, width), nn.Linear(patch * a * wide, width)
        self.frame_level, self.action_level = (
            nn.Sequential(nn.Linear(patch * WAVES, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(2)
        )
        self.frame_place, self.action_place = (
            nn.Parameter(torch.randn(chunk // patch, width, dtype=torch.float32) * 0.02) for _ in range(2)
        )
        self.aim = nn.Parameter(torch.randn(2, width, dtype=torch.float32) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, config.expand) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.frame_out, self.action_out = nn.Linear(width, patch * n * d), nn.Linear(width, patch * a)
        for layer in (self.frame_out, self.action_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for name, weight in self.blocks.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers))

    def forward(
        self,
        memory: torch.Tensor,
        empty: torch.Tensor,
        here: torch.Tensor,
        aim: torch.Tensor,
        frames: tuple[torch.Tensor, torch.Tensor] | None,
        actions: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
        """Predict the clean values of frames and of actions, each given with its levels or None where it is left out; also return
        the hidden tokens ``(b s width)``, the frames' first.

        memory: keys and values of the history, where ``empty`` bool ``(b s)`` marks the missing ones. here: the newest frame
        ``(b n d)``. aim: int64 ``(b,)``, 1 to act as the demonstrator, 0 as any policy in the data.
        """
        b = len(here)
        setting = self.here_in(fourier(here.flatten(1))) + self.aim[aim]  # b w
        parts = []
        if frames is not None:
            x, level = frames
            known = self.frame_in(self._patches(fourier(x) * (1 - level[..., None, None])))
            parts.append(known + self.frame_level(self._patches(waves(level))) + self.frame_place + setting[:, None])
        if actions is not None:
            x, level = actions
            known = self.action_in(self._patches(fourier(x) * (1 - level[..., None])))
            parts.append(known + self.action_level(self._patches(waves(level))) + self.action_place + setting[:, None])
        x = torch.cat(parts, 1).float()
        bias = torch.zeros(b, 1, 1, memory.shape[-2] + x.shape[1], dtype=torch.float32, device=x.device)
        bias[..., : memory.shape[-2]].masked_fill_(empty[:, None, None], float("-inf"))
        for i, block in enumerate(self.blocks):
            x, _ = block(x, memory[:, i], bias)
        hidden = self.norm(x)
        split = 0 if frames is None else self.chunk // self.patch
        clean_frames = clean_actions = None
        if frames is not None:
            clean_frames = here[:, None] + self.frame_out(hidden[:, :split]).float().view(frames[0].shape)
        if actions is not None:
            clean_actions = self.action_out(hidden[:, split:]).float().view(actions[0].shape)
        return clean_frames, clean_actions, hidden

    def _patches(self, x: torch.Tensor) -> torch.Tensor:
        """Concatenate the numbers of ``patch`` steps: ``(b k ...)`` to ``(b k/patch f)``."""
        return x.flatten(2).unflatten(1, (-1, self.patch)).flatten(2)


def waves(level: torch.Tensor) -> torch.Tensor:
    """Encode levels ``(b k)`` as ``(b k WAVES)``."""
    turns = level[..., None] * (
        torch.arange(1, WAVES // 2 + 1, dtype=torch.float32, device=level.device) * (math.pi / 2)
    )
    return torch.cat([turns.cos(), turns.sin()], -1)
