"""Solvers: candidates lie in the action space, the result is the best one evaluated, and good candidates are kept."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralsim.agents.planning.distributions import coloured, colouring
from neuralsim.agents.planning.solvers import (
    CEM,
    ICEM,
    MPPI,
    PlanResult,
    RandomShooting,
    SearchLimits,
    Solver,
    SolverIteration,
    WarmStart,
)
from neuralsim.agents.planning.splines import SPREADS, place_control_points

BOX = gym.spaces.Box(-1, 1, (2,))
SEARCHES: dict[str, Solver] = {
    "random": RandomShooting(candidates=20, rounds=3, elites=4),
    "cem": CEM(candidates=20, rounds=3, elites=4),
    "cem, wide": CEM(candidates=20, rounds=3, elites=4, sigma0=5.0),
    "icem": ICEM(candidates=20, rounds=3, elites=4),
    "icem, independent": ICEM(candidates=20, rounds=3, elites=4, correlated=False, gamma=1.5),
    "icem, held control points": ICEM(candidates=20, rounds=3, elites=4, control_points=3),
    "icem, lines": ICEM(candidates=20, rounds=3, elites=4, control_points=4, spread="linear"),
    "icem, splines": ICEM(candidates=20, rounds=3, elites=4, control_points=4, spread="cubic", sigma0=2.0),
    "mppi": MPPI(candidates=20, rounds=3, elites=10),
    "mppi, adapting": MPPI(candidates=20, rounds=3, elites=10, adapt_sigma=True, correlated=True, beta=1.0),
}
each_search = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())


class ChaoticCost:
    """A cost without structure, so that only a record of all evaluations shows the best; it keeps that record."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale, self.evaluated, self.costs = scale, [], []

    def __call__(self, candidates: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(1, candidates[0].numel() + 1, dtype=torch.float64)
        costs = (candidates.double().flatten(1) * steps * 37).sin().sum(1).float() * self.scale
        self.evaluated.append(candidates.clone())
        self.costs.append(costs)
        return costs

    @property
    def candidates(self) -> torch.Tensor:
        return torch.cat(self.evaluated)

    @property
    def least(self) -> float:
        return float(torch.cat(self.costs).min())


class PointMass:
    """A mass in a box, pushed for as long as a plan lasts; the cost is its distance from the goal at the end, and its speed."""

    def __init__(self, seed: int) -> None:
        ends = torch.as_tensor(np.random.default_rng(seed).uniform(-1, 1, (2, 2))).float()
        self.start, self.goal = ends

    def __call__(self, candidates: torch.Tensor) -> torch.Tensor:
        place, speed = self.start.expand(len(candidates), 2), torch.zeros(len(candidates), 2)
        for push in candidates.unbind(1):
            speed = 0.8 * speed + 0.03 * push
            place = (place + speed).clamp(-1, 1)
        return (place - self.goal).norm(dim=1) + 0.3 * speed.norm(dim=1)


def rng_of(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inside(space: gym.spaces.Box, actions: torch.Tensor) -> bool:
    return bool((actions >= torch.as_tensor(space.low)).all() and (actions <= torch.as_tensor(space.high)).all())


# -- the action space ----------------------------------------------------------------------------------------------------


@each_search
@settings(max_examples=10)
@given(data=st.data())
def test_every_candidate_lies_within_the_bounds(search, data):
    a = data.draw(st.integers(1, 3))
    low = np.array(data.draw(st.lists(st.floats(-3, 3, width=32), min_size=a, max_size=a)), np.float32)
    width = np.array(data.draw(st.lists(st.floats(0.125, 4, width=32), min_size=a, max_size=a)), np.float32)
    space = gym.spaces.Box(low, low + width)
    first, second = (data.draw(st.integers(1, 9)) for _ in range(2))
    before, cost = ChaoticCost(), ChaoticCost()
    rng = rng_of(data.draw(st.integers(0, 99)))
    shift = data.draw(st.integers(0, 10))
    warm = search.plan(before, space, first, rng)
    proposals = torch.full((2, second, a), 100.0)
    plan = search.plan(cost, space, second, rng, start=WarmStart(warm, shift, proposals))
    assert inside(space, torch.cat([before.candidates.flatten(0, 1), cost.candidates.flatten(0, 1)]))
    assert inside(space, plan.actions)
    assert inside(space, plan.elites)
    assert plan.actions.shape == (second, a)
    assert plan.actions.dtype == torch.float32
    assert (cost.candidates == torch.as_tensor(space.high)).all((1, 2)).any()  # what the proposals became


@pytest.mark.parametrize("space", [gym.spaces.Discrete(4, start=3), gym.spaces.MultiDiscrete([2, 5])], ids=str)
@pytest.mark.parametrize(
    "search", [CEM(100, 12, 10), ICEM(100, 12, 10, beta=1.0), MPPI(200, 12, 40)], ids=lambda s: type(s).__name__
)
def test_choices_are_searched_and_the_only_best_sequence_found(space, search):
    first = torch.tensor([3] if isinstance(space, gym.spaces.Discrete) else [0, 0])
    sizes = torch.tensor([4] if isinstance(space, gym.spaces.Discrete) else [2, 5])
    for seed in range(4):
        wanted = first + (torch.rand(7, len(sizes), generator=rng_of(seed + 50)) * sizes).long()
        seen = []

        def evaluate(candidates, wanted=wanted, seen=seen):
            seen.append(candidates)
            return (candidates != wanted).flatten(1).sum(1).float()

        plan = search.plan(evaluate, space, 7, rng_of(seed))
        asked = torch.cat(seen)
        assert asked.dtype == torch.int64
        assert ((asked >= first) & (asked < first + sizes)).all()
        assert all((asked[..., i] == c).any() for i in range(len(sizes)) for c in range(first[i], first[i] + sizes[i]))
        assert torch.equal(plan.actions, wanted)
        assert plan.cost == 0


def test_choices_come_in_runs_where_noise_is_coloured():
    cost = ChaoticCost()
    changes = []
    for beta in (0.0, 2.0):
        RandomShooting(2000, beta=beta).plan(cost, gym.spaces.Discrete(3), 12, rng_of())
        drawn = cost.evaluated[-1][1:, :, 0]
        changes.append(float((drawn[:, 1:] != drawn[:, :-1]).float().mean()))
        shares = torch.bincount(drawn.flatten()) / drawn.numel()
        assert torch.allclose(shares, torch.full((3,), 1 / 3), atol=0.03)
    assert changes[0] == pytest.approx(2 / 3, abs=0.02)
    assert changes[1] < 0.4


@pytest.mark.parametrize(
    "space", [gym.spaces.Box(-np.inf, np.inf, (2,)), gym.spaces.Box(-1, 1, (2, 2)), gym.spaces.MultiBinary(3)], ids=str
)
def test_spaces_that_cannot_be_searched_are_refused(space):
    with pytest.raises(ValueError, match=r"action space: expected a Box .* got"):
        CEM(20, 2, 4).plan(ChaoticCost(), space, 3, rng_of())


def test_choices_between_choices_are_refused():
    with pytest.raises(ValueError, match=r"choices cannot be interpolated; .* spread must be 'hold', got 'linear'"):
        CEM(control_points=3, spread="linear").plan(
            lambda c: c.float().mean((1, 2)), gym.spaces.Discrete(3), 12, rng_of()
        )


# -- the result ----------------------------------------------------------------------------------------------------------


@each_search
@settings(max_examples=10)
@given(seed=st.integers(0, 1000), lookahead=st.integers(1, 8), batch=st.sampled_from([None, 1, 7, 20, 99]))
def test_the_result_is_the_best_candidate_ever_evaluated(search, seed, lookahead, batch):
    cost, watched = ChaoticCost(), []
    warm: PlanResult | None = None
    for shift in (0, 2):
        cost = ChaoticCost()
        watched.clear()
        warm = search.plan(
            cost,
            BOX,
            lookahead,
            rng_of(seed),
            start=WarmStart(warm, shift),
            limits=SearchLimits(batch=batch),
            on_iteration=watched.append,
        )
        assert warm.cost == cost.least
        assert any(torch.equal(warm.actions, c) for c in cost.candidates)
        assert float(ChaoticCost()(warm.actions[None])) == warm.cost
        assert warm.evaluations == len(cost.candidates) == sum(len(r.candidates) for r in watched)
        assert warm.rounds == len(watched) == 3
        assert warm.history == tuple(np.minimum.accumulate([float(r.costs.min()) for r in watched]))
        assert [(r.number, r.best_cost) for r in watched] == list(enumerate(warm.history))
        assert torch.equal(watched[-1].best, warm.actions)
        assert (warm.elite_costs.diff() >= 0).all()
        assert torch.equal(ChaoticCost()(warm.elites), warm.elite_costs)
        assert max(len(c) for c in cost.evaluated) <= (batch or 20)


@each_search
def test_the_generator_settles_everything(search):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (search.plan(ChaoticCost(), BOX, 6, rng_of(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.actions, two.actions)
    assert torch.equal(one.elites, two.elites)
    assert torch.equal(one.mean, two.mean)
    assert not torch.equal(one.actions, other.actions)


@each_search
def test_the_unit_of_the_costs_does_not_matter(search):
    # A power of two, so that nothing is rounded otherwise.
    one, other = (search.plan(ChaoticCost(scale), BOX, 6, rng_of()) for scale in (1.0, 1024.0))
    assert torch.equal(one.actions, other.actions)
    assert other.cost == 1024 * one.cost


def test_costs_that_are_no_numbers_never_win():
    def half_broken(candidates):
        costs = ChaoticCost()(candidates)
        bad = torch.tensor([math.nan, -math.inf, math.inf])
        return torch.where(candidates[:, 0, 0] > 0, bad[torch.arange(len(costs)) % 3], costs)

    for search in SEARCHES.values():
        plan = search.plan(half_broken, BOX, 4, rng_of())
        assert plan.actions[0, 0] <= 0
        assert math.isfinite(plan.cost)
        assert plan.elite_costs.isfinite().all()


def test_a_function_that_never_gives_a_number_is_named():
    class Broken:
        def __repr__(self) -> str:
            return "a broken world"

        def __call__(self, candidates):
            return torch.full((len(candidates),), math.nan)

    with pytest.raises(FloatingPointError, match="a broken world: none of 20 candidate plans has a finite cost"):
        CEM(20, 3, 4).plan(Broken(), BOX, 4, rng_of())


def test_numbers_that_fail_later_leave_the_first_answer():
    cost = ChaoticCost()

    def failing(candidates):
        return cost(candidates) if not cost.evaluated else torch.full((len(candidates),), math.nan)

    plan = CEM(20, 3, 4).plan(failing, BOX, 4, rng_of())
    assert plan.cost == cost.least
    assert plan.rounds == 3
    assert torch.equal(ChaoticCost()(plan.elites), plan.elite_costs)


def test_a_cost_for_each_candidate_is_required():
    with pytest.raises(ValueError, match=r"expected a cost for each of 20 candidates, got shape \(\)"):
        CEM(20, 3, 4).plan(lambda candidates: candidates.sum(), BOX, 4, rng_of())


# -- quality -------------------------------------------------------------------------------------------------------------


def final_costs(search: Solver, seeds: range) -> tuple[np.ndarray, int]:
    plans = [search.plan(PointMass(seed), BOX, 25, rng_of(seed)) for seed in seeds]
    return np.array([p.cost for p in plans]), max(p.evaluations for p in plans)


def test_icem_beats_random_shooting_at_equal_evaluations():
    icem, evaluations = final_costs(ICEM(), range(10))
    random, same = final_costs(RandomShooting(evaluations), range(10))
    assert same == evaluations < 900
    assert (icem < random).sum() >= 9
    assert icem.mean() < 0.2 * random.mean()  # 0.01 against 0.25


def test_correlated_numbers_beat_independent_ones():
    correlated, evaluations = final_costs(ICEM(), range(12))
    independent, same = final_costs(ICEM(correlated=False), range(12))
    assert same == evaluations
    assert correlated.mean() < 0.8 * independent.mean()


@pytest.mark.parametrize(
    "search",
    [
        CEM(64, 8, 8),
        MPPI(64, 8, 24),
        MPPI(64, 8, 24, adapt_sigma=True),
        ICEM(64, 8, 8, control_points=5, spread="cubic"),
    ],
    ids=str,
)
def test_every_search_finds_far_better_plans_than_its_first_round(search):
    for seed in range(3):
        history = search.plan(PointMass(seed), BOX, 25, rng_of(seed)).history
        assert history[-1] < 0.5 * history[0]


def test_mppi_grows_greedier_as_it_cools():
    def nearness(temperature: float) -> float:
        search = MPPI(200, 1, 200, temperature=temperature)
        plan = search.plan(PointMass(3), BOX, 10, rng_of())
        return float((plan.mean - plan.actions).norm())

    assert nearness(1e-3) < 1e-3 < nearness(0.5) < nearness(100.0)


# -- the last decision ---------------------------------------------------------------------------------------------------


@each_search
@pytest.mark.parametrize("shift", [0, 2, 6, 9])
def test_the_rest_of_the_last_plan_is_the_first_candidate(search, shift):
    old = search.plan(ChaoticCost(), BOX, 6, rng_of())
    cost = ChaoticCost()
    plan = search.plan(cost, BOX, 6, rng_of(1), start=WarmStart(old, shift))
    rest = torch.zeros(min(shift, 6), 2)
    left, mean = (torch.cat([x[shift:], rest]) for x in (old.actions, old.mean))
    assert torch.equal(cost.evaluated[0][0], left)
    assert torch.equal(cost.evaluated[0][1], torch.zeros(6, 2))
    assert torch.equal(cost.evaluated[0][2], mean)
    assert plan.cost <= float(ChaoticCost()(left[None]))


def test_icem_carries_its_elites_on():
    search = ICEM(20, 3, 4, keep=0.5)
    old = search.plan(ChaoticCost(), BOX, 6, rng_of())
    cost = ChaoticCost()
    search.plan(cost, BOX, 6, rng_of(1), start=WarmStart(old, 2))
    carried = torch.cat([old.elites[:2, 2:], torch.zeros(2, 2, 2)], 1)
    assert torch.equal(cost.evaluated[0][3:5], carried)


def test_kept_elites_are_not_evaluated_twice_and_not_forgotten():
    cost = ChaoticCost()
    plan = ICEM(20, 4, 6, keep=1.0, gamma=1.0).plan(cost, BOX, 6, rng_of())
    costs, order = torch.cat(cost.costs).topk(6, largest=False)
    assert plan.evaluations == 80 == len(cost.candidates.flatten(1).unique(dim=0))
    assert torch.equal(plan.elite_costs, costs)
    assert torch.equal(plan.elites, cost.candidates[order])


def test_a_warm_search_needs_fewer_evaluations():
    whole, one_round = ICEM(64, 12, 16), ICEM(64, 1, 16)
    warm, cold = [], []
    for seed in range(4):
        first = whole.plan(PointMass(seed), BOX, 25, rng_of(seed))
        warm.append(one_round.plan(PointMass(seed), BOX, 25, rng_of(seed + 1), start=WarmStart(first)).cost)
        cold.append(one_round.plan(PointMass(seed), BOX, 25, rng_of(seed + 1)).cost)
        assert warm[-1] <= first.cost
    assert np.mean(warm) < 0.3 * np.mean(cold)


def test_proposals_are_candidates():
    cost = ChaoticCost()
    proposals = torch.rand(3, 6, 2, generator=rng_of()) * 2 - 1
    old = ICEM(20, 3, 4).plan(ChaoticCost(), BOX, 6, rng_of())
    ICEM(20, 3, 4).plan(cost, BOX, 6, rng_of(), start=WarmStart(proposals=proposals))
    assert torch.equal(cost.evaluated[0][1:4], proposals)
    ICEM(20, 3, 4).plan(cost, BOX, 6, rng_of(), start=WarmStart(old, 1, proposals))
    assert torch.equal(cost.evaluated[3][3:6], proposals)
    target = proposals[1]
    plan = CEM(20, 3, 4).plan(
        lambda c: (c - target).square().sum((1, 2)), BOX, 6, rng_of(), start=WarmStart(proposals=proposals)
    )
    assert torch.equal(plan.actions, target)


@pytest.mark.parametrize(
    ("proposals", "message"),
    [
        (torch.zeros(6, 2), r"shape \(p, 6, 2\), got \(6, 2\)"),
        (torch.zeros(3, 5, 2), r"got \(3, 5, 2\)"),
        (torch.full((1, 6, 2), math.nan), "finite"),
    ],
)
def test_proposals_of_the_wrong_kind_are_refused(proposals, message):
    with pytest.raises(ValueError, match=f"proposals: .*{message}"):
        CEM(20, 3, 4).plan(ChaoticCost(), BOX, 6, rng_of(), start=WarmStart(proposals=proposals))


# -- time ----------------------------------------------------------------------------------------------------------------


@each_search
@settings(max_examples=10)
@given(seconds=st.floats(-5, 80), batch=st.sampled_from([4, 7, 20]))
def test_the_deadline_is_overrun_by_one_batch_at_most(search, seconds, batch):
    now = [0.0]
    cost = ChaoticCost()

    def slow(candidates):
        now[0] += 1.0
        return cost(candidates)

    plan = search.plan(slow, BOX, 5, rng_of(), limits=SearchLimits(seconds, batch, lambda: now[0]))
    sizes = [search._n_candidates(i) for i in range(3)]
    whole = sum(math.ceil(n / batch) for n in sizes)
    assert len(cost.evaluated) == min(whole, max(1, math.ceil(seconds)))
    assert now[0] < max(seconds, 0) + 1 + 1e-9
    assert plan.cost == cost.least
    assert plan.seconds == now[0]
    assert (plan.stopped == "budget") == (len(cost.evaluated) < whole)


def test_a_search_without_progress_ends_early():
    def flat(candidates):
        return torch.ones(len(candidates))

    assert CEM(20, 9, 4).plan(flat, BOX, 5, rng_of()).rounds == 9
    patient = CEM(20, 9, 4, patience=2).plan(flat, BOX, 5, rng_of())
    assert (patient.rounds, patient.stopped) == (3, "patience")
    alike = CEM(20, 9, 4, tolerance=1e-6).plan(flat, BOX, 5, rng_of())
    assert (alike.rounds, alike.stopped) == (1, "spread")
    busy = CEM(64, 6, 8, patience=2, tolerance=1e-6).plan(PointMass(0), BOX, 25, rng_of())
    assert (busy.rounds, busy.stopped) == (6, "rounds")


def test_populations_shrink():
    rounds: list[SolverIteration] = []
    ICEM(100, 6, 10, gamma=2.0).plan(ChaoticCost(), BOX, 5, rng_of(), on_iteration=rounds.append)
    assert [len(r.candidates) for r in rounds] == [100, 50, 25, 20, 20, 20]


# -- noise and control points -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("points", [1, 2, 5, 25])
def test_coloured_noise_is_standard_normal_at_every_point(beta, points):
    noise = coloured((4000, points, 2), beta, rng_of())
    assert noise.shape == (4000, points, 2)
    assert noise.mean((0, 2)).abs().max() < 0.06
    assert (noise.std((0, 2)) - 1).abs().max() < 0.05
    assert (noise[:, :, 0] * noise[:, :, 1]).mean().abs() < 0.06  # dimensions know nothing of each other


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_the_power_of_coloured_noise_falls_as_asked(beta):
    noise = coloured((400, 256, 1), beta, rng_of())[:, :, 0]
    power = torch.fft.rfft(noise * torch.hann_window(256), dim=1).abs().square().mean(0)
    frequency = torch.arange(len(power))
    band = slice(4, 64)
    slope = np.polyfit(frequency[band].log().numpy(), power[band].log().numpy(), 1)[0]
    assert slope == pytest.approx(-beta, abs=0.2)


def test_the_ends_of_a_coloured_plan_are_not_tied_together():
    # A period of the Fourier series as a whole would make the last point the first one's neighbour.
    likeness = colouring(25, 2.0) @ colouring(25, 2.0).T
    assert torch.allclose(likeness.diagonal(), torch.ones(25), atol=1e-5)
    assert likeness[0, 1] > 0.9
    assert (likeness[0].diff() < 0).all()


@given(lookahead=st.integers(1, 40), share=st.floats(0, 1), spread=st.sampled_from(SPREADS), seed=st.integers(0, 99))
def test_points_come_back_from_the_actions_they_make(lookahead, share, spread, seed):
    points = 1 + round(share * (lookahead - 1))
    spline = place_control_points(lookahead, points, spread)
    given_points = torch.rand(3, points, 2, generator=rng_of(seed)) * 2 - 1
    actions = spline.spread(given_points)
    assert actions.shape == (3, lookahead, 2)
    assert torch.allclose(spline.gather(actions), given_points, atol=1e-3)
    if spread != "cubic":
        assert actions.abs().max() <= given_points.abs().max() + 1e-6
    if spread == "hold":
        whole = place_control_points(lookahead, points, "hold")
        choices = torch.randint(0, 9, (3, points, 2), generator=rng_of(seed))
        assert torch.equal(whole.gather(whole.spread(choices)), choices)


def test_how_points_are_spread():
    line = torch.tensor([[0.0], [1.0], [2.0]])
    assert place_control_points(6, 3, "hold").spread(line)[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    for spread in ("linear", "cubic"):
        assert torch.allclose(
            place_control_points(5, 3, spread).spread(line)[:, 0], torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0])
        )
    bump = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    smooth = place_control_points(10, 4, "cubic").spread(bump)[:, 0]
    assert torch.allclose(smooth[[0, 3, 6, 9]], bump[:, 0], atol=1e-6)
    assert smooth.max() > 1.01  # a spline overshoots: why candidates are brought back within the bounds


# -- settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CEM(candidates=0), "CEM: candidates must be a whole number of at least 1, got 0"),
        (lambda: CEM(rounds=True), "CEM: rounds"),
        (lambda: ICEM(elites=97), "ICEM: elites are the best of the candidates, expected at most 96 of them, got 97"),
        (lambda: RandomShooting(control_points=0), "control_points"),
        (lambda: MPPI(spread="quartic"), "spread must be one of hold, linear, cubic, got 'quartic'"),  # type: ignore[arg-type]
        (lambda: ICEM(beta=-1.0), "beta"),
        (lambda: ICEM(keep=1.5), "keep"),
        (lambda: ICEM(gamma=0.5), "gamma"),
        (lambda: CEM(sigma0=0.0), "sigma0"),
        (lambda: CEM(min_sigma=-0.1), "min_sigma"),
        (lambda: CEM(momentum=1.0), "momentum"),
        (lambda: CEM(tolerance=math.nan), "tolerance"),
        (lambda: CEM(patience=0), "patience"),
        (lambda: MPPI(temperature=0.0), "temperature"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
