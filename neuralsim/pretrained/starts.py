"""Initial histories from which an imagined rollout begins, as ``starts.npz`` of a world."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from neuralsim.data.store import EpisodeStore
from neuralsim.runtime.files import atomic_file
from neuralsim.spec import MOST_CONTEXT, WorldSpec

LARGEST_STARTS = 1 << 30
"""Bytes that initial histories may take in memory."""


@dataclass(frozen=True, eq=False)
class Starts:
    """N real histories of t frames each; an imagined rollout begins after the last frame of one."""

    frames: np.ndarray
    """uint8 ``(N, t, h, w, 3)``."""
    actions: np.ndarray
    """float32 or int64 ``(N, t-1, a)``."""
    states: np.ndarray | None = None
    """Ground truth, finite float32 ``(N, t, s)``; None where it is unknown."""
    seeds: np.ndarray | None = None
    """Seeds of the episodes they were cut from, int64 ``(N,)``; None where they are unknown."""

    def __post_init__(self) -> None:
        if self.frames.ndim != 5 or self.frames.dtype != np.uint8 or min(self.frames.shape[:2]) < 1:
            raise ValueError(
                f"starts: expected frames uint8 (N, t, h, w, 3) with N and t at least 1, "
                f"got {self.frames.dtype} {self.frames.shape}"
            )
        n, t = self.frames.shape[:2]
        expected = {"actions": (n, t - 1, "a"), "states": (n, t, "s"), "seeds": (n,)}
        for name, shape in expected.items():
            array = getattr(self, name)
            if array is None:
                continue
            if array.ndim != len(shape) or array.shape[: min(2, len(shape))] != shape[:2]:
                raise ValueError(
                    f"starts: expected {name} of shape {shape} beside {n} histories of {t} frames, got {array.shape}"
                )
        if t > MOST_CONTEXT:
            raise ValueError(f"starts: expected histories of at most {MOST_CONTEXT} frames, got {t}")
        for name in ("actions", "states"):
            array = getattr(self, name)
            if array is not None and not np.isfinite(array).all():
                place = np.argwhere(~np.isfinite(array))[0].tolist()
                raise ValueError(f"starts: expected finite {name}, got NaN or infinity at {place}")

    def __len__(self) -> int:
        return len(self.frames)

    def join(self, other: Starts) -> Self:
        """Append ``other``; the longer histories lose their beginning. States and seeds stay where both have them."""
        t = min(self.frames.shape[1], other.frames.shape[1])
        frames = np.concatenate([s.frames[:, -t:] for s in (self, other)])
        actions = np.concatenate([s.actions[:, s.actions.shape[1] - (t - 1) :] for s in (self, other)])
        states = seeds = None
        if self.states is not None and other.states is not None:
            states = np.concatenate([self.states[:, -t:], other.states[:, -t:]])
        if self.seeds is not None and other.seeds is not None:
            seeds = np.concatenate([self.seeds, other.seeds])
        return type(self)(frames, actions, states, seeds)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``starts.npz``, compressed; it appears whole or not at all. Raises DiskFullError on a full disk."""
        arrays = {k: v for k in ("frames", "actions", "states", "seeds") if (v := getattr(self, k)) is not None}
        target = Path(path)
        with atomic_file(target) as temporary:
            np.savez_compressed(temporary, **arrays)

    @classmethod
    def cut(cls, store: EpisodeStore, count: int, context: int, seed: int, held_out: bool | None = None) -> Self:
        """Cut ``count`` random histories of ``context`` frames from the episodes of ``store``.

        ``held_out`` restricts them to the held-out (True) or the training episodes (False). Raises ValueError where no
        episode is long enough.
        """
        chosen = np.arange(len(store)) if held_out is None else store.split(held_out)
        chosen = chosen[store.lengths[chosen] + 1 >= context]
        if context > 1 and store.spec.action_size:
            chosen = chosen[store.acted(chosen)]
        if not len(chosen):
            raise ValueError(f"{store.folder}: no episode has {context} frames to start from")
        draws = np.random.default_rng([seed, 1003])
        frames, actions, states, seeds = [], [], [], []
        for index in draws.choice(chosen, size=count, replace=len(chosen) < count):
            episode = store[int(index)]
            begin = int(draws.integers(0, len(episode) + 2 - context))
            frames.append(episode.frames[begin : begin + context])
            none = np.empty((context - 1, store.spec.action_size), store.spec.action_dtype)
            actions.append(episode.actions[begin : begin + context - 1] if episode.has_actions else none)
            if episode.states is not None:
                states.append(episode.states[begin : begin + context])
            seeds.append(episode.provenance.get("seed", -1))
        known = np.stack(states) if len(states) == count and np.isfinite(states).all() else None
        return cls(np.stack(frames), np.stack(actions), known, np.array(seeds, np.int64))

    @classmethod
    def load(cls, path: str | os.PathLike[str], spec: WorldSpec) -> Self:
        """Read ``starts.npz`` and check it against ``spec``; never unpickles."""
        try:
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
            if size > LARGEST_STARTS:
                raise ValueError(f"{size} bytes unpacked, expected at most {LARGEST_STARTS}")
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ("frames", "actions", "states", "seeds") if name in file}
        except Exception as error:  # zip, zlib and numpy raise errors of many kinds for bytes that are no archive
            raise ValueError(f"{path}: not a starts file of plain arrays ({error})") from error
        missing = {"frames", "actions"} - set(arrays)
        if missing:
            raise ValueError(f"{path}: {sorted(missing)} missing; Starts(...).save(path) writes such a file")
        for name, kinds in (("actions", "fiu"), ("states", "f"), ("seeds", "iu")):
            if name in arrays and arrays[name].dtype.kind not in kinds:
                raise ValueError(f"{path}: {name}: expected numbers (of kind {kinds}), got dtype {arrays[name].dtype}")
        spec.check_frames(arrays["frames"], f"{path}: frames")
        arrays["actions"] = spec.check_actions(arrays["actions"], f"{path}: actions")
        try:
            return cls(**arrays)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
