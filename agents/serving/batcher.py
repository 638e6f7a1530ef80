"""Batcher: a policy asked by many at once. While it works, those who ask wait; then all of a kind are answered by one forward."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from neuralsim.agents.heads.chunk_policy import ActionChunkPolicy, ObservationHistory


@dataclass(frozen=True, eq=False)
class BatchResult:
    """Actions ``(chunk, a)``, the milliseconds that the forward took, and how many were answered by it."""

    actions: np.ndarray
    model_ms: float
    rows: int


@dataclass(frozen=True, eq=False)
class PendingRequest:
    """One row that waits: its history (one row), seed, actions under way ``(p, a)`` or None, and where the answer goes."""

    seen: ObservationHistory
    seed: int
    prefix: np.ndarray | None
    answer: asyncio.Future[BatchResult]

    @property
    def kind(self) -> tuple[int, int]:
        """What rows of one forward share: lengths of history and prefix."""
        return self.seen.frames.shape[1], 0 if self.prefix is None else len(self.prefix)


class DynamicBatcher:
    """``policy`` in a thread of its own, so that the event loop answers keepalives whatever the policy takes."""

    def __init__(self, policy: ActionChunkPolicy) -> None:
        self.policy = policy
        self._waiting: list[PendingRequest] = []
        self._work: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "policy")

    def ask(self, seen: ObservationHistory, seed: int, prefix: np.ndarray | None = None) -> asyncio.Future[BatchResult]:
        """The policy's answer, later; it is an exception where the policy raises one. Cancelled while it waits, it is never
        worked on. For the event loop's thread."""
        answer: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
        self._waiting.append(PendingRequest(seen, seed, prefix, answer))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._answer_all())
        return answer

    def close(self) -> None:
        """Take no more; a forward that runs is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _answer_all(self) -> None:
        while rows := self._next():
            await self._answer(rows)

    def _next(self) -> list[PendingRequest]:
        """The oldest that waits and all of its kind."""
        waiting = [row for row in self._waiting if not row.answer.done()]
        rows = [row for row in waiting if row.kind == waiting[0].kind]
        self._waiting = [row for row in waiting if row.kind != waiting[0].kind]
        return rows

    async def _answer(self, rows: list[PendingRequest]) -> None:
        begin = time.perf_counter()
        try:
            actions = await asyncio.get_running_loop().run_in_executor(self._thread, self._propose, rows)
        except Exception as error:
            if len(rows) > 1:  # one of them may be at fault: each alone, so that it harms nobody else
                for row in rows:
                    await self._answer([row])
            elif not rows[0].answer.done():
                rows[0].answer.set_exception(error)
            return
        took = 1000 * (time.perf_counter() - begin)
        for row, chunk in zip(rows, actions, strict=True):
            if not row.answer.done():
                row.answer.set_result(BatchResult(chunk, took, len(rows)))

    def _propose(self, rows: list[PendingRequest]) -> np.ndarray:
        """``(b, chunk, a)``, held to what actions are: no robot is sent a NaN."""
        spec, chunk = self.policy.spec, self.policy.chunk
        seen = ObservationHistory(
            np.concatenate([r.seen.frames for r in rows]), np.concatenate([r.seen.actions for r in rows])
        )
        fixed = [row.prefix for row in rows if row.prefix is not None]
        proposed = self.policy.predict_action_chunk(
            seen, [row.seed for row in rows], np.stack(fixed) if fixed else None
        )
        actions = spec.check_actions(proposed, "the policy's actions")
        if actions.shape != (len(rows), chunk, spec.action_size):
            raise ValueError(
                f"the policy's actions: expected {(len(rows), chunk, spec.action_size)}, got {actions.shape}"
            )
        return actions
