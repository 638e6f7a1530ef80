"""StateProbe: true states as a model tells them: standardised, angles as cosine and sine."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from neuralsim.models.token_stream import OCTAVES, fourier


class Readout(nn.Module):
    """Numbers read off features ``(b d)``: Fourier features, then an MLP. Pose to coverage is too sharp a function for
    a plain one."""

    def __init__(self, features: int, outputs: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(features * (1 + 2 * OCTAVES), width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(fourier(x))


class StateProbe(nn.Module):
    """True states, linearly read off a vector. A name that ends in ``angle`` is told as cosine and sine."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, size: int, names: list[str]) -> None:
        super().__init__()
        self.angles = [name.endswith("angle") for name in names]
        wide = len(names) + sum(self.angles)
        # Not nn.Linear, whose random start warns where wide is 0.
        self.linear = nn.ParameterDict({"weight": torch.zeros(wide, size), "bias": torch.zeros(wide)})
        self.register_buffer("mean", torch.zeros(wide))
        self.register_buffer("std", torch.ones(wide))

    def target(self, states: torch.Tensor) -> torch.Tensor:
        """True states ``(b s)`` -> what the linear layer should say ``(b wide)``, before standardising."""
        columns: list[torch.Tensor] = []
        for i, angle in enumerate(self.angles):
            columns += [states[:, i].cos(), states[:, i].sin()] if angle else [states[:, i]]
        return torch.stack(columns, 1).float()

    def fit(self, states: torch.Tensor) -> None:
        """Take the data's mean and spread from a sample of true states ``(n s)``."""
        target = self.target(states)
        self.mean.copy_(target.mean(0))
        self.std.copy_(target.std(0).clamp(min=1e-3))

    def told(self, vectors: torch.Tensor) -> torch.Tensor:
        """What the linear layer says ``(b wide)``, in standard deviations."""
        return F.linear(vectors, self.linear["weight"], self.linear["bias"])

    def standard(self, states: torch.Tensor) -> torch.Tensor:
        """True states ``(b s)`` -> what should be told of them ``(b wide)``, in standard deviations."""
        return (self.target(states) - self.mean) / self.std

    def loss(self, vectors: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Squared error per row ``(b,)`` of the linear layer, in standard deviations."""
        return (self.told(vectors) - self.standard(states)).square().mean(1)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors ``(b d)`` -> states ``(b s)`` in the world's units, angles in radians."""
        return self.state(self.told(vectors))

    def state(self, told: torch.Tensor) -> torch.Tensor:
        """``(b wide)`` in standard deviations -> states ``(b s)`` in the world's units, angles in radians."""
        told = told.float() * self.std + self.mean
        columns, at = [], 0
        for angle in self.angles:
            columns.append(torch.atan2(told[:, at + 1], told[:, at]) if angle else told[:, at])
            at += 1 + angle
        return torch.stack(columns, 1) if columns else told
