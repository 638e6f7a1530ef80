"""Actions of a world in its own units and back: what ``WorldSpec.action_offset`` and ``action_scale`` mean, many at once."""

from __future__ import annotations

import numpy as np

from neuralsim.spec import WorldSpec


def to_units(spec: WorldSpec, actions: np.ndarray) -> np.ndarray:
    """Actions ``(..., a)`` of the world, in [-1, 1] or choices, in ``action_units`` per control step; their dtype is kept."""
    values = np.array(spec.action_offset) + np.array(spec.action_scale) * actions.astype(np.float64)
    return values.astype(spec.action_dtype)


def from_units(spec: WorldSpec, values: object, what: str = "action") -> np.ndarray:
    """The inverse of ``to_units``; what goes beyond the limits is brought within them. A ValueError says what is no action."""
    try:
        numbers = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: expected numbers (..., {spec.action_size}), got {type(values).__name__}") from error
    if numbers.ndim < 1 or numbers.shape[-1] != spec.action_size or not np.isfinite(numbers).all():
        told = f"{', '.join(spec.action_names)} in {', '.join(spec.action_units)}"
        raise ValueError(
            f"{what}: expected finite numbers (..., {spec.action_size}) ({told}), got shape {numbers.shape}"
        )
    scale = np.array(spec.action_scale)
    moves = numbers - np.array(spec.action_offset)
    actions = np.divide(moves, scale, out=np.zeros_like(moves), where=scale != 0)
    if spec.discrete:
        return spec.check_actions(np.rint(actions).astype(np.int64), what)
    return spec.check_actions(np.clip(actions, -1, 1), what)
