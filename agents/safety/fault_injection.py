"""Faults injected on purpose into chunks of the real Push-T, to measure whether a monitor detects them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from neuralsim.envs.pusht.env import PUSHER_RADIUS, WALL_GIVES, WALLS, PushTRealEnv, block_inside, distance_to_block

VISIBLE = 32
"""Grey levels by which some pixel must differ, in the frames that are watched, for a fault to count as visible."""
TRIES = 200
"""Directions tried for a pushed block before it stays where it is."""
RIM = WALLS[0] - WALL_GIVES
"""Least distance of a block from the edge of the workspace, in units."""


@dataclass(frozen=True, eq=False)
class FaultScene:
    """Course of a chunk without a fault."""

    frames: np.ndarray
    """uint8 ``(k + 1, h, w, 3)``."""
    actions: np.ndarray
    """``(k, a)``."""
    states: np.ndarray
    """``(k + 1, s)``."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault."""

    name: str
    group: str
    """Faults of one kind share it."""
    description: str
    happen: Callable[[FaultScene, int, np.random.Generator, PushTRealEnv], np.ndarray]
    """``(scene, at, rng, env)`` -> the frames ``(k + 1 - at, h, w, 3)`` from step ``at`` (1 to k) on, the first that the fault changes."""


def visible(scene: FaultScene, at: int, frames: np.ndarray) -> bool:
    """Return True if ``frames``, from step ``at`` on, differ from the scene's by more than VISIBLE grey levels anywhere."""
    return bool(np.abs(frames.astype(np.int16) - scene.frames[at : at + len(frames)]).max() > VISIBLE)


def pusht_faults(elsewhere: np.ndarray, other_world: np.ndarray) -> tuple[Fault, ...]:
    """Return the faults of Push-T.

    Args:
        elsewhere: uint8 ``(n, h, w, 3)``, frames of another robot's camera.
        other_world: uint8 ``(n, h, w, 3)``, frames of a camera in another world.
    """
    return (
        *(Fault(f"pushed-{u}", "pushed block", f"the block is pushed {u} units", _pushed(u)) for u in (10, 20, 40)),
        Fault("mirrored", "swapped camera", "the camera's picture is mirrored", _turned(lambda f: f[:, :, ::-1])),
        Fault("rotated", "swapped camera", "the camera is upside down", _turned(lambda f: f[:, ::-1, ::-1])),
        Fault("elsewhere", "swapped camera", "the camera of another Push-T", _replaced(elsewhere)),
        Fault("other-world", "swapped camera", "the camera of another world", _replaced(other_world)),
        Fault("offset", "shifted actions", "half the range is added to both actions", _shifted(_offset)),
        Fault("negated", "shifted actions", "actions are negated", _shifted(lambda actions, rng: -actions)),
        Fault(
            "swapped",
            "shifted actions",
            "right and down are exchanged",
            _shifted(lambda actions, rng: actions[:, ::-1]),
        ),
        Fault("frozen", "frozen frames", "the last frame is shown again and again", _frozen),
    )


def replay(env: PushTRealEnv, state: np.ndarray, actions: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Return frames ``(n + 1, h, w, 3)`` of ``actions`` ``(n, a)`` from ``state`` ``(5,)`` on."""
    env.set_state(state)
    frames = [np.asarray(env.render())]
    for action in actions:
        frames.append(env.step(np.asarray(action, np.float32))[0])
    return np.stack(frames)


def push_block(state: np.ndarray, units: float, rng: np.random.Generator) -> np.ndarray:
    """Move the block of ``state`` ``(5,)`` by ``units`` in a random direction in which it stays inside and clear of the pusher.

    Returns the state itself where there is no such direction."""
    for angle in rng.uniform(-np.pi, np.pi, TRIES):
        moved = np.array(state, np.float64)
        moved[2:4] += units * np.array([np.cos(angle), np.sin(angle)], np.float64)
        if block_inside(moved[2:], RIM) and distance_to_block(moved[:2], moved[2:]) > PUSHER_RADIUS:
            return moved
    return np.array(state, np.float64)


def _pushed(units: float) -> Callable[..., np.ndarray]:
    def happen(scene: FaultScene, at: int, rng: np.random.Generator, env: PushTRealEnv) -> np.ndarray:
        return replay(env, push_block(scene.states[at], units, rng), scene.actions[at:])

    return happen


def _shifted(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Callable[..., np.ndarray]:
    """From action ``at - 1`` on, other actions reach the robot than those planned."""

    def happen(scene: FaultScene, at: int, rng: np.random.Generator, env: PushTRealEnv) -> np.ndarray:
        begin = at - 1
        return replay(env, scene.states[begin], change(scene.actions[begin:], rng))[1:]

    return happen


def _offset(actions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half of the range from rest to full, either way in each dimension."""
    return np.clip(actions + 0.5 * rng.choice([-1.0, 1.0], actions.shape[1]), -1, 1).astype(np.float32)


def _turned(turn: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    def happen(scene: FaultScene, at: int, rng: np.random.Generator, env: PushTRealEnv) -> np.ndarray:
        return turn(scene.frames[at:])

    return happen


def _replaced(frames: np.ndarray) -> Callable[..., np.ndarray]:
    """Another camera shows ``frames`` from a random one on, one after the other."""

    def happen(scene: FaultScene, at: int, rng: np.random.Generator, env: PushTRealEnv) -> np.ndarray:
        begin = int(rng.integers(len(frames)))
        return frames[(begin + np.arange(len(scene.frames) - at)) % len(frames)]

    return happen


def _frozen(scene: FaultScene, at: int, rng: np.random.Generator, env: PushTRealEnv) -> np.ndarray:
    return np.repeat(scene.frames[at - 1 : at], len(scene.frames) - at, 0)
