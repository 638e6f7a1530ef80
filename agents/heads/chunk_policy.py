"""ActionChunkPolicy: a policy that predicts the next few actions at once from the newest frames.

``ActionChunkBroker`` gives such a policy Stable-Baselines3's ``predict``, so that it acts wherever a policy can.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from neuralsim.spec import WorldSpec


@dataclass(frozen=True, eq=False)
class ObservationHistory:
    """Recent frames uint8 ``(b, t, h, w, 3)``, the newest last, t at most the spec's context; and the actions ``(b, t-1, a)``
    executed between them."""

    frames: np.ndarray
    actions: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)

    @classmethod
    def first(cls, frames: np.ndarray, spec: WorldSpec) -> ObservationHistory:
        """Begin histories with ``frames`` ``(b, h, w, 3)``."""
        actions = np.zeros((len(frames), 0, spec.action_size), spec.action_dtype)
        return cls(spec.check_frames(frames)[:, None], actions)

    def then(self, actions: np.ndarray, frames: np.ndarray, context: int) -> ObservationHistory:
        """Append ``actions`` ``(b, a)`` and the ``frames`` ``(b, h, w, 3)`` they led to; at most ``context`` frames are kept."""
        joined = np.concatenate([self.frames, frames[:, None]], 1)[:, -context:]
        done = np.concatenate([self.actions, actions[:, None]], 1)
        return ObservationHistory(joined, done[:, done.shape[1] - (joined.shape[1] - 1) :])


class ActionChunkPolicy(Protocol):
    """Policy that predicts ``chunk`` actions at once, for worlds of ``spec``."""

    @property
    def spec(self) -> WorldSpec:
        """Spec of the worlds it acts in."""

    @property
    def chunk(self) -> int:
        """Actions in a chunk."""

    def predict_action_chunk(
        self, seen: ObservationHistory, seeds: Sequence[int], prefix: np.ndarray | None = None
    ) -> np.ndarray:
        """Return actions ``(b, chunk, a)`` from the newest frame of ``seen`` on.

        Row i is a function of ``seeds[i]`` and its own history. ``prefix`` ``(b, p, a)``, p less than ``chunk``: actions that
        are being executed already (real-time chunking, arXiv 2506.07339). They come back bit-equal as the first p, and the
        others continue them.
        """


@dataclass(frozen=True, eq=False)
class BrokerState:
    """An ActionChunkBroker's memory of ``b`` episodes: histories, of which the newest ``age`` ``(b,)`` frames count; the current
    chunk ``(b, chunk, a)``, the number of its actions ``executed`` ``(b,)``, and of chunks so far ``(b,)``."""

    history: ObservationHistory
    age: np.ndarray
    chunk: np.ndarray
    executed: np.ndarray
    chunks: np.ndarray


class ActionChunkBroker:
    """``head`` behind Stable-Baselines3's ``predict``: of each chunk, ``n_action_steps`` are executed (default: the head's own number).

    Observations are frames ``(b, h, w, 3)`` or one ``(h, w, 3)``; its memory travels as the policy's ``state``. Row i's chunks
    follow seed ``seed`` + i. ``tick`` is called after each decision with the number of rows and the seconds it took. Raises
    ValueError for more action steps than a chunk has.
    """

    def __init__(
        self,
        head: ActionChunkPolicy,
        n_action_steps: int | None = None,
        seed: int = 0,
        tick: Callable[[int, float], None] | None = None,
    ) -> None:
        self.head, self.seed, self.tick = head, seed, tick
        self.n_action_steps = getattr(head, "n_action_steps", head.chunk) if n_action_steps is None else n_action_steps
        if not 1 <= self.n_action_steps <= head.chunk:
            raise ValueError(f"n_action_steps: expected 1 to {head.chunk} (the head's chunk), got {n_action_steps}")

    def predict(
        self,
        observation: np.ndarray,
        state: BrokerState | None = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, BrokerState]:
        """Return an action ``(b, a)``, or ``(a,)`` for one frame, and the memory."""
        single = np.ndim(observation) == 3
        frames = self.head.spec.check_frames(observation[None] if single else observation, "observation")
        memory = self._remember(frames, state, episode_start)
        due = np.flatnonzero(memory.executed >= self.n_action_steps)
        for age in np.unique(memory.age[due]):
            self._decide(memory, due[memory.age[due] == age], int(age))
        actions = memory.chunk[np.arange(len(frames)), memory.executed]
        return (actions[0] if single else actions), replace(memory, executed=memory.executed + 1)

    def _decide(self, memory: BrokerState, rows: np.ndarray, age: int) -> None:
        """Predict new chunks for ``rows``, whose histories are equally long; ``memory`` is not shared yet."""
        known = memory.history.actions.shape[1]
        seen = ObservationHistory(memory.history.frames[rows, -age:], memory.history.actions[rows, known - age + 1 :])
        seeds = [self.seed + int(i) + 1_000_003 * int(memory.chunks[i]) for i in rows]
        began = time.perf_counter()
        memory.chunk[rows], memory.executed[rows] = self.head.predict_action_chunk(seen, seeds), 0
        memory.chunks[rows] += 1
        if self.tick:
            self.tick(len(rows), time.perf_counter() - began)

    def _remember(self, frames: np.ndarray, state: BrokerState | None, episode_start: Any) -> BrokerState:
        """A new memory with ``frames`` in it; ``executed`` is full where a chunk is due."""
        spec, n = self.head.spec, len(frames)
        if state is None or len(state.age) != n:
            context = spec.context
            past = np.repeat(frames[:, None], context, 1)
            seen = ObservationHistory(past, np.zeros((n, context - 1, spec.action_size), spec.action_dtype))
            empty = np.zeros((n, self.head.chunk, spec.action_size), spec.action_dtype)
            full = np.full(n, self.head.chunk)
            return BrokerState(seen, np.ones(n, np.int64), empty, full, np.zeros(n, np.int64))
        seen = state.history.then(state.chunk[np.arange(n), state.executed - 1], frames, spec.context)
        begun = np.broadcast_to(False if episode_start is None else np.asarray(episode_start, bool), (n,))
        return BrokerState(
            seen,
            np.where(begun, 1, np.minimum(state.age + 1, spec.context)),
            state.chunk.copy(),
            np.where(begun, self.head.chunk, state.executed),
            np.where(begun, 0, state.chunks),
        )
