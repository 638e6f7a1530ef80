"""judges: what measuring knows of the worlds there are, by their names: who judges their frames, and who drives by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from neuralsim.evaluation.long_horizon import Hands
from neuralsim.evaluation.world_metrics import WorldMetrics
from neuralsim.spec import WorldSpec


def _pusht(size: int) -> WorldMetrics:
    from neuralsim.envs.pusht.env import PushTRealEnv
    from neuralsim.envs.pusht.metrics import PushTMetrics
    from neuralsim.envs.pusht.state_estimator import PushTStateEstimator

    return PushTMetrics(PushTStateEstimator(size), PushTRealEnv(size=size, observation="state"))


def _carracing(size: int) -> WorldMetrics:
    from neuralsim.envs.carracing.metrics import CarRacingMetrics
    from neuralsim.envs.carracing.state_estimator import CarRacingStateEstimator

    return CarRacingMetrics(CarRacingStateEstimator(size))


def _road_driver(size: int) -> Hands:
    from neuralsim.agents.policies.carracing_lane_follower import CarRacingLaneFollower

    return CarRacingLaneFollower(size)


JUDGES: Mapping[str, Callable[[int], WorldMetrics]] = {"pusht": _pusht, "carracing": _carracing}
"""Each world's judge by the world's name, made for a frame size."""
DRIVERS: Mapping[str, Mapping[str, Callable[[int], Hands]]] = {"carracing": {"driver": _road_driver}}
"""Who drives a world by its frames in long play, beside random keys."""


def find_judge(spec: WorldSpec) -> WorldMetrics | None:
    """The judge of the world of ``spec``; None where there is none, or none for its frames' shape."""
    if spec.name not in JUDGES or spec.height != spec.width:
        return None
    return JUDGES[spec.name](spec.height)


def find_drivers(spec: WorldSpec) -> dict[str, Hands]:
    """Who drives the world of ``spec`` by its frames, by name."""
    if spec.height != spec.width:
        return {}
    return {name: make(spec.height) for name, make in DRIVERS.get(spec.name, {}).items()}
