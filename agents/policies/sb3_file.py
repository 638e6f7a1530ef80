"""Stable-Baselines3's policy files: its ``.zip``, written with a note about the policy, and read without unpickling code.

``PPO.load`` runs any pickled Python that the file holds. Here the network is built from the plain text beside its weights (see
PolicySettings), and the weights are read as plain tensors (see PolicyArchive); so a policy from elsewhere is safe to open.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
from gymnasium import spaces

from neuralsim.agents.policies.sb3_archive import NOT_A_POLICY, PolicyArchive
from neuralsim.agents.policies.sb3_settings import PolicySettings
from neuralsim.envs.wrappers.discrete_actions import discrete_actions, to_actions
from neuralsim.runtime.device import float32_by_default
from neuralsim.runtime.files import write_atomically

NOTE, NOTE_BYTES = "neuralsim.json", 2**20
"""The member of the zip that holds the PolicyNote, and its most bytes."""
ALGORITHMS = ("ppo", "a2c", "recurrent-ppo", "sac", "td3", "dqn")
"""Algorithms that the commands train."""


@dataclass(frozen=True)
class PolicyNote:
    """Origin and use of a policy, as its file records it."""

    algorithm: str = ""
    observation: str = ""
    """Kind of observation: pixels, features or state."""
    world: str = ""
    task: str = ""
    model: str = ""
    """World model that it was trained with."""
    steps: int = 0
    """Steps trained so far."""
    seed: int = 0
    moves: bool = False
    """True if its actions are indices of discrete actions (see neuralsim.envs.wrappers.discrete_actions)."""
    kind: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy ready to act, with Stable-Baselines3's ``predict``."""

    network: Any
    note: PolicyNote
    path: Path
    action_size: int
    own: bool = False
    """False: actions are returned in [-1, 1], also of a network that chooses among discrete ones; True: as the network has them."""

    @property
    def observation_space(self) -> spaces.Box:
        """The space of its observations."""
        return cast(spaces.Box, self.network.observation_space)

    @float32_by_default()
    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Return the actions of one observation or of a batch, and the state to pass back."""
        chosen, state = self.network.predict(observation, state, episode_start, deterministic)
        return (chosen if self.own else to_actions(chosen, self.action_size)), state


def save_policy(model: Any, path: Path, note: PolicyNote) -> None:
    """Write ``model`` (an SB3 algorithm) to ``path``; it appears whole or not at all. ``PPO.load`` reads it as well."""
    buffer = io.BytesIO()
    model.save(buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(NOTE, json.dumps(asdict(note)))
    write_atomically(path, buffer.getvalue())


def read_note(path: Path) -> PolicyNote:
    """Read the note of a policy file; an empty one where another program wrote it. Raises ValueError for a damaged one."""
    archive = PolicyArchive(path)
    return _read_note(archive)


def read_weights(path: Path) -> dict[str, dict[str, Any]]:
    """Read the tensors of the network and of each optimizer, by name as ``set_parameters`` takes them; nothing is unpickled."""
    archive = PolicyArchive(path)
    stems = [os.path.splitext(name) for name in archive.names]
    found = {
        s: archive.read_tensors(s + ".pth") for s, suffix in stems if suffix == ".pth" and s != "pytorch_variables"
    }
    _check_has_policy(archive)
    return found


@float32_by_default()
def load_policy(
    path: str | os.PathLike[str], action_size: int = 2, action_space: spaces.Space[Any] | None = None
) -> LoadedPolicy:
    """Return the policy in ``path``, ready to act on batches or single observations.

    It answers with actions ``(action_size,)`` in [-1, 1]; or, trained in an environment of its own, in that one's
    ``action_space``. Raises FileNotFoundError, or a ValueError that names the file and the part of it that is damaged, not
    supported, or made for other actions.
    """
    archive = PolicyArchive(Path(path))
    _check_has_policy(archive)
    if "data" not in archive.names:
        raise ValueError(f"{archive.path}: {NOT_A_POLICY} (it holds no data)")
    note = _read_note(archive)
    try:
        settings = PolicySettings.read(archive.read_object("data"))
        if note.algorithm and note.algorithm not in settings.algorithms:
            raise ValueError(f"its note says {note.algorithm!r}, its network is a {settings.policy_class.__name__}")
        acts = _match_actions(settings.action_space, action_size, action_space)
    except ValueError as error:
        raise ValueError(f"{archive.path}: {_without_path(error, archive.path)}") from error
    weights = archive.read_tensors("policy.pth")
    try:
        network = settings.build(weights, acts)
    except Exception as error:  # SB3's constructors raise various errors for settings that do not fit together
        name = note.algorithm or settings.policy_class.__name__
        raise ValueError(
            f"{archive.path}: policy.pth does not hold the weights of this {name} policy: {error}"
        ) from error
    return LoadedPolicy(network, note, archive.path, action_size, own=action_space is not None)


def algorithm_class(name: str) -> type[Any]:
    """Return Stable-Baselines3's class (sb3-contrib's for recurrent-ppo); a ValueError lists those there are."""
    import stable_baselines3 as sb3

    known = {"ppo": sb3.PPO, "a2c": sb3.A2C, "sac": sb3.SAC, "td3": sb3.TD3, "dqn": sb3.DQN}
    if name == "recurrent-ppo":
        try:
            from sb3_contrib import RecurrentPPO
        except ImportError as error:
            raise ValueError("recurrent-ppo needs sb3-contrib: pip install 'neuralsim[rl]'") from error
        return cast("type[Any]", RecurrentPPO)
    if name not in known:
        raise ValueError(f"no algorithm {name!r}; there are {', '.join([*known, 'recurrent-ppo'])}")
    return cast("type[Any]", known[name])


def _check_has_policy(archive: PolicyArchive) -> None:
    if "policy.pth" not in archive.names:
        raise ValueError(
            f"{archive.path}: holds no policy.pth; expected a file that Stable-Baselines3's model.save() wrote"
        )


def _read_note(archive: PolicyArchive) -> PolicyNote:
    if NOTE not in archive.names:
        return PolicyNote()
    value = archive.read_object(NOTE, NOTE_BYTES)
    types = {f.name: {"str": str, "int": int, "bool": bool}.get(str(f.type), dict) for f in fields(PolicyNote)}
    for name, item in value.items():
        if type(item) is not types.get(name):
            raise ValueError(f"{archive.path}: its {NOTE} is damaged ({name[:60]!r}: {type(item).__name__})")
    note = PolicyNote(**value)
    if note.algorithm and note.algorithm not in ALGORITHMS:
        raise ValueError(
            f"{archive.path}: algorithm {note.algorithm[:60]!r} is not known here; there are {', '.join(ALGORITHMS)}"
        )
    return note


def _match_actions(saved: spaces.Space[Any], action_size: int, wanted: spaces.Space[Any] | None) -> spaces.Space[Any]:
    """Return the space that the network acts in; a ValueError where ``saved`` means other actions than the environment's."""
    if wanted is None and isinstance(saved, spaces.Discrete):
        count = len(discrete_actions(action_size))
        if saved.n != count:
            raise ValueError(f"chooses among {saved.n} actions, this world has {count} discrete actions")
        return saved
    if wanted is None:
        wanted = spaces.Box(-1.0, 1.0, (action_size,), np.float32)
    same = type(saved) is type(wanted) and saved.shape == wanted.shape
    if isinstance(saved, spaces.Box) and isinstance(wanted, spaces.Box):
        same = same and np.allclose(saved.low, wanted.low, 1e-6) and np.allclose(saved.high, wanted.high, 1e-6)
    elif isinstance(saved, spaces.Discrete) and isinstance(wanted, spaces.Discrete):
        same = same and saved.n == wanted.n
    elif isinstance(saved, spaces.MultiDiscrete) and isinstance(wanted, spaces.MultiDiscrete):
        same = same and np.array_equal(saved.nvec, wanted.nvec)
    if not same:
        raise ValueError(f"was trained for actions {saved}, this environment has {wanted}")
    return wanted


def _without_path(error: ValueError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")
