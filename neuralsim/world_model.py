"""WorldModel: the contract every world model keeps, and State, the value it steps.

Letters in shapes: ``b`` batch, ``t`` time, ``k`` chunk, ``a`` action, ``d`` features, ``h w c`` frame. Alignment:
``actions[:, i]`` carries
``frames[:, i]`` to ``frames[:, i + 1]``.
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

HUB_WORDS = {"revision", "token", "cache_dir", "force_download", "local_files_only", "proxies"}
"""Arguments of diffusers' ``from_pretrained`` that speak of the hub."""


@dataclass(frozen=True)
class State:
    """Everything a model carries from step to step: a frozen dataclass of tensors, batch first.

    Branching, snapshots and masked resets are the four operations below; stepping returns a new State and changes none.
    """

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """The state with ``function`` applied to every tensor."""
        return type(self)(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def index(self, rows: torch.Tensor | slice) -> Self:
        """The state of ``rows``."""
        return self.map(lambda x: x[rows])

    def repeat(self, n: int) -> Self:
        """Each row ``n`` times in a row: ``(b, ...) -> (b * n, ...)``."""
        return self.map(lambda x: x.repeat_interleave(n, 0))

    def where(self, mask: torch.Tensor, other: Self) -> Self:
        """``other``'s rows where ``mask`` ``(b,)`` holds, ours elsewhere."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return type(self)(**{k: torch.where(mask.view(-1, *[1] * (x.ndim - 1)), y, x) for k, (x, y) in pairs.items()})

    def to(self, device: torch.device | str) -> Self:
        """The state on ``device``."""
        return self.map(lambda x: x.to(device))

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))


class WorldModel(ModelMixin, ConfigMixin, ABC):
    """A learned (or exact) world. ``save_pretrained``/``from_pretrained`` are diffusers': config.json and safetensors.

    Frames go in and out as uint8 ``(b, h, w, 3)``; actions are float32 in [-1, 1], or int64 choices where ``spec`` says so
    (``models.action`` makes of them what a network can read). All methods but ``loss`` run
    without gradients unless the caller enables them, take tensors on the model's device, and never touch global random
    state.
    """

    config_name = "config.json"  # type: ignore[assignment]
    spec: WorldSpec
    head_names: ClassVar[tuple[str, ...]] = ()
    """What ``read`` can tell of a state: e.g. ``("reward", "terminated")``."""
    packed: ClassVar[tuple[str, ...]] = ()
    """Parts (beginnings of the weights' names) that take eight bits a weight in a world's folder (see neuralsim.storage.quantization)."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Self:
        """diffusers' ``from_pretrained``, in float32 whatever the file holds, and without its advice to install
        accelerate. Takes a folder, a shipped world's name or ``org/name`` on the hub (see ``neuralsim.storage.hub``; with diffusers'
        own words for it, such as ``revision``, diffusers asks the hub, and cannot unpack eight-bit weights: say ``org/name@revision``
        for those); a FileNotFoundError for anything else."""
        from neuralsim.storage.weights import read_packed  # it knows this module

        place = resolve(pretrained_model_name_or_path)
        if isinstance(place, HubId) and not kwargs.keys() & HUB_WORDS:
            place = fetch(place)
        if isinstance(place, Path) and (model := read_packed(place, cls)) is not None:
            return model
        source = place.repo if isinstance(place, HubId) else str(place)
        return super().from_pretrained(source, **{"low_cpu_mem_usage": False, **kwargs}).float()

    @abstractmethod
    def encode(self, frames: torch.Tensor, actions: torch.Tensor) -> State:
        """``(b t h w c)`` uint8 and ``(b t-1 a)`` -> the state after the last frame."""

    @abstractmethod
    def step(self, state: State, action: torch.Tensor, rng: Noise) -> State:
        """``(b a)``: one step of the world."""

    @abstractmethod
    def features(self, state: State) -> torch.Tensor:
        """float32 ``(b d)``: what planners, heads and agents read. Never decodes pixels."""

    @abstractmethod
    def decode(self, state: State) -> torch.Tensor:
        """uint8 ``(b h w c)``: what people look at."""

    @abstractmethod
    def uncertainty(self, state: State) -> torch.Tensor:
        """float32 ``(b,)``, at least 0: how far the state is from what the model knows."""

    @property
    @abstractmethod
    def feature_size(self) -> int:
        """``d`` of :meth:`features`."""

    def unroll(self, state: State, actions: torch.Tensor, rng: Noise) -> State:
        """``(b k a)``: a chunk; every tensor of the result has a time axis of k after the batch axis. By default, k
        steps."""
        states = []
        for i in range(actions.shape[1]):
            state = self.step(state, actions[:, i], rng.advance(i))
            states.append(state)
        return stack_time(states)

    def unroll_last(self, state: State, actions: torch.Tensor, rng: Noise) -> State:
        """``(b k a)``: the state after the last of k actions alone, which is all a planner asks of a block. By default,
        k steps; a model that predicts blocks of actions at once overrides it."""
        for i in range(actions.shape[1]):
            state = self.step(state, actions[:, i], rng.advance(i))
        return state

    def without_ensemble(self, state: State) -> State:
        """As little of ``state`` as its future's features need, for whoever does not ask for ``uncertainty``. By default,
        all of it."""
        return state

    def read(self, state: State) -> dict[str, torch.Tensor]:
        """Learned readings of a state, float32 ``(b,)`` each, named by ``head_names``."""
        return {}

    def read_state(self, state: State) -> torch.Tensor:
        """The true state ``(b s)`` in the world's own order and units, as well as the model knows it; a TypeError where it
        knows none."""
        raise TypeError(
            f"{type(self).__name__} does not tell true states; use a compact world (e.g. 'pusht-latent') or the Oracle"
        )

    def loss(self, clip: Any, rng: Noise) -> dict[str, torch.Tensor]:
        """Training loss per row, ``(b,)`` each; models that do not learn have none."""
        raise TypeError(f"{type(self).__name__} does not learn: it has no loss")


def stack_time(states: list[Any]) -> Any:
    """States after each of k steps -> one state whose tensors are ``(b, k, ...)``."""
    first = states[0]
    return type(first)(**{f.name: torch.stack([getattr(s, f.name) for s in states], 1) for f in fields(first)})


@torch.inference_mode()
def rollout(
    model: WorldModel, frames: np.ndarray, past: np.ndarray, actions: np.ndarray, rng: Noise, chunk: int = 1
) -> np.ndarray:
    """Dream ``actions`` ``(b k a)`` from history ``frames`` ``(b t h w c)`` and ``past`` ``(b t-1 a)``.

    Returns the imagined frames, uint8 ``(b, k, h, w, 3)``. ``chunk`` > 1 asks the model for that many frames at once.
    """
    device = model.device
    state = model.encode(torch.as_tensor(frames).to(device), torch.as_tensor(past).to(device))
    plan = torch.as_tensor(model.spec.check_actions(actions)).to(device)
    out = []
    for i in range(0, plan.shape[1], chunk):
        part = plan[:, i : i + chunk]
        states = model.unroll(state, part, rng.advance(i))
        out += [model.decode(states.index((slice(None), j))) for j in range(part.shape[1])]  # type: ignore[arg-type]
        state = states.index((slice(None), -1))  # type: ignore[arg-type]
    return torch.stack(out, 1).cpu().numpy()
