"""What a network reads of an action: quantities as they are, choices one-hot."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from neuralsim.spec import WorldSpec


def encode_actions(spec: WorldSpec, actions: torch.Tensor) -> torch.Tensor:
    """Actions ``(..., a)`` of ``spec``'s world -> ``(..., spec.action_width)``.

    A choice becomes a 1 among zeros, dimension after dimension: the linear layer that reads it holds a vector of its own
    for each choice, so that no choice is more than another. Quantities are handed on. Raises ValueError for choices that
    are no whole numbers, RuntimeError for one there is not.
    """
    if not spec.discrete:
        return actions
    if actions.is_floating_point() and actions.numel():
        raise ValueError(
            f"world {spec.name!r} has choices: expected whole numbers of an integer dtype, got {actions.dtype}"
        )
    chosen = actions.to(torch.int64).unbind(-1)
    told = [F.one_hot(one, n) for one, n in zip(chosen, spec.action_choices, strict=True)]
    return torch.cat(told, -1).to(torch.float32)
