"""Planning in imagination: what a plan costs, what is asked of the model for it, and a Policy that any loop can drive."""

from __future__ import annotations

import copy
import math
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from diffusers.configuration_utils import register_to_config
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from neuralsim.agents import CEM, ICEM, MPPI, Planner, PlannerConfig, RandomShooting, goal_image
from neuralsim.agents.planning.cost import CostConfig, PlanCost
from neuralsim.agents.planning.planner import Decision, Memory
from neuralsim.envs.imagined.env import ImaginedEnv
from neuralsim.envs.imagined.sb3_vec_env import ImaginedVecEnv
from neuralsim.models.video_wam import VideoWAM
from neuralsim.noise import Noise
from neuralsim.pretrained.world import World, open_world
from neuralsim.spec import WorldSpec
from neuralsim.storage.resolve import list_worlds
from neuralsim.task import FunctionTask, GoalImage, LearnedTask, SumTask
from neuralsim.world_model import State, WorldModel

QUICK = ICEM(candidates=16, rounds=3, elites=4)


def refit(world: World, **methods: Any) -> World:
    """The exact world without chance, with some of its methods replaced."""
    kind = type("Refit", (type(world.model),), methods)
    return World(kind(spec=asdict(world.spec), jitter=0.0).eval(), world.starts)


@pytest.fixture
def calm(dot_world) -> World:
    """The exact world without chance."""
    return refit(dot_world)


def begin(world: World, start: int = 0) -> State:
    starts = world.starts
    assert starts is not None
    return world.model.encode(
        torch.as_tensor(starts.frames[start : start + 1]), torch.as_tensor(starts.actions[start : start + 1])
    )


def costs_of(world: World, task: Any, plans: torch.Tensor, seed: int = 0, **how: Any) -> torch.Tensor:
    return PlanCost(world.model, task, begin(world), Noise.from_seeds([seed]), CostConfig(**how))(plans)


def ways(world: World, plans: torch.Tensor) -> torch.Tensor:
    """Where the dot of the calm world is after each action, ``(n, l, 2)``, from the physics as its docstring has them."""
    place = world.model.features(begin(world)).expand(len(plans), 2)
    places = []
    for push in plans.unbind(1):
        place = (place + 0.1 * push).clamp(-1, 1)
        places.append(place)
    return torch.stack(places, 1)


@pytest.fixture
def plans() -> torch.Tensor:
    """Plans ``(12, 7, 2)``."""
    return torch.rand(12, 7, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1


# -- what a plan costs ---------------------------------------------------------------------------------------------------


def test_the_three_ways_to_count(calm, plans):
    middle = FunctionTask(lambda before, action, after: -after.features.norm(dim=1))
    distance = ways(calm, plans).norm(dim=2)
    assert torch.allclose(costs_of(calm, middle, plans, block=3), distance[:, -1], atol=1e-6)
    blocks = distance[:, [2, 5, 6]] @ torch.tensor([0.9**2, 0.9**5, 0.9**6])
    assert torch.allclose(costs_of(calm, middle, plans, when="blocks", block=3, discount=0.9), blocks, atol=1e-5)
    steps = distance @ (0.9 ** torch.arange(7.0))
    assert torch.allclose(costs_of(calm, middle, plans, when="steps", discount=0.9), steps, atol=1e-5)


@pytest.mark.parametrize("discount", [1.0, 0.8])
def test_steps_and_chunks_give_the_same_score(dot_world, plans, discount):
    # In the world with chance: all ways of unrolling meet the same noise at the same step.
    task = SumTask(((1.0, LearnedTask(threshold=2.0)), (0.3, goal_image(dot_world.starts.frames[3, -1]))))
    how = {"when": "steps", "discount": discount, "uncertainty_penalty": 0.1}
    steps = costs_of(dot_world, task, plans, **how)
    for chunk in (2, 3, 7, 50):
        assert torch.allclose(costs_of(dot_world, task, plans, chunk=chunk, **how), steps, atol=1e-5)
    how["when"] = "blocks"
    assert torch.allclose(costs_of(dot_world, task, plans, block=1, **how), steps, atol=1e-5)
    assert not torch.allclose(costs_of(dot_world, task, plans, block=2, **how), steps, atol=1e-2)


def test_a_task_sees_the_action_and_both_sides_of_it(calm, plans):
    def moved(before, action, after):
        return -(after.features - before.features - 0.1 * action).abs().sum(1)

    for chunk in (1, 3):
        cost = costs_of(calm, FunctionTask(moved), plans * 0.3, when="steps", chunk=chunk)
        assert torch.allclose(cost, torch.zeros(12), atol=1e-5)


@pytest.fixture
def through() -> torch.Tensor:
    """Two plans from the first start, (0.6, 0): through the middle and on, reaching its neighbourhood (0.15) with the
    fifth of nine actions; and away from it."""
    there = torch.tensor([[-1.0, 0.0]]).repeat(9, 1)
    return torch.stack([there, -there])


@pytest.mark.parametrize("chunk", [1, 4])
def test_nothing_counts_after_an_imagined_end(calm, through, chunk):
    distance = ways(calm, through).norm(dim=2)
    ended = distance[0] < 0.15
    first = int(ended.nonzero()[0])
    assert 3 <= first <= 5
    assert not ended[-1]  # it would leave again
    cost = costs_of(calm, LearnedTask(), through, when="steps", chunk=chunk)
    assert cost[0] == pytest.approx(float(distance[0, : first + 1].sum()), abs=1e-5)
    assert cost[1] == pytest.approx(float(distance[1].sum()), abs=1e-5)
    # Where every step pays, an end forgoes the pay.
    paid = FunctionTask(lambda b, a, after: (torch.ones(len(after)), after.features.norm(dim=1) < 0.15))
    assert costs_of(calm, paid, through, when="steps", chunk=chunk).tolist() == [-(first + 1), -9]
    doubt = costs_of(calm, paid, through, when="steps", chunk=chunk, uncertainty_penalty=10.0)
    gone = 0.1 * torch.arange(1, first + 2).sum()
    assert doubt[0] == pytest.approx(float(10 * gone) - (first + 1), abs=1e-3)


def test_an_end_on_the_way_keeps_its_reward(calm, through):
    distance = ways(calm, through).norm(dim=2)
    first = int((distance[0] < 0.15).nonzero()[0])
    cost = costs_of(calm, LearnedTask(), through, when="end", block=1)
    assert cost.tolist() == pytest.approx([float(distance[0, first]), float(distance[1, -1])], abs=1e-6)
    # Steps within a block are not scored.
    unseen = costs_of(calm, LearnedTask(), through, when="end", block=9)
    assert unseen.tolist() == pytest.approx(distance[:, -1].tolist(), abs=1e-6)


def test_the_way_is_not_scored_where_only_the_end_counts(calm, plans):
    asked = []

    def features(self, state):
        asked.append(len(state))
        return state.place

    goal = calm.starts.frames[2, -1]
    world = refit(calm, features=features)
    for task, looks in (
        (goal_image(goal), 1),
        (SumTask(((1.0, goal_image(goal)), (1.0, goal_image(goal)))), 1),
        (goal_image(goal, tolerance=1e-9), 3),
        (FunctionTask(lambda before, action, after: after.features[:, 0]), 3),
    ):
        costs_of(world, task, plans, block=3)  # the goal itself is read once
        asked.clear()
        costs = costs_of(world, task, plans, block=3)
        assert asked == [12] * looks
        assert costs.isfinite().all()


def test_doubt_costs_what_it_is_said_to(calm, plans):
    middle = FunctionTask(lambda before, action, after: -after.features.norm(dim=1))
    gone = (plans * 0.1).norm(dim=2).cumsum(1)
    free = costs_of(calm, middle, plans, block=3)
    dear = costs_of(calm, middle, plans, block=3, uncertainty_penalty=2.0)
    assert torch.allclose(dear - free, 2 * gone[:, [2, 5, 6]].sum(1), atol=1e-5)


def test_memory_is_bounded_by_the_batch_and_nothing_else_changes(dot_world):
    sizes = []

    def step(self, state, action, rng):
        sizes.append(len(action))
        return super(type(self), self).step(state, action, rng)

    world = refit(dot_world, step=step)
    for when in ("end", "steps"):
        found = []
        for batch, largest in ((1024, 16), (5, 5)):
            sizes.clear()
            planner = Planner(world, LearnedTask(), QUICK, PlannerConfig(lookahead=7, when=when, batch=batch))
            found.append(planner.decide(begin(world))[0])
            assert max(sizes) == largest
        assert torch.equal(found[0].actions, found[1].actions)
        assert found[0].cost == found[1].cost


def test_candidates_differ_by_their_actions_alone(dot_world, plans):
    same = plans[:1].expand(6, -1, -1)
    task = LearnedTask()
    costs = costs_of(dot_world, task, same)
    assert (costs == costs[0]).all()
    assert costs_of(dot_world, task, same, seed=1)[0] != costs[0]


def test_one_state_at_a_time(calm):
    state = begin(calm).repeat(2)
    with pytest.raises(ValueError, match="expected one state and its noise, got 2 and 1"):
        PlanCost(calm.model, LearnedTask(), state, Noise.from_seeds([0]))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"when": "never"}, "when: expected one of end, blocks, steps, got 'never'"),
        ({"block": 0}, "block"),
        ({"chunk": 1.5}, "chunk"),
        ({"discount": 0.0}, "discount"),
        ({"discount": 1.1}, "discount"),
        ({"uncertainty_penalty": -1.0}, "uncertainty_penalty"),
        ({"uncertainty_penalty": math.nan}, "uncertainty_penalty"),
    ],
)
def test_scoring_that_makes_no_sense_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        CostConfig(**how)


# -- decisions from a known state ----------------------------------------------------------------------------------------


def test_exact_plans_get_no_worse_from_decision_to_decision(calm):
    # What is left of a plan, and then rest, is worth what the plan was worth: the model is exact and a dot stays put.
    planner = Planner(
        calm, LearnedTask(threshold=2.0), RandomShooting(6, elites=2), PlannerConfig(lookahead=12, n_action_steps=2)
    )
    state, memory = begin(calm), None
    costs = []
    for _ in range(6):
        plan, memory = planner.decide(state, memory)
        state = calm.model.unroll_last(state, plan.actions[None, :2], Noise.from_seeds([0]))
        costs.append(plan.cost)
        assert memory.step == 2 * len(costs)
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0]
    assert [d.cost for d in memory.decisions] == costs
    assert [d.step for d in memory.decisions] == [0, 2, 4, 6, 8, 10]


def test_the_predicted_cost_is_what_happens(calm):
    planner = Planner(calm, goal_image(calm.starts.frames[4, -1]), ICEM(), PlannerConfig(lookahead=20))
    plan, _ = planner.decide(begin(calm))
    after = calm.model.unroll_last(begin(calm), plan.actions[None], Noise.from_seeds([0]))
    goal = calm.model.features(begin(calm, 4))
    assert plan.cost == pytest.approx(float((calm.model.features(after) - goal).square().mean().sqrt()), abs=1e-2)
    assert plan.cost < 0.02  # from one side of the ring to the other


def test_plans_do_not_look_beyond_the_episode(calm):
    planner = Planner(calm, LearnedTask(2.0), QUICK, PlannerConfig(lookahead=10, block=5, n_action_steps=4, horizon=13))
    memory, lengths = None, []
    for _ in range(5):
        plan, memory = planner.decide(begin(calm), memory)
        lengths.append(len(plan.actions))
    assert lengths == [10, 9, 5, 1, 1]


def test_proposals_are_tried(calm):
    asked = []

    def policy(state, lookahead):
        asked.append((len(state), lookahead))
        return torch.tensor([-0.6, 0.0]).expand(1, lookahead, 2)

    planner = Planner(
        calm, LearnedTask(2.0), RandomShooting(4, elites=2), PlannerConfig(lookahead=10), proposals=policy
    )
    plan, _ = planner.decide(begin(calm))
    assert asked == [(1, 10)]
    assert torch.equal(plan.actions, torch.tensor([-0.6, 0.0]).expand(10, 2))


@pytest.mark.parametrize("search", [CEM(16, 3, 4), MPPI(16, 3, 8), RandomShooting(48)], ids=lambda s: type(s).__name__)
def test_the_same_seed_decides_the_same(dot_world, search):
    def actions(seed: int) -> torch.Tensor:
        return (
            Planner(dot_world, LearnedTask(2.0), search, PlannerConfig(seed=seed)).decide(begin(dot_world))[0].actions
        )

    before = torch.get_rng_state()
    assert torch.equal(actions(3), actions(3))
    assert not torch.equal(actions(3), actions(-4))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_budget_is_overrun_by_one_batch_at_most(dot_world):
    now, batches = [0.0], []

    def unroll_last(self, state, actions, rng):
        now[0] += 0.002
        batches.append(len(actions))
        return super(type(self), self).unroll_last(state, actions, rng)

    def encode(self, frames, actions):
        now[0] += 0.003
        return super(type(self), self).encode(frames, actions)

    world = refit(dot_world, unroll_last=unroll_last, encode=encode)
    reported: list[Decision] = []
    planner = Planner(
        world,
        LearnedTask(2.0),
        CEM(40, 9, 4),
        PlannerConfig(lookahead=10, budget_ms=14, batch=20),
        on_decision=reported.append,
        clock=lambda: now[0],
    )
    batches.clear()
    # 3 ms for the frame, and 4 for each batch of 20 candidates over two blocks: the fourth would begin at 15.
    _, memories = planner.predict(world.starts.frames[0, -1])
    assert batches == [20] * 6
    decision = memories[0].decisions[0]
    assert reported == [decision]
    assert (decision.evaluations, decision.rounds, decision.stopped) == (60, 2, "budget")
    assert (decision.encode_ms, decision.search_ms, decision.total_ms) == pytest.approx((3, 12, 15))
    # No time at all is enough for one batch, and so for an answer.
    batches.clear()
    config = PlannerConfig(lookahead=10, budget_ms=1e-9, batch=20)
    hasty = Planner(world, LearnedTask(2.0), CEM(40, 9, 4), config, clock=lambda: now[0])
    batches.clear()
    hasty.decide(begin(world))
    assert batches == [20] * 2


def test_a_watcher_sees_every_candidate(calm):
    rounds = []
    planner = Planner(calm, LearnedTask(2.0), QUICK, PlannerConfig(lookahead=10), on_iteration=rounds.append)
    plan, _ = planner.decide(begin(calm))
    assert len(rounds) == 3
    assert sum(len(r.candidates) for r in rounds) == plan.evaluations
    assert rounds[-1].best_cost == plan.cost


def test_a_model_without_numbers_is_named(dot_world):
    def features(self, state):
        return state.place * (math.nan if len(state) > 4 else 1)

    planner = Planner(refit(dot_world, features=features), goal_image(dot_world.starts.frames[0, -1]), QUICK)
    with pytest.raises(FloatingPointError, match="Refit 'dot' scored by GoalImage: none of 16 candidate plans"):
        planner.decide(begin(dot_world))


# -- a Policy ------------------------------------------------------------------------------------------------------------


def unseeing(kind: type[Any]) -> type[Any]:
    """A class of models that cannot be looked at."""

    def decode(self, state):
        raise AssertionError("a planner looked")

    return type("Unseeing", (kind,), {"decode": decode})


@pytest.mark.parametrize("when", ["end", "blocks", "steps"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_nothing_is_ever_decoded(dot_world, tiny_world, when, chunk):
    opened = open_world(tiny_world, "cpu")
    video = unseeing(VideoWAM).from_config(opened.model.config).eval()
    video.load_state_dict(opened.model.state_dict())
    dot = unseeing(type(dot_world.model))(spec=asdict(dot_world.spec)).eval()
    for world in (World(dot, dot_world.starts), World(video, opened.starts)):
        frames = world.starts.frames
        config = PlannerConfig(lookahead=12, when=when, chunk=chunk, uncertainty_penalty=0.1)
        planner = Planner(world, goal_image(frames[1, -1]), QUICK, config)
        _, memories = planner.predict(frames[:2, -1])
        planner.predict(frames[:2, -2], memories, np.array([True, False]))


def test_stable_baselines_evaluates_a_planner(dot_world):
    # The exact world as the real one: 0.6 from the middle, done within 0.15 of it, 0.1 a step in each direction.
    config = PlannerConfig(lookahead=8, block=1, n_action_steps=2, when="steps")
    planner = Planner(dot_world, LearnedTask(), ICEM(32, 4, 8), config)
    env = ImaginedEnv(dot_world, horizon=30)
    env.reset(seed=0)
    rewards, lengths = evaluate_policy(planner, env, 3, return_episode_rewards=True, warn=False)
    assert all(3 <= length <= 8 for length in lengths)  # 30 without an aim
    assert min(rewards) > -3
    vector = ImaginedVecEnv(dot_world, num_envs=3, horizon=30)
    vector.seed(0)
    _, lengths = evaluate_policy(planner, vector, 5, return_episode_rewards=True, warn=False)
    assert len(lengths) == 5
    assert all(3 <= length <= 8 for length in lengths)


def test_a_planner_drives_the_true_simulator(tiny_world, endless):
    def make() -> gym.Env:
        return gym.make("neuralsim/PushTReal-v0", max_episode_steps=7)

    frame, _ = make().reset(seed=0)
    reported: list[Decision] = []
    config = PlannerConfig(lookahead=6, block=3)
    planner = Planner(str(tiny_world), goal_image(frame), QUICK, config, on_decision=reported.append)
    _, lengths = evaluate_policy(planner, make(), 1, return_episode_rewards=True, warn=False)
    assert lengths == [7]
    assert [d.step for d in reported] == [0, 5]
    _, lengths = evaluate_policy(planner, DummyVecEnv([make, make]), 2, return_episode_rewards=True, warn=False)
    assert lengths == [7, 7]
    assert len(reported) == 2 + 4


@pytest.mark.skipif("pusht" not in list_worlds(), reason="no weights in assets yet")
def test_the_shipped_world_can_be_planned_in():
    world = open_world("pusht", "cpu")
    config = PlannerConfig(lookahead=2, block=2, n_action_steps=1)
    planner = Planner(world, LearnedTask(), RandomShooting(3, elites=1), config)
    actions, memories = planner.predict(world.starts.frames[:2, -1])
    assert actions.shape == (2, 2)
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 1
    # The reward is a coverage, 0..1 give or take the head's error, and a cost is minus a reward.
    assert all(-1.2 < m.decisions[0].cost < 0.2 for m in memories)


def film(world: World, planner: Planner, b: int, steps: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Frames seen and actions taken by a planner that drives ``b`` dreams."""
    env = ImaginedVecEnv(world, num_envs=b, horizon=None)
    env.seed(0)
    frames, actions, state = [env.reset()], [], None
    for _ in range(steps):
        action, state = planner.predict(frames[-1], state, None)
        actions.append(action)
        frames.append(env.step(action)[0])
    return frames, actions


def test_environments_in_a_batch_are_planned_for_as_each_alone(dot_world):
    planner = Planner(dot_world, LearnedTask(2.0), QUICK, PlannerConfig(lookahead=8, n_action_steps=3))
    frames, actions = film(dot_world, planner, 3, 8)
    assert not np.array_equal(actions[0][0], actions[0][1])
    for i in range(3):
        state = None
        for seen, taken in zip(frames, actions, strict=False):
            alone, state = planner.predict(seen[i], state)
            assert alone.shape == (2,)
            assert np.array_equal(alone, taken[i])


def test_an_episode_begins_anew_where_it_is_told_to(dot_world):
    planner = Planner(dot_world, LearnedTask(2.0), QUICK, PlannerConfig(lookahead=8, n_action_steps=3))
    frames, actions = film(dot_world, planner, 2, 5)
    _, state = planner.predict(frames[-1], None)
    for _ in range(4):
        _, state = planner.predict(frames[-1], state)
    again = np.stack([frames[0][0], frames[-1][1]])
    began, state = planner.predict(again, state, np.array([True, False]))
    assert np.array_equal(began[0], actions[0][0])
    assert state is not None
    assert [m.step for m in state] == [1, 6]
    assert [len(m.decisions) for m in state] == [1, 2]
    following, _ = planner.predict(np.stack([frames[1][0], frames[-1][1]]), state, np.array([False, False]))
    assert np.array_equal(following[0], actions[1][0])


def test_what_predict_returns_is_a_value(dot_world):
    planner = Planner(dot_world, LearnedTask(2.0), QUICK, PlannerConfig(lookahead=8, n_action_steps=2))
    frames = dot_world.starts.frames[0]
    buffer = frames[0].copy()
    first, state = planner.predict(buffer)
    buffer[:], first[:] = 0, 0  # what is done to arguments and answers reaches no memory
    assert np.array_equal(state[0].frames, frames[:1])
    assert state[0].actions.any()
    runs = []
    for _ in range(2):
        now, taken = state, []
        for _ in range(5):
            action, now = planner.predict(frames[1], now)
            taken.append(action)
        runs.append(taken)
    assert np.array_equal(*runs)
    assert state[0].step == 1


def test_the_model_reads_as_much_history_as_its_world_allows(dot_world):
    read = []

    def encode(self, frames, actions):
        read.append((frames.numpy().copy(), actions.numpy().copy()))
        return super(type(self), self).encode(frames, actions)

    world = refit(dot_world, encode=encode)
    assert world.spec.context == 3
    planner = Planner(world, LearnedTask(2.0), QUICK, PlannerConfig(lookahead=6, n_action_steps=1))
    read.clear()
    frames = dot_world.starts.frames[:5, -1]
    taken, state = [], None
    for frame in frames:
        action, state = planner.predict(frame, state)
        taken.append(action)
    for i, (seen, past) in enumerate(read):
        first = max(0, i - 2)
        assert np.array_equal(seen[0], frames[first : i + 1])
        assert np.array_equal(past[0], np.array(taken[first:i]).reshape(-1, 2))


# -- choices -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChainState(State):
    """The field ``(b,)`` one stands on."""

    field: torch.Tensor


class Chain(WorldModel):
    """Sixteen fields in a row, the one stood on lit; 0 goes left, 1 stays, 2 goes right."""

    @register_to_config
    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.spec = WorldSpec(**spec)
        self.unit = torch.nn.Parameter(torch.ones(()), requires_grad=False)

    @property
    def feature_size(self) -> int:
        return 1

    def encode(self, frames: torch.Tensor, actions: torch.Tensor) -> ChainState:
        return ChainState(frames[:, -1, 0, :, 0].long().argmax(1))

    def step(self, state: ChainState, action: torch.Tensor, rng: Noise) -> ChainState:  # type: ignore[override]
        assert action.dtype == torch.int64
        return ChainState((state.field + action[:, 0] - 1).clamp(0, 15))

    def features(self, state: ChainState) -> torch.Tensor:  # type: ignore[override]
        return state.field[:, None].float()

    def decode(self, state: ChainState) -> torch.Tensor:  # type: ignore[override]
        frames = torch.zeros(len(state), 16, 16, 3, dtype=torch.uint8)
        frames[torch.arange(len(state)), :, state.field] = 255
        return frames

    def uncertainty(self, state: ChainState) -> torch.Tensor:  # type: ignore[override]
        return torch.zeros(len(state))


class ChainEnv(gym.Env):
    """The same chain, as the truth: from field 3 to field 11."""

    observation_space = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, model: Chain) -> None:
        self.model, self.state = model, ChainState(torch.tensor([3]))

    def look(self) -> np.ndarray:
        return self.model.decode(self.state)[0].numpy()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.state = ChainState(torch.tensor([3]))
        return self.look(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self.state = self.model.step(self.state, torch.tensor([[int(action)]]), Noise.from_seeds([0]))
        away = abs(int(self.state.field) - 11)
        return self.look(), -float(away), away == 0, False, {}


@pytest.mark.parametrize("search", [CEM(40, 5, 6), ICEM(40, 5, 6)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("n_action_steps", [1, 4])
def test_choices_are_planned_to_the_optimum(search, n_action_steps):
    chain = Chain(spec=asdict(WorldSpec("chain", 16, 16, ("way",), ("fields",), (1.0,), 1.0, 2))).eval()
    task = FunctionTask(lambda before, action, after: -(after.features[:, 0] - 11).abs())
    config = PlannerConfig(
        lookahead=5, block=1, n_action_steps=n_action_steps, when="steps", action_space=gym.spaces.Discrete(3)
    )
    planner = Planner(chain, task, search, config)
    env = ChainEnv(chain)
    rewards, lengths = evaluate_policy(planner, env, 1, return_episode_rewards=True, warn=False)
    assert lengths == [8]
    assert rewards == [-28.0]
    batch, _ = planner.predict(np.stack([env.reset()[0]] * 2))
    assert batch.tolist() == [2, 2]


# -- processes, copies and defaults --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> World:
    return open_world("tworoom-latent", "cpu")


def planner_in(world: World, **settings: Any) -> Planner:
    assert world.starts is not None
    return Planner(world, goal_image(world.starts.frames[3, -1]), QUICK, PlannerConfig(lookahead=8, **settings))


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301 (our own)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copied_planner_and_a_copied_memory_continue_alike(shipped, copied):
    planner, frames = planner_in(shipped, n_action_steps=2), shipped.starts.frames
    _, memory = planner.predict(frames[0, -1])
    twin, remembered = copied(planner), copied(memory)
    for i in range(1, 5):
        action, memory = planner.predict(frames[i, -1], memory)
        same, remembered = twin.predict(frames[i, -1], remembered)
        assert np.array_equal(action, same)


def test_a_memory_that_leaves_the_process_is_small(shipped):
    planner, frames = planner_in(shipped), shipped.starts.frames
    memory = None
    for i in range(8):
        _, memory = planner.predict(frames[i, -1], memory)
    assert len(pickle.dumps(memory)) < 3 * shipped.spec.context * frames[0, -1].nbytes


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_planner_plans_in_a_child_process_as_here(shipped, method):
    planner, frame = planner_in(shipped), shipped.starts.frames[0, -1]
    action, _ = planner.predict(frame)
    with multiprocessing.get_context(method).Pool(1) as pool:
        found, _ = pool.apply_async(planner.predict, (frame,)).get(timeout=300)
    assert np.allclose(found, action, atol=1e-5)


@pytest.mark.parametrize(
    "solver", [QUICK, CEM(16, 3, 4), MPPI(16, 2, 8), RandomShooting(16)], ids=lambda s: type(s).__name__
)
def test_torchs_default_dtype_and_device_change_nothing(shipped, solver):
    def action() -> np.ndarray:
        tasks: list[Any] = [goal_image(shipped.starts.frames[3, -1]), LearnedTask()]
        config = PlannerConfig(lookahead=8, when="blocks", uncertainty_penalty=0.1)
        planners = [Planner(shipped, task, solver, config) for task in tasks]
        return np.stack([planner.predict(shipped.starts.frames[0, -1])[0] for planner in planners])

    expected = action()
    try:
        torch.set_default_dtype(torch.float64)
        assert np.array_equal(action(), expected)
        torch.set_default_dtype(torch.float32)
        torch.set_default_device("meta")
        assert np.array_equal(action(), expected)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert expected.dtype == np.float32


# -- refused before anything runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lookahead": 0}, "lookahead: expected a whole number"),
        (
            {"lookahead": 5, "block": 6, "n_action_steps": 1},
            "block: expected at most the lookahead of 5 actions, got 6",
        ),
        ({"lookahead": 5, "n_action_steps": 6}, "n_action_steps: expected at most the lookahead of 5 actions, got 6"),
        ({"n_action_steps": 2.0}, "n_action_steps"),
        ({"horizon": 0}, "horizon"),
        ({"batch": 0}, "batch"),
        ({"budget_ms": 0}, "budget_ms: expected milliseconds above 0, or None"),
        ({"budget_ms": -3}, "budget_ms"),
        ({"budget_ms": math.inf}, "budget_ms"),
        ({"budget_ms": math.nan}, "budget_ms"),
        ({"when": "later"}, "when"),
        ({"precision": "float8"}, "precision"),
        ({"action_space": gym.spaces.Discrete(3)}, "has actions of 2 numbers"),
        ({"action_space": gym.spaces.MultiBinary(2)}, "action space"),
    ],
)
def test_settings_that_do_not_fit_are_refused(calm, settings, message):
    with pytest.raises(ValueError, match=message):
        Planner(calm, LearnedTask(), config=PlannerConfig(**settings))


def test_a_task_that_the_world_cannot_answer_is_refused(dot_world, calm):
    headless = refit(dot_world, head_names=(), read=lambda self, state: {})
    with pytest.raises(ValueError, match="Refit has no head 'reward'"):
        Planner(headless, LearnedTask())
    with pytest.raises(TypeError, match="task: expected a Task"):
        Planner(calm, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="FunctionTask"):
        Planner(calm, FunctionTask(lambda before, action, after: "well done"))
    with pytest.raises(ValueError, match="task: expected rewards that are finite numbers, got a cost of nan"):
        Planner(calm, FunctionTask(lambda before, action, after: after.features[:, 0] * math.nan))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.full((32, 32, 3), np.nan), r"got float64 \(32, 32, 3\) with NaN or infinity in it"),
        (np.zeros((32, 32, 3), np.float32), r"got float32 \(32, 32, 3\)$"),
        (np.zeros((2, 32, 32, 3), np.uint8), r"got uint8 \(2, 32, 32, 3\)"),
        (np.zeros((3, 32, 32), np.uint8), r"got uint8 \(3, 32, 32\)"),
    ],
)
def test_what_is_no_picture_is_no_goal(frame, message):
    with pytest.raises(ValueError, match=f"goal: expected one frame, uint8 .*{message}"):
        goal_image(frame)


def test_goals_that_the_world_does_not_know_are_refused(dot_world):
    with pytest.raises(ValueError, match=r"goal: expected shape .*for world 'dot', got \(64, 64, 3\)"):
        Planner(dot_world, goal_image(np.zeros((64, 64, 3), np.uint8)))
    stack = GoalImage(np.zeros((2, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="goal: expected one frame"):
        Planner(dot_world, SumTask(((1.0, LearnedTask()), (1.0, stack))))
    # A model that can tell how sure it is refuses what it takes for no frame of its world.
    sure = refit(
        dot_world, uncertainty=lambda self, state: (state.place.norm(dim=1) > 0.7).float(), uncertainty_threshold=0.05
    )
    frames = dot_world.model.decode(replace(begin(dot_world).repeat(2), place=torch.tensor([[0.6, 0.0], [0.9, 0.0]])))
    Planner(sure, goal_image(frames[0]))
    with pytest.raises(
        ValueError, match="goal: expected a frame of world 'dot'; the model's uncertainty of this one is 1"
    ):
        Planner(sure, goal_image(frames[1]))


@pytest.mark.skipif("pusht" not in list_worlds(), reason="no weights in assets yet")
def test_the_shipped_world_knows_its_own_frames_from_others():
    world = open_world("pusht", "cpu")
    for frame in world.starts.frames[:3, -1]:
        Planner(world, goal_image(frame), config=PlannerConfig(lookahead=1, block=1, n_action_steps=1))
    for grey in (0, 255):
        with pytest.raises(ValueError, match="is it from another world"):
            Planner(world, goal_image(np.full((64, 64, 3), grey, np.uint8)))


def test_what_predict_cannot_use_is_refused(calm):
    planner = Planner(calm, LearnedTask(2.0), QUICK)
    frame = calm.starts.frames[0, -1]
    _, state = planner.predict(frame)
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: planner.predict(frame[:16]), "observation: expected shape"),
        (lambda: planner.predict(frame / 255), "observation: expected uint8"),
        (lambda: planner.predict(frame[None, None]), "observation: expected a frame"),
        (lambda: planner.predict(frame[None][:0]), "observation: expected a frame"),
        (lambda: planner.predict(np.stack([frame] * 2), state), "state: expected what predict returned for 2"),
        (lambda: planner.predict(frame, ["memory"]), "got 1 of str"),
        (lambda: planner.predict(frame, state, np.array([True, False])), "episode_start"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_names_are_exported_and_loaded_late():
    program = (
        "import sys, neuralsim.agents as a; print('torch' in sys.modules, a.Planner.__name__, 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", "Planner", "True"]
    with pytest.raises(ImportError):
        from neuralsim.agents import Wizard  # type: ignore[attr-defined]  # noqa: F401


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_planner_plans_on_a_gpu(tiny_world):
    world = open_world(tiny_world, "cuda")
    planner = Planner(
        world, goal_image(world.starts.frames[1, -1]), QUICK, PlannerConfig(lookahead=10, uncertainty_penalty=0.1)
    )
    actions, memories = planner.predict(world.starts.frames[:2, -1])
    assert actions.shape == (2, 2)
    assert all(isinstance(m, Memory) and math.isfinite(m.decisions[0].cost) for m in memories)
