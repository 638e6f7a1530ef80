"""The real Push-T: gym-pusht's physics and drawing behind NeuralSim's spaces, exact resets, clear errors."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from work import count_calls

import neuralsim  # noqa: F401 (registers the ids)
from neuralsim.agents.policies.pusht_explorer import PushTExplorer
from neuralsim.envs.pusht.env import (
    GOAL_POSE,
    PUSHER_RADIUS,
    PUSHER_RANGE,
    STEP_UNITS,
    WALL_GIVES,
    WALLS,
    PushTRealEnv,
    block_inside,
    block_polygons,
    distance_to_block,
    random_state,
)

FREE = np.array([60.0, 60.0, 400.0, 300.0, 0.5])
"""A state with much room around the pusher."""


@pytest.fixture
def env() -> PushTRealEnv:
    env = PushTRealEnv()
    env.reset(options={"state": FREE})
    return env


# -- interfaces --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("observation", ["pixels", "state"])
def test_gymnasium_accepts_it(observation: str) -> None:
    env = gym.make("neuralsim/PushTReal-v0", observation=observation, render_mode="rgb_array")
    check_env(env.unwrapped)
    env.close()


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_stable_baselines3_accepts_it() -> None:
    from stable_baselines3.common.env_checker import check_env as check_env_sb3

    check_env_sb3(PushTRealEnv(), warn=False)


@pytest.mark.parametrize("size", [16, 64, 96])
def test_the_frame_size_is_an_argument(size: int) -> None:
    env = PushTRealEnv(size=size)
    frame, _ = env.reset(seed=0)
    assert frame.shape == (size, size, 3)
    assert env.observation_space.contains(frame)
    np.testing.assert_array_equal(env.render(), frame)


def test_info_tells_the_true_state(env: PushTRealEnv) -> None:
    _, reward, terminated, truncated, info = env.step(np.array([0.5, -0.25], np.float32))
    assert set(info) == {"pusher", "block", "angle", "coverage", "success", "contact"}
    np.testing.assert_allclose(info["pusher"], [72, 54])
    np.testing.assert_allclose(info["block"], [400, 300])
    assert info["angle"] == pytest.approx(0.5)
    assert reward == info["coverage"]
    assert terminated is info["success"] is False
    assert truncated is False


# -- starts ------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_reset_to_any_state_is_exact(seed: int, near_goal: bool) -> None:
    state = random_state(np.random.default_rng(seed), near_goal)
    env = PushTRealEnv(size=8)
    _, info = env.reset(options={"state": state})
    # Three numbers of the block pass through one rotation, hence the last bits.
    np.testing.assert_allclose(env.state(), state, atol=1e-9)
    np.testing.assert_allclose(np.concatenate([info["pusher"], info["block"]]), state[:4], atol=1e-9)
    env.step(np.zeros(2, np.float32))
    np.testing.assert_allclose(env.state(), state, atol=1e-6)  # and at rest


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_starts_are_playable(seed: int) -> None:
    state = random_state(np.random.default_rng(seed))
    assert block_inside(state[2:])
    assert distance_to_block(state[:2], state[2:]) > PUSHER_RADIUS
    assert (state[:2] >= PUSHER_RANGE[0]).all()
    assert (state[:2] <= PUSHER_RANGE[1]).all()


def test_same_seed_same_episode_other_seed_another() -> None:
    def episode(seed: int) -> list[np.ndarray]:
        env = PushTRealEnv(size=16)
        frames = [env.reset(seed=seed)[0]]
        rng = np.random.default_rng(0)
        frames += [env.step(rng.uniform(-1, 1, 2).astype(np.float32))[0] for _ in range(30)]
        return frames

    np.testing.assert_array_equal(episode(4), episode(4))
    assert not np.array_equal(episode(4)[0], episode(5)[0])


def test_a_state_is_everything_so_a_step_repeats_from_it_to_the_bit() -> None:
    """The promise behind learning from frames alone: nothing that five numbers do not tell outlives a step."""
    env, again = PushTRealEnv(size=8, observation="state"), PushTRealEnv(size=8)
    pushed = 0
    for seed in range(12):
        explorer, segment = PushTExplorer(seed=seed), None
        observation, _ = env.reset(seed=seed)
        for _ in range(50):
            before = env.state()
            action, segment = explorer.predict(observation, segment)
            observation, *_ = env.step(action)
            again.reset(options={"state": before})
            again.step(action)
            np.testing.assert_array_equal(again.state(), env.state())
            pushed += bool(np.abs(env.state()[2:4] - before[2:4]).max() > 1)
    assert pushed > 100


def test_a_block_is_never_pressed_through_a_wall() -> None:
    """Whatever is pushed against, the T stays within the walls' give, and the pusher stalls rather than sinks in."""
    env = PushTRealEnv(size=8)
    stalled = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        env.reset(seed=seed)
        for _ in range(6):
            block = env.state()[2:4]
            aim = np.sign(block - 256 + rng.normal(size=2))  # towards the wall that is nearest
            for _ in range(12):
                before = env.state()
                way = np.clip((block - before[:2]) / 24 + aim, -1, 1).astype(np.float32)
                env.step(way)
                after = env.state()
                corners = np.concatenate(block_polygons(after[2:]))
                assert corners.min() > WALLS[0] - WALL_GIVES - 1e-6
                assert corners.max() < WALLS[1] + WALL_GIVES + 1e-6
                free = np.clip(before[:2] + 24 * way.astype(np.float64), 16, 496)
                stalled += bool(np.abs(after[:2] - free).max() > 0.1)
    assert stalled > 10, "no push was ever held by a wall: the test does not test"


def test_any_state_the_simulator_reaches_can_be_reset_to() -> None:
    """Even where the block was squeezed half out of the workspace."""
    env = PushTRealEnv(size=8)
    for state in ([400, 100, 560, 548, 3.0], [100, 400, -100, -119, -3.0]):
        env.reset(options={"state": state})
        np.testing.assert_allclose(env.state(), state)


# -- motion ------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=2))
def test_a_free_pusher_moves_24_units_per_unit_of_action_exactly(action: list[float]) -> None:
    env = PushTRealEnv(size=8)
    env.reset(options={"state": FREE})
    env.step(np.array(action, np.float32))
    np.testing.assert_allclose(env.state()[:2] - FREE[:2], STEP_UNITS * np.array(action), atol=1e-9)
    np.testing.assert_allclose(env.state()[2:], FREE[2:], atol=1e-9)


@pytest.mark.parametrize(
    ("direction", "axis", "rim"),
    [
        ((-1, 0), 0, PUSHER_RANGE[0]),
        ((1, 0), 0, PUSHER_RANGE[1]),
        ((0, -1), 1, PUSHER_RANGE[0]),
        ((0, 1), 1, PUSHER_RANGE[1]),
    ],
)
def test_the_pusher_stops_at_the_rim_and_is_still_seen(direction: tuple[int, int], axis: int, rim: float) -> None:
    env = PushTRealEnv()
    env.reset(options={"state": [60, 60, 256, 300, 0]})
    for _ in range(30):
        frame, _, _, _, info = env.step(np.array(direction, np.float32))
    assert info["pusher"][axis] == rim
    blue = (frame[..., 2].astype(int) - frame[..., 0]) > 60
    assert blue.sum() >= 8


def test_the_block_moves_only_when_touched_and_contact_says_so(env: PushTRealEnv) -> None:
    env.reset(options={"state": [400, 100, 400, 250, 0.0]})  # above the T's bar
    touched = []
    for _ in range(12):
        before = env.state()[2:]
        info = env.step(np.array([0, 1], np.float32))[4]
        moved = np.abs(env.state()[2:] - before).max()
        assert info["contact"] or moved < 1e-6
        touched.append(info["contact"])
    assert not touched[0]
    assert touched[-1]
    assert env.state()[3] > 260


def test_the_block_stays_where_it_was_left(env: PushTRealEnv) -> None:
    """gym-pusht's friction is total: a push leaves no momentum."""
    env.reset(options={"state": [400, 180, 400, 250, 0.2]})
    for _ in range(5):
        env.step(np.array([0, 1], np.float32))
    env.step(np.array([0, -1], np.float32))
    left = env.state()[2:]
    for _ in range(5):
        env.step(np.zeros(2, np.float32))
    np.testing.assert_allclose(env.state()[2:], left, atol=0.05)


# -- the task ----------------------------------------------------------------------------------------------------------------------


def test_coverage_is_one_at_the_goal_and_falls_away_from_it() -> None:
    env = PushTRealEnv()
    _, info = env.reset(options={"state": [30, 30, *GOAL_POSE]})
    assert info["coverage"] == pytest.approx(1.0, abs=1e-9)
    assert info["success"]
    coverages = []
    for away in (0, 2, 10, 40, 200):
        _, info = env.reset(options={"state": [30, 30, GOAL_POSE[0] - away, *GOAL_POSE[1:]]})
        coverages.append(info["coverage"])
    assert coverages == sorted(coverages, reverse=True)
    assert coverages[-1] < 0.05


def test_success_ends_the_episode_and_rewards_coverage() -> None:
    env = PushTRealEnv()
    env.reset(options={"state": [30, 30, *GOAL_POSE]})
    _, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
    assert terminated
    assert not truncated
    assert info["success"]
    assert reward > 0.95


# -- errors ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([np.nan, 0], "NaN or infinity"),
        ([np.inf, 0], "NaN or infinity"),
        ([1.5, 0], r"\[-1, 1\], got a value of magnitude 1.5; one unit means 24 workspace units"),
        ([0, 0, 0], r"expected shape \(..., 2\) \(right, down\), got \(3,\)"),
        ([[0, 0]], r"expected shape \(2,\), got \(1, 2\)"),
        (0.5, "expected shape"),
        ("left", "expected numbers"),
        (None, "action"),
    ],
)
def test_a_bad_action_is_named_and_changes_nothing(env: PushTRealEnv, action: object, message: str) -> None:
    before = env.state()
    with pytest.raises(ValueError, match=message):
        env.step(action)  # type: ignore[arg-type]
    np.testing.assert_array_equal(env.state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": [1, 2, 3]}, "expected 5 finite numbers"),
        ({"state": [1, 2, 3, 4, np.nan]}, "expected 5 finite numbers"),
        ({"state": [-5, 2, 3, 4, 0]}, r"the pusher's place must lie in 0..512 units, got \[-5"),
        ({"state": [5, 2, 3, 900, 0]}, r"the block's place must lie in -128..640 units"),
        ({"start": [0] * 5}, r"unknown \['start'\]"),
    ],
)
def test_a_bad_start_is_named_and_changes_nothing(env: PushTRealEnv, options: dict[str, object], message: str) -> None:
    before = env.state()
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)
    np.testing.assert_array_equal(env.state(), before)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        PushTRealEnv(size=30)
    with pytest.raises(ValueError, match="'pixels' or 'state'"):
        PushTRealEnv(observation="rgb")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'rgb_array'"):
        PushTRealEnv(render_mode="human")


def test_step_before_reset_says_so() -> None:
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        PushTRealEnv().step(np.zeros(2, np.float32))


# -- speed -------------------------------------------------------------------------------------------------------------------------


def test_a_step_with_its_frame_does_little_more_than_the_bare_simulators() -> None:
    """In calls, which no load changes; 'neuralsim bench' measures the rates, with a target of 70 %."""
    from gym_pusht.envs.pusht import PushTEnv

    bare = PushTEnv(obs_type="pixels", render_mode="rgb_array", observation_width=64, observation_height=64)
    ours = PushTRealEnv()
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (60, 2)).astype(np.float32)

    def calls(env: gym.Env[np.ndarray, np.ndarray], scale: float, offset: float) -> int:
        env.reset(seed=0)
        return count_calls(lambda: [env.step(offset + scale * action) for action in actions])

    assert calls(bare, 150, 256) / calls(ours, 1, 0) >= 0.7
