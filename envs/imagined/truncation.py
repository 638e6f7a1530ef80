"""TruncationReason: why an imagined episode was cut off, as a number that libraries can batch and a name that people can read."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class TruncationReason(IntEnum):
    """Equal to its number and to its name: ``info["truncated_by"] == "horizon"``; false where nothing was cut off.

    An integer, because TorchRL and Minari make tensors of infos and take no texts.
    """

    NONE = 0
    HORIZON = 1
    UNCERTAINTY = 2

    def __eq__(self, other: object) -> bool:
        return self.name.lower() == other if isinstance(other, str) else int(self) == other

    def __hash__(self) -> int:
        return hash(int(self))

    @classmethod
    def of(cls, reasons: np.ndarray) -> np.ndarray:
        """Return the members of the names and Nones in ``reasons`` ``(b,)``, an array of objects as Gymnasium batches them."""
        return np.array([cls.NONE if reason is None else cls[reason.upper()] for reason in reasons], dtype=object)
