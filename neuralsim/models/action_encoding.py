"""Action encoding: actions as networks read them, continuous ones as they are, discrete ones one-hot."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from neuralsim.spec import WorldSpec


@dataclass(frozen=True, eq=False)
class EncodedActions:
    """Actions as networks read them, ``values`` float ``(b t action_width)``; those of video without actions are not ``known``."""

    values: torch.Tensor
    known: bool = True

    def steps(self, first: int, end: int | None = None) -> EncodedActions:
        """Return the actions of steps ``first`` to ``end``, exclusive."""
        return EncodedActions(self.values[:, first:end], self.known)


def encode_actions(spec: WorldSpec, actions: torch.Tensor) -> torch.Tensor:
    """Encode actions ``(..., a)`` of the world ``spec`` to ``(..., spec.action_width)``.

    A choice becomes a 1 among zeros, dimension after dimension: the linear layer that reads it has a vector of its own for each
    choice, so that choices have no order. Continuous actions are returned unchanged. Raises ValueError for choices of a
    floating-point dtype, RuntimeError for a choice out of range.
    """
    if not spec.discrete:
        return actions
    if actions.is_floating_point() and actions.numel():
        raise ValueError(
            f"world {spec.name!r} has choices: expected whole numbers of an integer dtype, got {actions.dtype}"
        )
    dimensions = actions.to(torch.int64).unbind(-1)
    one_hot = [F.one_hot(one, n) for one, n in zip(dimensions, spec.action_choices, strict=True)]
    return torch.cat(one_hot, -1).to(torch.float32)


def no_actions(spec: WorldSpec, rows: int, steps: int, device: torch.device | str) -> torch.Tensor:
    """Return zero actions ``(rows, steps, a)`` in the dtype of the world ``spec``."""
    dtype = torch.int64 if spec.discrete else torch.float32
    return torch.zeros(rows, steps, spec.action_size, dtype=dtype, device=device)
