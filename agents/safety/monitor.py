"""SafetyMonitor: checks what a policy asks of a robot before it is done.

A chunk of actions is imagined first, and refused if its future leaves the allowed region, breaks a rule of the user's, or is less
certain than the model's calibrated threshold. Each action keeps hard limits, whatever was proposed. And while a chunk is being done,
each frame is compared with the imagined one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from neuralsim.agents.heads.chunk_policy import ObservationHistory
from neuralsim.agents.safety.anomaly_detector import AnomalyDetector, AnomalyScores, ObservedChunks
from neuralsim.agents.safety.limits import Limits, keep_limits, pusht_limits
from neuralsim.agents.safety.transition_classifier import WINDOW, Transitions
from neuralsim.models.action_encoding import encode_actions
from neuralsim.noise import Noise
from neuralsim.pretrained.world import World
from neuralsim.runtime.device import inference
from neuralsim.state_view import View
from neuralsim.world_model import State, WorldModel, stack_time

__all__ = ["ImaginedChunk", "ImaginedFeatures", "Limits", "Rule", "SafetyMonitor", "Verdict", "pusht_limits"]

REASONS = {
    "drift": "what is seen has drifted from what was imagined",
    "jump": "what is seen jumped away from what was imagined",
    "novelty": "the frame is none that the model knows",
    "frozen": "the camera shows the same frame again, though something should have moved",
    "transition": "nothing moves as this was seen to",
}
"""Text for people, by anomaly score."""


@dataclass(frozen=True)
class Verdict:
    """Permission, or the reasons against it."""

    allowed: bool
    reasons: tuple[str, ...] = ()

    @classmethod
    def of(cls, reasons: Sequence[str]) -> Verdict:
        """Allow where there are no reasons against it."""
        return cls(not reasons, tuple(reasons))


@dataclass(frozen=True)
class Rule:
    """Rule of the user's that imagined states must keep."""

    name: str
    holds: Callable[[View], Any]
    """Returns bool ``(b,)``, an array, a tensor or a list, for the rows of the View, imagined one after the other. The View gives
    features, states, learned predictions, and frames where it is asked for them."""

    def kept(self, view: View) -> np.ndarray:
        """Return bool ``(b,)``. Raises ValueError where ``holds`` returns anything else."""
        returned = self.holds(view)
        answer = returned.cpu().numpy() if isinstance(returned, torch.Tensor) else np.asarray(returned)
        if answer.dtype != bool or answer.shape != (len(view),):
            raise ValueError(
                f"rule {self.name!r}: expected one bool for each of {len(view)} rows, got {answer.dtype} {answer.shape}"
            )
        return answer


@dataclass(frozen=True, eq=False)
class ImaginedFeatures:
    """Imagined chunks from step 0 (the encoded frame) on: features ``(b, k + 1, d)`` and uncertainty ``(b, k + 1)``."""

    features: np.ndarray
    uncertainty: np.ndarray


@dataclass(frozen=True, eq=False)
class ImaginedChunk:
    """Imagined future of a chunk."""

    rollout: ImaginedFeatures
    """One row."""
    actions: np.ndarray
    """``(k, a)``, as they would be sent."""
    verdict: Verdict


@dataclass(frozen=True)
class SafetyMonitor:
    """Checks between a policy and a robot. It keeps no memory: each answer is a function of the arguments, so that several threads
    may call it.

    Raises ValueError for limits that do not fit the world.
    """

    world: World
    """Its model imagines (for Push-T the compact 'pusht-latent')."""
    limits: Limits
    """Those of the robot."""
    rules: Sequence[Rule | Callable[[View], Any]] = ()
    detector: AnomalyDetector | None = None
    """Thresholds of what is seen against what was imagined; by default those in the world's folder ('neuralsim safety WORLD
    --calibrate' measures them). Without any, only frames that the model does not know and frozen cameras are noticed."""
    max_uncertainty: float | None = None
    """Largest uncertainty of an allowed chunk; by default the model's calibrated threshold."""
    seed: int = 0
    _encode_once: Callable[[bytes], State] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.limits.check(self.world.spec)
        named = [r if isinstance(r, Rule) else Rule(getattr(r, "__name__", repr(r)), r) for r in self.rules]
        object.__setattr__(self, "rules", tuple(named))
        if self.limits.imagined:
            names = self.state_names
            if unknown := set(self.limits.imagined) - set(names):
                known = ", ".join(names) or "none"
                raise ValueError(
                    f"limits: world {self.world.spec.name!r} predicts no states {sorted(unknown)} (it predicts {known})"
                )
        if self.detector is None and self.world.folder is not None:
            object.__setattr__(self, "detector", AnomalyDetector.load(self.world.folder, self.model.feature_size))
        object.__setattr__(self, "_encode_once", functools.lru_cache(maxsize=2 * WINDOW)(self._encode_frame))
        if self.max_uncertainty is None:
            threshold = float(getattr(self.model, "uncertainty_threshold", float("inf")))
            object.__setattr__(self, "max_uncertainty", threshold)

    @property
    def model(self) -> WorldModel:
        """Model that imagines."""
        return self.world.model

    @property
    def calibrated(self) -> bool:
        """True if frames can be compared with imagined ones."""
        return self.detector is not None

    # -- for the control loop

    def limit(self, action: Any, previous: np.ndarray | None, readings: Mapping[str, float] | None) -> np.ndarray:
        """Return the action ``(a,)`` that may really be sent: the nearest to ``action`` that keeps the limits of position, speed and
        change; see :func:`neuralsim.agents.safety.limits.keep_limits`.

        Raises ValueError where a limited reading is missing or not finite: a robot at an unknown place must stop."""
        self.limits.check_readings(readings)
        return keep_limits(self.world.spec, self.limits, action, previous, readings)

    def imagine(self, history: ObservationHistory, chunk: np.ndarray) -> ImaginedChunk:
        """Imagine ``chunk`` ``(k, a)``, within the limits, from the newest frame of ``history`` (one row) on."""
        if len(history) != 1:
            raise ValueError(f"imagine: expected one row, got {len(history)}")
        actions = self._as_sent(history, np.asarray(chunk))
        rollout, states = self.roll_out(history, actions[None])
        rows = states.map(lambda x: x[0])
        return ImaginedChunk(rollout, actions, Verdict.of(self._reasons_against(View(self.model, rows), rollout)))

    def compare(self, imagined: ImaginedChunk, step: int, history: ObservationHistory) -> Verdict:
        """Compare the newest frame of ``history`` (one row), seen after ``step`` actions of the chunk, with the imagined one.

        The frame before it, where ``history`` has one, separates a jump from slow growth, and shows a frozen camera."""
        last = len(imagined.actions)
        if len(history) != 1 or not 0 <= step <= last:
            raise ValueError(f"compare: expected one row and a step from 0 to {last}, got {len(history)} and {step}")
        if step == 0 or history.frames.shape[1] < 2:
            return self._compare_single(imagined, step, history)
        stepwise = self.detector is not None and self.detector.classifier is not None
        features, novelty, steps = self.observe(
            history, min(history.frames.shape[1], WINDOW + 1 if stepwise else 2), stepwise
        )
        unchanged = (history.frames[:, -1] == history.frames[:, -2]).all((1, 2, 3))[:, None]
        rollout, both = imagined.rollout, slice(step - 1, step + 1)
        observed = ObservedChunks(
            features[:, -2:],
            rollout.features[:, both],
            rollout.uncertainty[:, both],
            novelty[:, -2:],
            unchanged,
            steps,
        )
        return self._verdict(observed, step - 1)

    def _compare_single(self, imagined: ImaginedChunk, step: int, history: ObservationHistory) -> Verdict:
        """Compare a frame without the one before it: by its novelty, and its distance from the imagined one."""
        features, novelty = self.encode(history)
        reasons = self._novelty_reasons(float(novelty[0]))
        if step and self.detector is not None:
            drift, rollout = self.detector.drift, imagined.rollout
            far = drift.distance(
                (features - rollout.features[:, step])[:, None],
                rollout.uncertainty[:, step, None],
                np.array([step], np.int64),
            )
            reasons += [REASONS["drift"]] if far[0, 0] > drift.limit else []
        return Verdict.of(reasons)

    def _verdict(self, observed: ObservedChunks, first: int) -> Verdict:
        if self.detector is None:
            moved = np.abs(np.diff(observed.imagined, axis=1)).max() > 1  # in standard deviations of the data
            frozen = [REASONS["frozen"]] if observed.unchanged[0, 0] and moved else []
            return Verdict.of(self._novelty_reasons(float(observed.novelty[0, -1])) + frozen)
        scores, reasons = self.detector.scores(observed, first), []
        for name in AnomalyScores.NAMES:
            value, limit = float(getattr(scores, name)[0, -1]), self.detector.limit(name)
            if value > limit:
                reasons.append(f"{REASONS[name]} ({value:.3g}, limit {limit:.3g})")
        return Verdict.of(reasons)

    def _novelty_reasons(self, novelty: float) -> list[str]:
        limit = self.max_uncertainty if self.detector is None else self.detector.novelty
        assert limit is not None
        return [f"{REASONS['novelty']} ({novelty:.3g}, limit {limit:.3g})"] if novelty > limit else []

    # -- for calibration too

    @torch.inference_mode()
    def encode(self, history: ObservationHistory) -> tuple[np.ndarray, np.ndarray]:
        """Return features ``(b, d)`` of the newest frames, and the model's uncertainty about these frames ``(b,)``."""
        with inference(self.model.device, torch.float32):
            state = self._encode(history)
            return self.model.features(state).float().cpu().numpy(), self.model.uncertainty(state).float().cpu().numpy()

    def observe(
        self, history: ObservationHistory, last: int, stepwise: bool
    ) -> tuple[np.ndarray, np.ndarray, Transitions | None]:
        """Encode the ``last`` frames of ``history``.

        Returns features ``(b, last, d)``, the model's uncertainty about the frames ``(b, last)``, and, where ``stepwise``, the steps
        between them, each imagined from one frame and compared with the next."""
        frames, actions = history.frames, history.actions
        ends = range(frames.shape[1] - last + 1, frames.shape[1] + 1)
        with inference(self.model.device, torch.float32):
            if self.world.spec.context == 1 and len(frames) == 1:
                # On a robot: all frames but the newest were encoded for the last comparison.
                state = stack_time([self._encode_once(frame.tobytes()) for frame in frames[0, -last:]])
            else:
                state = stack_time(
                    [self._encode(ObservationHistory(frames[:, :end], actions[:, : end - 1])) for end in ends]
                )
            rows = state.map(lambda x: x.flatten(0, 1))
            features, novelty = (
                read(rows).float().cpu().numpy().reshape(len(frames), last, *tail)
                for read, tail in ((self.model.features, (-1,)), (self.model.uncertainty, ()))
            )
            done = actions[:, actions.shape[1] - (last - 1) :]
            unchanged = (frames[:, -last:][:, 1:] == frames[:, -last:][:, :-1]).all((2, 3, 4))
            steps = self._transitions(state, done, features, unchanged) if stepwise else None
        return features, novelty, steps

    def _encode_frame(self, frame: bytes) -> State:
        """Encode one frame alone."""
        spec = self.world.spec
        return self._encode(
            ObservationHistory.first(np.frombuffer(frame, np.uint8).reshape(1, *spec.frame_shape), spec)
        )

    def _transitions(
        self, state: State, actions: np.ndarray, features: np.ndarray, unchanged: np.ndarray
    ) -> Transitions:
        """Imagine the steps of ``actions`` ``(b, t - 1, a)`` between states ``(b, t, ...)``."""
        b, n = actions.shape[:2]
        flat = torch.tensor(np.ascontiguousarray(actions), device=self.model.device).flatten(0, 1)
        noise = Noise.from_seeds([self.seed] * (b * n), self.model.device)
        before = state.map(lambda x: x[:, :-1].flatten(0, 1))
        after = self.model.unroll_last(before, flat[:, None], noise)

        def array(tensor: torch.Tensor) -> np.ndarray:
            return tensor.float().cpu().numpy().reshape(b, -1, *tensor.shape[1:])

        states = array(self.model.read_state(state.map(lambda x: x.flatten(0, 1))))
        return Transitions(
            features=features[:, :-1],
            expected_features=array(self.model.features(after)),
            actions=array(encode_actions(self.world.spec, flat)),
            states=states[:, :-1],
            expected_states=array(self.model.read_state(after)),
            next_states=states[:, 1:],
            uncertainty=array(self.model.uncertainty(after)),
            unchanged=unchanged,
        )

    def roll_out(self, history: ObservationHistory, chunks: np.ndarray) -> tuple[ImaginedFeatures, Any]:
        """Imagine ``chunks`` ``(b, k, a)``; also return the states after each action, their tensors ``(b, k, ...)``."""
        actions = torch.tensor(self.world.spec.check_actions(chunks), device=self.model.device)
        noise = Noise.from_seeds([self.seed] * len(history), self.model.device)
        with inference(self.model.device, torch.float32):
            begin = self._encode(history)
            states: State = self.model.unroll(begin, actions, noise)
            each = [begin, *(states.index((slice(None), i)) for i in range(actions.shape[1]))]  # type: ignore[arg-type]
            features, uncertainty = (
                torch.stack([read(s).float() for s in each], 1).cpu().numpy()
                for read in (self.model.features, self.model.uncertainty)
            )
        return ImaginedFeatures(features, uncertainty), states

    def _encode(self, history: ObservationHistory) -> State:
        """Encode as much of ``history`` as the model reads."""
        frames = history.frames[:, -self.world.spec.context :]
        actions = history.actions[:, history.actions.shape[1] - (frames.shape[1] - 1) :]
        checked = self.world.spec.check_frames(frames), self.world.spec.check_actions(actions)
        return self.model.encode(
            *(torch.tensor(x, device=self.model.device) for x in checked)
        )  # copies: the store's are read-only

    # -- imagining

    def _as_sent(self, history: ObservationHistory, chunk: np.ndarray) -> np.ndarray:
        """Return ``chunk`` within the limits of speed, share and change; those of position need readings of the robot."""
        spec = self.world.spec
        if chunk.ndim != 2 or chunk.shape[1] != spec.action_size or not len(chunk):
            raise ValueError(f"imagine: expected actions (k, {spec.action_size}), k at least 1, got {chunk.shape}")
        sent, before = [], history.actions[0, -1] if history.actions.shape[1] else None
        for action in chunk:
            before = keep_limits(spec, self.limits.pace, action, before, None)
            sent.append(before)
        return np.stack(sent)

    def _reasons_against(self, view: View, rollout: ImaginedFeatures) -> list[str]:
        """List what speaks against a rollout whose steps are the rows of ``view``."""
        reasons: list[str] = []
        finite = np.isfinite(rollout.features[0, 1:]).all(1) & np.isfinite(rollout.uncertainty[0, 1:])
        if not finite.all():
            return [f"the imagined future fails after {_first(~finite)} actions: numbers that are not finite"]
        reasons += self._outside(view)
        for rule in self.rules:
            assert isinstance(rule, Rule)
            with view.inference():
                kept = rule.kept(view)
            if not kept.all():
                reasons.append(f"rule {rule.name!r} is broken after {_first(~kept)} actions")
        uncertainty = rollout.uncertainty[0, 1:]
        assert self.max_uncertainty is not None
        if (uncertainty > self.max_uncertainty).any():
            where = _first(uncertainty > self.max_uncertainty)
            values = f"uncertainty {uncertainty.max():.3g}, limit {self.max_uncertainty:.3g}"
            reasons.append(f"the model does not know what comes after {where} actions ({values})")
        return reasons

    def _outside(self, view: View) -> list[str]:
        if not self.limits.imagined:
            return []
        states, names = view.world_state.double().cpu().numpy(), self.state_names
        reasons = []
        for name, (low, high) in self.limits.imagined.items():
            values = states[:, names.index(name)]
            wrong = ~((values >= low) & (values <= high))
            if wrong.any():
                value = values[wrong][0]
                reasons.append(
                    f"{name} would be {value:.4g} after {_first(wrong)} actions, allowed {low:g} to {high:g}"
                )
        return reasons

    @property
    def state_names(self) -> list[str]:
        """Names of the states that the model predicts, in its order."""
        config: Mapping[str, Any] = self.model.config
        return list(config.get("state_names") or [])


def _first(wrong: np.ndarray) -> int:
    """Return the number of actions after which ``wrong`` is True for the first time."""
    return int(np.flatnonzero(wrong)[0]) + 1
