"""Random windows of frames from the episodes of a store: the batches that training reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from neuralsim.data.episode import Acted
from neuralsim.data.store import EpisodeStore


@dataclass(frozen=True)
class Clip(Acted):
    """A batch of b windows of t frames."""

    frames: np.ndarray
    """uint8 ``(b, t, h, w, c)``."""
    actions: np.ndarray
    """``(b, t-1, a)``; raises ActionsAbsent where they were not asked for."""
    rewards: np.ndarray
    """float32 ``(b, t-1)``."""
    terminated: np.ndarray
    """bool ``(b, t-1)``."""
    states: np.ndarray | None
    """float32 ``(b, t, s)``; None where an episode of the batch lacks them."""


class WindowSampler:
    """Draws random windows of ``length`` frames from one split of a store; every valid window is equally likely.

    Episodes without actions are skipped, unless ``actions`` is False, windows are single frames, or the world has no
    actions at all. Raises ValueError where no episode is long enough.
    """

    def __init__(self, store: EpisodeStore, length: int, held_out: bool = False, actions: bool = True) -> None:
        episodes = store.split(held_out)
        if actions and length > 1 and store.spec.action_size:
            known = store.acted(episodes)
            if len(known) and not known.any():
                raise ValueError(
                    f"{store.folder}: all {len(known)} {'held-out' if held_out else 'training'} episodes are video without "
                    "actions; ask for windows with actions=False, or for episodes with actions"
                )
            episodes = episodes[known]
        counts = np.maximum(store.lengths[episodes] + 2 - length, 0)
        if counts.sum() == 0:
            raise ValueError(
                f"{store.folder}: no {'held-out' if held_out else 'training'} episode has {length} frames "
                f"(longest of {len(episodes)}: {int(store.lengths[episodes].max()) + 1 if len(episodes) else 0})"
            )
        self.store, self.length, self._actions = store, length, actions
        self._episodes, self._ends = episodes, np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Convert window numbers to episode indices and first steps."""
        row = np.searchsorted(self._ends, window, side="right")
        before = np.where(row > 0, self._ends[np.maximum(row - 1, 0)], 0)
        return self._episodes[row], window - before

    def sample(self, batch: int, rng: np.random.Generator) -> Clip:
        """Draw ``batch`` windows."""
        return self.read(*self.locate(rng.integers(len(self), size=batch)))

    def read(self, episodes: np.ndarray, starts: np.ndarray) -> Clip:
        """Read the windows that begin at step ``starts[i]`` of ``episodes[i]``."""
        store, t = self.store, self.length
        entries = [store.entries[e] for e in episodes]
        involved = {shard for shard, *_ in entries}
        names = set.intersection(*(set(store.shards[shard]) for shard in involved))  # some shards may lack states
        out: dict[str, np.ndarray] = {}
        for name in names:
            per_frame = name in ("frames", "states")
            n = t if per_frame else t - 1
            like = store.shards[entries[0][0]][name]
            out[name] = np.empty((len(entries), n, *like.shape[1:]), like.dtype)
            for row, (shard, frame, action, _) in enumerate(entries):
                first = (frame if per_frame else action) + int(starts[row])
                # One slice is twice as fast as indices.
                out[name][row] = store.shards[shard][name][first : first + n]
        actions: Any = out.get("actions") if self._actions else None
        if self._actions and (t == 1 or not store.spec.action_size):
            actions = np.empty((len(episodes), t - 1, store.spec.action_size), store.spec.action_dtype)
        return Clip(out["frames"], actions, out["rewards"], out["terminated"], out.get("states"))
