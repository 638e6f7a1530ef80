"""PolicySettings: the network of a saved Stable-Baselines3 policy, read from the plain text beside its weights.

SB3 pickles what JSON cannot hold, and writes each item as text next to it. Many settings leave no trace in the weights' shapes
(activation, ``normalize_images``, sharing of extractors); so every one is read, and a ValueError names one that is not known.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from neuralsim.storage.weights import ALLOWANCE, LEAST_ALLOWANCE, Allowance

POLICY_CLASSES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "stable_baselines3.common.policies": (("ppo", "a2c"), ("ActorCriticPolicy", "ActorCriticCnnPolicy")),
    "stable_baselines3.sac.policies": (("sac",), ("SACPolicy", "CnnPolicy")),
    "stable_baselines3.td3.policies": (("td3",), ("TD3Policy", "CnnPolicy")),
    "stable_baselines3.dqn.policies": (("dqn",), ("DQNPolicy", "CnnPolicy")),
    "sb3_contrib.common.recurrent.policies": (
        ("recurrent-ppo",),
        ("RecurrentActorCriticPolicy", "RecurrentActorCriticCnnPolicy"),
    ),
    "sb3_contrib.common.maskable.policies": ((), ("MaskableActorCriticPolicy", "MaskableActorCriticCnnPolicy")),
    "sb3_contrib.qrdqn.policies": ((), ("QRDQNPolicy", "CnnPolicy")),
    "sb3_contrib.tqc.policies": ((), ("TQCPolicy", "CnnPolicy")),
    "sb3_contrib.crossq.policies": ((), ("CrossQPolicy",)),
    "sb3_contrib.ars.policies": ((), ("ARSPolicy", "ARSLinearPolicy")),
}
"""Modules of policy classes: the algorithms of ours that use them, and the classes. DDPG's is TD3's, TRPO's is PPO's."""
UNUSED = ("ortho_init", "log_std_init", "optimizer_class", "optimizer_kwargs")
"""Settings of training alone: the loaded weights replace what they begin."""
SIDE, LAYERS, WIDTH, NUMBERS = 100_000, 64, 1_000_000, 2**22
"""Most actions, layers of a network, units of a layer, and numbers of an observation."""
_ACTIVATION = re.compile(r"<class 'torch\.nn\.modules\.(?:activation\.(\w+)|linear\.(Identity))'>")
_EXTRACTOR = re.compile(r"<class 'stable_baselines3\.common\.torch_layers\.(NatureCNN|FlattenExtractor)'>")


@dataclass(frozen=True)
class PolicySettings:
    """A policy class, the spaces it was made for, and the keywords it was made with."""

    policy_class: type[Any]
    algorithms: tuple[str, ...]
    """Algorithms of ours that make such policies; empty for others."""
    observation_space: spaces.Box
    action_space: spaces.Space[Any]
    keywords: dict[str, Any]

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> PolicySettings:
        """Read the object in the archive's member ``data``; a ValueError names what is not supported."""
        policy_class, algorithms = _read_policy_class(saved.get("policy_class"))
        text = saved.get("policy_kwargs")
        given = {} if text is None else text
        if not isinstance(given, dict):
            raise ValueError(f"policy_kwargs: expected an object, got {_shorten(given)}")  # noqa: TRY004
        given = {name: value for name, value in given.items() if name not in (":type:", ":serialized:")}
        known = inspect.signature(policy_class.__init__).parameters
        keywords = {}
        for name, value in given.items():
            if name in UNUSED:
                continue
            if name not in READERS or name not in known:
                raise ValueError(
                    f"policy_kwargs: {name}={_shorten(value)} is not supported for a {policy_class.__name__}"
                )
            try:
                keywords[name] = READERS[name](value)
            except ValueError as error:
                raise ValueError(f"policy_kwargs: {name}={_shorten(value)} is not supported ({error})") from error
        if "use_sde" in known and "use_sde" not in keywords:
            keywords["use_sde"] = _read_bool(saved.get("use_sde", False))
        if "ortho_init" in known:
            keywords["ortho_init"] = False  # slow, and the weights are replaced
        observed = _read_observation_space(saved.get("observation_space"))
        return cls(policy_class, algorithms, observed, _read_action_space(saved.get("action_space")), keywords)

    def build(self, weights: Mapping[str, torch.Tensor], action_space: spaces.Space[Any]) -> Any:
        """Return the network with ``weights``; a ValueError if they are not its. Nothing is allocated that they do not fill."""
        allowed = LEAST_ALLOWANCE + ALLOWANCE * sum(t.nbytes for t in weights.values() if isinstance(t, torch.Tensor))
        with torch.random.fork_rng(devices=[]):
            with Allowance(allowed):
                network = self._construct(action_space)
            _check_shapes(network.state_dict(), weights)
            network.load_state_dict(dict(weights))
            network.set_training_mode(False)
            if self.keywords.get("use_sde"):
                network.reset_noise()  # drawn with the standard deviation that was learned
        return network

    def _construct(self, action_space: spaces.Space[Any]) -> Any:
        known = inspect.signature(self.policy_class.__init__).parameters
        schedule = {"lr_schedule": _no_learning} if "lr_schedule" in known else {}
        return self.policy_class(self.observation_space, action_space, **schedule, **self.keywords)


def _no_learning(progress: float) -> float:
    return 0.0


def _check_shapes(own: Mapping[str, torch.Tensor], weights: Mapping[str, Any]) -> None:
    for name in sorted(own.keys() | weights.keys()):
        if name not in weights or name not in own:
            raise ValueError(f"{name}: {'missing' if name in own else 'not part of this network'}")
        tensor = weights[name]
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{name}: expected a tensor, got {type(tensor).__name__}")  # noqa: TRY004
        if (tensor.shape, tensor.dtype) != (own[name].shape, own[name].dtype):
            raise ValueError(
                f"{name}: expected {own[name].dtype} {tuple(own[name].shape)}, got {tensor.dtype} {tuple(tensor.shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name}: holds NaN or infinity")


# -- the class ---------------------------------------------------------------------------------------------------------


def _read_policy_class(text: Any) -> tuple[type[Any], tuple[str, ...]]:
    """Return the class whose text SB3 wrote, and our algorithms that use it; only classes of SB3 and sb3-contrib are looked up."""
    described = text if isinstance(text, dict) else {}
    module = str(described.get("__module__", ""))
    found = re.match(r"<function (\w+)\.__init__ at ", str(described.get("__init__", "")))
    name = found[1] if found else ""
    algorithms, names = POLICY_CLASSES.get(module, ((), ()))
    if name not in names:
        raise ValueError(
            f"policy_class: {module or 'an unknown module'}.{name or '?'} is not supported; expected an Mlp, Cnn or Linear "
            "policy of Stable-Baselines3 or sb3-contrib"
        )
    try:
        return getattr(importlib.import_module(module), name), algorithms
    except ImportError as error:
        raise ValueError(
            f"policy_class: {module}.{name} needs sb3-contrib ({error}): pip install 'neuralsim[rl]'"
        ) from error


# -- keywords ----------------------------------------------------------------------------------------------------------


def _read_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("True", "False"):  # numpy's
        return value == "True"
    raise ValueError("expected true or false")


def _read_number(value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or abs(number) > 1e9:
        raise ValueError("expected a number")
    return number


def _read_count(most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        number = _read_number(value)
        if number != int(number) or not 1 <= number <= most:
            raise ValueError(f"expected a whole number from 1 to {most}")
        return int(number)

    return read


def _read_layers(value: Any) -> list[int]:
    if not isinstance(value, list) or len(value) > LAYERS:
        raise ValueError(f"expected a list of at most {LAYERS} widths")
    return [_read_count(WIDTH)(width) for width in value]


def _read_net_arch(value: Any) -> list[int] | dict[str, list[int]]:
    """Read widths for all networks, or by network; SB3 before 1.8 wrote the latter inside a list."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0]
    if isinstance(value, dict):
        if not set(value) <= {"pi", "vf", "qf"}:
            raise ValueError("expected the networks pi, vf or qf")
        return {name: _read_layers(widths) for name, widths in value.items()}
    return _read_layers(value)


def _read_activation(value: Any) -> type[nn.Module]:
    found = _ACTIVATION.fullmatch(value) if isinstance(value, str) else None
    kind = getattr(nn, found[1] or found[2], None) if found else None
    if not isinstance(kind, type) or not issubclass(kind, nn.Module) or kind is nn.MultiheadAttention:
        raise ValueError("expected an activation of torch.nn")
    return kind


def _read_extractor(value: Any) -> type[nn.Module]:
    found = _EXTRACTOR.fullmatch(value) if isinstance(value, str) else None
    if not found:
        raise ValueError("expected Stable-Baselines3's NatureCNN or FlattenExtractor")
    return getattr(importlib.import_module("stable_baselines3.common.torch_layers"), found[1])


def _read_object(readers: Mapping[str, Callable[[Any], Any]]) -> Callable[[Any], dict[str, Any] | None]:
    def read(value: Any) -> dict[str, Any] | None:
        if value is None:
            return None
        if not isinstance(value, dict) or not set(value) <= readers.keys():
            raise ValueError(f"expected an object with some of {', '.join(readers)}")
        return {name: readers[name](item) for name, item in value.items()}

    return read


def _optional(reader: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else reader(value)


READERS: dict[str, Callable[[Any], Any]] = {
    "net_arch": _optional(_read_net_arch),
    "activation_fn": _read_activation,
    "features_extractor_class": _read_extractor,
    "features_extractor_kwargs": _read_object({"features_dim": _read_count(WIDTH), "normalized_image": _read_bool}),
    "share_features_extractor": _read_bool,
    "normalize_images": _read_bool,
    "use_sde": _read_bool,
    "full_std": _read_bool,
    "use_expln": _read_bool,
    "squash_output": _read_bool,
    "clip_mean": _read_number,
    "n_critics": _read_count(64),
    "n_quantiles": _read_count(10_000),
    "lstm_hidden_size": _read_count(WIDTH),
    "n_lstm_layers": _read_count(LAYERS),
    "shared_lstm": _read_bool,
    "enable_critic_lstm": _read_bool,
    "lstm_kwargs": _read_object({"bias": _read_bool, "dropout": _read_number}),
    "batch_norm": _read_bool,
    "batch_norm_momentum": _read_number,
    "batch_norm_eps": _read_number,
    "renorm_warmup_steps": _read_number,
    "with_bias": _read_bool,
}
"""Every setting that shapes the network or what it computes."""


# -- spaces ------------------------------------------------------------------------------------------------------------


def _read_observation_space(text: Any) -> spaces.Box:
    kind, described = _space_kind(text)
    if kind != "Box":
        raise ValueError(f"observation_space: {kind} is not supported; expected a Box")
    shape, dtype = _read_shape(described), str(described.get("dtype"))
    if math.prod(shape) > NUMBERS or dtype not in ("uint8", "float32", "float64", "int32", "int64", "float16", "int8"):
        raise ValueError(f"observation_space: {dtype} {shape} is not supported")
    if dtype != "uint8":
        low, high = (-np.inf, np.inf) if dtype.startswith("float") else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        return spaces.Box(low, high, shape, np.dtype(dtype).type)
    ends = [_bounds(described, name, shape) for name in ("low", "high")]
    if len(shape) == 3 and (ends[0] != {0.0} or ends[1] != {255.0}):  # SB3 recognises images by these bounds
        raise ValueError("observation_space: uint8 images with bounds other than 0 and 255 are not supported")
    return spaces.Box(0, 255, shape, np.uint8)


def _read_action_space(text: Any) -> spaces.Space[Any]:
    kind, described = _space_kind(text)
    if kind == "Box":
        shape = _read_shape(described)
        if len(shape) != 1 or shape[0] > SIDE:
            raise ValueError(f"action_space: a Box of shape {shape} is not supported")
        low, high = (_numbers(described.get(name)) for name in ("low", "high"))
        if not len(low) == len(high) == shape[0] or not all(a < b for a, b in zip(low, high, strict=True)):
            raise ValueError(f"action_space: bounds {_shorten(described.get('low'))} are not supported")
        return spaces.Box(np.array(low, np.float32), np.array(high, np.float32), dtype=np.float32)
    if kind == "Discrete":
        count, start = (_numbers(described.get(name, 0)) for name in ("n", "start"))
        if len(count) != 1 or start != [0.0] or not 1 <= count[0] <= SIDE:
            raise ValueError(f"action_space: Discrete({count}, start={start}) is not supported")
        return spaces.Discrete(int(count[0]))
    if kind == "MultiDiscrete":
        counts, starts = (_numbers(described.get(name, 0)) for name in ("nvec", "start"))
        shape = _read_shape(described)
        if len(shape) != 1 or len(counts) != shape[0] or not counts or any(starts) or not min(counts) >= 1:
            raise ValueError(f"action_space: MultiDiscrete of shape {shape} is not supported")
        if sum(counts) > SIDE:
            raise ValueError(f"action_space: {sum(counts):.0f} choices are not supported")
        return spaces.MultiDiscrete([int(n) for n in counts])
    raise ValueError(f"action_space: {kind} is not supported; expected a Box, Discrete or MultiDiscrete")


def _space_kind(text: Any) -> tuple[str, Mapping[str, Any]]:
    described = text if isinstance(text, dict) else {}
    found = re.fullmatch(r"<class 'gym(?:nasium)?\.spaces\.\w+\.(\w+)'>", str(described.get(":type:", "")))
    return (found[1] if found else "an unknown kind"), described


def _read_shape(described: Mapping[str, Any]) -> tuple[int, ...]:
    shape = described.get("_shape")
    if isinstance(shape, str):
        shape = [int(n) for n in re.findall(r"\d{1,9}", shape)]
    if not isinstance(shape, list) or len(shape) > 4 or not all(type(n) is int and 1 <= n <= NUMBERS for n in shape):
        raise ValueError(f"spaces: shape {_shorten(shape)} is not supported")
    return tuple(shape)


def _numbers(value: Any) -> list[float]:
    """Return the numbers in what SB3 wrote of an array; none where the text left some out."""
    text = str(value)
    if "..." in text or len(text) > 64 * SIDE:
        return []
    return [float(n) for n in re.findall(r"[-+]?(?:inf|nan|\d+\.?\d*(?:e[-+]?\d+)?|\.\d+)", text)]


def _bounds(described: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> set[float]:
    """Return the different numbers in the text of a bound, of which numpy shows the corners where it is long."""
    return set(_numbers(str(described.get(name)).replace("...", " ")))


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
