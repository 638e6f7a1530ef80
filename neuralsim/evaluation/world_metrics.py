"""WorldMetrics: metrics of one world's imagined frames, beyond the pixels, rewards and states that every world has.

Evaluation knows no world by name. Which things are seen in a world's frames, how good each must be, and when a scene is still
intact, its WorldMetrics says; the caller finds it in the world's record.
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
    """One quantity along rollouts, each array ``(n, s)``, NaN where it does not apply."""

    key: str
    """Its name for programs."""
    label: str
    """Its name for people."""
    values: np.ndarray
    """Values of the imagined frames."""
    copied: np.ndarray | None = None
    """Values of the last true frame, copied."""
    floor: np.ndarray | None = None
    """Values of the true frames, where the estimator's own error is of interest."""
    statistic: Statistic = mean
    """Statistic over rollouts."""
    unit: str = ""
    """Unit of the values."""
    better: str = "high"
    """``high`` or ``low``."""

    @property
    def share(self) -> bool:
        """The values are 0s and 1s."""
        known = self.values[~np.isnan(self.values)]
        return bool(np.isin(known, (0.0, 1.0)).all())


@dataclass(frozen=True)
class IntegrityMetric:
    """One sign that a scene is still intact: ``values`` ``(b, looks)``, and the target of their ``statistic``."""

    key: str
    label: str
    values: np.ndarray
    statistic: Statistic = mean
    better: str = "high"
    target: Target | None = None


class WorldMetrics(ABC):
    """Metrics of one world. ``estimator`` estimates states from its frames; ``real_env`` is its simulator where that can be put at a
    state."""

    targets: ClassVar[Mapping[tuple[str, int | None], Target]] = {}
    """Targets of a model that draws frames, by a metric's key and step."""
    ending: ClassVar[str] = "termination"
    """Meaning of the world's termination."""
    near_miss: ClassVar[float | None] = None
    """Reward from which a step without termination is hard to tell from one with."""

    def __init__(self, estimator: StateEstimator, real_env: GroundTruthEnv | None = None) -> None:
        self.estimator, self.real_env = estimator, real_env

    @abstractmethod
    def rows(self, r: Rollouts, boot: Bootstrap, config: EvalConfig) -> Iterator[Metric]:
        """Compute the metrics of rollouts with estimates."""

    @abstractmethod
    def headlines(self, r: Rollouts) -> tuple[SeriesMetric, ...]:
        """Return the metrics by which samplers, or other actions, are compared; none where the rollouts lack what they need."""

    @abstractmethod
    def integrity(self, estimate: StateEstimate) -> tuple[IntegrityMetric, ...]:
        """Return the signs that scenes ``(b, looks)`` are intact, those with a target first."""

    def panels(self, r: Rollouts) -> Mapping[str, Mapping[str, Any]]:
        """Return what is drawn beside PSNR and uncertainty: title -> line -> (middle, low, high), each ``(s,)``; see
        ``plots.quartiles``."""
        return {}

    def eventful(self, windows: Windows) -> Iterator[int]:
        """Yield the indices of windows in which much happens, for the picture."""
        return iter(())

    def simulator_rows(
        self, model: WorldModel, windows: Windows, main: Rollouts, config: EvalConfig, tick: Ticker
    ) -> Iterator[Metric]:
        """Compute metrics of further rollouts of ``windows``, the first of those of ``main``, beside the simulator."""
        return iter(())

    def simulator_steps(self, windows: int) -> int:
        """Return the number of steps that ``simulator_rows`` will imagine."""
        return 0


def pixel_headlines(r: Rollouts) -> tuple[SeriesMetric, ...]:
    """Return the headlines of a world without WorldMetrics."""
    copied = np.where(r.steps == 0, np.nan, r.error_copy)
    return (SeriesMetric("psnr", "PSNR", psnr(r.error), psnr(copied), unit="dB"),)
