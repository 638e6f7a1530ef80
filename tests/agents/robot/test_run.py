"""'neuralsim drive': a policy on a robot by one command, dry unless it is told otherwise; figures that can be believed;
recordings that train the next model; and an end in rest, whatever happens."""

from __future__ import annotations

import errno
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuralsim import cli
from neuralsim.agents.collection.collect import CollectConfig, collect
from neuralsim.agents.heads.chunk_policy import ObservationHistory
from neuralsim.agents.robot.emergency_stop import EmergencyStopKey
from neuralsim.agents.robot.run import DriveConfig, DriveResult, drive
from neuralsim.data.episode import Episode
from neuralsim.data.store import EpisodeStore, JoinedStore
from neuralsim.data.windows import WindowSampler
from neuralsim.envs.pusht.env import GOAL_POSE, PushTRealEnv
from neuralsim.envs.pusht.robot import PushTRobot
from neuralsim.envs.pusht.robot_server import RobotProcess, RobotSimConfig
from neuralsim.envs.robots.faults import Faults
from neuralsim.envs.robots.remote_robot import RemoteRobot
from neuralsim.pretrained.world import World
from neuralsim.runtime.files import folder_lock

WORLD = "pusht-latent"


class Wander:
    """Chunks of small steps by chance."""

    chunk = 8

    def __init__(self, world: World) -> None:
        self.spec = world.spec

    def predict_action_chunk(
        self, seen: ObservationHistory, seeds: Sequence[int], prefix: np.ndarray | None = None
    ) -> np.ndarray:
        actions = np.stack([np.random.default_rng(s).uniform(-0.5, 0.5, (8, 2)) for s in seeds]).astype(np.float32)
        if prefix is not None:
            actions[:, : prefix.shape[1]] = prefix
        return actions


class NearGoal(PushTRobot):
    """Push-T whose every second episode begins solved."""

    def __init__(self) -> None:
        super().__init__(64, truth=True)
        self.sent = self.resets = 0
        ROBOTS.append(self)

    def reset(self, seed: int | None = None, state: np.ndarray | None = None) -> None:
        if state is not None:
            self.resets += 1
            state = np.array([60.0, 60.0, *GOAL_POSE]) if self.resets % 2 else state
        super().reset(seed, state)

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self.sent += 1
        return super().send_action(action)


ROBOTS: list[NearGoal] = []


def near_goal() -> NearGoal:
    return NearGoal()


def arm() -> PushTRobot:
    return PushTRobot(64)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs are written below tmp_path, and this module's policies and robots are found by name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "test_run_parts", sys.modules[__name__])
    ROBOTS.clear()


def driven(tmp_path: Path, **given: Any) -> tuple[DriveResult, EpisodeStore]:
    config: dict[str, Any] = {
        "world": WORLD,
        "policy": "test_run_parts:Wander",
        "out": tmp_path / "driven",
        "steps": 20,
    }
    config |= given
    result = drive(DriveConfig(**config), say=lambda text: None)
    return result, EpisodeStore(config["out"])


def figures(result: DriveResult) -> dict[str, float]:
    return {row.key: row.value for row in result.report.rows}


# -- dry and live ----------------------------------------------------------------------------------------------------------


def test_without_live_nothing_moves_and_what_would_be_sent_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        f"drive {WORLD} --policy test_run_parts:Wander --robot test_run_parts:near_goal --steps 12 --hz 50 --out mine"
    )
    assert cli.main(words.split()) == 0
    robot = ROBOTS[0]
    assert robot.sent == 0
    assert robot.resets == 0
    assert not robot.is_connected
    printed = capsys.readouterr().out
    assert printed.count("would send right") == 12
    assert not EpisodeStore(tmp_path / "mine")[0].has_actions


def test_flags_of_earlier_versions_still_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"drive {WORLD} --policy test_run_parts:Wander --pace step --steps 3 --out mine --execute 4 --patience 3 --dreams {WORLD}"
    assert cli.main(words.split()) == 0
    warnings = " ".join(capsys.readouterr().err.split())
    for old, new in (("execute", "n-action-steps"), ("patience", "timeout"), ("dreams", "monitor-world")):
        assert f"--{old} is now --{new}" in warnings


def test_live_really_sends_and_records_what_was_sent(tmp_path: Path) -> None:
    result, store = driven(tmp_path, robot="test_run_parts:near_goal", live=True, pace="step", episodes=2)
    assert ROBOTS[0].sent == 20 + 2  # one episode began solved; each ends with a rest
    assert store.lengths.tolist() == [20]
    assert not result.stopped
    assert figures(result)["steps"] == 10


# -- figures ---------------------------------------------------------------------------------------------------------------


def test_lock_step_tells_the_true_success_with_its_interval(tmp_path: Path) -> None:
    result, _ = driven(tmp_path, robot="test_run_parts:near_goal", live=True, pace="step", episodes=4, steps=6)
    row = result.report["success"]
    assert (row.value, row.n) == (0.5, 4)
    assert row.low == pytest.approx(0.150, abs=0.001)  # Wilson 1927
    assert row.high == pytest.approx(0.850, abs=0.001)
    told = figures(result)
    assert told["ms_p50"] <= told["ms_p99"]
    assert told["imagine_ms_p50"] > 0


def test_lock_step_repeats_itself_and_seeds_change_it(tmp_path: Path) -> None:
    how = {"live": True, "pace": "step", "episodes": 2, "steps": 10}
    (_, one), (_, two), (_, other) = (
        driven(tmp_path, out=tmp_path / name, seed=seed, **how) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    for mine, same, else_ in zip(one, two, other, strict=True):
        assert np.array_equal(mine.frames, same.frames)
        assert np.array_equal(mine.actions, same.actions)
        assert not np.array_equal(mine.frames, else_.frames)
    assert not np.array_equal(one[0].frames[0], one[1].frames[0])  # each episode has a start of its own


def test_figures_are_written_as_json(tmp_path: Path) -> None:
    driven(tmp_path, live=True, pace="step", steps=4, json=tmp_path / "figures" / "drive.json")
    told = json.loads((tmp_path / "figures" / "drive.json").read_text())
    assert {row["key"] for row in told["rows"]} >= {
        "success",
        "steps",
        "rate",
        "ms_p50",
        "ms_p99",
        "starved",
        "refusals",
    }
    assert told["circumstances"]["live"] is True
    assert (tmp_path / "driven" / "drive.json").is_file()


# -- over the wire ---------------------------------------------------------------------------------------------------------


def test_a_robot_with_delays_is_driven_at_its_rate_and_recorded_in_line(tmp_path: Path) -> None:
    """40 ms of latency, 20 ms of jitter, 5 % of frames lost: every recorded action carries its frame to the next."""
    faults = Faults(latency=40, jitter=20, drop=0.05, duplicate=0.05)
    result, store = driven(tmp_path, live=True, steps=60, faults=faults)
    told = figures(result)
    assert not result.stopped
    seconds, missed = result.report["rate"].n / told["rate"], told["missed"]
    assert told["rate"] <= 10.5  # a busy machine misses deadlines; all the others are kept
    assert told["rate"] + missed / seconds >= 9.5
    if told["ms_p99"] < 200 and missed < 5:  # else chunks are late, or frames between two observations are lost
        assert told["starved"] <= 10
        assert store.lengths.sum() >= 40
    env = PushTRealEnv()
    for episode in store:
        assert episode.states is not None
        env.reset(options={"state": episode.states[0].astype(np.float64)})
        for action, state, frame in zip(episode.actions, episode.states[1:], episode.frames[1:], strict=True):
            shown, *_ = env.step(action)
            assert np.allclose(env.state(), state, atol=0.05)
            assert np.abs(shown.astype(int) - frame).mean() < 1
            env.set_state(state.astype(np.float64))
    ticks = store[0].provenance["ticks"]
    assert (np.diff(ticks["deadline"]) > 0.05).all()


def test_a_robot_process_that_dies_ends_the_run_and_what_was_driven_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RobotProcess(RobotSimConfig(port=0, truth=True)) as process:
        send, sent = RemoteRobot.send_action, []

        def counted(self: RemoteRobot, action: dict[str, Any]) -> dict[str, Any]:
            sent.append(action)
            if len(sent) == 20:
                process.kill()
            return send(self, action)

        monkeypatch.setattr(RemoteRobot, "send_action", counted)
        result, store = driven(tmp_path, robot=process.address, live=True, steps=10_000)
    assert "RobotLost" in result.stopped
    assert len(sent) < 10_000
    assert store.lengths.sum() >= 5
    assert store[0].provenance["stopped"] == result.stopped


def test_a_served_policy_drives(tmp_path: Path) -> None:
    from neuralsim.agents.serving.server import PolicyServer, ServerConfig
    from neuralsim.pretrained.world import open_world

    with PolicyServer(Wander(open_world(WORLD)), ServerConfig(port=0)) as server:
        how = {"live": True, "pace": "step", "steps": 16}
        _, remote = driven(tmp_path, server=server.uri, out=tmp_path / "remote", **how)
        _, local = driven(tmp_path, out=tmp_path / "local", **how)
    assert np.array_equal(remote[0].actions, local[0].actions)


# -- readings --------------------------------------------------------------------------------------------------------------


class Astray(PushTRobot):
    """Reports a place that it cannot be at from its fifth action on."""

    place = float("inf")

    def __init__(self) -> None:
        super().__init__(64)
        self.sent: list[dict[str, Any]] = []
        ASTRAY.append(self)

    def get_observation(self) -> dict[str, Any]:
        seen = super().get_observation()
        return seen | ({"pusher_x": self.place} if seen["step"] >= 5 else {})

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self.sent.append(super().send_action(action))
        return self.sent[-1]


ASTRAY: list[Astray] = []


def astray() -> Astray:
    return Astray()


@pytest.mark.parametrize("place", [float("inf"), float("-inf"), float("nan")])
def test_a_robot_at_an_unknown_place_is_brought_to_rest_and_the_reading_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: float
) -> None:
    monkeypatch.setattr(Astray, "place", place)
    result, store = driven(tmp_path, robot="test_run_parts:astray", live=True, pace="step")
    assert f"'pusher_x' is limited, but the robot reports it as {place}" in result.stopped
    assert len(ASTRAY[-1].sent) == 6
    assert ASTRAY[-1].sent[-1] == {"right": 0.0, "down": 0.0}
    assert store.lengths.tolist() == [5]


def test_two_drives_never_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "driven"
    with folder_lock(folder, "driving a robot"), pytest.raises(OSError, match=r"driven.*is driving a robot here"):
        driven(tmp_path, live=True, pace="step")
    driven(tmp_path, live=True, pace="step")
    driven(tmp_path, live=True, pace="step")
    assert len(EpisodeStore(folder)) == 2


# -- recordings ------------------------------------------------------------------------------------------------------------


def test_recordings_are_read_with_collections_of_the_same_world(tmp_path: Path) -> None:
    store = tmp_path / "collected"
    for _ in collect(CollectConfig(out=store, episodes=2, steps=10, workers=1)):
        pass
    _, mine = driven(tmp_path, live=True, pace="step", episodes=2)
    assert mine.info.spec == EpisodeStore(store).info.spec
    joined = JoinedStore([EpisodeStore(store), mine])
    clip = WindowSampler(joined, 8).sample(64, np.random.default_rng(0))
    assert clip.states is not None
    assert clip.actions.shape == (64, 7, 2)
    assert mine[0].provenance["policy"] == "drive:test_run_parts:Wander"
    assert cli.main(["data", str(mine.folder)]) == 0


def test_recordings_train_a_world(tmp_path: Path) -> None:
    from neuralsim.training.config import TrainConfig
    from neuralsim.training.trainer import Trainer

    driven(tmp_path, live=True, pace="step", episodes=20, steps=12, check=False)
    trainer = Trainer(TrainConfig(data=tmp_path / "driven", size="tiny", effort=0.01, threads=1, out=tmp_path / "run"))
    assert len(trainer.store) == 20
    assert len(trainer.store.split(held_out=True)) == 1


def test_a_disk_that_is_full_does_not_stop_the_drive_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(store: EpisodeStore, episodes: Sequence[Episode], shard: int | None = None) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(EpisodeStore, "add", full)
    words = f"drive {WORLD} --policy test_run_parts:Wander --pace step --live --episodes 2 --steps 6 --out mine"
    assert cli.main(words.split()) == cli.WRONG
    said = capsys.readouterr()
    assert "2 of 2 episodes could not be written" in said.err
    assert "steps of an episode" in said.out
    assert not list((tmp_path / "mine").glob("shard-*"))


# -- stopping --------------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import test_run
sys.modules["test_run_parts"] = test_run
from neuralsim import cli
sys.exit(cli.main({words!r}.split()))
"""


def test_ctrl_c_ends_in_rest_with_everything_kept(tmp_path: Path) -> None:
    words = f"drive {WORLD} --policy test_run_parts:Wander --robot test_run_parts:arm --live --hz 20 --steps 100000 --out mine"
    program = PROGRAM.format(tests=str(Path(__file__).parent), words=words)
    errors = tmp_path / "stderr"
    with errors.open("w") as file:
        process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, stderr=file)
        until = time.monotonic() + 120
        while "Hz" not in errors.read_text() and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    assert process.returncode == cli.INTERRUPTED
    assert "what was driven is kept" in errors.read_text()
    store = EpisodeStore(tmp_path / "mine")
    assert store.lengths.sum() >= 1


@pytest.mark.parametrize(("typed", "stops"), [(b" ", True), (b"\x1b", True), (b"x", False)])
def test_space_and_escape_are_the_emergency_stop(typed: bytes, stops: bool) -> None:
    ours, theirs = pty.openpty()
    pressed = threading.Event()
    try:
        with EmergencyStopKey(pressed.set, theirs) as key:
            assert key.listening
            os.write(ours, typed)
            assert pressed.wait(2 if stops else 0.3) == stops
    finally:
        os.close(ours)
        os.close(theirs)


def test_without_a_terminal_there_is_no_stop_key_and_no_error() -> None:
    read, write = os.pipe()
    with EmergencyStopKey(lambda: None, read) as key:
        assert not key.listening
    os.close(read)
    os.close(write)


# -- what cannot be --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"robot": "arm"}, "expected sim, ws://host:port, or module:function"),
        ({"robot": "test_run_parts:nobody"}, "has no function 'nobody'"),
        ({"robot": "nowhere_at_all:robot"}, "No module named"),
        ({"robot": "test_run_parts:Wander", "world": WORLD}, "missing 1 required positional argument"),
        ({"world": "tworoom-latent"}, "simulated robot for world 'pusht' alone"),
        ({"steps": 0}, "--steps: expected 1 or more"),
        ({"hz": 0.0}, "--hz: expected more than 0"),
        ({"n_action_steps": 9}, "--n-action-steps: expected 1 to 8"),
        ({"camera": "wrist", "pace": "step"}, "none called 'wrist'"),
    ],
)
def test_what_cannot_be_driven_is_told_before_anything_moves(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        driven(tmp_path, live=True, **given)


def test_no_robot_at_the_address_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"drive {WORLD} --policy test_run_parts:Wander --robot ws://127.0.0.1:9 --live --out mine"
    assert cli.main(words.split()) == cli.WRONG
    assert "robot-sim --port 5555" in " ".join(capsys.readouterr().err.split())
