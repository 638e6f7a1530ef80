"""Executability: can what is foreseen be done? Actions are inferred from a foreseen video and carried out in the true simulator.

WoW's question of video models (field/systems.md, section 5.4: an inverse dynamics model must turn the imagined video into actions that
succeed on the robot), with exact truth. The video is decoded and encoded again, so that nothing passes but what can be seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from neuralsim.envs.pusht.env import PushTRealEnv
from neuralsim.envs.pusht.replay import apart, replay
from neuralsim.envs.pusht.scene_metrics import MOVED, beyond
from neuralsim.envs.pusht.state_estimator import PushTStateEstimate, PushTStateEstimator
from neuralsim.evaluation.report import Metric, Target, metric_of
from neuralsim.evaluation.role_predictions import RolePredictions
from neuralsim.evaluation.statistics import Bootstrap, mean, median

NEAR_UNITS, NEAR_DEGREES = 20.0, 20.0
"""A replay has ended where it should with pusher and block within these of the place that is shown."""
WAYS: Mapping[str, str] = {
    "foreseen": "inferred from what is foreseen",
    "ceiling": "inferred from true video (ceiling)",
    "random": "random actions (floor)",
    "rest": "no action (floor)",
}


@dataclass(frozen=True, eq=False)
class Execution:
    """What came of a video: its frames uint8 ``(n, k, h, w, 3)``, the actions inferred from it ``(n, k, 2)``, and the true states
    ``(n, k+1, 5)`` when these are done."""

    frames: np.ndarray
    actions: np.ndarray
    states: np.ndarray


def draw(answers: RolePredictions, tokens: torch.Tensor) -> np.ndarray:
    """``tokens`` ``(n, k, N, d)`` as frames uint8 ``(n, k, h, w, 3)``."""
    codec, k = answers.model.codec, tokens.shape[1]
    (frames,) = answers.each(lambda state, rng, rows: (codec.decode(tokens[rows].flatten(0, 1)).unflatten(0, (-1, k)),))
    return frames.cpu().numpy()


def read(answers: RolePredictions, frames: np.ndarray) -> torch.Tensor:
    """The tokens ``(n, k, N, d)`` that the model reads off ``frames`` uint8 ``(n, k, h, w, 3)``."""
    codec, seen = answers.model.codec, torch.from_numpy(frames).to(answers.model.device)
    (tokens,) = answers.each(
        lambda state, rng, rows: (codec.encode(seen[rows].flatten(0, 1)).unflatten(0, (-1, seen.shape[1])),)
    )
    return tokens


def execute(answers: RolePredictions, truth: PushTRealEnv, tokens: torch.Tensor) -> Execution:
    """Decode ``tokens`` into a video, infer what was done in it, and do it."""
    assert answers.moments.states is not None
    frames = draw(answers, tokens)
    actions = answers.infer(read(answers, frames)).cpu().numpy()
    return Execution(frames, actions, replay(truth, answers.moments.states[:, 0], actions))


def executability_rows(
    demos: RolePredictions, foreseen: Execution, truth: PushTRealEnv, reader: PushTStateEstimator, boot: Bootstrap
) -> Iterator[Metric]:
    """Where replays end beside where the video ends: the share that ends there, and how far off."""
    moments = demos.moments
    assert moments.states is not None
    here, n, k = moments.states[:, 0], len(moments), moments.steps
    ceiling = execute(demos, truth, moments.tokens[:, 1:])
    draws = np.random.default_rng([demos.seed, 3]).uniform(-1, 1, (n, k, 2)).astype(np.float32)
    shown, true = reader(foreseen.frames[:, -1]), reader(moments.frames[:, -1])
    ends = {
        "foreseen": (shown, foreseen.states[:, -1]),
        "ceiling": (true, ceiling.states[:, -1]),
        "random": (shown, replay(truth, here, draws)[:, -1]),
        "rest": (shown, here),
    }
    found = {name: apart(reader, seen, states) for name, (seen, states) in ends.items()}
    there = {
        name: (x.pusher <= NEAR_UNITS) & (x.block <= NEAR_UNITS) & (x.angle <= NEAR_DEGREES)
        for name, x in found.items()
    }
    for name, told in WAYS.items():
        share = boot.share(there[name].astype(np.float64))
        yield metric_of(share, f"executable/{name}", f"executability: ends where the video does, {told}", better="high")
    gain = boot(mean, there["foreseen"].astype(np.float64) - there["random"])
    label = "executability: share less that of random actions"
    yield metric_of(gain, "executable/gain", label, better="high", bar=Target(least=0.0, surely=True))
    for name in ("foreseen", "ceiling", "rest"):
        pushed = np.where(_moves(ends[name][0], here), there[name].astype(np.float64), np.nan)
        label = f"executability where the block moves, {WAYS[name]}"
        yield metric_of(boot.share(pushed), f"executable-pushed/{name}", label, better="high")
    for field, unit in (("pusher", "units"), ("block", "units"), ("angle", "°")):
        for name, told in WAYS.items():
            off = boot(median, getattr(found[name], field))
            label = f"executability: {field} ends off by (median), {told}"
            yield metric_of(off, f"executable-{field}/{name}", label, unit=unit, better="low")


def _moves(seen: PushTStateEstimate, here: np.ndarray) -> np.ndarray:
    """Where the block that is ``seen`` is another place than in the states ``here`` ``(n, 5)``."""
    return seen.block_found & beyond(seen.block, here[:, 2:5], MOVED)
