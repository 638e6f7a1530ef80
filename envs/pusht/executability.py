"""Executability: can a predicted video be carried out? Actions are inferred from it and executed in the real simulator.

WoW's question of video models (field/systems.md, section 5.4: an inverse dynamics model must turn the imagined video into actions that
succeed on the robot), with exact ground truth. The video is decoded and encoded again, so that only visible content counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from neuralsim.envs.pusht.env import STEP_UNITS, PushTRealEnv
from neuralsim.envs.pusht.scene_metrics import MOVED, beyond
from neuralsim.envs.pusht.state_estimator import PushTStateEstimate, PushTStateEstimator
from neuralsim.evaluation.report import Metric, Target, metric_of
from neuralsim.evaluation.role_predictions import RolePredictions
from neuralsim.evaluation.statistics import Bootstrap, mean, median, turn

FULL_EFFECT = 0.02
"""An action has its full effect where the pusher moves as far as it commands, within this share of a full action."""
NEAR_UNITS, NEAR_DEGREES = 20.0, 20.0
"""A replay ends at its target with pusher and block within these of the pose that is shown."""
SOURCES: Mapping[str, str] = {
    "foreseen": "inferred from the predicted video",
    "ceiling": "inferred from real video (ceiling)",
    "random": "random actions (floor)",
    "rest": "no action (floor)",
}
"""Sources of the replayed actions."""


def replay(real_env: PushTRealEnv, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Execute ``actions`` ``(n, k, 2)`` from ``states`` ``(n, 5)``; returns the states, float64 ``(n, k+1, 5)``."""
    n, k = actions.shape[:2]
    after = np.empty((n, k + 1, states.shape[-1]))
    for i in range(n):
        real_env.set_state(states[i])
        after[i, 0] = real_env.state()
        for j in range(k):
            real_env.advance(after[i, j], np.clip(actions[i, j], -1, 1))
            after[i, j + 1] = real_env.state()
    return after


def had_full_effect(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Mark which of ``actions`` ``(n, k, 2)`` had their full effect, bool ``(n, k)``, given the states ``(n, k+1, 5)`` along the way: not
    those at the rim or against a block that a wall holds, which no frame shows."""
    moved = np.diff(states[..., :2], axis=1) / STEP_UNITS
    return (np.abs(moved - actions) <= FULL_EFFECT).all(-1)


def render_states(real_env: PushTRealEnv, states: np.ndarray) -> np.ndarray:
    """Render ``states`` ``(..., 5)`` as frames uint8 ``(..., h, w, 3)``."""
    flat = states.reshape(-1, states.shape[-1])
    frames = []
    for state in flat:
        real_env.set_state(state)
        frames.append(real_env.render())
    return np.stack(frames).reshape(*states.shape[:-1], *frames[0].shape)


@dataclass(frozen=True)
class PoseError:
    """Errors of ``n`` scenes, ``(n,)`` each: pusher and block in units, the block's angle in degrees. A thing that is not found counts as
    a whole workspace, and half a turn, away."""

    pusher: np.ndarray
    block: np.ndarray
    angle: np.ndarray


def pose_error(estimator: PushTStateEstimator, estimate: PushTStateEstimate, states: np.ndarray) -> PoseError:
    """Compare ``estimate`` of ``n`` frames with true ``states`` ``(n, 5)``."""
    block = np.linalg.norm(estimate.block[:, :2] - states[:, 2:4], axis=-1)
    pusher = np.linalg.norm(estimate.pusher - states[:, :2], axis=-1)
    return PoseError(
        np.where(estimate.pusher_found, pusher, estimator.extent),
        np.where(estimate.block_found, np.minimum(block, estimator.extent), estimator.extent),
        np.where(estimate.block_found, turn(estimate.block[:, 2], states[:, 4]), 180.0),
    )


@dataclass(frozen=True, eq=False)
class Execution:
    """A video that was carried out: its frames uint8 ``(n, k, h, w, 3)``, the actions ``(n, k, 2)`` inferred from it, and the true states
    ``(n, k+1, 5)`` under these actions."""

    frames: np.ndarray
    actions: np.ndarray
    states: np.ndarray


def decode_tokens(predictions: RolePredictions, tokens: torch.Tensor) -> np.ndarray:
    """Decode ``tokens`` ``(n, k, N, d)`` to frames uint8 ``(n, k, h, w, 3)``."""
    codec, k = predictions.model.codec, tokens.shape[1]
    (frames,) = predictions.each(
        lambda state, rng, rows: (codec.decode(tokens[rows].flatten(0, 1)).unflatten(0, (-1, k)),)
    )
    return frames.cpu().numpy()


def encode_frames(predictions: RolePredictions, frames: np.ndarray) -> torch.Tensor:
    """Encode ``frames`` uint8 ``(n, k, h, w, 3)`` to tokens ``(n, k, N, d)``."""
    codec, images = predictions.model.codec, torch.from_numpy(frames).to(predictions.model.device)
    (tokens,) = predictions.each(
        lambda state, rng, rows: (codec.encode(images[rows].flatten(0, 1)).unflatten(0, (-1, images.shape[1])),)
    )
    return tokens


def execute(predictions: RolePredictions, real_env: PushTRealEnv, tokens: torch.Tensor) -> Execution:
    """Decode ``tokens`` to a video, infer its actions, and execute them."""
    assert predictions.queries.states is not None
    frames = decode_tokens(predictions, tokens)
    actions = predictions.infer(encode_frames(predictions, frames)).cpu().numpy()
    return Execution(frames, actions, replay(real_env, predictions.queries.states[:, 0], actions))


def executability_rows(
    demos: RolePredictions,
    foreseen: Execution,
    real_env: PushTRealEnv,
    estimator: PushTStateEstimator,
    boot: Bootstrap,
) -> Iterator[Metric]:
    """Compare the end of each replay with the end of its video: the share that reaches it, and the error."""
    queries = demos.queries
    assert queries.states is not None
    starts, n, k = queries.states[:, 0], len(queries), queries.steps
    ceiling = execute(demos, real_env, queries.tokens[:, 1:])
    draws = np.random.default_rng([demos.seed, 3]).uniform(-1, 1, (n, k, 2)).astype(np.float32)
    shown, true = estimator(foreseen.frames[:, -1]), estimator(queries.frames[:, -1])
    ends = {
        "foreseen": (shown, foreseen.states[:, -1]),
        "ceiling": (true, ceiling.states[:, -1]),
        "random": (shown, replay(real_env, starts, draws)[:, -1]),
        "rest": (shown, starts),
    }
    errors = {name: pose_error(estimator, estimate, states) for name, (estimate, states) in ends.items()}
    reached = {
        name: (x.pusher <= NEAR_UNITS) & (x.block <= NEAR_UNITS) & (x.angle <= NEAR_DEGREES)
        for name, x in errors.items()
    }
    for name, source in SOURCES.items():
        share = boot.share(reached[name].astype(np.float64))
        label = f"executability: ends where the video does, {source}"
        yield metric_of(share, f"executable/{name}", label, better="high")
    gain = boot(mean, reached["foreseen"].astype(np.float64) - reached["random"])
    label = "executability: share less that of random actions"
    yield metric_of(gain, "executable/gain", label, better="high", target=Target(least=0.0, surely=True))
    for name in ("foreseen", "ceiling", "rest"):
        pushed = np.where(_block_moves(ends[name][0], starts), reached[name].astype(np.float64), np.nan)
        label = f"executability where the block moves, {SOURCES[name]}"
        yield metric_of(boot.share(pushed), f"executable-pushed/{name}", label, better="high")
    for field, unit in (("pusher", "units"), ("block", "units"), ("angle", "°")):
        for name, source in SOURCES.items():
            error = boot(median, getattr(errors[name], field))
            label = f"executability: final error of the {field} (median), {source}"
            yield metric_of(error, f"executable-{field}/{name}", label, unit=unit, better="low")


def _block_moves(estimate: PushTStateEstimate, starts: np.ndarray) -> np.ndarray:
    """Mark the rows ``(n,)`` in which the estimated block has left its place in the states ``starts`` ``(n, 5)``."""
    return estimate.block_found & beyond(estimate.block, starts[:, 2:5], MOVED)
