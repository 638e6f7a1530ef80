"""FlowHead: a policy head on a frozen world model. It reads features of the newest frames and denoises a chunk of actions.

Flow matching on whole chunks with clean-action prediction (Black et al. 2024, pi0, arXiv 2410.24164), a level per action so that
a prefix may be given. With ``sees`` "future" it reads the hidden tokens of one denoising pass over the next frames (Video
Prediction Policy, Hu et al. 2024, arXiv 2412.14803); with "now" the newest frames alone, which is behaviour cloning.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from neuralsim.models.joint_stream import waves
from neuralsim.models.roles import denoise_chunk, joint_of
from neuralsim.models.token_stream import fourier
from neuralsim.models.video_wam import VideoState, VideoWAM
from neuralsim.noise import Noise
from neuralsim.world_model import check_denoise_steps

STRIDE_GAIN = 5.0
"""Gain on the change since the last frame, which is small and shows the direction of motion."""


class FlowHead(ModelMixin, ConfigMixin):
    """Policy head. ``features``: numbers of a frame's tokens; ``future``: of the hidden tokens; ``actions``: of an action; ``chunk``:
    actions at once."""

    config_name = "config.json"  # type: ignore[assignment]

    @register_to_config
    def __init__(
        self,
        sees: Literal["now", "future"],
        features: int,
        future: int,
        actions: int,
        chunk: int,
        width: int = 384,
        depth: int = 4,
    ) -> None:
        super().__init__()
        self.sees, self.chunk, self.actions = sees, chunk, actions
        now = fourier(torch.zeros(1, 2 * features, dtype=torch.float32, device="cpu")).shape[1]
        self.now_in = nn.Linear(now, width)
        self.future_in = nn.Linear(future, width) if sees == "future" else None
        self.chunk_in = nn.Linear(
            chunk * (actions + waves(torch.zeros(1, 1, dtype=torch.float32, device="cpu")).shape[-1]), width
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(depth)
        )
        self.out = nn.Linear(width, chunk * actions)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        for block in self.blocks:
            nn.init.normal_(block[-1].weight, std=0.02 / math.sqrt(2 * depth))  # type: ignore[index]

    @classmethod
    def build(cls, model: VideoWAM, sees: Literal["now", "future"]) -> FlowHead:
        """Make an untrained head for ``model``."""
        model, joint = joint_of(model)
        future = joint.chunk // joint.patch * model.stream.width
        head = cls(sees, model.feature_size, future if sees == "future" else 0, model.spec.action_width, joint.chunk)
        return head.float()

    def context(self, model: VideoWAM, tokens: torch.Tensor, state: VideoState, noise: Noise) -> torch.Tensor:
        """Return the head's input ``(b f)`` for histories ``tokens`` ``(b t n d)`` that end in ``state``: the newest frame, the change
        since the one before and, for "future", one denoising pass over the next frames."""
        last = tokens[:, -1].flatten(1)
        change = last - tokens[:, -2].flatten(1) if tokens.shape[1] > 1 else torch.zeros_like(last)
        read = fourier(torch.cat([last, STRIDE_GAIN * change], 1).float() / 2)
        if self.sees == "now":
            return read
        hidden = denoise_chunk(model, state, noise, 1, frames="asked", actions=False).hidden
        return torch.cat([read, hidden.flatten(1).float()], 1)

    def forward(self, context: torch.Tensor, chunk: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """Predict the clean actions of ``chunk`` ``(b k a)`` at ``level`` ``(b k)``."""
        now = self.now_in.in_features
        x = self.now_in(context[:, :now])
        x = x + self.chunk_in(torch.cat([chunk * (1 - level[..., None]), waves(level)], -1).flatten(1))
        if self.future_in is not None:
            x = x + self.future_in(context[:, now:])
        for block in self.blocks:
            x = x + block(x)
        return self.out(x).float().view(chunk.shape)

    def loss(self, context: torch.Tensor, actions: torch.Tensor, noise: Noise) -> torch.Tensor:
        """Return the squared error per row ``(b,)`` of predicting ``actions`` ``(b k a)`` at a random level, at times after a prefix."""
        b, k, _ = actions.shape
        u = noise.uniform(4, stream=7)
        level = torch.where(u[:, 0] < 0.2, 1.0, u[:, 1])[:, None].expand(b, k)
        given = torch.where(u[:, 2] < 0.4, (1 + u[:, 3] * (k // 2)).floor(), torch.zeros_like(u[:, 3]))
        level = torch.where(torch.arange(k, dtype=torch.int64, device=u.device)[None] < given[:, None], 0.0, level)
        pure = noise.normal(actions[0].numel(), stream=9).view(actions.shape)
        clean = self(context, torch.lerp(actions, pure, level[..., None]), level)
        asked = (level > 0).float()
        return ((clean - actions).square().mean(-1) * asked).sum(1) / asked.sum(1)

    def predict_action_chunk(
        self, context: torch.Tensor, noise: Noise, passes: int, prefix: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Predict actions ``(b k a)`` in [-1, 1]; the first are ``prefix`` ``(b p a)``, bit-equal."""
        check_denoise_steps(passes, "passes")
        b, k, p = len(context), self.chunk, 0 if prefix is None else prefix.shape[1]
        y = noise.normal(k * self.actions, stream=6).view(b, k, self.actions)
        if prefix is not None:
            y = torch.cat([prefix.to(y.dtype), y[:, p:]], 1)
        fixed = (torch.arange(k, dtype=torch.int64, device=y.device) < p).expand(b, k)
        for i in range(passes):
            level, after = 1 - i / passes, 1 - (i + 1) / passes
            clean = self(context, y, torch.where(fixed, 0.0, torch.full_like(y[..., 0], level)))
            y = torch.where(fixed[..., None], y, clean + after * (y - clean) / level)
        return torch.where(fixed[..., None], y, y.clamp(-1, 1))
