"""Oracle: a true simulator behind the WorldModel contract, so that whoever plans in a learned world can plan in the truth.

It is the ceiling of planning, the judge of imagined plans, and the source of expert demonstrations. A state is the true
world's own numbers; a step is the true step, to the bit. Reading a state off a frame (``encode``) is approximate, with
the reader's error; ``at`` takes an exact one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
import pymunk
import torch
from diffusers.configuration_utils import register_to_config

from neuralsim.envs.pusht.env import (
    BLOCK_OUTSIDE,
    PUSHER_RADIUS,
    PUSHER_RANGE,
    STATE_NAMES,
    STEP_UNITS,
    SUCCESS_COVERAGE,
    WALLS,
    WORKSPACE,
    PushTRealEnv,
    pusht_spec,
)
from neuralsim.envs.pusht.state_estimator import BAR, STEM, PushTStateEstimator
from neuralsim.envs.tworoom import env as tworoom
from neuralsim.envs.tworoom.state_estimator import TwoRoomStateEstimator
from neuralsim.noise import Noise
from neuralsim.spec import WorldSpec
from neuralsim.world_model import State, WorldModel

LANDMARKS = ((-60.0, 15.0), (60.0, 15.0), (0.0, 120.0))
"""Points of the T, in units of its own frame: both ends of the bar and the stem's end."""
PUSHER_SHARE = 0.5
"""What a unit of the pusher's way counts beside a unit of a landmark's: the block is what a goal is about."""
CLEARANCE = 1.0
"""Units by which two things must miss each other for the simulator not to be asked."""


class Simulator(Protocol):
    """What the Oracle asks of a true world. States are float64, everything that there is to know."""

    spec: WorldSpec
    state_names: tuple[str, ...]
    feature_size: int
    half_extent: float

    def step(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """States ``(b, s)`` under ``actions`` ``(b, a)`` -> the states after."""

    def judge(self, state: np.ndarray) -> tuple[float, bool]:
        """The true reward and end in ``state`` ``(s,)``."""

    def draw(self, state: np.ndarray) -> np.ndarray:
        """The frame of ``state`` ``(s,)``, uint8 ``(h, w, 3)``."""

    def read(self, frames: np.ndarray) -> np.ndarray:
        """Frames ``(b, h, w, 3)`` -> valid states ``(b, s)``, as near as pixels tell."""

    def embed(self, states: torch.Tensor) -> torch.Tensor:
        """States ``(b, s)`` -> ``(b, d)``, whose distances are distances between the things seen, in half workspaces."""


@dataclass(frozen=True)
class OracleState(State):
    """The true state, float64 ``(b, s)``, in the true world's own order and units."""

    values: torch.Tensor


class Oracle(WorldModel):
    """The true ``world`` ("pusht" or "tworoom") as a WorldModel, drawn at ``size`` pixels. Exact, and slow: rows are
    stepped one after the other.

    Reads ``reward`` and ``terminated`` as the true task has them. Features are the places of pusher and block (or agent)
    in half workspaces about the middle, so goal distances are displacements. Nothing is learned and nothing is uncertain.
    """

    head_names: ClassVar[tuple[str, ...]] = ("reward", "terminated")

    @register_to_config
    def __init__(self, world: str = "pusht", size: int = 64, context: int = 4) -> None:
        super().__init__()
        if world not in SIMULATORS:
            raise ValueError(f"Oracle: no true simulator of world {world!r}; there are {', '.join(SIMULATORS)}")
        self.simulator = SIMULATORS[world](size, context)
        self.spec = self.simulator.spec
        # A model without weights has no device.
        self.register_buffer("anchor", torch.zeros(1))

    @property
    def feature_size(self) -> int:
        """See WorldModel."""
        return self.simulator.feature_size

    @property
    def half_extent(self) -> float:
        """Units that 1 in the features means."""
        return self.simulator.half_extent

    def at(self, states: object) -> OracleState:
        """True states ``(b, s)`` or ``(s,)``, to the bit; a ValueError for what is none."""
        array = np.atleast_2d(np.asarray(states, np.float64))
        names = self.simulator.state_names
        if array.ndim != 2 or array.shape[1] != len(names) or not np.isfinite(array).all():
            raise ValueError(f"Oracle.at: expected finite states (b, {len(names)}) of {names}, got {states!r}")
        return self._state(array)

    def encode(self, frames: torch.Tensor, actions: torch.Tensor) -> OracleState:
        """Reads the newest frame alone: the true worlds are Markov. Approximate; :meth:`at` is exact."""
        return self._state(self.simulator.read(frames[:, -1].cpu().numpy()))

    def step(self, state: OracleState, action: torch.Tensor, rng: Noise) -> OracleState:  # type: ignore[override]
        """See WorldModel."""
        return self._state(self._play(state, action[:, None])[:, -1])

    def unroll(self, state: OracleState, actions: torch.Tensor, rng: Noise) -> OracleState:  # type: ignore[override]
        """See WorldModel."""
        return self._state(self._play(state, actions))

    def jump(self, state: OracleState, actions: torch.Tensor, rng: Noise) -> OracleState:  # type: ignore[override]
        """See WorldModel."""
        return self._state(self._play(state, actions)[:, -1])

    def features(self, state: OracleState) -> torch.Tensor:  # type: ignore[override]
        """See WorldModel."""
        return self.simulator.embed(state.values).float()

    def decode(self, state: OracleState) -> torch.Tensor:  # type: ignore[override]
        """See WorldModel."""
        return self._tensor(np.stack([self.simulator.draw(row) for row in _rows(state)]))

    def uncertainty(self, state: OracleState) -> torch.Tensor:  # type: ignore[override]
        """Zeros."""
        return self._tensor(np.zeros(len(state), np.float32))

    def read(self, state: OracleState) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """See WorldModel."""
        said = np.array([self.simulator.judge(row) for row in _rows(state)], np.float32).reshape(-1, 2)
        return {"reward": self._tensor(said[:, 0].copy()), "terminated": self._tensor(said[:, 1].copy())}

    def read_state(self, state: OracleState) -> torch.Tensor:  # type: ignore[override]
        """See WorldModel: float64, exact."""
        return state.values

    def _play(self, state: OracleState, actions: torch.Tensor) -> np.ndarray:
        """``(b k a)`` -> the states after each action, ``(b, k, s)``."""
        here, plans = _rows(state), self.spec.check_actions(actions.float().cpu().numpy())
        states = []
        for i in range(plans.shape[1]):
            here = self.simulator.step(here, plans[:, i])
            states.append(here)
        return np.stack(states, 1)

    def _state(self, states: np.ndarray) -> OracleState:
        return OracleState(self._tensor(states))

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def _rows(state: OracleState) -> np.ndarray:
    return state.values.cpu().numpy()


class PushTSimulator:
    """The true Push-T as the Oracle asks for it."""

    state_names: tuple[str, ...] = STATE_NAMES
    feature_size: int = 2 + 2 * len(LANDMARKS)
    half_extent: float = WORKSPACE / 2

    def __init__(self, size: int, context: int) -> None:
        self.spec = pusht_spec(size, context)
        self._env = PushTRealEnv(size=size, observation="state")
        self._env.reset(seed=0)
        self._body = pymunk.Body(1, 1)
        self._body.center_of_gravity = self._env._sim.block.center_of_gravity

    def step(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """See Simulator. The physics are run only where something may touch."""
        there = np.clip(states[:, :2] + STEP_UNITS * actions.astype(np.float64), *PUSHER_RANGE)
        return np.array(
            [
                self._moved_pusher(state, place)
                if _pusher_misses(state, place) and _block_is_free(state)
                else self._pushed(state, action)
                for state, action, place in zip(states, actions, there, strict=True)
            ]
        ).reshape(states.shape)

    def judge(self, state: np.ndarray) -> tuple[float, bool]:
        """See Simulator."""
        self._env.set_state(state)
        coverage = self._env.coverage()
        return coverage, coverage > SUCCESS_COVERAGE

    def draw(self, state: np.ndarray) -> np.ndarray:
        """See Simulator."""
        self._env.set_state(state)
        return self._env.render()

    def read(self, frames: np.ndarray) -> np.ndarray:
        """See Simulator. What cannot be found is put where it does no harm: the pusher into the middle."""
        with torch.autocast("cpu", enabled=False):  # whoever dreams in bfloat16 must not make the reader do so
            seen = self._reader(frames)
        pusher = np.where(seen.pusher_found[:, None], seen.pusher, WORKSPACE / 2)
        block = np.nan_to_num(seen.block, nan=0.0, posinf=0.0, neginf=0.0)
        block[:, :2] = block[:, :2].clip(-BLOCK_OUTSIDE, WORKSPACE + BLOCK_OUTSIDE)
        return np.concatenate([pusher.clip(*PUSHER_RANGE), block], 1).astype(np.float64)

    def embed(self, states: torch.Tensor) -> torch.Tensor:
        """See Simulator: the pusher, then the landmarks of the T."""
        x, y, angle = states[:, 2], states[:, 3], states[:, 4]
        sine, cosine = torch.sin(angle), torch.cos(angle)
        half = self.half_extent
        columns = [PUSHER_SHARE * (states[:, 0] - half), PUSHER_SHARE * (states[:, 1] - half)]
        for u, v in LANDMARKS:
            columns += [x + u * cosine - v * sine - half, y + u * sine + v * cosine - half]
        return torch.stack(columns, 1) / half

    @cached_property
    def _reader(self) -> PushTStateEstimator:
        return PushTStateEstimator(self.spec.height)

    def _pushed(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        self._env.advance(state, action)
        return self._env.state()

    def _moved_pusher(self, state: np.ndarray, there: np.ndarray) -> np.ndarray:
        """Nothing but the pusher moves. The block's numbers pass through the body as they do in the simulator, which
        rounds their last bits."""
        body = self._body
        body.angle = state[4]
        body.position = tuple(state[2:4])
        return np.array([*there, *body.position, (body.angle + np.pi) % (2 * np.pi) - np.pi])


def _pusher_misses(state: np.ndarray, there: np.ndarray) -> bool:
    """Whether the pusher certainly touches no part of the block on its straight way to ``there`` ``(2,)``."""
    sine, cosine = math.sin(state[4]), math.cos(state[4])
    u, v = [], []
    for x, y in ((state[0], state[1]), there):
        dx, dy = x - state[2], y - state[3]
        u.append(dx * cosine + dy * sine)
        v.append(dy * cosine - dx * sine)
    room = PUSHER_RADIUS + CLEARANCE
    return all(
        min(u) > cx + hx + room or max(u) < cx - hx - room or min(v) > cy + hy + room or max(v) < cy - hy - room
        for (cx, cy), (hx, hy) in (BAR, STEM)
    )


def _block_is_free(state: np.ndarray) -> bool:
    """Whether the block certainly touches no wall."""
    sine, cosine = math.sin(state[4]), math.cos(state[4])
    low, high = WALLS[0] + CLEARANCE, WALLS[1] - CLEARANCE
    for (_, cy), (hx, hy) in (BAR, STEM):
        x, y = state[2] - cy * sine, state[3] + cy * cosine
        reach_x, reach_y = hx * abs(cosine) + hy * abs(sine), hx * abs(sine) + hy * abs(cosine)
        if not (low < x - reach_x and x + reach_x < high and low < y - reach_y and y + reach_y < high):
            return False
    return True


class TwoRoomSimulator:
    """The true TwoRoom as the Oracle asks for it: in numpy, so all rows step at once."""

    state_names: tuple[str, ...] = tworoom.STATE_NAMES
    feature_size: int = 2
    half_extent: float = tworoom.ARENA / 2

    def __init__(self, size: int, context: int) -> None:
        self.spec = tworoom.tworoom_spec(size, context)
        self._reader = TwoRoomStateEstimator(size)

    def step(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """See Simulator."""
        return tworoom.move(states, tworoom.STEP_UNITS * actions.astype(np.float64))

    def judge(self, state: np.ndarray) -> tuple[float, bool]:
        """See Simulator: the standing goal's."""
        distance = math.dist(state, tworoom.GOAL)
        return -distance / tworoom.ARENA, distance <= tworoom.SUCCESS_DISTANCE

    def draw(self, state: np.ndarray) -> np.ndarray:
        """See Simulator."""
        return tworoom.draw(state, self.spec.height)

    def read(self, frames: np.ndarray) -> np.ndarray:
        """See Simulator. An agent that cannot be found is put at the standing goal."""
        places, found = self._reader(frames)
        return _freed(np.where(found[:, None], places, tworoom.GOAL))

    def embed(self, states: torch.Tensor) -> torch.Tensor:
        """See Simulator."""
        return states / self.half_extent - 1


def _freed(places: np.ndarray) -> np.ndarray:
    """TwoRoom places ``(b, 2)``, those in a wall moved to a free one nearby."""
    low, high = tworoom.AGENT_RANGE
    inside = places.clip(low, high)
    left, right, door = inside.copy(), inside.copy(), inside.copy()
    left[:, 0] = left[:, 0].clip(low, tworoom.WALL[0] - tworoom.RADIUS)
    right[:, 0] = right[:, 0].clip(tworoom.WALL[1] + tworoom.RADIUS, high)
    door[:, 1] = door[:, 1].clip(tworoom.DOOR[0] + tworoom.RADIUS, tworoom.DOOR[1] - tworoom.RADIUS)
    choices = np.stack([left, right, door])
    nearest = np.linalg.norm(choices - inside, axis=-1).argmin(0)
    free = tworoom.clearance(inside) >= 0
    return np.where(free[:, None], inside, choices[nearest, np.arange(len(places))])


SIMULATORS: Mapping[str, Callable[[int, int], Simulator]] = {"pusht": PushTSimulator, "tworoom": TwoRoomSimulator}
"""The true worlds, by name."""
