"""Replay: actions carried out in the true Push-T from given states, and how far its scenes are from what frames show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neuralsim.envs.pusht.env import STEP_UNITS, PushTRealEnv
from neuralsim.envs.pusht.state_estimator import PushTStateEstimate, PushTStateEstimator
from neuralsim.evaluation.statistics import turn

HEEDED = 0.02
"""An action had its effect where the pusher went as far as it says, within this share of a full action."""


def replay(truth: PushTRealEnv, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """The states float64 ``(n, k+1, 5)`` that ``actions`` ``(n, k, 2)`` lead through from ``states`` ``(n, 5)``."""
    n, k = actions.shape[:2]
    after = np.empty((n, k + 1, states.shape[-1]))
    for i in range(n):
        truth.set_state(states[i])
        after[i, 0] = truth.state()
        for j in range(k):
            truth.advance(after[i, j], np.clip(actions[i, j], -1, 1))
            after[i, j + 1] = truth.state()
    return after


def heeded(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Which of ``actions`` ``(n, k, 2)`` had their full effect ``(n, k)``, by the states ``(n, k+1, 5)`` they led through: not those
    at the rim or against a block that a wall holds. No frame tells the others."""
    moved = np.diff(states[..., :2], axis=1) / STEP_UNITS
    return (np.abs(moved - actions) <= HEEDED).all(-1)


def film(truth: PushTRealEnv, states: np.ndarray) -> np.ndarray:
    """The frames uint8 ``(..., h, w, 3)`` of ``states`` ``(..., 5)``."""
    flat = states.reshape(-1, states.shape[-1])
    frames = []
    for state in flat:
        truth.set_state(state)
        frames.append(truth.render())
    return np.stack(frames).reshape(*states.shape[:-1], *frames[0].shape)


@dataclass(frozen=True)
class Apart:
    """How far ``n`` scenes are apart, ``(n,)`` each: pusher and block in units, the block's angle in degrees. What is lost counts as a
    whole workspace, and half a turn, away."""

    pusher: np.ndarray
    block: np.ndarray
    angle: np.ndarray


def apart(reader: PushTStateEstimator, seen: PushTStateEstimate, states: np.ndarray) -> Apart:
    """``seen`` ``(n,)`` against true ``states`` ``(n, 5)``."""
    place = np.linalg.norm(seen.block[:, :2] - states[:, 2:4], axis=-1)
    return Apart(
        np.where(seen.pusher_found, np.linalg.norm(seen.pusher - states[:, :2], axis=-1), reader.extent),
        np.where(seen.block_found, np.minimum(place, reader.extent), reader.extent),
        np.where(seen.block_found, turn(seen.block[:, 2], states[:, 4]), 180.0),
    )
