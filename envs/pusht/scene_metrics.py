"""Metrics of Push-T scenes: positions of pusher and block, the block's shape, and motion that is made up or missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from neuralsim.envs.pusht.state_estimator import PushTStateEstimate, PushTStateEstimator
from neuralsim.evaluation.config import STRIDE, EvalConfig
from neuralsim.evaluation.image_metrics import mask_iou
from neuralsim.evaluation.report import Metric, metric_of
from neuralsim.evaluation.rollouts import Rollouts
from neuralsim.evaluation.state_estimator import StateEstimate
from neuralsim.evaluation.statistics import Bootstrap, Estimate, mean, median, turn

MOVED = (5.0, 5.0)
"""The true block has moved when it is further than this from where it was: units, degrees."""
STILL = (0.5, 0.5)
"""The true block has not moved while it is within this: units, degrees."""
GHOST = (3.0, 3.0)
"""The imagined block has moved when its estimate is further than this from where it was."""
AREA_SLACK = 0.1
"""The block has kept its size within this share of its own."""


@dataclass(frozen=True)
class PushTScene:
    """Errors and signs of scenes, each ``(n, s)``; NaN where one does not apply. Of imagined frames, of the last true frame copied, or
    of the true frames themselves (the estimator's floor)."""

    iou: np.ndarray
    pusher: np.ndarray
    place: np.ndarray
    angle: np.ndarray
    shape: np.ndarray
    ghost: np.ndarray
    missed: np.ndarray


def scene_of(r: Rollouts, seen: StateEstimate | None, estimator: PushTStateEstimator) -> PushTScene:
    """Compare the estimate ``seen`` ``(n, s)`` with the truth."""
    assert isinstance(seen, PushTStateEstimate)
    assert isinstance(r.true_estimate, PushTStateEstimate)
    assert r.states is not None
    true = r.true_estimate
    true_pusher, true_block, in_sight = estimator.of_state(r.states)
    pusher = np.linalg.norm(seen.pusher - true_pusher, axis=-1)
    pusher = np.where(seen.pusher_found, pusher, estimator.extent)
    place = np.linalg.norm(seen.block[..., :2] - true_block[..., :2], axis=-1)
    place = np.where(seen.block_found, np.minimum(place, estimator.extent), estimator.extent)
    angle = np.where(seen.block_found, turn(seen.block[..., 2], true_block[..., 2]), 180.0)
    kept = (np.abs(seen.size - 1) <= AREA_SLACK) & (seen.pieces == 1)
    # Motion over every STRIDE steps: before and after, both wholly in sight.
    tens = [c for c, step in enumerate(r.steps) if step % STRIDE == 0]
    a, b = tens[:-1], tens[1:]
    sight = in_sight[:, a] & in_sight[:, b]
    still = sight & ~beyond(true_block[:, a], true_block[:, b], STILL)
    moved = sight & beyond(true_block[:, a], true_block[:, b], MOVED)
    found = seen.block_found[:, a] & seen.block_found[:, b]
    goes = beyond(seen.block[:, a], seen.block[:, b], GHOST) | ~found
    return PushTScene(
        iou=mask_iou(seen.mask, true.mask),
        pusher=pusher,
        place=np.where(in_sight, place, np.nan),
        angle=np.where(in_sight, angle, np.nan),
        shape=np.where(in_sight, kept, np.nan),
        ghost=np.where(still, goes, np.nan),
        missed=np.where(moved, ~goes, np.nan),
    )


def scenes_of(r: Rollouts, estimator: PushTStateEstimator) -> tuple[PushTScene, PushTScene, PushTScene]:
    """Return the scenes of the imagined frames, of copy-last-frame, and of the true frames."""
    assert r.true_estimate is not None
    imagined, copied, true = (
        scene_of(r, seen, estimator) for seen in (r.estimate, r.true_estimate.copied(), r.true_estimate)
    )
    return imagined, copied, true


def has_moved(r: Rollouts, estimator: PushTStateEstimator) -> np.ndarray:
    """Mark the steps at which the true block has moved since step 0, bool ``(n, s)``."""
    assert r.states is not None
    _, block, _ = estimator.of_state(r.states)
    return beyond(block, block[:, :1], MOVED)


def beyond(block: np.ndarray, other: np.ndarray, limit: tuple[float, float]) -> np.ndarray:
    """Mark pairs of poses ``(..., 3)`` that are further apart than ``limit`` (units, degrees) in position or in angle."""
    return (np.linalg.norm(block[..., :2] - other[..., :2], axis=-1) > limit[0]) | (
        turn(block[..., 2], other[..., 2]) > limit[1]
    )


def scene_rows(r: Rollouts, estimator: PushTStateEstimator, boot: Bootstrap, config: EvalConfig) -> Iterator[Metric]:
    """Pusher, block and shape at every horizon, beside copying and the estimator's floor; then motion that is made up or missing."""
    assert isinstance(r.estimate, PushTStateEstimate)
    assert isinstance(r.true_estimate, PushTStateEstimate)
    if r.states is None:
        true = r.true_estimate.mask
        iou, copy = (mask_iou(seen, true) for seen in (r.estimate.mask, r.true_estimate.copied().mask))
        for step in config.horizons:
            c = r.column(step)
            yield metric_of(
                boot(mean, iou[:, c]), "iou", "block IoU", step=step, baseline=mean(copy[:, c]), better="high"
            )
        return
    scene, copy_scene, floor = scenes_of(r, estimator)
    moved = np.where(has_moved(r, estimator), 0.0, np.nan)  # added to a figure, it leaves only where the block moved
    everywhere = np.zeros_like(moved)
    yield metric_of(boot(mean, scene.iou[:, 0]), "codec_iou", "redrawing a true frame: block IoU", better="high")
    yield metric_of(
        boot(mean, scene.pusher[:, 0]),
        "codec_pusher",
        "redrawing a true frame: mean pusher error",
        unit="units",
        floor=mean(floor.pusher[:, 0]),
        better="low",
    )
    figures: tuple[tuple[str, str, str, Callable[[np.ndarray], float], str, np.ndarray, str], ...] = (
        ("iou", "block IoU", "iou", mean, "", everywhere, "high"),
        ("iou_moved", "block IoU where it moved", "iou", mean, "", moved, "high"),
        ("pusher_mean", "pusher error, mean", "pusher", mean, "units", everywhere, "low"),
        ("pusher", "pusher error, median", "pusher", median, "units", everywhere, "low"),
        ("pusher_moved", "pusher error where the block moved, median", "pusher", median, "units", moved, "low"),
        ("place_mean", "block place error, mean", "place", mean, "units", everywhere, "low"),
        ("place", "block place error, median", "place", median, "units", everywhere, "low"),
        ("place_moved", "block place error where it moved, median", "place", median, "units", moved, "low"),
        ("angle", "block angle error, median", "angle", median, "°", everywhere, "low"),
        ("angle_moved", "block angle error where it moved, median", "angle", median, "°", moved, "low"),
        ("shape", "block is one piece of the right size", "shape", mean, "", everywhere, "high"),
    )
    for key, label, name, statistic, unit, where, better in figures:
        for step in config.horizons:
            c = r.column(step)
            value, copied, exact = (getattr(s, name)[:, c] + where[:, c] for s in (scene, copy_scene, floor))
            found = boot.share(value) if name == "shape" else boot(statistic, value)
            yield metric_of(
                found,
                key,
                label,
                unit=unit,
                step=step,
                baseline=statistic(copied),
                floor=None if name == "iou" else statistic(exact),
                better=better,
            )
    for name, label in (
        ("ghost", f"ghost motion: moves within {STRIDE} steps though the true block lies still"),
        ("missed", f"missed motion: lies still for {STRIDE} steps though the true block moves"),
    ):
        value, copied, exact = (getattr(s, name) for s in (scene, copy_scene, floor))
        if value.size:
            found = _rate(boot, value)
            yield metric_of(found, name, label, baseline=mean(copied.ravel()), floor=mean(exact.ravel()), better="low")


def _rate(boot: Bootstrap, happened: np.ndarray) -> Estimate:
    """Estimate the share of 1s in ``(n, w)`` with NaNs, resampled by rollout; n counts the entries."""
    counts = np.stack([np.nansum(happened, 1), (~np.isnan(happened)).sum(1)], 1)
    found = boot(lambda c: float(c[:, 0].sum() / c[:, 1].sum()) if c[:, 1].sum() else math.nan, counts)
    return replace(found, n=int(counts[:, 1].sum()))
