"""The robot in a process of its own: nothing that links and cameras do to frames moves time backwards, and whoever
vanishes, talks nonsense or is killed leaves a robot at rest that can be driven again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from neuralsim.cli import main
from neuralsim.envs.pusht.env import PushTRealEnv, pusht_spec
from neuralsim.envs.pusht.robot_server import RobotProcess, RobotSimConfig, spawn_robot_sim
from neuralsim.envs.robots.faults import Faults
from neuralsim.envs.robots.remote_robot import RemoteRobot
from neuralsim.envs.robots.robot import RobotLost, StaleFrame
from neuralsim.envs.robots.robot_env import RobotEnv
from neuralsim.envs.robots.wire import pack, unpack

SPEC = pusht_spec()
REST = {"right": 0.0, "down": 0.0}
CORNER = np.array([100, 100, 400, 400, 0.0])
"""Pusher and block far apart."""


@pytest.fixture(scope="module")
def lively() -> Iterator[str]:
    """The address of a robot that ticks 50 times a second."""
    with spawn_robot_sim(RobotSimConfig(port=0, rate=50.0, truth=True)) as address:
        yield address


@pytest.fixture
def robot(lively: str) -> Iterator[RemoteRobot]:
    """It, connected and without faults, at a start."""
    with RemoteRobot(lively, timeout=5.0, stale_after=5.0) as robot:
        robot.inject(Faults())
        robot.reset(state=CORNER)
        robot.get_observation()
        yield robot


def until(happened: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What ``happened`` says once it says something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := happened():
            return found
        time.sleep(0.005)
    raise AssertionError("it has not happened")


def exit_code(*words: str) -> int:
    """Of ``neuralsim robot-sim WORDS``."""
    try:
        return main(["robot-sim", *words])
    except SystemExit as exit:  # tyro's way
        return int(exit.code or 0)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# -- lock-step ---------------------------------------------------------------------------------------------------------------------


def test_in_lock_step_over_the_wire_it_is_the_true_world_to_the_bit() -> None:
    truth, rng = PushTRealEnv(), np.random.default_rng(0)
    with spawn_robot_sim(RobotSimConfig(port=0, pace="step", camera_size=64, truth=True)) as address:
        env = RobotEnv(RemoteRobot(address, timeout=10.0), SPEC, paced=False)
        for seed in (7, 8):
            seen, told = env.reset(seed=seed)
            np.testing.assert_array_equal(seen, truth.reset(seed=seed)[0])
            for step, action in enumerate(SPEC.random_actions(rng, 15), 1):
                expected, coverage, success, _, _ = truth.step(action)
                seen, _, _, _, told = env.step(action)
                np.testing.assert_array_equal(seen, expected)
                np.testing.assert_array_equal(told["truth"]["state"], truth.state())
                np.testing.assert_array_equal(told["action"], action)
                assert (told["truth"]["coverage"], told["truth"]["success"]) == (coverage, success)
                assert (told["step"], told["timestamp"]) == (step, step / 10)
        env.close()


def test_lock_step_takes_no_faults_of_the_link(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--pace", "step", "--drop", "0.1") == 2
    assert "use --pace real" in " ".join(capsys.readouterr().err.split())


# -- verbs over the wire -----------------------------------------------------------------------------------------------------------


def test_features_are_known_before_it_is_connected_and_match_what_it_observes(lively: str) -> None:
    robot = RemoteRobot(lively)
    assert robot.action_features == {"right": float, "down": float}
    assert not robot.is_connected
    with robot:
        observation = robot.get_observation()
        for name, kind in robot.observation_features.items():
            assert observation[name].shape == kind if isinstance(kind, tuple) else type(observation[name]) is kind
        assert set(observation) - set(robot.observation_features) == {"timestamp", "step", "truth"}
        assert robot.is_calibrated
        with pytest.raises(ValueError, match="already"):
            robot.connect()
    robot.disconnect()
    with pytest.raises(RobotLost, match="not connected"):
        robot.get_observation()


def test_what_was_really_sent_comes_back_and_is_carried_out_at_the_next_tick(robot: RemoteRobot) -> None:
    assert robot.send_action({"right": np.float32(1000), "down": -6}) == {"right": 24.0, "down": -6.0}
    until(lambda: robot.get_observation()["step"] == 1)
    seen = robot.get_observation()
    assert (seen["pusher_x"], seen["pusher_y"]) == (124.0, 94.0)


def test_what_is_no_request_is_told_and_the_robot_goes_on(robot: RemoteRobot) -> None:
    for action, why in (
        ({"right": float("nan"), "down": 0.0}, "finite"),
        ({"right": 1.0}, "expected right, down"),
        ({"right": "far", "down": 0.0}, "expected numbers"),
    ):
        with pytest.raises(ValueError, match=why):
            robot.send_action(action)
    for wrong, why in (
        ({"type": "fly"}, "expected action, reset or faults, got 'fly'"),
        ({"type": "action", "action": [1, 2]}, "expected a map"),
        ({"type": "reset", "seed": -3}, "seed"),
        ({"type": "reset", "state": "home"}, "state|float"),
        ({"type": "reset", "state": np.full(5, 1e9)}, "must lie in"),
        ({"type": "faults", "faults": {"drop": 2.0}}, "share from 0 to 1"),
        ({"type": "faults", "faults": {"fire": 1.0}}, "fire"),
    ):
        with pytest.raises(ValueError, match=why):
            robot._request(wrong)
    assert robot.send_action(REST) == REST


def test_at_most_two_actions_wait_and_all_that_were_taken_are_carried_out(robot: RemoteRobot) -> None:
    taken = 0
    refused: list[dict[str, Any]] = []
    for _ in range(12):  # much faster than 50 a second
        sent = robot.send_action(REST)
        taken += bool(sent)
        refused += [sent] * (not sent)
    assert refused
    assert refused[0] == {}
    until(lambda: robot.get_observation()["step"] >= taken)
    until(lambda: robot.telemetry["refused"] >= len(refused))
    time.sleep(0.1)
    assert robot.get_observation()["step"] == taken


def test_after_a_reset_no_frame_from_before_is_seen(robot: RemoteRobot) -> None:
    robot.inject(Faults(latency=100.0))
    time.sleep(0.15)
    robot.reset(state=CORNER + np.eye(5)[0] * 50)
    for _ in range(20):
        assert robot.get_observation()["pusher_x"] == 150.0
        time.sleep(0.01)


# -- faults ------------------------------------------------------------------------------------------------------------------------


def test_faults_come_as_often_as_they_are_asked_for_and_the_same_for_a_seed() -> None:
    faults = Faults(latency=40.0, jitter=20.0, drop=0.1, duplicate=0.2, reorder=0.3)
    all_arrivals = [faults.arrivals(np.random.default_rng([1, i]), 0.1) for i in range(4000)]
    assert all_arrivals == [faults.arrivals(np.random.default_rng([1, i]), 0.1) for i in range(4000)]
    copies = np.array([len(a) for a in all_arrivals])
    first = np.array([a[0] for a in all_arrivals if a])
    held = first > 0.1
    assert np.mean(copies == 0) == pytest.approx(0.1, abs=0.02)
    assert np.mean(copies[copies > 0] == 2) == pytest.approx(0.2, abs=0.02)
    assert held.mean() == pytest.approx(0.3, abs=0.03)
    for delays, extra in ((first[~held], 0.0), (first[held], 0.15)):
        assert delays.min() == pytest.approx(0.02 + extra, abs=0.001)
        assert delays.max() == pytest.approx(0.06 + extra, abs=0.001)
    assert Faults().arrivals(np.random.default_rng(0), 0.1) == (0.0,)
    for name in ("latency", "jitter", "drop", "duplicate", "reorder", "freeze"):
        with pytest.raises(ValueError, match=name):
            Faults(**{name: -1.0})


def test_late_lost_repeated_and_disordered_frames_never_move_time_backwards(robot: RemoteRobot) -> None:
    robot.inject(Faults(latency=30.0, jitter=25.0, drop=0.2, duplicate=0.3, reorder=0.3))
    seen, taken = [], 0
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        taken += bool(robot.send_action(REST))
        observation = robot.get_observation()
        seen.append((observation["timestamp"], observation["step"]))
        time.sleep(0.012)
    assert seen == sorted(seen)
    assert len(set(seen)) > 10
    assert robot.discarded > 5  # the faults were there
    robot.inject(Faults())
    until(lambda: robot.get_observation()["step"] == taken)  # frames were lost, actions were not


def test_frames_are_as_late_as_asked_for(robot: RemoteRobot) -> None:
    robot.inject(Faults(latency=200.0))
    time.sleep(0.3)
    assert min(_age(robot) for _ in range(20)) > 0.15


def _age(robot: RemoteRobot) -> float:
    time.sleep(0.007)
    seen = robot.get_observation()
    return time.monotonic() - robot._clock_offset - seen["timestamp"]


def test_a_lost_camera_is_told_in_time_and_may_come_back(robot: RemoteRobot) -> None:
    robot.inject(Faults(drop=1.0))
    robot.get_observation()  # still fresh enough
    robot.stale_after = 0.3
    time.sleep(0.4)
    with pytest.raises(StaleFrame, match=r"frame is \d+\.\d+ s old, more than 0.3 s"):
        robot.get_observation()
    robot.send_action(REST)  # the link is there
    robot.inject(Faults())
    robot.stale_after = 5.0
    until(lambda: robot.get_observation()["step"] == 1)


def test_frames_that_are_ever_later_are_stale_too(robot: RemoteRobot) -> None:
    robot.stale_after = 0.3
    robot.inject(Faults(latency=1000.0))
    time.sleep(1.2)  # frames arrive again, 50 a second
    with pytest.raises(StaleFrame, match="too slow"):
        robot.get_observation()


def test_a_hung_camera_shows_one_picture_while_all_else_goes_on(robot: RemoteRobot) -> None:
    robot.inject(Faults(freeze=0.0))
    robot.send_action({"right": 24.0, "down": 24.0})
    before = robot.get_observation()
    after = until(lambda: (o := robot.get_observation())["step"] == 1 and o)
    assert after["pusher_x"] == 124.0
    assert after["timestamp"] > before["timestamp"]
    np.testing.assert_array_equal(after["camera"], before["camera"])
    robot.inject(Faults())
    until(lambda: (robot.get_observation()["camera"] != before["camera"]).any())


# -- losing each other -------------------------------------------------------------------------------------------------------------


def test_a_robot_killed_and_restarted_is_lost_and_found_again() -> None:
    config = RobotSimConfig(port=0, rate=50.0)
    with RobotProcess(config) as first:
        robot = RemoteRobot(first.address, timeout=5.0, stale_after=5.0)
        env = RobotEnv(robot, replace(SPEC, rate_hz=50.0))
        env.reset(seed=0)
        env.step(np.ones(2, np.float32))
        os.kill(first.pid, signal.SIGKILL)
        until(lambda: not robot.is_connected)
        for verb in (robot.get_observation, lambda: env.step(np.ones(2, np.float32)), lambda: robot.reset(0)):
            with pytest.raises(RobotLost, match="the robot is lost"):
                verb()
        with pytest.raises(RobotLost, match=r"no robot at .*robot-sim"):
            env.reset(seed=0)
        with RobotProcess(replace(config, port=int(first.address.rsplit(":")[-1]))) as second:
            assert second.address == first.address
            env.reset(seed=0)  # connects again
            *_, told = env.step(np.ones(2, np.float32))
            assert not told["refused"]
            env.close()


def test_a_robot_that_stops_answering_is_lost_in_time() -> None:
    with RobotProcess(RobotSimConfig(port=0, rate=50.0)) as process:
        robot = RemoteRobot(process.address, timeout=5.0, stale_after=5.0)
        robot.connect()
        robot.get_observation()
        os.kill(process.pid, signal.SIGSTOP)
        robot.timeout, robot.stale_after = 0.5, 0.3
        time.sleep(0.4)
        with pytest.raises(StaleFrame):
            robot.get_observation()
        began = time.monotonic()
        with pytest.raises(RobotLost, match="no answer within"):
            robot.send_action(REST)
        robot.disconnect()
        assert time.monotonic() - began < 120
        assert not robot.is_connected
        os.kill(process.pid, signal.SIGCONT)
        robot.timeout = robot.stale_after = 5.0
        robot.connect()
        assert robot.get_observation()["step"] in (0, 1)
        robot.disconnect()


VANISHING = """
import os, signal, sys
from neuralsim.envs.robots.remote_robot import RemoteRobot
robot = RemoteRobot(sys.argv[1], timeout=5.0)
robot.connect()
robot.reset(seed=1)
for _ in range(2):
    robot.send_action({"right": 24.0, "down": 0.0})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_when_its_driver_vanishes_the_robot_rests_and_takes_the_next() -> None:
    with spawn_robot_sim(RobotSimConfig(port=0, rate=2.0)) as address:
        gone = subprocess.run([sys.executable, "-c", VANISHING, address])
        assert gone.returncode == -signal.SIGKILL
        robot = RemoteRobot(address, timeout=5.0, stale_after=5.0)

        def found() -> bool:
            with contextlib.suppress(RobotLost):
                robot.connect()
            return robot.is_connected

        until(found)
        time.sleep(1.2)
        # Two ticks later: what the vanished driver still had waiting is not done.
        assert robot.get_observation()["step"] <= 1
        assert robot.telemetry["waiting"] == 0
        robot.disconnect()


def test_actions_of_a_driver_that_falls_silent_are_forgotten() -> None:
    with (
        spawn_robot_sim(RobotSimConfig(port=0, rate=1.25)) as address,
        RemoteRobot(address, timeout=5.0, stale_after=5.0) as robot,
    ):
        robot.reset(state=CORNER)
        for _ in range(2):
            assert robot.send_action({"right": 24.0, "down": 0.0})
        assert robot.get_observation()["step"] == 0
        began = robot.get_observation()["timestamp"]
        seen = until(lambda: (o := robot.get_observation())["timestamp"] > began + 1.0 and o)
        assert (seen["step"], seen["pusher_x"]) == (0, 100.0)


def test_a_second_driver_is_turned_away_and_the_first_goes_on(lively: str, robot: RemoteRobot) -> None:
    with pytest.raises(RobotLost, match="has a driver already"):
        RemoteRobot(lively).connect()
    assert robot.send_action(REST) == REST


def test_the_next_driver_may_come_at_once(lively: str) -> None:
    for _ in range(5):
        with RemoteRobot(lively, timeout=5.0) as robot:
            robot.send_action(REST)


def _ended(link: Any, told: list[Any]) -> bool:
    """Whether nothing more comes; else what came is ``told``."""
    from websockets.exceptions import ConnectionClosed

    try:
        told.append(unpack(link.recv(timeout=5)))
    except ConnectionClosed:
        return True
    return False


@pytest.mark.parametrize(
    ("message", "code", "why"),
    [
        (b"\xc1 this is no msgpack", 1007, "not msgpack"),
        (pack([1, 2]), 1007, "expected a map"),
        ("a text", 1007, "got a text"),
        (b"x" * 70_000, 1009, ""),
    ],
    ids=["garbage", "list", "text", "oversized"],
)
def test_what_cannot_be_read_ends_that_link_alone(lively: str, message: str | bytes, code: int, why: str) -> None:
    from websockets.sync.client import connect

    with connect(lively, proxy=None) as link:
        assert unpack(link.recv(timeout=5))["type"] == "welcome"
        link.send(message)
        told: list[Any] = []
        until(lambda: _ended(link, told))
        assert link.close_code == code
        errors = [m["message"] for m in told if m["type"] == "error"]
        assert [why in e for e in errors] == [True] * bool(why)
    with RemoteRobot(lively, timeout=5.0) as robot:
        assert robot.send_action(REST) == REST


def test_noise_on_the_port_is_ignored(lively: str, robot: RemoteRobot) -> None:
    host, port = lively.removeprefix("ws://").split(":")
    for noise in (b"\x00\xff" * 500, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b""):
        with socket.create_connection((host, int(port)), timeout=5) as plain:
            plain.sendall(noise)
    assert robot.send_action(REST) == REST


def test_a_client_meeting_something_else_than_a_robot_says_so() -> None:
    from websockets.sync.server import serve

    for greeting in ("hello", b"\xc1", pack({"image_keys": 2}), pack({"type": "welcome", "protocol": 99})):
        with serve(lambda link, greeting=greeting: link.send(greeting), "127.0.0.1", 0) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            with pytest.raises(RobotLost, match="no robot at"):
                RemoteRobot(f"127.0.0.1:{server.socket.getsockname()[1]}").connect()
            server.shutdown()
    with pytest.raises(ValueError, match="expected ws://"):
        RemoteRobot("http://127.0.0.1:1")


@pytest.mark.parametrize("timestamp", [float("nan"), float("inf"), "noon", None])
def test_a_frame_whose_time_is_no_number_ends_the_link(timestamp: Any) -> None:
    from websockets.sync.server import serve

    welcome = {"type": "welcome", "protocol": 1, "observation_features": {}, "action_features": {}, "pace": "real"}
    frame = {
        "type": "frame",
        "sequence": 0,
        "observation": {"timestamp": timestamp},
        "waiting": 0,
        "refused": 0,
        "late": 0,
    }

    def talk(link: Any) -> None:
        link.send(pack(welcome))
        link.send(pack(frame))
        with contextlib.suppress(Exception):
            link.recv(timeout=5)

    with serve(talk, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        robot = RemoteRobot(f"127.0.0.1:{server.socket.getsockname()[1]}", timeout=5.0)
        robot.connect()
        with pytest.raises(RobotLost, match="it sent what cannot be read"):
            robot.get_observation()
        robot.disconnect()
        server.shutdown()


@pytest.mark.parametrize("sent", [None, 3, [1.0, 2.0]])
def test_an_answer_that_is_no_action_is_an_error(sent: Any) -> None:
    from websockets.sync.server import serve

    welcome = {"type": "welcome", "protocol": 1, "observation_features": {}, "action_features": {}, "pace": "real"}

    def talk(link: Any) -> None:
        link.send(pack(welcome))
        with contextlib.suppress(Exception):
            link.send(pack({"type": "sent", "id": unpack(link.recv(timeout=5))["id"], "sent": sent}))
            link.recv(timeout=5)

    with serve(talk, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        robot = RemoteRobot(f"127.0.0.1:{server.socket.getsockname()[1]}", timeout=5.0)
        robot.connect()
        with pytest.raises(ValueError, match="expected the action that was sent"):
            robot.send_action(REST)
        robot.disconnect()
        server.shutdown()


# -- the process -------------------------------------------------------------------------------------------------------------------


def test_a_spawned_robot_is_gone_afterwards_also_after_an_error() -> None:
    process = RobotProcess(RobotSimConfig(port=0))
    with contextlib.suppress(KeyError), process:
        assert alive(process.pid)
        raise KeyError
    assert not alive(process.pid)


ORPHANING = """
import os
from neuralsim.envs.pusht.robot_server import RobotProcess, RobotSimConfig
process = RobotProcess(RobotSimConfig(port=0)).__enter__()
print(process.pid, flush=True)
os._exit(1)
"""


def test_a_spawned_robot_does_not_outlive_a_program_that_was_killed() -> None:
    pid = int(subprocess.run([sys.executable, "-c", ORPHANING], capture_output=True, text=True).stdout)
    until(lambda: not alive(pid), 10)


def test_a_robot_that_cannot_start_says_why(lively: str) -> None:
    taken = int(lively.rsplit(":")[-1])
    with pytest.raises(RobotLost, match="address already in use"), spawn_robot_sim(RobotSimConfig(port=taken)):
        pass
    with pytest.raises(RobotLost, match="did not start"), spawn_robot_sim(RobotSimConfig(port=0), timeout=0.05):
        pass


def test_the_command_line_gives_every_setting_and_refuses_wrong_ones(capsys: pytest.CaptureFixture[str]) -> None:
    from neuralsim.envs.pusht.robot_server import _flags

    config = RobotSimConfig(0, "::1", "real", 12.5, 96, Faults(40.0, 20.0, 0.02, 0.1, 0.3, 0.0), 7, True)
    words = dict(zip(*[iter(w for w in _flags(config) if w != "--truth")] * 2, strict=True))
    assert {k.removeprefix("--").replace("-", "_"): v for k, v in words.items()} == {
        k: str(v)
        for k, v in (asdict(config) | asdict(config.faults)).items()
        if k not in ("faults", "truth", "until_eof")
    }
    for wrong in (["--drop", "2"], ["--latency", "-1"], ["--rate", "0"], ["--port", "70000"]):
        assert exit_code(*wrong) == 2
        assert wrong[0].removeprefix("--") in capsys.readouterr().err
