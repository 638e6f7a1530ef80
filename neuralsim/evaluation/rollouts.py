"""Open-loop imagined rollouts of held-out episodes beside the true ones, from which every metric is computed.

A measured window is the model's context, then up to 64 steps: the model sees the context's frames, then only the true actions.
Sources: section 5.6 of field/systems.md; copy-last-frame answers Physics-IQ's flaw of scoring a still picture well (arXiv 2501.09038).
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
"""Called with the number of rollout steps done since its last call."""


@dataclass(frozen=True)
class Windows:
    """``n`` windows of held-out episodes: a history, then the steps to imagine."""

    store: EpisodeStore
    """Store of the episodes."""
    episodes: np.ndarray
    """Episode of each window ``(n,)``."""
    starts: np.ndarray
    """First step of each window ``(n,)``."""
    context: int
    """Frames of history."""
    steps: int
    """Steps after the history."""
    plans: np.ndarray | None = None
    """Actions ``(n, steps, a)`` in place of those taken after the history."""

    def __len__(self) -> int:
        return len(self.episodes)

    def index(self, rows: slice | np.ndarray) -> Windows:
        """Select some of the windows."""
        plans = None if self.plans is None else self.plans[rows]
        return replace(self, episodes=self.episodes[rows], starts=self.starts[rows], plans=plans)

    def cut(self, steps: int) -> Windows:
        """Cut the windows to ``steps`` steps."""
        return replace(self, steps=steps, plans=None if self.plans is None else self.plans[:, :steps])

    def read(self) -> Clip:
        """Read the windows as a Clip: ``context + steps`` frames and one action fewer."""
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
                none = name == "actions" and not self.store.spec.action_size  # zero dimensions need no record
                array = np.empty((len(whole), 0), self.store.spec.action_dtype) if none else getattr(whole, name)
                if array is not None:
                    kept.append(array[start : start + actions + (name in ("frames", "states"))])
        stacked = {name: np.stack(kept) if len(kept) == len(self) else None for name, kept in parts.items()}
        if self.plans is not None and stacked["actions"] is not None:
            stacked["actions"][:, self.context - 1 :] = self.plans
        return Clip(**stacked)  # type: ignore[arg-type]


def held_out_episodes(store: EpisodeStore, all_held_out: bool) -> np.ndarray:
    """Return the indices of the episodes to measure on: the held-out split, or all of a store that training never sees; only those with
    known actions, where the world has any."""
    chosen = np.arange(len(store)) if all_held_out else store.split(True)
    return chosen[store.acted(chosen)] if store.spec.action_size else chosen


def sample_windows(
    store: EpisodeStore, n: int, context: int, steps: int, rng: np.random.Generator, all_held_out: bool = False
) -> Windows:
    """Draw ``n`` windows spread evenly over the held-out episodes, each at a random step of its episode."""
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


def imagine(model: WorldModel, clip: Clip, context: int, seeds: Sequence[int], chunk: int = 1) -> Iterator[State]:
    """Yield the states at step 0 (the last true frame, encoded), 1, 2, ... under ``clip``'s actions, ``chunk`` frames at once.

    Run it, and all that reads the states, inside ``inference(model.device, dtype)``.
    """
    rng = Noise.from_seeds(seeds, model.device)
    actions = torch.as_tensor(clip.actions, device=model.device)
    state = model.encode(torch.as_tensor(clip.frames[:, :context], device=model.device), actions[:, : context - 1])
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
    """``n`` imagined rollouts beside the true ones, at some ``steps``; None where something is not known."""

    episodes: np.ndarray
    """Episode of each rollout ``(n,)``."""
    steps: np.ndarray
    """Steps whose frames are compared ``(s,)``, the first of which is 0."""
    error: np.ndarray
    """Squared error of the imagined frames in grey levels ``(n, s)``."""
    error_copy: np.ndarray
    """The same of the last true frame, copied."""
    ssim: np.ndarray
    """SSIM of the imagined frames ``(n, s)``, NaN but at some steps."""
    ssim_copy: np.ndarray
    """The same of the last true frame, copied."""
    uncertainty: np.ndarray
    """The model's uncertainty at steps 1, 2, ..., t ``(n, t)``."""
    true_reward: np.ndarray
    """True rewards ``(n, t)``."""
    true_terminated: np.ndarray
    """True terminations ``(n, t)``."""
    reward_before: np.ndarray
    """True reward at step 0 ``(n,)``."""
    heads: dict[str, np.ndarray]
    """Predicted reward, and termination as a probability ``(n, t)``."""
    estimate: StateEstimate | None = None
    """State estimate of the imagined frames ``(n, s)``."""
    true_estimate: StateEstimate | None = None
    """State estimate of the true frames ``(n, s)``: the estimator's own error."""
    states: np.ndarray | None = None
    """True states ``(n, s, d)``."""
    predicted_states: np.ndarray | None = None
    """States that the model predicts ``(n, s, d)``."""
    frames: tuple[np.ndarray, np.ndarray] | None = None
    """Frames kept for the picture, imagined and true."""

    def __len__(self) -> int:
        return len(self.episodes)

    def column(self, step: int) -> int:
        """Return the index of ``step`` in ``steps``."""
        return int(np.flatnonzero(self.steps == step)[0])

    def psnr(self, step: int, copy: bool = False) -> np.ndarray:
        """Return the PSNR at ``step``, in dB ``(n,)``."""
        return psnr((self.error_copy if copy else self.error)[:, self.column(step)])


@dataclass(frozen=True)
class ImaginedRolloutConfig:
    """Settings of imagined rollouts."""

    ssim_steps: tuple[int, ...] = ()
    """Steps at which SSIM is computed."""
    chunk: int = 1
    """Frames predicted at once."""
    batch: int = 32
    """Rollouts at once."""
    seed: int = 0
    """Seed of the noise; that of row i depends on ``seed`` and i alone."""
    precision: str = "auto"
    """auto, float32 or bfloat16."""
    keep: int = 0
    """First windows whose frames are kept."""


def roll_out(
    model: WorldModel,
    windows: Windows,
    steps: Sequence[int],
    estimator: StateEstimator | None = None,
    config: ImaginedRolloutConfig = ImaginedRolloutConfig(),
    tick: Ticker | None = None,
) -> Rollouts:
    """Imagine ``windows`` and compare the frames at ``steps`` with the true ones, by ``estimator`` too where there is one."""
    compared = np.array(sorted({0, *steps}))
    parts = [
        _roll_out_batch(model, windows, slice(i, i + config.batch), compared, estimator, config, tick)
        for i in range(0, len(windows), config.batch)
    ]
    return _join(parts, windows.episodes, compared)


def _roll_out_batch(
    model: WorldModel,
    windows: Windows,
    rows: slice,
    steps: np.ndarray,
    estimator: StateEstimator | None,
    config: ImaginedRolloutConfig,
    tick: Ticker | None,
) -> dict[str, object]:
    clip = windows.index(rows).read()
    n, first = len(clip.frames), windows.context - 1
    imagined = np.empty((n, len(steps), *clip.frames.shape[2:]), np.uint8)
    heads: dict[str, list[np.ndarray]] = {}
    uncertainty: list[np.ndarray] = []
    predicted: list[np.ndarray] = []
    seeds = [config.seed * 1_000_003 + i for i in range(len(windows))[rows]]
    with inference(model.device, pick_dtype(config.precision, model.device)):
        for step, state in enumerate(imagine(model, clip, windows.context, seeds, config.chunk)):
            where = np.flatnonzero(steps == step)
            if len(where):
                imagined[:, where[0]] = model.decode(state).cpu().numpy()
                with suppress(TypeError):  # it predicts no states
                    predicted.append(model.read_state(state).float().cpu().numpy())
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
    for name, frames in (("ssim", imagined), ("ssim_copy", last)):
        similarity = np.full((n, len(steps)), np.nan)
        for column in np.flatnonzero(np.isin(steps, config.ssim_steps)):
            similarity[:, column] = ssim(frames[:, column], true[:, column])
        part[name] = similarity
    if estimator is not None:
        part["estimate"] = estimator(imagined.reshape(-1, *imagined.shape[2:])).reshape(n, len(steps))
        part["true_estimate"] = estimator(true.reshape(-1, *true.shape[2:])).reshape(n, len(steps))
    if clip.states is not None:
        part["states"] = clip.states[:, first + steps].astype(np.float64)
    if predicted:
        part["predicted_states"] = np.stack(predicted, 1).astype(np.float64)
    kept = slice(0, max(0, config.keep - rows.start))
    part["frames"] = (imagined[kept], true[kept].copy())
    return part


def _join(parts: list[dict[str, object]], episodes: np.ndarray, steps: np.ndarray) -> Rollouts:
    joined: dict[str, object] = {}
    for name, example in parts[0].items():
        values = [part[name] for part in parts if name in part]
        if len(values) < len(parts):  # not every episode has states
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
