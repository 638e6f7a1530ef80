"""Driver: a policy, and what it looks at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from neuralsim.agents.explorer import PushTExplorer
from neuralsim.agents.policy_file import load_policy


class Policy(Protocol):
    """Anything that acts: Stable-Baselines3's ``predict``, word for word."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """An action for ``observation``, and the policy's state to pass back."""


@dataclass(frozen=True)
class Driver:
    """``policy`` under ``name``; ``sees``: the true ``state`` (5,), or of the dream its ``pixels`` (h, w, 3) or ``features`` (d,)."""

    name: str
    policy: Policy
    sees: Literal["state", "pixels", "features"]


def load_driver(source: str, frame_shape: tuple[int, ...], feature_size: int, seed: int = 0) -> Driver:
    """``explorer``, or the path of a Stable-Baselines3 ``.zip`` trained on pixels, features or the true state; read without
    unpickling."""
    if source == "explorer":
        return Driver("explorer", PushTExplorer(seed), "state")
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"policy: expected 'explorer' or the path of a Stable-Baselines3 .zip, got {source!r} (no such file)"
        )
    policy = load_policy(path)
    shape = tuple(policy.observation_space.shape)
    height, width, channels = frame_shape
    if shape in ((height, width, channels), (channels, height, width)):
        return Driver(path.stem, policy, "pixels")
    if shape == (feature_size,):
        return Driver(path.stem, policy, "features")
    if shape == (5,):
        return Driver(path.stem, policy, "state")
    raise ValueError(
        f"{path}: this policy looks at observations of shape {shape}; this world shows pixels {frame_shape}, features "
        f"({feature_size},) or the true state (5,)"
    )
