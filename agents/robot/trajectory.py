"""TrajectoryBuffer: observations and actions of a robot by step number.

Frames that arrive late, twice or not at all never shift an action, for both are kept by the robot's own count of steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from neuralsim.agents.heads.chunk_policy import ObservationHistory
from neuralsim.data.episode import Episode
from neuralsim.spec import WorldSpec

LONGEST = 1000
"""Actions after which a buffer is written out, so that long runs reach the disk and leave memory."""


@dataclass(frozen=True, eq=False)
class TimedObservation:
    """One observation of the robot."""

    step: int
    """Actions carried out before it."""
    frame: np.ndarray
    """uint8 ``(h, w, 3)``."""
    timestamp: float
    """Seconds of the robot's clock when the frame was taken."""
    received: float
    """Seconds of the loop's clock when the frame was first seen."""
    readings: Mapping[str, float] = field(default_factory=dict)
    """Other numbers of the robot by name."""
    ground_truth: Mapping[str, Any] | None = None
    """Of a simulator: state ``(s,)``, coverage, success."""


class TrajectoryBuffer:
    """Stretch of an episode. Action i leads from step i to step i + 1; of several frames of one step the newest counts."""

    def __init__(self, spec: WorldSpec) -> None:
        self.spec = spec
        self._observations: dict[int, TimedObservation] = {}
        self._actions: dict[int, np.ndarray] = {}
        self._metadata: dict[int, Mapping[str, Any]] = {}
        self._first: int | None = None  # earlier steps are in an earlier buffer
        self.newest: TimedObservation | None = None
        """Observation of the latest step."""

    def __len__(self) -> int:
        return len(self._actions)

    def add_observation(self, observation: TimedObservation) -> bool:
        """Keep ``observation``; True if it is the newest there is."""
        known = self._observations.get(observation.step)
        if known is None or observation.timestamp > known.timestamp:
            self._observations[observation.step] = observation
        newest = self.newest
        if newest is None or (observation.step, observation.timestamp) > (newest.step, newest.timestamp):
            self.newest = observation
            return True
        return False

    def add_action(self, step: int, action: np.ndarray, metadata: Mapping[str, Any]) -> None:
        """Store the action ``(a,)`` sent at ``step`` and its JSON metadata."""
        self._actions[step], self._metadata[step] = action, metadata

    def actions(self, first: int, until: int) -> np.ndarray:
        """Return actions ``first`` to ``until`` - 1, ``(n, a)``; a KeyError where one of them was not sent."""
        none = np.zeros((0, self.spec.action_size), self.spec.action_dtype)
        return np.stack([self._actions[i] for i in range(first, until)]) if until > first else none

    def history(self, observation: TimedObservation) -> ObservationHistory:
        """Return one row of history up to ``observation``: at most the spec's context, without gaps in frames or actions."""
        first = observation.step
        while (
            observation.step - first + 1 < self.spec.context
            and first - 1 in self._observations
            and first - 1 in self._actions
        ):
            first -= 1
        frames = [*(self._observations[i].frame for i in range(first, observation.step)), observation.frame]
        return ObservationHistory(np.stack(frames)[None], self.actions(first, observation.step)[None])

    def episodes(self, provenance: Mapping[str, Any]) -> list[Episode]:
        """Return the buffer as whole episodes; a missing frame ends one and begins the next.

        Where the ground truth is known, its states, coverage (as reward) and success (as termination) are recorded; elsewhere
        rewards are 0, and ``provenance["rewards"]`` is "unknown".
        """
        steps = self._steps()
        joined = [b == a + 1 and a in self._actions for a, b in pairwise(steps)]
        runs: list[list[int]] = [[steps[0]]] if steps else []
        for step, linked in zip(steps[1:], joined, strict=True):
            if linked:
                runs[-1].append(step)
            else:
                runs.append([step])
        return [self._episode(run, provenance) for run in runs if len(run) > 1]

    def video(self, provenance: Mapping[str, Any]) -> list[Episode]:
        """Return all frames in order as video without actions; empty for fewer than two."""
        observations = [self._observations[i] for i in self._steps()]
        if len(observations) < 2:
            return []
        times = {"frame_times": [o.timestamp for o in observations]}
        return [Episode.of_video(np.stack([o.frame for o in observations]), {**provenance, **times})]

    def continuation(self) -> TrajectoryBuffer:
        """Return an empty buffer that begins where this one ends, with as much history as a policy reads."""
        rest = TrajectoryBuffer(self.spec)
        if self.newest is not None:
            for step in range(self.newest.step - self.spec.context + 1, max([self.newest.step, *self._actions]) + 1):
                if step in self._observations:
                    rest.add_observation(self._observations[step])
                if step in self._actions:
                    rest.add_action(step, self._actions[step], self._metadata[step])
            rest._first = self.newest.step
        return rest

    def _steps(self) -> list[int]:
        """Return the steps with a frame that no earlier buffer has."""
        return sorted(i for i in self._observations if self._first is None or i >= self._first)

    def _episode(self, run: list[int], provenance: Mapping[str, Any]) -> Episode:
        observations, steps = [self._observations[i] for i in run], run[:-1]
        truths = [o.ground_truth for o in observations if o.ground_truth is not None]
        known = len(truths) == len(observations)
        truncated = np.zeros(len(steps), bool)
        truncated[-1] = True
        metadata = [self._metadata[i] for i in steps]
        details = {
            "first_step": run[0],
            "frame_times": [o.timestamp for o in observations],
            "rewards": "true" if known else "unknown",
            "ticks": {key: [entry.get(key) for entry in metadata] for key in metadata[0]},
        }
        return Episode(
            frames=np.stack([o.frame for o in observations]),
            actions=self.actions(run[0], run[-1]),
            rewards=np.array([t["coverage"] for t in truths[1:]] if known else np.zeros(len(steps)), np.float32),
            terminated=np.array([t["success"] for t in truths[1:]] if known else np.zeros(len(steps)), bool),
            truncated=truncated,
            states=np.array([t["state"] for t in truths], np.float32) if known else None,
            provenance={**provenance, **details},
        )
