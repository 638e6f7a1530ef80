"""The curves of a measurement: what its pictures show, and which rollouts come first so that they show something."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuralsim.dreaming import Rollouts, Windows
from neuralsim.reading import Reader
from neuralsim.scene import beyond, copy_last, has_moved, scene_of
from neuralsim.score import mean, psnr


def moving_first(windows: Windows, reader: Reader | None) -> Windows:
    """The same windows with four first in which the block moves a lot: those the picture shows. The rest keep their order."""
    if reader is None or windows.store[int(windows.episodes[0])].states is None:
        return windows
    first: list[int] = []
    for i, (episode, start) in enumerate(zip(windows.episodes, windows.starts, strict=True)):
        states = windows.store[int(episode)].states
        assert states is not None
        at = start + windows.context - 1
        _, block, in_sight = reader.of_state(np.asarray(states[[at, at + windows.steps]], np.float64))
        if in_sight.all() and beyond(block[0], block[1], (30.0, 45.0)):
            first.append(i)
        if len(first) == 4:
            break
    rest = np.setdiff1d(np.arange(len(windows)), first)
    return windows.index(np.concatenate([np.array(first, np.int64), rest]))


def curves_of(r: Rollouts, reader: Reader | None) -> dict[str, Any]:
    """For each drawn figure: steps, and lines name -> (middle, low, high) over rollouts."""
    curves: dict[str, Any] = {"steps": r.steps, "panels": {}}
    panels = curves["panels"]

    def middle(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Median and quartiles down each column that is not all NaN."""
        out = np.full((3, values.shape[1]), np.nan)
        for c in range(values.shape[1]):
            kept = values[:, c][~np.isnan(values[:, c])]
            if len(kept):
                out[:, c] = np.quantile(kept, [0.5, 0.25, 0.75])
        return out[0], out[1], out[2]

    copy_error = np.where(r.steps == 0, np.nan, r.error_copy)
    panels["PSNR (dB)"] = {
        "dream": middle(psnr(r.error)),
        "copy last": middle(psnr(copy_error)),
    }
    if reader is not None and r.reading is not None and r.true_reading is not None and r.pusher is not None:
        scene, copied, floor = (scene_of(r, s, reader) for s in (r.reading, copy_last(r.true_reading), r.true_reading))
        moved = np.where(has_moved(r), 0.0, np.nan)
        panels["block IoU where it moved"] = {
            "dream": middle(scene.iou + moved),
            "copy last": middle(copied.iou + moved),
        }
        for name, title in (
            ("pusher", "pusher error (units)"),
            ("place", "block place error (units)"),
            ("angle", "block angle error (°)"),
        ):
            panels[title] = {
                "dream": middle(getattr(scene, name) + moved),
                "copy last": middle(getattr(copied, name) + moved),
                "reader's floor": middle(getattr(floor, name) + moved),
            }
        share = np.array([mean(scene.shape[:, c]) for c in range(len(r.steps))])
        panels["share whose block is one piece of its size"] = {"dream": (share, share, share)}
    doubt = np.concatenate([np.full((len(r), 1), np.nan), r.uncertainty], 1)[:, r.steps]
    panels["uncertainty"] = {"dream": middle(doubt.astype(np.float64))}
    return curves
