"""Robots: LeRobot's verbs, physical actions, cameras, lock-step, and any robot behind Gymnasium."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fake_clock import FakeClock
from gymnasium.utils.env_checker import check_env
from torch.utils import _pytree

from neuralsim.envs.pusht.env import PushTRealEnv, pusht_spec
from neuralsim.envs.pusht.robot import PushTRobot
from neuralsim.envs.robots.camera import Camera
from neuralsim.envs.robots.robot import (
    ActionRefused,
    ResettableRobot,
    Robot,
    RobotLost,
    StaleFrame,
    physical_action,
    world_action,
)
from neuralsim.envs.robots.robot_env import RobotEnv
from neuralsim.spec import WorldSpec

SPEC = pusht_spec()


@pytest.fixture
def robot() -> Iterator[PushTRobot]:
    with PushTRobot(truth=True) as robot:
        yield robot


class Arm:
    """A robot that has only LeRobot's verbs, as other people's have: it can neither tell the time nor be put anywhere."""

    name = "arm"

    def __init__(self) -> None:
        self.body = PushTRobot()
        self.asked = 0

    @property
    def observation_features(self) -> dict[str, type | tuple]:
        return {"elbow.pos": float, "wrist": (96, 160, 3)}

    @property
    def action_features(self) -> dict[str, type]:
        return {"right": float, "down": float}

    @property
    def is_connected(self) -> bool:
        return self.body.is_connected

    def connect(self, calibrate: bool = True) -> None:
        self.body.connect(calibrate)

    def get_observation(self) -> dict[str, Any]:
        picture = np.zeros((96, 160, 3), np.uint8)
        picture[:, 32:128] = self.body._env.frame(96)
        return {"elbow.pos": 0.0, "wrist": picture}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self.asked += 1
        return {} if self.asked == 2 else self.body.send_action(action)

    def disconnect(self) -> None:
        self.body.disconnect()


# -- verbs -------------------------------------------------------------------------------------------------------------------------


def test_robots_are_known_by_their_verbs_alone() -> None:
    assert isinstance(PushTRobot(), ResettableRobot)
    assert isinstance(Arm(), Robot)
    assert not isinstance(Arm(), ResettableRobot)
    assert not isinstance(PushTRealEnv(), Robot)


def test_a_robot_acts_only_while_it_is_connected() -> None:
    robot = PushTRobot()
    for verb in (robot.get_observation, robot.rest, lambda: robot.send_action({"right": 1.0, "down": 0.0})):
        with pytest.raises(RobotLost, match="connect"):
            verb()
    robot.connect()
    assert robot.is_connected
    assert robot.is_calibrated
    robot.calibrate()
    robot.configure()
    with pytest.raises(ValueError, match="already"):
        robot.connect()
    robot.disconnect()
    robot.disconnect()
    assert not robot.is_connected


def test_observations_are_what_the_features_say(robot: PushTRobot) -> None:
    observation = robot.get_observation()
    for name, kind in robot.observation_features.items():
        if isinstance(kind, tuple):
            assert observation[name].shape == kind
            assert observation[name].dtype == np.uint8
        else:
            assert type(observation[name]) is kind
    assert set(observation) - set(robot.observation_features) == {"timestamp", "step", "truth"}
    assert [observation["pusher_x"], observation["pusher_y"]] == observation["truth"]["state"][:2].tolist()


def test_what_was_really_sent_comes_back_within_the_limits_and_is_what_moves(robot: PushTRobot) -> None:
    robot.reset(state=np.array([100, 100, 400, 400, 0.0]))
    assert robot.send_action({"right": 1000.0, "down": -6.0}) == {"right": 24.0, "down": -6.0}
    seen = robot.get_observation()
    assert (seen["pusher_x"], seen["pusher_y"]) == (124.0, 94.0)
    assert (seen["step"], seen["timestamp"]) == (1, 0.1)


@pytest.mark.parametrize(
    ("action", "why"),
    [
        ({"right": 1.0}, "expected right, down, got right"),
        ({}, "got nothing"),
        ({"right": 1.0, "down": 1.0, "up": 1.0}, "up"),
        ({"right": float("nan"), "down": 0.0}, "'right': expected a finite number"),
        ({"right": "left", "down": 0.0}, "expected a number, got 'left'"),
        ({"right": np.zeros(2), "down": 0.0}, "expected a number"),
    ],
)
def test_what_is_no_action_is_told_and_moves_nothing(robot: PushTRobot, action: dict[str, Any], why: str) -> None:
    before = robot.get_observation()
    with pytest.raises(ValueError, match=why):
        robot.send_action(action)
    after = robot.get_observation()
    assert after["step"] == before["step"]
    np.testing.assert_array_equal(after["truth"]["state"], before["truth"]["state"])


def test_time_passes_at_rest_too_but_no_action_is_counted(robot: PushTRobot) -> None:
    robot.reset(state=np.array([100, 100, 400, 400, 0.0]))
    robot.rest()
    robot.rest()
    seen = robot.get_observation()
    assert (seen["timestamp"], seen["step"], seen["pusher_x"]) == (0.2, 0, 100.0)


def test_a_robot_is_reset_where_its_world_would_be_or_says_why_not(robot: PushTRobot) -> None:
    env = PushTRealEnv()
    for seed in (3, 4):
        env.reset(seed=seed)
        robot.reset(seed=seed)
        np.testing.assert_array_equal(robot.get_observation()["truth"]["state"], env.state())
    with pytest.raises(ValueError, match="both"):
        robot.reset(1, env.state())
    for bad in ({"seed": -1}, {"seed": "x"}, {"state": np.zeros(3)}, {"state": np.full(5, 1e9)}):
        with pytest.raises(ValueError, match=r"seed|state"):
            robot.reset(**bad)  # type: ignore[arg-type]


# -- actions and pictures ----------------------------------------------------------------------------------------------------------


def test_actions_are_physical_by_name_and_come_back_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    assert physical_action(SPEC, np.array([1.0, -0.25])) == {"right": 24.0, "down": -6.0}
    drone = WorldSpec("drone", 8, 8, ("lift", "yaw"), ("N", "rad"), (3.7, 0.1), 20.0, 2, action_offset=(9.81, 0.0))
    for spec in (SPEC, drone, replace(SPEC, action_scale=(1.0, 1.0), action_choices=(4, 3))):
        for action in spec.random_actions(rng, 50):
            back = world_action(spec, physical_action(spec, action))
            assert back.dtype == spec.action_dtype
            np.testing.assert_array_equal(back, action)
    assert world_action(SPEC, {"right": 24.0001, "down": 0.0}).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="down missing"):
        world_action(SPEC, {"right": 1.0})
    with pytest.raises(ValueError, match="one at a time"):
        physical_action(SPEC, np.zeros((3, 2)))


def test_the_default_camera_resized_shows_the_worlds_own_frames_to_one_grey_level(robot: PushTRobot) -> None:
    env = PushTRealEnv()
    for seed in range(8):
        own, _ = env.reset(seed=seed)
        robot.reset(seed=seed)
        seen = Camera().frame(robot.get_observation(), SPEC)
        assert np.abs(seen.astype(int) - own).max() <= 1


def test_a_camera_looks_at_its_crop_alone() -> None:
    picture = np.zeros((96, 160, 3), np.uint8)
    picture[8:72, 40:104] = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    seen = Camera("wrist", crop=(8, 40, 64, 64)).frame({"wrist": picture}, SPEC)
    np.testing.assert_array_equal(seen, picture[8:72, 40:104])
    assert Camera("wrist", how="pad").frame({"wrist": picture}, SPEC).shape == (64, 64, 3)
    with pytest.raises(ValueError, match="reaches beyond its picture of 96x160"):
        Camera("wrist", crop=(40, 0, 64, 64)).frame({"wrist": picture}, SPEC)
    with pytest.raises(ValueError, match="not among what the robot observes: wrist"):
        Camera().frame({"wrist": picture}, SPEC)
    with pytest.raises(ValueError, match="expected uint8"):
        Camera("wrist").frame({"wrist": picture / 255}, SPEC)
    with pytest.raises(ValueError, match="crop"):
        Camera(crop=(-1, 0, 8, 8))


# -- behind Gymnasium --------------------------------------------------------------------------------------------------------------


def test_gymnasiums_own_checker_accepts_a_robot() -> None:
    env = RobotEnv(PushTRobot(), SPEC, paced=False, render_mode="rgb_array")
    check_env(env, skip_render_check=True)
    env.close()


def test_a_robot_in_lock_step_is_the_true_world_to_the_bit() -> None:
    truth, env = PushTRealEnv(), RobotEnv(PushTRobot(camera_size=64, truth=True), SPEC, paced=False)
    rng = np.random.default_rng(5)
    seen, told = env.reset(seed=11)
    np.testing.assert_array_equal(seen, truth.reset(seed=11)[0])
    for step, action in enumerate(SPEC.random_actions(rng, 40), 1):
        expected, coverage, success, _, _ = truth.step(action)
        seen, reward, terminated, truncated, told = env.step(action)
        np.testing.assert_array_equal(seen, expected)
        np.testing.assert_array_equal(told["truth"]["state"], truth.state())
        np.testing.assert_array_equal(told["action"], action)
        assert (told["truth"]["coverage"], told["truth"]["success"]) == (coverage, success)
        assert (reward, terminated, truncated, told["refused"]) == (0.0, False, False, False)
        assert (told["step"], told["timestamp"]) == (step, step / 10)
    env.close()
    assert not env.robot.is_connected


def test_deadlines_are_absolute_and_missed_ones_are_counted() -> None:
    clock = FakeClock()
    env = RobotEnv(PushTRobot(), SPEC, clock=clock, sleep=clock.sleep)
    env.reset(seed=0)
    for _ in range(10):
        clock.time += 0.07  # thinking
        *_, told = env.step(np.zeros(2, np.float32))
    assert clock.time == pytest.approx(101.0)
    assert told["missed"] == 0
    clock.time += 0.13
    *_, told = env.step(np.zeros(2, np.float32))
    assert clock.time == pytest.approx(101.13)
    assert told["missed"] == 1
    *_, told = env.step(np.zeros(2, np.float32))
    assert clock.time == pytest.approx(101.2)  # back in phase
    clock.time += 0.35  # three deadlines pass unseen
    *_, told = env.step(np.zeros(2, np.float32))
    assert told["missed"] == 4
    env.step(np.zeros(2, np.float32))
    assert clock.time == pytest.approx(101.6)
    env.close()


def test_other_peoples_robots_fit_without_an_adapter() -> None:
    env = RobotEnv(Arm(), SPEC, Camera("wrist", crop=(0, 32, 96, 96)), paced=False)
    seen, told = env.reset(seed=1)
    assert (told["action"].tolist(), told["refused"], told["missed"], told["step"]) == ([0, 0], False, 0, 0)
    assert seen.std() > 10
    *_, first = env.step(np.ones(2, np.float32))
    assert (first["action"].tolist(), first["step"]) == ([1, 1], 1)
    *_, second = env.step(np.ones(2, np.float32))
    assert second["refused"]
    assert second["action"].tolist() == [0, 0]  # what the robot refused was not done
    assert second["step"] == 1
    with pytest.raises(ValueError, match="cannot be put at a state"):
        env.reset(options={"state": np.zeros(5)})
    env.close()


def test_a_robot_that_does_not_fit_the_world_is_told_before_it_moves() -> None:
    arm = Arm()
    crane = replace(SPEC, action_names=("slew", "hoist"))
    for env, why in (
        (RobotEnv(arm, SPEC), "no such camera; it has wrist"),
        (RobotEnv(arm, SPEC, Camera("wrist", crop=(0, 100, 96, 96))), "reaches beyond"),
        (RobotEnv(arm, crane, Camera("wrist")), "takes right, down, but .* slew, hoist"),
        (
            RobotEnv(PushTRobot(), replace(SPEC, rate_hz=50.0)),
            "does 10 actions a second, but world 'pusht' is one of 50",
        ),
    ):
        with pytest.raises(ValueError, match=why):
            env.reset()
        env.close()
    assert arm.asked == 0
    env = RobotEnv(PushTRobot(), SPEC, paced=False)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(2, np.float32))
    env.reset()
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        env.step(np.array([24.0, 0.0]))
    with pytest.raises(ValueError, match="unknown"):
        env.reset(options={"stat": 1})


def shape_of(value: Any) -> Any:
    """Keys and types of an info, arrays with their shapes."""
    if isinstance(value, dict):
        return {name: shape_of(entry) for name, entry in value.items()}
    return (value.dtype, value.shape) if isinstance(value, np.ndarray) else type(value)


def test_infos_have_the_same_keys_and_types_at_reset_and_at_each_step() -> None:
    for env in (
        RobotEnv(PushTRobot(), SPEC, paced=False),
        RobotEnv(PushTRobot(truth=True), SPEC, paced=False),
        RobotEnv(Arm(), SPEC, Camera("wrist"), paced=False),
    ):
        infos = [env.reset(seed=1)[1], *(env.step(np.ones(2, np.float32))[4] for _ in range(3)), env.reset(seed=2)[1]]
        assert all(shape_of(info) == shape_of(infos[0]) for info in infos)
        assert {"action", "refused", "missed", "timestamp", "step"} <= set(infos[0])
        env.close()


def robot_env(truth: bool) -> RobotEnv:
    return RobotEnv(PushTRobot(truth=truth), SPEC, paced=False)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Minari's, about the spec and about metadata
@pytest.mark.parametrize("truth", [False, True])
def test_minari_records_a_robots_infos(truth: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import minari

    jax = types.ModuleType("jax")
    jax.tree_util = types.SimpleNamespace(tree_map=_pytree.tree_map)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jax", jax)  # the one function that Minari takes of it
    monkeypatch.setitem(sys.modules, "jax.tree_util", jax.tree_util)  # type: ignore[attr-defined]
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    gym.register("Robot-v0", f"{__name__}:robot_env", kwargs={"truth": truth})
    env = minari.DataCollector(gym.make("Robot-v0"), record_infos=True)
    for seed in (1, 2):
        env.reset(seed=seed)
        for _ in range(3):
            env.step(np.ones(2, np.float32))
    about = {"algorithm_name": "a", "author": "a", "author_email": "a@b.c", "code_permalink": "x", "description": "x"}
    dataset = env.create_dataset("robot-v0", eval_env=None, **about)
    assert [episode.infos["step"].tolist() for episode in dataset] == [[0, 1, 2, 3]] * 2
    assert ("truth" in dataset[0].infos) == truth
    del gym.registry["Robot-v0"]


def test_choices_reach_the_robot_as_whole_numbers() -> None:
    keys = WorldSpec("keys", 8, 8, ("key",), ("choice",), (1.0,), 10.0, 1, action_choices=(4,))
    sent = physical_action(keys, np.array([3]))
    assert sent == {"key": 3}
    assert type(sent["key"]) is int


class Answering(PushTRobot):
    """Moves, and answers ``answer`` all the same."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer, self.moved = answer, 0

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        super().send_action(action)
        self.moved += 1
        return self.answer


@pytest.mark.parametrize(
    "answer",
    [
        None,
        3,
        [1.0, 2.0],
        {"right": 1.0},
        {"right": float("nan"), "down": 0.0},
        {"right": np.zeros(0), "down": 0.0},
        {"right": np.zeros((2, 2)), "down": 0.0},
        {"right": 10**400, "down": 0.0},
        {"right": 1j, "down": "x"},
    ],
)
def test_an_answer_that_is_no_action_is_named_after_one_motion(answer: Any) -> None:
    robot = Answering(answer)
    env = RobotEnv(robot, SPEC, paced=False)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"robot 'pusht': send_action returned"):
        env.step(np.ones(2, np.float32))
    assert robot.moved == 1


def test_a_robot_that_refuses_everything_is_given_up() -> None:
    robot = Answering({})
    env = RobotEnv(robot, SPEC, paced=False)
    env.reset(seed=0)
    assert all(env.step(np.ones(2, np.float32))[4]["refused"] for _ in range(9))
    with pytest.raises(ActionRefused, match="refused 10 actions in a row"):
        env.step(np.ones(2, np.float32))
    env.reset(seed=0)
    assert env.step(np.ones(2, np.float32))[4]["refused"]


@pytest.mark.parametrize(
    ("reading", "why"),
    [
        ({"timestamp": float("nan")}, "timestamp: expected a finite number, got nan"),
        ({"timestamp": float("inf")}, "timestamp: expected a finite number, got inf"),
        ({"timestamp": "noon"}, "timestamp: expected a number, got 'noon'"),
        ({"step": float("nan")}, "step: expected a finite number"),
        ({"step": 10**400}, "step: expected a number"),
        ({"step": -1}, "step: expected a whole number"),
        ({"step": 1.5}, "step: expected a whole number"),
    ],
)
def test_times_and_counts_that_are_no_numbers_are_named(reading: dict[str, Any], why: str) -> None:
    class Odd(PushTRobot):
        def get_observation(self) -> dict[str, Any]:
            return super().get_observation() | reading

    with pytest.raises(ValueError, match=why):
        RobotEnv(Odd(), SPEC, paced=False).reset(seed=0)


@pytest.mark.parametrize("answer", [None, 3, [], "picture"])
def test_an_observation_that_is_no_dict_is_named(answer: Any) -> None:
    class Odd(PushTRobot):
        def get_observation(self) -> dict[str, Any]:
            return answer

    with pytest.raises(ValueError, match=r"robot 'pusht': get_observation returned .*expected a dict"):
        RobotEnv(Odd(), SPEC, paced=False).reset(seed=0)


class Hung(PushTRobot):
    """Its camera hangs after the third picture."""

    def get_observation(self) -> dict[str, Any]:
        seen = super().get_observation()
        if seen["step"] <= 2:
            self.last = seen
        return self.last


def test_a_camera_that_stands_still_ends_the_episode_after_a_few_steps() -> None:
    env = RobotEnv(Hung(), SPEC, paced=False, stale_steps=3)
    env.reset(seed=0)
    for _ in range(4):  # two with new frames, two that could still be a late one
        env.step(np.zeros(2, np.float32))
    with pytest.raises(StaleFrame, match="no newer frame for 3 steps"):
        env.step(np.zeros(2, np.float32))
    env.reset(seed=0)
    env.step(np.zeros(2, np.float32))
