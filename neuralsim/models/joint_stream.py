"""JointStream: the tokens that are asked for. Beside the stream that simulates, in the same attention, with weights of its own.

A chunk is the next ``chunk`` actions and frames. Every one of them has its own noise level: 0 is given, 1 is not known at all,
and denoising goes from one to the other; so which part is given decides the role (UWM, Zhu et al. 2025, arXiv 2504.02792:
levels of actions and frames apart; per action, so that a prefix may be given: training-time real-time chunking). ``patch``
steps make one token of actions and one of frames: a third of the tokens is a third of the work. The tokens see each other and
the keys and values that the simulating stream made of the history (a mixture of transformers, Liang et al. 2024, arXiv
2411.04996); the history does not see them, so whoever simulates gets to the bit what he got without them. A modality that is
neither given nor asked for may be left out: at level 1 it says nothing.
Shapes: frames ``(b k n d)`` tokens of the codec, actions ``(b k a)``, levels ``(b k)``, memory ``(b layers 2 heads s e)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from neuralsim.models.token_stream import OCTAVES, Block, fourier

WAVES = 16
"""Numbers that tell a level."""


@dataclass(frozen=True)
class JointConfig:
    """``chunk``: steps that are asked for at once; ``patch``: how many of them share a token; ``expand``: width of the MLPs
    over the stream's."""

    chunk: int = 12
    patch: int = 3
    expand: int = 2


class JointStream(nn.Module):
    """See the module's text. ``n`` tokens of ``d`` numbers a frame, ``a`` numbers an action; width, layers and heads are the
    simulating stream's, whose keys and values it reads."""

    def __init__(
        self,
        n: int,
        d: int,
        a: int,
        width: int,
        layers: int,
        heads: int,
        chunk: int = 12,
        patch: int = 3,
        expand: int = 2,
    ) -> None:
        super().__init__()
        if chunk % patch:
            raise ValueError(f"JointConfig: expected a chunk of whole patches, got {chunk} steps in patches of {patch}")
        self.chunk, self.patch, self.tokens, self.size = chunk, patch, n, d
        wide = 1 + 2 * OCTAVES
        self.here_in = nn.Linear(n * d * wide, width)
        self.frame_in, self.action_in = nn.Linear(patch * n * d * wide, width), nn.Linear(patch * a * wide, width)
        self.frame_level, self.action_level = (
            nn.Sequential(nn.Linear(patch * WAVES, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(2)
        )
        self.frame_place, self.action_place = (
            nn.Parameter(torch.randn(chunk // patch, width) * 0.02) for _ in range(2)
        )
        self.aim = nn.Parameter(torch.randn(2, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, expand) for _ in range(layers))
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
        """Frames and actions, each with its levels or None where it is left out -> what is guessed of their clean values, and the
        hidden tokens ``(b s width)``, the frames' first.

        ``memory``: keys and values of the history, of which ``empty`` ``(b s)`` are none; ``here`` ``(b n d)``: the newest frame;
        ``aim`` ``(b,)``: 1 for what a demonstrator would do, 0 for what anybody might.
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
        bias = torch.zeros(b, 1, 1, memory.shape[-2] + x.shape[1], device=x.device)
        bias[..., : memory.shape[-2]].masked_fill_(empty[:, None, None], float("-inf"))
        for i, block in enumerate(self.blocks):
            x, _ = block(x, memory[:, i], bias)
        hidden = self.norm(x)
        split = 0 if frames is None else self.chunk // self.patch
        guessed = told = None
        if frames is not None:
            guessed = here[:, None] + self.frame_out(hidden[:, :split]).float().view(frames[0].shape)
        if actions is not None:
            told = self.action_out(hidden[:, split:]).float().view(actions[0].shape)
        return guessed, told, hidden

    def _patches(self, x: torch.Tensor) -> torch.Tensor:
        """``(b k ...)`` -> ``(b k/patch f)``: the numbers of ``patch`` steps side by side."""
        return x.flatten(2).unflatten(1, (-1, self.patch)).flatten(2)


def waves(level: torch.Tensor) -> torch.Tensor:
    """Levels ``(b k)`` -> ``(b k WAVES)``: what a network is told of them."""
    turns = level[..., None] * (torch.arange(1, WAVES // 2 + 1, device=level.device) * (math.pi / 2))
    return torch.cat([turns.cos(), turns.sin()], -1)
