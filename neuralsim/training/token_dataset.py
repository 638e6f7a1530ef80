"""Tokens of a whole store, encoded once, and training windows over them."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from neuralsim.data.store import EpisodeStore
from neuralsim.runtime.device import arithmetic

HIGH = 0.95
"""Rewards above this quantile count as high."""


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """A short hash of an encoder's weights: tokens made with other weights are not ours."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.inference_mode()
def encode_store(
    encode: Callable[[torch.Tensor], torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    store: EpisodeStore,
    cache: Path,
    dtype: torch.dtype,
    device: torch.device,
    bar: Callable[[str, int, int], Iterator[int]],
    stack: int = 1,
) -> torch.Tensor:
    """Tokens of every frame of the store, in order: float32 ``(frames, n, d)``. Kept in ``cache``, per shard, under the
    fingerprint of the encoder's ``weights`` and of the shard.

    ``encode`` makes tokens ``(b n d)`` of uint8 ``(b stack h w c)``: each frame with the ones before it in its episode
    (the first one repeated where there are fewer).
    """
    folder = cache / f"tokens-{fingerprint(weights)}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for i in bar("encode", 0, len(store.shards)):
        frames = store.shards[i]["frames"]
        path = folder / f"{_mark(frames)}.npy"
        tokens = np.load(path, allow_pickle=False) if path.is_file() else None
        if tokens is None or len(tokens) != len(frames):
            here, firsts = np.arange(len(frames)), store.first_frames(i)
            begin = firsts[np.searchsorted(firsts, here, side="right") - 1]
            rows = np.maximum(here[:, None] + np.arange(1 - stack, 1), begin[:, None])
            with arithmetic(dtype, device):
                made = [
                    encode(torch.as_tensor(frames[rows[j : j + 512]]).to(device)).float().cpu()
                    for j in range(0, len(frames), 512)
                ]
            tokens = torch.cat(made).numpy()
            temporary = path.with_suffix(".tmp.npy")
            np.save(temporary, tokens, allow_pickle=False)
            temporary.replace(path)
        parts.append(torch.from_numpy(tokens))
    return torch.cat(parts)


def _mark(frames: np.ndarray) -> str:
    """Tells a shard's frames from others': their number, and a checksum of some."""
    return f"{len(frames)}-{zlib.crc32(np.ascontiguousarray(frames[:: max(1, len(frames) // 4)]).tobytes()):08x}"


@dataclass(frozen=True)
class TokenClip:
    """Windows of tokens ``(b t n d)``, actions ``(b t-1 a)`` (None in video without actions), rewards and terminated float
    ``(b t-1)``, states ``(b t s)`` where they are known; ``at`` int64 ``(b t)``: the frames' numbers in the store."""

    tokens: torch.Tensor
    actions: torch.Tensor | None
    rewards: torch.Tensor
    terminated: torch.Tensor
    states: torch.Tensor | None = None
    at: torch.Tensor | None = None


class TokenWindows:
    """Training windows over tokens in memory.

    They are of the episodes whose actions are known, or with ``acted=False`` of the others: then no action is ever read; and of
    ``episodes`` (indices) alone, where these are given.
    Windows in which much happens are drawn more often (by the mean absolute change of their first tokens, capped): most
    of what a world does is stand still, and what moves is what must be learned.
    """

    def __init__(
        self, store: EpisodeStore, tokens: torch.Tensor, acted: bool = True, episodes: np.ndarray | None = None
    ) -> None:
        self.tokens, self.acted = tokens, acted
        frames, actions = store.offsets()
        kept = store.split(held_out=False)
        kept = kept[store.acted(kept) == acted]
        if episodes is not None:
            kept = kept[np.isin(kept, episodes)]
        self.firsts, self.lengths, self.first_actions = frames[kept], store.lengths[kept], actions[kept]
        self.rewards, terminated = (
            torch.cat([torch.from_numpy(np.array(arrays[name])) for arrays in store.shards])
            for name in ("rewards", "terminated")
        )
        self.terminated = terminated.float()
        self.actions = torch.cat([_actions(arrays, store) for arrays in store.shards]) if acted else None
        known = all("states" in arrays for arrays in store.shards)
        self.states = torch.cat([torch.from_numpy(np.array(s["states"])) for s in store.shards]) if known else None
        if not len(self.firsts):
            raise ValueError(
                f"{store.folder}: no training episodes {'with' if acted else 'without'} actions "
                "(those whose seed is a multiple of the held-out number are kept for measuring)"
            )
        self._tables: dict[tuple[int, bool], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    @property
    def longest(self) -> int:
        """Actions in the longest episode."""
        return int(self.lengths.max())

    def typical_change(self) -> float:
        """Mean absolute change of a token number from frame to frame over the training episodes."""
        total, count = 0.0, 0
        for first, t in zip(self.firsts, self.lengths, strict=True):
            part = self.tokens[first : first + t + 1]
            total += float((part[1:] - part[:-1]).abs().mean((1, 2)).sum())
            count += int(t)
        return total / count

    def _table(self, length: int, rewarding: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For every window of ``length`` frames: first frame, first action, and the running sum of the odds of drawing
        it."""
        key = (length, rewarding)
        if key not in self._tables:
            frames, actions, odds = [], [], []
            reach = min(length, 8) - 1
            high = float(np.quantile(self.rewards.numpy(), HIGH)) if rewarding else 0.0
            for first, t, action in zip(self.firsts, self.lengths, self.first_actions, strict=True):
                if t + 1 < length:
                    continue
                starts = np.arange(t + 2 - length)
                part = self.tokens[first : first + t + 1]
                moves = (part[1:] - part[:-1]).abs().mean((1, 2)).numpy()
                run = np.concatenate([[0.0], np.cumsum(moves)])
                odds.append((run[starts + reach] - run[starts]) / reach)
                if rewarding:
                    reward = self.rewards[action : action + t].numpy()
                    best = np.array([reward[s : s + length - 1].max() for s in starts])
                    ends = self.terminated[action : action + t].numpy()
                    ended = np.array([ends[s : s + length - 1].any() for s in starts])
                    odds[-1] = np.where(ended, 3.0, np.where(best > high, 1.0, 0.1))
                frames.append(first + starts)
                actions.append(action + starts)
            if not frames:
                raise ValueError(
                    f"no training episode has {length} frames; the longest has {int(self.lengths.max()) + 1}"
                )
            weight = np.concatenate(odds)
            if not rewarding:
                weight = 0.3 + np.minimum(weight / max(weight.mean(), 1e-12), 3.0)
            self._tables[key] = (np.concatenate(frames), np.concatenate(actions), np.cumsum(weight))
        return self._tables[key]

    def sample(
        self, batch: int, length: int, draws: np.random.Generator, device: torch.device, rewarding: bool = False
    ) -> TokenClip:
        """``batch`` windows of ``length`` frames; ``rewarding`` prefers those in which the reward is among the highest, and
        more so those that reach the end: it is rare, and what tells it from a near miss is little."""
        frames, actions, odds = self._table(length, rewarding)
        window = np.searchsorted(odds, draws.random(batch) * odds[-1], side="right").clip(max=len(odds) - 1)
        at = torch.from_numpy(frames[window])[:, None] + torch.arange(length)
        by = torch.from_numpy(actions[window])[:, None] + torch.arange(length - 1)
        return TokenClip(
            self.tokens[at].to(device),
            None if self.actions is None else self.actions[by].to(device),
            self.rewards[by].to(device),
            self.terminated[by].to(device),
            None if self.states is None else self.states[at].to(device),
            at.to(device),
        )


def _actions(arrays: Mapping[str, np.ndarray], store: EpisodeStore) -> torch.Tensor:
    """A shard's actions; in their place, zeros that no window reaches where it is video without any."""
    if "actions" in arrays:
        return torch.from_numpy(np.array(arrays["actions"]))
    return torch.from_numpy(np.zeros((len(arrays["rewards"]), store.spec.action_size), store.spec.action_dtype))
