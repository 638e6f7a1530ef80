"""ImaginedSession: the batched imagined rollouts that all three interfaces show, with their observations, actions and infos."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces

from neuralsim.envs.imagined.config import RENDER_MODES, ImaginedEnvConfig
from neuralsim.envs.imagined.truncation import TruncationReason
from neuralsim.imagination import Imagination, ImaginationConfig
from neuralsim.pretrained.world import World, open_world
from neuralsim.spec import WorldSpec
from neuralsim.transition import Chunk, Transition


@dataclass(frozen=True)
class ImaginedSession:
    """An Imagination, and the part of it that an environment with ``config`` shows.

    Infos have the same keys and types after every reset and step, one row per environment: ``uncertainty``;
    ``truncated_by``, a TruncationReason; ``elapsed``, steps since the reset; ``start``, index of
    the shipped start (-1: the caller's own history); where the world knows it ``state``, the real simulator's state at the
    start (NaN: unknown); with a chunk ``played``, steps taken, and the k ``frames`` (or ``features``) on the way.
    """

    imagination: Imagination
    config: ImaginedEnvConfig

    @classmethod
    def open(cls, num_envs: int, world: str | os.PathLike[str] | World, config: ImaginedEnvConfig) -> Self:
        """Open ``world`` for ``num_envs`` environments."""
        opened = open_world(world, config.device)
        imagination = Imagination(
            opened.model,
            config.task,
            num_envs=num_envs,
            starts=opened.starts,
            config=ImaginationConfig(**{f.name: getattr(config, f.name) for f in fields(ImaginationConfig)}),
        )
        return cls(imagination, config)

    @property
    def num_envs(self) -> int:
        """Number of environments: rows of the batch."""
        return self.imagination.num_envs

    @property
    def world_spec(self) -> WorldSpec:
        """The world's spec."""
        return self.imagination.model.spec

    @property
    def observation_space(self) -> spaces.Box:
        """The space of one environment's observations."""
        model = self.imagination.model
        if self.config.observation == "pixels":
            return spaces.Box(0, 255, model.spec.frame_shape, np.uint8)
        return spaces.Box(-np.inf, np.inf, (model.feature_size,), np.float32)

    @property
    def action_space(self) -> spaces.Space[Any]:
        """The space of one environment's actions: ``(a,)``, or ``(chunk, a)``; see WorldSpec for discrete ones."""
        return self.world_spec.action_space(self.config.chunk)

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one environment's action as the world has it: ``(a,)``, or ``(chunk, a)``."""
        lead = () if self.config.chunk is None else (self.config.chunk,)
        return (*lead, self.world_spec.action_size)

    @property
    def metadata(self) -> dict[str, Any]:
        """Gymnasium's metadata, at the world's own rate."""
        return {"render_modes": RENDER_MODES, "render_fps": self.world_spec.rate_hz}

    def observe(self) -> np.ndarray:
        """Return the observations, ``(b, h, w, 3)`` uint8 or ``(b, d)`` float32."""
        return self.imagination.frames() if self.config.observation == "pixels" else self.imagination.features()

    def render(self) -> np.ndarray | None:
        """Return the current frames ``(b, h, w, 3)``; None without a render mode."""
        return self.imagination.frames() if self.config.render_mode == "rgb_array" else None

    def check_actions(self, actions: Any) -> torch.Tensor:
        """Return ``actions`` of the space of all rows as a tensor ``(b, *action_shape)``, or raise a ValueError; the one check."""
        return self.imagination.check_action(self.world_spec.from_space(actions), (self.num_envs, *self.action_shape))

    def check_action(self, action: Any) -> torch.Tensor:
        """Return one row's ``action`` as a tensor ``(1, *action_shape)``, or raise a ValueError; the one check."""
        array = self.world_spec.check_actions(self.world_spec.from_space(action))
        if array.shape != self.action_shape:
            raise ValueError(f"action: expected shape {self.action_space.shape}, got {np.shape(action)}")
        return torch.as_tensor(array[None], device=self.imagination.device)

    def advance(self, actions: torch.Tensor, mask: np.ndarray | None = None) -> Transition:
        """Take one step with checked ``actions`` ``(b, *action_shape)`` where ``mask`` ``(b,)`` holds, be it one action or a chunk."""
        if self.config.chunk is None:
            return self.imagination.step_unchecked(actions, mask)
        return self.imagination.step_chunk_unchecked(actions, mask)

    def infos(self, transition: Transition | None = None) -> dict[str, np.ndarray]:
        """Return the infos of all rows, after ``transition`` or a reset; see the class."""
        b, start = self.num_envs, self.imagination.start
        infos = {
            "uncertainty": self.imagination.uncertainty() if transition is None else transition.uncertainty,
            "truncated_by": TruncationReason.of(np.full(b, None) if transition is None else transition.truncated_by),
            "elapsed": self.imagination.elapsed,
            "start": start,
        }
        if (starts := self.imagination.starts) is not None and starts.states is not None:
            infos["state"] = starts.states[start, -1].astype(np.float32)
            infos["state"][start < 0] = np.nan
        if self.config.chunk is not None:
            infos |= self._chunk_infos(transition)
        return infos

    def _chunk_infos(self, transition: Transition | None) -> dict[str, np.ndarray]:
        """Return ``played`` ``(b,)`` and ``frames`` ``(b, k, h, w, 3)`` or ``features`` ``(b, k, d)``, real up to ``played``."""
        name = "frames" if self.config.observation == "pixels" else "features"
        if isinstance(transition, Chunk):
            return {"played": transition.played, name: getattr(transition, name)()}
        space, b = self.observation_space, self.num_envs
        empty = np.zeros((b, self.config.chunk or 1, *space.shape), space.dtype)
        return {"played": np.zeros(b, np.int64), name: empty}

    def row_info(self, infos: dict[str, np.ndarray], row: int) -> dict[str, Any]:
        """Return the infos of one row as plain numbers, texts and arrays, with the played part of a chunk."""
        info: dict[str, Any] = {
            "uncertainty": float(infos["uncertainty"][row]),
            "truncated_by": infos["truncated_by"][row],
            "elapsed": int(infos["elapsed"][row]),
            "start": int(infos["start"][row]),
        }
        if "state" in infos:
            info["state"] = infos["state"][row]
        if "played" in infos:
            info["played"] = int(infos["played"][row])
            name = "frames" if "frames" in infos else "features"
            info[name] = infos[name][row, : info["played"]]
        return info

    def fork(self, n: int) -> ImaginedSession:
        """Return a session on a fork of the Imagination: every row n times."""
        return replace(self, imagination=self.imagination.fork(n))
