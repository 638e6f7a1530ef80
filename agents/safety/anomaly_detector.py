"""Mismatch: whether what is seen is what was imagined, by thresholds measured on held-out episodes.

At step k of a chunk the frame's features differ from the imagined ones by a residual. Two things are asked of it. Has it grown
beyond what it grows to anyway, in two frames in a row (a single outlier proves nothing)? And has it jumped since the frame before,
more than it ever does (another camera)? Both are distances in units of what is usual: whitened by the residuals' own covariance,
divided by the spread that is usual at that step and at that doubt of the model, for a dream of a touch is less sure than one of free
motion. Besides, a frame may be one that the model cannot redraw, or the very frame before though something should have moved.
Where the model tells true states, a Witness is sharper than any of these: it looks at single steps, dreamt from one frame seen to
the next, in which nothing adds up, and knows how sure the model is of which of them.
Sources: the idea of a whitened innovation is Mehra and Peschon, "An innovations approach to fault detection", 1971; spreads
that follow the doubt are locally weighted conformal prediction (Lei et al. 2018, arXiv 1604.04173).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np

from neuralsim.agents.safety.transition_classifier import TransitionClassifier, Transitions
from neuralsim.runtime.files import write_atomically
from neuralsim.storage.manifest import MANIFEST, SAFETY, WEIGHTS, FileEntry, read_object, seal

BINS = 6
"""Levels of doubt that have a spread of their own."""
TYPICAL = 0.9
"""The quantile that counts as the spread: tails are to be alike, not middles."""
ALARMS = 0.005
"""The share of clean chunks in which all Evidence together may raise an alarm: half of the one in a hundred that is wanted, since other
episodes than those it is measured on raise more."""
SHARES = {"grown": 0.1, "jumped": 0.1, "strange": 0.1, "sum": 1.0, "long sum": 0.25}
"""How alarms are split between kinds of Evidence, a Witness's sums over one and over several steps among them: the sharpest have most."""
SHRINKAGE = 0.05
"""How much of a covariance is its own diagonal: some directions of the features hardly vary."""


@dataclass(frozen=True, eq=False)
class NormalizedDistance:
    """A distance in units of what is usual. whiten ``(d, d)``; usual ``(k,)``: the spread by step, from step 1 on; doubt ``(k,)``: the
    median doubt by step; levels and spread ``(bins,)``: by how much the spread differs at so many times the median doubt; limit: the
    distance that is too far."""

    whiten: np.ndarray
    usual: np.ndarray
    doubt: np.ndarray
    levels: np.ndarray
    spread: np.ndarray
    limit: float

    @classmethod
    def fit(cls, residuals: np.ndarray, doubts: np.ndarray) -> Self:
        """From ``residuals`` ``(n, k, d)`` and ``doubts`` ``(n, k)`` of clean chunks; ``limit`` is still infinite."""
        size = np.sqrt(np.median(np.square(residuals).mean(2), 0)).clip(1e-9)
        even = (residuals / size[:, None]).reshape(-1, residuals.shape[2])
        # Tails are outliers' business: the covariance is that of the nine tenths that lie nearest.
        even = even[np.square(even).sum(1) <= np.quantile(np.square(even).sum(1), TYPICAL)]
        covariance = even.T @ even / max(len(even), 1)
        covariance = (
            (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance)) + 1e-9 * np.eye(len(covariance))
        )
        values, vectors = np.linalg.eigh(covariance)
        whiten = vectors / np.sqrt(values)
        plain = np.linalg.norm(residuals @ whiten, axis=2)
        usual = np.quantile(plain, TYPICAL, 0).clip(1e-9)
        middle = np.median(doubts, 0).clip(1e-9)
        ratio, share = (doubts / middle).ravel(), (plain / usual).ravel()
        ends = np.quantile(ratio, np.linspace(0, 1, BINS + 1))
        inside = [(ratio >= a) & (ratio <= b) for a, b in pairwise(ends)]
        inside = [rows for rows in inside if rows.any()]
        levels = np.array([np.median(ratio[i]) for i in inside])
        spread = np.maximum.accumulate([np.quantile(share[i], TYPICAL) for i in inside]).clip(1e-9)
        return cls(whiten, usual, middle, levels, spread, float("inf"))

    def distance(self, residuals: np.ndarray, doubts: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """``(n, k)`` of ``residuals`` ``(n, k, d)`` at ``steps`` ``(k,)`` of the chunk, counted from 1, dreamt with ``doubts`` ``(n, k)``.

        Beyond the steps that were measured spreads are taken to grow with the step."""
        at = np.minimum(steps, len(self.usual)) - 1
        later = np.maximum(steps / len(self.usual), 1.0)
        ratio = doubts / (self.doubt[at] * later)
        usual = self.usual[at] * later * np.interp(ratio, self.levels, self.spread)
        return np.linalg.norm(residuals @ self.whiten, axis=2) / usual


@dataclass(frozen=True, eq=False)
class AnomalyScores:
    """What speaks against frames at some steps of chunks, ``(n, k)`` each: how far the residual has grown, counted where it has in two
    frames in a row; by how much it has jumped; how strange the frame itself is; how far the imagined world has moved since the
    frame before, where the frame itself is that very frame (0 elsewhere); and by how much the odds of a fault, as the Witness tells
    them, pass what they may be."""

    grown: np.ndarray
    jumped: np.ndarray
    strange: np.ndarray
    frozen: np.ndarray
    unlikely: np.ndarray

    NAMES = ("grown", "jumped", "strange", "frozen", "unlikely")


@dataclass(frozen=True, eq=False)
class Watched:
    """What a model makes of chunks, from step 0 on: features ``seen`` and ``imagined`` ``(n, k + 1, d)``, ``doubts`` and ``strange``
    ``(n, k + 1)``; which frames are the very ones before, ``same`` ``(n, k)``; and single ``steps`` ``(n, h + k, ...)``, the first h of
    them before step 0; None where the model tells no states."""

    seen: np.ndarray
    imagined: np.ndarray
    doubts: np.ndarray
    strange: np.ndarray
    same: np.ndarray
    steps: Transitions | None = None

    def __len__(self) -> int:
        return len(self.seen)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """All ``parts``, one after the other."""
        steps = [p.steps for p in parts if p.steps is not None]

        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(p, name) for p in parts])

        return cls(
            joined("seen"),
            joined("imagined"),
            joined("doubts"),
            joined("strange"),
            joined("same"),
            Transitions.join(steps) if steps else None,
        )


@dataclass(frozen=True, eq=False)
class AnomalyDetector:
    """The calibration: two Yards, the most that a clean frame may be strange, the most that the imagined world moves while true
    frames stay the same to the bit, and a Witness where the model tells states. weights: SHA-256 of the model's file it was measured
    for; chunks: how many it was measured on."""

    grown: NormalizedDistance
    jumped: NormalizedDistance
    strange: float
    still: float
    chunks: int
    weights: str = ""
    witness: TransitionClassifier | None = None

    @classmethod
    def fit(
        cls,
        watched: Watched,
        kinds: np.ndarray | None = None,
        witness: TransitionClassifier | None = None,
        weights: str = "",
    ) -> Self:
        """From clean chunks, and a ``witness`` that learned from others. ``kinds`` ``(n,)``: where chunks are of several kinds (play,
        demonstrations), each kind alone is to raise no more than ALARMS."""
        if len(watched) < 2 or watched.seen.shape[1] < 2:
            raise ValueError(
                f"calibration: expected two chunks of a step or more, got {len(watched)} of {watched.seen.shape[1] - 1}"
            )
        kinds = np.zeros(len(watched), np.int64) if kinds is None else kinds
        residuals = (watched.seen - watched.imagined).astype(np.float64)
        doubts, inf = watched.doubts[:, 1:], float("inf")
        yards = (
            NormalizedDistance.fit(residuals[:, 1:], doubts),
            NormalizedDistance.fit(np.diff(residuals, axis=1), doubts),
        )
        bare = cls(*yards, inf, inf, len(watched), weights)
        found = bare.evidence(watched)
        worst = [x.max(1)[:, None] for x in (found.grown, found.jumped, found.strange)]
        shares = [SHARES[name] for name in ("grown", "jumped", "strange")]
        if witness is not None and watched.steps is not None:
            sums = witness.sums(watched.steps)[:, -found.grown.shape[1] :].max(1)
            worst.append(sums.reshape(len(sums), -1))
            shares += [SHARES[name] for name in ("sum", "long sum") for _ in witness.faults]
        limits = _limits(np.concatenate(worst, 1), np.array(shares), kinds)
        if witness is not None:
            witness = replace(witness, limits=limits[3:].reshape(witness.limits.shape))
        return cls(
            _limited(bare.grown, limits[0]),
            _limited(bare.jumped, limits[1]),
            max(limits[2], 1e-3),
            max(float(found.frozen.max()), 1e-3),
            len(watched),
            weights,
            witness,
        )

    def evidence(self, watched: Watched, first: int = 0) -> AnomalyScores:
        """Of frames at steps ``first`` + 1, ``first`` + 2, ... of chunks that were ``watched`` from step ``first`` on."""
        imagined, doubts = watched.imagined.astype(np.float64), watched.doubts
        residuals = watched.seen - imagined
        steps = first + np.arange(1, watched.seen.shape[1])
        far = self.grown.distance(residuals[:, 1:], doubts[:, 1:], steps)
        begin = self.grown.distance(residuals[:, :1], doubts[:, :1], np.array([first])) if first else 0 * far[:, :1]
        before = np.concatenate([begin, far[:, :-1]], 1)
        moved = self.jumped.distance(np.diff(imagined, axis=1), doubts[:, 1:], steps)
        unlikely = np.full_like(far, -np.inf)
        if self.witness is not None and watched.steps is not None:
            unlikely = (self.witness.sums(watched.steps) - self.witness.limits).max((2, 3))[:, -far.shape[1] :]
        return AnomalyScores(
            grown=np.minimum(far, before),
            jumped=self.jumped.distance(np.diff(residuals, axis=1), doubts[:, 1:], steps),
            strange=watched.strange[:, 1:].astype(np.float64),
            frozen=np.where(watched.same, moved, 0.0),
            unlikely=unlikely,
        )

    def limit(self, name: str) -> float:
        """What of the Evidence of that name is too much."""
        if name == "unlikely":
            return 0.0
        value = getattr(self, name if name != "frozen" else "still")
        return value.limit if isinstance(value, NormalizedDistance) else value

    def exceeded(self, evidence: AnomalyScores) -> np.ndarray:
        """``(n, k)``: whether any of it is too much."""
        return np.any([getattr(evidence, name) > self.limit(name) for name in AnomalyScores.NAMES], axis=0)

    # -- the file

    def save(self, folder: Path) -> Path:
        """Write ``safety.json`` into a world's folder, whole or not at all, and its manifest anew."""
        path = folder / SAFETY
        write_atomically(path, json.dumps(_plain(asdict(self))) + "\n")
        if (folder / MANIFEST).is_file():
            seal(folder)
        return path

    @classmethod
    def load(cls, folder: Path, feature_size: int) -> Self | None:
        """What ``safety.json`` in ``folder`` says; None where there is none, or where the weights are others by now. Raises ValueError
        for a file that is no calibration of a model with so many features."""
        path = folder / SAFETY
        if not path.is_file():
            return None
        body = read_object(path)
        remedy = f"measure it anew with 'neuralsim safety {folder} --calibrate'"
        if set(body) != {f.name for f in fields(cls)} or not isinstance(body["weights"], str):
            raise ValueError(f"{path}: not a calibration of this version; {remedy}")
        try:
            yards = {name: _yard(body[name], feature_size) for name in ("grown", "jumped")}
            strange, still, chunks = float(body["strange"]), float(body["still"]), int(body["chunks"])
            witness = None if body["witness"] is None else _witness(body["witness"], feature_size)
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"{path}: not a calibration ({error}); {remedy}") from error
        if not (np.isfinite([strange, still]).all() and min(strange, still) > 0):
            raise ValueError(f"{path}: expected limits above 0, got {strange} and {still}; {remedy}")
        if body["weights"] != fingerprint(folder):
            return None
        return cls(yards["grown"], yards["jumped"], strange, still, chunks, body["weights"], witness)


def fingerprint(folder: Path | None) -> str:
    """SHA-256 of a world's weights; empty where they lie in no folder."""
    return FileEntry.of(folder / WEIGHTS).sha256 if folder is not None and (folder / WEIGHTS).is_file() else ""


def _limited(yard: NormalizedDistance, limit: float) -> NormalizedDistance:
    return NormalizedDistance(yard.whiten, yard.usual, yard.doubt, yard.levels, yard.spread, limit)


def _limits(worst: np.ndarray, shares: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """``(m,)`` limits of what in each chunk was the worst, ``(n, m)``: as low as they may be for ALARMS of the chunks of no kind to pass
    any of them. Single columns are passed in proportion to ``shares`` ``(m,)``."""
    each = [worst[kinds == kind] for kind in np.unique(kinds)]
    low, high = 0.0, ALARMS
    for _ in range(30):  # chunks that pass one limit often pass another too, so that no sum tells how many pass any
        middle = (low + high) / 2
        found = _passed_by(each, middle * shares)
        if max((rows > found).any(1).mean() for rows in each) <= ALARMS:
            low = middle
        else:
            high = middle
    return _passed_by(each, low * shares)


def _passed_by(each: Sequence[np.ndarray], shares: np.ndarray) -> np.ndarray:
    """``(m,)``: what no more than ``shares`` ``(m,)`` of the rows pass, of any of the arrays ``(n, m)``."""
    quantiles = [
        [np.quantile(column, 1 - share) for column, share in zip(rows.T, shares, strict=True)] for rows in each
    ]
    return np.array(quantiles).max(0)


def _plain(value: Any) -> Any:
    """Arrays as lists of numbers with as many digits as count."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (np.ndarray, list, tuple)):
        return [_plain(v) for v in value]
    return float(f"{value:.7g}") if isinstance(value, (float, np.floating)) else value


def _yard(body: Mapping[str, Any], feature_size: int) -> NormalizedDistance:
    arrays = {k: np.array(body[k], np.float64) for k in ("whiten", "usual", "doubt", "levels", "spread")}
    whiten, usual, limit = arrays["whiten"], arrays["usual"], float(body["limit"])
    if whiten.shape != (feature_size, feature_size):
        raise ValueError(f"expected whiten of shape {(feature_size, feature_size)}, got {whiten.shape}")
    if (
        usual.ndim != 1
        or not len(usual)
        or usual.shape != arrays["doubt"].shape
        or arrays["levels"].shape != arrays["spread"].shape
    ):
        raise ValueError("spreads of unequal length")
    if not all(np.isfinite(a).all() for a in arrays.values()) or not np.isfinite(limit) or limit <= 0:
        raise ValueError("numbers that are not finite, or a limit that is not above 0")
    if min(usual.min(), arrays["doubt"].min(), arrays["spread"].min()) <= 0 or (np.diff(arrays["levels"]) < 0).any():
        raise ValueError("spreads that are not above 0, or levels out of order")
    return NormalizedDistance(**arrays, limit=limit)


def _witness(body: Mapping[str, Any], feature_size: int) -> TransitionClassifier:
    arrays = {k: np.array(body[k], np.float64) for k in ("spread", "mean", "scale", "limits")}
    layers = tuple((np.array(w, np.float64), np.array(b, np.float64)) for w, b in body["layers"])
    names = tuple(str(name) for name in body["names"])
    witness = TransitionClassifier(names, arrays["spread"], arrays["mean"], arrays["scale"], layers, arrays["limits"])
    if len(witness.mean) <= 2 * feature_size:
        raise ValueError(f"a witness of {len(witness.mean)} numbers, for {feature_size} features")
    witness.check()
    return witness
