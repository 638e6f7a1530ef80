"""Calibration of a safety monitor: thresholds of its anomaly detector, measured on clean chunks of recorded episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from neuralsim.agents.heads.chunk_policy import ObservationHistory
from neuralsim.agents.safety.anomaly_detector import AnomalyDetector, ObservedChunks, weights_digest
from neuralsim.agents.safety.fault_injection import FaultScene
from neuralsim.agents.safety.monitor import SafetyMonitor
from neuralsim.agents.safety.transition_classifier import WINDOW, TransitionClassifier, Transitions
from neuralsim.data.store import EpisodeStore
from neuralsim.pretrained.world import World

BATCH = 64
"""Chunks that are encoded and imagined at once."""


@dataclass(frozen=True, eq=False)
class ChunkIndex:
    """Places of chunks in stores."""

    stores: Sequence[EpisodeStore]
    rows: np.ndarray
    """``(n, 3)``: store, episode and first step of each chunk."""

    def __len__(self) -> int:
        return len(self.rows)

    def kinds(self) -> np.ndarray:
        """Return ``(n,)``: 0 for play, 1 for demonstrations."""
        return np.array(
            ["oracle" in str(self.stores[s].provenance(int(i)).get("policy")) for s, i, _ in self.rows], np.int64
        )

    def scene(self, row: int, past: int, length: int) -> FaultScene:
        """Return ``past`` steps before the beginning of a chunk and ``length`` after it."""
        store, index, begin = (int(x) for x in self.rows[row])
        episode = self.stores[store][index]
        steps = slice(begin - past, begin + length)
        frames = slice(begin - past, begin + length + 1)
        assert episode.states is not None
        return FaultScene(episode.frames[frames], episode.actions[steps], episode.states[frames].astype(np.float64))

    def batches(self, past: int, length: int, tick: Callable[[int], None]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield frames and actions of whole batches, with ``past`` steps of history; ``tick`` receives the chunks done."""
        for i in range(0, len(self), BATCH):
            scenes = [self.scene(row, past, length) for row in range(i, min(i + BATCH, len(self)))]
            yield np.stack([s.frames for s in scenes]), np.stack([s.actions for s in scenes])
            tick(len(scenes))


def history_steps(world: World) -> int:
    """Return the steps of history before a chunk: as many as the model reads, or a TransitionClassifier sums over."""
    return max(world.spec.context, WINDOW) - 1


def observe_chunks(monitor: SafetyMonitor, frames: np.ndarray, actions: np.ndarray, length: int) -> ObservedChunks:
    """Encode and imagine chunks of ``length``.

    Args:
        monitor: its model is used.
        frames: ``(n, h + length + 1, ...)``, beginning with h steps of history.
        actions: planned, ``(n, h + length, a)``.
        length: actions in a chunk.
    """
    past = actions.shape[1] - length
    features, novelty, steps = monitor.observe(
        ObservationHistory(frames, actions), frames.shape[1], bool(monitor.state_names)
    )
    rollout, _ = monitor.roll_out(ObservationHistory(frames[:, : past + 1], actions[:, :past]), actions[:, past:])
    unchanged = (frames[:, past + 1 :] == frames[:, past:-1]).all((2, 3, 4))
    return ObservedChunks(
        features[:, past:], rollout.features, rollout.uncertainty, novelty[:, past:], unchanged, steps
    )


def calibrate(
    monitor: SafetyMonitor,
    training: ChunkIndex,
    measuring: ChunkIndex,
    length: int,
    tick: Callable[[int], None],
    seed: int = 0,
) -> AnomalyDetector:
    """Measure the thresholds of ``monitor``'s model on clean chunks.

    Args:
        monitor: its model is calibrated.
        training: chunks that the TransitionClassifier learns from, where the model predicts states.
        measuring: chunks on which all limits are measured.
        length: actions in a chunk.
        tick: receives chunks and steps of training that are done.
        seed: seed of the training.
    """
    classifier, names = None, monitor.state_names
    if names:
        past = monitor.world.spec.context - 1
        parts = [
            observe_chunks(monitor, *chunks, length).transitions for chunks in training.batches(past, length, tick)
        ]
        steps = [part.map(lambda x: x[:, -length:].reshape(-1, *x.shape[2:])) for part in parts if part is not None]
        classifier = TransitionClassifier.fit(names, Transitions.join(steps), seed, tick)
    observed = ObservedChunks.join(
        [
            observe_chunks(monitor, *chunks, length)
            for chunks in measuring.batches(history_steps(monitor.world), length, tick)
        ]
    )
    return AnomalyDetector.fit(observed, measuring.kinds(), classifier, weights_digest(monitor.world.folder))
