"""TransitionClassifier: a small network that detects objects that cannot have moved as they were seen to move in one step.

The usual error of an expected state depends on the situation: without a touch a block does not move at all, and one that is jammed
between pusher and wall may jump by more than its own width. No threshold fits both. So log odds are learned: of what was really seen
after a step against the same with one object moved at random, or with nothing moved. Two sums of them are compared with limits: over
one step, and over the last few, for a small fault that stays shows in every frame.
Sources: classifiers give likelihood ratios (Cranmer et al. 2015, arXiv 1506.02169); sums of them over time are Page's CUSUM (1954).
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
"""Steps of the longer of the two sums."""
CLIP = (-5.0, 8.0)
"""Least and most that one step counts in the longer sum: a single outlier is not its subject."""
MOVED = (0.05, 0.6)
"""Range of random motions of objects, in standard deviations of their states."""
RESTING = 0.1
"""Share of the steps without motion that is learned from: there is little to learn."""
WIDTH, TRAINING, ROWS, PASSES = 128, 3000, 384, 40
"""Width of the network; most steps of its training, clean rows in each, and most uses of a row."""
RATE, DECAY = 3e-3, 0.03
FROZEN = "all"
"""Name of the fault in which nothing moved at all."""


@dataclass(frozen=True, eq=False)
class Transitions:
    """Single steps. All states are estimates ``(..., s)``, all features ``(..., d)``."""

    features: np.ndarray
    """Before the step."""
    expected_features: np.ndarray
    """Predicted after it."""
    actions: np.ndarray
    """``(..., w)``."""
    states: np.ndarray
    """Before the step."""
    expected_states: np.ndarray
    """Predicted after it."""
    next_states: np.ndarray
    """Seen after it."""
    uncertainty: np.ndarray
    """``(...)``, of the prediction."""
    unchanged: np.ndarray
    """``(...)``, True where the frame after the step equals the frame before it."""

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Self:
        """Apply ``function`` to every array."""
        return type(self)(**{name: function(array) for name, array in vars(self).items()})

    def take(self, rows: np.ndarray) -> Self:
        """Return those of ``rows``."""
        return self.map(lambda x: x[rows])

    @classmethod
    def join(cls, parts: Sequence[Self], axis: int = 0) -> Self:
        """Concatenate ``parts``."""
        return cls(**{name: np.concatenate([vars(p)[name] for p in parts], axis) for name in vars(parts[0])})


@dataclass(frozen=True, eq=False)
class TransitionClassifier:
    """The network's numbers; one output per fault (see ``faults``)."""

    names: tuple[str, ...]
    """Names of the states."""
    spread: np.ndarray
    """``(s,)``, their standard deviations."""
    mean: np.ndarray
    """Of the network's inputs."""
    scale: np.ndarray
    """Standard deviations of the inputs."""
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    """Weights ``(i, o)`` and biases ``(o,)``."""
    limits: np.ndarray
    """``(2, faults)``: alarm thresholds of the sums over one and over WINDOW steps."""

    @property
    def faults(self) -> tuple[str, ...]:
        """Possible faults: an object, whose states share a name (``block_x``, ``block_angle``), moved; or nothing did."""
        return (*_objects(self.names), FROZEN)

    @classmethod
    def fit(
        cls, names: Sequence[str], steps: Transitions, seed: int = 0, tick: Callable[[int], None] | None = None
    ) -> Self:
        """Train on clean ``steps`` ``(n, ...)``; ``limits`` are still infinite. ``tick`` receives training done, TRAINING in all."""
        rng = np.random.default_rng([seed, 5])
        moving = ~steps.unchanged.astype(bool)
        steps = steps.take(np.flatnonzero(moving | (rng.random(len(moving)) < RESTING)))
        spread = np.where(_angles(names), 1.8, steps.next_states.std(0)).clip(1e-6)
        nothing = np.zeros(0, np.float64)
        bare = cls(tuple(names), spread, nothing, nothing, (), np.full((2, len(_objects(names)) + 1), np.inf))
        inputs = bare._inputs(steps)
        mean, scale = inputs.mean(0), inputs.std(0) + 1e-3
        net = _network(inputs.shape[1], len(bare.faults), seed)
        optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=DECAY)
        training = min(TRAINING, max(100, PASSES * len(steps.uncertainty) // ROWS))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=training)
        with torch.inference_mode(False), torch.enable_grad():
            for done in range(training):
                clean = steps.take(rng.integers(len(steps.uncertainty), size=ROWS))
                batch = [clean, *(bare._faulty(clean, fault, rng) for fault in bare.faults)]
                rows = np.concatenate([(bare._inputs(part) - mean) / scale for part in batch])
                parts = net(torch.tensor(rows, dtype=torch.float32)).split(ROWS)
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
        return replace(
            bare,
            mean=_short(torch.tensor(mean, dtype=torch.float64)),
            scale=_short(torch.tensor(scale, dtype=torch.float64)),
            layers=layers,
        )

    def odds(self, steps: Transitions) -> np.ndarray:
        """Return the log odds ``(..., faults)`` of each fault in each of ``steps``."""
        x = (self._inputs(steps) - self.mean) / self.scale
        for k, (weight, bias) in enumerate(self.layers):
            x = (x / (1 + np.exp(-x.clip(-60, 60))) if k else x) @ weight + bias
        return x

    def sums(self, steps: Transitions) -> np.ndarray:
        """Return log odds, and their sums over the last WINDOW steps, ``(n, k, 2, faults)``, of consecutive ``steps`` ``(n, k, ...)``.

        Steps before the first count as clean.
        """
        odds = self.odds(steps)
        clipped = odds.clip(*CLIP)
        before = np.full((len(clipped), WINDOW - 1, clipped.shape[2]), CLIP[0])
        long = np.concatenate([before, clipped], 1)
        return np.stack([odds, sum(long[:, i : i + clipped.shape[1]] for i in range(WINDOW))], 2)

    def check(self) -> None:
        """Raise ValueError where the arrays do not fit each other, or hold numbers that are not finite."""
        size = len(self.mean)
        for weight, bias in self.layers:
            if weight.ndim != 2 or weight.shape != (size, len(bias)):
                raise ValueError(f"a layer of shape {weight.shape} on {size} numbers")
            size = len(bias)
        arrays = [self.spread, self.mean, self.scale, self.limits, *(a for layer in self.layers for a in layer)]
        if size != len(self.faults) or self.limits.shape != (2, size) or len(self.spread) != len(self.names):
            raise ValueError(f"a classifier of {len(self.names)} states with {size} outputs")
        if (
            not all(np.isfinite(a).all() for a in arrays)
            or self.scale.shape != self.mean.shape
            or not (self.scale > 0).all()
        ):
            raise ValueError("numbers that are not finite, or scales that are not above 0")

    def _inputs(self, steps: Transitions) -> np.ndarray:
        unit = self.spread / 100  # Push-T's: about a unit of the workspace, a degree of the angle
        error = self._difference(steps.expected_states, steps.next_states) / unit
        motion = self._difference(steps.states, steps.next_states) / unit
        angles = _angles(self.names)
        sizes = [np.linalg.norm(error[..., list(columns)], axis=-1) for columns in _objects(self.names).values()]
        after = steps.next_states
        inputs = [
            steps.features,
            steps.expected_features - steps.features,
            steps.actions,
            np.log(steps.uncertainty + 1e-3)[..., None],
            steps.unchanged[..., None],
            np.arcsinh(error),
            np.arcsinh(motion),
            (after / self.spread)[..., ~angles],
            np.cos(after[..., angles]),
            np.sin(after[..., angles]),
            np.log1p(np.stack(sizes, -1)),
        ]
        return np.concatenate(inputs, -1)

    def _difference(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return ``other`` - ``one``, the short way round for angles."""
        way = other.astype(np.float64) - one
        return np.where(_angles(self.names), (way + np.pi) % (2 * np.pi) - np.pi, way)

    def _faulty(self, steps: Transitions, fault: str, rng: np.random.Generator) -> Transitions:
        """Return ``steps`` with ``fault``: an object moved along a random direction of some of its states, or nothing moved."""
        if fault == FROZEN:
            return replace(steps, next_states=steps.states, unchanged=np.ones_like(steps.unchanged))
        columns = list(_objects(self.names)[fault])
        shape = (len(steps.uncertainty), len(columns))
        some = rng.random(shape) < 0.5
        some[np.arange(len(some)), rng.integers(len(columns), size=len(some))] = True
        way = rng.normal(size=shape) * some
        way /= np.linalg.norm(way, axis=1, keepdims=True).clip(1e-9)
        moved = steps.next_states.astype(np.float64)
        moved[:, columns] += way * rng.uniform(*MOVED, (shape[0], 1)) * self.spread[columns]
        return replace(steps, next_states=moved, unchanged=np.zeros_like(steps.unchanged))


def _objects(names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the columns of each object's states; its name is the part before the last underscore."""
    found: dict[str, tuple[int, ...]] = {}
    for i, name in enumerate(names):
        stem = name.rsplit("_", 1)[0]
        found[stem] = (*found.get(stem, ()), i)
    return found


def _angles(names: Sequence[str]) -> np.ndarray:
    """Return bool ``(s,)``, True for angles, by the rule of StateProbe."""
    return np.array([name.endswith("angle") for name in names], bool)


def _network(inputs: int, outputs: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(inputs, WIDTH, dtype=torch.float32),
            nn.SiLU(),
            nn.Linear(WIDTH, WIDTH, dtype=torch.float32),
            nn.SiLU(),
            nn.Linear(WIDTH, outputs, dtype=torch.float32),
        )


def _short(tensor: torch.Tensor) -> np.ndarray:
    """Round to the digits that the file keeps, so that the calibrated numbers are those that are read back."""
    array = tensor.detach().double().numpy()
    return np.array([float(f"{v:.5g}") for v in array.ravel()], np.float64).reshape(array.shape)
