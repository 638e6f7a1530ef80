"""PushTMetrics: Push-T's dreams, judged by where pusher and block are and whether the block is still one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from neuralsim.envs.pusht.controllability import PLANS, control_rows, restart_rows
from neuralsim.envs.pusht.env import PushTRealEnv
from neuralsim.envs.pusht.scene_metrics import AREA_SLACK, beyond, has_moved, scene_rows, scenes_of
from neuralsim.envs.pusht.state_estimator import PushTStateEstimate, PushTStateEstimator
from neuralsim.evaluation.config import STRIDE, EvalConfig
from neuralsim.evaluation.plots import quartiles
from neuralsim.evaluation.report import Metric, Target
from neuralsim.evaluation.rollouts import Rollouts, Ticker, Windows
from neuralsim.evaluation.state_estimator import StateEstimate
from neuralsim.evaluation.statistics import Bootstrap, mean, median
from neuralsim.evaluation.world_metrics import IntegrityMetric, SeriesMetric, WorldMetrics
from neuralsim.world_model import WorldModel

LIVELY = (30.0, 45.0)
"""A window in which the block goes further than this is worth a picture: units, degrees."""


class PushTMetrics(WorldMetrics):
    """See Judge. Most of it wants the true states beside the frames; controllability wants ``truth``, a PushTRealEnv that
    observes states."""

    reader: PushTStateEstimator
    bars: ClassVar[Mapping[tuple[str, int | None], Target]] = {
        ("codec_iou", None): Target(least=0.95),
        ("codec_pusher", None): Target(most=2.0),
        ("iou_moved", 10): Target(least=0.80),
        ("pusher_moved", 10): Target(most=10.0),
        ("iou_moved", 30): Target(least=0.60),
        ("pusher_moved", 30): Target(most=20.0),
        ("shape", 64): Target(least=0.95),
        ("reward", 10): Target(most=0.05),
        ("success_precision", 10): Target(least=0.90),
        ("success_recall", 10): Target(least=0.90),
        ("control_pusher", 10): Target(0.8, 1.25),
        ("control_block", 10): Target(0.8, 1.25),
    }
    ending = "success"
    near_miss = 0.6

    @classmethod
    def of_size(cls, size: int) -> Self:
        """The metrics of frames of ``size``, with the simulator as the ground truth."""
        return cls(PushTStateEstimator(size), PushTRealEnv(size=size, observation="state"))

    def rows(self, r: Rollouts, boot: Bootstrap, config: EvalConfig) -> Iterator[Metric]:
        """See Judge."""
        return scene_rows(r, self.reader, boot, config)

    def headlines(self, r: Rollouts) -> tuple[SeriesMetric, ...]:
        """See Judge: block and pusher where the block moved."""
        if r.states is None:
            return ()
        scene, copied, _ = scenes_of(r, self.reader)
        moved = np.where(has_moved(r, self.reader), 0.0, np.nan)
        return (
            SeriesMetric("iou_moved", "block IoU where it moved", scene.iou + moved, copied.iou + moved),
            SeriesMetric(
                "pusher_moved",
                "pusher error where the block moved, median",
                scene.pusher + moved,
                copied.pusher + moved,
                statistic=median,
                unit="units",
                better="low",
            ),
        )

    def panels(self, r: Rollouts) -> Mapping[str, Mapping[str, Any]]:
        """See Judge."""
        if r.states is None:
            return {}
        scene, copied, floor = scenes_of(r, self.reader)
        moved = np.where(has_moved(r, self.reader), 0.0, np.nan)
        panels: dict[str, Mapping[str, Any]] = {
            "block IoU where it moved": {
                "dream": quartiles(scene.iou + moved),
                "copy last": quartiles(copied.iou + moved),
            }
        }
        for name, title in (
            ("pusher", "pusher error (units)"),
            ("place", "block place error (units)"),
            ("angle", "block angle error (°)"),
        ):
            panels[title] = {
                "dream": quartiles(getattr(scene, name) + moved),
                "copy last": quartiles(getattr(copied, name) + moved),
                "reader's floor": quartiles(getattr(floor, name) + moved),
            }
        share = np.array([mean(scene.shape[:, c]) for c in range(len(r.steps))])
        panels["share whose block is one piece of its size"] = {"dream": (share, share, share)}
        return panels

    def showpieces(self, windows: Windows) -> Iterator[int]:
        """See Judge: windows in which the block goes far, and stays in sight."""
        for i, (episode, start) in enumerate(zip(windows.episodes, windows.starts, strict=True)):
            states = windows.store[int(episode)].states
            if states is None:
                continue
            at = start + windows.context - 1
            _, block, in_sight = self.reader.of_state(np.asarray(states[[at, at + windows.steps]], np.float64))
            if in_sight.all() and beyond(block[0], block[1], LIVELY):
                yield i

    def trials(
        self, model: WorldModel, windows: Windows, main: Rollouts, config: EvalConfig, tick: Ticker
    ) -> Iterator[Metric]:
        """See Judge: other actions in dream and truth, and the simulator restarted."""
        if self.truth is None or main.states is None:
            return
        if max(config.horizons) >= STRIDE:
            yield from control_rows(model, windows, self.reader, self.truth, config, tick)
        yield from restart_rows(windows, main, self.reader, self.truth, config)

    def trial_steps(self, windows: int) -> int:
        """See Judge."""
        return 0 if self.truth is None else windows * PLANS * STRIDE

    def signs(self, reading: StateEstimate) -> tuple[IntegrityMetric, ...]:
        """See Judge."""
        assert isinstance(reading, PushTStateEstimate)
        whole = (np.abs(reading.size - 1) <= AREA_SLACK) & (reading.pieces == 1)
        return (
            IntegrityMetric(
                "rigid", "frames whose block is one piece of its size", whole.astype(np.float64), bar=Target(least=0.95)
            ),
            IntegrityMetric(
                "pusher_found", "frames with a pusher", reading.pusher_found.astype(np.float64), bar=Target(least=0.99)
            ),
            IntegrityMetric(
                "misfit", "block's misfit to its rigid shape (0 none)", reading.misfit, statistic=median, better="low"
            ),
        )
