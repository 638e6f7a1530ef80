"""CarRacingMetrics: CarRacing's dreams, judged by where the road is and how it runs, by the dashboard, and by whether the scene is one."""

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
"""A window whose road turns further than this, in degrees, is worth a picture."""
LEAST_KNOWN = 0.93
"""A scene shows road and grass where this share of it has their colours; true ones have 0.968 or more."""


class CarRacingMetrics(WorldMetrics):
    """See Judge. The simulator cannot be put at a state, so there is no ``truth``."""

    reader: CarRacingStateEstimator
    bars: ClassVar[Mapping[tuple[str, int | None], Target]] = {
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
        """See Judge: road, its heading, and the speed, at every horizon."""
        figures = self._figures(r)
        redrawn = boot(figures[0].statistic, figures[0].values[:, 0])
        yield metric_of(redrawn, "codec_iou", "redrawing a true frame: road IoU", better="high")
        for figure in figures:
            for step in config.horizons:
                c = r.column(step)
                assert figure.copied is not None
                ours, theirs = (boot(figure.statistic, x[:, c]) for x in (figure.values, figure.copied))
                floor = None if figure.floor is None else figure.statistic(figure.floor[:, c])
                yield metric_of(
                    ours,
                    figure.key,
                    figure.label,
                    theirs,
                    unit=figure.unit,
                    step=step,
                    floor=floor,
                    better=figure.better,
                )

    def headlines(self, r: Rollouts) -> tuple[SeriesMetric, ...]:
        """See Judge: where the road is, and how it runs."""
        road, _, heading, *_ = self._figures(r)
        return road, heading

    def panels(self, r: Rollouts) -> Mapping[str, Mapping[str, Any]]:
        """See Judge."""
        panels = {}
        for figure in self._figures(r):
            assert figure.copied is not None
            lines = {"dream": quartiles(figure.values), "copy last": quartiles(figure.copied)}
            if figure.floor is not None:
                lines["reader's floor"] = quartiles(figure.floor)
            title = figure.label.removesuffix(", median")
            panels[title + (f" ({figure.unit})" if figure.unit else "")] = lines
        return panels

    def showpieces(self, windows: Windows) -> Iterator[int]:
        """See Judge: windows in whose middle the road runs otherwise than at their beginning."""
        for i, (episode, start) in enumerate(zip(windows.episodes, windows.starts, strict=True)):
            at = start + windows.context - 1
            seen = self.reader(windows.store[int(episode)].frames[[at, at + windows.steps // 2]])
            if _apart(seen.heading[0], seen.heading[1]) > TURNED and seen.off_road.max() < 1:
                yield i

    def signs(self, reading: StateEstimate) -> tuple[IntegrityMetric, ...]:
        """See Judge."""
        assert isinstance(reading, CarRacingStateEstimate)
        whole = reading.car_found & reading.black & (reading.known >= LEAST_KNOWN)
        on_road = reading.off_road <= 0.5
        in_sight = ~np.isnan(reading.ahead[..., 0])
        return tuple(
            IntegrityMetric(key, label, np.asarray(values, np.float64), bar=bar)
            for key, label, values, bar in (
                ("whole", "frames that are whole: car, dashboard and colours", whole, Target(least=0.95)),
                ("car_found", "frames with the car at its place", reading.car_found, None),
                ("dashboard", "frames with a black dashboard", reading.black, None),
                ("colours", "share of the scene in the colours there are", reading.known, None),
                ("road_in_sight", "frames with road in sight", in_sight, None),
                ("on_road", "frames with the car on the road", on_road, None),
            )
        )

    def _figures(self, r: Rollouts) -> tuple[SeriesMetric, ...]:
        """Everything that is looked at; the road, all of it and where it changed, comes first."""
        seen, true = r.reading, r.true_reading
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
    """The angle between two roads that run at such headings, in degrees 0..90."""
    return np.abs((heading - other + 90) % 180 - 90)
