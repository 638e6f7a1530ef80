"""Push-T: the real simulator (gym-pusht) behind NeuralSim's spaces.

Physics, collision shapes, drawing and coverage are gym-pusht's own (pymunk). Four things are ours. The action is the
pusher's displacement, moved at constant speed over the step. Every step begins at rest, so the five numbers of the
state are all there is, a frame shows them, and a step repeats from them to the bit. The pusher stalls at a block that a
wall holds (gym-pusht's has endless strength and presses the block out of the workspace). And frames are area-averaged
rather than point-sampled, so a 64-pixel frame keeps sub-pixel positions.
"""

from __future__ import annotations

from typing import Any, Literal

import cv2
import gymnasium as gym
import numpy as np
import pygame
import pymunk
from gym_pusht.envs.pusht import PushTEnv as GymPushT
from gymnasium import spaces

from neuralsim.envs.real_env import RealEnv
from neuralsim.spec import WorldSpec

WORKSPACE = 512.0
"""Side of the square workspace, in simulator units."""
STEP_UNITS = 24.0
"""Pusher displacement in units for an action of 1: three pixels of a 64-pixel frame, 240 units a second."""
PUSHER_RANGE = (16.0, 496.0)
"""The pusher's centre stays within these coordinates, so that it is always seen."""
PUSHER_RADIUS = 15.0
WALLS = (7.0, 504.0)
"""Inner faces of the walls."""
WALL_GIVES = 2.0
"""Units that the block may be pressed into a wall."""
PUSHER_GIVES = 4.0
"""Units that the pusher may reach into a block held by a wall before it stalls."""
BLOCK_OUTSIDE = 128.0
"""Units outside the workspace that a given state may put the block's origin: episodes of gym-pusht itself go that far."""
GOAL_POSE = (256.0, 256.0, np.pi / 4)
"""Goal pose of the block: x, y in units, angle in radians."""
SUCCESS_COVERAGE = 0.95
BLOCK_OUTLINE = np.array(
    [(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], np.float64
)
"""The T's corners in units of its own frame, clockwise on the screen, ``(8, 2)``."""
STATE_NAMES = ("pusher_x", "pusher_y", "block_x", "block_y", "block_angle")


def pusht_spec(size: int = 64, context: int = 4) -> WorldSpec:
    """The WorldSpec that the real and the learned Push-T share."""
    return WorldSpec(
        name="pusht",
        height=size,
        width=size,
        action_names=("right", "down"),
        action_units=("workspace units", "workspace units"),
        action_scale=(STEP_UNITS, STEP_UNITS),
        rate_hz=10.0,
        context=context,
    )


class PushTRealEnv(RealEnv):
    """Real Push-T: push the grey T onto the green one with the blue pusher.

    Observation: uint8 ``(size, size, 3)``, or with ``observation="state"`` float32 ``(5,)``: pusher x, y, block x, y
    in units of a 512-wide workspace and block angle in radians. Action: float32 ``(2,)`` in [-1, 1], the pusher's
    displacement right and down in steps of 24 units. Reward: the share of the goal that the block covers, 0..1.
    Terminates when that exceeds 0.95.
    ``info``: ``pusher`` (2,), ``block`` (2,), ``angle``, ``coverage``, ``success``, ``contact`` (the pusher touched
    the block).

    ``reset(options={"state": (5,)})`` starts exactly there.
    """

    def __init__(
        self,
        size: int = 64,
        observation: Literal["pixels", "state"] = "pixels",
        render_mode: str | None = None,
    ) -> None:
        least = np.array([0, 0, 0, 0, -np.pi], np.float32)
        most = np.array([WORKSPACE, WORKSPACE, WORKSPACE, WORKSPACE, np.pi], np.float32)
        super().__init__(pusht_spec(size), spaces.Box(least, most), observation, render_mode)
        self._sim = _make_simulator(size)
        self._ready = False
        self._exact: np.ndarray | None = None

    # -- Gymnasium

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start at ``options["state"]`` (pusher x, y, block x, y, angle) or at a random state without overlap."""
        super().reset(seed=seed)
        unknown = set(options or {}) - {"state"}
        if unknown:
            raise ValueError(f"options: unknown {sorted(unknown)}; PushTRealEnv.reset takes {{'state': (5,)}}")
        state = random_state(self.np_random) if not options or options.get("state") is None else options["state"]
        self.set_state(state)
        return self._observe(), self._info(False)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the pusher by ``24 * action`` units in 0.1 s; stops at the workspace's rim."""
        if not self._ready:
            raise gym.error.ResetNeeded("PushTRealEnv.step before reset: call env.reset(seed=...) first")
        info = self._info(self.advance(self.state(), self._checked(action)))
        return self._observe(), info["coverage"], info["success"], False, info

    def close(self) -> None:
        self._sim.close()

    # -- the simulator's own state

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the simulator, which holds C objects: its five numbers are the whole state."""
        return {k: v for k, v in self.__dict__.items() if k != "_sim"} | {
            "_exact": self.state() if self._ready else None
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__dict__.update(saved)
        self._sim = _make_simulator(self.spec_world.height)
        if self._ready:
            exact = saved["_exact"]
            self._place(exact)
            self._exact = exact  # the body's rotation rounds the last bits

    def state(self) -> np.ndarray:
        """Return the state, float64 ``(5,)``: pusher x, y, block x, y in units, angle in radians within [-pi, pi)."""
        if self._exact is not None:
            return self._exact.copy()
        block = self._sim.block
        angle = (block.angle + np.pi) % (2 * np.pi) - np.pi
        return np.array([*self._sim.agent.position, *block.position, angle])

    def set_state(self, state: object) -> None:
        """Put pusher and block at rest at ``state`` (see :meth:`state`)."""
        array = np.asarray(state, dtype=np.float64)
        if array.shape != (5,) or not np.isfinite(array).all():
            raise ValueError(f"state: expected 5 finite numbers {STATE_NAMES}, got {state!r}")
        for name, place, low, high in (
            ("pusher", array[:2], 0.0, WORKSPACE),
            ("block", array[2:4], -BLOCK_OUTSIDE, WORKSPACE + BLOCK_OUTSIDE),
        ):
            if (place < low).any() or (place > high).any():
                raise ValueError(f"state: the {name}'s place must lie in {low:g}..{high:g} units, got {place.tolist()}")
        self._place(np.concatenate([np.clip(array[:2], *PUSHER_RANGE), array[2:]]))
        self._ready = True

    def advance(self, state: np.ndarray, action: np.ndarray) -> bool:
        """Run the physics of a step from any valid ``state`` ``(5,)``, to the bit; returns whether the pusher touched the block."""
        # The simulator would carry velocities and the contact solver's memory from step to step, which no frame shows.
        # A fresh one makes places and angle the whole state, and every step repeatable from them to the bit.
        self._place(state)
        sim = self._sim
        position = np.array(sim.agent.position)
        target = np.clip(position + STEP_UNITS * action.astype(np.float64), *PUSHER_RANGE)
        sim.n_contact_points = 0
        substeps = round(1 / (sim.dt * sim.control_hz))
        sim.agent.velocity = tuple((target - position) / (substeps * sim.dt))
        stalled = False
        for _ in range(substeps):
            before = sim.agent.position
            sim.space.step(sim.dt)
            # The pusher has endless strength in gym-pusht and would press the block through a wall; a robot stalls.
            if sim.n_contact_points and self._keep_inside() and self._overlap() > PUSHER_GIVES:
                sim.agent.position = before
                sim.space.reindex_shapes_for_body(sim.agent)
                stalled = True
        if not stalled:
            sim.agent.position = tuple(target)  # cancels the rounding of ten additions
        return bool(sim.n_contact_points > 0)

    def coverage(self) -> float:
        """Return the share of the goal that the block covers now, 0..1."""
        return float(np.clip(self._sim._get_coverage(), 0.0, 1.0))

    def frame(self, size: int) -> np.ndarray:
        """Draw the scene, uint8 ``(size, size, 3)``, area-averaged from gym-pusht's 512-pixel drawing."""
        surface = pygame.surfarray.pixels3d(self._sim._draw()).transpose(1, 0, 2)
        return cv2.resize(surface, (size, size), interpolation=cv2.INTER_AREA)

    def _keep_inside(self) -> bool:
        """Move the block back where it reaches more than ``WALL_GIVES`` into a wall; returns whether it touches one."""
        block, low, high = self._sim.block, WALLS[0] - WALL_GIVES, WALLS[1] + WALL_GIVES
        boxes = [shape.bb for shape in self._sim._block_shapes]
        left, right = min(b.left for b in boxes), max(b.right for b in boxes)
        bottom, top = min(b.bottom for b in boxes), max(b.top for b in boxes)
        shift = (max(0.0, low - left) - max(0.0, right - high), max(0.0, low - bottom) - max(0.0, top - high))
        if any(shift):
            block.position += shift
            self._sim.space.reindex_shapes_for_body(block)
        return min(left, bottom) < WALLS[0] or max(right, top) > WALLS[1]

    def _overlap(self) -> float:
        """Units that the pusher reaches into the block; negative where they are apart."""
        place = self._sim.agent.position
        return PUSHER_RADIUS - min(shape.point_query(place).distance for shape in self._sim._block_shapes)

    def _place(self, state: np.ndarray) -> None:
        """Reset the simulator to ``state``, everything at rest."""
        self._exact = None
        sim = self._sim
        sim._setup()
        sim.agent.position = tuple(state[:2])
        # Angle first: pymunk turns a body about its centre of gravity, which moves the position.
        sim.block.angle = state[4]
        sim.block.position = tuple(state[2:4])
        for body in (sim.agent, sim.block):
            sim.space.reindex_shapes_for_body(body)

    def _info(self, contact: bool) -> dict[str, Any]:
        state = self.state()
        coverage = self.coverage()
        return {
            "pusher": state[:2],
            "block": state[2:4],
            "angle": float(state[4]),
            "coverage": coverage,
            "success": bool(coverage > SUCCESS_COVERAGE),
            "contact": contact,
        }


def _make_simulator(size: int) -> GymPushT:
    return GymPushT(obs_type="state", observation_width=size, observation_height=size)


class _DisplacementActions(gym.ActionWrapper[np.ndarray, np.ndarray, np.ndarray]):
    """gym-pusht, whose actions are places, under PushTRealEnv's actions."""

    def action(self, action: np.ndarray) -> np.ndarray:
        return np.clip(np.array(self.get_wrapper_attr("agent").position) + STEP_UNITS * action, 0, WORKSPACE)


def make_bare_env(size: int) -> gym.Env[Any, Any]:
    """gym-pusht's own environment in frames of ``size`` under PushTRealEnv's actions, to compare speeds with."""
    return _DisplacementActions(GymPushT(obs_type="pixels", observation_width=size, observation_height=size))


def block_polygons(block_pose: np.ndarray) -> list[np.ndarray]:
    """Return the T's two rectangles at a pose x, y, angle: two arrays ``(4, 2)`` in workspace units."""
    x, y, angle = (float(v) for v in block_pose)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    bar = np.array([[-60, 30], [60, 30], [60, 0], [-60, 0]], dtype=np.float64)
    stem = np.array([[-15, 30], [-15, 120], [15, 120], [15, 30]], dtype=np.float64)
    return [part @ turn.T + (x, y) for part in (bar, stem)]


def distance_to_block(point: np.ndarray, block_pose: np.ndarray) -> float:
    """Return the distance in units from a point to the T's outline; 0 inside."""
    body = pymunk.Body(1, 1)
    body.angle, body.position = float(block_pose[2]), (float(block_pose[0]), float(block_pose[1]))
    origin = np.zeros(3)
    shapes = [pymunk.Poly(body, [tuple(v) for v in part]) for part in block_polygons(origin)]
    for shape in shapes:
        shape.cache_bb()
    return max(0.0, min(shape.point_query(tuple(point)).distance for shape in shapes))


def block_inside(block_pose: np.ndarray, margin: float = 8.0) -> bool:
    """Report that the whole T lies at least ``margin`` units inside the workspace."""
    corners = np.concatenate(block_polygons(block_pose))
    return bool((corners >= margin).all() and (corners <= WORKSPACE - margin).all())


def random_state(rng: np.random.Generator, near_goal: bool = False) -> np.ndarray:
    """Draw a random state ``(5,)``: block wholly inside, pusher not touching it; ``near_goal`` puts the block close to its goal."""
    while True:
        if near_goal:
            spread = 10 ** rng.uniform(-1.0, 1.6)  # from 0.1 to 40 units away, so that both sides of success are seen
            block = np.array(GOAL_POSE) + rng.normal(size=3) * (spread, spread, spread / 60)
        else:
            block = np.array([*rng.uniform(20, WORKSPACE - 20, 2), rng.uniform(-np.pi, np.pi)])
        if block_inside(block):
            break
    while True:
        pusher = rng.uniform(*PUSHER_RANGE, 2)
        if distance_to_block(pusher, block) > PUSHER_RADIUS + 1:
            return np.array([*pusher, *block])
