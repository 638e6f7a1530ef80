"""Fault: what goes wrong on purpose while a chunk is being done in the true Push-T, so that a monitor can show whether it notices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from neuralsim.envs.pusht.env import PUSHER_RADIUS, WALL_GIVES, WALLS, PushTRealEnv, block_inside, distance_to_block

VISIBLE = 32
"""Grey levels by which some pixel must differ, while it is watched for, before a fault counts as one that can be seen at all."""
TRIES = 200
"""Directions tried for a pushed block before it stays where it is."""
HELD = WALLS[0] - WALL_GIVES
"""How near to the rim a block may come, in units."""


@dataclass(frozen=True, eq=False)
class FaultScene:
    """What would happen without a fault: frames uint8 ``(k + 1, h, w, 3)``, actions ``(k, a)``, states ``(k + 1, s)``."""

    frames: np.ndarray
    actions: np.ndarray
    states: np.ndarray


@dataclass(frozen=True)
class Fault:
    """``happen(scene, at, rng, env)`` gives the frames ``(k + 1 - at, h, w, 3)`` from step ``at`` (1 to k) on, the first that the fault
    touches; before it all is well. group: faults of one kind; told: what happens, for people."""

    name: str
    group: str
    told: str
    happen: Callable[[FaultScene, int, np.random.Generator, PushTRealEnv], np.ndarray]


def visible(scene: FaultScene, at: int, frames: np.ndarray) -> bool:
    """Whether ``frames``, those of some steps from ``at`` on, differ from the scene's by more than VISIBLE grey levels anywhere."""
    return bool(np.abs(frames.astype(np.int16) - scene.frames[at : at + len(frames)]).max() > VISIBLE)


def pusht_faults(elsewhere: np.ndarray, other_world: np.ndarray) -> tuple[Fault, ...]:
    """The faults of Push-T. ``elsewhere`` and ``other_world`` uint8 ``(n, h, w, 3)``: what another robot's camera shows, and one of
    another world."""
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
    """Frames ``(n + 1, h, w, 3)`` of ``actions`` ``(n, a)`` from ``state`` ``(5,)`` on."""
    env.set_state(state)
    frames = [np.asarray(env.render())]
    for action in actions:
        frames.append(env.step(np.asarray(action, np.float32))[0])
    return np.stack(frames)


def push_block(state: np.ndarray, units: float, rng: np.random.Generator) -> np.ndarray:
    """``state`` ``(5,)`` with its block ``units`` farther in some direction in which it stays inside and clear of the pusher; the
    state itself where there is none."""
    for angle in rng.uniform(-np.pi, np.pi, TRIES):
        moved = np.array(state, np.float64)
        moved[2:4] += units * np.array([np.cos(angle), np.sin(angle)])
        if block_inside(moved[2:], HELD) and distance_to_block(moved[:2], moved[2:]) > PUSHER_RADIUS:
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
    """Another camera: it shows ``frames`` from a random one on, one after the other."""

    def happen(scene: FaultScene, at: int, rng: np.random.Generator, env: PushTRealEnv) -> np.ndarray:
        begin = int(rng.integers(len(frames)))
        return frames[(begin + np.arange(len(scene.frames) - at)) % len(frames)]

    return happen


def _frozen(scene: FaultScene, at: int, rng: np.random.Generator, env: PushTRealEnv) -> np.ndarray:
    return np.repeat(scene.frames[at - 1 : at], len(scene.frames) - at, 0)
