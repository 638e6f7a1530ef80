"""Thinker: what happens between a frame and a plan: the policy proposes a chunk, and it is imagined before anybody may do it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from neuralsim.agents.heads.chunk_policy import ActionChunkPolicy, ObservationHistory
from neuralsim.agents.robot.action_queue import ActionChunk


class MonitorVerdict(Protocol):
    """Whether something is allowed, and if not, why."""

    @property
    def allowed(self) -> bool: ...

    @property
    def reasons(self) -> tuple[str, ...]: ...


class Guard(Protocol):
    """What stands between policy and robot; ``agents.safety.SafetyMonitor`` is one."""

    def limit(self, action: np.ndarray, previous: np.ndarray | None, place: Mapping[str, float] | None) -> np.ndarray:
        """What of ``action`` ``(a,)`` may really be sent after ``previous``, where the robot is at ``place``."""

    def imagine(self, seen: ObservationHistory, chunk: np.ndarray) -> Any:
        """What comes of ``chunk`` ``(k, a)`` after ``seen`` (one row); its ``verdict`` is a Verdict."""

    def compare(self, foresight: Any, step: int, seen: ObservationHistory) -> MonitorVerdict:
        """Whether the newest frame of ``seen``, ``step`` actions into the chunk, is what was imagined."""


@dataclass(frozen=True, eq=False)
class InferenceRequest:
    """Think from ``seen`` (one row), whose newest frame is of step ``start``, going on from ``prefix`` ``(p, a)``. ``asked`` and
    ``frame_came``: seconds of the loop's clock; ``round``: which run of the loop wants to know."""

    round: int
    number: int
    seen: ObservationHistory
    start: int
    prefix: np.ndarray
    seed: int
    asked: float
    frame_came: float


@dataclass(frozen=True, eq=False)
class InferenceResult:
    """A plan, and why it is refused (empty: it is not). ``proposed`` and ``imagined``: seconds that either took."""

    request: InferenceRequest
    plan: ActionChunk
    refused: tuple[str, ...]
    proposed: float
    imagined: float

    @property
    def seconds(self) -> float:
        """How long the decision took."""
        return self.proposed + self.imagined


class AsyncInference:
    """``policy``, and ``guard`` to imagine what it proposes (None: nothing is imagined)."""

    def __init__(self, policy: ActionChunkPolicy, guard: Guard | None) -> None:
        self.policy, self.guard = policy, guard

    def __call__(self, request: InferenceRequest) -> InferenceResult:
        """A ValueError says what is wrong with what the policy proposes."""
        begin = time.perf_counter()
        prefix = request.prefix
        proposed = self.policy.predict_action_chunk(request.seen, [request.seed], prefix[None] if len(prefix) else None)
        actions = self._checked(np.asarray(proposed), prefix)
        middle = time.perf_counter()
        foresight, refused = None, ()
        if self.guard is not None:
            foresight = self.guard.imagine(request.seen, actions)
            refused = () if foresight.verdict.allowed else tuple(foresight.verdict.reasons) or ("no reason given",)
        end = middle if self.guard is None else time.perf_counter()
        plan = ActionChunk(
            request.number, request.start, len(prefix), actions, foresight, request.frame_came, end - begin
        )
        return InferenceResult(request, plan, refused, middle - begin, end - middle)

    def _checked(self, proposed: np.ndarray, prefix: np.ndarray) -> np.ndarray:
        spec, expected = self.policy.spec, (1, self.policy.chunk, self.policy.spec.action_size)
        if proposed.shape != expected:
            raise ValueError(f"policy: expected actions {expected}, got {proposed.shape}")
        actions = proposed[0]
        if not spec.discrete:
            actions = np.where(np.isnan(actions), np.nan, np.clip(actions, -1, 1))  # NaN is told, too much is cut
        actions = spec.check_actions(actions, "policy: actions")
        if not np.array_equal(actions[: len(prefix)], prefix):
            raise ValueError(
                f"policy: its chunk does not begin with the {len(prefix)} actions that are being done already: {prefix.tolist()}"
            )
        return actions
