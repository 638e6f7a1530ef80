"""View: a state as tasks, agents and people read it. Every quantity is computed on first access and kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from neuralsim.runtime.device import inference
from neuralsim.world_model import State, WorldModel


@dataclass(frozen=True, eq=False)
class View:
    """A state and the model that reads it. ``decoder``, where given, makes :attr:`frame` instead of ``model.decode``."""

    model: WorldModel
    state: State
    dtype: torch.dtype = torch.float32
    decoder: Callable[[], torch.Tensor] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.state)

    def __getstate__(self) -> dict[str, Any]:
        if self.decoder is None:
            return dict(self.__dict__)
        frame = self.frame  # a decoder is a closure, which cannot be pickled
        return self.__dict__ | {"decoder": None, "frame": frame}

    @cached_property
    def features(self) -> torch.Tensor:
        """float32 ``(b, d)``; never decodes."""
        with self.inference():
            return self.model.features(self.state)

    @cached_property
    def frame(self) -> torch.Tensor:
        """uint8 ``(b, h, w, 3)``, decoded at the first access."""
        with self.inference():
            return self.decoder() if self.decoder else self.model.decode(self.state)

    @property
    def decoded(self) -> bool:
        """True once :attr:`frame` has been computed."""
        return "frame" in self.__dict__

    @cached_property
    def world_state(self) -> torch.Tensor:
        """``(b, s)``: the model's estimate of the simulator state; a TypeError where it makes none."""
        with self.inference():
            return self.model.read_state(self.state)

    @cached_property
    def uncertainty(self) -> torch.Tensor:
        """float32 ``(b,)``: distance from the data the model was trained on."""
        with self.inference():
            return self.model.uncertainty(self.state)

    @cached_property
    def _heads(self) -> dict[str, torch.Tensor]:
        with self.inference():
            return self.model.read(self.state)

    def read(self, name: str) -> torch.Tensor:
        """Return the prediction of head ``name``, float32 ``(b,)``; a ValueError lists the heads there are."""
        if name not in self._heads:
            raise ValueError(
                f"{type(self.model).__name__} has no head {name!r}; it has {', '.join(self._heads) or 'none'}. "
                "Pass a task that needs no such head, e.g. GoalImage or FunctionTask"
            )
        return self._heads[name]

    def inference(self) -> AbstractContextManager[None]:
        """Context for calls of the model: no gradients, arithmetic in ``dtype``."""
        return inference(self.model.device, self.dtype)
