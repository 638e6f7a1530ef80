"""ActionChunkPolicy: what policy heads have in common. They are shown the newest frames and propose the next few actions at once.

``ActionChunkBroker`` gives such a policy Stable-Baselines3's ``predict``, so that it drives whatever a policy can drive.
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
    """What has been seen and done of late: frames uint8 ``(b, t, h, w, 3)``, the newest last, t at most the spec's context; actions
    ``(b, t-1, a)``, what was really done between them."""

    frames: np.ndarray
    actions: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)

    @classmethod
    def first(cls, frames: np.ndarray, spec: WorldSpec) -> ObservationHistory:
        """The beginning of histories: ``frames`` ``(b, h, w, 3)``."""
        actions = np.zeros((len(frames), 0, spec.action_size), spec.action_dtype)
        return cls(spec.check_frames(frames)[:, None], actions)

    def then(self, actions: np.ndarray, frames: np.ndarray, context: int) -> ObservationHistory:
        """After ``actions`` ``(b, a)`` led to ``frames`` ``(b, h, w, 3)``; no more than ``context`` frames are kept."""
        joined = np.concatenate([self.frames, frames[:, None]], 1)[:, -context:]
        done = np.concatenate([self.actions, actions[:, None]], 1)
        return ObservationHistory(joined, done[:, done.shape[1] - (joined.shape[1] - 1) :])


class ActionChunkPolicy(Protocol):
    """Proposes ``chunk`` actions at once, for worlds of ``spec``."""

    @property
    def spec(self) -> WorldSpec: ...

    @property
    def chunk(self) -> int: ...

    def predict_action_chunk(
        self, seen: ObservationHistory, seeds: Sequence[int], prefix: np.ndarray | None = None
    ) -> np.ndarray:
        """Actions ``(b, chunk, a)`` from the newest frame of ``seen`` on; row i is a function of ``seeds[i]`` and its own history.

        ``prefix`` ``(b, p, a)``, p less than ``chunk``: actions that are being done already and cannot be changed (real-time
        chunking, arXiv 2506.07339). They come back bit-equal as the first p, and the others go on from them.
        """


@dataclass(frozen=True, eq=False)
class Underway:
    """A ActionChunkBroker's memory of ``b`` episodes: their histories, of which the newest ``age`` ``(b,)`` frames count; the chunk under
    way ``(b, chunk, a)``, how many of its actions are ``done`` ``(b,)``, and how many chunks were ``made`` ``(b,)``."""

    seen: ObservationHistory
    age: np.ndarray
    chunk: np.ndarray
    done: np.ndarray
    made: np.ndarray


class ActionChunkBroker:
    """``head`` behind Stable-Baselines3's ``predict``: it looks, does ``n_action_steps`` actions (the head's own number by default), and
    looks again.

    Observations are frames ``(b, h, w, 3)`` or one ``(h, w, 3)``; what it remembers travels as the policy's ``state``. Row i's
    chunks follow seed ``seed`` + i. ``tick`` is told of each decision: for how many rows, and the seconds it took.
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
            raise ValueError(f"execute: expected 1 to {head.chunk} (the head's chunk), got {n_action_steps}")

    def predict(
        self,
        observation: np.ndarray,
        state: Underway | None = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Underway]:
        """See Stable-Baselines3's predict."""
        single = np.ndim(observation) == 3
        frames = self.head.spec.check_frames(observation[None] if single else observation, "observation")
        memory = self._follow(frames, state, episode_start)
        due = np.flatnonzero(memory.done >= self.n_action_steps)
        for age in np.unique(memory.age[due]):
            self._decide(memory, due[memory.age[due] == age], int(age))
        actions = memory.chunk[np.arange(len(frames)), memory.done]
        return (actions[0] if single else actions), replace(memory, done=memory.done + 1)

    def _decide(self, memory: Underway, rows: np.ndarray, age: int) -> None:
        """New chunks for ``rows``, whose histories are equally long; ``memory`` is ours alone as yet."""
        known = memory.seen.actions.shape[1]
        seen = ObservationHistory(memory.seen.frames[rows, -age:], memory.seen.actions[rows, known - age + 1 :])
        seeds = [self.seed + int(i) + 1_000_003 * int(memory.made[i]) for i in rows]
        began = time.perf_counter()
        memory.chunk[rows], memory.done[rows] = self.head.predict_action_chunk(seen, seeds), 0
        memory.made[rows] += 1
        if self.tick:
            self.tick(len(rows), time.perf_counter() - began)

    def _follow(self, frames: np.ndarray, state: Underway | None, episode_start: Any) -> Underway:
        """A memory of our own with ``frames`` in it; ``done`` is full where a chunk is due."""
        spec, n = self.head.spec, len(frames)
        if state is None or len(state.age) != n:
            context = spec.context
            past = np.repeat(frames[:, None], context, 1)
            seen = ObservationHistory(past, np.zeros((n, context - 1, spec.action_size), spec.action_dtype))
            empty = np.zeros((n, self.head.chunk, spec.action_size), spec.action_dtype)
            full = np.full(n, self.head.chunk)
            return Underway(seen, np.ones(n, np.int64), empty, full, np.zeros(n, np.int64))
        seen = state.seen.then(state.chunk[np.arange(n), state.done - 1], frames, spec.context)
        begun = np.broadcast_to(False if episode_start is None else np.asarray(episode_start, bool), (n,))
        return Underway(
            seen,
            np.where(begun, 1, np.minimum(state.age + 1, spec.context)),
            state.chunk.copy(),
            np.where(begun, self.head.chunk, state.done),
            np.where(begun, 0, state.made),
        )
