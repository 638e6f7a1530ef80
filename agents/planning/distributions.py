"""Action distributions: where good plans are expected to lie, over control points ``(m, a)``.

A solver draws candidates from a distribution and fits it to the best of them. Every draw lies in the action space.
All tensors are on the CPU, where small ones are fast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Protocol, Self

import gymnasium as gym
import numpy as np
import torch


class ActionDistribution(Protocol):
    """Distribution over control points ``(m, a)``, as solvers use it."""

    @property
    def rest(self) -> torch.Tensor:
        """``(a,)``: the action that stands still, where there is one: 0 (or the bound nearest to it), or choice 0."""

    @property
    def mode(self) -> torch.Tensor:
        """``(m, a)``: the most likely points."""

    def draw(self, n: int, rng: torch.Generator) -> torch.Tensor:
        """Return ``(n, m, a)`` random points."""

    def contain(self, actions: torch.Tensor) -> torch.Tensor:
        """Clip ``actions`` ``(..., a)`` to the action space, as float32 or int64."""

    def around(self, points: torch.Tensor) -> Self:
        """Return the same distribution centred at ``points`` ``(m, a)``."""

    def fit(self, points: torch.Tensor, weights: torch.Tensor, momentum: float, widths: bool) -> Self:
        """Fit to ``points`` ``(e, m, a)`` with ``weights`` ``(e,)`` of sum 1.

        ``momentum``: share of the old distribution that stays. Without ``widths`` only the centre moves.
        """


@dataclass(frozen=True, eq=False)
class Box:
    """Real numbers within ``low`` and ``high`` ``(a,)``."""

    low: torch.Tensor
    high: torch.Tensor

    @property
    def rest(self) -> torch.Tensor:
        """``(a,)``: 0, or the bound nearest to it."""
        return torch.zeros_like(self.low).clamp(self.low, self.high)

    @property
    def half(self) -> torch.Tensor:
        """``(a,)``: half widths, the unit of every sigma."""
        return (self.high - self.low) / 2

    def contain(self, actions: torch.Tensor) -> torch.Tensor:
        """Clip ``actions`` ``(..., a)`` to the bounds, as float32."""
        return actions.to(torch.float32).clamp(self.low, self.high)


@dataclass(frozen=True, eq=False)
class Uniform(Box):
    """Uniform in the box at each of ``points`` points; never fitted. ``beta``: see :func:`coloured`."""

    points: int
    beta: float

    @property
    def mode(self) -> torch.Tensor:
        """``(m, a)``: rest."""
        return self.rest.repeat(self.points, 1)

    def draw(self, n: int, rng: torch.Generator) -> torch.Tensor:
        """Return ``(n, m, a)`` random points."""
        share = torch.special.ndtr(coloured((n, self.points, len(self.low)), self.beta, rng))
        return self.contain(torch.lerp(self.low, self.high, share))

    def around(self, points: torch.Tensor) -> Self:
        """Return itself."""
        return self

    def fit(self, points: torch.Tensor, weights: torch.Tensor, momentum: float, widths: bool) -> Self:
        """Return itself."""
        return self


@dataclass(frozen=True, eq=False)
class Normal(Box, ABC):
    """Normals clipped to the box, with ``mean`` ``(m, a)``."""

    mean: torch.Tensor

    @property
    def mode(self) -> torch.Tensor:
        """``(m, a)``: the mean."""
        return self.mean

    def around(self, points: torch.Tensor) -> Self:
        """Return the same distribution with mean ``points`` ``(m, a)``."""
        return replace(self, mean=points)

    def fit(self, points: torch.Tensor, weights: torch.Tensor, momentum: float, widths: bool) -> Self:
        """Fit the mean, and with ``widths`` the widths, to weighted ``points`` ``(e, m, a)``."""
        mean = (weights @ points.flatten(1)).view_as(self.mean)
        moved = self.around(torch.lerp(mean, self.mean, momentum))
        return moved._fit_widths(points - mean, weights, momentum) if widths else moved

    @abstractmethod
    def _fit_widths(self, deviations: torch.Tensor, weights: torch.Tensor, momentum: float) -> Self:
        """Fit the widths to ``deviations`` ``(e, m, a)`` from the mean."""


@dataclass(frozen=True, eq=False)
class Gaussian(Normal):
    """Independent normals: sigma ``(m, a)``, not below ``floor`` half widths. ``beta``: see :func:`coloured`."""

    sigma: torch.Tensor
    floor: float
    beta: float

    def draw(self, n: int, rng: torch.Generator) -> torch.Tensor:
        """Return ``(n, m, a)`` random points."""
        return self.contain(torch.addcmul(self.mean, self.sigma, coloured((n, *self.mean.shape), self.beta, rng)))

    def _fit_widths(self, deviations: torch.Tensor, weights: torch.Tensor, momentum: float) -> Self:
        sigma = (weights @ deviations.square().flatten(1)).sqrt().view_as(self.mean)
        return replace(self, sigma=torch.maximum(torch.lerp(sigma, self.sigma, momentum), self.floor * self.half))


@dataclass(frozen=True, eq=False)
class Correlated(Normal):
    """Normals with a full covariance, float64 ``(m * a, m * a)``, and ``floor`` half widths for each number on top.

    A plan arrives at the sum of its actions: one may do less if another does more. Independent numbers cannot express
    that and close in from all sides at once; correlated ones can, and need a fraction of the candidates. Source: Hansen
    and Ostermeier, "Completely derandomized self-adaptation in evolution strategies" (CMA-ES), 2001; this is its rank-mu
    update alone.
    """

    covariance: torch.Tensor
    floor: float

    @cached_property
    def factor(self) -> torch.Tensor:
        """float32 ``(m * a, m * a)``: Cholesky factor of the covariance, the floor included."""
        least = (self.floor * self.half).square().repeat(len(self.mean))
        least = least + 1e-8 * self.covariance.diagonal().mean()  # fewer elites than numbers: some directions are empty
        return torch.linalg.cholesky(self.covariance + least.double().diag()).float()

    def draw(self, n: int, rng: torch.Generator) -> torch.Tensor:
        """Return ``(n, m, a)`` random points."""
        white = torch.randn(n, self.mean.numel(), generator=rng, dtype=torch.float32, device="cpu")
        return self.contain(self.mean + (white @ self.factor.T).view(n, *self.mean.shape))

    def _fit_widths(self, deviations: torch.Tensor, weights: torch.Tensor, momentum: float) -> Self:
        flat = deviations.flatten(1).double()
        return replace(self, covariance=torch.lerp((flat.T * weights) @ flat, self.covariance, momentum))


@dataclass(frozen=True, eq=False)
class Categorical:
    """Independent choices with ``probabilities`` ``(m, a, c)``; dimension i has ``sizes[i]``, counted from ``first[i]``.

    ``floor`` is the share drawn evenly; ``beta`` (see :func:`coloured`) gives runs of equal choices.
    """

    probabilities: torch.Tensor
    sizes: torch.Tensor
    first: torch.Tensor
    floor: float
    beta: float

    @property
    def rest(self) -> torch.Tensor:
        """``(a,)``: the first choice of each dimension."""
        return self.first

    @property
    def mode(self) -> torch.Tensor:
        """``(m, a)``: the most likely choices."""
        return self.first + self.probabilities.argmax(-1)

    def draw(self, n: int, rng: torch.Generator) -> torch.Tensor:
        """Return ``(n, m, a)`` random choices."""
        share = torch.special.ndtr(coloured((n, *self.probabilities.shape[:2]), self.beta, rng))
        passed = share[..., None] > self.probabilities.cumsum(-1)
        return self.contain(self.first + passed.sum(-1))

    def contain(self, actions: torch.Tensor) -> torch.Tensor:
        """Clip ``actions`` ``(..., a)`` to the choices, as int64."""
        return actions.to(torch.int64).clamp(self.first, self.first + self.sizes - 1)

    def around(self, points: torch.Tensor) -> Self:
        """Return itself."""
        return self

    def fit(self, points: torch.Tensor, weights: torch.Tensor, momentum: float, widths: bool) -> Self:
        """Fit the probabilities to weighted ``points`` ``(e, m, a)``."""
        chosen = torch.nn.functional.one_hot(points - self.first, self.probabilities.shape[-1]).to(torch.float32)
        probabilities = torch.lerp(torch.einsum("e,emac->mac", weights, chosen), self.probabilities, momentum)
        return replace(self, probabilities=torch.lerp(probabilities, equal_probabilities(self.sizes), self.floor))


def equal_probabilities(sizes: torch.Tensor) -> torch.Tensor:
    """Equal probabilities, float32 ``(a, c)``, for ``sizes`` ``(a,)`` choices; 0 beyond them."""
    return (torch.arange(int(sizes.max()), dtype=torch.int64, device="cpu") < sizes[:, None]).to(torch.float32) / sizes[
        :, None
    ]


def uniform(space: gym.Space, points: int, beta: float, floor: float = 0.0) -> Uniform | Categorical:
    """Uniform distribution over ``space`` at each of ``points`` points.

    ``space``: a Box ``(a,)`` with finite bounds, a Discrete or a MultiDiscrete ``(a,)``; a ValueError for other spaces.
    """
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and space.is_bounded():
        low, high = (torch.as_tensor(x, device="cpu").float() for x in (space.low, space.high))
        return Uniform(low, high, points, beta)
    if isinstance(space, gym.spaces.Discrete):
        sizes, first = (torch.tensor([int(x)], dtype=torch.int64, device="cpu") for x in (space.n, space.start))
    elif isinstance(space, gym.spaces.MultiDiscrete) and space.nvec.ndim == 1:
        sizes, first = (torch.as_tensor(x.astype(np.int64), device="cpu") for x in (space.nvec, space.start))
    else:
        raise ValueError(
            f"action space: expected a Box (a,) with finite bounds, a Discrete or a MultiDiscrete (a,), got {space}"
        )
    return Categorical(equal_probabilities(sizes).repeat(points, 1, 1), sizes, first, floor, beta)


def normal_around_rest(
    space: gym.Space, points: int, beta: float, sigma: float, floor: float, correlated: bool
) -> ActionDistribution:
    """Normals around rest, of standard deviation ``sigma`` in half widths of the bounds; choices are equally likely."""
    flat = uniform(space, points, beta, floor)
    if isinstance(flat, Categorical):
        return flat
    width = sigma * flat.half
    if not correlated:
        return Gaussian(flat.low, flat.high, flat.mode, width.repeat(points, 1), floor, beta)
    colour = colouring(points, beta).double()
    covariance = torch.kron(colour @ colour.T, width.double().square().diag())
    return Correlated(flat.low, flat.high, flat.mode, covariance, floor)


def coloured(shape: Sequence[int], beta: float, rng: torch.Generator) -> torch.Tensor:
    """Standard normals of ``shape`` ``(n, m, a)`` whose power along the m points falls as frequency to the ``-beta``.

    beta 0 is white; 2 is a random walk's: neighbouring points agree, so that a plan goes somewhere. Source: Timmer and
    König, "On generating power law noise", 1995; in planning, Pinneri et al., iCEM, arXiv 2008.06389.
    """
    n, points, size = shape
    if beta == 0 or points == 1:
        return torch.randn(n, points, size, generator=rng, dtype=torch.float32, device="cpu")
    white = torch.randn(n, 2 * points, size, generator=rng, dtype=torch.float32, device="cpu")
    return colouring(points, beta) @ white


@lru_cache(maxsize=32)
def colouring(points: int, beta: float) -> torch.Tensor:
    """Filter of :func:`coloured`, ``(points, 2 * points)``.

    White noise of twice the length is coloured over one period and cut in half, for within a whole period the last
    point would resemble the first.
    """
    period = 2 * points
    frequency = np.fft.rfftfreq(period)
    frequency[0] = frequency[1]
    kernel = np.fft.irfft(frequency ** (-beta / 2), period)
    kernel /= np.linalg.norm(kernel)
    shift = (np.arange(points)[:, None] - np.arange(period)) % period
    return torch.as_tensor(kernel[shift], dtype=torch.float32, device="cpu")
