"""Driver: a policy, and what it looks at."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from neuralsim.agents.explorer import PushTExplorer


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
    """``explorer``, or the path of a Stable-Baselines3 ``.zip`` trained on pixels, features or the true state.

    An SB3 file holds pickled Python: open only your own.
    """
    if source == "explorer":
        return Driver("explorer", PushTExplorer(seed), "state")
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"policy: expected 'explorer' or the path of a Stable-Baselines3 .zip, got {source!r} (no such file)"
        )
    policy = _load_sb3(path)
    shape = tuple(policy.observation_space.shape or ())
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


def _load_sb3(path: Path) -> Any:
    """The saved algorithm, of whichever class saved it: SB3 files do not say, but their settings give it away."""
    import stable_baselines3 as sb3

    try:
        with zipfile.ZipFile(path) as archive:
            saved = json.loads(archive.read("data"))
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a file that Stable-Baselines3's model.save() wrote ({error})") from error
    module = str(saved.get("policy_class", {}).get("__module__", ""))
    if "sac" in module:
        algorithm: Any = sb3.SAC
    elif "dqn" in module:
        raise ValueError(
            f"{path}: DQN chooses among few actions, this world's are continuous; use PPO, A2C, SAC, TD3 or DDPG"
        )
    elif "td3" in module:
        algorithm = sb3.TD3
    else:
        algorithm = sb3.PPO if "clip_range" in saved else sb3.A2C
    return algorithm.load(path, device="cpu")
