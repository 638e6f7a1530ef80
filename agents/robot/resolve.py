"""RobotSource: which robot is meant by a word: the simulated one, an address, or your own code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from neuralsim.envs.robots.faults import Faults
from neuralsim.envs.robots.robot import Robot
from neuralsim.runtime.imports import load_entry_point
from neuralsim.spec import WorldSpec

SIM = "sim"
SIMULATED = "pusht"
"""The world of which there is a simulated robot."""


@dataclass(frozen=True)
class RobotSource:
    """``word``: ``sim``, ``ws://host:port``, or ``module:function``, called without arguments, that returns a robot with LeRobot's
    verbs. A ValueError for others."""

    word: str

    def __post_init__(self) -> None:
        if self.word != SIM and not self.remote and ":" not in self.word:
            raise ValueError(f"--robot {self.word!r}: expected sim, ws://host:port, or module:function")

    @property
    def remote(self) -> bool:
        """Whether it is reached over a websocket."""
        return self.word.startswith(("ws://", "wss://"))

    @contextlib.contextmanager
    def open(
        self, spec: WorldSpec, pace: Literal["real", "step"], hz: float, faults: Faults, seed: int
    ) -> Iterator[Robot]:
        """The robot, not connected yet. A simulated one runs in a process of its own, or in lock-step in this one."""
        if self.word == SIM:
            if spec.name != SIMULATED:
                raise ValueError(
                    f"--robot sim: there is a simulated robot for world {SIMULATED!r} alone, and this is {spec.name!r}; name yours"
                )
            yield from self._simulated(pace, hz, faults, seed)
        elif self.remote:
            from neuralsim.envs.robots.remote_robot import RemoteRobot

            yield RemoteRobot(self.word)
        else:
            robot = load_entry_point(self.word, "--robot")()
            lacking = [v for v in ("connect", "get_observation", "send_action", "disconnect") if not hasattr(robot, v)]
            if lacking:
                raise ValueError(
                    f"--robot {self.word}: expected a robot with LeRobot's verbs; it lacks {', '.join(lacking)}"
                )
            yield robot

    def _simulated(self, pace: str, hz: float, faults: Faults, seed: int) -> Iterator[Robot]:
        if pace == "step":
            from neuralsim.envs.pusht.robot import PushTRobot

            yield PushTRobot(seed=seed, truth=True)
            return
        from neuralsim.envs.pusht.robot_server import RobotSimConfig, spawn_robot_sim
        from neuralsim.envs.robots.remote_robot import RemoteRobot

        with spawn_robot_sim(RobotSimConfig(port=0, rate=hz, faults=faults, seed=seed, truth=True)) as address:
            yield RemoteRobot(address)
