"""Robot: the body that actions move and cameras watch, with LeRobot's verbs and their meanings.

LeRobot's own robots (``lerobot.robots.Robot``) fit without an adapter, and ours fit its tools. Observations and actions are flat
dicts by name: floats, and one uint8 ``(h, w, 3)`` per camera. Values are physical; a ``WorldSpec`` says how they follow from a
world's actions (``physical_action``, ``world_action``).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from neuralsim.action_units import from_units
from neuralsim.spec import WorldSpec

_Held = TypeVar("_Held", bound="Robot")


class RobotLost(ConnectionError):
    """Nothing reaches the robot or comes from it; ``connect`` may find it again."""


class StaleFrame(TimeoutError):
    """The newest frame is too old to act on: camera or link are lost, or stand still."""


@runtime_checkable
class Robot(Protocol):
    """What drives, watches and lets go of a robot. All but ``connect`` and the features want a connected one (``RobotLost``)."""

    name: str

    @property
    def observation_features(self) -> dict[str, type | tuple]:
        """What ``get_observation`` gives a policy: ``float`` by name, and ``(h, w, 3)`` for each camera. Known before ``connect``
        where the robot is."""

    @property
    def action_features(self) -> dict[str, type]:
        """What ``send_action`` takes: ``float`` by name."""

    @property
    def is_connected(self) -> bool:
        """Whether it can be driven now."""

    def connect(self, calibrate: bool = True) -> None:
        """Reach the robot, and calibrate it where it needs that."""

    def get_observation(self) -> dict[str, Any]:
        """The newest there is, by the names of ``observation_features``. ``StaleFrame`` or ``RobotLost`` say that there is none.

        Our own robots also tell ``timestamp`` (seconds of the robot's clock, when the frame was taken) and ``step`` (how many
        actions it had carried out by then). Neither is a feature: LeRobot would take them for joints.
        """

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Ask for one control period's action; returns what was really sent, within the robot's limits. Empty: it was refused,
        for as many are waiting as the robot takes."""

    def disconnect(self) -> None:
        """Let go; the robot comes to rest."""


@runtime_checkable
class ResettableRobot(Robot, Protocol):
    """A simulated robot, which can be put where an attempt begins. For evaluation: hardware cannot."""

    def reset(self, seed: int | None = None, state: np.ndarray | None = None) -> None:
        """Begin anew, at a start drawn by ``seed`` or at ``state`` ``(s,)``; ``step`` counts from 0 again."""


class ReadyRobot:
    """What robots share that need no calibration: LeRobot's other verbs, and ``with``, which connects and lets go."""

    def __enter__(self: _Held) -> _Held:
        self.connect()
        return self

    def __exit__(
        self: Robot, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()

    @property
    def is_calibrated(self) -> bool:
        """Always."""
        return True

    def calibrate(self) -> None:
        """Nothing is left to do."""

    def configure(self) -> None:
        """Nothing is left to do."""


def check_actions_fit(robot: Robot, spec: WorldSpec) -> None:
    """A ValueError unless ``robot`` takes the world's actions by their names."""
    if set(robot.action_features) != set(spec.action_names):
        raise ValueError(
            f"robot {robot.name!r} takes {', '.join(robot.action_features) or 'nothing'}, but world {spec.name!r} acts by "
            f"{', '.join(spec.action_names)}: they must have the same names"
        )


def physical_action(spec: WorldSpec, action: np.ndarray) -> dict[str, float]:
    """An action of the world, ``(a,)`` in [-1, 1] or choices, as a robot takes it: by name, in ``action_units`` per control
    period. A ValueError says what is wrong with it."""
    checked = spec.check_actions(action)
    if checked.ndim != 1:
        raise ValueError(f"action: expected shape ({spec.action_size},), got {checked.shape}; robots do one at a time")
    values = np.array(spec.action_offset) + np.array(spec.action_scale) * checked.astype(np.float64)
    return dict(zip(spec.action_names, values.tolist(), strict=True))


def world_action(spec: WorldSpec, sent: Mapping[str, Any]) -> np.ndarray:
    """The inverse of ``physical_action``, ``(a,)``: what ``send_action`` returned, as the world's models and stores have it."""
    missing = [name for name in spec.action_names if name not in sent]
    if missing:
        raise ValueError(
            f"action: expected {', '.join(spec.action_names)} in {', '.join(spec.action_units)}; {', '.join(missing)} missing "
            f"from {dict(sent)}"
        )
    return from_units(spec, [sent[name] for name in spec.action_names])
