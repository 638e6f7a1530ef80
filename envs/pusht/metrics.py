"""PushTMetrics: errors of pusher and block in imagined frames of Push-T, and integrity of the block."""

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
"""A window in which the block moves further than this is eventful: units, degrees."""


class PushTMetrics(WorldMetrics):
    """Metrics of Push-T. Most need the true states beside the frames; controllability needs ``real_env``, a PushTRealEnv that observes
    states."""

    estimator: PushTStateEstimator
    targets: ClassVar[Mapping[tuple[str, int | None], Target]] = {
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
        return scene_rows(r, self.estimator, boot, config)

    def headlines(self, r: Rollouts) -> tuple[SeriesMetric, ...]:
        if r.states is None:
            return ()
        scene, copied, _ = scenes_of(r, self.estimator)
        moved = np.where(has_moved(r, self.estimator), 0.0, np.nan)
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
        if r.states is None:
            return {}
        scene, copied, floor = scenes_of(r, self.estimator)
        moved = np.where(has_moved(r, self.estimator), 0.0, np.nan)
        panels: dict[str, Mapping[str, Any]] = {
            "block IoU where it moved": {
                "imagined": quartiles(scene.iou + moved),
                "copy last": quartiles(copied.iou + moved),
            }
        }
        for name, title in (
            ("pusher", "pusher error (units)"),
            ("place", "block place error (units)"),
            ("angle", "block angle error (°)"),
        ):
            panels[title] = {
                "imagined": quartiles(getattr(scene, name) + moved),
                "copy last": quartiles(getattr(copied, name) + moved),
                "estimator's floor": quartiles(getattr(floor, name) + moved),
            }
        share = np.array([mean(scene.shape[:, c]) for c in range(len(r.steps))])
        panels["share whose block is one piece of its size"] = {"imagined": (share, share, share)}
        return panels

    def eventful(self, windows: Windows) -> Iterator[int]:
        for i, (episode, start) in enumerate(zip(windows.episodes, windows.starts, strict=True)):
            states = windows.store[int(episode)].states
            if states is None:
                continue
            first = start + windows.context - 1
            _, block, in_sight = self.estimator.of_state(np.asarray(states[[first, first + windows.steps]], np.float64))
            if in_sight.all() and beyond(block[0], block[1], LIVELY):
                yield i

    def simulator_rows(
        self, model: WorldModel, windows: Windows, main: Rollouts, config: EvalConfig, tick: Ticker
    ) -> Iterator[Metric]:
        if self.real_env is None or main.states is None:
            return
        if max(config.horizons) >= STRIDE:
            yield from control_rows(model, windows, self.estimator, self.real_env, config, tick)
        yield from restart_rows(windows, main, self.estimator, self.real_env, config)

    def simulator_steps(self, windows: int) -> int:
        return 0 if self.real_env is None else windows * PLANS * STRIDE

    def integrity(self, estimate: StateEstimate) -> tuple[IntegrityMetric, ...]:
        assert isinstance(estimate, PushTStateEstimate)
        whole = (np.abs(estimate.size - 1) <= AREA_SLACK) & (estimate.pieces == 1)
        return (
            IntegrityMetric(
                "rigid",
                "frames whose block is one piece of its size",
                whole.astype(np.float64),
                target=Target(least=0.95),
            ),
            IntegrityMetric(
                "pusher_found",
                "frames with a pusher",
                estimate.pusher_found.astype(np.float64),
                target=Target(least=0.99),
            ),
            IntegrityMetric(
                "misfit", "block's misfit to its rigid shape (0 none)", estimate.misfit, statistic=median, better="low"
            ),
        )
