"""Transition: the outcome of a batched step of an Imagination, and Chunk, that of several steps at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from neuralsim.state_view import View


@dataclass(frozen=True, eq=False)
class Transition:
    """Outcome of a step per row: reward float32, terminated and truncated bool, uncertainty float32, all ``(b,)``.

    truncated_by: ``"uncertainty"``, ``"horizon"`` or None (the first where both hold: the frame is not reliable).
    played: int64, steps taken, 0 for a row that was held.
    """

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    truncated_by: np.ndarray
    uncertainty: np.ndarray
    played: np.ndarray


@dataclass(frozen=True, eq=False)
class Chunk(Transition):
    """A Transition over k steps. Rewards are summed over the ``played`` ones; states after those do not count."""

    view: View
    """All k states, rows outermost: ``(b * k, ...)``."""

    def frames(self) -> np.ndarray:
        """Return uint8 ``(b, k, h, w, 3)``; row i's are valid up to ``played[i]``. Decoded at the first call."""
        return to_array(self.view.frame).reshape(len(self.played), -1, *self.view.frame.shape[1:])

    def features(self) -> np.ndarray:
        """Return float32 ``(b, k, d)``, valid likewise."""
        return to_array(self.view.features).reshape(len(self.played), -1, self.view.features.shape[-1])


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """Copy ``tensor`` to numpy: callers may write to the result."""
    return np.array(tensor.detach().cpu().numpy())
