"""PolicyFile: Stable-Baselines3's ``.zip``, written with a word about itself, and read without unpickling anything.

``PPO.load`` runs what pickled Python the file holds. Here the network's shape is worked out from the weights' own shapes and
the plain text beside them, and the weights are loaded as weights alone; so a stranger's policy can be looked at.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from neuralsim.envs.wrappers.discrete_actions import discrete_actions, to_actions

NOTE = "neuralsim.json"
"""The file inside the zip that says what the policy is for."""
MOST_BYTES = 256 * 2**20
"""A policy's weights are not larger than this."""
ACTIVATIONS: dict[str, type[nn.Module]] = {"Tanh": nn.Tanh, "ReLU": nn.ReLU, "ELU": nn.ELU, "SiLU": nn.SiLU}
TRUNKS = {
    "ppo": "mlp_extractor.policy_net.",
    "a2c": "mlp_extractor.policy_net.",
    "recurrent-ppo": "mlp_extractor.policy_net.",
    "sac": "actor.latent_pi.",
    "td3": "actor.mu.",
    "dqn": "q_net.q_net.",
}
"""Where each algorithm's network for acting keeps its layers."""
CRITICS = {"ppo": "mlp_extractor.value_net.", "a2c": "mlp_extractor.value_net.", "recurrent-ppo": "mlp_extractor.value_net.",
           "sac": "critic.qf0.", "td3": "critic.qf0."}  # fmt: skip


@dataclass(frozen=True)
class PolicyNote:
    """What a policy is for: algorithm; observation kind; world, task and world model it was trained with; steps so far; seed;
    whether its actions are numbers of moves (see neuralsim.envs.wrappers.discrete_actions)."""

    algorithm: str = ""
    observation: str = ""
    world: str = ""
    task: str = ""
    model: str = ""
    steps: int = 0
    seed: int = 0
    moves: bool = False
    kind: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy ready to act: Stable-Baselines3's ``predict``, whose answers are actions in [-1, 1] even where the network
    chooses among moves (DQN), or ``own``: the network's own answers."""

    network: Any
    note: PolicyNote
    path: Path
    action_size: int
    own: bool = False

    @property
    def observation_space(self) -> spaces.Box:
        """What it looks at."""
        return cast(spaces.Box, self.network.observation_space)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """See Stable-Baselines3's BasePolicy.predict."""
        chosen, state = self.network.predict(observation, state, episode_start, deterministic)
        return (chosen if self.own else to_actions(chosen, self.action_size)), state


def save_policy(model: Any, path: Path, note: PolicyNote) -> None:
    """Write ``model`` (an SB3 algorithm) to ``path``; it appears whole or not at all. ``PPO.load`` reads it as well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        model.save(file)
    with zipfile.ZipFile(temporary, "a") as archive:
        archive.writestr(NOTE, json.dumps(asdict(note)))
    os.replace(temporary, path)


def read_note(path: Path) -> PolicyNote:
    """What the file says of itself; empty for one that was not written here."""
    with _open(path) as archive:
        if NOTE not in archive.namelist():
            return PolicyNote()
        try:
            return PolicyNote(**json.loads(archive.read(NOTE)))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path}: its {NOTE} is damaged ({error})") from error


def read_weights(path: Path) -> dict[str, dict[str, Any]]:
    """The tensors of the network and of each optimizer, by name as ``set_parameters`` takes them; nothing is unpickled."""
    found = {}
    with _open(path) as archive:
        for info in archive.infolist():
            stem, suffix = os.path.splitext(info.filename)
            if suffix != ".pth" or stem == "pytorch_variables":
                continue
            if info.file_size > MOST_BYTES:
                raise ValueError(f"{path}: {info.filename} is {info.file_size >> 20} MiB, more than any policy needs")
            try:
                found[stem] = torch.load(io.BytesIO(archive.read(info)), map_location="cpu", weights_only=True)
            except Exception as error:  # torch raises whatever the damage leads to
                raise ValueError(f"{path}: {info.filename} does not hold plain weights ({error})") from error
    if "policy" not in found:
        raise ValueError(f"{path}: holds no policy.pth; expected a file that Stable-Baselines3's model.save() wrote")
    return found


def load_policy(
    path: str | os.PathLike[str], action_size: int = 2, action_space: spaces.Space[Any] | None = None
) -> LoadedPolicy:
    """The policy in ``path``, ready to act on batches or single observations; ValueError names what cannot be read. One that
    was trained in an environment of its own answers in that one's ``action_space``."""
    place = Path(path)
    weights = read_weights(place)["policy"]
    with _open(place) as archive:
        try:
            saved = json.loads(archive.read("data"))
        except (KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{place}: not a file that Stable-Baselines3's model.save() wrote ({error})") from error
    note = read_note(place)
    algorithm = note.algorithm or _algorithm(saved)
    if algorithm not in TRUNKS:
        raise ValueError(f"{place}: algorithm {algorithm!r} is not known here; there are {', '.join(TRUNKS)}")
    cnn = any(name.split(".")[-3:-1] == ["cnn", "0"] for name in weights)
    arch = {"pi": _widths(weights, TRUNKS[algorithm], algorithm)}
    if algorithm in CRITICS:
        arch["vf" if "ppo" in algorithm or algorithm == "a2c" else "qf"] = _widths(
            weights, CRITICS[algorithm], "critic" if algorithm in ("sac", "td3") else algorithm
        )
    settings: dict[str, Any] = {"net_arch": arch["pi"] if algorithm == "dqn" else arch}
    text = str(saved.get("policy_kwargs", {}))
    named = [name for name in ACTIVATIONS if f".{name}'" in text]
    if named:
        settings["activation_fn"] = ACTIVATIONS[named[0]]
    if cnn:
        seen: spaces.Box = spaces.Box(0, 255, _frame_shape(saved, place), np.uint8)
    else:
        first = next((w for n, w in weights.items() if n.startswith(_first_layer(algorithm))), None)
        if first is None:
            raise ValueError(f"{place}: its network is of no shape known here ({', '.join(list(weights)[:4])}, ...)")
        if algorithm == "recurrent-ppo":
            settings["lstm_hidden_size"] = weights["lstm_actor.weight_hh_l0"].shape[1]
        seen = spaces.Box(-np.inf, np.inf, (int(first.shape[1]),), np.float32)
    acts: spaces.Space[Any] = action_space or spaces.Box(-1.0, 1.0, (action_size,), np.float32)
    if algorithm == "dqn" and action_space is None:
        choices = int(weights[_last_layer(weights, TRUNKS["dqn"])].shape[0])
        if choices != len(discrete_actions(action_size)):
            raise ValueError(
                f"{place}: chooses among {choices} actions, this world has {len(discrete_actions(action_size))} moves"
            )
        acts = spaces.Discrete(choices)
    try:
        with torch.random.fork_rng(devices=[]):
            network = _policy_class(algorithm, cnn)(seen, acts, lambda _: 0.0, **settings)
        network.load_state_dict(weights)
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:
        raise ValueError(f"{place}: its weights do not make a {algorithm} policy: {error}") from error
    network.set_training_mode(False)
    return LoadedPolicy(network, note, place, action_size, own=action_space is not None)


def algorithm_class(name: str) -> type[Any]:
    """Stable-Baselines3's class (sb3-contrib's for recurrent-ppo); a ValueError lists those there are."""
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


def _policy_class(algorithm: str, cnn: bool) -> type[Any]:
    kind = "CnnPolicy" if cnn else "MlpLstmPolicy" if algorithm == "recurrent-ppo" else "MlpPolicy"
    return cast("type[Any]", algorithm_class(algorithm).policy_aliases[kind])


def _algorithm(saved: dict[str, Any]) -> str:
    """By what only one of them has a setting for."""
    module = str(saved.get("policy_class", {}).get("__module__", ""))
    for name in ("sac", "td3", "dqn", "recurrent"):
        if f".{name}." in module:
            return "recurrent-ppo" if name == "recurrent" else name
    return "ppo" if "clip_range" in saved else "a2c"


def _first_layer(algorithm: str) -> str:
    return "lstm_actor.weight_ih_l0" if algorithm == "recurrent-ppo" else TRUNKS[algorithm] + "0.weight"


def _last_layer(weights: dict[str, torch.Tensor], trunk: str) -> str:
    return [name for name in weights if name.startswith(trunk) and name.endswith("weight")][-1]


def _widths(weights: dict[str, torch.Tensor], trunk: str, algorithm: str) -> list[int]:
    """Output widths of a trunk's hidden layers; the networks of some end with the answer itself."""
    widths = [int(w.shape[0]) for n, w in weights.items() if n.startswith(trunk) and n.endswith("weight")]
    return widths[:-1] if algorithm in ("td3", "dqn", "critic") else widths


def _frame_shape(saved: dict[str, Any], path: Path) -> tuple[int, ...]:
    text = str(saved.get("observation_space", {}).get("_shape", ""))
    numbers = tuple(int(part) for part in text.strip("[]()").split(",") if part.strip().isdigit())
    if len(numbers) != 3:
        raise ValueError(f"{path}: looks at frames of unknown size ({text!r})")
    return numbers


def _open(path: Path) -> zipfile.ZipFile:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such policy; expected the .zip that 'neuralsim rl' or SB3's save() wrote")
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: not a file that Stable-Baselines3's model.save() wrote ({error})") from error
