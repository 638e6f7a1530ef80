"""Oracle: a real simulator as a WorldModel, so that a planner can plan in the real dynamics.

It is the ceiling of planning, the reference for imagined plans, and the source of expert demonstrations. A state is the real
world's own numbers; a step is the real step, to the bit. Estimating a state from a frame (``encode``) is approximate, with
the estimator's error; ``at`` takes an exact one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config

from neuralsim.envs.tasks.real_world import find_real_world, real_worlds
from neuralsim.noise import Noise
from neuralsim.world_model import State, WorldModel


@dataclass(frozen=True)
class OracleState(State):
    """True states, float64 ``(b, s)``, in the real world's order and units."""

    values: torch.Tensor


class Oracle(WorldModel):
    """The simulator of the real world ``world`` as a WorldModel, drawn at ``size`` pixels. Exact, and slow: rows may be stepped
    one after the other.

    Reads ``reward`` and ``terminated`` as the real world has them. Features are the places of the things seen in half
    workspaces about the middle, so goal distances are displacements. Nothing is learned and the uncertainty is 0. Raises
    ValueError for a world without a simulator.
    """

    head_names: ClassVar[tuple[str, ...]] = ("reward", "terminated")

    @register_to_config
    def __init__(self, world: str = "pusht", size: int = 64, context: int = 4) -> None:
        super().__init__()
        found = find_real_world(world)
        if found is None or found.simulator is None:
            known = ", ".join(name for name, record in real_worlds().items() if record.simulator is not None)
            raise ValueError(f"Oracle: no simulator of world {world!r}; there are {known}")
        self.simulator = found.make_simulator(size, context)
        self.spec = self.simulator.spec
        # A model without weights has no device.
        self.register_buffer("anchor", torch.zeros(1, dtype=torch.float32))

    @property
    def feature_size(self) -> int:
        return self.simulator.feature_size

    @property
    def half_extent(self) -> float:
        """Units of the world in a feature of 1."""
        return self.simulator.half_extent

    def at(self, states: object) -> OracleState:
        """The OracleState of true states ``(b, s)`` or ``(s,)``, to the bit; a ValueError for anything else."""
        array = np.atleast_2d(np.asarray(states, np.float64))
        names = self.simulator.state_names
        if array.ndim != 2 or array.shape[1] != len(names) or not np.isfinite(array).all():
            raise ValueError(f"Oracle.at: expected finite states (b, {len(names)}) of {names}, got {states!r}")
        return self._state(array)

    def encode(self, frames: torch.Tensor, actions: torch.Tensor) -> OracleState:
        """Estimate the state from the newest frame alone: these worlds are Markov. Approximate; :meth:`at` is exact."""
        return self._state(self.simulator.read(frames[:, -1].cpu().numpy()))

    def step(self, state: OracleState, action: torch.Tensor, rng: Noise) -> OracleState:  # type: ignore[override]
        return self._state(self._play(state, action[:, None])[:, -1])

    def unroll(self, state: OracleState, actions: torch.Tensor, rng: Noise) -> OracleState:  # type: ignore[override]
        return self._state(self._play(state, actions))

    def unroll_last(self, state: OracleState, actions: torch.Tensor, rng: Noise) -> OracleState:  # type: ignore[override]
        return self._state(self._play(state, actions)[:, -1])

    def features(self, state: OracleState) -> torch.Tensor:  # type: ignore[override]
        return self.simulator.embed(state.values).float()

    def decode(self, state: OracleState) -> torch.Tensor:  # type: ignore[override]
        return self._tensor(np.stack([self.simulator.draw(row) for row in _rows(state)]))

    def uncertainty(self, state: OracleState) -> torch.Tensor:  # type: ignore[override]
        """Zeros."""
        return self._tensor(np.zeros(len(state), np.float32))

    def read(self, state: OracleState) -> dict[str, torch.Tensor]:  # type: ignore[override]
        found = np.array([self.simulator.reward_and_end(row) for row in _rows(state)], np.float32).reshape(-1, 2)
        return {"reward": self._tensor(found[:, 0].copy()), "terminated": self._tensor(found[:, 1].copy())}

    def read_state(self, state: OracleState) -> torch.Tensor:  # type: ignore[override]
        """True states, float64 ``(b, s)``."""
        return state.values

    def _play(self, state: OracleState, actions: torch.Tensor) -> np.ndarray:
        """Step under actions ``(b k a)``; returns the states after each, ``(b, k, s)``."""
        current, plans = _rows(state), self.spec.check_actions(actions.float().cpu().numpy())
        states = []
        for i in range(plans.shape[1]):
            current = self.simulator.step(current, plans[:, i])
            states.append(current)
        return np.stack(states, 1)

    def _state(self, states: np.ndarray) -> OracleState:
        return OracleState(self._tensor(states))

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def _rows(state: OracleState) -> np.ndarray:
    return state.values.cpu().numpy()
