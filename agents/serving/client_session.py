"""ClientSession: one client's connection to a policy server, with its history of observations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuralsim.agents.heads.chunk_policy import ObservationHistory
from neuralsim.agents.serving.batcher import BatchResult, DynamicBatcher
from neuralsim.agents.serving.request import PolicyRequest, RequestReader
from neuralsim.agents.serving.statistics import ServerStatistics, percentile
from neuralsim.envs.robots.wire import pack
from neuralsim.spec import WorldSpec

STRIDE = 1_000_003
"""Between the seeds of successive chunks, as ActionChunkBroker counts them."""


@dataclass(frozen=True, eq=False)
class SessionHistory:
    """A client's current episode; a value: what a request changes is returned as a new one."""

    seen: ObservationHistory | None = None
    """One row; None before the episode's first frame."""
    session: str | None = None
    """The client's name for the episode."""
    chunks: int = 0
    """Chunks requested in this episode."""
    episode: int = 0
    """Number of the episode, counted from its first frame on."""

    def begin(self, session: str | None = None) -> SessionHistory:
        """Return the history before a new episode's first frame."""
        return SessionHistory(None, session, 0, self.episode)

    def extend(self, request: PolicyRequest, spec: WorldSpec) -> SessionHistory:
        """Return the history after ``request``.

        As many actions as frames: each led to one of them, from the last that was seen before. Else the last action led to
        the newest frame, the one before it to the frame before, and so on: the frames are a history of their own, as long as
        the actions between them are known. None: nothing is known but the newest frame.
        """
        frames, done = request.frames, request.done
        if done is None:
            seen = ObservationHistory.first(frames[-1:], spec)
        elif self.seen is not None and len(done) == request.frame_count:
            seen = self.seen
            for action, frame in zip(done[len(done) - len(frames) :], frames, strict=True):
                seen = seen.then(action[None], frame[None], spec.context)
        else:
            length = min(len(frames), len(done) + 1, spec.context)
            seen = ObservationHistory(frames[None, -length:], done[None, len(done) - (length - 1) :])
        return SessionHistory(seen, self.session, self.chunks + 1, self.episode + (self.chunks == 0))

    def seed(self, first: int) -> int:
        """Return the newest chunk's seed where the client gave none: ActionChunkBroker's, for episodes that begin at ``first``."""
        return first + STRIDE * (self.chunks - 1)


class ClientSession:
    """Answers one client's messages, keeps its history, and gives ``say`` a line for each of its episodes.

    ``seed`` is that of an episode's first chunk. Messages are decoded by ``decoder``'s threads, off the event loop.
    """

    def __init__(
        self,
        name: str,
        reader: RequestReader,
        batcher: DynamicBatcher,
        statistics: ServerStatistics,
        say: Callable[[str], None],
        decoder: Executor,
        seed: int = 0,
    ) -> None:
        self.name, self.statistics, self.say, self.seed = name, statistics, say, seed
        self.history = SessionHistory()
        self._reader, self._batcher, self._decoder = reader, batcher, decoder
        self._times: list[float] = []
        self._begin = 0.0
        self._last_total: float | None = None

    async def reply(self, data: bytes | str, gone: asyncio.Future[Any]) -> bytes | str | None:
        """Return the answer to ``data``; None where ``gone``, the client's going, came first.

        Raises ValueError or TypeError for what is no request, and what the policy raises.
        """
        self._begin = time.perf_counter()
        loop = asyncio.get_running_loop()
        message = await loop.run_in_executor(self._decoder, self._reader.decode, data)
        if message.begins_episode or message.session not in (None, self.history.session):
            self.end_episode()
            self.history = self.history.begin(message.session)
        request = message.request
        if request is None:
            return "reset successful"
        self.history = self.history.extend(request, self._reader.spec)
        self.statistics.episodes += self.history.chunks == 1
        result = await self._request(request, gone)
        if result is None:
            return None
        elapsed_ms = 1000 * (time.perf_counter() - self._begin)
        self._times.append(elapsed_ms)
        self.statistics.record(elapsed_ms, result.model_ms, result.rows)
        actions = result.actions if request.normalized else self._reader.spec.to_units(result.actions)
        return pack(actions if message.endpoint else self._full_reply(actions, elapsed_ms, result))

    def sent(self) -> None:
        """Note that the reply is out: the next one reports how long all of it took."""
        self._last_total = 1000 * (time.perf_counter() - self._begin)

    def end_episode(self) -> None:
        """Report the episode, if anything was requested in it."""
        if self._times:
            summary = f"{len(self._times)} requests, infer p50 {percentile(self._times, 50):.1f} ms"
            self.say(f"{self.name} episode {self.history.episode}: {summary}")
        self._times = []

    async def _request(self, request: PolicyRequest, gone: asyncio.Future[Any]) -> BatchResult | None:
        """Return the policy's result for the newest history. A client that goes while it waits costs no forward."""
        assert self.history.seen is not None
        seed = self.history.seed(self.seed) if request.seed is None else request.seed
        future = self._batcher.submit(self.history.seen, seed, request.prefix)
        try:
            await asyncio.wait({future, gone}, return_when=asyncio.FIRST_COMPLETED)
            return future.result() if future.done() else None
        finally:
            future.cancel()

    def _full_reply(self, actions: np.ndarray, elapsed_ms: float, result: BatchResult) -> dict[str, Any]:
        """Return openpi's reply. Clients cut every array in it along its first axis, so there is none but the actions."""
        timing = {"infer_ms": elapsed_ms}
        if self._last_total is not None:
            timing["prev_total_ms"] = self._last_total
        return {
            "actions": actions,
            "server_timing": timing,
            "policy_timing": {"infer_ms": result.model_ms, "rows": result.rows},
        }
