"""Judge: what the dreams of one world are judged by, beyond the pixels, rewards and states that every world has.

Measuring knows no world. What is to be seen in a world's frames, which of it must be how good, and when its scene is still
whole, a Judge says; whoever measures looks it up by the world's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from neuralsim.evaluation.config import EvalConfig
from neuralsim.evaluation.image_metrics import psnr
from neuralsim.evaluation.report import Metric, Target
from neuralsim.evaluation.rollouts import Rollouts, Ticker, Windows
from neuralsim.evaluation.state_estimator import GroundTruthEnv, StateEstimate, StateEstimator
from neuralsim.evaluation.statistics import Bootstrap, mean
from neuralsim.world_model import WorldModel

Statistic = Callable[[np.ndarray], float]
"""One number of many; NaNs among them do not count."""


@dataclass(frozen=True)
class SeriesMetric:
    """One thing that is looked at in rollouts: ``values`` ``(n, s)``, NaN where it does not apply; the same for the last true
    frame copied, and for the true frames, where the reader's own error is worth telling."""

    key: str
    label: str
    values: np.ndarray
    copied: np.ndarray | None = None
    floor: np.ndarray | None = None
    statistic: Statistic = mean
    unit: str = ""
    better: str = "high"

    @property
    def share(self) -> bool:
        """Whether the values are 0s and 1s."""
        known = self.values[~np.isnan(self.values)]
        return bool(np.isin(known, (0.0, 1.0)).all())


@dataclass(frozen=True)
class IntegrityMetric:
    """One sign that a scene is still whole: ``values`` ``(b, looks)``, and the bar for their ``statistic``."""

    key: str
    label: str
    values: np.ndarray
    statistic: Statistic = mean
    better: str = "high"
    bar: Target | None = None


class WorldMetrics(ABC):
    """Judges dreams of one world. ``reader`` reads its frames, ``truth`` is its simulator where that can be put at a state;
    ``bars``: what a world that redraws frames must reach, by a row's key and step. ``ending``: what its termination means, and
    ``near_miss``: the reward from which a step without is the harder to tell apart."""

    bars: ClassVar[Mapping[tuple[str, int | None], Target]] = {}
    ending: ClassVar[str] = "termination"
    near_miss: ClassVar[float | None] = None

    def __init__(self, reader: StateEstimator, truth: GroundTruthEnv | None = None) -> None:
        self.reader, self.truth = reader, truth

    @abstractmethod
    def rows(self, r: Rollouts, boot: Bootstrap, config: EvalConfig) -> Iterator[Metric]:
        """What is told of rollouts that were read."""

    @abstractmethod
    def headlines(self, r: Rollouts) -> tuple[SeriesMetric, ...]:
        """The figures by which ways to run a model, or other actions, are compared; none where the rollouts lack what it takes."""

    @abstractmethod
    def signs(self, reading: StateEstimate) -> tuple[IntegrityMetric, ...]:
        """Whether scenes ``(b, looks)`` are whole, the signs with a bar first."""

    def panels(self, r: Rollouts) -> Mapping[str, Mapping[str, Any]]:
        """What is drawn beside PSNR and uncertainty: title -> line -> (middle, low, high), each ``(s,)``; see ``curves.middle``."""
        return {}

    def showpieces(self, windows: Windows) -> Iterator[int]:
        """Windows in which much happens, for the picture."""
        return iter(())

    def trials(
        self, model: WorldModel, windows: Windows, main: Rollouts, config: EvalConfig, tick: Ticker
    ) -> Iterator[Metric]:
        """What further dreams of ``windows``, the first of those of ``main``, tell beside the simulator."""
        return iter(())

    def trial_steps(self, windows: int) -> int:
        """How many steps ``trials`` will dream."""
        return 0


def pixel_headlines(r: Rollouts) -> tuple[SeriesMetric, ...]:
    """The headlines of a world that has no Judge."""
    copied = np.where(r.steps == 0, np.nan, r.error_copy)
    return (SeriesMetric("psnr", "PSNR", psnr(r.error), psnr(copied), unit="dB"),)
