"""Variants of the main rollouts: chunk-wise, with other numbers of denoising steps, and by the true simulator restarted."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import numpy as np

from neuralsim.dreaming import Rollouts, Ticker, Windows, roll_out
from neuralsim.reading import Reader, Truth
from neuralsim.report import Row, row_of
from neuralsim.scene import has_moved, scene_of
from neuralsim.score import Bootstrap, mask_iou, mean, median
from neuralsim.world import WorldModel
from neuralsim.yardstick import MeasureConfig


def variants_of(model: WorldModel, config: MeasureConfig) -> dict[str, tuple[int | None, int]]:
    """Other ways to run the model: name -> (denoising steps or None for the model's own, chunk)."""
    variants: dict[str, tuple[int | None, int]] = {}
    if config.chunk > 1:
        variants[f"{config.chunk} frames at once"] = (None, config.chunk)
    own = getattr(model, "denoise_steps", None)
    if own is not None:
        variants |= {f"{k} denoising steps": (k, 1) for k in config.denoise if k != own}
    return variants


def variant_rows(
    model: WorldModel,
    windows: Windows,
    main: Rollouts,
    reader: Reader,
    config: MeasureConfig,
    variants: Mapping[str, tuple[int | None, int]],
    tick: Ticker,
) -> Iterator[Row]:
    """The main figures of other ways to run the model, beside the usual way on the same rollouts."""
    steps = [s for s in (10, 30) if s in config.horizons]
    if not steps or not variants:
        return
    short = Windows(windows.store, windows.episodes, windows.starts, windows.context, max(steps))
    boot = Bootstrap(windows.episodes, seed=config.seed)
    found: dict[str, Rollouts] = {"one frame at a time": main}
    for name, (denoise, chunk) in variants.items():
        sampler = copy.copy(model)  # shares the weights; its plain attributes are its own
        if denoise is not None:
            sampler.denoise_steps = denoise  # type: ignore[assignment]
        found[name] = roll_out(
            sampler,
            short,
            steps,
            reader,
            chunk=chunk,
            batch=config.batch,
            seed=config.seed,
            precision=config.precision,
            tick=tick,
        )
    for name, r in found.items():
        assert r.reading is not None
        scene = scene_of(r, r.reading, reader)
        moved = np.where(has_moved(r), 0.0, np.nan)
        for step in steps:
            c, n = r.column(step), len(windows)
            tail = f"{name}: " if name in variants else f"{name}, same rollouts: "
            key = name.replace(" ", "_")
            iou = boot(mean, (scene.iou + moved)[:n, c])
            yield row_of(iou, f"{key}/iou_moved", tail + "block IoU where it moved", step=step, better="high")
            pusher = boot(median, (scene.pusher + moved)[:n, c])
            label = tail + "pusher error where the block moved, median"
            yield row_of(pusher, f"{key}/pusher_moved", label, unit="units", step=step, better="low")


def restart_rows(
    windows: Windows, main: Rollouts, reader: Reader, truth: Truth, config: MeasureConfig
) -> Iterator[Row]:
    """What the true simulator reaches when it, too, knows no more than the state at the start: the most that can be asked of a dream.

    Contact is chaotic, and a state holds no velocities, so this is less than perfect.
    """
    steps = [s for s in (10, 30) if s in config.horizons]
    if not steps or main.true_reading is None:
        return
    clip, n = windows.read(), len(windows)
    assert clip.states is not None
    frames = np.empty((n, len(steps), *clip.frames.shape[2:]), np.uint8)
    for i in range(n):
        truth.reset(options={"state": clip.states[i, windows.context - 1]})
        for step in range(1, max(steps) + 1):
            truth.step(clip.actions[i, windows.context - 2 + step])
            if step in steps:
                frames[i, steps.index(step)] = truth.render()
    seen = reader(frames.reshape(-1, *frames.shape[2:])).reshape(n, len(steps))
    moved = has_moved(main)
    boot = Bootstrap(windows.episodes, seed=config.seed)
    for j, step in enumerate(steps):
        c = main.column(step)
        iou = np.where(moved[:n, c], mask_iou(seen.mask[:, j], main.true_reading.mask[:n, c]), np.nan)
        label = "true simulator restarted from the start: block IoU where it moved"
        yield row_of(boot(mean, iou), "restart/iou_moved", label, step=step, better="high")
