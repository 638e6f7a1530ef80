"""Predictions of a world action model in every role at chosen steps of held-out episodes, each computed on first use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from neuralsim.data.store import EpisodeStore
from neuralsim.evaluation.rollouts import Windows, held_out_episodes
from neuralsim.models.roles import (
    DISCOUNT,
    FOLLOWING,
    PASSES,
    denoise_chunk,
    infer_actions,
    predict_actions,
    predict_jointly,
    predict_value,
    predict_video,
)
from neuralsim.models.video_wam import VideoState, VideoWAM
from neuralsim.noise import Noise
from neuralsim.runtime.device import inference, pick_dtype


@dataclass(frozen=True, eq=False)
class RoleQueries:
    """``n`` steps at which a model is queried, with the history before and the k steps after each."""

    episodes: np.ndarray
    """Episode of each query ``(n,)``."""
    state: VideoState
    """The model's state after the history."""
    tokens: torch.Tensor
    """Tokens ``(n, k+1, N, d)``, the queried step first."""
    actions: torch.Tensor
    """Actions that followed, float32 ``(n, k, a)``."""
    frames: np.ndarray
    """Frames uint8 ``(n, k+1, h, w, 3)``, the queried step first."""
    states: np.ndarray | None
    """True states float64 ``(n, k+1, s)``; None where they are not known."""
    value: np.ndarray
    """``DISCOUNT`` to the number of steps until the episode's first success ``(n,)``; 0 without one."""

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def steps(self) -> int:
        """Number of steps k after each query."""
        return self.actions.shape[1]

    @property
    def others(self) -> np.ndarray:
        """Index of another query for each ``(n,)``, of another episode unless one episode has more than half of them."""
        order = np.argsort(self.episodes, kind="stable")
        found = np.empty_like(order)
        found[order] = np.roll(order, -(len(order) // 2))
        return found

    @classmethod
    def take(cls, model: VideoWAM, windows: Windows, precision: str = "auto", batch: int = 64) -> RoleQueries:
        """Query at the ends of the histories of ``windows``; the histories are encoded here, once."""
        device, first = torch.device(model.device), windows.context - 1
        states, tokens, actions, frames, true_states = [], [], [], [], []
        for i in range(0, len(windows), batch):
            clip = windows.index(slice(i, i + batch)).read()
            images = torch.as_tensor(clip.frames, device=device)
            taken = torch.as_tensor(clip.actions, device=device)
            with inference(device, pick_dtype(precision, device)):
                state = model.encode(images[:, : first + 1], taken[:, :first])
                after = model.codec.encode(images[:, first + 1 :].flatten(0, 1)).unflatten(0, (len(images), -1))
            states.append(state)
            tokens.append(torch.cat([state.tokens[:, None], after], 1).float())
            actions.append(taken[:, first:].float())
            frames.append(clip.frames[:, first:])
            true_states.append(clip.states)
        known = [s[:, first:].astype(np.float64) for s in true_states if s is not None]
        return cls(
            windows.episodes,
            _join(states),
            torch.cat(tokens),
            torch.cat(actions),
            np.concatenate(frames),
            np.concatenate(known) if len(known) == len(true_states) else None,
            np.array(
                [
                    _value(windows.store, int(e), int(s) + first)
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
    """Choose ``n`` different windows of the held-out episodes, each equally likely, or all where there are fewer. ``underway``: only those
    whose history ends before the episode's first success, since after it there is nothing left to do. Raises ValueError where fewer
    than two episodes have one."""
    length, found = context + steps, []
    for index in held_out_episodes(store, all_held_out):
        last = int(store.lengths[index]) + 2 - length
        if underway:
            last = min(last, _success(store, int(index)) - context + 1)
        found += [(int(index), start) for start in range(last)]
    episodes = len({index for index, _ in found})
    if episodes < 2:  # one episode cannot show how much another would differ
        raise ValueError(
            f"{store.folder}: needs windows of {length} frames{' before the first success' if underway else ''} in at least two "
            f"episodes that training has never seen, got {episodes}; collect more or longer ones (of a store that was trained "
            "on, one episode in 20 is held out)"
        )
    chosen = np.array(found)[rng.permutation(len(found))[:n]]
    return Windows(store, chosen[:, 0], chosen[:, 1], context, steps)


def _success(store: EpisodeStore, index: int) -> int:
    """Index of the first frame of the episode that shows success; beyond all frames where none does."""
    ends = np.flatnonzero(store[index].terminated)
    return int(ends[0]) + 1 if len(ends) else int(store.lengths[index]) + 2


def _value(store: EpisodeStore, index: int, frame: int) -> float:
    ends = np.flatnonzero(store[index].terminated)
    return DISCOUNT ** max(int(ends[0]) + 1 - frame, 0) if len(ends) else 0.0


def _join(states: list[VideoState]) -> VideoState:
    return VideoState(**{name: torch.cat([getattr(s, name) for s in states]) for name in vars(states[0])})


BatchPrediction = Callable[[VideoState, Noise, slice], tuple[torch.Tensor, ...]]
"""Predicts for some rows, given their states, their noise, and which rows they are."""


@dataclass(frozen=True, eq=False)
class RolePredictions:
    """Predictions of ``model`` for ``queries``. Frames are tokens ``(n, k, N, d)``, actions ``(n, k, a)``."""

    model: VideoWAM
    queries: RoleQueries
    aim: int
    """1 for a demonstrator's behaviour, 0 for any."""
    passes: int = PASSES
    """Denoising passes; one is used where the prediction follows from what is given."""
    seed: int = 0
    """Seed of the noise; that of query i depends on ``seed`` and i alone."""
    precision: str = "auto"
    """auto, float32 or bfloat16."""
    batch: int = 256
    """Queries at once."""

    def each(self, predict: BatchPrediction) -> tuple[torch.Tensor, ...]:
        """Call ``predict`` a batch at a time and join the results; numbers in float32."""
        n, device, parts = len(self.queries), torch.device(self.model.device), []
        for i in range(0, n, self.batch):
            rows = slice(i, min(i + self.batch, n))
            rng = Noise.from_seeds([self.seed * 1_000_003 + j for j in range(rows.start, rows.stop)], device)
            with inference(device, pick_dtype(self.precision, device)):
                parts.append(predict(self.queries.state.index(rows), rng, rows))
        whole = (torch.cat(column) for column in zip(*parts, strict=True))
        return tuple(x.float() if x.is_floating_point() else x for x in whole)

    # -- given actions, frames or a prefix

    def simulate(self, actions: torch.Tensor) -> torch.Tensor:
        """Predict the frames after each of ``actions``, step by step as the imagined environment does."""

        def predict(state: VideoState, rng: Noise, rows: slice) -> tuple[torch.Tensor, ...]:
            frames = []
            for i, action in enumerate(actions[rows].unbind(1)):
                state = self.model.step(state, action, rng.advance(i))
                frames.append(state.tokens)
            return (torch.stack(frames, 1),)

        return self.each(predict)[0]

    def simulate_jointly(self, actions: torch.Tensor) -> torch.Tensor:
        """Predict the same frames with the joint stream, the whole chunk at once."""

        def predict(state: VideoState, rng: Noise, rows: slice) -> tuple[torch.Tensor, ...]:
            found = denoise_chunk(
                self.model, state, rng, FOLLOWING, frames="asked", actions=actions[rows], aim=self.aim
            ).frames
            assert found is not None
            return (found,)

        return self.each(predict)[0]

    def infer(self, frames: torch.Tensor, prefix: torch.Tensor | None = None) -> torch.Tensor:
        """Infer the actions that led through ``frames``."""
        return self.each(
            lambda state, rng, rows: (
                infer_actions(self.model, state, frames[rows], rng, aim=self.aim, prefix=_rows_of(prefix, rows)),
            )
        )[0]

    def act(self, prefix: torch.Tensor | None = None) -> torch.Tensor:
        """Predict the next actions, from ``prefix`` on where one is given."""
        return self.each(
            lambda state, rng, rows: (
                predict_actions(self.model, state, rng, self.passes, _rows_of(prefix, rows), self.aim),
            )
        )[0]

    def predict_jointly(self, prefix: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict the next actions and frames together."""

        def predict(state: VideoState, rng: Noise, rows: slice) -> tuple[torch.Tensor, ...]:
            found = predict_jointly(self.model, state, rng, self.passes, _rows_of(prefix, rows), self.aim)
            assert found.actions is not None
            assert found.frames is not None
            return found.actions, found.frames

        actions, frames = self.each(predict)
        return actions, frames

    # -- computed once

    @cached_property
    def acted(self) -> torch.Tensor:
        """Predicted actions without a prefix."""
        return self.act()

    @cached_property
    def inferred(self) -> torch.Tensor:
        """Actions inferred from the true frames."""
        return self.infer(self.queries.tokens[:, 1:])

    @cached_property
    def foreseen(self) -> torch.Tensor:
        """Predicted frames, given no actions."""
        return self.each(lambda state, rng, rows: (predict_video(self.model, state, rng, self.passes, self.aim),))[0]

    @cached_property
    def simulated(self) -> torch.Tensor:
        """Frames simulated from the true actions."""
        return self.simulate(self.queries.actions)

    @cached_property
    def simulated_jointly(self) -> torch.Tensor:
        """Frames simulated from the true actions by the joint stream."""
        return self.simulate_jointly(self.queries.actions)

    @cached_property
    def simulated_otherwise(self) -> torch.Tensor:
        """Frames simulated from the actions of ``queries.others``."""
        return self.simulate(self.queries.actions[self.queries.others])

    @cached_property
    def value(self) -> torch.Tensor:
        """Predicted value of each query ``(n,)``."""
        return self.each(lambda state, rng, rows: (predict_value(self.model, state),))[0]


def _rows_of(prefix: torch.Tensor | None, rows: slice) -> torch.Tensor | None:
    return None if prefix is None else prefix[rows]
