"""View: a state as tasks, agents and people read it. Every quantity is computed on first access and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from neuralsim.runtime.device import inference
from neuralsim.world_model import State, WorldModel


@dataclass(frozen=True, eq=False)
class View:
    """A state as a task, an agent or a person may look at it; everything is computed on demand and kept.

    ``decoder``, where given, makes :attr:`frame` instead of ``model.decode``.
    """

    model: WorldModel
    state: State
    dtype: torch.dtype = torch.float32
    decoder: Callable[[], torch.Tensor] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.state)

    @cached_property
    def features(self) -> torch.Tensor:
        """float32 ``(b, d)``; never decodes."""
        with self.inference():
            return self.model.features(self.state)

    @cached_property
    def frame(self) -> torch.Tensor:
        """uint8 ``(b, h, w, 3)``, decoded at the first look."""
        with self.inference():
            return self.decoder() if self.decoder else self.model.decode(self.state)

    @property
    def decoded(self) -> bool:
        """Whether somebody has looked at :attr:`frame`."""
        return "frame" in self.__dict__

    @cached_property
    def world_state(self) -> torch.Tensor:
        """``(b, s)``: the true state as the model reads it; a TypeError where it reads none."""
        with self.inference():
            return self.model.read_state(self.state)

    @cached_property
    def uncertainty(self) -> torch.Tensor:
        """float32 ``(b,)``: how far from what the model knows."""
        with self.inference():
            return self.model.uncertainty(self.state)

    @cached_property
    def _heads(self) -> dict[str, torch.Tensor]:
        with self.inference():
            return self.model.read(self.state)

    def read(self, name: str) -> torch.Tensor:
        """float32 ``(b,)``: the model's learned reading ``name``; a ValueError lists those there are."""
        if name not in self._heads:
            raise ValueError(
                f"{type(self.model).__name__} has no head {name!r}; it reads {', '.join(self._heads) or 'nothing'}. "
                "Pass a task that needs no such head, e.g. GoalImage or FunctionTask"
            )
        return self._heads[name]

    def inference(self) -> Any:
        """The context in which this view's model is to be called: no gradients, the dream's own precision."""
        return inference(self.model.device, self.dtype)
