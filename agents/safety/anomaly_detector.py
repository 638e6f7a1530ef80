"""AnomalyDetector: compares what is seen with what was imagined, by thresholds measured on held-out episodes.

At step k of a chunk the frame's features differ from the imagined ones by a residual, of which two scores are made. *Drift*: has it
grown beyond its usual size, in two frames in a row (a single outlier proves nothing)? *Jump*: has it changed since the frame before
more than it ever does (another camera)? Both are distances in units of the usual: whitened by the residuals' own covariance, divided
by the usual spread at that step and at that uncertainty of the model, for an imagined touch is less sure than free motion. Besides, a
frame may be one that the model cannot redraw (*novelty*), or equal to the frame before though something should have moved (*frozen*).
Where the model predicts simulator states, a TransitionClassifier is sharper than any of these: it looks at single steps, imagined from
one observed frame to the next, and knows how sure the model is of each of them.
Sources: the idea of a whitened innovation is Mehra and Peschon, "An innovations approach to fault detection", 1971; spreads
that follow the uncertainty are locally weighted conformal prediction (Lei et al. 2018, arXiv 1604.04173).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np

from neuralsim.agents.safety.transition_classifier import TransitionClassifier, Transitions
from neuralsim.runtime.files import write_atomically
from neuralsim.runtime.json_files import read_object
from neuralsim.storage.manifest import MANIFEST, SAFETY, WEIGHTS, FileEntry, seal

BINS = 6
"""Levels of uncertainty that have a spread of their own."""
TYPICAL = 0.9
"""Quantile that counts as the spread: tails are to be alike, not middles."""
ALARMS = 0.005
"""Share of clean chunks in which all scores together may raise an alarm: half of the one in a hundred that is wanted, since other
episodes than those it is measured on raise more."""
SHARES = {"drift": 0.1, "jump": 0.1, "novelty": 0.1, "sum": 1.0, "long sum": 0.25}
"""Shares of the alarms by score, the classifier's sums over one and over several steps among them: the sharpest have most."""
SHRINKAGE = 0.05
"""Weight of a covariance's own diagonal: some directions of the features hardly vary."""
RECORDED_AS = {"drift": "grown", "jump": "jumped", "novelty": "strange", "frozen": "frozen", "transition": "unlikely"}
"""Names of the scores in reports and results logs."""
KEYS = ("grown", "jumped", "strange", "still", "chunks", "weights", "witness")
"""Keys of safety.json."""


@dataclass(frozen=True, eq=False)
class NormalizedDistance:
    """Distance in units of the usual."""

    whiten: np.ndarray
    """``(d, d)``."""
    usual: np.ndarray
    """``(k,)``: spread by step, from step 1 on."""
    uncertainty: np.ndarray
    """``(k,)``: median uncertainty by step."""
    levels: np.ndarray
    """``(bins,)``: multiples of the median uncertainty."""
    spread: np.ndarray
    """``(bins,)``: factor of the spread at these levels."""
    limit: float
    """Alarm threshold."""

    @classmethod
    def fit(cls, residuals: np.ndarray, uncertainty: np.ndarray) -> Self:
        """Fit to ``residuals`` ``(n, k, d)`` and ``uncertainty`` ``(n, k)`` of clean chunks; ``limit`` is still infinite."""
        size = np.sqrt(np.median(np.square(residuals).mean(2), 0)).clip(1e-9)
        even = (residuals / size[:, None]).reshape(-1, residuals.shape[2])
        # Outliers belong to the tails: the covariance is that of the nine tenths that lie nearest.
        even = even[np.square(even).sum(1) <= np.quantile(np.square(even).sum(1), TYPICAL)]
        covariance = even.T @ even / max(len(even), 1)
        covariance = (
            (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance)) + 1e-9 * np.eye(len(covariance))
        )
        values, vectors = np.linalg.eigh(covariance)
        whiten = vectors / np.sqrt(values)
        plain = np.linalg.norm(residuals @ whiten, axis=2)
        usual = np.quantile(plain, TYPICAL, 0).clip(1e-9)
        middle = np.median(uncertainty, 0).clip(1e-9)
        ratio, share = (uncertainty / middle).ravel(), (plain / usual).ravel()
        ends = np.quantile(ratio, np.linspace(0, 1, BINS + 1))
        inside = [(ratio >= a) & (ratio <= b) for a, b in pairwise(ends)]
        inside = [rows for rows in inside if rows.any()]
        levels = np.array([np.median(ratio[i]) for i in inside], np.float64)
        spread = np.maximum.accumulate([np.quantile(share[i], TYPICAL) for i in inside]).clip(1e-9)
        return cls(whiten, usual, middle, levels, spread, float("inf"))

    def distance(self, residuals: np.ndarray, uncertainty: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Return distances ``(n, k)`` of ``residuals`` ``(n, k, d)`` at ``steps`` ``(k,)`` of the chunk, counted from 1, that were
        imagined with ``uncertainty`` ``(n, k)``.

        Beyond the steps that were measured spreads are taken to grow with the step."""
        at = np.minimum(steps, len(self.usual)) - 1
        later = np.maximum(steps / len(self.usual), 1.0)
        ratio = uncertainty / (self.uncertainty[at] * later)
        usual = self.usual[at] * later * np.interp(ratio, self.levels, self.spread)
        return np.linalg.norm(residuals @ self.whiten, axis=2) / usual

    def to_json(self) -> dict[str, Any]:
        """Return the entry of safety.json."""
        return {
            "whiten": self.whiten,
            "usual": self.usual,
            "doubt": self.uncertainty,
            "levels": self.levels,
            "spread": self.spread,
            "limit": self.limit,
        }

    @classmethod
    def of_json(cls, body: Mapping[str, Any], feature_size: int) -> Self:
        """Read an entry of safety.json; the inverse of ``to_json``."""
        keys = ("whiten", "usual", "doubt", "levels", "spread")
        whiten, usual, uncertainty, levels, spread = (np.array(body[key], np.float64) for key in keys)
        limit = float(body["limit"])
        if whiten.shape != (feature_size, feature_size):
            raise ValueError(f"expected whiten of shape {(feature_size, feature_size)}, got {whiten.shape}")
        if usual.ndim != 1 or not len(usual) or usual.shape != uncertainty.shape or levels.shape != spread.shape:
            raise ValueError("spreads of unequal length")
        finite = all(np.isfinite(a).all() for a in (whiten, usual, uncertainty, levels, spread))
        if not finite or not np.isfinite(limit) or limit <= 0:
            raise ValueError("numbers that are not finite, or a limit that is not above 0")
        if min(usual.min(), uncertainty.min(), spread.min()) <= 0 or (np.diff(levels) < 0).any():
            raise ValueError("spreads that are not above 0, or levels out of order")
        return cls(whiten, usual, uncertainty, levels, spread, limit)


@dataclass(frozen=True, eq=False)
class AnomalyScores:
    """Anomaly scores of frames at some steps of chunks, ``(n, k)`` each."""

    drift: np.ndarray
    """Size of the residual, counted where it is large in two frames in a row."""
    jump: np.ndarray
    """Change of the residual since the frame before."""
    novelty: np.ndarray
    """Uncertainty of the model about the frame itself."""
    frozen: np.ndarray
    """Motion of the imagined world since the frame before, where the frame itself is unchanged; 0 elsewhere."""
    transition: np.ndarray
    """Excess of the classifier's log odds of a fault over their limits."""

    NAMES = ("drift", "jump", "novelty", "frozen", "transition")


@dataclass(frozen=True, eq=False)
class ObservedChunks:
    """Chunks as they were seen and as they were imagined, from step 0 on."""

    features: np.ndarray
    """Seen, ``(n, k + 1, d)``."""
    imagined: np.ndarray
    """Features imagined, ``(n, k + 1, d)``."""
    uncertainty: np.ndarray
    """Of the imagined, ``(n, k + 1)``."""
    novelty: np.ndarray
    """Uncertainty of the model about the frames themselves, ``(n, k + 1)``."""
    unchanged: np.ndarray
    """``(n, k)``, True where a frame equals the one before."""
    transitions: Transitions | None = None
    """Single steps ``(n, h + k, ...)``, the first h of them before step 0; None where the model predicts no states."""

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Concatenate ``parts``."""
        transitions = [p.transitions for p in parts if p.transitions is not None]

        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(p, name) for p in parts])

        return cls(
            joined("features"),
            joined("imagined"),
            joined("uncertainty"),
            joined("novelty"),
            joined("unchanged"),
            Transitions.join(transitions) if transitions else None,
        )


@dataclass(frozen=True, eq=False)
class AnomalyDetector:
    """Calibrated thresholds."""

    drift: NormalizedDistance
    jump: NormalizedDistance
    novelty: float
    """Largest uncertainty about a clean frame."""
    frozen: float
    """Largest motion of the imagined world while real frames stay the same to the bit."""
    chunks: int
    """Number of chunks that were measured."""
    weights: str = ""
    """SHA-256 of the model's weights."""
    classifier: TransitionClassifier | None = None
    """None where the model predicts no states."""

    @classmethod
    def fit(
        cls,
        observed: ObservedChunks,
        kinds: np.ndarray | None = None,
        classifier: TransitionClassifier | None = None,
        weights: str = "",
    ) -> Self:
        """Measure thresholds on clean chunks.

        Args:
            observed: the chunks.
            kinds: ``(n,)``; where chunks are of several kinds (play, demonstrations), each kind alone may raise no more than ALARMS.
            classifier: trained on other chunks.
            weights: SHA-256 of the model's weights.
        """
        if len(observed) < 2 or observed.features.shape[1] < 2:
            raise ValueError(
                f"calibration: expected two chunks of a step or more, got {len(observed)} of {observed.features.shape[1] - 1}"
            )
        kinds = np.zeros(len(observed), np.int64) if kinds is None else kinds
        residuals = (observed.features - observed.imagined).astype(np.float64)
        uncertainty, inf = observed.uncertainty[:, 1:], float("inf")
        distances = (
            NormalizedDistance.fit(residuals[:, 1:], uncertainty),
            NormalizedDistance.fit(np.diff(residuals, axis=1), uncertainty),
        )
        bare = cls(*distances, inf, inf, len(observed), weights)
        scores = bare.scores(observed)
        worst = [x.max(1)[:, None] for x in (scores.drift, scores.jump, scores.novelty)]
        shares = [SHARES[name] for name in ("drift", "jump", "novelty")]
        if classifier is not None and observed.transitions is not None:
            sums = classifier.sums(observed.transitions)[:, -scores.drift.shape[1] :].max(1)
            worst.append(sums.reshape(len(sums), -1))
            shares += [SHARES[name] for name in ("sum", "long sum") for _ in classifier.faults]
        limits = _limits(np.concatenate(worst, 1), np.array(shares, np.float64), kinds)
        if classifier is not None:
            classifier = replace(classifier, limits=limits[3:].reshape(classifier.limits.shape))
        return cls(
            replace(bare.drift, limit=limits[0]),
            replace(bare.jump, limit=limits[1]),
            max(limits[2], 1e-3),
            max(float(scores.frozen.max()), 1e-3),
            len(observed),
            weights,
            classifier,
        )

    def scores(self, observed: ObservedChunks, first: int = 0) -> AnomalyScores:
        """Score frames at steps ``first`` + 1, ``first`` + 2, ... of chunks that were ``observed`` from step ``first`` on."""
        imagined, uncertainty = observed.imagined.astype(np.float64), observed.uncertainty
        residuals = observed.features - imagined
        steps = first + np.arange(1, observed.features.shape[1])
        far = self.drift.distance(residuals[:, 1:], uncertainty[:, 1:], steps)
        begin = (
            self.drift.distance(residuals[:, :1], uncertainty[:, :1], np.array([first], np.int64))
            if first
            else 0 * far[:, :1]
        )
        before = np.concatenate([begin, far[:, :-1]], 1)
        moved = self.jump.distance(np.diff(imagined, axis=1), uncertainty[:, 1:], steps)
        transition = np.full_like(far, -np.inf)
        if self.classifier is not None and observed.transitions is not None:
            excess = self.classifier.sums(observed.transitions) - self.classifier.limits
            transition = excess.max((2, 3))[:, -far.shape[1] :]
        return AnomalyScores(
            drift=np.minimum(far, before),
            jump=self.jump.distance(np.diff(residuals, axis=1), uncertainty[:, 1:], steps),
            novelty=observed.novelty[:, 1:].astype(np.float64),
            frozen=np.where(observed.unchanged, moved, 0.0),
            transition=transition,
        )

    def limit(self, name: str) -> float:
        """Return the alarm threshold of the score ``name``."""
        if name == "transition":
            return 0.0
        value = getattr(self, name)
        return value.limit if isinstance(value, NormalizedDistance) else value

    def exceeded(self, scores: AnomalyScores) -> np.ndarray:
        """Return bool ``(n, k)``, True where any score is above its threshold."""
        return np.any([getattr(scores, name) > self.limit(name) for name in AnomalyScores.NAMES], axis=0)

    # -- the file

    def save(self, folder: Path) -> Path:
        """Write ``safety.json`` into a world's folder, whole or not at all, and update its manifest."""
        path = folder / SAFETY
        classifier = None if self.classifier is None else vars(self.classifier)
        values = (
            self.drift.to_json(),
            self.jump.to_json(),
            self.novelty,
            self.frozen,
            self.chunks,
            self.weights,
            classifier,
        )
        write_atomically(path, json.dumps(_plain(dict(zip(KEYS, values, strict=True)))) + "\n")
        if (folder / MANIFEST).is_file():
            seal(folder)
        return path

    @classmethod
    def load(cls, folder: Path, feature_size: int) -> Self | None:
        """Read ``safety.json`` in ``folder``; None where there is none, or where the weights have changed since.

        Raises ValueError for a file that is no calibration of a model with ``feature_size`` features."""
        path = folder / SAFETY
        if not path.is_file():
            return None
        body = read_object(path)
        remedy = f"measure it again with 'neuralsim safety {folder} --calibrate'"
        if set(body) != set(KEYS) or not isinstance(body["weights"], str):
            raise ValueError(f"{path}: not a calibration of this version; {remedy}")
        try:
            drift, jump = (NormalizedDistance.of_json(body[name], feature_size) for name in ("grown", "jumped"))
            novelty, frozen, chunks = float(body["strange"]), float(body["still"]), int(body["chunks"])
            classifier = None if body["witness"] is None else _classifier(body["witness"], feature_size)
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise ValueError(f"{path}: not a calibration ({error}); {remedy}") from error
        if not (np.isfinite([novelty, frozen]).all() and min(novelty, frozen) > 0):
            raise ValueError(f"{path}: expected limits above 0, got {novelty} and {frozen}; {remedy}")
        if body["weights"] != weights_digest(folder):
            return None
        return cls(drift, jump, novelty, frozen, chunks, body["weights"], classifier)


def weights_digest(folder: Path | None) -> str:
    """Return the SHA-256 of a world's weights; empty where they lie in no folder."""
    return FileEntry.of(folder / WEIGHTS).sha256 if folder is not None and (folder / WEIGHTS).is_file() else ""


def _limits(worst: np.ndarray, shares: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Return limits ``(m,)`` of the largest scores of each chunk, ``(n, m)``: as low as possible for no more than ALARMS of the
    chunks of any kind to exceed any of them. Single columns are exceeded in proportion to ``shares`` ``(m,)``."""
    each = [worst[kinds == kind] for kind in np.unique(kinds)]
    low, high = 0.0, ALARMS
    for _ in range(30):  # chunks that exceed one limit often exceed another too, so that no sum gives the share of any
        middle = (low + high) / 2
        found = _exceeded_by(each, middle * shares)
        if max((rows > found).any(1).mean() for rows in each) <= ALARMS:
            low = middle
        else:
            high = middle
    return _exceeded_by(each, low * shares)


def _exceeded_by(each: Sequence[np.ndarray], shares: np.ndarray) -> np.ndarray:
    """Return the values ``(m,)`` that no more than ``shares`` ``(m,)`` of the rows exceed, of any of the arrays ``(n, m)``."""
    quantiles = [
        [np.quantile(column, 1 - share) for column, share in zip(rows.T, shares, strict=True)] for rows in each
    ]
    return np.array(quantiles, np.float64).max(0)


def _plain(value: Any) -> Any:
    """Return arrays as lists of numbers with seven digits."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (np.ndarray, list, tuple)):
        return [_plain(v) for v in value]
    return float(f"{value:.7g}") if isinstance(value, (float, np.floating)) else value


def _classifier(body: Mapping[str, Any], feature_size: int) -> TransitionClassifier:
    arrays = {k: np.array(body[k], np.float64) for k in ("spread", "mean", "scale", "limits")}
    layers = tuple((np.array(w, np.float64), np.array(b, np.float64)) for w, b in body["layers"])
    names = tuple(str(name) for name in body["names"])
    found = TransitionClassifier(names, arrays["spread"], arrays["mean"], arrays["scale"], layers, arrays["limits"])
    if len(found.mean) <= 2 * feature_size:
        raise ValueError(f"a classifier of {len(found.mean)} numbers, for {feature_size} features")
    found.check()
    return found
