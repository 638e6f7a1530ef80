"""Safety: check before you act. What stands between a policy and a robot, and what each of its checks says.

A chunk of actions is dreamt first and refused if its future leaves the allowed region, breaks a rule of the user's, or is more
doubtful than the model's calibrated threshold allows. What is sent keeps hard limits, whatever was proposed. And while a chunk is
being done, what is seen is held against what was imagined.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from neuralsim.agents.heads.chunk_policy import ObservationHistory
from neuralsim.agents.safety.anomaly_detector import AnomalyDetector, AnomalyScores, Watched
from neuralsim.agents.safety.limits import Limits, keep_limits, pusht_limits
from neuralsim.agents.safety.transition_classifier import WINDOW, Transitions
from neuralsim.models.action_encoding import encode_actions
from neuralsim.noise import Noise
from neuralsim.pretrained.world import World
from neuralsim.runtime.device import inference
from neuralsim.state_view import View
from neuralsim.world_model import State, WorldModel, stack_time

__all__ = ["ImaginedChunk", "ImaginedFeatures", "Limits", "Rule", "SafetyMonitor", "Verdict", "pusht_limits"]

TOLD = {
    "grown": "what is seen has drifted from what was imagined",
    "jumped": "what is seen jumped away from what was imagined",
    "strange": "the frame is none that the model knows",
    "frozen": "the camera shows the same frame again, though something should have moved",
    "unlikely": "nothing moves as this was seen to",
}
"""What a person is told of each kind of Evidence."""


@dataclass(frozen=True)
class Verdict:
    """Whether something is allowed, and if not, why."""

    allowed: bool
    reasons: tuple[str, ...] = ()

    @classmethod
    def of(cls, reasons: Sequence[str]) -> Verdict:
        """Allowed where there is no reason against it."""
        return cls(not reasons, tuple(reasons))


@dataclass(frozen=True)
class Rule:
    """A rule of the user's: ``holds(view)`` says of each of the view's rows, dreamt one after the other, whether it is kept: bool
    ``(b,)``, an array, a tensor or a list. The View reads features, states, learned readings, and frames where it is asked to."""

    name: str
    holds: Callable[[View], Any]

    def kept(self, view: View) -> np.ndarray:
        """bool ``(b,)``; a ValueError where ``holds`` answers anything else."""
        said = self.holds(view)
        answer = said.cpu().numpy() if isinstance(said, torch.Tensor) else np.asarray(said)
        if answer.dtype != bool or answer.shape != (len(view),):
            raise ValueError(
                f"rule {self.name!r}: expected one bool for each of {len(view)} rows, got {answer.dtype} {answer.shape}"
            )
        return answer


@dataclass(frozen=True, eq=False)
class ImaginedFeatures:
    """Chunks as they were dreamt, from step 0 (the encoded frame) on: features ``(b, k + 1, d)`` and doubts ``(b, k + 1)``."""

    features: np.ndarray
    doubts: np.ndarray


@dataclass(frozen=True, eq=False)
class ImaginedChunk:
    """What was imagined of a chunk: the dream (one row), the actions ``(k, a)`` as they would be sent, and the verdict."""

    dream: ImaginedFeatures
    actions: np.ndarray
    verdict: Verdict


@dataclass(frozen=True)
class SafetyMonitor:
    """Stands between a policy and a robot. It keeps no memory: every answer is a function of what it is asked, so that several
    threads may ask it.

    world: whose model dreams (for Push-T the compact 'pusht-latent'). limits: the robot's. rules: :class:`Rule`, or functions of a
    View. mismatch: thresholds of what is seen against what was imagined; by default those in the world's folder ('neuralsim safety
    WORLD --calibrate' measures them); where there are none, only frames that the model does not know and cameras that stand still
    are noticed. uncertainty: the most doubt that a dream may have; by default the model's calibrated threshold.
    Raises ValueError for limits that do not fit the world.
    """

    world: World
    limits: Limits
    rules: Sequence[Rule | Callable[[View], Any]] = ()
    mismatch: AnomalyDetector | None = None
    uncertainty: float | None = None
    seed: int = 0
    _known: Callable[[bytes], State] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.limits.check(self.world.spec)
        named = [r if isinstance(r, Rule) else Rule(getattr(r, "__name__", repr(r)), r) for r in self.rules]
        object.__setattr__(self, "rules", tuple(named))
        if self.limits.imagined:
            names = self.state_names
            if unknown := set(self.limits.imagined) - set(names):
                told = ", ".join(names) or "none"
                raise ValueError(
                    f"limits: {sorted(unknown)} are no states that world {self.world.spec.name!r} tells ({told})"
                )
        if self.mismatch is None and self.world.folder is not None:
            object.__setattr__(self, "mismatch", AnomalyDetector.load(self.world.folder, self.model.feature_size))
        object.__setattr__(self, "_known", functools.lru_cache(maxsize=2 * WINDOW)(self._know))
        if self.uncertainty is None:
            threshold = float(getattr(self.model, "uncertainty_threshold", float("inf")))
            object.__setattr__(self, "uncertainty", threshold)

    @property
    def model(self) -> WorldModel:
        """The model that dreams."""
        return self.world.model

    @property
    def calibrated(self) -> bool:
        """Whether what is seen can be held against what was imagined."""
        return self.mismatch is not None

    # -- what the loop asks

    def limit(self, action: Any, previous: np.ndarray | None, place: Mapping[str, float] | None) -> np.ndarray:
        """The action ``(a,)`` that may really be sent: the nearest to ``action`` that keeps the limits of position (where the action
        is a displacement, by what it would do), speed and change. NaN, infinity and what is no action at all become rest. See
        :func:`neuralsim.agents.safety.limits.keep_limits`."""
        return keep_limits(self.world.spec, self.limits, action, previous, place)

    def imagine(self, seen: ObservationHistory, chunk: np.ndarray) -> ImaginedChunk:
        """Dream ``chunk`` ``(k, a)``, as the limits let it through, from the newest frame of ``seen`` (one row) on."""
        if len(seen) != 1:
            raise ValueError(f"imagine: expected one row, got {len(seen)}")
        actions = self._as_sent(seen, np.asarray(chunk))
        dream, states = self.dream(seen, actions[None])
        rows = states.map(lambda x: x[0])
        return ImaginedChunk(dream, actions, Verdict.of(self._against(View(self.model, rows), dream)))

    def compare(self, foresight: ImaginedChunk, step: int, seen: ObservationHistory) -> Verdict:
        """Whether the newest frame of ``seen`` (one row), seen after ``step`` actions of the chunk, is what was imagined.

        The frame before it, where ``seen`` has one, tells a jump from slow growth, and a frozen camera."""
        last = len(foresight.actions)
        if len(seen) != 1 or not 0 <= step <= last:
            raise ValueError(f"compare: expected one row and a step from 0 to {last}, got {len(seen)} and {step}")
        if step == 0 or seen.frames.shape[1] < 2:
            return self._alone(foresight, step, seen)
        witness = self.mismatch is not None and self.mismatch.witness is not None
        features, strange, steps = self.look(seen, min(seen.frames.shape[1], WINDOW + 1 if witness else 2), witness)
        same = (seen.frames[:, -1] == seen.frames[:, -2]).all((1, 2, 3))[:, None]
        dream, both = foresight.dream, slice(step - 1, step + 1)
        watched = Watched(
            features[:, -2:], dream.features[:, both], dream.doubts[:, both], strange[:, -2:], same, steps
        )
        return self._judge(watched, step - 1)

    def _alone(self, foresight: ImaginedChunk, step: int, seen: ObservationHistory) -> Verdict:
        """A frame without the one before it: how strange it is, and how far from what was imagined."""
        features, strange = self.encode(seen)
        reasons = self._unknown(float(strange[0]))
        if step and self.mismatch is not None:
            yard, dream = self.mismatch.grown, foresight.dream
            far = yard.distance(
                (features - dream.features[:, step])[:, None], dream.doubts[:, step, None], np.array([step])
            )
            reasons += [TOLD["grown"]] if far[0, 0] > yard.limit else []
        return Verdict.of(reasons)

    def _judge(self, watched: Watched, first: int) -> Verdict:
        if self.mismatch is None:
            moved = np.abs(np.diff(watched.imagined, axis=1)).max() > 1  # in standard deviations of the data
            frozen = [TOLD["frozen"]] if watched.same[0, 0] and moved else []
            return Verdict.of(self._unknown(float(watched.strange[0, -1])) + frozen)
        return Verdict.of(self._reasons(self.mismatch.evidence(watched, first)))

    def _reasons(self, evidence: AnomalyScores) -> list[str]:
        assert self.mismatch is not None
        told = []
        for name in AnomalyScores.NAMES:
            value, limit = float(getattr(evidence, name)[0, -1]), self.mismatch.limit(name)
            if value > limit:
                told.append(f"{TOLD[name]} ({value:.3g}, limit {limit:.3g})")
        return told

    def _unknown(self, strange: float) -> list[str]:
        limit = self.uncertainty if self.mismatch is None else self.mismatch.strange
        assert limit is not None
        return [f"{TOLD['strange']} ({strange:.3g}, limit {limit:.3g})"] if strange > limit else []

    # -- what calibration asks too

    @torch.inference_mode()
    def encode(self, seen: ObservationHistory) -> tuple[np.ndarray, np.ndarray]:
        """Features ``(b, d)`` of the newest frames, and how strange these frames are ``(b,)``."""
        with inference(self.model.device, torch.float32):
            state = self._encoded(seen)
            return self.model.features(state).float().cpu().numpy(), self.model.uncertainty(state).float().cpu().numpy()

    def look(
        self, seen: ObservationHistory, last: int, stepwise: bool
    ) -> tuple[np.ndarray, np.ndarray, Transitions | None]:
        """Of the ``last`` frames of ``seen``: features ``(b, last, d)``, how strange they are ``(b, last)``, and where ``stepwise`` the
        steps between them, each dreamt from the one frame and held against the next."""
        frames, actions = seen.frames, seen.actions
        ends = range(frames.shape[1] - last + 1, frames.shape[1] + 1)
        with inference(self.model.device, torch.float32):
            if (
                self.world.spec.context == 1 and len(frames) == 1
            ):  # while a robot is driven; it is asked again of all but the newest
                state = stack_time([self._known(frame.tobytes()) for frame in frames[0, -last:]])
            else:
                state = stack_time(
                    [self._encoded(ObservationHistory(frames[:, :end], actions[:, : end - 1])) for end in ends]
                )
            rows = state.map(lambda x: x.flatten(0, 1))
            features, strange = (
                read(rows).float().cpu().numpy().reshape(len(frames), last, *tail)
                for read, tail in ((self.model.features, (-1,)), (self.model.uncertainty, ()))
            )
            done = actions[:, actions.shape[1] - (last - 1) :]
            same = (frames[:, -last:][:, 1:] == frames[:, -last:][:, :-1]).all((2, 3, 4))
            steps = self._steps(state, done, features, same) if stepwise else None
        return features, strange, steps

    def _know(self, frame: bytes) -> State:
        """The state of one frame alone."""
        spec = self.world.spec
        return self._encoded(
            ObservationHistory.first(np.frombuffer(frame, np.uint8).reshape(1, *spec.frame_shape), spec)
        )

    def _steps(self, state: State, actions: np.ndarray, features: np.ndarray, same: np.ndarray) -> Transitions:
        """The steps of ``actions`` ``(b, t - 1, a)`` between states ``(b, t, ...)``."""
        b, n = actions.shape[:2]
        plan = torch.tensor(np.ascontiguousarray(actions), device=self.model.device).flatten(0, 1)
        noise = Noise.from_seeds([self.seed] * (b * n), self.model.device)
        before = state.map(lambda x: x[:, :-1].flatten(0, 1))
        after = self.model.unroll_last(before, plan[:, None], noise)

        def told(tensor: torch.Tensor) -> np.ndarray:
            return tensor.float().cpu().numpy().reshape(b, -1, *tensor.shape[1:])

        readings = told(self.model.read_state(state.map(lambda x: x.flatten(0, 1))))
        return Transitions(
            features[:, :-1],
            told(self.model.features(after)),
            told(encode_actions(self.world.spec, plan)),
            readings[:, :-1],
            told(self.model.read_state(after)),
            readings[:, 1:],
            told(self.model.uncertainty(after)),
            same,
        )

    def dream(self, seen: ObservationHistory, chunks: np.ndarray) -> tuple[ImaginedFeatures, Any]:
        """``chunks`` ``(b, k, a)`` as they are dreamt, and the states after each action, their tensors ``(b, k, ...)``."""
        plan = torch.tensor(self.world.spec.check_actions(chunks), device=self.model.device)
        noise = Noise.from_seeds([self.seed] * len(seen), self.model.device)
        with inference(self.model.device, torch.float32):
            begin = self._encoded(seen)
            states: State = self.model.unroll(begin, plan, noise)
            each = [begin, *(states.index((slice(None), i)) for i in range(plan.shape[1]))]  # type: ignore[arg-type]
            features, doubts = (
                torch.stack([read(s).float() for s in each], 1).cpu().numpy()
                for read in (self.model.features, self.model.uncertainty)
            )
        return ImaginedFeatures(features, doubts), states

    def _encoded(self, seen: ObservationHistory) -> State:
        """The model's state after ``seen``, of which it reads as much as its own context."""
        frames = seen.frames[:, -self.world.spec.context :]
        actions = seen.actions[:, seen.actions.shape[1] - (frames.shape[1] - 1) :]
        checked = self.world.spec.check_frames(frames), self.world.spec.check_actions(actions)
        return self.model.encode(
            *(torch.tensor(x, device=self.model.device) for x in checked)
        )  # the store's are read-only

    # -- imagining

    def _as_sent(self, seen: ObservationHistory, chunk: np.ndarray) -> np.ndarray:
        """``chunk`` with the limits of speed, share and change kept; those of position need a place, which is known on the robot."""
        spec = self.world.spec
        if chunk.ndim != 2 or chunk.shape[1] != spec.action_size or not len(chunk):
            raise ValueError(f"imagine: expected actions (k, {spec.action_size}), k at least 1, got {chunk.shape}")
        sent, before = [], seen.actions[0, -1] if seen.actions.shape[1] else None
        for action in chunk:
            before = keep_limits(spec, self.limits.pace, action, before, None)
            sent.append(before)
        return np.stack(sent)

    def _against(self, view: View, dream: ImaginedFeatures) -> list[str]:
        """What speaks against a dream whose steps are the rows of ``view``."""
        reasons: list[str] = []
        finite = np.isfinite(dream.features[0, 1:]).all(1) & np.isfinite(dream.doubts[0, 1:])
        if not finite.all():
            return [f"the dream fails after {_first(~finite)} actions: numbers that are not finite"]
        reasons += self._outside(view)
        for rule in self.rules:
            assert isinstance(rule, Rule)
            with view.inference():
                kept = rule.kept(view)
            if not kept.all():
                reasons.append(f"rule {rule.name!r} is broken after {_first(~kept)} actions")
        doubt = dream.doubts[0, 1:]
        assert self.uncertainty is not None
        if (doubt > self.uncertainty).any():
            where = _first(doubt > self.uncertainty)
            told = f"doubt {doubt.max():.3g}, limit {self.uncertainty:.3g}"
            reasons.append(f"the model does not know what comes after {where} actions ({told})")
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
        """The states that the model tells, in its order."""
        config: Mapping[str, Any] = self.model.config
        return list(config.get("state_names") or [])


def _first(wrong: np.ndarray) -> int:
    """After how many actions it is so for the first time."""
    return int(np.flatnonzero(wrong)[0]) + 1
