"""Solvers: find the plan of least cost by sampling, given a function from candidate plans to costs; no model needed.

One loop serves all: draw candidates, evaluate them, fit an action distribution to the best, repeat. RandomShooting, CEM,
ICEM and MPPI are frozen configs that differ in how they draw and weigh candidates. Shapes: ``n`` candidates, ``l``
lookahead, ``a`` action, ``e`` elites. Every candidate lies in the action space; the result is the best candidate ever
evaluated, with its cost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import gymnasium as gym
import torch

from neuralsim.agents.planning.distributions import ActionDistribution, Categorical, normal_around_rest, uniform
from neuralsim.agents.planning.splines import SPREADS, Spread, place_control_points
from neuralsim.runtime.device import inference

CostFunction = Callable[[torch.Tensor], torch.Tensor]
"""Candidates ``(n, l, a)`` -> their costs ``(n,)``, the same for the same candidate within one search."""
StopReason = Literal["rounds", "budget", "patience", "spread"]
"""End of a search: its number of rounds, the deadline, no progress, or elites of equal cost."""


@dataclass(frozen=True, eq=False)
class PlanResult:
    """Best plan of a search, and how it was found.

    actions ``(l, a)``, float32 within the bounds or int64 choices, with the evaluated ``cost``. mean ``(l, a)``: mode of
    the final distribution. elites ``(e, l, a)`` with elite_costs ``(e,)``: best candidates of the last round, cheapest
    first (of the last two, where time ran out). history: least cost by the end of each round.
    """

    actions: torch.Tensor
    cost: float
    mean: torch.Tensor
    elites: torch.Tensor
    elite_costs: torch.Tensor
    evaluations: int
    history: tuple[float, ...]
    stopped: StopReason
    seconds: float

    @property
    def rounds(self) -> int:
        """Rounds that were at least partly evaluated."""
        return len(self.history)


@dataclass(frozen=True, eq=False)
class SolverIteration:
    """Candidates ``(n, l, a)`` of one round with their costs ``(n,)``, and the best plan so far ``(l, a)`` with its cost."""

    number: int
    candidates: torch.Tensor
    costs: torch.Tensor
    best: torch.Tensor
    best_cost: float


@dataclass(frozen=True, eq=False)
class WarmStart:
    """First candidates of a search, besides rest.

    previous: result of the last decision, of which ``shift`` actions have been executed since; its remaining actions are
    candidate 0, and its mean centres the distribution. proposals ``(p, l, a)``: plans from elsewhere, e.g. a policy's.
    """

    previous: PlanResult | None = None
    shift: int = 0
    proposals: torch.Tensor | None = None


@dataclass(frozen=True)
class SearchLimits:
    """Time and memory of a search.

    deadline: seconds of ``clock``, checked before each batch but the first, so that there always is an answer. batch:
    candidates per call of the cost function at most (None: a whole round), which bounds memory.
    """

    deadline: float = math.inf
    batch: int | None = None
    clock: Callable[[], float] = field(default=time.perf_counter, repr=False)


@dataclass(frozen=True)
class Solver:
    """Settings that all solvers share; raises ValueError for values out of range."""

    candidates: int = 300
    """Evaluations per round."""
    rounds: int = 1
    """Rounds, each of which fits the distribution once."""
    elites: int = 10
    """Best candidates of a round, to which the distribution is fitted."""
    control_points: int | None = None
    """Control points per plan; None: one per step."""
    spread: Spread = "hold"
    """Interpolation from control points to steps."""
    beta: float = 0.0
    """Exponent of the noise's power spectrum along the plan: 0 white, 2 a random walk's."""
    patience: int | None = None
    """Rounds without progress after which to stop; None: never."""
    tolerance: float = 0.0
    """Decrease of the cost below which a round made no progress. Above 0, elites this close in cost end the search too."""

    def __post_init__(self) -> None:
        for name in ("candidates", "rounds", "elites", "control_points", "patience"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{self._name}: {name} must be a whole number of at least 1, got {value!r}")
        if self.elites > self.candidates:
            raise ValueError(
                f"{self._name}: elites are the best of the candidates, expected at most {self.candidates} of them, "
                f"got {self.elites}"
            )
        if self.spread not in SPREADS:
            raise ValueError(f"{self._name}: spread must be one of {', '.join(SPREADS)}, got {self.spread!r}")
        self._expect(0 <= self.beta <= 10, "beta", "0..10")
        self._expect(0 <= self.tolerance < math.inf, "tolerance", "a cost of at least 0")

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _expect(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise ValueError(f"{self._name}: {name} must be {expected}, got {getattr(self, name)!r}")

    # -- hooks of the solvers --------------------------------------------------------------------------------------------

    @property
    def _n_kept(self) -> int:
        """Elites that stay candidates in the next round and, shifted in time, in the next decision."""
        return 0

    def _n_candidates(self, number: int) -> int:
        """Evaluations in round ``number``."""
        return self.candidates

    def _initial(self, space: gym.Space, points: int) -> ActionDistribution:
        """Distribution over ``points`` control points before any evaluation."""
        return uniform(space, points, self.beta)

    def _fit(self, distribution: ActionDistribution, points: torch.Tensor, costs: torch.Tensor) -> ActionDistribution:
        """``distribution`` fitted to elites ``(e, m, a)`` of finite ``costs`` ``(e,)``, cheapest first; by default unchanged."""
        return distribution

    # -- the loop ------------------------------------------------------------------------------------------------------

    @inference(torch.device("cpu"), torch.float32)
    def plan(
        self,
        cost: CostFunction,
        space: gym.Space,
        lookahead: int,
        rng: torch.Generator,
        *,
        start: WarmStart | None = None,
        limits: SearchLimits | None = None,
        on_iteration: Callable[[SolverIteration], object] | None = None,
    ) -> PlanResult:
        """Return the best plan found of ``lookahead`` actions in ``space``; ``on_iteration`` is called after each round.

        The result depends on the arguments and ``rng``'s state alone. Raises FloatingPointError where no candidate of the
        first round has a finite cost, ValueError for proposals or costs of another shape.
        """
        limits = limits or SearchLimits()
        began = limits.clock()
        points = min(self.control_points or lookahead, lookahead)
        spline = place_control_points(lookahead, points, self.spread)
        distribution = self._initial(space, points)
        if isinstance(distribution, Categorical) and self.spread != "hold" and points < lookahead:
            raise ValueError(
                f"{self._name}: choices cannot be interpolated; with control points in {space}, spread must be 'hold', "
                f"got {self.spread!r}"
            )
        rest = distribution.rest.expand(lookahead, -1)
        given, mean = self._first_candidates(start or WarmStart(), distribution, rest)
        if mean is not None:
            distribution = distribution.around(spline.gather(mean))

        best, best_cost, evaluations, stale = rest, math.inf, 0, 0
        elites, elite_costs = given[:0], torch.zeros(0, dtype=torch.float32, device="cpu")
        history: list[float] = []
        stopped: StopReason | None = None
        for number in range(self.rounds):
            given = given[: self._n_candidates(number)]
            drawn = distribution.draw(self._n_candidates(number) - len(given), rng)
            candidates = torch.cat([given, distribution.contain(spline.spread(drawn))])
            costs = _evaluate(cost, candidates, limits, at_least_one=number == 0)
            if len(costs) < len(candidates):
                stopped = "budget"
            if len(costs) == 0:
                break
            evaluations += len(costs)
            candidates = candidates[: len(costs)]

            n_kept = self.elites if stopped else self._n_kept  # a partial round has too few candidates of its own
            pool = torch.cat([elites[:n_kept], candidates])
            pool_costs = torch.cat([elite_costs[:n_kept], costs])
            finite = int(pool_costs.isfinite().sum())
            if finite == 0 and not history:
                raise FloatingPointError(f"{cost}: none of {len(costs)} candidate plans has a finite cost")
            if finite:
                elite_costs, order = pool_costs.topk(min(self.elites, finite), largest=False)
                elites = pool[order]
            before = best_cost
            if elite_costs[0] < best_cost:
                best, best_cost = elites[0], float(elite_costs[0])
            stale = 0 if before - best_cost > self.tolerance else stale + 1
            history.append(best_cost)
            if on_iteration is not None:
                on_iteration(SolverIteration(number, candidates, costs, best, best_cost))

            fitted = self._fit(distribution, spline.gather(elites), elite_costs)
            # The mode of a distribution that moved is as good a guess as any draw from it.
            given = given[:0] if fitted is distribution else distribution.contain(spline.spread(fitted.mode))[None]
            distribution = fitted
            stopped = stopped or self._converged(stale, elite_costs)
            if stopped:
                break
        mean = distribution.contain(spline.spread(distribution.mode))
        return PlanResult(
            best, best_cost, mean, elites, elite_costs, evaluations, tuple(history), stopped or "rounds",
            limits.clock() - began,
        )  # fmt: skip

    def _first_candidates(
        self, start: WarmStart, distribution: ActionDistribution, rest: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Candidates ``(n, l, a)`` known before any draw, and the mean ``(l, a)`` of the previous plan, if there is one."""
        proposals = rest[None][:0]
        if start.proposals is not None:
            proposals = _contain_proposals(start.proposals, distribution, len(rest))
        if start.previous is None:
            return torch.cat([rest[None], proposals]), None
        previous = start.previous
        left, mean, kept = (
            _shift(x, start.shift, rest) for x in (previous.actions, previous.mean, previous.elites[: self._n_kept])
        )
        return torch.cat([left[None], rest[None], mean[None], proposals, kept]), mean

    def _converged(self, stale: int, elite_costs: torch.Tensor) -> StopReason | None:
        """Reason to stop early, after ``stale`` rounds without progress and with elites of these costs."""
        if self.patience is not None and stale >= self.patience:
            return "patience"
        if len(elite_costs) > 1 and 0 < self.tolerance >= float(elite_costs[-1] - elite_costs[0]):
            return "spread"
        return None


@dataclass(frozen=True)
class RandomShooting(Solver):
    """Uniform candidates, of which the best is returned. ``rounds`` only splits them into batches."""

    @property
    def _n_kept(self) -> int:
        return self.elites


@dataclass(frozen=True)
class CEM(Solver):
    """Cross-entropy method: fit a Gaussian (or, where actions are choices, probabilities) to the elites, repeatedly.

    The defaults are the field's usual ones. Source: Rubinstein and Kroese, "The Cross-Entropy Method", 2004.
    """

    candidates: int = 300
    rounds: int = 30
    elites: int = 30
    sigma0: float = 0.5
    """Initial standard deviation, in half widths of the bounds."""
    min_sigma: float = 0.01
    """Least standard deviation, likewise; among choices, the share that is drawn evenly."""
    momentum: float = 0.0
    """Share of the old distribution that stays each round."""
    correlated: bool = False
    """Learn a full covariance (see Correlated), which needs noise of ``beta`` above 0 or few control points to begin with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(0 < self.sigma0 < math.inf, "sigma0", "a width above 0")
        self._expect(0 <= self.min_sigma <= 1, "min_sigma", "0..1")
        self._expect(0 <= self.momentum < 1, "momentum", "at least 0 and below 1")

    def _initial(self, space: gym.Space, points: int) -> ActionDistribution:
        return normal_around_rest(space, points, self.beta, self.sigma0, self.min_sigma, self.correlated)

    def _fit(self, distribution: ActionDistribution, points: torch.Tensor, costs: torch.Tensor) -> ActionDistribution:
        equal = torch.full_like(costs, 1 / len(costs))
        return distribution.fit(points, equal, self.momentum, widths=True)


@dataclass(frozen=True)
class ICEM(CEM):
    """CEM with fewer evaluations: noise coloured along the plan, elites kept, populations that shrink.

    Source: Pinneri et al., arXiv 2008.06389, whose numbers vary independently (``correlated=False``).
    """

    candidates: int = 96
    rounds: int = 12
    elites: int = 16
    beta: float = 2.0
    sigma0: float = 0.7
    momentum: float = 0.1
    correlated: bool = True
    keep: float = 0.5
    """Share of the elites that stay candidates: in the next round at no cost, in the next decision shifted in time."""
    gamma: float = 1.05
    """Factor by which the population shrinks from round to round, not below twice the elites."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(0 <= self.keep <= 1, "keep", "0..1")
        self._expect(1 <= self.gamma < math.inf, "gamma", "1 or more")

    @property
    def _n_kept(self) -> int:
        return round(self.keep * self.elites)

    def _n_candidates(self, number: int) -> int:
        least = min(2 * self.elites, self.candidates)
        return max(least, int(self.candidates * self.gamma**-number))


@dataclass(frozen=True)
class MPPI(CEM):
    """Model-predictive path integral control: the mean moves to the elites' mean weighted by ``exp(-cost / temperature)``.

    Costs count in their standard deviations, so that one temperature serves every task. Source: Williams et al., arXiv
    1509.01149; with elites and rounds as in Hansen et al., TD-MPC2, arXiv 2310.16828.
    """

    candidates: int = 256
    rounds: int = 6
    elites: int = 64
    temperature: float = 0.5
    adapt_sigma: bool = False
    """Fit the standard deviations too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(0 < self.temperature < math.inf, "temperature", "above 0")

    def _fit(self, distribution: ActionDistribution, points: torch.Tensor, costs: torch.Tensor) -> ActionDistribution:
        scale = costs.std(correction=0).clamp(min=1e-12)  # with a single cost or equal costs all weigh alike
        weights = (-(costs - costs[0]) / (self.temperature * scale)).softmax(0)
        return distribution.fit(points, weights, self.momentum, widths=self.adapt_sigma)


def _shift(actions: torch.Tensor, steps: int, rest: torch.Tensor) -> torch.Tensor:
    """``(..., l, a)`` without its first ``steps`` steps, filled up with ``rest`` ``(l, a)`` to its length.

    Rest rather than the last action repeated: a plan that arrives at a goal then stays there.
    """
    left = actions[..., steps:, :]
    return torch.cat([left, rest.expand(*left.shape[:-2], -1, -1)], -2)[..., : len(rest), :]


def _contain_proposals(proposals: torch.Tensor, distribution: ActionDistribution, lookahead: int) -> torch.Tensor:
    """``proposals`` clipped to the action space, or a ValueError."""
    proposals = torch.as_tensor(proposals).detach().cpu()
    shape = (lookahead, len(distribution.rest))
    if proposals.ndim != 3 or tuple(proposals.shape[1:]) != shape:
        raise ValueError(
            f"proposals: expected plans of shape (p, {shape[0]}, {shape[1]}), got {tuple(proposals.shape)}"
        )
    if not bool(proposals.isfinite().all()):
        raise ValueError("proposals: expected finite numbers, got NaN or infinity")
    return distribution.contain(proposals)


def _evaluate(cost: CostFunction, candidates: torch.Tensor, limits: SearchLimits, at_least_one: bool) -> torch.Tensor:
    """Costs ``(k,)`` on the CPU of the first k candidates, batch by batch until the deadline; NaN becomes infinity."""
    costs = torch.empty(0, dtype=torch.float32, device="cpu")
    for part in candidates.split(limits.batch or len(candidates)):
        if not (at_least_one and len(costs) == 0) and limits.clock() >= limits.deadline:
            break
        found = cost(part)
        if tuple(found.shape) != (len(part),):
            raise ValueError(
                f"cost: expected a cost for each of {len(part)} candidates, got shape {tuple(found.shape)}"
            )
        found = found.detach().to("cpu", torch.float32)
        costs = torch.cat([costs, found.where(found.isfinite(), math.inf)])
    return costs
