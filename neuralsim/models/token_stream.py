"""TokenStream: a block-causal transformer over frames of tokens, where every token has its own noise level.

A frame is one action token and its latent tokens. These attend to each other and to the ``window - 1`` frames before. Time is
relative (a learned bias per head and distance), so rollouts have no maximum length. Keys and values of past frames are cached.
Sources: diffusion forcing (Chen et al. 2024, arXiv 2407.01392); relative bias (Raffel et al. 2020, T5).
Shapes: tokens ``(b t n d)``, levels ``(b t n)`` in [0, 1] (0 clean, 1 noise), actions ``(b t a)`` as
``neuralsim.models.action_encoding`` encodes them, cache ``(b layers 2 heads p*(n+1) e)``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

CHANGE = 0.1
"""Scale of the output layer: frames change little, and a unit step of the optimiser must not overshoot that."""
OCTAVES = 5
"""Frequencies of the Fourier features: half a turn per unit, doubling."""


def fourier(x: torch.Tensor) -> torch.Tensor:
    """Append sines and cosines to ``x`` ``(..., d)``, giving ``(..., d * (1 + 2 * OCTAVES))``: networks then resolve small
    differences (NeRF, 2003.08934)."""
    turns = x[..., None] * (math.pi / 2 * 2.0 ** torch.arange(OCTAVES, dtype=torch.float32, device=x.device))
    return torch.cat([x, turns.sin().flatten(-2), turns.cos().flatten(-2)], -1)


def anchors(first: torch.Tensor, x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Return the frames that each frame of ``x`` ``(b t n d)`` is predicted as a change from: the frame before it in so far as
    that is clean, and its anchor for the rest. ``first`` ``(b n d)`` stands before the first frame."""
    found = [first]
    for i in range(x.shape[1] - 1):
        level = levels[:, i, :, None]
        found.append((1 - level) * x[:, i] + level * found[-1])
    return torch.stack(found, 1)


class Block(nn.Module):
    """Pre-norm attention and MLP, ``expand`` times as wide."""

    def __init__(self, width: int, heads: int, expand: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, expand * width), nn.Linear(expand * width, width)

    def forward(
        self, x: torch.Tensor, past: torch.Tensor | None, bias: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Transform x ``(b s w)`` given past ``(b 2 heads p e)`` or None and a bias broadcastable to ``(b heads s p+s)``; return x
        and its own keys and values."""
        b, s, w = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, s, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        own = torch.stack([k, v], 1)
        if past is not None:
            k, v = torch.cat([past[:, 0].to(k.dtype), k], 2), torch.cat([past[:, 1].to(v.dtype), v], 2)
        mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=bias.to(v.dtype))
        x = x + self.out(mixed.transpose(1, 2).reshape(b, s, w))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh")), own


class TokenStream(nn.Module):
    """Transformer that denoises frames of ``tokens`` tokens of ``size`` numbers under ``actions`` numbers per action."""

    def __init__(
        self, tokens: int, size: int, actions: int, width: int = 256, layers: int = 4, heads: int = 4, window: int = 4
    ) -> None:
        super().__init__()
        self.tokens, self.size, self.width, self.heads, self.window, self.layers = (
            tokens,
            size,
            width,
            heads,
            window,
            layers,
        )
        self.token_in = nn.Linear(size * (1 + 2 * OCTAVES), width)
        self.before_in = nn.Linear(size * (1 + 2 * OCTAVES), width)
        # A world without actions has no layer for them, not even a bias.
        self.action_in = (
            nn.Sequential(nn.Linear(actions, width), nn.SiLU(), nn.Linear(width, width)) if actions else None
        )
        self.no_action = nn.Parameter(torch.zeros(width, dtype=torch.float32))
        self.slot = nn.Parameter(
            torch.randn(tokens + 1, width, dtype=torch.float32) * 0.02
        )  # token embeddings; the name is that of saved weights
        self.level_in = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.bias = nn.Parameter(torch.zeros(layers, heads, window, dtype=torch.float32))
        self.norm = nn.RMSNorm(width)
        self.token_out = nn.Linear(width, size)
        nn.init.zeros_(self.token_out.weight)
        nn.init.zeros_(self.token_out.bias)
        for name, weight in self.blocks.named_parameters():
            if name.endswith(("out.weight", "down.weight")):  # small at first, so that depth does not add up
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers))

    def mask(self, t: int, past: int, age: torch.Tensor | None) -> torch.Tensor:
        """Return the attention bias ``(layers, b or 1, heads, t*(n+1), (past+t)*(n+1))`` for t frames after ``past`` cached ones,
        of which the newest ``age`` ``(b,)`` are real."""
        device = self.bias.device
        query = torch.arange(past, past + t, dtype=torch.int64, device=device)[:, None]
        key = torch.arange(past + t, dtype=torch.int64, device=device)[None, :]
        distance = query - key
        seen = (distance >= 0) & (distance < self.window)
        bias = self.bias[:, :, distance.clamp(0, self.window - 1)]  # layers heads t p+t
        bias = bias.masked_fill(~seen, float("-inf"))[:, None]
        if age is not None:
            empty = key[0] < past - age[:, None]  # b p+t
            bias = bias.masked_fill(empty[None, :, None, None, :], float("-inf"))
        n = self.tokens + 1
        return bias.repeat_interleave(n, -2).repeat_interleave(n, -1)

    def forward(
        self,
        tokens: torch.Tensor,
        before: torch.Tensor,
        levels: torch.Tensor,
        actions: torch.Tensor,
        led: torch.Tensor,
        cache: torch.Tensor | None = None,
        age: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Denoise: predict each frame's clean tokens from itself at its level and the frames before.

        before: the frames ``(b t n d)`` that each is predicted as a change from (see ``anchors``). led: bool ``(b t)``,
        ``actions[:, i]`` led to frame i and is known (a first frame has none). Returns the prediction ``(b t n d)``, hidden
        ``(b t n width)``, and the new frames' keys and values in the cache's shape.
        """
        b, t, n, _ = tokens.shape
        waves = levels[..., None] * (torch.arange(1, 17, dtype=torch.float32, device=levels.device) * (math.pi / 2))
        # A token's content fades with its level; at level 1 it is pure noise and has no influence.
        x = self.token_in(fourier(tokens)) * (1 - levels[..., None])
        x = x + self.level_in(torch.cat([waves.cos(), waves.sin()], -1)) + self.slot[1:]
        x = x + self.before_in(fourier(before)) * levels[..., None]  # a clean frame does not need its anchor
        action = self.no_action.expand(b, t, -1)
        if self.action_in is not None:
            action = torch.where(led[..., None], self.action_in(actions).float(), self.no_action)
        action = action + self.slot[0]
        x = torch.cat([action[:, :, None], x.float() + action[:, :, None]], 2).flatten(1, 2)
        past = 0 if cache is None else cache.shape[-2] // (n + 1)
        bias = self.mask(t, past, age)
        own = []
        for i, block in enumerate(self.blocks):
            x, kv = block(x, None if cache is None else cache[:, i], bias[i])
            own.append(kv)
        hidden = self.norm(x).view(b, t, n + 1, -1)[:, :, 1:]
        return before + CHANGE * self.token_out(hidden).float(), hidden, torch.stack(own, 1)
