"""Hard limits of a robot: position, speed and change of speed, kept together whatever a policy asks for.

A limit on position is useful only if the robot can still stop in front of it: where the change of an action is limited too, speed is
allowed only as far as the remaining way suffices to brake. So all limits can be kept in the next period whenever they were kept in
this one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neuralsim.spec import WorldSpec

Range = tuple[float, float]


@dataclass(frozen=True)
class Limits:
    """Hard limits of a robot, in the units of its spec."""

    position: Mapping[str, Range] = field(default_factory=dict)
    """Least and most of a reading of the robot, by the reading's name. A reading that no action moves (see ``moves``) is limited in
    imagination alone, as ``region`` is."""
    moves: Mapping[str, str] = field(default_factory=dict)
    """Action dimension that moves a reading; the action is then its displacement, ``action_offset + action_scale * action`` per
    period."""
    region: Mapping[str, Range] = field(default_factory=dict)
    """Least and most of imagined states by name (for example ``block_x``)."""
    speed: Sequence[float] | None = None
    """Most per action dimension, in ``action_units`` per second."""
    share: float = 1.0
    """Largest share of the action range, 1 for all of it."""
    change: float = math.inf
    """Largest difference between an action and the one before, in action units (2 and more: no limit)."""

    def __post_init__(self) -> None:
        for name, (low, high) in (*self.position.items(), *self.region.items()):
            if not low < high:
                raise ValueError(f"limits: {name!r}: expected the least below the most, got {low:g} and {high:g}")
        if unlimited := set(self.moves) - set(self.position):
            raise ValueError(f"limits: moves names {sorted(unlimited)}, whose position is not limited")
        if not 0 < self.share <= 1 or not self.change > 0:
            raise ValueError(f"limits: expected share in (0, 1] and change above 0, got {self.share} and {self.change}")
        if self.speed is not None and not all(v > 0 for v in self.speed):
            raise ValueError(f"limits: expected speeds above 0, got {list(self.speed)}")

    @property
    def imagined(self) -> dict[str, Range]:
        """Ranges of imagined states by name: region, and limited readings that no action moves."""
        return {**{name: ends for name, ends in self.position.items() if name not in self.moves}, **self.region}

    @property
    def pace(self) -> Limits:
        """Limits that hold at any place: all but position and region."""
        return Limits(speed=self.speed, share=self.share, change=self.change)

    def check(self, spec: WorldSpec) -> None:
        """Raise ValueError where these are no limits for robots of ``spec``."""
        if spec.discrete:
            if self.moves or self.speed is not None or self.share < 1 or math.isfinite(self.change):
                raise ValueError(f"limits: actions of {spec.name!r} are choices, which have neither speed nor way")
            return
        if unknown := set(self.moves.values()) - set(spec.action_names):
            raise ValueError(f"limits: moves: expected action names {spec.action_names}, got {sorted(unknown)}")
        if self.speed is not None and len(self.speed) != spec.action_size:
            raise ValueError(f"limits: expected {spec.action_size} speeds {spec.action_names}, got {list(self.speed)}")

    def check_readings(self, readings: Mapping[str, float] | None) -> None:
        """Raise ValueError unless every reading that actions move is there and finite: a robot at an unknown place cannot be
        kept within limits."""
        for name in self.moves:
            if readings is None or name not in readings:
                found = "none" if not readings else ", ".join(readings)
                raise ValueError(f"limits: {name!r} is limited, but the robot has no such reading (it has {found})")
            if not math.isfinite(float(readings[name])):
                raise ValueError(f"limits: {name!r} is limited, but the robot reports it as {float(readings[name])}")


def pusht_limits() -> Limits:
    """Return the limits of the real Push-T: its pusher's range, and all that its actions can do."""
    from neuralsim.envs.pusht.env import PUSHER_RANGE

    x, y = "pusher_x", "pusher_y"
    return Limits(position={x: PUSHER_RANGE, y: PUSHER_RANGE}, moves={x: "right", y: "down"})


def keep_limits(
    spec: WorldSpec, limits: Limits, action: Any, previous: np.ndarray | None, readings: Mapping[str, float] | None
) -> np.ndarray:
    """Return the action ``(a,)`` nearest to ``action`` that keeps ``limits``, float32 (int64 for choices).

    Anything that is no action (NaN, infinity, another shape, no choice of the spec) becomes the rest action, as far as the limits
    let it brake. Where not all limits can be kept, for example because the robot was carried outside, position and speed go before
    change. Outside of its range a reading may stay or come back, never go further; one that is not finite stays where it is.

    Args:
        spec: spec of the robot's world.
        limits: limits to keep.
        action: action that is asked for.
        previous: action sent last, None where the robot stands still.
        readings: readings of the robot by name.

    Raises ValueError where ``readings`` lacks a reading that is to be limited.
    """
    wanted = _wanted(spec, action)
    if spec.discrete:
        return wanted
    low, high = _reach(spec, limits, readings)
    rest = spec.rest_action().astype(np.float64)
    before = rest if previous is None else _wanted(spec, previous).astype(np.float64)
    near = np.clip(wanted.astype(np.float64), before - limits.change, before + limits.change)
    return np.clip(near, low, high).astype(np.float32)


def _wanted(spec: WorldSpec, action: Any) -> np.ndarray:
    """Return ``action`` clipped to the spec's range; the rest action for anything that is none."""
    try:
        array = np.asarray(action)
        if spec.discrete:
            return spec.check_actions(array.reshape(spec.action_size))
        array = array.astype(np.float64).reshape(spec.action_size)
    except (TypeError, ValueError, OverflowError):
        return spec.rest_action()
    return np.clip(array, -1, 1) if np.isfinite(array).all() else spec.rest_action()


def _reach(spec: WorldSpec, limits: Limits, readings: Mapping[str, float] | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and most action ``(a,)`` that keep share, speed and position."""
    scale, offset = np.array(spec.action_scale, np.float64), np.array(spec.action_offset, np.float64)
    most = np.full(spec.action_size, np.inf, np.float64)
    if limits.speed is not None:
        most = np.array(limits.speed, np.float64) / spec.rate_hz
    back, forth = -most, most.copy()  # displacements per period
    for name, dimension in limits.moves.items():
        if readings is None or name not in readings:
            limits.check_readings(readings)  # raises
            continue
        i = spec.action_names.index(dimension)
        here, (least, greatest) = float(readings[name]), limits.position[name]
        if not math.isfinite(here):
            back[i] = forth[i] = 0.0
            continue
        brake = limits.change * abs(scale[i])
        back[i] = max(back[i], -_fastest(here - least, brake))
        forth[i] = min(forth[i], _fastest(greatest - here, brake))
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.stack([(back - offset) / scale, (forth - offset) / scale])
    ends = np.where(np.isnan(ends), [[-np.inf], [np.inf]], ends)  # a dimension of scale 0 moves nothing
    low, high = ends.min(0), ends.max(0)
    share = np.full_like(low, limits.share)
    return np.clip(low, -share, share), np.clip(high, -share, share)


def _fastest(room: float, brake: float) -> float:
    """Return the largest displacement per period after which a robot that slows down by ``brake`` per period stops within ``room``.

    From d it still goes d + (d - brake) + (d - 2 brake) ... as long as that is above 0: with n terms, n d - brake n (n - 1) / 2.
    """
    if not room > 0:
        return 0.0
    if not math.isfinite(brake):
        return room
    n = math.ceil(math.sqrt(2 * room / brake + 0.25) - 0.5)  # the fewest with brake n (n + 1) / 2 >= room
    return room / max(n, 1) + brake * (max(n, 1) - 1) / 2
