"""AsyncInference: turns an observation into a checked chunk; the policy predicts it, and its future is imagined before it is used."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from neuralsim.agents.heads.chunk_policy import ActionChunkPolicy, ObservationHistory
from neuralsim.agents.robot.action_queue import ActionChunk
from neuralsim.agents.safety.monitor import SafetyMonitor


@dataclass(frozen=True, eq=False)
class InferenceRequest:
    """Request for a chunk that continues ``prefix``."""

    number: int
    history: ObservationHistory
    """One row."""
    start: int
    """Step of its newest frame."""
    prefix: np.ndarray
    """Settled actions ``(p, a)`` from ``start`` on."""
    seed: int
    requested: float
    """Seconds of the loop's clock."""
    frame_time: float
    """Seconds of the loop's clock when the newest frame arrived."""


@dataclass(frozen=True, eq=False)
class InferenceResult:
    """Chunk, and the reasons to refuse it."""

    request: InferenceRequest
    chunk: ActionChunk
    refused: tuple[str, ...]
    """Empty where it is allowed."""
    predict_s: float
    imagine_s: float

    @property
    def seconds(self) -> float:
        """Time that the whole inference took."""
        return self.predict_s + self.imagine_s


class AsyncInference:
    """Work of the inference thread: ``policy`` predicts, ``monitor`` imagines (None: nothing is imagined)."""

    def __init__(self, policy: ActionChunkPolicy, monitor: SafetyMonitor | None) -> None:
        self.policy, self.monitor = policy, monitor

    def __call__(self, request: InferenceRequest) -> InferenceResult:
        """Answer ``request``. Raises ValueError for a chunk of the wrong shape, without its prefix, or with NaN."""
        begin = time.perf_counter()
        prefix = request.prefix
        predicted = self.policy.predict_action_chunk(
            request.history, [request.seed], prefix[None] if len(prefix) else None
        )
        actions = self._check(np.asarray(predicted), prefix)
        middle = time.perf_counter()
        imagined, refused = None, tuple[str, ...]()
        if self.monitor is not None:
            imagined = self.monitor.imagine(request.history, actions)
            refused = () if imagined.verdict.allowed else tuple(imagined.verdict.reasons) or ("no reason given",)
        end = middle if self.monitor is None else time.perf_counter()
        chunk = ActionChunk(
            request.number, request.start, len(prefix), actions, imagined, request.frame_time, end - begin
        )
        return InferenceResult(request, chunk, refused, middle - begin, end - middle)

    def _check(self, predicted: np.ndarray, prefix: np.ndarray) -> np.ndarray:
        spec, expected = self.policy.spec, (1, self.policy.chunk, self.policy.spec.action_size)
        if predicted.shape != expected:
            raise ValueError(f"policy: expected actions {expected}, got {predicted.shape}")
        actions = predicted[0]
        if not spec.discrete:
            actions = np.where(np.isnan(actions), np.nan, np.clip(actions, -1, 1))  # clipped, but NaN stays an error
        actions = spec.check_actions(actions, "policy: actions")
        if not np.array_equal(actions[: len(prefix)], prefix):
            raise ValueError(
                f"policy: its chunk does not begin with the {len(prefix)} actions that are being done already: {prefix.tolist()}"
            )
        return actions
