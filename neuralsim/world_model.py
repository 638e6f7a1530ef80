"""WorldModel: the contract of every world model, and State, the value it steps.

Letters in shapes: ``b`` batch, ``t`` time, ``k`` chunk, ``a`` action, ``d`` features, ``h w c`` frame. Alignment:
``actions[:, i]`` carries ``frames[:, i]`` to ``frames[:, i + 1]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin

from neuralsim.noise import Noise
from neuralsim.spec import WorldSpec
from neuralsim.storage.hub import HubId, fetch
from neuralsim.storage.resolve import resolve

HUB_ARGUMENTS = {"revision", "token", "cache_dir", "force_download", "local_files_only", "proxies"}
"""Arguments of diffusers' ``from_pretrained`` that concern the hub."""
MAX_DENOISE_STEPS = 64
"""Most denoising passes per frame or chunk; models are trained with 1 to 4."""


def check_denoise_steps(steps: object, name: str = "denoise_steps") -> None:
    """Raise a ValueError unless ``steps`` is a whole number from 1 to MAX_DENOISE_STEPS."""
    whole = isinstance(steps, int | np.integer) and not isinstance(steps, bool)
    if not whole or not 1 <= steps <= MAX_DENOISE_STEPS:  # type: ignore[operator]
        raise ValueError(
            f"{name}: expected a whole number of at least 1 and at most {MAX_DENOISE_STEPS}, got {steps!r}"
        )


def check_sizes(config: object, **most: int) -> None:
    """Raise a ValueError unless each named field of ``config`` is a whole number from 1 to the given limit."""
    for name, limit in most.items():
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
            raise ValueError(
                f"{type(config).__name__}: {name}: expected a whole number from 1 to {limit}, got {value!r}"
            )


def compact(tensor: torch.Tensor) -> torch.Tensor:
    """Return ``tensor``, copied if it is a part of larger memory: pickling a view would write all of that."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size() else tensor


@dataclass(frozen=True)
class State:
    """All that a model carries from step to step: a frozen dataclass of tensors, batch first.

    Branching, snapshots and masked resets are the operations below; stepping returns a new State and changes none.
    """

    def __getstate__(self) -> dict[str, torch.Tensor]:
        return {f.name: compact(getattr(self, f.name)) for f in fields(self)}

    def __setstate__(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """Apply ``function`` to every tensor."""
        return type(self)(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def index(self, rows: torch.Tensor | slice) -> Self:
        """Return the state of ``rows``."""
        return self.map(lambda x: x[rows])

    def repeat(self, n: int) -> Self:
        """Repeat each row ``n`` times: ``(b, ...) -> (b * n, ...)``."""
        return self.map(lambda x: x.repeat_interleave(n, 0))

    def where(self, mask: torch.Tensor, other: Self) -> Self:
        """Return ``other``'s rows where ``mask`` ``(b,)`` holds, this state's elsewhere."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return type(self)(**{k: torch.where(mask.view(-1, *[1] * (x.ndim - 1)), y, x) for k, (x, y) in pairs.items()})

    def to(self, device: torch.device | str) -> Self:
        """Move the state to ``device``."""
        return self.map(lambda x: x.to(device))

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))


class WorldModel(ModelMixin, ConfigMixin, ABC):
    """A learned (or exact) world. ``save_pretrained``/``from_pretrained`` are diffusers': config.json and safetensors.

    Frames are uint8 ``(b, h, w, 3)``; actions float32 in [-1, 1], or int64 choices where ``spec`` has choices (networks read
    them through ``neuralsim.models.action_encoding``). All methods take tensors on the model's device and never touch global
    random state.
    """

    config_name = "config.json"  # type: ignore[assignment]
    spec: WorldSpec
    head_names: ClassVar[tuple[str, ...]] = ()
    """Names of the predictions that ``read`` returns: e.g. ``("reward", "terminated")``."""
    packed: ClassVar[tuple[str, ...]] = ()
    """Prefixes of the weights that a world's folder stores in eight bits each (see neuralsim.storage.quantization)."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Self:
        """Load a model in float32 from a folder, a shipped world's name or ``org/name`` on the hub (see ``neuralsim.storage.hub``).

        With diffusers' own hub arguments, such as ``revision``, diffusers loads it, which cannot unpack eight-bit weights: pass
        ``org/name@revision`` for those. Raises FileNotFoundError for anything else.
        """
        from neuralsim.storage.weights import read_packed  # it knows this module

        place = resolve(pretrained_model_name_or_path)
        if isinstance(place, HubId) and not kwargs.keys() & HUB_ARGUMENTS:
            place = fetch(place)
        with torch.device("cpu"):  # whatever the default device: weights are read into memory
            if isinstance(place, Path) and (model := read_packed(place, cls)) is not None:
                return model
            source = place.repo if isinstance(place, HubId) else str(place)
            return super().from_pretrained(source, **{"low_cpu_mem_usage": False, **kwargs}).float()

    @abstractmethod
    def encode(self, frames: torch.Tensor, actions: torch.Tensor) -> State:
        """Encode frames uint8 ``(b t h w c)`` and actions ``(b t-1 a)`` to the state after the last frame."""

    @abstractmethod
    def step(self, state: State, action: torch.Tensor, noise: Noise) -> State:
        """Take one step with ``action`` ``(b a)``."""

    @abstractmethod
    def features(self, state: State) -> torch.Tensor:
        """Return float32 ``(b d)`` for planners, heads and agents. Never decodes pixels."""

    @abstractmethod
    def decode(self, state: State) -> torch.Tensor:
        """Decode the frame, uint8 ``(b h w c)``."""

    @abstractmethod
    def uncertainty(self, state: State) -> torch.Tensor:
        """Return float32 ``(b,)``, at least 0: the distance of the state from the data the model was trained on."""

    @property
    @abstractmethod
    def feature_size(self) -> int:
        """``d`` of :meth:`features`."""

    def unroll(self, state: State, actions: torch.Tensor, noise: Noise) -> State:
        """Take k steps with ``actions`` ``(b k a)``; every tensor of the result has a time axis of k after the batch axis."""
        states = []
        for i in range(actions.shape[1]):
            state = self.step(state, actions[:, i], noise.advance(i))
            states.append(state)
        return stack_time(states)

    def unroll_last(self, state: State, actions: torch.Tensor, noise: Noise) -> State:
        """Return the state after the last of ``actions`` ``(b k a)`` alone, all that planners need of a block. A model that
        predicts blocks of actions in one pass overrides it."""
        for i in range(actions.shape[1]):
            state = self.step(state, actions[:, i], noise.advance(i))
        return state

    def without_ensemble(self, state: State) -> State:
        """Return as little of ``state`` as features of its future need, for callers that do not read ``uncertainty``."""
        return state

    def read(self, state: State) -> dict[str, torch.Tensor]:
        """Return learned predictions of a state, float32 ``(b,)`` each, named by ``head_names``."""
        return {}

    def read_state(self, state: State) -> torch.Tensor:
        """Estimate the simulator state ``(b s)`` in the world's order and units; a TypeError where the model predicts none."""
        raise TypeError(
            f"{type(self).__name__} does not predict simulator states; use a compact world (e.g. 'pusht-latent') or the Oracle"
        )


def stack_time(states: list[Any]) -> Any:
    """Stack the states after each of k steps to one whose tensors are ``(b, k, ...)``."""
    first = states[0]
    return type(first)(**{f.name: torch.stack([getattr(s, f.name) for s in states], 1) for f in fields(first)})


@torch.inference_mode()
def rollout(
    model: WorldModel, frames: np.ndarray, past: np.ndarray, actions: np.ndarray, noise: Noise, chunk: int = 1
) -> np.ndarray:
    """Roll out ``actions`` ``(b k a)`` from history ``frames`` ``(b t h w c)`` and ``past`` ``(b t-1 a)``.

    Returns the imagined frames, uint8 ``(b, k, h, w, 3)``; with ``chunk`` > 1 the model makes that many at once.
    """
    device = model.device
    state = model.encode(torch.as_tensor(frames, device=device), torch.as_tensor(past, device=device))
    planned = torch.as_tensor(model.spec.check_actions(actions), device=device)
    out = []
    for i in range(0, planned.shape[1], chunk):
        part = planned[:, i : i + chunk]
        states = model.unroll(state, part, noise.advance(i))
        out += [model.decode(states.index((slice(None), j))) for j in range(part.shape[1])]  # type: ignore[arg-type]
        state = states.index((slice(None), -1))  # type: ignore[arg-type]
    return torch.stack(out, 1).cpu().numpy()
