"""The real TwoRoom: walls that hold, a door that lets through, frames that show the whole state, and their estimator."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

import neuralsim  # noqa: F401 (registers the ids)
from neuralsim.agents.policies.tworoom_explorer import TwoRoomExplorer
from neuralsim.envs.tworoom.env import (
    AGENT_RANGE,
    ARENA,
    CORNERS,
    DOOR,
    GOAL,
    RADIUS,
    STEP_UNITS,
    SUCCESS_DISTANCE,
    WALL,
    TwoRoomRealEnv,
    background,
    clearance,
    draw,
    move,
    random_state,
)
from neuralsim.envs.tworoom.shortest_path import shortest_path, shortest_path_length
from neuralsim.envs.tworoom.state_estimator import TwoRoomStateEstimator
from neuralsim.storage.resolve import list_worlds

FREE = np.array([120.0, 300.0])
"""A place with much room around it."""

seeds = st.integers(0, 2**32 - 1)
units = st.floats(-1, 1, width=32)
plans = st.lists(st.tuples(units, units), min_size=1, max_size=40)


@pytest.fixture
def env() -> TwoRoomRealEnv:
    env = TwoRoomRealEnv()
    env.reset(options={"state": FREE})
    return env


def in_the_dark(state: np.ndarray) -> TwoRoomRealEnv:
    """An environment at ``state`` that draws no frames."""
    env = TwoRoomRealEnv(observation="state")
    env.reset(options={"state": state})
    return env


# -- interfaces --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("observation", ["pixels", "state"])
def test_gymnasium_accepts_it(observation: str) -> None:
    env = gym.make("neuralsim/TwoRoomReal-v0", observation=observation, render_mode="rgb_array")
    check_env(env.unwrapped)
    env.close()


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_stable_baselines3_accepts_it() -> None:
    from stable_baselines3.common.env_checker import check_env as check_env_sb3

    check_env_sb3(TwoRoomRealEnv(), warn=False)


@pytest.mark.parametrize("size", [8, 64, 96])
def test_the_frame_size_is_an_argument(size: int) -> None:
    env = TwoRoomRealEnv(size=size)
    frame, _ = env.reset(seed=0)
    assert frame.shape == (size, size, 3)
    assert env.observation_space.contains(frame)
    np.testing.assert_array_equal(env.render(), frame)


def test_it_needs_no_simulator_and_no_window() -> None:
    program = (
        "import sys, gymnasium, neuralsim\n"
        "gymnasium.make('neuralsim/TwoRoomReal-v0').reset(seed=0)\n"
        "print([m for m in ('pymunk', 'pygame', 'cv2', 'torch', 'gym_pusht') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("make", [gym.make, lambda name: gym.make_vec(name, num_envs=2)])
def test_the_learned_world_is_registered_and_says_so_where_none_ships(
    make: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuralsim.storage.resolve.assets", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    assert list_worlds() == []
    with pytest.raises(FileNotFoundError, match="world 'tworoom': neither a shipped world"):
        make("neuralsim/TwoRoom-v0")  # type: ignore[operator]


def test_its_plain_name_opens_the_compact_world(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tworoom-latent").symlink_to(tiny_world)
    monkeypatch.setattr("neuralsim.storage.resolve.assets", lambda: tmp_path)
    assert list_worlds() == ["tworoom", "tworoom-latent"]


# -- starts ------------------------------------------------------------------------------------------------------------------------


@given(seeds, st.booleans())
def test_reset_to_any_state_is_exact(seed: int, near_goal: bool) -> None:
    state = random_state(np.random.default_rng(seed), near_goal)
    env = TwoRoomRealEnv(size=8)
    frame, info = env.reset(options={"state": state})
    np.testing.assert_array_equal(env.state(), state)
    np.testing.assert_array_equal(info["agent"], state)
    np.testing.assert_array_equal(env.step(np.zeros(2, np.float32))[0], frame)
    np.testing.assert_array_equal(env.state(), state)  # and at rest


def test_random_starts_lie_in_both_rooms_and_the_door_and_overlap_nothing() -> None:
    rng = np.random.default_rng(0)
    states = np.array([random_state(rng) for _ in range(2000)])
    assert (clearance(states) >= 0).all()
    left, right = (states[:, 0] < WALL[0] - RADIUS).mean(), (states[:, 0] > WALL[1] + RADIUS).mean()
    assert 0.4 < left < 0.6
    assert 0.4 < right < 0.6
    assert left + right < 1
    near = np.array([random_state(rng, near_goal=True) for _ in range(400)])
    assert 0.2 < (np.linalg.norm(near - GOAL, axis=1) <= SUCCESS_DISTANCE).mean() < 0.8


def test_same_seed_same_episode_other_seed_another() -> None:
    def episode(seed: int) -> list[np.ndarray]:
        env = TwoRoomRealEnv()
        frames = [env.reset(seed=seed)[0]]
        rng = np.random.default_rng(0)
        frames += [env.step(rng.uniform(-1, 1, 2).astype(np.float32))[0] for _ in range(30)]
        return frames

    np.testing.assert_array_equal(episode(4), episode(4))
    assert not np.array_equal(episode(4)[0], episode(5)[0])


def test_a_state_is_everything_so_a_step_repeats_from_it_to_the_bit() -> None:
    env, again = in_the_dark(FREE), TwoRoomRealEnv(size=16)
    touched = 0
    for seed in range(8):
        wanderer, segment = TwoRoomExplorer(seed), None
        observation, _ = env.reset(seed=seed)
        for _ in range(80):
            before = env.state()
            action, segment = wanderer.predict(observation, segment)
            observation, *_ = env.step(action)
            again.reset(options={"state": before})
            frame = again.step(action)[0]
            np.testing.assert_array_equal(again.state(), env.state())
            np.testing.assert_array_equal(frame, env.frame(16))
            touched += bool(np.abs(env.state() - before - STEP_UNITS * action).max() > 1e-6)
            again.set_state(env.state().astype(np.float32))  # as a store keeps it
    assert touched > 50, "hardly a wall was met: the test does not test"


# -- walls -------------------------------------------------------------------------------------------------------------------------


@given(seeds, plans)
def test_nothing_ever_overlaps_a_wall_or_outruns_its_action(seed: int, plan: list[tuple[float, float]]) -> None:
    env = in_the_dark(random_state(np.random.default_rng(seed)))
    for action in np.array(plan, np.float32):
        before = env.state()
        env.step(action)
        after = env.state()
        assert clearance(after) > -1e-5
        assert (after > AGENT_RANGE[0] - 1e-5).all()
        assert (after < AGENT_RANGE[1] + 1e-5).all()
        assert np.linalg.norm(after - before) <= STEP_UNITS * np.linalg.norm(action.astype(np.float64)) + 1e-5


@given(seeds, st.tuples(st.floats(-3000, 3000), st.floats(-3000, 3000)), st.integers(0, 3))
def test_nothing_tunnels_however_far_it_is_pushed(seed: int, way: tuple[float, float], corner: int) -> None:
    """Wherever it ends, there is a free path there that is no longer than the push; aimed at the posts as well."""
    rng = np.random.default_rng(seed)
    start = random_state(rng)
    for push in (np.array(way), (CORNERS[corner] + rng.normal(size=2) * 25 - start) * rng.uniform(0.5, 4)):
        end = move(start[None], push[None])[0]
        assert clearance(end) > -1e-5
        assert shortest_path_length(start, end) <= np.linalg.norm(push) + 1


@given(seeds, st.tuples(units, units))
def test_a_free_way_is_gone_whole(seed: int, action: tuple[float, float]) -> None:
    start = random_state(np.random.default_rng(seed))
    way = STEP_UNITS * np.array(action)
    line = start + np.linspace(0, 1, 200)[:, None] * way
    end = move(start[None], way[None])[0]
    if (clearance(line) > 0.01).all():
        np.testing.assert_allclose(end, start + way, atol=1e-12)
    elif clearance(line).min() < -0.01:
        assert np.abs(end - start - way).max() > 1e-6


@given(seeds)
def test_many_at_once_go_as_each_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    places = np.array([random_state(rng) for _ in range(20)])
    ways = rng.normal(size=(20, 2)) * 60
    together = move(places, ways)
    for place, way, end in zip(places, ways, together, strict=True):
        np.testing.assert_array_equal(move(place[None], way[None])[0], end)


@pytest.mark.parametrize(
    ("start", "action", "end"),
    [
        ((40, 100), (-1, 0), (AGENT_RANGE[0], 100)),
        ((40, 100), (-1, 0.5), (AGENT_RANGE[0], 108)),
        ((470, 40), (1, -1), (AGENT_RANGE[1], AGENT_RANGE[0])),
        ((210, 400), (1, -1), (WALL[0] - RADIUS, 384)),
        ((300, 400), (-1, 1), (WALL[1] + RADIUS, 416)),
        ((256, 155), (0.5, -1), (264, DOOR[0] + RADIUS)),
        ((256, 200), (-0.5, 1), (248, DOOR[1] - RADIUS)),
    ],
)
def test_it_slides_along_a_wall_to_the_exact_place(
    start: tuple[float, float], action: tuple[float, float], end: tuple[float, float]
) -> None:
    env = in_the_dark(np.array(start))
    env.step(np.array(action, np.float32))
    np.testing.assert_allclose(env.state(), end, atol=1e-12)


def test_it_rounds_the_corner_of_a_post_without_leaving_it_or_sticking() -> None:
    """Pressed against a post from outside, below its corner's middle: contact at the radius, then round it into the door."""
    corner = np.array([WALL[0], DOOR[0]])
    env = in_the_dark(corner + np.array([-40, 8]))
    for _ in range(30):
        env.step(np.array([1, 0], np.float32))
        assert np.linalg.norm(env.state() - corner) > RADIUS - 1e-6
    assert env.state()[0] == pytest.approx(AGENT_RANGE[1])
    assert DOOR[0] + RADIUS <= env.state()[1] < DOOR[0] + RADIUS + 5  # off the circle along its tangent
    env.reset(options={"state": corner + np.array([-40, 0])})  # straight on to the corner's side: there it stands
    for _ in range(5):
        env.step(np.array([1, 0], np.float32))
    np.testing.assert_allclose(env.state(), corner + np.array([-RADIUS, 0]), atol=1e-6)


@given(seeds)
def test_the_door_is_passable_both_ways(seed: int) -> None:
    """Along the shortest path, at full speed and for no longer than it takes."""
    rng = np.random.default_rng(seed)
    left = np.array([rng.uniform(AGENT_RANGE[0], WALL[0] - RADIUS), rng.uniform(*AGENT_RANGE)])
    right = np.array([rng.uniform(WALL[1] + RADIUS, AGENT_RANGE[1]), rng.uniform(*AGENT_RANGE)])
    for start, end in ((left, right), (right, left)):
        env, path = in_the_dark(start), shortest_path(start, end)[1:]
        steps, most = 0, shortest_path_length(start, end) / STEP_UNITS + len(path) + 1
        for point in path:
            while np.abs(point - env.state()).max() > 1e-3:
                way = (point - env.state()) / STEP_UNITS
                env.step((way / max(1, np.abs(way).max())).astype(np.float32))
                steps += 1
                assert steps <= most
        np.testing.assert_allclose(env.state(), end, atol=2e-3)


# -- shortest paths ----------------------------------------------------------------------------------------------------------------


@given(seeds)
def test_shortest_paths_are_free_symmetric_and_no_shorter_than_straight(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = (random_state(rng) for _ in range(3))
    path = shortest_path(a, b)
    np.testing.assert_array_equal(path[[0, -1]], [a, b])
    for here, there in pairwise(path):
        assert (clearance(here + np.linspace(0, 1, 500)[:, None] * (there - here)) > -0.1).all()
    length = shortest_path_length(a, b)
    assert length >= np.linalg.norm(b - a) - 1e-9
    assert length == pytest.approx(shortest_path_length(b, a), abs=1e-6)
    assert length <= shortest_path_length(a, c) + shortest_path_length(c, b) + 1
    if max(a[0], b[0]) <= WALL[0] - RADIUS or min(a[0], b[0]) >= WALL[1] + RADIUS:
        assert len(path) == 2  # in one room the way is straight


def test_the_path_round_two_quarter_circles_has_the_length_geometry_gives() -> None:
    start, end = np.array([WALL[0] - RADIUS, 60.0]), np.array([WALL[1] + RADIUS, 60.0])
    exact = 2 * (DOOR[0] - 60) + np.pi * RADIUS + (WALL[1] - WALL[0])
    assert exact <= shortest_path_length(start, end) < exact + 0.5


# -- the picture -------------------------------------------------------------------------------------------------------------------


@given(seeds, st.floats(-np.pi, np.pi))
def test_a_frame_shows_motion_of_a_sixteenth_of_a_pixel(seed: int, angle: float) -> None:
    rng = np.random.default_rng(seed)
    while True:
        place = random_state(rng)
        there = place + 0.5 * np.array([np.cos(angle), np.sin(angle)])
        if clearance(there) >= 0:
            break
    one, other = draw(place).astype(int), draw(there).astype(int)
    assert np.abs(one - other).max() >= 3


def test_the_agent_never_covers_a_wall_and_is_drawn_in_its_true_size() -> None:
    rng = np.random.default_rng(0)
    empty = background(64)
    wall = (empty == empty[0, 0]).all(2)
    for place in [random_state(rng) for _ in range(50)] + [np.array([36.0, 36.0]), np.array([256.0, 148.0])]:
        changed = np.abs(draw(place) - empty).max(2)
        assert changed[wall].max() <= 0.5
        assert 13 <= (changed > 20).sum() <= 37  # a disc of 19.6 pixels


def test_large_and_small_frames_are_the_same_picture() -> None:
    place = np.array([203.0, 161.0])
    large = draw(place, 512).reshape(64, 8, 64, 8, 3).mean((1, 3))
    assert np.abs(draw(place, 64) - large).max() < 6


def test_the_goal_is_not_drawn() -> None:
    env = TwoRoomRealEnv()
    frame, _ = env.reset(options={"state": FREE})
    other, _ = env.reset(options={"state": FREE, "goal": (400.0, 100.0)})
    np.testing.assert_array_equal(frame, other)


# -- the task ----------------------------------------------------------------------------------------------------------------------


def test_info_and_reward_tell_the_distance(env: TwoRoomRealEnv) -> None:
    _, reward, terminated, truncated, info = env.step(np.array([0.5, -0.25], np.float32))
    assert set(info) == {"agent", "goal", "distance", "success"}
    np.testing.assert_allclose(info["agent"], FREE + np.array([8, -4]))
    np.testing.assert_allclose(info["goal"], GOAL)
    assert info["distance"] == pytest.approx(np.hypot(256, 40))
    assert reward == pytest.approx(-info["distance"] / ARENA)
    assert terminated is info["success"] is False
    assert truncated is False


def test_the_goal_ends_the_episode_and_may_be_chosen_for_it() -> None:
    env = TwoRoomRealEnv()
    goal = np.array([100.0, 400.0])
    env.reset(options={"state": goal - (30, 0), "goal": goal})
    ends = [env.step(np.array([0.5, 0], np.float32))[2] for _ in range(2)]
    assert ends == [False, True]
    _, info = env.reset(options={"state": GOAL})  # the next episode goes for the standing goal again
    assert info["success"]
    assert info["distance"] == 0
    _, info = env.reset(options={"state": GOAL, "goal": None})
    assert info["success"]


# -- the reader --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "pixels"), [(32, 0.1), (64, 0.03), (128, 0.05)])
def test_the_reader_reads_true_places(size: int, pixels: float) -> None:
    """Everywhere, walls and door posts included: a small part of a pixel even at worst."""
    rng = np.random.default_rng(0)
    edge = AGENT_RANGE[0]
    places = np.array([random_state(rng) for _ in range(300)] + [[edge, edge], [256, DOOR[0] + RADIUS], [219.9, 40]])
    reader = TwoRoomStateEstimator(size)
    read, found = reader(np.stack([draw(p, size) for p in places]))
    error = np.linalg.norm(read - places, axis=1) * size / ARENA
    assert found.all()
    assert np.median(error) < pixels / 2
    assert error.max() < pixels
    assert reader.extent == ARENA


def test_the_reader_forgives_grey_levels_and_specks() -> None:
    rng = np.random.default_rng(1)
    places = np.array([random_state(rng) for _ in range(60)])
    frames = np.stack([draw(p) for p in places]) + rng.normal(size=(60, 64, 64, 3)) * 8
    frames[:, 60:62, 4:6] = (238, 82, 60)
    read, found = TwoRoomStateEstimator()(frames.clip(0, 255).astype(np.uint8))
    assert found.all()
    far = np.linalg.norm(places - (40, 488), axis=1) > 60
    assert np.linalg.norm(read - places, axis=1)[far].max() < 4


def test_the_reader_finds_nobody_where_nobody_is() -> None:
    empty = background(64).round().astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    read, found = TwoRoomStateEstimator()(np.stack([empty, np.zeros_like(empty), np.full_like(empty, 255), noise]))
    assert not found[:3].any()
    assert np.isfinite(read).all()


def test_the_reader_does_not_look_at_other_frames() -> None:
    rng = np.random.default_rng(2)
    frames = np.stack([draw(random_state(rng)) for _ in range(300)])  # more than one pass
    reader = TwoRoomStateEstimator()
    together, _ = reader(frames)
    np.testing.assert_allclose(reader(frames[280:281])[0][0], together[280], atol=1e-3)
    assert reader(frames[:0])[0].shape == (0, 2)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 64, 64, 3), np.float32), np.zeros((64, 64, 3), np.uint8), np.zeros((1, 32, 32, 3), np.uint8)],
)
def test_the_reader_refuses_other_frames(frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8 frames"):
        TwoRoomStateEstimator()(frames)


# -- errors ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([np.nan, 0], "NaN or infinity"),
        ([1.5, 0], r"\[-1, 1\], got a value of magnitude 1.5; one unit means 16 arena units"),
        ([0, 0, 0], r"expected shape \(..., 2\) \(right, down\), got \(3,\)"),
        ([[0, 0]], r"expected shape \(2,\), got \(1, 2\)"),
        ("left", "expected numbers"),
        (None, "action"),
    ],
)
def test_a_bad_action_is_named_and_changes_nothing(env: TwoRoomRealEnv, action: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        env.step(action)  # type: ignore[arg-type]
    np.testing.assert_array_equal(env.state(), FREE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": [1, 2, 3]}, "state: expected 2 finite numbers"),
        ({"state": "left"}, "state: expected 2 finite numbers"),
        ({"state": [1, np.nan]}, "state: expected 2 finite numbers"),
        ({"state": [-5, 2]}, r"state: the agent's place must lie in 0..512 units, got \[-5"),
        ({"state": [256, 300]}, r"state: \[256.0, 300.0\] lies in a wall: the agent, 20 units in radius"),
        ({"state": [30, 300]}, r"would overlap it by 6; x, y must lie in 36..476"),
        ({"state": [235, 132]}, "lies in a wall"),
        ({"state": [100, 100], "goal": [256, 20]}, r"goal: \[256.0, 20.0\] lies in a wall"),
        ({"start": [0, 0]}, r"unknown \['start'\]"),
    ],
)
def test_a_bad_start_is_named_and_changes_nothing(
    env: TwoRoomRealEnv, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)
    np.testing.assert_array_equal(env.state(), FREE)
    np.testing.assert_array_equal(env.step(np.zeros(2, np.float32))[4]["goal"], GOAL)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        TwoRoomRealEnv(size=30)
    with pytest.raises(ValueError, match="'pixels' or 'state'"):
        TwoRoomRealEnv(observation="rgb")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'rgb_array'"):
        TwoRoomRealEnv(render_mode="human")
    with pytest.raises(ValueError, match=r"end: .* lies in a wall"):
        shortest_path(FREE, (256, 300))


def test_step_before_reset_says_so() -> None:
    env = TwoRoomRealEnv()
    for call in (lambda: env.step(np.zeros(2, np.float32)), env.render, env.state):
        with pytest.raises(gym.error.ResetNeeded, match="reset"):
            call()
