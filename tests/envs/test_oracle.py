"""The Oracle: real simulators behind the WorldModel contract, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralsim.envs.oracle import Oracle
from neuralsim.envs.pusht import env as pusht
from neuralsim.envs.pusht import simulator as module
from neuralsim.envs.pusht.simulator import LANDMARKS, PUSHER_SHARE
from neuralsim.envs.registry import get_real_world
from neuralsim.envs.tworoom import env as tworoom
from neuralsim.envs.tworoom import simulator as tworoom_simulator
from neuralsim.imagination import Imagination
from neuralsim.noise import Noise
from neuralsim.task import FunctionTask, GoalImage
from neuralsim.world_checker import check_world

WORLDS = ("pusht", "tworoom")
NOISE = Noise.from_seeds([0])


@pytest.fixture(scope="module", params=WORLDS)
def oracle(request: pytest.FixtureRequest) -> Oracle:
    return Oracle(request.param).eval()


def explored(world: str, seed: int, steps: int, near_goal: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """States ``(steps + 1, s)`` and actions ``(steps, a)`` of the true environment under its scripted explorer."""
    real_world = get_real_world(world)
    env, memory = real_world.make_env(8), None
    explorer = real_world.policies.make_explorer(env, seed)
    observation, _ = env.reset(options={"state": real_world.draw_state(np.random.default_rng(seed), near_goal)})
    states, actions = [env.state()], []  # type: ignore[attr-defined]
    for _ in range(steps):
        action, memory = explorer.predict(observation, memory)
        observation, *_ = env.step(action)
        states.append(env.state())  # type: ignore[attr-defined]
        actions.append(action)
    return np.stack(states), np.stack(actions)


def starts(world: str, n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([get_real_world(world).draw_state(rng, i % 3 == 0) for i in range(n)])


# -- exactness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), near_goal=st.booleans())
def test_a_step_is_the_true_step_to_the_bit(world: str, seed: int, near_goal: bool) -> None:
    """Whether the physics are run, or skipped because nothing can touch."""
    model = Oracle(world, size=8)
    states, actions = explored(world, seed, 40, near_goal)
    after = model.step(model.at(states[:-1]), torch.from_numpy(actions), NOISE)
    np.testing.assert_array_equal(after.values.numpy(), states[1:])


def test_physics_are_skipped_often_and_only_where_nothing_moves_but_the_pusher() -> None:
    skipped = moved = 0
    for seed in range(10):
        states, actions = explored("pusht", seed, 60)
        there = np.clip(states[:-1, :2] + pusht.STEP_UNITS * actions.astype(np.float64), *pusht.PUSHER_RANGE)
        for before, after, place in zip(states, states[1:], there, strict=False):
            free = module._pusher_misses(before, place) and module._block_is_free(before)
            still = np.abs(after[2:] - before[2:]).max() < 1e-9
            assert still or not free
            skipped, moved = skipped + free, moved + (not still)
    assert skipped > 100
    assert moved > 100


def test_unroll_jump_and_step_agree_to_the_bit(oracle: Oracle) -> None:
    plan = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, (4, 12, 2)).astype(np.float32))
    state = oracle.at(starts(oracle.spec.name, 4))
    whole = oracle.unroll(state, plan, NOISE)
    assert torch.equal(oracle.unroll_last(state, plan, NOISE).values, whole.values[:, -1])
    for i in range(12):
        state = oracle.step(state, plan[:, i], NOISE)
        assert torch.equal(state.values, whole.values[:, i])


def test_it_keeps_the_contract(oracle: Oracle) -> None:
    check_world(oracle)


def test_frames_rewards_and_ends_are_the_true_ones(oracle: Oracle) -> None:
    states = starts(oracle.spec.name, 30)
    env = get_real_world(oracle.spec.name).make_env(64)
    frames, read = oracle.decode(oracle.at(states)), oracle.read(oracle.at(states))
    ends = 0
    for i, state in enumerate(states):
        env.reset(options={"state": state})
        np.testing.assert_array_equal(frames[i].numpy(), env.render())
        _, reward, terminated, _, _ = env.step(np.zeros(2, np.float32))
        assert read["reward"][i].item() == pytest.approx(reward, abs=1e-6)
        assert bool(read["terminated"][i]) == terminated
        ends += terminated
    assert ends
    assert oracle.uncertainty(oracle.at(states)).tolist() == [0.0] * 30


# -- seeing ------------------------------------------------------------------------------------------------------------


def test_a_state_read_off_a_frame_is_near_the_true_one(oracle: Oracle) -> None:
    states = starts(oracle.spec.name, 24)
    frames = oracle.decode(oracle.at(states))
    seen = oracle.encode(frames[:, None], torch.zeros(24, 0, 2)).values.numpy()
    off = np.abs(seen - states)
    off[:, 4:] = np.abs((off[:, 4:] + np.pi) % (2 * np.pi) - np.pi)
    assert off[:, :4].max() < 2  # units
    assert (off[:, 4:] < np.radians(1)).all()


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_whatever_the_frame_the_state_read_can_be_played(seed: int) -> None:
    frames = np.random.default_rng(seed).integers(0, 256, (2, 1, 64, 64, 3), dtype=np.uint8)
    for world in WORLDS:
        model = Oracle(world)
        state = model.encode(torch.from_numpy(frames), torch.zeros(2, 0, 2))
        model.at(state.values.numpy())
        env = get_real_world(world).make_env(8)
        for row in state.values.numpy():
            env.reset(options={"state": row})


def test_readings_in_a_tworoom_wall_are_moved_to_a_free_place_nearby() -> None:
    rng = np.random.default_rng(0)
    places = rng.uniform(-20, 532, (4000, 2))
    freed = tworoom_simulator._move_out_of_walls(places)
    assert (tworoom.clearance(freed) >= -1e-9).all()
    free = tworoom.clearance(places) >= 0
    np.testing.assert_array_equal(freed[free], places[free])
    assert np.linalg.norm(freed - places, axis=1).max() < 80


# -- features ----------------------------------------------------------------------------------------------------------


def test_feature_distance_is_displacement_of_what_is_seen() -> None:
    model = Oracle("pusht")
    state = np.array([200.0, 220.0, 300.0, 280.0, 0.4])

    def distance(*change: float) -> float:
        both = model.features(model.at(np.stack([state, state + change])))
        return float((both[0] - both[1]).norm()) * pusht.WORKSPACE / 2

    assert distance(30, 40, 0, 0, 0) == pytest.approx(50 * PUSHER_SHARE, rel=1e-4)
    assert distance(0, 0, 30, 40, 0) == pytest.approx(50 * np.sqrt(len(LANDMARKS)), rel=1e-4)
    assert distance(0, 0, 0, 0, 2 * np.pi) == pytest.approx(0, abs=1e-3)
    turned = [distance(0, 0, 0, 0, a) for a in (0.1, 0.5, 1.0, 2.0, np.pi)]
    assert turned == sorted(turned)
    room = Oracle("tworoom")
    a, b = room.features(room.at([[100, 100], [130, 140]]))
    assert float((a - b).norm()) * tworoom.ARENA / 2 == pytest.approx(50, rel=1e-4)


def test_tasks_and_imaginations_take_it(oracle: Oracle) -> None:
    states = starts(oracle.spec.name, 2)
    goal = oracle.decode(oracle.at(states[:1]))[0].numpy()
    for task in (GoalImage(goal), FunctionTask(lambda before, action, after: after.features[:, 0])):
        dream = Imagination(oracle, task, num_envs=2)
        frames = oracle.decode(oracle.at(states)).numpy()[:, None]
        dream.reset(seeds=0, options={"frames": frames, "actions": np.zeros((2, 0, 2), np.float32)})
        said = dream.step(np.zeros((2, 2), np.float32))
        assert np.isfinite(said.reward).all()
        if isinstance(task, GoalImage):
            assert said.reward[0] > said.reward[1]
            assert said.terminated[0]


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_wrong_worlds_states_and_actions_are_named(oracle: Oracle) -> None:
    with pytest.raises(ValueError, match=r"no simulator of world 'maze'; there are pusht, tworoom"):
        Oracle("maze")
    size = len(oracle.simulator.state_names)
    for bad in (np.full(size, np.nan), np.zeros(size + 1), np.zeros((1, 1, size))):
        with pytest.raises(ValueError, match="expected finite states"):
            oracle.at(bad)
    state = oracle.at(starts(oracle.spec.name, 1))
    with pytest.raises(ValueError, match=r"values in \[-1, 1\]"):
        oracle.step(state, torch.full((1, 2), 1.5), NOISE)
