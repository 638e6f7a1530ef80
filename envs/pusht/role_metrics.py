"""Push-T's roles beside its simulator: where pusher and block are in foreseen frames, and whether other actions make other futures."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from neuralsim.envs.pusht.executability import draw
from neuralsim.envs.pusht.replay import apart
from neuralsim.envs.pusht.state_estimator import PushTStateEstimate, PushTStateEstimator
from neuralsim.evaluation.report import Metric, Target, metric_of
from neuralsim.evaluation.role_metrics import looked_at
from neuralsim.evaluation.role_predictions import RolePredictions
from neuralsim.evaluation.statistics import Bootstrap, median, turn


def pose_rows(
    demos: RolePredictions, foreseen: np.ndarray, reader: PushTStateEstimator, boot: Bootstrap
) -> Iterator[Metric]:
    """Pusher and block in foreseen frames uint8 ``(n, k, h, w, 3)``, beside the last true frame, and beside the frames simulated from
    the true actions (the floor)."""
    states = demos.moments.states
    assert states is not None
    here, steps = reader(demos.moments.frames[:, 0]), looked_at(demos.moments.steps)
    simulated = draw(demos, demos.simulated[:, [step - 1 for step in steps]])
    for i, step in enumerate(steps):
        ours, copied, floor = (
            apart(reader, seen, states[:, step])
            for seen in (reader(foreseen[:, step - 1]), here, reader(simulated[:, i]))
        )
        for field, unit in (("pusher", "units"), ("block", "units"), ("angle", "°")):
            yield metric_of(
                boot(median, getattr(ours, field)),
                f"foresee/{field}",
                f"foresee: {field} off by (median; floor: simulated from the true actions)",
                boot(median, getattr(copied, field)),
                unit=unit,
                step=step,
                floor=median(getattr(floor, field)),
                better="low",
            )


def spread_rows(
    play: RolePredictions, ends: np.ndarray, ends_otherwise: np.ndarray, reader: PushTStateEstimator, boot: Bootstrap
) -> Iterator[Metric]:
    """Permuted actions: how far another moment's actions lead from where the own ones do, imagined over true.

    ``ends`` and ``ends_otherwise`` ``(n, 5)``: where the simulator ends under the own and under the other actions, from here.
    """
    moments = play.moments
    assert moments.states is not None
    here, others = moments.states[:, 0], moments.actions[moments.others]
    whole = np.logical_and.reduce([reader.of_state(x)[2] for x in (ends, ends_otherwise)])
    true = _spread(_poses_of(ends), _poses_of(ends_otherwise))
    for key, told, own, other in (
        ("spread", "simulate", play.simulated, play.simulated_otherwise),
        ("spread-jointly", "simulate, joint stream", play.simulated_jointly, play.simulate_jointly(others)),
    ):
        imagined = _spread(*(_poses(reader(_last(play, tokens)), here) for tokens in (own, other)))
        for i, (field, bar) in enumerate((("pusher", Target(0.8, 1.25)), ("block", None), ("angle", None))):
            pairs = np.stack([imagined[i], true[i]], 1)
            pairs[~whole] = np.nan
            label = f"{told}: other actions part the {field} as far as in truth"
            yield metric_of(boot(_ratio, pairs), f"{key}/{field}", label, step=moments.steps, bar=bar)


def _last(answers: RolePredictions, tokens: torch.Tensor) -> np.ndarray:
    return draw(answers, tokens[:, -1:])[:, 0]


def _poses(seen: PushTStateEstimate, here: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pusher ``(n, 2)`` and block ``(n, 3)``; what is lost tells nothing of where it is, and counts as not having moved."""
    return (
        np.where(seen.pusher_found[:, None], seen.pusher, here[:, :2]),
        np.where(seen.block_found[:, None], seen.block, here[:, 2:5]),
    )


def _poses_of(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return states[:, :2], states[:, 2:5]


def _spread(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How far two scenes are apart: pusher, block, angle, ``(n,)`` each."""
    return (
        np.linalg.norm(one[0] - other[0], axis=-1),
        np.linalg.norm(one[1][:, :2] - other[1][:, :2], axis=-1),
        turn(one[1][:, 2], other[1][:, 2]),
    )


def _ratio(pairs: np.ndarray) -> float:
    """Sum of what is imagined over sum of what is true."""
    total = pairs[:, 1].sum()
    return float(pairs[:, 0].sum() / total) if total > 0 else float("nan")
