"""Robot: anything with cameras that actions can move, driven by the verbs of LeRobot.

LeRobot's own robots (``lerobot.robots.Robot``) fit without an adapter, and ours fit its tools. Observations and actions are flat
dicts by name: floats, and one uint8 ``(h, w, 3)`` per camera. Values are physical; a ``WorldSpec`` converts them from and to a
world's actions (``physical_action``, ``world_action``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from neuralsim.spec import WorldSpec

MOST_REFUSED = 10
"""Actions in a row that a robot may refuse before it counts as one that cannot be driven."""
_Connected = TypeVar("_Connected", bound="Robot")


class RobotLost(ConnectionError):
    """Nothing reaches the robot or comes from it; ``connect`` may find it again."""


class StaleFrame(TimeoutError):
    """The newest frame is too old to act on: camera or link are lost, or stand still."""


class ActionRefused(RuntimeError):
    """The robot refused more actions in a row than a busy one would."""


@runtime_checkable
class Robot(Protocol):
    """Robot with LeRobot's verbs. All but ``connect`` and the features need a connected one (``RobotLost``)."""

    name: str

    @property
    def observation_features(self) -> dict[str, type | tuple]:
        """Entries of ``get_observation``: ``float`` by name, and ``(h, w, 3)`` per camera. Known before ``connect`` where
        the robot is."""

    @property
    def action_features(self) -> dict[str, type]:
        """Entries that ``send_action`` takes: ``float`` by name."""

    @property
    def is_connected(self) -> bool:
        """True while it can be driven."""

    def connect(self, calibrate: bool = True) -> None:
        """Reach the robot, and calibrate it where it needs that."""

    def get_observation(self) -> dict[str, Any]:
        """Return the newest values of ``observation_features``. Raises StaleFrame or RobotLost where there are none.

        Our own robots add ``timestamp`` (seconds of the robot's clock, when the frame was taken) and ``step`` (actions
        carried out by then). Neither is a feature: LeRobot would take them for joints.
        """

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Ask for one control period's action; return the one really sent, within the robot's limits. An empty dict means
        that it was refused, because as many are waiting as the robot takes."""

    def disconnect(self) -> None:
        """Let go; the robot comes to rest."""


@runtime_checkable
class ResettableRobot(Robot, Protocol):
    """Simulated robot, which can be put where an episode begins. For evaluation: hardware cannot."""

    def reset(self, seed: int | None = None, state: np.ndarray | None = None) -> None:
        """Begin again, at a start drawn by ``seed`` or at ``state`` ``(s,)``; ``step`` counts from 0 again."""


class ReadyRobot:
    """LeRobot's other verbs for robots that need no calibration, and ``with``, which connects and disconnects."""

    def __enter__(self: _Connected) -> _Connected:
        self.connect()
        return self

    def __exit__(
        self: Robot, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()

    @property
    def is_calibrated(self) -> bool:
        """Always True."""
        return True

    def calibrate(self) -> None:
        """Do nothing: there is nothing to calibrate."""

    def configure(self) -> None:
        """Do nothing: there is nothing to configure."""


def check_actions_fit(robot: Robot, spec: WorldSpec) -> None:
    """Raise ValueError unless ``robot`` takes the actions of ``spec`` by their names."""
    if set(robot.action_features) != set(spec.action_names):
        raise ValueError(
            f"robot {robot.name!r} takes {', '.join(robot.action_features) or 'nothing'}, but world {spec.name!r} acts by "
            f"{', '.join(spec.action_names)}: they must have the same names"
        )


def physical_action(spec: WorldSpec, action: np.ndarray) -> dict[str, Any]:
    """Convert an action of the world, ``(a,)`` in [-1, 1] or choices, to ``action_units`` per control period, by name.

    Choices are whole numbers, as in ``WorldSpec.to_units``. Quantities keep all digits of the product, so that
    ``world_action`` gives the same action back to the bit. Raises ValueError for anything but one action.
    """
    checked = spec.check_actions(action)
    if checked.ndim != 1:
        raise ValueError(f"action: expected shape ({spec.action_size},), got {checked.shape}; robots do one at a time")
    if spec.discrete:
        values = spec.to_units(checked)
    else:
        values = np.array(spec.action_offset) + np.array(spec.action_scale) * checked.astype(np.float64)
    return dict(zip(spec.action_names, values.tolist(), strict=True))


def world_action(spec: WorldSpec, sent: Mapping[str, Any]) -> np.ndarray:
    """Convert what ``send_action`` returned to an action of the world ``(a,)``; the inverse of ``physical_action``."""
    missing = [name for name in spec.action_names if name not in sent]
    if missing:
        raise ValueError(
            f"action: expected {', '.join(spec.action_names)} in {', '.join(spec.action_units)}; {', '.join(missing)} missing "
            f"from {dict(sent)}"
        )
    return spec.from_units([sent[name] for name in spec.action_names])


def send_world_action(robot: Robot, spec: WorldSpec, action: np.ndarray) -> np.ndarray | None:
    """Send ``action`` ``(a,)`` to ``robot``; return the action really sent, or None where the robot refused it.

    Raises ValueError for an answer that is no dict of the world's actions: the robot may have moved all the same, so
    that the same action must not be sent again.
    """
    asked = physical_action(spec, action)
    sent: Any = robot.send_action(dict(asked))
    if not isinstance(sent, Mapping):
        found = "None" if sent is None else type(sent).__name__
        raise ValueError(  # noqa: TRY004
            f"robot {robot.name!r}: send_action returned {found}; expected a dict of the action that was sent "
            f"({', '.join(spec.action_names)}), or an empty one where it was refused"
        )
    if not sent:
        return None
    # An answer equal to the request is the action itself, without the rounding of a division.
    if all(isinstance(sent.get(name), Real) and sent[name] == value for name, value in asked.items()):
        return spec.check_actions(action)
    try:
        return world_action(spec, sent)
    except ValueError as error:
        raise ValueError(f"robot {robot.name!r}: send_action returned what it cannot have sent: {error}") from error


def read_observation(robot: Robot) -> Mapping[str, Any]:
    """Return the robot's newest observation; a ValueError where it is no dict."""
    observation: Any = robot.get_observation()
    if not isinstance(observation, Mapping):
        raise ValueError(  # noqa: TRY004
            f"robot {robot.name!r}: get_observation returned {type(observation).__name__}; expected a dict of pictures and readings"
        )
    return observation


def read_timestamp(robot: Robot, observation: Mapping[str, Any]) -> float | None:
    """Return when the frame was taken, in seconds of the robot's clock; None where the robot does not report it.

    Raises ValueError for a time that is not finite: no later frame could be compared with it.
    """
    return _read_number(robot, observation, "timestamp")


def read_step(robot: Robot, observation: Mapping[str, Any]) -> int | None:
    """Return how many actions the robot had carried out; None where it does not report it. Raises ValueError for less
    than 0 or a fraction."""
    value = _read_number(robot, observation, "step")
    if value is not None and (value < 0 or value % 1):
        raise ValueError(f"robot {robot.name!r}: step: expected a whole number of 0 or more, got {value:g}")
    return None if value is None else int(value)


def _read_number(robot: Robot, observation: Mapping[str, Any], name: str) -> float | None:
    value = observation.get(name)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"robot {robot.name!r}: {name}: expected a number, got {str(value)[:40]!r}") from error
    if not math.isfinite(number):
        raise ValueError(f"robot {robot.name!r}: {name}: expected a finite number, got {number}")
    return number
