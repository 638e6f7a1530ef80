"""Prediction heads: small networks that read rewards, ends and simulator states off a model's features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from neuralsim.models.token_stream import OCTAVES, fourier


class Readout(nn.Module):
    """Fourier features ``(b d)``, then an MLP: the map from pose to coverage is too sharp for an MLP alone."""

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
    """Linear estimate of simulator states from a vector. A state whose name ends in ``angle`` is predicted as cosine and sine."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, size: int, names: list[str]) -> None:
        super().__init__()
        self.angles = [name.endswith("angle") for name in names]
        wide = len(names) + sum(self.angles)
        # Not nn.Linear, whose random initialisation warns where wide is 0.
        zeros = (torch.zeros(wide, size, dtype=torch.float32), torch.zeros(wide, dtype=torch.float32))
        self.linear = nn.ParameterDict({"weight": zeros[0], "bias": zeros[1]})
        self.register_buffer("mean", torch.zeros(wide, dtype=torch.float32))
        self.register_buffer("std", torch.ones(wide, dtype=torch.float32))

    def target(self, states: torch.Tensor) -> torch.Tensor:
        """Encode states ``(b s)`` as targets ``(b wide)``, not standardised."""
        columns: list[torch.Tensor] = []
        for i, angle in enumerate(self.angles):
            columns += [states[:, i].cos(), states[:, i].sin()] if angle else [states[:, i]]
        return torch.stack(columns, 1).float()

    def fit(self, states: torch.Tensor) -> None:
        """Measure mean and standard deviation of the targets on a sample of states ``(n s)``."""
        target = self.target(states)
        self.mean.copy_(target.mean(0))
        self.std.copy_(target.std(0).clamp(min=1e-3))

    def predict_standardized(self, vectors: torch.Tensor) -> torch.Tensor:
        """Predict targets ``(b wide)`` in standard deviations."""
        return F.linear(vectors, self.linear["weight"], self.linear["bias"])

    def standardize(self, states: torch.Tensor) -> torch.Tensor:
        """Encode states ``(b s)`` as targets ``(b wide)`` in standard deviations."""
        return (self.target(states) - self.mean) / self.std

    def loss(self, vectors: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Return the squared error per row ``(b,)`` in standard deviations."""
        return (self.predict_standardized(vectors) - self.standardize(states)).square().mean(1)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Estimate states ``(b s)`` from vectors ``(b d)``, in the world's units, angles in radians."""
        return self.to_states(self.predict_standardized(vectors))

    def to_states(self, standardized: torch.Tensor) -> torch.Tensor:
        """Decode targets ``(b wide)`` in standard deviations to states ``(b s)`` in the world's units, angles in radians."""
        target = standardized.float() * self.std + self.mean
        columns, at = [], 0
        for angle in self.angles:
            columns.append(torch.atan2(target[:, at + 1], target[:, at]) if angle else target[:, at])
            at += 1 + angle
        return torch.stack(columns, 1) if columns else target
