"""CarRacingMetrics: errors of road and dashboard in imagined frames of CarRacing, and integrity of the scene."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from neuralsim.envs.carracing.state_estimator import CarRacingStateEstimate, CarRacingStateEstimator
from neuralsim.evaluation.config import EvalConfig
from neuralsim.evaluation.image_metrics import mask_iou
from neuralsim.evaluation.plots import quartiles
from neuralsim.evaluation.report import Metric, Target, metric_of
from neuralsim.evaluation.rollouts import Rollouts, Windows
from neuralsim.evaluation.state_estimator import StateEstimate
from neuralsim.evaluation.statistics import Bootstrap, median
from neuralsim.evaluation.world_metrics import IntegrityMetric, SeriesMetric, WorldMetrics

CHANGED = 0.5
"""The road has changed where copying the last frame overlaps it by less than this."""
TURNED = 25.0
"""A window whose road turns further than this, in degrees, is eventful."""
LEAST_KNOWN = 0.93
"""A scene shows road and grass where this share of it has their colours; true ones have 0.968 or more."""


class CarRacingMetrics(WorldMetrics):
    """Metrics of CarRacing. The simulator cannot be put at a state, so there is no ``real_env``."""

    estimator: CarRacingStateEstimator
    targets: ClassVar[Mapping[tuple[str, int | None], Target]] = {
        ("codec_iou", None): Target(least=0.9),
        ("psnr", 30): Target(beats=True),
        ("road_iou", 30): Target(beats=True),
        ("road_iou_changed", 30): Target(beats=True),
    }

    @classmethod
    def of_size(cls, size: int) -> Self:
        """The metrics of frames of ``size``."""
        return cls(CarRacingStateEstimator(size))

    def rows(self, r: Rollouts, boot: Bootstrap, config: EvalConfig) -> Iterator[Metric]:
        series = self._series(r)
        redrawn = boot(series[0].statistic, series[0].values[:, 0])
        yield metric_of(redrawn, "codec_iou", "redrawing a true frame: road IoU", better="high")
        for metric in series:
            for step in config.horizons:
                c = r.column(step)
                assert metric.copied is not None
                ours, theirs = (boot(metric.statistic, x[:, c]) for x in (metric.values, metric.copied))
                floor = None if metric.floor is None else metric.statistic(metric.floor[:, c])
                yield metric_of(
                    ours,
                    metric.key,
                    metric.label,
                    theirs,
                    unit=metric.unit,
                    step=step,
                    floor=floor,
                    better=metric.better,
                )

    def headlines(self, r: Rollouts) -> tuple[SeriesMetric, ...]:
        road, _, heading, *_ = self._series(r)
        return road, heading

    def panels(self, r: Rollouts) -> Mapping[str, Mapping[str, Any]]:
        panels = {}
        for metric in self._series(r):
            assert metric.copied is not None
            lines = {"imagined": quartiles(metric.values), "copy last": quartiles(metric.copied)}
            if metric.floor is not None:
                lines["estimator's floor"] = quartiles(metric.floor)
            title = metric.label.removesuffix(", median")
            panels[title + (f" ({metric.unit})" if metric.unit else "")] = lines
        return panels

    def eventful(self, windows: Windows) -> Iterator[int]:
        for i, (episode, start) in enumerate(zip(windows.episodes, windows.starts, strict=True)):
            first = start + windows.context - 1
            seen = self.estimator(windows.store[int(episode)].frames[[first, first + windows.steps // 2]])
            if _apart(seen.heading[0], seen.heading[1]) > TURNED and seen.off_road.max() < 1:
                yield i

    def integrity(self, estimate: StateEstimate) -> tuple[IntegrityMetric, ...]:
        assert isinstance(estimate, CarRacingStateEstimate)
        whole = estimate.car_found & estimate.black & (estimate.known >= LEAST_KNOWN)
        on_road = estimate.off_road <= 0.5
        in_sight = ~np.isnan(estimate.ahead[..., 0])
        return tuple(
            IntegrityMetric(key, label, np.asarray(values, np.float64), target=target)
            for key, label, values, target in (
                ("whole", "frames that are whole: car, dashboard and colours", whole, Target(least=0.95)),
                ("car_found", "frames with the car at its place", estimate.car_found, None),
                ("dashboard", "frames with a black dashboard", estimate.black, None),
                ("colours", "share of the scene in known colours", estimate.known, None),
                ("road_in_sight", "frames with road in sight", in_sight, None),
                ("on_road", "frames with the car on the road", on_road, None),
            )
        )

    def _series(self, r: Rollouts) -> tuple[SeriesMetric, ...]:
        """Compute every metric; the road, all of it and where it changed, comes first."""
        seen, true = r.estimate, r.true_estimate
        assert isinstance(seen, CarRacingStateEstimate)
        assert isinstance(true, CarRacingStateEstimate)
        copied = true.copied()
        iou, still = mask_iou(seen.road, true.road), mask_iou(copied.road, true.road)
        changed = np.where(still < CHANGED, 0.0, np.nan)
        heading, heading_still = (_apart(x.heading, true.heading) for x in (seen, copied))
        offset, offset_still = (np.abs(x.offset - true.offset) for x in (seen, copied))
        speed = true.speed if r.states is None else np.hypot(r.states[..., 0], r.states[..., 1])
        fast, fast_still, floor = (np.abs(x.speed - speed) for x in (seen, copied, true))
        return (
            SeriesMetric("road_iou", "road IoU", iou, still),
            SeriesMetric("road_iou_changed", "road IoU where copying is below 0.5", iou + changed, still + changed),
            SeriesMetric(
                "heading", "road's heading error, median", heading, heading_still, None, median, unit="°", better="low"
            ),
            SeriesMetric(
                "offset",
                "error of the car's place across the road, median",
                offset,
                offset_still,
                None,
                median,
                unit="units",
                better="low",
            ),
            SeriesMetric(
                "speed",
                "dashboard's speed error, median",
                fast,
                fast_still,
                floor,
                median,
                unit="units/s",
                better="low",
            ),
        )


def _apart(heading: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the angle between two roads of these headings, in degrees 0..90."""
    return np.abs((heading - other + 90) % 180 - 90)
