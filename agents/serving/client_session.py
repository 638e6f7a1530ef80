"""Conversation: what one client of a policy server asks, and is answered, over one connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from neuralsim.agents.serving.batcher import BatchResult, DynamicBatcher
from neuralsim.agents.serving.request import PolicyRequest, RequestReader, asks_anew, session_of
from neuralsim.agents.serving.session_history import SessionHistory
from neuralsim.agents.serving.statistics import ServerStatistics, percentile
from neuralsim.envs.robots.wire import pack, unpack


class ClientSession:
    """Keeps the client's history, and gives ``say`` a line for each of its episodes; ``seed`` is that of an episode's first chunk."""

    def __init__(
        self,
        name: str,
        reader: RequestReader,
        batcher: DynamicBatcher,
        tally: ServerStatistics,
        say: Callable[[str], None],
        seed: int = 0,
    ) -> None:
        self.name, self.tally, self.say, self.seed = name, tally, say, seed
        self.history = SessionHistory()
        self._reader, self._batcher = reader, batcher
        self._times: list[float] = []
        self._begin = 0.0
        self._last_total: float | None = None

    async def reply(self, data: bytes | str, largest: int, gone: asyncio.Future[Any]) -> bytes | str | None:
        """What is to be sent in return for ``data``; None where ``gone``, the client's going, came first. Raises ValueError or
        TypeError for what is no request, and what the policy raises."""
        self._begin = time.perf_counter()
        message = unpack(data, largest) if isinstance(data, bytes) else data
        if not isinstance(message, dict):
            raise TypeError(f"message: expected a map in a binary frame, got {type(message).__name__}")
        endpoint, session = message.get("endpoint"), session_of(message)
        if endpoint not in (None, "infer", "reset"):
            raise ValueError(f"endpoint: expected 'infer' or 'reset', got {endpoint!r}")
        if endpoint == "reset" or asks_anew(message) or session not in (None, self.history.session):
            self.end_episode()
            self.history = self.history.begun(session)
        if endpoint == "reset":
            return "reset successful"
        request = self._reader.read(message)
        self.history = self.history.then(request.frames, request.done, self._reader.spec)
        self.tally.episodes += self.history.made == 1
        answer = await self._ask(request, gone)
        if answer is None:
            return None
        took = 1000 * (time.perf_counter() - self._begin)
        self._times.append(took)
        self.tally.answered(took, answer.model_ms, answer.rows)
        actions = answer.actions if request.normalized else self._reader.spec.to_units(answer.actions)
        return pack(actions if endpoint else self._full(actions, took, answer))

    def sent(self) -> None:
        """The reply is out: how long all of it took is told with the next one."""
        self._last_total = 1000 * (time.perf_counter() - self._begin)

    def end_episode(self) -> None:
        """Say what the episode came to, if anything was asked in it."""
        if self._times:
            told = f"{len(self._times)} requests, infer p50 {percentile(self._times, 50):.1f} ms"
            self.say(f"{self.name} episode {self.history.episode}: {told}")
        self._times = []

    async def _ask(self, request: PolicyRequest, gone: asyncio.Future[Any]) -> BatchResult | None:
        """The policy's answer to the newest of the history. Who goes while waiting is never worked on."""
        assert self.history.seen is not None
        seed = self.history.seed(self.seed) if request.seed is None else request.seed
        answer = self._batcher.ask(self.history.seen, seed, request.prefix)
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            return answer.result() if answer.done() else None
        finally:
            answer.cancel()

    def _full(self, actions: np.ndarray, took: float, answer: BatchResult) -> dict[str, Any]:
        """openpi's reply. Clients cut every array in it along its first axis, so there is none but the actions."""
        timing = {"infer_ms": took}
        if self._last_total is not None:
            timing["prev_total_ms"] = self._last_total
        return {
            "actions": actions,
            "server_timing": timing,
            "policy_timing": {"infer_ms": answer.model_ms, "rows": answer.rows},
        }
