"""Tape: what a robot saw and did, by its own steps, so that frames which come late, twice or not at all never shift an action."""

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
"""Actions after which a tape is cut, so that long runs reach the disk and leave memory."""


@dataclass(frozen=True, eq=False)
class TimedObservation:
    """A frame uint8 ``(h, w, 3)`` after ``step`` actions; when it was ``taken`` (seconds of the robot's clock) and ``came`` (of the
    loop's), the robot's other numbers by name, and of a simulator the ``truth``: state ``(s,)``, coverage, success."""

    step: int
    frame: np.ndarray
    taken: float
    came: float
    place: Mapping[str, float] = field(default_factory=dict)
    truth: Mapping[str, Any] | None = None


class TrajectoryBuffer:
    """One stretch of driving. Action i carries the robot from step i to step i + 1; of several frames of one step the newest
    counts."""

    def __init__(self, spec: WorldSpec) -> None:
        self.spec = spec
        self._sights: dict[int, TimedObservation] = {}
        self._actions: dict[int, np.ndarray] = {}
        self._notes: dict[int, Mapping[str, Any]] = {}
        self._from: int | None = None  # what lies before is on an earlier tape
        self.newest: TimedObservation | None = None
        """The sight of the latest step."""

    def __len__(self) -> int:
        return len(self._actions)

    def see(self, sight: TimedObservation) -> bool:
        """Keep a frame; whether it is the newest there is."""
        known = self._sights.get(sight.step)
        if known is None or sight.taken > known.taken:
            self._sights[sight.step] = sight
        if self.newest is None or (sight.step, sight.taken) > (self.newest.step, self.newest.taken):
            self.newest = sight
            return True
        return False

    def did(self, step: int, action: np.ndarray, note: Mapping[str, Any]) -> None:
        """What was really sent as action number ``step``, and what there is to say of it, as plain JSON."""
        self._actions[step], self._notes[step] = action, note

    def done(self, first: int, until: int) -> np.ndarray:
        """Actions ``first`` to ``until`` - 1, ``(n, a)``; a KeyError where one of them was not sent."""
        none = np.zeros((0, self.spec.action_size), self.spec.action_dtype)
        return np.stack([self._actions[i] for i in range(first, until)]) if until > first else none

    def seen(self, sight: TimedObservation) -> ObservationHistory:
        """What was seen and done up to ``sight``, one row: at most the spec's context, and no further back than frames and actions
        are without a gap."""
        first = sight.step
        while sight.step - first + 1 < self.spec.context and first - 1 in self._sights and first - 1 in self._actions:
            first -= 1
        frames = [*(self._sights[i].frame for i in range(first, sight.step)), sight.frame]
        return ObservationHistory(np.stack(frames)[None], self.done(first, sight.step)[None])

    def episodes(self, provenance: Mapping[str, Any]) -> list[Episode]:
        """The tape as whole episodes: where a frame is missing one ends, and the next begins. Where the truth is known its states,
        coverage (as reward) and success (as end) are theirs; elsewhere rewards are 0, and ``provenance["rewards"]`` is "unknown"."""
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
        """All frames in order as video without actions; nothing of fewer than two."""
        sights = [self._sights[i] for i in self._steps()]
        if len(sights) < 2:
            return []
        told = {**provenance, "frame_times": [s.taken for s in sights]}
        return [Episode.of_video(np.stack([s.frame for s in sights]), told)]

    def rest(self) -> TrajectoryBuffer:
        """An empty tape that begins where this one ends, with as much of the past as a policy looks at."""
        tape = TrajectoryBuffer(self.spec)
        if self.newest is not None:
            for step in range(self.newest.step - self.spec.context + 1, max([self.newest.step, *self._actions]) + 1):
                if step in self._sights:
                    tape.see(self._sights[step])
                if step in self._actions:
                    tape.did(step, self._actions[step], self._notes[step])
            tape._from = self.newest.step
        return tape

    def _steps(self) -> list[int]:
        """Steps of which there is a frame, that no earlier tape has."""
        return sorted(i for i in self._sights if self._from is None or i >= self._from)

    def _episode(self, run: list[int], provenance: Mapping[str, Any]) -> Episode:
        sights, steps = [self._sights[i] for i in run], run[:-1]
        truths = [s.truth for s in sights if s.truth is not None]
        known = len(truths) == len(sights)
        truncated = np.zeros(len(steps), bool)
        truncated[-1] = True
        notes = [self._notes[i] for i in steps]
        told = {
            "first_step": run[0],
            "frame_times": [s.taken for s in sights],
            "rewards": "true" if known else "unknown",
            "ticks": {key: [note.get(key) for note in notes] for key in notes[0]},
        }
        return Episode(
            frames=np.stack([s.frame for s in sights]),
            actions=self.done(run[0], run[-1]),
            rewards=np.array([t["coverage"] for t in truths[1:]] if known else np.zeros(len(steps)), np.float32),
            terminated=np.array([t["success"] for t in truths[1:]] if known else np.zeros(len(steps)), bool),
            truncated=truncated,
            states=np.array([t["state"] for t in truths], np.float32) if known else None,
            provenance={**provenance, **told},
        )
