"""DynamicBatcher: batches the requests of many clients of one policy, as inference servers do.

While the policy works, requests wait; then all of a kind are answered by one forward pass.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from neuralsim.agents.heads.chunk_policy import ActionChunkPolicy, ObservationHistory


@dataclass(frozen=True, eq=False)
class BatchResult:
    """Actions ``(chunk, a)``, the milliseconds that the forward pass took, and the number of requests that it answered."""

    actions: np.ndarray
    model_ms: float
    rows: int


@dataclass(frozen=True, eq=False)
class PendingRequest:
    """One row that waits: its history (one row), seed, actions under way ``(p, a)`` or None, and the future of its result."""

    seen: ObservationHistory
    seed: int
    prefix: np.ndarray | None
    future: asyncio.Future[BatchResult]

    @property
    def kind(self) -> tuple[int, int]:
        """Lengths of history and prefix: equal for the rows of one forward pass."""
        return self.seen.frames.shape[1], 0 if self.prefix is None else len(self.prefix)


class DynamicBatcher:
    """``policy`` in a thread of its own, so that the event loop answers keepalives whatever the policy takes."""

    def __init__(self, policy: ActionChunkPolicy) -> None:
        self.policy = policy
        self._waiting: list[PendingRequest] = []
        self._work: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "policy")

    def submit(
        self, seen: ObservationHistory, seed: int, prefix: np.ndarray | None = None
    ) -> asyncio.Future[BatchResult]:
        """Return a future of the policy's result, or of the exception that it raises.

        Cancelled while it waits, it costs no forward pass. To be called from the event loop's thread.
        """
        future: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
        self._waiting.append(PendingRequest(seen, seed, prefix, future))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._run())
        return future

    def close(self) -> None:
        """Take no more; a running forward pass is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        while rows := self._next():
            await self._answer(rows)

    def _next(self) -> list[PendingRequest]:
        """Take the oldest pending request and all of its kind."""
        waiting = [row for row in self._waiting if not row.future.done()]
        rows = [row for row in waiting if row.kind == waiting[0].kind]
        self._waiting = [row for row in waiting if row.kind != waiting[0].kind]
        return rows

    async def _answer(self, rows: list[PendingRequest]) -> None:
        begin = time.perf_counter()
        try:
            actions = await asyncio.get_running_loop().run_in_executor(self._thread, self._predict, rows)
        except Exception as error:
            if len(rows) > 1:  # one of them may be at fault: each alone, so that it harms no other client
                for row in rows:
                    await self._answer([row])
            elif not rows[0].future.done():
                rows[0].future.set_exception(error)
            return
        model_ms = 1000 * (time.perf_counter() - begin)
        for row, chunk in zip(rows, actions, strict=True):
            if not row.future.done():
                row.future.set_result(BatchResult(chunk, model_ms, len(rows)))

    def _predict(self, rows: list[PendingRequest]) -> np.ndarray:
        """Return actions ``(b, chunk, a)``, checked: no robot is sent a NaN."""
        spec, chunk = self.policy.spec, self.policy.chunk
        seen = ObservationHistory(
            np.concatenate([r.seen.frames for r in rows]), np.concatenate([r.seen.actions for r in rows])
        )
        prefixes = [row.prefix for row in rows if row.prefix is not None]
        proposed = self.policy.predict_action_chunk(
            seen, [row.seed for row in rows], np.stack(prefixes) if prefixes else None
        )
        actions = spec.check_actions(proposed, "the policy's actions")
        if actions.shape != (len(rows), chunk, spec.action_size):
            raise ValueError(
                f"the policy's actions: expected {(len(rows), chunk, spec.action_size)}, got {actions.shape}"
            )
        return actions
