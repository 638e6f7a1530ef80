"""Moments: places in held-out episodes at which a model is asked. Its history is encoded once; what really followed lies beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from neuralsim.data.episode import EpisodeStore
from neuralsim.evaluation.rollouts import Windows, held_out_episodes
from neuralsim.models.video_wam import VideoState, VideoWAM
from neuralsim.runtime.device import pick_dtype
from neuralsim.task import inference
from neuralsim.training.video_stages import DISCOUNT


@dataclass(frozen=True, eq=False)
class RoleQueries:
    """``n`` moments and the k steps after each.

    ``state``: the model's, of the history that ends here; tokens ``(n, k+1, N, d)`` and frames uint8 ``(n, k+1, h, w, 3)``, the
    first of which are here; actions float32 ``(n, k, a)``; states float64 ``(n, k+1, s)``, None where nobody knows them; ``worth``
    ``(n,)``: ``DISCOUNT`` to the steps until the episode's first success, 0 where there is none; ``episodes`` ``(n,)``.
    """

    episodes: np.ndarray
    state: VideoState
    tokens: torch.Tensor
    actions: torch.Tensor
    frames: np.ndarray
    states: np.ndarray | None
    worth: np.ndarray

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def steps(self) -> int:
        """k."""
        return self.actions.shape[1]

    @property
    def others(self) -> np.ndarray:
        """For each moment another ``(n,)``, of another episode unless one episode has more than half of them."""
        order = np.argsort(self.episodes, kind="stable")
        found = np.empty_like(order)
        found[order] = np.roll(order, -(len(order) // 2))
        return found

    @classmethod
    def take(cls, model: VideoWAM, windows: Windows, precision: str = "auto", batch: int = 64) -> RoleQueries:
        """The moments at which the histories of ``windows`` end."""
        device, first = torch.device(model.device), windows.context - 1
        states, tokens, actions, frames, truths = [], [], [], [], []
        for i in range(0, len(windows), batch):
            clip = windows.index(slice(i, i + batch)).read()
            seen = torch.as_tensor(clip.frames).to(device)
            done = torch.as_tensor(clip.actions).to(device)
            with inference(device, pick_dtype(precision, device)):
                state = model.encode(seen[:, : first + 1], done[:, :first])
                after = model.codec.encode(seen[:, first + 1 :].flatten(0, 1)).unflatten(0, (len(seen), -1))
            states.append(state)
            tokens.append(torch.cat([state.tokens[:, None], after], 1).float())
            actions.append(done[:, first:].float())
            frames.append(clip.frames[:, first:])
            truths.append(clip.states)
        known = [s[:, first:].astype(np.float64) for s in truths if s is not None]
        return cls(
            windows.episodes,
            _join(states),
            torch.cat(tokens),
            torch.cat(actions),
            np.concatenate(frames),
            np.concatenate(known) if len(known) == len(truths) else None,
            np.array(
                [
                    _worth(windows.store, int(e), int(s) + first)
                    for e, s in zip(windows.episodes, windows.starts, strict=True)
                ]
            ),
        )


def choose_windows(
    store: EpisodeStore,
    n: int,
    context: int,
    steps: int,
    rng: np.random.Generator,
    all_held_out: bool = False,
    underway: bool = False,
) -> Windows:
    """``n`` windows of the held-out episodes, or as many as there are; each is equally likely, none comes twice. ``underway``: only
    those whose history ends before the episode's first success, since after it there is nothing left to do. Raises ValueError
    where fewer than two episodes have one."""
    length, found = context + steps, []
    for index in held_out_episodes(store, all_held_out):
        last = int(store.lengths[index]) + 2 - length
        if underway:
            last = min(last, _success(store, int(index)) - context + 1)
        found += [(int(index), start) for start in range(last)]
    episodes = len({index for index, _ in found})
    if episodes < 2:  # of one episode nobody can say how much another would differ
        raise ValueError(
            f"{store.folder}: needs windows of {length} frames{' before the first success' if underway else ''} in at least two "
            f"episodes that training has never seen, got {episodes}; collect more or longer ones (of a store that was trained "
            "on, one episode in 20 is held out)"
        )
    chosen = np.array(found)[rng.permutation(len(found))[:n]]
    return Windows(store, chosen[:, 0], chosen[:, 1], context, steps)


def _success(store: EpisodeStore, index: int) -> int:
    """The first frame of the episode that shows success; beyond all frames where none does."""
    ends = np.flatnonzero(store[index].terminated)
    return int(ends[0]) + 1 if len(ends) else int(store.lengths[index]) + 2


def _worth(store: EpisodeStore, index: int, frame: int) -> float:
    ends = np.flatnonzero(store[index].terminated)
    return DISCOUNT ** max(int(ends[0]) + 1 - frame, 0) if len(ends) else 0.0


def _join(states: list[VideoState]) -> VideoState:
    return VideoState(**{name: torch.cat([getattr(s, name) for s in states]) for name in vars(states[0])})
