"""Witness: a small network that tells whether a thing can have moved as it was seen to move in one step.

How far a reading may be off what was expected of it depends on all that goes on: without a touch a block does not move at all, and
one that is jammed between pusher and wall may jump by more than its own width. No threshold fits both. So the odds are learned:
what was really seen after a step against the same with one of the things moved at random, or with nothing moved. The network's
output is then the log of how much likelier what is seen is under such a fault than without one. Two sums are held against limits:
of one step, and of the last few, for a small fault that stays shows in every frame.
Sources: classifiers tell likelihood ratios (Cranmer et al. 2015, arXiv 1506.02169); sums of them over time are Page's CUSUM (1954).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

WINDOW = 3
"""Steps that the longer of the two sums is over."""
CLIP = (-5.0, 8.0)
"""The least and most that one step counts in the longer sum: one outlier is none of its business."""
MOVED = (0.05, 0.6)
"""By how much things are moved at random, in standard deviations of their readings."""
RESTING = 0.1
"""Share of steps in which nothing moves that is learned from: there is little to learn."""
WIDTH, TRAINING, ROWS, PASSES = 128, 3000, 384, 40
"""Of the network; steps of its training at most, clean rows in each, and the most often that a row is learned from."""
RATE, DECAY = 3e-3, 0.03
FROZEN = "all"
"""The name of the fault in which nothing moved at all."""


@dataclass(frozen=True, eq=False)
class Transitions:
    """Single steps: the features ``before`` and those ``expected`` after ``actions`` ``(..., w)``, ``(..., d)`` each; the same as readings
    of the state, ``was``, ``would`` and ``seen`` (what was really seen then), ``(..., s)`` each; ``doubts`` ``(...)`` of the expected;
    ``same`` ``(...)``: whether the frame after it is the very frame before it."""

    before: np.ndarray
    expected: np.ndarray
    actions: np.ndarray
    was: np.ndarray
    would: np.ndarray
    seen: np.ndarray
    doubts: np.ndarray
    same: np.ndarray

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Self:
        """These with ``function`` applied to every array."""
        return type(self)(**{name: function(array) for name, array in vars(self).items()})

    def take(self, rows: np.ndarray) -> Self:
        """Those of ``rows``."""
        return self.map(lambda x: x[rows])

    @classmethod
    def join(cls, parts: Sequence[Self], axis: int = 0) -> Self:
        """All ``parts``, one after the other."""
        return cls(**{name: np.concatenate([vars(p)[name] for p in parts], axis) for name in vars(parts[0])})


@dataclass(frozen=True, eq=False)
class TransitionClassifier:
    """names: of the readings. spread ``(s,)``: their standard deviations. mean and scale: of the network's inputs; layers: its weights
    ``(i, o)`` and biases ``(o,)``, one output per fault (see ``faults``). limits ``(2, faults)``: what of the sums over one and over
    WINDOW steps is too much."""

    names: tuple[str, ...]
    spread: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    limits: np.ndarray

    @property
    def faults(self) -> tuple[str, ...]:
        """What may be wrong: a thing, whose readings are named alike (``block_x``, ``block_angle``), moved; or nothing did."""
        return (*_things(self.names), FROZEN)

    @classmethod
    def fit(
        cls, names: Sequence[str], steps: Transitions, seed: int = 0, tick: Callable[[int], None] | None = None
    ) -> Self:
        """From clean ``steps`` ``(n, ...)``; ``limits`` are still infinite. ``tick`` is told of training done, TRAINING in all."""
        rng = np.random.default_rng([seed, 5])
        moving = ~steps.same.astype(bool)
        steps = steps.take(np.flatnonzero(moving | (rng.random(len(moving)) < RESTING)))
        spread = np.where(_angles(names), 1.8, steps.seen.std(0)).clip(1e-6)
        nothing = np.zeros(0)
        bare = cls(tuple(names), spread, nothing, nothing, (), np.full((2, len(_things(names)) + 1), np.inf))
        inputs = bare._inputs(steps)
        mean, scale = inputs.mean(0), inputs.std(0) + 1e-3
        net = _network(inputs.shape[1], len(bare.faults), seed)
        optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=DECAY)
        training = min(TRAINING, max(100, PASSES * len(steps.doubts) // ROWS))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=training)
        with torch.inference_mode(False), torch.enable_grad():
            for done in range(training):
                clean = steps.take(rng.integers(len(steps.doubts), size=ROWS))
                shown = [clean, *(bare._faulty(clean, fault, rng) for fault in bare.faults)]
                said = net(torch.tensor(np.concatenate([(bare._inputs(s) - mean) / scale for s in shown])).float())
                parts = said.split(ROWS)
                loss = F.softplus(parts[0]).mean(0).sum()
                for k, part in enumerate(parts[1:]):
                    loss = loss + F.softplus(-part[:, k]).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                if tick:
                    tick(TRAINING * (done + 1) // training - TRAINING * done // training)
        linear = [layer for layer in net if isinstance(layer, nn.Linear)]
        layers = tuple((_short(one.weight.T), _short(one.bias)) for one in linear)
        return replace(bare, mean=_short(torch.tensor(mean)), scale=_short(torch.tensor(scale)), layers=layers)

    def odds(self, steps: Transitions) -> np.ndarray:
        """``(..., faults)``: the log odds of each fault in each of ``steps``."""
        x = (self._inputs(steps) - self.mean) / self.scale
        for k, (weight, bias) in enumerate(self.layers):
            x = (x / (1 + np.exp(-x.clip(-60, 60))) if k else x) @ weight + bias
        return x

    def sums(self, steps: Transitions) -> np.ndarray:
        """``(n, k, 2, faults)`` of ``steps`` ``(n, k, ...)`` that follow each other: the odds, and their sum over the last WINDOW. What was
        before the first counts as nothing wrong."""
        odds = self.odds(steps)
        some = odds.clip(*CLIP)
        before = np.full((len(some), WINDOW - 1, some.shape[2]), CLIP[0])
        long = np.concatenate([before, some], 1)
        return np.stack([odds, sum(long[:, i : i + some.shape[1]] for i in range(WINDOW))], 2)

    def check(self) -> None:
        """Raise a ValueError where these are no numbers of one witness."""
        size = len(self.mean)
        for weight, bias in self.layers:
            if weight.ndim != 2 or weight.shape != (size, len(bias)):
                raise ValueError(f"a layer of shape {weight.shape} on {size} numbers")
            size = len(bias)
        arrays = [self.spread, self.mean, self.scale, self.limits, *(a for layer in self.layers for a in layer)]
        if size != len(self.faults) or self.limits.shape != (2, size) or len(self.spread) != len(self.names):
            raise ValueError(f"a witness of {len(self.names)} readings that tells {size} things")
        if (
            not all(np.isfinite(a).all() for a in arrays)
            or self.scale.shape != self.mean.shape
            or not (self.scale > 0).all()
        ):
            raise ValueError("numbers that are not finite, or scales that are not above 0")

    def _inputs(self, steps: Transitions) -> np.ndarray:
        unit = self.spread / 100  # Push-T's: about a unit of the workspace, a degree of the angle
        off = self._between(steps.would, steps.seen) / unit
        moved = self._between(steps.was, steps.seen) / unit
        angles = _angles(self.names)
        sizes = [np.linalg.norm(off[..., list(places)], axis=-1) for places in _things(self.names).values()]
        seen = steps.seen
        told = [
            steps.before,
            steps.expected - steps.before,
            steps.actions,
            np.log(steps.doubts + 1e-3)[..., None],
            steps.same[..., None],
            np.arcsinh(off),
            np.arcsinh(moved),
            (seen / self.spread)[..., ~angles],
            np.cos(seen[..., angles]),
            np.sin(seen[..., angles]),
            np.log1p(np.stack(sizes, -1)),
        ]
        return np.concatenate(told, -1)

    def _between(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """``other`` - ``one``, the short way round for angles."""
        way = other.astype(np.float64) - one
        return np.where(_angles(self.names), (way + np.pi) % (2 * np.pi) - np.pi, way)

    def _faulty(self, steps: Transitions, fault: str, rng: np.random.Generator) -> Transitions:
        """``steps`` with ``fault``: a thing moved along a random direction of some of its readings, or nothing moved."""
        if fault == FROZEN:
            return replace(steps, seen=steps.was, same=np.ones_like(steps.same))
        places = list(_things(self.names)[fault])
        shape = (len(steps.doubts), len(places))
        some = rng.random(shape) < 0.5
        some[np.arange(len(some)), rng.integers(len(places), size=len(some))] = True
        way = rng.normal(size=shape) * some
        way /= np.linalg.norm(way, axis=1, keepdims=True).clip(1e-9)
        seen = steps.seen.astype(np.float64)
        seen[:, places] += way * rng.uniform(*MOVED, (shape[0], 1)) * self.spread[places]
        return replace(steps, seen=seen, same=np.zeros_like(steps.same))


def _things(names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Which readings belong to which thing: what stands before the last underscore names it."""
    found: dict[str, tuple[int, ...]] = {}
    for i, name in enumerate(names):
        thing = name.rsplit("_", 1)[0]
        found[thing] = (*found.get(thing, ()), i)
    return found


def _angles(names: Sequence[str]) -> np.ndarray:
    """Which readings are angles, by the rule of StateProbe."""
    return np.array([name.endswith("angle") for name in names], bool)


def _network(inputs: int, outputs: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(inputs, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, outputs)
        )


def _short(tensor: torch.Tensor) -> np.ndarray:
    """As many digits as the file keeps, so that what was calibrated is what is read back."""
    array = tensor.detach().double().numpy()
    return np.array([float(f"{v:.5g}") for v in array.ravel()]).reshape(array.shape)
