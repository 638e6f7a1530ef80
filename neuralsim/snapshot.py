"""Snapshot: everything of an Imagination that changes, as a value that can be kept, copied, pickled and restored elsewhere.

It holds no model. A fingerprint of the weights decides whether an Imagination may continue from it, so it survives pickle,
deepcopy and torch.save, and restores in any process that has opened the same world.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from neuralsim.noise import Noise
from neuralsim.spec import WorldSpec
from neuralsim.storage.fingerprint import fingerprint
from neuralsim.world_model import State, WorldModel, compact


@dataclass(frozen=True)
class ModelIdentity:
    """The model that made a state: class name, spec and a fingerprint of the weights."""

    name: str
    spec: WorldSpec
    weights: str

    @classmethod
    def of(cls, model: WorldModel) -> ModelIdentity:
        """Hash the weights of ``model`` (some 20 ms for Push-T)."""
        return cls(type(model).__name__, model.spec, fingerprint(model.state_dict()))

    def check_same(self, other: ModelIdentity) -> None:
        """Raise a ValueError that says how ``other`` differs from this one."""
        if (self.name, self.spec) != (other.name, other.spec):
            raise ValueError(
                f"restore: expected a snapshot of {self.name} on world {self.spec.name!r}, got one of {other.name} on world "
                f"{other.spec.name!r}" + ("" if self.spec.name != other.spec.name else " (their specs differ)")
            )
        if self.weights != other.weights:
            raise ValueError(
                f"restore: this snapshot comes from other weights (fingerprint {other.weights}, here {self.weights}); "
                "open the world that it was taken in"
            )


@dataclass(frozen=True, eq=False)
class Snapshot:
    """State of every row, the noise to come and the episode counters.

    elapsed: int64 ``(b,)``, steps since the reset. ended: bool ``(b,)``, the last step ended the episode. start: int64
    ``(b,)``, index of the shipped start, -1 for a history given by the caller. dtype: arithmetic of the model. frame: uint8
    ``(b, h, w, 3)`` where the present frame is known and decoding ``state`` could differ from it by rounding.
    """

    state: State
    noise: Noise
    elapsed: torch.Tensor
    ended: torch.Tensor
    start: torch.Tensor
    dtype: torch.dtype
    model: ModelIdentity
    frame: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.elapsed)

    def __getstate__(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: compact(v) if isinstance(v, torch.Tensor) else v for k, v in values.items()}

    def __setstate__(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)
