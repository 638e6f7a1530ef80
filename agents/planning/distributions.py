"""Belief: where good plans are thought to lie, a distribution over control points ``(m, a)``.

A search draws candidates from a belief and fits it to the best of them. Everything that leaves a belief lies in the
action space: the space of the bounds is the space of the candidates. All on the CPU, where small things are fast.
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
    """What a search asks of a distribution over control points."""

    @property
    def rest(self) -> torch.Tensor:
        """``(a,)``: the action that stands still, where there is one: 0 (or the bound nearest to it), or choice 0."""

    @property
    def mode(self) -> torch.Tensor:
        """``(m, a)``: the likeliest points."""

    def draw(self, n: int, rng: torch.Generator) -> torch.Tensor:
        """``(n, m, a)``: points by chance."""

    def contain(self, actions: torch.Tensor) -> torch.Tensor:
        """``actions`` ``(..., a)`` moved into the action space where they are not, as float32 or int64."""

    def around(self, points: torch.Tensor) -> Self:
        """The same belief about ``points`` ``(m, a)``."""

    def fit(self, points: torch.Tensor, weights: torch.Tensor, momentum: float, widths: bool) -> Self:
        """Move to ``points`` ``(e, m, a)`` with ``weights`` ``(e,)`` of sum 1; ``momentum`` is the share of the old
        belief that stays. Without ``widths`` only the middle moves."""


@dataclass(frozen=True, eq=False)
class Box:
    """Real numbers within ``low`` and ``high`` ``(a,)``."""

    low: torch.Tensor
    high: torch.Tensor

    @property
    def rest(self) -> torch.Tensor:
        """See Belief."""
        return torch.zeros_like(self.low).clamp(self.low, self.high)

    @property
    def half(self) -> torch.Tensor:
        """``(a,)``: half widths, the unit of every sigma."""
        return (self.high - self.low) / 2

    def contain(self, actions: torch.Tensor) -> torch.Tensor:
        """See Belief."""
        return actions.to(torch.float32).clamp(self.low, self.high)


@dataclass(frozen=True, eq=False)
class Uniform(Box):
    """Anywhere in the box, at each of ``points`` points; learns nothing. ``beta``: see :func:`coloured`."""

    points: int
    beta: float

    @property
    def mode(self) -> torch.Tensor:
        """See Belief."""
        return self.rest.repeat(self.points, 1)

    def draw(self, n: int, rng: torch.Generator) -> torch.Tensor:
        """See Belief."""
        share = torch.special.ndtr(coloured((n, self.points, len(self.low)), self.beta, rng))
        return self.contain(torch.lerp(self.low, self.high, share))

    def around(self, points: torch.Tensor) -> Self:
        """See Belief."""
        return self

    def fit(self, points: torch.Tensor, weights: torch.Tensor, momentum: float, widths: bool) -> Self:
        """See Belief."""
        return self


@dataclass(frozen=True, eq=False)
class Normal(Box, ABC):
    """Normals clipped to the box, about ``mean`` ``(m, a)``."""

    mean: torch.Tensor

    @property
    def mode(self) -> torch.Tensor:
        """See Belief."""
        return self.mean

    def around(self, points: torch.Tensor) -> Self:
        """See Belief."""
        return replace(self, mean=points)

    def fit(self, points: torch.Tensor, weights: torch.Tensor, momentum: float, widths: bool) -> Self:
        """See Belief."""
        mean = (weights @ points.flatten(1)).view_as(self.mean)
        moved = self.around(torch.lerp(mean, self.mean, momentum))
        return moved._widened(points - mean, weights, momentum) if widths else moved

    @abstractmethod
    def _widened(self, away: torch.Tensor, weights: torch.Tensor, momentum: float) -> Self:
        """The width of ``fit``, for points ``away`` ``(e, m, a)`` from their mean."""


@dataclass(frozen=True, eq=False)
class Gaussian(Normal):
    """Each number for itself: sigma ``(m, a)``, not below ``floor`` half widths. ``beta``: see :func:`coloured`."""

    sigma: torch.Tensor
    floor: float
    beta: float

    def draw(self, n: int, rng: torch.Generator) -> torch.Tensor:
        """See Belief."""
        return self.contain(torch.addcmul(self.mean, self.sigma, coloured((n, *self.mean.shape), self.beta, rng)))

    def _widened(self, away: torch.Tensor, weights: torch.Tensor, momentum: float) -> Self:
        sigma = (weights @ away.square().flatten(1)).sqrt().view_as(self.mean)
        return replace(self, sigma=torch.maximum(torch.lerp(sigma, self.sigma, momentum), self.floor * self.half))


@dataclass(frozen=True, eq=False)
class Correlated(Normal):
    """Numbers that vary together: covariance float64 ``(m * a, m * a)``, and ``floor`` half widths for each on top.

    Where a plan arrives is a sum of its actions: one may do less if another does more. Numbers that vary each for
    themselves cannot say so and close in from all sides at once; these can, and need a fraction of the candidates.
    Source: Hansen and Ostermeier, "Completely derandomized self-adaptation in evolution strategies" (CMA-ES), 2001, of
    which this is the rank-mu update alone.
    """

    covariance: torch.Tensor
    floor: float

    @cached_property
    def factor(self) -> torch.Tensor:
        """float32 ``(m * a, m * a)``: what carries white noise to this covariance, the floor included."""
        least = (self.floor * self.half).square().repeat(len(self.mean))
        least = least + 1e-8 * self.covariance.diagonal().mean()  # fewer elites than numbers leave directions without
        return torch.linalg.cholesky(self.covariance + least.double().diag()).float()

    def draw(self, n: int, rng: torch.Generator) -> torch.Tensor:
        """See Belief."""
        white = torch.randn(n, self.mean.numel(), generator=rng)
        return self.contain(self.mean + (white @ self.factor.T).view(n, *self.mean.shape))

    def _widened(self, away: torch.Tensor, weights: torch.Tensor, momentum: float) -> Self:
        flat = away.flatten(1).double()
        return replace(self, covariance=torch.lerp((flat.T * weights) @ flat, self.covariance, momentum))


@dataclass(frozen=True, eq=False)
class Categorical:
    """Independent choices: chances ``(m, a, c)``, of which dimension i has ``sizes[i]``, counted from ``first[i]``.

    ``floor`` is the share drawn evenly; ``beta`` (see :func:`coloured`) gives runs of like choices.
    """

    chances: torch.Tensor
    sizes: torch.Tensor
    first: torch.Tensor
    floor: float
    beta: float

    @property
    def rest(self) -> torch.Tensor:
        """See Belief."""
        return self.first

    @property
    def mode(self) -> torch.Tensor:
        """See Belief."""
        return self.first + self.chances.argmax(-1)

    def draw(self, n: int, rng: torch.Generator) -> torch.Tensor:
        """See Belief."""
        share = torch.special.ndtr(coloured((n, *self.chances.shape[:2]), self.beta, rng))
        passed = share[..., None] > self.chances.cumsum(-1)
        return self.contain(self.first + passed.sum(-1))

    def contain(self, actions: torch.Tensor) -> torch.Tensor:
        """See Belief."""
        return actions.to(torch.int64).clamp(self.first, self.first + self.sizes - 1)

    def around(self, points: torch.Tensor) -> Self:
        """See Belief."""
        return self

    def fit(self, points: torch.Tensor, weights: torch.Tensor, momentum: float, widths: bool) -> Self:
        """See Belief."""
        chosen = torch.nn.functional.one_hot(points - self.first, self.chances.shape[-1]).to(torch.float32)
        chances = torch.lerp(torch.einsum("e,emac->mac", weights, chosen), self.chances, momentum)
        return replace(self, chances=torch.lerp(chances, even(self.sizes), self.floor))


def even(sizes: torch.Tensor) -> torch.Tensor:
    """Equal chances ``(a, c)`` for ``sizes`` ``(a,)`` choices, 0 beyond them."""
    return (torch.arange(int(sizes.max())) < sizes[:, None]) / sizes[:, None]


def anything(space: gym.Space, points: int, beta: float, floor: float = 0.0) -> Uniform | Categorical:
    """All of ``space`` alike at each of ``points`` points: a Box ``(a,)`` with finite bounds, a Discrete or a
    MultiDiscrete ``(a,)``; a ValueError for other spaces."""
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and space.is_bounded():
        return Uniform(torch.as_tensor(space.low).float(), torch.as_tensor(space.high).float(), points, beta)
    if isinstance(space, gym.spaces.Discrete):
        sizes, first = torch.tensor([int(space.n)]), torch.tensor([int(space.start)])
    elif isinstance(space, gym.spaces.MultiDiscrete) and space.nvec.ndim == 1:
        sizes, first = (torch.as_tensor(x.astype(np.int64)) for x in (space.nvec, space.start))
    else:
        raise ValueError(
            f"action space: expected a Box (a,) with finite bounds, a Discrete or a MultiDiscrete (a,), got {space}"
        )
    return Categorical(even(sizes).repeat(points, 1, 1), sizes, first, floor, beta)


def about_rest(
    space: gym.Space, points: int, beta: float, sigma: float, floor: float, correlated: bool
) -> ActionDistribution:
    """Normals about rest, of width ``sigma`` in half widths of the bounds; where actions are choices, all alike."""
    flat = anything(space, points, beta, floor)
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
        return torch.randn(n, points, size, generator=rng)
    return colouring(points, beta) @ torch.randn(n, 2 * points, size, generator=rng)


@lru_cache(maxsize=32)
def colouring(points: int, beta: float) -> torch.Tensor:
    """The filter of :func:`coloured`, ``(points, 2 * points)``: white noise of twice the length is coloured over one
    period and cut in half, for within a whole period the last point would resemble the first."""
    period = 2 * points
    frequency = np.fft.rfftfreq(period)
    frequency[0] = frequency[1]
    kernel = np.fft.irfft(frequency ** (-beta / 2), period)
    kernel /= np.linalg.norm(kernel)
    shift = (np.arange(points)[:, None] - np.arange(period)) % period
    return torch.as_tensor(kernel[shift], dtype=torch.float32)
