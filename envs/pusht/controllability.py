"""Controllability of Push-T beside its simulator: the spread of futures under different actions, imagined over true, and the accuracy of
the simulator itself when it is restarted from the initial state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from neuralsim.data.windows import Clip
from neuralsim.envs.pusht.scene_metrics import has_moved
from neuralsim.envs.pusht.state_estimator import PushTStateEstimate, PushTStateEstimator
from neuralsim.evaluation.config import STRIDE, EvalConfig
from neuralsim.evaluation.image_metrics import mask_iou
from neuralsim.evaluation.report import Metric, metric_of
from neuralsim.evaluation.rollouts import Rollouts, Ticker, Windows, imagine
from neuralsim.evaluation.state_estimator import GroundTruthEnv
from neuralsim.evaluation.statistics import Bootstrap, mean, turn
from neuralsim.runtime.device import inference, pick_dtype
from neuralsim.world_model import WorldModel

PLANS = 4
"""Different action sequences tried from each start for controllability."""


def control_rows(
    model: WorldModel,
    windows: Windows,
    estimator: PushTStateEstimator,
    real_env: GroundTruthEnv,
    config: EvalConfig,
    tick: Ticker,
) -> Iterator[Metric]:
    """Compare the spread of futures under different actions from one state, imagined over true.

    From each start ``PLANS`` futures of ``STRIDE`` steps: its own recorded actions and those of other windows. The spread is the mean
    distance between pairs of futures; the ratio is that of the sums over starts.
    """
    context, n = windows.context, len(windows)
    clip = windows.read()
    assert clip.states is not None
    rng = np.random.default_rng([config.seed, 2])
    plan = clip.actions[:, context - 1 : context - 1 + STRIDE]
    others = np.stack([(np.arange(n) + shift) % n for shift in _shifts(rng, n)], 1)  # n plans
    plans = plan[others]  # n plans k a
    ends = np.empty((n, plans.shape[1], clip.states.shape[-1]))
    for i in range(n):
        for j in range(plans.shape[1]):
            real_env.reset(options={"state": clip.states[i, context - 1]})
            for action in model.spec.to_space(plans[i, j]):
                real_env.step(action)
            ends[i, j] = real_env.state()
    pusher, block, in_sight = estimator.of_state(ends)
    imagined = np.empty((n, plans.shape[1], *clip.frames.shape[2:]), np.uint8)
    for first in range(0, n, max(1, config.batch // PLANS)):
        rows = np.arange(n)[first : first + max(1, config.batch // PLANS)]
        wide = np.repeat(rows, plans.shape[1])
        past = clip.actions[wide, : context - 1]
        actions = np.concatenate([past, plans[rows].reshape(len(wide), STRIDE, -1)], 1)
        branch = Clip(clip.frames[wide, :context], actions, clip.rewards[wide], clip.terminated[wide], None)
        with inference(model.device, pick_dtype(config.precision, model.device)):
            for state in imagine(model, branch, context, [config.seed * 1_000_003 + int(w) for w in wide]):
                final = state
            frames = model.decode(final).cpu().numpy()
        imagined[rows] = frames.reshape(len(rows), plans.shape[1], *frames.shape[1:])
        tick(len(wide) * STRIDE)
    seen = estimator(imagined.reshape(-1, *imagined.shape[2:])).reshape(n, plans.shape[1])
    # A thing that is not found counts as not having moved.
    start_pusher, start_block, _ = estimator.of_state(clip.states[:, None, context - 1].astype(np.float64))
    pusher_seen = np.where(seen.pusher_found[..., None], seen.pusher, start_pusher)
    block_seen = np.where(seen.block_found[..., None], seen.block, start_block)
    whole = in_sight.all(1)
    boot = Bootstrap(windows.episodes, seed=config.seed)
    for key, label, true_end, seen_end, apart in (
        ("control_pusher", "controllability: spread of the pusher, imagined over true", pusher, pusher_seen, _distance),
        ("control_block", "controllability: spread of the block, imagined over true", block, block_seen, _distance),
        (
            "control_angle",
            "controllability: spread of the block's angle, imagined over true",
            block,
            block_seen,
            _turned,
        ),
    ):
        spreads = np.stack([_spread(seen_end, apart), _spread(true_end, apart)], 1)
        spreads[~whole] = np.nan
        found = boot(_ratio_of_sums, spreads)
        yield metric_of(found, key, label, step=STRIDE, baseline=0.0)


def restart_rows(
    windows: Windows, main: Rollouts, estimator: PushTStateEstimator, real_env: GroundTruthEnv, config: EvalConfig
) -> Iterator[Metric]:
    """Measure the simulator itself when it is restarted from the state at the start: the most that a model can reach.

    Contact is chaotic, and a state holds no velocities, so this is less than perfect.
    """
    steps = [s for s in (10, 30) if s in config.horizons]
    if not steps:
        return
    assert isinstance(main.true_estimate, PushTStateEstimate)
    clip, n = windows.read(), len(windows)
    assert clip.states is not None
    frames = np.empty((n, len(steps), *clip.frames.shape[2:]), np.uint8)
    for i in range(n):
        real_env.reset(options={"state": clip.states[i, windows.context - 1]})
        for step in range(1, max(steps) + 1):
            real_env.step(windows.store.spec.to_space(clip.actions[i, windows.context - 2 + step]))
            if step in steps:
                frames[i, steps.index(step)] = real_env.render()
    seen = estimator(frames.reshape(-1, *frames.shape[2:])).reshape(n, len(steps))
    moved = has_moved(main, estimator)
    boot = Bootstrap(windows.episodes, seed=config.seed)
    for j, step in enumerate(steps):
        c = main.column(step)
        iou = np.where(moved[:n, c], mask_iou(seen.mask[:, j], main.true_estimate.mask[:n, c]), np.nan)
        label = "true simulator restarted from the start: block IoU where it moved"
        yield metric_of(boot(mean, iou), "restart/iou_moved", label, step=step, better="high")


def _shifts(rng: np.random.Generator, n: int) -> list[int]:
    """Return 0 (a window's own actions) and up to ``PLANS - 1`` other windows'."""
    return [0, *(rng.permutation(n - 1)[: PLANS - 1] + 1)]


def _ratio_of_sums(pairs: np.ndarray) -> float:
    total = pairs[:, 1].sum()
    return float(pairs[:, 0].sum() / total) if total > 0 else math.nan


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a[..., :2] - b[..., :2], axis=-1)


def _turned(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return turn(a[..., 2], b[..., 2])


def _spread(ends: np.ndarray, apart: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the mean distance over pairs of ``(n, plans, d)`` futures, ``(n,)``."""
    first, second = np.triu_indices(ends.shape[1], 1)
    return apart(ends[:, first], ends[:, second]).mean(1)
