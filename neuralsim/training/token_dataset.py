"""Token dataset: a store's frames encoded once, and training windows over the tokens."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from neuralsim.data.store import EpisodeStore
from neuralsim.models.action_encoding import EncodedActions, encode_actions, no_actions
from neuralsim.runtime.device import arithmetic
from neuralsim.runtime.files import disk_errors, sweep_leftovers, temporary_path
from neuralsim.storage.fingerprint import fingerprint

HIGH = 0.95
"""Quantile of rewards above which one counts as high."""


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
    """Encode every frame of the store, in order, to float32 ``(frames, n, d)``.

    ``encode`` makes tokens ``(b n d)`` of uint8 ``(b stack h w c)``: each frame with the ones before it in its episode (the first
    one repeated where there are fewer). ``cache`` keeps them per shard, under the fingerprints of ``weights`` and of the shard.
    """
    folder = cache / f"tokens-{fingerprint(weights)}"
    folder.mkdir(parents=True, exist_ok=True)
    sweep_leftovers(folder)
    parts = []
    for i in bar("encode", 0, len(store.shards)):
        frames = store.shards[i]["frames"]
        path = folder / f"{_shard_fingerprint(frames)}.npy"
        tokens = np.load(path, allow_pickle=False) if path.is_file() else None
        if tokens is None or len(tokens) != len(frames):
            here, firsts = np.arange(len(frames)), store.first_frames(i)
            begin = firsts[np.searchsorted(firsts, here, side="right") - 1]
            rows = np.maximum(here[:, None] + np.arange(1 - stack, 1), begin[:, None])
            with arithmetic(dtype, device):
                made = [
                    encode(torch.as_tensor(frames[rows[j : j + 512]], device=device)).float().cpu()
                    for j in range(0, len(frames), 512)
                ]
            tokens = torch.cat(made).numpy()
            _keep(path, tokens)
        parts.append(torch.from_numpy(tokens))
    return torch.cat(parts)


def _keep(path: Path, tokens: np.ndarray) -> None:
    """Write ``tokens`` to the cache file ``path``; it appears whole or not at all."""
    temporary = temporary_path(path)
    try:
        with disk_errors(path, tokens.nbytes, "the frames encoded so far"):
            np.save(temporary, tokens, allow_pickle=False)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _shard_fingerprint(frames: np.ndarray) -> str:
    """Return the number of a shard's frames and a checksum of all of them."""
    checksum = 0
    for i in range(0, len(frames), 1024):
        checksum = zlib.crc32(np.ascontiguousarray(frames[i : i + 1024]).tobytes(), checksum)
    return f"{len(frames)}-{checksum:08x}"


@dataclass(frozen=True)
class TokenClip:
    """A batch of training windows."""

    tokens: torch.Tensor
    """``(b t n d)``."""
    actions: EncodedActions
    """``(b t-1 action_width)``, encoded; not known in video without actions."""
    rewards: torch.Tensor
    """float32 ``(b t-1)``."""
    terminated: torch.Tensor
    """float32 ``(b t-1)``."""
    states: torch.Tensor | None = None
    """``(b t s)`` where they are known."""
    at: torch.Tensor | None = None
    """int64 ``(b t)``: indices of the frames in the store."""


class TokenWindows:
    """Training windows over tokens in memory, of the episodes with actions or, with ``acted=False``, of those without; of
    ``episodes`` (indices) alone where given.

    Windows in which much happens are drawn more often (by the mean absolute change of their first tokens, capped): most of the
    time a world stands still, and motion is what must be learned.
    """

    def __init__(
        self, store: EpisodeStore, tokens: torch.Tensor, acted: bool = True, episodes: np.ndarray | None = None
    ) -> None:
        self.tokens, self.acted, self.spec = tokens, acted, store.spec
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
                "(those whose seed is a multiple of the held-out number are kept for evaluation)"
            )
        self._tables: dict[tuple[int, bool], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    @property
    def longest(self) -> int:
        """Number of actions in the longest episode."""
        return int(self.lengths.max())

    def typical_change(self) -> float:
        """Return the mean absolute change of a token number from frame to frame over the training episodes."""
        total, count = 0.0, 0
        for first, t in zip(self.firsts, self.lengths, strict=True):
            part = self.tokens[first : first + t + 1]
            total += float((part[1:] - part[:-1]).abs().mean((1, 2)).sum())
            count += int(t)
        return total / count

    def _table(self, length: int, rewarding: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return first frame, first action and cumulative odds of every window of ``length`` frames."""
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
        """Draw ``batch`` windows of ``length`` frames; ``rewarding`` prefers those with high rewards, and more so those that reach
        the end: ends are rare, and differ little from near misses."""
        frames, actions, odds = self._table(length, rewarding)
        window = np.searchsorted(odds, draws.random(batch) * odds[-1], side="right").clip(max=len(odds) - 1)
        at = torch.from_numpy(frames[window])[:, None] + torch.arange(length, dtype=torch.int64, device="cpu")
        by = torch.from_numpy(actions[window])[:, None] + torch.arange(length - 1, dtype=torch.int64, device="cpu")
        return TokenClip(
            self.tokens[at].to(device),
            self._encoded(by, device),
            self.rewards[by].to(device),
            self.terminated[by].to(device),
            None if self.states is None else self.states[at].to(device),
            at.to(device),
        )

    def _encoded(self, by: torch.Tensor, device: torch.device) -> EncodedActions:
        """Encode the actions with the indices ``by`` ``(b t)``."""
        if self.actions is None:
            unknown = no_actions(self.spec, by.shape[0], by.shape[1], device)
            return EncodedActions(encode_actions(self.spec, unknown), known=False)
        return EncodedActions(encode_actions(self.spec, self.actions[by].to(device)))


def _actions(arrays: Mapping[str, np.ndarray], store: EpisodeStore) -> torch.Tensor:
    """Return a shard's actions; for video without actions zeros, which no window reaches."""
    if "actions" in arrays:
        return torch.from_numpy(np.array(arrays["actions"]))
    return torch.from_numpy(np.zeros((len(arrays["rewards"]), store.spec.action_size), store.spec.action_dtype))
