"""Noise: random numbers as a value, one independent stream per row.

A counter-based generator (SplitMix64's finaliser over seed, step and index, then Box-Muller). Row i of a batch draws
exactly what it would draw alone, on any device; snapshot, fork and masked reset are indexing; no global state is used.
Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: torch.Tensor, n: int) -> torch.Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


@dataclass(frozen=True)
class Noise:
    """``seed`` and ``count``, both int64 ``(b,)``: the stream of each row and the steps it has taken.

    ``temperature`` scales everything drawn: 1 is the model's own noise, 0 none.
    """

    seed: torch.Tensor
    count: torch.Tensor
    temperature: float = 1.0

    @classmethod
    def from_seeds(cls, seeds: Sequence[int], device: torch.device | str = "cpu", temperature: float = 1.0) -> Noise:
        """Make one stream per seed (any Python int), at step 0."""
        wrapped = [((int(s) + 2**63) % 2**64) - 2**63 for s in seeds]
        seed = torch.tensor(wrapped, dtype=torch.int64, device=device)
        return cls(seed, torch.zeros_like(seed), temperature)

    def __len__(self) -> int:
        return len(self.seed)

    def uniform(self, size: int, stream: int = 0) -> torch.Tensor:
        """Draw float32 ``(b, size)`` in (0, 1); ``stream`` separates draws made within one step."""
        key = _mix(self.seed + _GOLDEN)
        salt = (stream * _MIX_1 + 2**63) % 2**64 - 2**63  # Python's integers do not wrap by themselves
        key = _mix(key ^ (self.count * _GOLDEN + salt))
        index = torch.arange(1, size + 1, dtype=torch.int64, device=self.seed.device)
        bits = _shift_right(_mix(key[:, None] + index[None, :] * _GOLDEN), 41)  # 23 bits: with a half, all of float32
        return (bits.to(torch.float32) + 0.5) * 2.0**-23

    def normal(self, size: int, stream: int = 0) -> torch.Tensor:
        """Draw float32 ``(b, size)``, standard normal times ``temperature``."""
        half = (size + 1) // 2
        u = self.uniform(2 * half, stream)
        radius = torch.sqrt(-2 * torch.log(u[:, :half]))
        angle = 2 * math.pi * u[:, half:]
        return self.temperature * torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], 1)[:, :size]

    def advance(self, steps: int = 1) -> Noise:
        """Return the same streams, ``steps`` steps later."""
        return replace(self, count=self.count + steps)

    def index(self, rows: torch.Tensor) -> Noise:
        """Return the streams of ``rows``."""
        return replace(self, seed=self.seed[rows], count=self.count[rows])

    def where(self, mask: torch.Tensor, other: Noise) -> Noise:
        """Return ``other``'s streams where ``mask`` ``(b,)`` holds, these elsewhere."""
        return replace(
            self, seed=torch.where(mask, other.seed, self.seed), count=torch.where(mask, other.count, self.count)
        )
