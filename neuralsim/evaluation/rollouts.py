"""Open-loop dreams of held-out episodes, beside the truth: what measuring is computed from.

A measured window is the model's context, then up to 64 steps: the model sees the context's frames, then only the true actions.
Sources: section 5.6 of field/systems.md; copy-last answers Physics-IQ's flaw of scoring a still picture well (arXiv 2501.09038).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch

from neuralsim.data.store import EpisodeStore
from neuralsim.data.windows import Clip
from neuralsim.evaluation.image_metrics import psnr, squared_error, ssim
from neuralsim.evaluation.state_estimator import StateEstimate, StateEstimator
from neuralsim.noise import Noise
from neuralsim.runtime.device import inference, pick_dtype
from neuralsim.world_model import State, WorldModel

Ticker = Callable[[int], None]
"""Told how many rollout steps are done since it was last told."""


@dataclass(frozen=True)
class Windows:
    """``n`` windows of held-out episodes: which episode, and its first step; ``context`` frames of each are history.

    ``plans`` ``(n, steps, a)``, where given, are dreamt instead of the actions that were taken after the history.
    """

    store: EpisodeStore
    episodes: np.ndarray
    starts: np.ndarray
    context: int
    steps: int
    plans: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.episodes)

    def index(self, rows: slice | np.ndarray) -> Windows:
        """Some of the windows."""
        plans = None if self.plans is None else self.plans[rows]
        return replace(self, episodes=self.episodes[rows], starts=self.starts[rows], plans=plans)

    def cut(self, steps: int) -> Windows:
        """The same windows, ``steps`` long."""
        return replace(self, steps=steps, plans=None if self.plans is None else self.plans[:, :steps])

    def read(self) -> Clip:
        """The windows' arrays: ``context + steps`` frames and one action fewer; see Clip."""
        actions = self.context + self.steps - 1
        parts: dict[str, list[np.ndarray]] = {
            "frames": [],
            "actions": [],
            "rewards": [],
            "terminated": [],
            "states": [],
        }
        for episode, start in zip(self.episodes, self.starts, strict=True):
            whole = self.store[int(episode)]
            for name, kept in parts.items():
                none = name == "actions" and not self.store.spec.action_size  # what there is none of, everybody knows
                array = np.empty((len(whole), 0), self.store.spec.action_dtype) if none else getattr(whole, name)
                if array is not None:
                    kept.append(array[start : start + actions + (name in ("frames", "states"))])
        stacked = {name: np.stack(kept) if len(kept) == len(self) else None for name, kept in parts.items()}
        if self.plans is not None and stacked["actions"] is not None:
            stacked["actions"][:, self.context - 1 :] = self.plans
        return Clip(**stacked)  # type: ignore[arg-type]


def held_out_episodes(store: EpisodeStore, all_held_out: bool) -> np.ndarray:
    """Indices of the episodes that may be measured on: the held-out split, or all of a store collected for nothing else;
    those whose actions are known, where the world has any."""
    chosen = np.arange(len(store)) if all_held_out else store.split(True)
    return chosen[store.acted(chosen)] if store.spec.action_size else chosen


def sample_windows(
    store: EpisodeStore, n: int, context: int, steps: int, rng: np.random.Generator, all_held_out: bool = False
) -> Windows:
    """``n`` windows spread evenly over the held-out episodes, each at a random place of its episode."""
    length = context + steps
    episodes = held_out_episodes(store, all_held_out)
    episodes = episodes[store.lengths[episodes] + 1 >= length]
    if not len(episodes):
        raise ValueError(
            f"{store.folder}: no held-out episode has the {length} frames that {steps} steps after {context} of context need; "
            f"collect longer or more episodes (one in 20 is held out), or pass all_held_out=True for a store that "
            f"training has never seen"
        )
    chosen = np.concatenate([rng.permutation(episodes) for _ in range(-(-n // len(episodes)))])[:n]
    starts = rng.integers(store.lengths[chosen] + 2 - length)
    return Windows(store, chosen, starts, context, steps)


def dream(model: WorldModel, clip: Clip, context: int, seeds: Sequence[int], chunk: int = 1) -> Iterator[State]:
    """The states at step 0 (the last true frame, encoded), 1, 2, ... of a dream of ``clip``'s actions, ``chunk`` frames at once.

    Run it, and whatever reads the states, inside ``inference(model.device, dtype)``.
    """
    rng = Noise.from_seeds(seeds, model.device)
    actions = torch.as_tensor(clip.actions).to(model.device)
    state = model.encode(torch.as_tensor(clip.frames[:, :context]).to(model.device), actions[:, : context - 1])
    yield state
    plan = actions[:, context - 1 :]
    for i in range(0, plan.shape[1], chunk):
        if chunk == 1:
            state = model.step(state, plan[:, i], rng.advance(i))
            yield state
            continue
        states = model.unroll(state, plan[:, i : i + chunk], rng.advance(i))
        for j in range(len(plan[0, i : i + chunk])):
            state = states.index((slice(None), j))  # type: ignore[arg-type]
            yield state


@dataclass(frozen=True)
class Rollouts:
    """``n`` rollouts seen at ``steps`` ``(s,)``, the first of which is 0: imagined, true, and read off the true frames.

    reading (of imagined frames) and true_reading (of the true ones: the reader's own error) are ``(n, s)`` Readings, None without a
    Reader. states ``(n, s, d)``: the true ones, None where nobody knows them; told: as the model tells them, None where it does
    not. error and error_copy ``(n, s)``: squared error in grey levels. likeness and likeness_copy: SSIM at ``ssim_steps``, NaN
    elsewhere. heads (reward, terminated as a probability), uncertainty and the truths of the former are ``(n, t)`` for steps 1, 2,
    ..., t; reward_before ``(n,)`` is the true reward at step 0. frames: the windows kept for the picture, imagined beside true.
    """

    episodes: np.ndarray
    steps: np.ndarray
    error: np.ndarray
    error_copy: np.ndarray
    likeness: np.ndarray
    likeness_copy: np.ndarray
    uncertainty: np.ndarray
    true_reward: np.ndarray
    true_terminated: np.ndarray
    reward_before: np.ndarray
    heads: dict[str, np.ndarray]
    reading: StateEstimate | None = None
    true_reading: StateEstimate | None = None
    states: np.ndarray | None = None
    told: np.ndarray | None = None
    frames: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.episodes)

    def column(self, step: int) -> int:
        """Where ``step`` stands in ``steps``."""
        return int(np.flatnonzero(self.steps == step)[0])

    def psnr(self, step: int, copy: bool = False) -> np.ndarray:
        """``(n,)`` dB."""
        return psnr((self.error_copy if copy else self.error)[:, self.column(step)])


def roll_out(
    model: WorldModel,
    windows: Windows,
    steps: Sequence[int],
    reader: StateEstimator | None,
    *,
    ssim_steps: Sequence[int] = (),
    chunk: int = 1,
    batch: int = 32,
    seed: int = 0,
    precision: str = "auto",
    keep: int = 0,
    tick: Ticker | None = None,
) -> Rollouts:
    """Dream ``windows`` and look at ``steps``; the frames of the first ``keep`` windows are kept. Row i's noise depends on i alone."""
    seen = np.array(sorted({0, *steps}))
    parts = [
        _roll_out(model, windows, slice(i, i + batch), seen, reader, ssim_steps, chunk, seed, precision, keep, tick)
        for i in range(0, len(windows), batch)
    ]
    return _join(parts, windows.episodes, seen)


def _roll_out(
    model: WorldModel,
    windows: Windows,
    rows: slice,
    steps: np.ndarray,
    reader: StateEstimator | None,
    ssim_steps: Sequence[int],
    chunk: int,
    seed: int,
    precision: str,
    keep: int,
    tick: Ticker | None,
) -> dict[str, object]:
    clip = windows.index(rows).read()
    n, first = len(clip.frames), windows.context - 1
    imagined = np.empty((n, len(steps), *clip.frames.shape[2:]), np.uint8)
    heads: dict[str, list[np.ndarray]] = {}
    uncertainty: list[np.ndarray] = []
    told: list[np.ndarray] = []
    seeds = [seed * 1_000_003 + i for i in range(len(windows))[rows]]
    with inference(model.device, pick_dtype(precision, model.device)):
        for step, state in enumerate(dream(model, clip, windows.context, seeds, chunk)):
            where = np.flatnonzero(steps == step)
            if len(where):
                imagined[:, where[0]] = model.decode(state).cpu().numpy()
                with suppress(TypeError):  # it tells no states
                    told.append(model.read_state(state).float().cpu().numpy())
            if step:
                for name, value in model.read(state).items():
                    heads.setdefault(name, []).append(value.float().cpu().numpy())
                uncertainty.append(model.uncertainty(state).float().cpu().numpy())
                if tick:
                    tick(n)
    true = clip.frames[:, first + steps]
    last = np.broadcast_to(clip.frames[:, first : first + 1], true.shape)
    part: dict[str, object] = {
        "error": squared_error(imagined, true),
        "error_copy": squared_error(last, true),
        "uncertainty": np.stack(uncertainty, 1),
        "true_reward": clip.rewards[:, first:].astype(np.float64),
        "true_terminated": clip.terminated[:, first:],
        "reward_before": clip.rewards[:, first - 1].astype(np.float64) if first else np.full(n, np.nan),
        "heads": {name: np.stack(values, 1).astype(np.float64) for name, values in heads.items()},
    }
    for name, frames in (("likeness", imagined), ("likeness_copy", last)):
        likeness = np.full((n, len(steps)), np.nan)
        for column in np.flatnonzero(np.isin(steps, ssim_steps)):
            likeness[:, column] = ssim(frames[:, column], true[:, column])
        part[name] = likeness
    if reader is not None:
        part["reading"] = reader(imagined.reshape(-1, *imagined.shape[2:])).reshape(n, len(steps))
        part["true_reading"] = reader(true.reshape(-1, *true.shape[2:])).reshape(n, len(steps))
    if clip.states is not None:
        part["states"] = clip.states[:, first + steps].astype(np.float64)
    if told:
        part["told"] = np.stack(told, 1).astype(np.float64)
    kept = slice(0, max(0, keep - rows.start))
    part["frames"] = (imagined[kept], true[kept].copy())
    return part


def _join(parts: list[dict[str, object]], episodes: np.ndarray, steps: np.ndarray) -> Rollouts:
    joined: dict[str, object] = {}
    for name, example in parts[0].items():
        values = [part[name] for part in parts if name in part]
        if len(values) < len(parts):  # not every episode knows its states
            continue
        if isinstance(example, dict):
            joined[name] = {k: np.concatenate([v[k] for v in values]) for k in example}  # type: ignore[index]
        elif isinstance(example, tuple):
            joined[name] = tuple(np.concatenate(column) for column in zip(*values, strict=True))
        elif isinstance(example, StateEstimate):
            joined[name] = type(example).join(values)  # type: ignore[arg-type]
        else:
            joined[name] = np.concatenate(values)  # type: ignore[arg-type]
    return Rollouts(episodes=episodes, steps=steps, **joined)  # type: ignore[arg-type]
