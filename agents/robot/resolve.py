"""RobotSource: the robot that a word names: the simulated one, an address, or the caller's own code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from neuralsim.envs.registry import find_real_world, real_worlds
from neuralsim.envs.robots.faults import Faults
from neuralsim.envs.robots.robot import Robot
from neuralsim.envs.tasks.real_world import RobotSettings, load
from neuralsim.runtime.imports import load_entry_point
from neuralsim.spec import WorldSpec

SIM = "sim"
VERBS = ("connect", "get_observation", "send_action", "disconnect")


@dataclass(frozen=True)
class RobotSource:
    """Robot named by ``word``: ``sim``, ``ws://host:port``, or ``module:function``, called without arguments, that returns a robot
    with LeRobot's verbs. Raises ValueError for other words."""

    word: str

    def __post_init__(self) -> None:
        if self.word != SIM and not self.remote and ":" not in self.word:
            raise ValueError(f"--robot {self.word!r}: expected sim, ws://host:port, or module:function")

    @property
    def remote(self) -> bool:
        """True if it is reached over a websocket."""
        return self.word.startswith(("ws://", "wss://"))

    @contextlib.contextmanager
    def open(
        self, spec: WorldSpec, pace: Literal["real", "step"], hz: float, faults: Faults, seed: int
    ) -> Iterator[Robot]:
        """Yield the robot, not connected yet. A simulated one runs in a process of its own, or in lock-step in this one."""
        if self.word == SIM:
            record = find_real_world(spec.name)
            if record is None or record.robot.simulated is None:
                known = ", ".join(repr(name) for name, world in real_worlds().items() if world.robot.simulated)
                raise ValueError(
                    f"--robot sim: there is a simulated robot for world {known} alone, and this is {spec.name!r}; name yours"
                )
            yield from _simulated(record.robot, pace, hz, faults, seed)
        elif self.remote:
            from neuralsim.envs.robots.remote_robot import RemoteRobot

            yield RemoteRobot(self.word)
        else:
            robot = load_entry_point(self.word, "--robot")()
            missing = [verb for verb in VERBS if not hasattr(robot, verb)]
            if missing:
                raise ValueError(
                    f"--robot {self.word}: expected a robot with LeRobot's verbs; it lacks {', '.join(missing)}"
                )
            yield robot


def _simulated(settings: RobotSettings, pace: str, hz: float, faults: Faults, seed: int) -> Iterator[Robot]:
    if pace == "step" or settings.server is None:
        assert settings.simulated is not None
        yield load(settings.simulated)(seed=seed, truth=True)
        return
    from neuralsim.envs.robots.remote_robot import RemoteRobot

    with load(settings.server)(rate=hz, faults=faults, seed=seed) as address:
        yield RemoteRobot(address)
