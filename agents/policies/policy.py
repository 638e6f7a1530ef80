"""Driver: a policy, and what it looks at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from neuralsim.agents.policies.judges import find_drivers
from neuralsim.agents.policies.random_policies import HoldActionPolicy
from neuralsim.agents.policies.sb3_file import load_policy
from neuralsim.agents.teleop.reference_env import ReferenceEnv
from neuralsim.spec import WorldSpec


class Policy(Protocol):
    """Anything that acts: Stable-Baselines3's ``predict``, word for word."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """An action for ``observation``, and the policy's state to pass back."""


@dataclass(frozen=True)
class NamedPolicy:
    """``policy`` under ``name``; ``sees``: the true ``state`` (s,), or of the dream its ``pixels`` (h, w, 3) or ``features`` (d,), or
    ``nothing``."""

    name: str
    policy: Policy
    sees: Literal["state", "pixels", "features", "nothing"]


def load_driver(
    source: str, spec: WorldSpec, feature_size: int, twin: ReferenceEnv | None = None, seed: int = 0
) -> NamedPolicy:
    """``explorer``, or the name of one who drives ``spec``'s world by its frames, or the path of a Stable-Baselines3 ``.zip`` trained
    on pixels, features or the true state of ``twin``; read without unpickling."""
    if source == "explorer":
        if twin is None:
            return NamedPolicy(source, HoldActionPolicy(spec, seed), "nothing")
        return NamedPolicy(source, twin.collector.explorer(twin.env, seed), "state")
    others = find_drivers(spec)
    if source in others:
        return NamedPolicy(source, others[source], "pixels")
    path = Path(source)
    if not path.is_file():
        words = ", ".join(map(repr, ("explorer", *others)))
        raise FileNotFoundError(
            f"policy: expected {words} or the path of a Stable-Baselines3 .zip, got {source!r} (no such file)"
        )
    policy = load_policy(path, spec.action_size, spec.action_space() if spec.discrete else None)
    shape = tuple(policy.observation_space.shape)
    height, width, channels = spec.frame_shape
    if shape in ((height, width, channels), (channels, height, width)):
        return NamedPolicy(path.stem, policy, "pixels")
    if shape == (feature_size,):
        return NamedPolicy(path.stem, policy, "features")
    if twin is not None and shape == (len(twin.state_names),):
        return NamedPolicy(path.stem, policy, "state")
    true = "" if twin is None else f" or the true state ({len(twin.state_names)},)"
    raise ValueError(
        f"{path}: this policy looks at observations of shape {shape}; this world shows pixels {spec.frame_shape}, features "
        f"({feature_size},){true}"
    )
