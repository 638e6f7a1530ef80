"""Long rollouts: minutes of imagination under random keys or a policy, and whether the scene is still intact at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from neuralsim.evaluation.image_metrics import squared_error
from neuralsim.evaluation.report import Metric, Report, Target, metric_of
from neuralsim.evaluation.state_estimator import GroundTruthEnv
from neuralsim.evaluation.statistics import Bootstrap, mean
from neuralsim.evaluation.world_metrics import IntegrityMetric, WorldMetrics
from neuralsim.noise import Noise
from neuralsim.pretrained.starts import Starts
from neuralsim.runtime.device import inference, pick_dtype
from neuralsim.runtime.machine import circumstances, resident_megabytes
from neuralsim.spec import WorldSpec
from neuralsim.world_model import WorldModel

LAST_SHARE = 0.2
"""Share at the end of a rollout that is measured: two minutes of ten."""
Act = Callable[[np.ndarray, Any, np.ndarray], tuple[np.ndarray, Any]]
"""A policy's ``predict``: frames uint8 ``(b, h, w, 3)``, its state, episode starts ``(b,)`` -> actions ``(b, a)``, its next state."""
CHANGED = 0.5
"""Two frames are different ones if they differ by more than this, root mean square, in grey levels: more than rounding does."""


@dataclass(frozen=True)
class LongHorizonConfig:
    """Length and settings of long rollouts."""

    steps: int = 6000
    """Steps: ten minutes at 10 Hz."""
    look_every: int = 5
    """Steps between the frames that are measured."""
    seed: int = 0
    """Seed of the keys and of the model's noise."""
    precision: str = "auto"
    """auto, float32 or bfloat16."""
    name: str = ""
    """Name of the policy, which begins the metrics' keys."""


def random_keys(rng: np.random.Generator, steps: int, size: int, choices: Sequence[int] = ()) -> np.ndarray:
    """Draw random keys, each combination held for 3 to 19 steps: float32 ``(steps, size)`` of -1, 0, 1, or int64 below ``choices`` where
    there are any."""
    out = np.zeros((steps, size), np.int64 if choices else np.float32)
    low, high = (0, choices) if choices else (-1, 2)
    at = 0
    while at < steps:
        hold = int(rng.integers(3, 20))
        out[at : at + hold] = rng.integers(low, high, size)
        at += hold
    return out


def played_keys(spec: WorldSpec, rng: np.random.Generator, steps: int) -> np.ndarray:
    """Draw ``random_keys`` for the actions of a world, ``(steps, a)``; one that rests at an end of its range is released or held."""
    keys = random_keys(rng, steps, spec.action_size, spec.action_choices)
    if not spec.discrete:
        rest = spec.rest_action()
        at_end = np.abs(rest) == 1
        keys[:, at_end] = np.where(keys[:, at_end] == -rest[at_end], -rest[at_end], rest[at_end])
    return keys


def evaluate_long_horizon(
    model: WorldModel,
    starts: Starts,
    metrics: WorldMetrics | None = None,
    config: LongHorizonConfig = LongHorizonConfig(),
    act: Act | None = None,
    known: np.ndarray | None = None,
    tick: Callable[[int], None] | None = None,
) -> Report:
    """Imagine on from ``b`` histories, under random keys or a policy's actions, and measure whether the scenes stay intact.

    The baseline is the truth. Where ``metrics`` has a simulator and ``starts`` its states, the simulator plays the same keys (a true
    block can be squeezed out of the picture too); else it is the integrity of ``known`` true frames. Without metrics frames must be such
    as the model can redraw as well as the known ones.

    Args:
        starts: the histories.
        metrics: the world's own metrics.
        config: length and settings.
        act: a policy's ``predict`` on frames; None: random keys.
        known: true frames ``(m, h, w, 3)``; None: those of ``starts``.
        tick: called with the number of steps done.
    """
    frames, actions = starts.frames, starts.actions
    states = None if starts.states is None else starts.states[:, -1].astype(np.float64)
    b, spec = len(frames), model.spec
    known = frames.reshape(-1, *frames.shape[2:]) if known is None else known
    draws = [np.random.default_rng([config.seed, i]) for i in range(b)]
    keys = np.stack([played_keys(spec, rng, config.steps) for rng in draws])
    plan = torch.as_tensor(keys, device=model.device)
    rng = Noise.from_seeds([config.seed * 1_000_003 + i for i in range(b)], model.device)
    look = [s for s in range(1, config.steps + 1) if s % config.look_every == 0 or s == config.steps]
    looked = set(look)
    seen: list[np.ndarray] = []
    bad, megabytes_early = 0, math.nan
    shown, memory = frames[:, -1], None
    model.eval()
    with inference(model.device, pick_dtype(config.precision, model.device)):
        state = model.encode(
            torch.as_tensor(frames, device=model.device), torch.as_tensor(actions, device=model.device)
        )
        for step in range(1, config.steps + 1):
            action = plan[:, step - 1]
            if act is not None:
                chosen, memory = act(shown, memory, np.full(b, step == 1))
                action = torch.as_tensor(spec.check_actions(chosen), device=model.device)
            state = model.step(state, action, rng.advance(step - 1))
            frame = model.decode(state)
            bad += int((~torch.isfinite(model.features(state))).any(1).sum())
            if act is not None or step in looked:
                shown = frame.cpu().numpy()
            if step in looked:
                seen.append(shown)
            if step == max(1, config.steps // 10):
                megabytes_early = resident_megabytes() - _megabytes(seen)
            if tick:
                tick(b)
    growth = resident_megabytes() - _megabytes(seen) - megabytes_early
    tail = slice(-max(1, round(LAST_SHARE * len(look))), None)
    frames = np.stack(seen, 1)
    baseline: list[float | None] = []
    if metrics is None:
        signs: tuple[IntegrityMetric, ...] = (_redrawn(model, frames[:, tail], known, config),)
    else:
        signs = _integrity(metrics, frames)
        if metrics.real_env is not None and states is not None and act is None:
            true = np.stack(_true_frames(metrics.real_env, states, spec.to_space(keys), looked), 1)
            baseline = [mean(sign.values[:, tail].ravel()) for sign in _integrity(metrics, true)]
        else:
            baseline = [mean(sign.values.ravel()) for sign in _integrity(metrics, known[:, None])]
        signs = tuple(replace(sign, values=sign.values[:, tail]) for sign in signs)
    signs = (*signs, _changing(frames[:, tail], act is not None))
    boot = Bootstrap(np.arange(b), seed=config.seed)
    key_prefix, label_prefix = (f"{config.name}/", f"{config.name}: ") if config.name else ("", "")
    minutes = config.steps / model.spec.rate_hz / 60
    rows = (
        *(
            metric_of(
                boot(sign.statistic, np.array([sign.statistic(row) for row in sign.values])),
                key_prefix + sign.key,
                f"{label_prefix}{sign.label}, last fifth" + (", median" if sign.statistic is not mean else ""),
                baseline=truth,
                better=sign.better,
                target=sign.target,
            )
            for sign, truth in zip_longest(signs, baseline)
        ),
        Metric(
            f"{key_prefix}not_finite",
            f"{label_prefix}steps with a number that is not finite",
            float(bad),
            n=b * config.steps,
            target=Target(most=0),
        ),
        Metric(
            f"{key_prefix}growth",
            f"{label_prefix}memory grown after the first tenth",
            growth,
            unit="MB",
            target=Target(most=50),
        ),
    )
    source = "random keys" if act is None else config.name or "a policy"
    return Report(f"{minutes:.1f} imagined minutes, {b} rollouts, {source}", rows, circumstances())


def _integrity(metrics: WorldMetrics, frames: np.ndarray) -> tuple[IntegrityMetric, ...]:
    """Measure the integrity of frames ``(b, looks, h, w, 3)``."""
    return metrics.integrity(metrics.estimator(frames.reshape(-1, *frames.shape[2:])).reshape(*frames.shape[:2]))


def _changing(frames: np.ndarray, driven: bool) -> IntegrityMetric:
    """Measure whether frames ``(b, looks, h, w, 3)`` go on changing, which a policy must reach and random keys need not."""
    differ = squared_error(frames[:, 1:], frames[:, :-1]) > CHANGED**2
    label = "measured frames that differ from the one before"
    return IntegrityMetric("changing", label, differ.astype(np.float64), target=Target(least=0.9) if driven else None)


def _redrawn(model: WorldModel, frames: np.ndarray, known: np.ndarray, config: LongHorizonConfig) -> IntegrityMetric:
    """Measure whether the model redraws frames ``(b, looks, h, w, 3)`` no worse than any of those ``known``."""
    errors = _redraw_error(model, frames.reshape(-1, *frames.shape[2:]), config)
    fits = (errors <= _redraw_error(model, known, config).max()).reshape(frames.shape[:2])
    label = "frames that the model redraws as well as it does true ones"
    return IntegrityMetric("redrawn", label, fits.astype(np.float64), target=Target(least=0.95))


def _redraw_error(model: WorldModel, frames: np.ndarray, config: LongHorizonConfig, batch: int = 64) -> np.ndarray:
    """Return the squared error of redrawing ``(n, h, w, 3)``, each encoded as a world at rest, ``(n,)``."""
    errors, t = [], model.spec.context
    for i in range(0, len(frames), batch):
        part = frames[i : i + batch]
        still = torch.as_tensor(np.repeat(part[:, None], t, 1), device=model.device)
        rest = torch.as_tensor(np.tile(model.spec.rest_action(), (len(part), t - 1, 1)), device=model.device)
        with inference(model.device, pick_dtype(config.precision, model.device)):
            errors.append(squared_error(model.decode(model.encode(still, rest)).cpu().numpy(), part))
    return np.concatenate(errors)


def _true_frames(real_env: GroundTruthEnv, states: np.ndarray, keys: np.ndarray, looked: set[int]) -> list[np.ndarray]:
    columns = []
    for state, plan in zip(states, keys, strict=True):
        real_env.reset(options={"state": state})
        shown = []
        for step, action in enumerate(plan, 1):
            real_env.step(action)
            if step in looked:
                shown.append(real_env.render())
        columns.append(np.stack(shown))
    return list(np.stack(columns, 1))


def _megabytes(frames: list[np.ndarray]) -> float:
    return sum(f.nbytes for f in frames) / 1e6
