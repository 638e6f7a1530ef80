"""The contract of everything that acts: Stable-Baselines3's ``predict``, and a policy with its name and what it observes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

ObservationKind = Literal["state", "pixels", "features", "nothing", "env", "own"]
"""Observation of a policy: the real ``state`` (s,), ``pixels`` (h, w, 3), a world model's ``features`` (d,), ``nothing``, the
environment's own observation (``env``), or that of the Gymnasium environment inside an adapter (``own``)."""


class Policy(Protocol):
    """Anything that acts: Stable-Baselines3's ``predict``, word for word."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Return the action for ``observation`` and the policy's state, to be passed to the next call."""


@dataclass(frozen=True, eq=False)
class NamedPolicy:
    """``policy`` under the ``name`` it was asked for, with the kind of its ``observation``."""

    name: str
    policy: Policy
    observation: ObservationKind
