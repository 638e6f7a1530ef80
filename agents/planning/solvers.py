"""Search: find the plan of least cost by asking a function what candidates cost. Knows nothing of models.

One loop for all: draw candidates, have them evaluated, fit a belief to the best, again. RandomShooting, CEM, ICEM and
MPPI are frozen configs above it that differ in what they draw and how they weigh. Shapes: ``n`` candidates, ``l``
lookahead, ``a`` action, ``e`` elites. Candidates always lie in the action space; what comes back has been evaluated, is
the best ever seen, and brings its cost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import gymnasium as gym
import torch

from neuralsim.agents.planning.distributions import ActionDistribution, Categorical, about_rest, anything
from neuralsim.agents.planning.splines import SPREADS, Spread, place_control_points
from neuralsim.task import inference

Evaluate = Callable[[torch.Tensor], torch.Tensor]
"""Candidates ``(n, l, a)`` -> their costs ``(n,)``, the same for the same candidate within one search."""
Stop = Literal["rounds", "budget", "patience", "spread"]
"""What ended a search: its number of rounds, the deadline, a lack of progress, or elites that cost alike."""


@dataclass(frozen=True, eq=False)
class PlanResult:
    """The best plan ever seen in a search, and how it was found.

    actions ``(l, a)``, float32 within the bounds or int64 choices, with ``cost`` as it was evaluated. mean ``(l, a)``:
    the middle of the final belief. elites ``(e, l, a)`` with elite_costs ``(e,)``: the last round's best, cheapest
    first (of the last two, where time ran out). ``history``: least cost seen by the end of each round.
    """

    actions: torch.Tensor
    cost: float
    mean: torch.Tensor
    elites: torch.Tensor
    elite_costs: torch.Tensor
    evaluations: int
    history: tuple[float, ...]
    stopped: Stop
    seconds: float

    @property
    def rounds(self) -> int:
        """Rounds begun and at least partly evaluated."""
        return len(self.history)


@dataclass(frozen=True, eq=False)
class SolverIteration:
    """What a search tells whoever watches, once per round: all candidates ``(n, l, a)`` with their costs ``(n,)``, and
    the best plan so far ``(l, a)`` with its cost."""

    number: int
    candidates: torch.Tensor
    costs: torch.Tensor
    best: torch.Tensor
    best_cost: float


@dataclass(frozen=True)
class Solver:
    """What all searches have in common.

    candidates: evaluations per round. rounds: how often the belief is fitted. elites: how many of the best it is fitted
    to. knots: control points per plan (None: one per step), carried to steps as ``spread`` says. beta: exponent of the
    noise's power along the plan, 0 white, 2 a random walk's. patience: rounds without progress after which to stop
    (None: never). tolerance: what counts as no progress, in units of cost; above 0, elites that cost as alike as this
    end the search too.
    """

    candidates: int = 300
    rounds: int = 1
    elites: int = 10
    knots: int | None = None
    spread: Spread = "hold"
    beta: float = 0.0
    patience: int | None = None
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        for name in ("candidates", "rounds", "elites", "knots", "patience"):
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

    # -- what the searches differ in -----------------------------------------------------------------------------------

    @property
    def _kept(self) -> int:
        """How many elites stay candidates in the next round and, moved on in time, in the next decision."""
        return 0

    def _size(self, number: int) -> int:
        """Evaluations in round ``number``."""
        return self.candidates

    def _belief(self, space: gym.Space, points: int) -> ActionDistribution:
        """What is believed of ``points`` points before anything is known."""
        return anything(space, points, self.beta)

    def _fit(self, belief: ActionDistribution, points: torch.Tensor, costs: torch.Tensor) -> ActionDistribution:
        """``belief`` after elites ``(e, m, a)`` of finite ``costs`` ``(e,)``, cheapest first; itself: it never learns."""
        return belief

    # -- the loop ------------------------------------------------------------------------------------------------------

    @inference(torch.device("cpu"), torch.float32)
    def plan(
        self,
        evaluate: Evaluate,
        space: gym.Space,
        lookahead: int,
        rng: torch.Generator,
        *,
        warm: PlanResult | None = None,
        shift: int = 0,
        proposals: torch.Tensor | None = None,
        deadline: float = math.inf,
        batch: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
        on_round: Callable[[SolverIteration], object] | None = None,
    ) -> PlanResult:
        """The best plan of ``lookahead`` actions in ``space`` that could be found.

        warm: the last decision's plan, of which ``shift`` actions have been executed since; what is left of it, then
        rest, is candidate 0, and its mean begins the belief. proposals ``(p, l, a)``: further first candidates.
        ``deadline`` (of ``clock``, seconds) is looked at before each batch of at most ``batch`` candidates but the
        first, so there always is an answer. The result depends on the arguments and ``rng``'s state alone. Raises
        FloatingPointError where no candidate of the first round has a finite cost.
        """
        began = clock()
        points = min(self.knots or lookahead, lookahead)
        knots = place_control_points(lookahead, points, self.spread)
        belief = self._belief(space, points)
        if isinstance(belief, Categorical) and self.spread != "hold" and points < lookahead:
            raise ValueError(
                f"{self._name}: choices cannot be interpolated; with knots in {space}, spread must be 'hold', got {self.spread!r}"
            )
        rest = belief.rest.expand(lookahead, -1)
        wished = rest[None][:0] if proposals is None else _contained(proposals, belief, lookahead)
        if warm is None:
            given = torch.cat([rest[None], wished])
        else:
            left, mean, kept = (_move_on(x, shift, rest) for x in (warm.actions, warm.mean, warm.elites[: self._kept]))
            belief = belief.around(knots.gather(mean))
            given = torch.cat([left[None], rest[None], mean[None], wished, kept])

        best, best_cost, evaluations, stale = rest, math.inf, 0, 0
        elites, elite_costs = given[:0], torch.zeros(0)
        history: list[float] = []
        stopped: Stop | None = None
        for number in range(self.rounds):
            given = given[: self._size(number)]
            drawn = belief.draw(self._size(number) - len(given), rng)
            candidates = torch.cat([given, belief.contain(knots.spread(drawn))])
            costs = _ask(evaluate, candidates, batch, lambda: clock() >= deadline, at_least_one=number == 0)
            if len(costs) < len(candidates):
                stopped = "budget"
            if len(costs) == 0:
                break
            evaluations += len(costs)
            candidates = candidates[: len(costs)]

            stay = self.elites if stopped else self._kept  # a round cut short has too few to learn from by themselves
            pool = torch.cat([elites[:stay], candidates])
            pool_costs = torch.cat([elite_costs[:stay], costs])
            finite = int(pool_costs.isfinite().sum())
            if finite == 0 and not history:
                raise FloatingPointError(f"{evaluate}: none of {len(costs)} candidate plans has a finite cost")
            if finite:
                elite_costs, order = pool_costs.topk(min(self.elites, finite), largest=False)
                elites = pool[order]
            before = best_cost
            if elite_costs[0] < best_cost:
                best, best_cost = elites[0], float(elite_costs[0])
            stale = 0 if before - best_cost > self.tolerance else stale + 1
            history.append(best_cost)
            if on_round is not None:
                on_round(SolverIteration(number, candidates, costs, best, best_cost))

            fitted = self._fit(belief, knots.gather(elites), elite_costs)
            # A belief that moved has a new middle, which is as good a guess as any draw from it.
            given = given[:0] if fitted is belief else belief.contain(knots.spread(fitted.mode))[None]
            belief = fitted
            stopped = stopped or self._settled(stale, elite_costs)
            if stopped:
                break
        mean = belief.contain(knots.spread(belief.mode))
        return PlanResult(
            best, best_cost, mean, elites, elite_costs, evaluations, tuple(history), stopped or "rounds",
            clock() - began,
        )  # fmt: skip

    def _settled(self, stale: int, elite_costs: torch.Tensor) -> Stop | None:
        """Whether to stop early: after ``stale`` rounds without progress, with elites of these costs."""
        if self.patience is not None and stale >= self.patience:
            return "patience"
        if len(elite_costs) > 1 and 0 < self.tolerance >= float(elite_costs[-1] - elite_costs[0]):
            return "spread"
        return None


@dataclass(frozen=True)
class RandomShooting(Solver):
    """Uniform candidates, the best of which wins. ``rounds`` only parts them into batches."""

    @property
    def _kept(self) -> int:
        return self.elites


@dataclass(frozen=True)
class CEM(Solver):
    """The cross-entropy method: fit a Gaussian (or, where actions are choices, their chances) to the elites, again and
    again. The defaults are what the field runs.

    sigma0, min_sigma: widths at the start and at least, in half widths of the bounds; among choices, min_sigma is the
    share that is drawn evenly. momentum: share of the old belief that stays each round. correlated: learn how the
    numbers of a plan vary together (see Correlated); it wants noise of ``beta`` above 0 or few knots to begin with.
    Source: Rubinstein and Kroese, "The Cross-Entropy Method", 2004.
    """

    candidates: int = 300
    rounds: int = 30
    elites: int = 30
    sigma0: float = 0.5
    min_sigma: float = 0.01
    momentum: float = 0.0
    correlated: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(0 < self.sigma0 < math.inf, "sigma0", "a width above 0")
        self._expect(0 <= self.min_sigma <= 1, "min_sigma", "0..1")
        self._expect(0 <= self.momentum < 1, "momentum", "at least 0 and below 1")

    def _belief(self, space: gym.Space, points: int) -> ActionDistribution:
        return about_rest(space, points, self.beta, self.sigma0, self.min_sigma, self.correlated)

    def _fit(self, belief: ActionDistribution, points: torch.Tensor, costs: torch.Tensor) -> ActionDistribution:
        even = torch.full_like(costs, 1 / len(costs))
        return belief.fit(points, even, self.momentum, widths=True)


@dataclass(frozen=True)
class ICEM(CEM):
    """CEM made frugal: noise coloured along the plan, ``keep`` of the elites as candidates again, in the next round at
    no cost and in the next decision moved on in time, and populations that shrink by ``gamma`` from round to round
    (not below twice the elites). Source: Pinneri et al., arXiv 2008.06389, with numbers that vary each for themselves
    (``correlated=False``).
    """

    candidates: int = 96
    rounds: int = 12
    elites: int = 16
    beta: float = 2.0
    sigma0: float = 0.7
    momentum: float = 0.1
    correlated: bool = True
    keep: float = 0.5
    gamma: float = 1.05

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(0 <= self.keep <= 1, "keep", "0..1")
        self._expect(1 <= self.gamma < math.inf, "gamma", "1 or more")

    @property
    def _kept(self) -> int:
        return round(self.keep * self.elites)

    def _size(self, number: int) -> int:
        least = min(2 * self.elites, self.candidates)
        return max(least, int(self.candidates * self.gamma**-number))


@dataclass(frozen=True)
class MPPI(CEM):
    """Model-predictive path integral control: the belief's middle moves to the mean of the elites weighted by
    ``exp(-cost / temperature)``, costs counted in their standard deviations, so that no task needs a temperature of its
    own. Its widths stay unless ``adapt_sigma``. Source: Williams et al., arXiv 1509.01149; with elites and rounds as in
    Hansen et al., TD-MPC2, arXiv 2310.16828.
    """

    candidates: int = 256
    rounds: int = 6
    elites: int = 64
    temperature: float = 0.5
    adapt_sigma: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(0 < self.temperature < math.inf, "temperature", "above 0")

    def _fit(self, belief: ActionDistribution, points: torch.Tensor, costs: torch.Tensor) -> ActionDistribution:
        scale = costs.std(correction=0).clamp(min=1e-12)  # of one cost, or of equal ones: they weigh alike
        weights = (-(costs - costs[0]) / (self.temperature * scale)).softmax(0)
        return belief.fit(points, weights, self.momentum, widths=self.adapt_sigma)


def _move_on(actions: torch.Tensor, steps: int, rest: torch.Tensor) -> torch.Tensor:
    """``(..., l, a)`` as it stands ``steps`` steps later: what is left, then ``rest`` ``(l, a)``, cut to its length.

    Rest and not the last action again: a plan that arrives at a goal then stays there.
    """
    left = actions[..., steps:, :]
    return torch.cat([left, rest.expand(*left.shape[:-2], -1, -1)], -2)[..., : len(rest), :]


def _contained(proposals: torch.Tensor, belief: ActionDistribution, lookahead: int) -> torch.Tensor:
    """``proposals`` as candidates, or a ValueError."""
    proposals = torch.as_tensor(proposals).detach().cpu()
    shape = (lookahead, len(belief.rest))
    if proposals.ndim != 3 or tuple(proposals.shape[1:]) != shape:
        raise ValueError(
            f"proposals: expected plans of shape (p, {shape[0]}, {shape[1]}), got {tuple(proposals.shape)}"
        )
    if not bool(proposals.isfinite().all()):
        raise ValueError("proposals: expected finite numbers, got NaN or infinity")
    return belief.contain(proposals)


def _ask(
    evaluate: Evaluate, candidates: torch.Tensor, batch: int | None, late: Callable[[], bool], at_least_one: bool
) -> torch.Tensor:
    """Costs ``(k,)`` on the CPU of the first k candidates, batch by batch until it is ``late``; what is no number counts
    as infinitely bad."""
    costs = torch.empty(0)
    for part in candidates.split(batch or len(candidates)):
        if not (at_least_one and len(costs) == 0) and late():
            break
        answer = evaluate(part)
        if tuple(answer.shape) != (len(part),):
            raise ValueError(
                f"evaluate: expected a cost for each of {len(part)} candidates, got shape {tuple(answer.shape)}"
            )
        answer = answer.detach().to("cpu", torch.float32)
        costs = torch.cat([costs, answer.where(answer.isfinite(), math.inf)])
    return costs
