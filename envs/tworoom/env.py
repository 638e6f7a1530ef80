"""TwoRoom: a real world of two rooms, one door and a round agent, in numpy alone.

The agent's position is the whole state, so one frame shows everything and a step repeats from it to the bit. Collisions are
exact: the disc is swept along its way to the first wall or door post, the part of the way that leads into it is lost,
and the rest goes on along its surface. Nothing tunnels, however far it is pushed. The rooms and the door never change,
and the goal is not drawn: it belongs to the task, not to the world.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from neuralsim.envs.real_env import RealEnv
from neuralsim.spec import WorldSpec

ARENA = 512.0
"""Side of the square world, in units; 8 units are a pixel of a 64-pixel frame."""
STEP_UNITS = 16.0
"""Displacement in units for an action of 1: two pixels of a 64-pixel frame, 27.5 steps from wall to opposite wall."""
RADIUS = 20.0
"""Radius of the agent."""
RIM = 16.0
"""Thickness of the outer walls."""
WALL = (240.0, 272.0)
"""Left and right face of the wall between the rooms."""
DOOR = (128.0, 224.0)
"""Upper and lower end of the door in that wall: y points down."""
AGENT_RANGE = (RIM + RADIUS, ARENA - RIM - RADIUS)
"""The agent's centre stays within these coordinates."""
GOAL = (384.0, 256.0)
"""The goal: the middle of the right room. Frames show no goal, so stored rewards and ends all mean this one."""
SUCCESS_DISTANCE = 16.0
"""The goal is reached within this many units."""
STATE_NAMES = ("agent_x", "agent_y")

SLACK = 1e-3
"""Units that a given state may reach into a wall: the rounding of float32 is less."""
GLANCE = 1e-9
"""A path at no larger an angle than this to a corner's surface passes it, so that rounding does not stop a sliding agent."""
CONTACTS = 4
"""Surfaces that one step may slide along; the rest of its path at one more is lost."""

FLOORS = (
    ((RIM, WALL[0]), (RIM, ARENA - RIM), (247, 239, 224)),
    ((WALL[1], ARENA - RIM), (RIM, ARENA - RIM), (223, 236, 243)),
    (WALL, DOOR, (236, 218, 188)),
)
"""Left room, right room and door: their span in x, in y, and their colour."""
WALL_COLOUR = (58, 66, 82)
AGENT_COLOUR, AGENT_EDGE_COLOUR = (238, 82, 60), (150, 34, 42)
AGENT_EDGE = 4.0
"""Width in units of the agent's dark edge."""
SAMPLES = 4
"""Points a pixel side at which the agent is drawn."""


def tworoom_spec(size: int = 64, context: int = 1) -> WorldSpec:
    """The WorldSpec that the real and the learned TwoRoom share."""
    return WorldSpec(
        name="tworoom",
        height=size,
        width=size,
        action_names=("right", "down"),
        action_units=("arena units", "arena units"),
        action_scale=(STEP_UNITS, STEP_UNITS),
        rate_hz=10.0,
        context=context,
    )


class TwoRoomRealEnv(RealEnv):
    """Real TwoRoom: bring the round agent to a place, perhaps through the door into the other room.

    Observation: uint8 ``(size, size, 3)``, or with ``observation="state"`` float32 ``(2,)``: the agent's x, y in units
    of a 512-wide world. Action: float32 ``(2,)`` in [-1, 1], the agent's displacement right and down in steps of 16
    units. Reward: minus the straight distance to the goal in world widths, -1.2..0; it ignores the wall.
    Terminates within 16 units of the goal. ``info``: ``agent`` (2,), ``goal`` (2,), ``distance`` in units, ``success``.

    ``reset(options={"state": (2,), "goal": (2,)})`` starts exactly there with that goal, for this episode. By default the
    start is random and the goal is the middle of the right room: frames do not show it, so what is learned from them
    must not depend on it.
    """

    def __init__(
        self,
        size: int = 64,
        observation: Literal["pixels", "state"] = "pixels",
        render_mode: str | None = None,
    ) -> None:
        states = spaces.Box(0.0, ARENA, (2,), np.float32)
        super().__init__(tworoom_spec(size), states, observation, render_mode)
        self._place: np.ndarray | None = None
        self._goal = np.array(GOAL)

    # -- Gymnasium

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start at ``options["state"]`` or at random; the goal is ``options["goal"]`` or the default one."""
        super().reset(seed=seed)
        chosen = {k: v for k, v in (options or {}).items() if v is not None}
        unknown = set(options or {}) - {"state", "goal"}
        if unknown:
            raise ValueError(
                f"options: unknown {sorted(unknown)}; TwoRoomRealEnv.reset takes {{'state': (2,), 'goal': (2,)}}"
            )
        goal = check_place(chosen.get("goal", GOAL), "goal")
        self.set_state(chosen["state"] if "state" in chosen else random_state(self.np_random))
        self._goal = goal
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the agent by ``16 * action`` units, as far as the walls allow."""
        if self._place is None:
            raise gym.error.ResetNeeded("TwoRoomRealEnv.step before reset: call env.reset(seed=...) first")
        self._place = move(self._place[None], STEP_UNITS * self._checked(action)[None].astype(np.float64))[0]
        info = self._info()
        return self._observe(), -info["distance"] / ARENA, info["success"], False, info

    # -- the world's own state

    def state(self) -> np.ndarray:
        """Return the state, float64 ``(2,)``: the agent's x, y in units."""
        return self._position().copy()

    def set_state(self, state: object) -> None:
        """Put the agent at ``state`` (see :meth:`state`); a ValueError names one in a wall."""
        self._place = check_place(state, "state")

    def frame(self, size: int) -> np.ndarray:
        """The scene as uint8 ``(size, size, 3)``."""
        return draw(self._position(), size)

    def _position(self) -> np.ndarray:
        if self._place is None:
            raise gym.error.ResetNeeded("TwoRoomRealEnv has no state before reset: call env.reset(seed=...) first")
        return self._place

    def _info(self) -> dict[str, Any]:
        position = self._position()
        distance = math.dist(position, self._goal)
        return {
            "agent": position.copy(),
            "goal": self._goal.copy(),
            "distance": distance,
            "success": distance <= SUCCESS_DISTANCE,
        }


def random_state(rng: np.random.Generator, near_goal: bool = False) -> np.ndarray:
    """Draw a random free place ``(2,)``, every one equally likely; ``near_goal`` draws about the goal instead."""
    spread = 10 ** rng.uniform(0.5, 1.8) if near_goal else 0.0  # 3 to 60 units, so that both sides of success are seen
    while True:
        place = np.array(GOAL) + rng.normal(size=2) * spread if near_goal else rng.uniform(*AGENT_RANGE, 2)
        if clearance(place) >= 0:
            return place


# -- collision ---------------------------------------------------------------------------------------------------------

# For the centre of a disc, walls are thicker by its radius and their corners round. A face stops what moves along
# ``axis`` in the direction ``sign`` where the other coordinate lies in low..high.
_UP, _DOWN, _LEFT, _RIGHT = -1.0, 1.0, -1.0, 1.0
_FACES = np.array(
    [  # axis, place, sign, low, high
        (0, AGENT_RANGE[0], _LEFT, 0, ARENA),
        (0, AGENT_RANGE[1], _RIGHT, 0, ARENA),
        (1, AGENT_RANGE[0], _UP, 0, ARENA),
        (1, AGENT_RANGE[1], _DOWN, 0, ARENA),
        (0, WALL[0] - RADIUS, _RIGHT, 0, DOOR[0]),
        (0, WALL[0] - RADIUS, _RIGHT, DOOR[1], ARENA),
        (0, WALL[1] + RADIUS, _LEFT, 0, DOOR[0]),
        (0, WALL[1] + RADIUS, _LEFT, DOOR[1], ARENA),
        (1, DOOR[0] + RADIUS, _UP, *WALL),
        (1, DOOR[1] - RADIUS, _DOWN, *WALL),
    ]
)
_AXIS = _FACES[:, 0].astype(np.int64)
_PLACE, _SIGN, _LOW, _HIGH = _FACES[:, 1:].T
_NORMALS = -_SIGN[:, None] * np.eye(2)[_AXIS]
CORNERS = np.array([(x, y) for x in WALL for y in DOOR])
"""The four corners of the door posts, ``(4, 2)``."""


def clearance(places: np.ndarray) -> np.ndarray:
    """Return the distance of agents at ``places`` ``(..., 2)`` from the nearest wall, in units ``(...)``; negative inside one."""
    x, y = places[..., 0], places[..., 1]
    outer = np.minimum(np.minimum(x, ARENA - x), np.minimum(y, ARENA - y)) - RIM
    beside = np.maximum(WALL[0] - x, x - WALL[1])  # of the middle wall
    within = np.minimum(y - DOOR[0], DOOR[1] - y)  # the door's ends
    posts = np.hypot(np.maximum(beside, 0), np.maximum(within, 0)) + np.minimum(np.maximum(beside, within), 0)
    return np.minimum(outer, posts) - RADIUS


def check_place(place: object, what: str) -> np.ndarray:
    """Check ``place``; returns it as float64 ``(2,)`` or raises a ValueError that names its fault."""
    try:
        array = np.array(place, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{what}: expected 2 finite numbers {STATE_NAMES}, got {place!r}") from error
    if array.shape != (2,) or not np.isfinite(array).all():
        raise ValueError(f"{what}: expected 2 finite numbers {STATE_NAMES}, got {place!r}")
    if (array < 0).any() or (array > ARENA).any():
        raise ValueError(f"{what}: the agent's place must lie in 0..{ARENA:g} units, got {array.tolist()}")
    room = float(clearance(array))
    if room < -SLACK:
        raise ValueError(
            f"{what}: {array.tolist()} lies in a wall: the agent, {RADIUS:g} units in radius, would overlap it by "
            f"{-room:.4g}; x, y must lie in {AGENT_RANGE[0]:g}..{AGENT_RANGE[1]:g}, off the wall between "
            f"x = {WALL[0]:g} and {WALL[1]:g} or in its door between y = {DOOR[0]:g} and {DOOR[1]:g}"
        )
    return array


def move(places: np.ndarray, ways: np.ndarray) -> np.ndarray:
    """Push agents at free ``places`` ``(n, 2)`` by ``ways`` ``(n, 2)`` units; returns where they end, float64 ``(n, 2)``.

    Each goes straight to the first surface in its way, loses the part that leads into it, and goes on with the rest, so none
    goes farther than its way is long.
    """
    here, rest = np.array(places, np.float64), np.array(ways, np.float64)
    for _ in range(CONTACTS + 1):
        share, normal = _first_contact(here, rest)
        here += share[:, None] * rest
        rest *= (1 - share)[:, None]
        rest -= (rest * normal).sum(1, keepdims=True) * normal
        if not rest.any():
            break
    return here


def _first_contact(here: np.ndarray, way: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the share ``(n,)`` of each way that is free, and the normal ``(n, 2)`` of the surface that ends it."""
    gap, speed = (_PLACE - here[:, _AXIS]) * _SIGN, way[:, _AXIS] * _SIGN
    met = (speed > 0) & (gap < speed) & (gap >= -SLACK)
    faces = np.divide(gap.clip(min=0), speed, out=np.ones_like(gap), where=met)
    across = here[:, 1 - _AXIS] + faces * way[:, 1 - _AXIS]
    faces[(across < _LOW) | (across > _HIGH)] = 1.0

    # A corner is met where the square of the distance to it, a quadratic in the share, falls to the radius's.
    apart = here[:, None] - CORNERS
    a = (way * way).sum(1)[:, None]
    b = (apart * way[:, None]).sum(2)
    depth = b * b - a * ((apart * apart).sum(2) - RADIUS**2)
    met = (b < -GLANCE * RADIUS * np.sqrt(a)) & (depth > 0)
    corners = np.divide(-b - np.sqrt(depth.clip(min=0)), a, out=np.ones_like(b), where=met).clip(0, 1)

    shares = np.concatenate([faces, corners], 1)
    first = shares.argmin(1)
    share = shares[np.arange(len(here)), first]
    normal = _NORMALS[np.minimum(first, len(_FACES) - 1)]
    for i in np.flatnonzero(first >= len(_FACES)):
        away = here[i] + share[i] * way[i] - CORNERS[first[i] - len(_FACES)]
        normal[i] = away / np.sqrt(away @ away)
    return share, normal


# -- drawing -----------------------------------------------------------------------------------------------------------


def draw(place: np.ndarray, size: int = 64) -> np.ndarray:
    """Draw the scene with the agent at ``place`` ``(2,)``: uint8 ``(size, size, 3)``, each pixel the mean over its area."""
    scene, pixel = background(size), ARENA / size
    frame = scene.round().astype(np.uint8)
    first = np.maximum(np.floor((place - RADIUS) / pixel).astype(int) - 1, 0)
    last = np.minimum(np.ceil((place + RADIUS) / pixel).astype(int) + 1, size)
    columns, rows = (slice(a, b) for a, b in zip(first, last, strict=True))
    x, y = ((np.arange(a * SAMPLES, b * SAMPLES) + 0.5) * (pixel / SAMPLES) for a, b in zip(first, last, strict=True))
    outside = np.sqrt((x[None, :] - place[0]) ** 2 + (y[:, None] - place[1]) ** 2) - RADIUS
    disc, core = (_mean((0.5 - (outside + inset) * (SAMPLES / pixel)).clip(0, 1)) for inset in (0.0, AGENT_EDGE))
    colours = np.array([AGENT_EDGE_COLOUR, AGENT_COLOUR], np.float64)
    patch = scene[rows, columns] * (1 - disc) + (disc - core) * colours[0] + core * colours[1]
    frame[rows, columns] = patch.round()
    return frame


@lru_cache(maxsize=8)
def background(size: int) -> np.ndarray:
    """Draw the scene without its agent, float64 ``(size, size, 3)`` in 0..255, each pixel the mean over its area; read-only."""
    edges = np.linspace(0, ARENA, size + 1)

    def cover(low: float, high: float) -> np.ndarray:
        """Return the share of each pixel along one axis that lies in low..high, ``(size,)``."""
        return np.diff(edges.clip(low, high)) * (size / ARENA)

    picture = np.tile(np.array(WALL_COLOUR, np.float64), (size, size, 1))
    for x, y, colour in FLOORS:
        picture += (cover(*y)[:, None] * cover(*x))[..., None] * (np.array(colour, np.float64) - WALL_COLOUR)
    picture.flags.writeable = False
    return picture


def _mean(points: np.ndarray) -> np.ndarray:
    """``(h * SAMPLES, w * SAMPLES)`` -> the means over pixels, ``(h, w, 1)``."""
    h, w = (n // SAMPLES for n in points.shape)
    return points.reshape(h, SAMPLES, w, SAMPLES).mean((1, 3))[..., None]
