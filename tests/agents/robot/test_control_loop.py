"""The control loop: deadlines are kept and counted, the robot never waits for the model, chunks follow each other without a
seam, nothing is sent that should not be, and whatever breaks ends in rest."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_clock import FakeClock
from line_robot import LineRobot
from work import count_calls

from neuralsim.agents.heads.chunk_policy import ObservationHistory
from neuralsim.agents.robot.action_selector import ControlLoopConfig
from neuralsim.agents.robot.background_worker import NICE, BackgroundWorker
from neuralsim.agents.robot.control_loop import ControlLoop, LoopHooks, RobotEpisode
from neuralsim.agents.robot.emergency_stop import StopButton
from neuralsim.agents.robot.episode_recorder import EpisodeRecorder
from neuralsim.agents.robot.interface import RobotInterface
from neuralsim.agents.robot.loop_statistics import LoopStatistics
from neuralsim.agents.robot.timing import FixedRateTimer, LatencyTracker
from neuralsim.agents.robot.trajectory import TimedObservation, TrajectoryBuffer
from neuralsim.agents.robot.wrappers import DryRunRobot, TimeoutRobot
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.pusht.env import PushTRealEnv, pusht_spec
from neuralsim.envs.pusht.robot import PushTRobot
from neuralsim.envs.robots.robot import RobotLost, StaleFrame
from neuralsim.spec import WorldSpec

SPEC = pusht_spec()
LINE = WorldSpec("line", 8, 8, ("x", "y"), ("mm", "mm"), (10.0, 10.0), 10.0, 3)
"""A world of 8 x 8 pixels whose camera shows how many actions were done."""


# -- parts -----------------------------------------------------------------------------------------------------------------


class Slowly(BackgroundWorker[Any, Any]):
    """A worker on a fake clock, each job taking ``seconds`` of it."""

    def __init__(self, work: Callable[[Any], Any], clock: FakeClock, seconds: Callable[[], float]) -> None:
        self.work, self.clock, self.seconds = work, clock, seconds
        self.found: list[tuple[float, Any]] = []

    @property
    def idle(self) -> bool:
        return not self.found

    def offer(self, job: Any) -> None:
        self.found.append((self.clock.now() + self.seconds(), self.work(job)))

    def take(self) -> Any:
        return self.found.pop(0)[1] if self.found and self.found[0][0] <= self.clock.now() + 1e-9 else None

    def close(self, seconds: float = 1.0) -> bool:
        return True


class Counting:
    """Proposes chunks whose action for step s is (s + 1) / 1000, so that what was done tells which action it was; y tells the chunk."""

    def __init__(self, spec: WorldSpec = LINE, chunk: int = 8) -> None:
        self.spec, self.chunk = spec, chunk
        self.asked: list[tuple[ObservationHistory, np.ndarray | None]] = []

    def predict_action_chunk(
        self, seen: ObservationHistory, seeds: Sequence[int], prefix: np.ndarray | None = None
    ) -> np.ndarray:
        self.asked.append((seen, prefix))
        first = int(seen.frames[0, -1, 0, 0, 0])
        actions = np.zeros((1, self.chunk, 2), np.float32)
        actions[0, :, 0] = (first + np.arange(self.chunk) + 1) / 1000
        actions[0, :, 1] = len(self.asked) / 1000
        if prefix is not None:
            actions[:, : prefix.shape[1]] = prefix
        return actions


@dataclass(frozen=True)
class Says:
    allowed: bool = True
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Future:
    verdict: Says


class Guarding:
    """A guard that limits actions to ``most``, refuses the chunks in ``refused`` and says that the world leaves those in ``left``."""

    def __init__(self, most: float = 1.0, refused: Sequence[int] = (), left: Sequence[int] = ()) -> None:
        self.most, self.refused, self.left = most, refused, left
        self.imagined: list[np.ndarray] = []
        self.compared: list[tuple[int, int]] = []

    def limit(self, action: np.ndarray, previous: np.ndarray | None, place: Mapping[str, float] | None) -> np.ndarray:
        return np.clip(action, -self.most, self.most)

    def imagine(self, seen: ObservationHistory, chunk: np.ndarray) -> Future:
        self.imagined.append(chunk)
        no = len(self.imagined) in self.refused
        return Future(Says(not no, ("it would hit the wall",) if no else ()))

    def compare(self, foresight: Any, step: int, seen: ObservationHistory) -> Says:
        self.compared.append((len(self.imagined), step))
        no = len(self.imagined) in self.left and step >= 2
        return Says(not no, ("the block is elsewhere",) if no else ())


class Rig:
    """A loop with all that belongs to it; ``run`` it, then look."""

    def __init__(self, tmp_path: Path, **given: Any) -> None:
        self.robot = given.pop("robot", None) or LineRobot()
        self.policy = given.pop("policy", None) or Counting()
        self.guard = given.pop("guard", None) or Guarding()
        self.clock = given.pop("clock", None)
        seconds = given.pop("seconds", None)
        hz = given.pop("hz", 10.0)
        bound = given.pop("bound", 1 << 30)
        spec = self.policy.spec
        self.timer = FixedRateTimer(hz, self.clock)
        self.recorder = EpisodeRecorder(tmp_path / "driven", spec, (), bound)
        self.button, self.logged = given.pop("button", None) or StopButton(), list[str]()
        make_worker = (
            None
            if seconds is None
            else lambda work, name: Slowly(work, self.clock, seconds if name == "inference" else lambda: 0)
        )
        on_tick = given.pop("on_tick", lambda statistics: None)
        robot = RobotInterface(self.robot, spec, self.timer.clock, stale=given.pop("stale", float("inf")))
        config = ControlLoopConfig(**{"steps": 40, **given})
        hooks = LoopHooks(self.logged.append, on_tick, make_worker)
        self.loop = ControlLoop(robot, self.policy, self.guard, self.timer, self.recorder, config, self.button, hooks)

    def run(self, episodes: int = 1, begin: Callable[[int], None] | None = None) -> RobotEpisode:
        try:
            return self.loop.run(episodes, begin)[-1]
        finally:
            self.loop.close()
            self.recorder.close(10)

    @property
    def statistics(self) -> LoopStatistics:
        return self.loop.statistics

    def store(self) -> EpisodeStore:
        return EpisodeStore(self.recorder.store.folder)


def in_real_time(tmp_path: Path, seconds: Callable[[], float], **given: Any) -> Rig:
    """A rig on a fake clock whose policy takes ``seconds()`` of it."""
    return Rig(tmp_path, clock=FakeClock(), seconds=seconds, **given)


# -- deadlines -------------------------------------------------------------------------------------------------------------


def test_deadlines_are_absolute_however_long_the_work_takes() -> None:
    clock, rng = FakeClock(), np.random.default_rng(0)
    pace, alarm = FixedRateTimer(10, clock), threading.Event()
    came = []
    for _ in range(50):
        came.append(pace.wait(alarm).time)
        clock.time += rng.uniform(0, 0.099)
    assert np.allclose(came, 100 + np.arange(50) / 10)
    assert pace.missed == 0


def test_a_late_tick_is_counted_and_the_next_one_is_on_time() -> None:
    clock, alarm = FakeClock(), threading.Event()
    pace = FixedRateTimer(10, clock)
    pace.wait(alarm)
    clock.time += 0.14  # 40 ms after the next deadline
    assert pace.wait(alarm).late == pytest.approx(0.04)
    assert pace.missed == 1
    assert pace.wait(alarm).time == pytest.approx(100.2)


def test_after_a_long_stall_ticks_do_not_bunch() -> None:
    clock, alarm = FakeClock(), threading.Event()
    pace = FixedRateTimer(10, clock)
    came = [pace.wait(alarm).time]
    clock.time += 0.87
    came += [pace.wait(alarm).time for _ in range(5)]
    assert np.diff(came).min() > 0.05
    assert pace.missed == 8  # 100.1 to 100.8
    assert np.allclose(np.array(came[1:]) * 10 % 1, 0, atol=1e-6) or np.allclose(
        np.round(np.array(came[1:]) * 10) / 10, came[1:]
    )


def test_waiting_ends_when_the_alarm_is_raised() -> None:
    pace, alarm = FixedRateTimer(0.001), threading.Event()
    pace.wait(alarm)
    threading.Timer(0.05, alarm.set).start()
    begin = time.monotonic()
    pace.wait(alarm)
    assert time.monotonic() - begin < 500  # the next tick is 1000 s away


# -- chunks ----------------------------------------------------------------------------------------------------------------


def test_the_prefix_follows_from_latency_and_from_how_old_the_frame_is(tmp_path: Path) -> None:
    """A decision takes 2.5 periods, the camera is 2 actions behind: 3 periods go by until the answer, and 2 were done unseen."""
    rig = in_real_time(tmp_path, lambda: 0.25, robot=LineRobot(behind=2), policy=Counting(chunk=16), steps=100)
    rig.run()
    prefixes = [0 if p is None else p.shape[1] for _, p in rig.policy.asked]
    assert set(prefixes[1:]) == {5}
    assert rig.statistics.late == 0


def test_no_action_is_done_twice_or_left_out_where_chunks_meet(tmp_path: Path) -> None:
    rig = in_real_time(tmp_path, lambda: 0.25, policy=Counting(chunk=12), steps=120, n_action_steps=6)
    rig.run()
    moves, chunks = (np.round(np.array(rig.robot.sent[:-1]) * 1000).astype(int)).T
    first, second = np.flatnonzero(chunks)[0], np.flatnonzero(chunks == 2)[0]
    assert rig.statistics.starved == first  # it rests until there is a first plan, and never again
    assert moves[first:second].tolist() == list(range(1, second - first + 1))  # which begins when it comes
    assert moves[second:].tolist() == list(range(second + 1, len(moves) + 1))  # each of the others at its own step
    assert len(set(chunks)) > 10


def test_what_was_settled_is_what_is_done(tmp_path: Path) -> None:
    """Every prefix that the policy was given equals, to the bit, what the robot was sent at those steps."""
    rig = in_real_time(tmp_path, lambda: 0.15, policy=Counting(chunk=12), robot=LineRobot(behind=1), steps=80)
    rig.run()
    sent = np.array(rig.robot.sent, np.float64)
    compared = 0
    for seen, prefix in rig.policy.asked[:-1]:
        start = int(seen.frames[0, -1, 0, 0, 0])
        if prefix is not None:
            asked = 10.0 * prefix[0].astype(np.float64) / 10
            assert np.array_equal(asked, sent[start : start + prefix.shape[1]])
            compared += 1
    assert compared > 5


def test_a_policy_that_changes_its_prefix_is_stopped(tmp_path: Path) -> None:
    class Forgetful(Counting):
        def predict_action_chunk(
            self, seen: ObservationHistory, seeds: Sequence[int], prefix: np.ndarray | None = None
        ) -> np.ndarray:
            return super().predict_action_chunk(seen, seeds, None)

    outcome = in_real_time(tmp_path, lambda: 0.15, policy=Forgetful(), robot=LineRobot(behind=1)).run()
    assert "does not begin with" in outcome.stopped


def test_a_model_too_slow_for_its_chunks_makes_the_robot_pause_between_them(tmp_path: Path) -> None:
    """30 periods a decision, 8 actions a chunk: parts of chunks in order with rests between, and nothing done on a false history."""
    rig = in_real_time(tmp_path, lambda: 3.0, steps=300)
    assert not rig.run().stopped
    moves = [round(x * 1000) for x, _ in rig.robot.sent if x]
    assert len(moves) > 20
    assert rig.statistics.late == 0
    assert rig.statistics.starved > 200
    chunks = [round(y * 1000) for x, y in rig.robot.sent if x]
    assert chunks == sorted(chunks)


def test_a_plan_from_too_old_a_frame_is_never_begun(tmp_path: Path) -> None:
    rig = in_real_time(tmp_path, lambda: 6.0, steps=150, oldest=5.0)
    rig.run()
    assert rig.robot.log.count("move") == 0
    assert rig.statistics.expired == 2
    assert any("too late" in line for line in rig.logged)


def test_the_first_latency_is_forgotten_for_it_warms_up() -> None:
    latency = LatencyTracker()
    latency.add(3.0)
    assert latency.periods(10) == 30
    latency.add(0.11)
    assert latency.periods(10) == 2


def test_lock_step_asks_at_every_chunks_end_and_sees_each_frame(tmp_path: Path) -> None:
    rig = Rig(tmp_path, pace="step", steps=24, n_action_steps=4)
    rig.run()
    assert [int(seen.frames[0, -1, 0, 0, 0]) for seen, _ in rig.policy.asked] == [0, 4, 8, 12, 16, 20]
    assert all(prefix is None for _, prefix in rig.policy.asked)
    assert [round(x * 1000) for x, _ in rig.robot.sent[:-1]] == list(range(1, 25))
    seen = rig.policy.asked[2][0]
    assert seen.frames[0, :, 0, 0, 0].tolist() == [6, 7, 8]
    assert np.allclose(seen.actions[0, :, 0] * 1000, [7, 8])


def test_lock_step_repeats_itself_to_the_bit(tmp_path: Path) -> None:
    class Chance(Counting):
        def predict_action_chunk(
            self, seen: ObservationHistory, seeds: Sequence[int], prefix: np.ndarray | None = None
        ) -> np.ndarray:
            return np.random.default_rng(seeds[0]).uniform(-1, 1, (1, 8, 2)).astype(np.float32)

    def episode(name: str, seed: int) -> Any:
        rig = Rig(
            tmp_path / name, robot=PushTRobot(64, truth=True), policy=Chance(SPEC), pace="step", steps=30, seed=seed
        )
        rig.run()
        return rig.store()[0]

    one, two, other = episode("a", 3), episode("b", 3), episode("c", 4)
    assert np.array_equal(one.frames, two.frames)
    assert np.array_equal(one.actions, two.actions)
    assert not np.array_equal(one.actions, other.actions)


# -- nothing waits, nothing hangs ------------------------------------------------------------------------------------------


class Asleep(Counting):
    """A model that takes 30 s, or until ``woken``."""

    def __init__(self) -> None:
        super().__init__()
        self.woken, self.thinking = threading.Event(), threading.Event()

    def predict_action_chunk(
        self, seen: ObservationHistory, seeds: Sequence[int], prefix: np.ndarray | None = None
    ) -> np.ndarray:
        self.thinking.set()
        self.woken.wait(300)
        return super().predict_action_chunk(seen, seeds, prefix)


@pytest.mark.parametrize("pace", ["real", "step"])
def test_a_model_that_takes_30_s_leaves_the_robot_at_rest_and_the_stop_at_once(tmp_path: Path, pace: str) -> None:
    policy = Asleep()
    rig = Rig(tmp_path, policy=policy, pace=pace, hz=50.0, steps=100_000)

    def stop() -> None:
        policy.thinking.wait(60)
        while pace == "real" and rig.statistics.starved < 5:
            time.sleep(0.01)
        rig.button.press("emergency stop")

    begin = time.monotonic()
    threading.Thread(target=stop, daemon=True).start()
    outcome = rig.run()
    took = time.monotonic() - begin
    policy.woken.set()
    assert outcome.stopped == "emergency stop"
    assert took < 250  # the policy thinks for 300
    assert set(rig.robot.log[:-1]) == {"rest"}
    assert rig.robot.log[-1] == "disconnect"
    if pace == "real":
        assert rig.statistics.starved >= 5


def test_a_stopped_loop_sends_rest_and_nothing_after_it(tmp_path: Path) -> None:
    rig = in_real_time(tmp_path, lambda: 0.1, steps=1000)
    rig.loop.on_tick = lambda statistics: rig.button.press("emergency stop") if statistics.ticks == 30 else None
    outcome = rig.run()
    assert outcome.stopped == "emergency stop"
    assert rig.robot.log[28] == "move"
    assert rig.robot.log[30:] == ["rest", "disconnect"]


def test_a_robot_that_hangs_is_given_up(tmp_path: Path) -> None:
    class Hanging(LineRobot):
        over = threading.Event()

        def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
            if len(self.sent) == 5:
                self.over.wait(300)
            return super().send_action(action)

    robot = Hanging()
    rig = Rig(tmp_path, robot=TimeoutRobot(robot, 0.2), pace="step")
    begin = time.monotonic()
    outcome = rig.run()
    assert "RobotLost" in outcome.stopped
    assert time.monotonic() - begin < 250  # it hangs for 300
    robot.over.set()
    assert rig.store().lengths.tolist() == [5]


CALLS_PER_TICK = 1000
"""Of the loop's own thread at most; it makes 260."""


def test_the_loops_own_work_takes_little_of_a_50_hz_period(tmp_path: Path) -> None:
    """A whole tick of the loop, everything but policy and robot included, counted in calls."""
    rig = Rig(tmp_path, pace="step", steps=100)
    assert count_calls(rig.run) / 100 < CALLS_PER_TICK


# -- faults ----------------------------------------------------------------------------------------------------------------


class Breaking(LineRobot):
    """Raises ``error`` at its 20th frame or its 20th action; told to rest after that, it obeys."""

    def __init__(self, verb: str, error: Exception) -> None:
        super().__init__()
        self.verb, self.error, self.calls = verb, error, 0

    def _count(self, verb: str) -> None:
        self.calls += verb == self.verb
        if verb == self.verb and self.calls == 20:
            raise self.error

    def get_observation(self) -> dict[str, Any]:
        self._count("get_observation")
        return super().get_observation()

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self._count("send_action")
        return super().send_action(action)


class Failing(Counting):
    def predict_action_chunk(
        self, seen: ObservationHistory, seeds: Sequence[int], prefix: np.ndarray | None = None
    ) -> np.ndarray:
        if len(self.asked) == 3:
            raise RuntimeError("out of memory")
        return super().predict_action_chunk(seen, seeds, prefix)


class NotANumber(Counting):
    def predict_action_chunk(
        self, seen: ObservationHistory, seeds: Sequence[int], prefix: np.ndarray | None = None
    ) -> np.ndarray:
        return super().predict_action_chunk(seen, seeds, prefix) * (np.nan if len(self.asked) == 3 else 1)


class Blind(Guarding):
    def __init__(self, verb: str) -> None:
        super().__init__()
        self.verb, self.calls = verb, 0

    def _count(self, verb: str) -> None:
        self.calls += verb == self.verb
        if verb == self.verb and self.calls == 3:
            raise RuntimeError(f"{verb} broke")

    def limit(self, action: np.ndarray, previous: np.ndarray | None, place: Mapping[str, float] | None) -> np.ndarray:
        self._count("limit")
        return super().limit(action, previous, place)

    def imagine(self, seen: ObservationHistory, chunk: np.ndarray) -> Future:
        self._count("imagine")
        return super().imagine(seen, chunk)

    def compare(self, foresight: Any, step: int, seen: ObservationHistory) -> Says:
        self._count("compare")
        return super().compare(foresight, step, seen)


@pytest.mark.parametrize("pace", ["real", "step"])
@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"robot": lambda: Breaking("get_observation", RobotLost("link lost"))}, "link lost"),
        ({"robot": lambda: Breaking("get_observation", StaleFrame("no new frame"))}, "no new frame"),
        ({"robot": lambda: Breaking("send_action", ValueError("what is that"))}, "what is that"),
        ({"policy": Failing}, "out of memory"),
        ({"policy": NotANumber}, "NaN"),
        ({"guard": lambda: Blind("limit")}, "limit broke"),
        ({"guard": lambda: Blind("imagine")}, "imagine broke"),
        ({"guard": lambda: Blind("compare")}, "compare broke"),
    ],
    ids=["link", "camera", "action", "policy", "nan", "limit", "imagine", "compare"],
)
def test_whatever_breaks_ends_in_rest_and_a_written_episode(
    tmp_path: Path, pace: str, parts: dict[str, Callable[[], Any]], why: str
) -> None:
    given = {name: make() for name, make in parts.items()}
    rig = Rig(tmp_path, pace=pace, hz=100.0, steps=400, **given)
    outcome = rig.run()
    assert why in outcome.stopped
    assert rig.robot.log[-2:] == ["rest", "disconnect"]
    assert not rig.robot.is_connected
    store = rig.store()
    assert len(store) == 1
    assert len(store[0]) >= 1
    assert store[0].provenance["stopped"] == outcome.stopped


def test_a_camera_that_stands_still_is_a_lost_camera(tmp_path: Path) -> None:
    class Frozen(LineRobot):
        def get_observation(self) -> dict[str, Any]:
            return super().get_observation() | {"timestamp": min(float(self.frames), 20.0)}

    rig = in_real_time(tmp_path, lambda: 0.0, robot=Frozen(), stale=0.5, steps=500)
    outcome = rig.run()
    assert "no new frame" in outcome.stopped
    assert outcome.steps < 20
    assert rig.robot.log[-2:] == ["rest", "disconnect"]


def test_a_robot_that_was_started_again_is_not_driven_on(tmp_path: Path) -> None:
    class Again(LineRobot):
        def get_observation(self) -> dict[str, Any]:
            told = super().get_observation()
            return told | {"step": told["step"] if len(self.sent) < 10 else 0}

    outcome = Rig(tmp_path, robot=Again(), pace="step").run()
    assert "started again" in outcome.stopped


def test_a_robot_that_somebody_else_drives_is_let_go(tmp_path: Path) -> None:
    class Shared(LineRobot):
        def get_observation(self) -> dict[str, Any]:
            told = super().get_observation()
            return told | {"step": told["step"] + 3 * (len(self.sent) > 10)}

    outcome = Rig(tmp_path, robot=Shared(), pace="step").run()
    assert "another program" in outcome.stopped


def test_a_robot_of_other_names_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    rig = Rig(tmp_path, policy=Counting(SPEC))
    with pytest.raises(ValueError, match=r"takes x, y.*acts by right, down"):
        rig.run()
    assert rig.robot.log == ["disconnect"]


def test_actions_that_the_robot_does_not_take_are_sent_again(tmp_path: Path) -> None:
    class Busy(LineRobot):
        calls = 0

        def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
            self.calls += 1
            return {} if self.calls % 3 == 0 else super().send_action(action)

    rig = Rig(tmp_path, robot=Busy(), pace="step", steps=24)
    rig.run()
    assert [round(x * 1000) for x, _ in rig.robot.sent[:24]] == list(range(1, 25))
    assert rig.statistics.denied >= 10


class Deaf(LineRobot):
    """Moves, and answers ``answer`` to every action."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def get_observation(self) -> dict[str, Any]:
        return {k: v for k, v in super().get_observation().items() if k != "step"}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        super().send_action(action)
        return self.answer


@pytest.mark.parametrize("pace", ["real", "step"])
def test_an_answer_that_is_no_action_stops_after_one_motion_and_is_named(tmp_path: Path, pace: str) -> None:
    rig = Rig(tmp_path, robot=Deaf(None), pace=pace, hz=100.0)
    assert "robot 'line': send_action returned None" in rig.run().stopped
    assert len(rig.robot.sent) == 2  # the motion and the rest after it
    assert rig.robot.log[-2:] == ["rest", "disconnect"]


@pytest.mark.parametrize("pace", ["real", "step"])
def test_a_robot_that_refuses_everything_is_given_up_and_reported(tmp_path: Path, pace: str) -> None:
    rig = Rig(tmp_path, robot=Deaf({}), pace=pace, hz=100.0, steps=500)
    outcome = rig.run()
    assert "refused 10 actions in a row" in outcome.stopped
    assert (outcome.steps, rig.statistics.denied) == (0, 10)
    assert len(rig.robot.sent) == 11
    assert sum("refused an action" in line for line in rig.logged) == 1


@pytest.mark.parametrize(
    ("reading", "why"),
    [
        ({"timestamp": float("nan")}, "timestamp: expected a finite number, got nan"),
        ({"timestamp": float("inf")}, "timestamp: expected a finite number, got inf"),
        ({"timestamp": "now"}, "timestamp: expected a number, got 'now'"),
        ({"step": float("nan")}, "step: expected a finite number, got nan"),
        ({"step": -3}, "step: expected a whole number"),
    ],
)
def test_a_time_or_count_that_is_no_number_stops_and_is_named(
    tmp_path: Path, reading: dict[str, Any], why: str
) -> None:
    class Odd(LineRobot):
        def get_observation(self) -> dict[str, Any]:
            return super().get_observation() | (reading if len(self.sent) >= 10 else {})

    rig = Rig(tmp_path, robot=Odd(), pace="step")
    outcome = rig.run()
    assert why in outcome.stopped
    assert outcome.steps == 10
    assert rig.robot.log[-2:] == ["rest", "disconnect"]


def test_a_camera_that_alternates_between_two_old_pictures_is_a_lost_camera(tmp_path: Path) -> None:
    class Alternating(LineRobot):
        def get_observation(self) -> dict[str, Any]:
            seen = super().get_observation()
            return seen | {"timestamp": min(self.frames, 20) - self.frames % 2 / 2}

    rig = in_real_time(tmp_path, lambda: 0.0, robot=Alternating(), stale=0.5, steps=500)
    assert "no new frame" in rig.run().stopped


def test_readings_that_are_not_finite_are_reported_once(tmp_path: Path) -> None:
    class Sensor(LineRobot):
        def get_observation(self) -> dict[str, Any]:
            return super().get_observation() | {"wrist": float("nan"), "elbow": 1.0, "note": "warm", "mode": None}

    rig = Rig(tmp_path, robot=Sensor(), pace="step", steps=12)
    assert not rig.run().stopped
    assert rig.logged == ["the robot reports wrist as nan"]


# -- drivers that hang or leave --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [SystemExit("driver gave up"), KeyboardInterrupt("driver")])
@pytest.mark.parametrize("verb", ["get_observation", "send_action"])
def test_an_exit_inside_a_driver_is_an_error_of_the_robot_and_it_is_let_go(
    tmp_path: Path, verb: str, error: BaseException
) -> None:
    robot = Breaking(verb, error)  # type: ignore[arg-type]
    rig = Rig(tmp_path, robot=TimeoutRobot(robot, 5.0), pace="step", steps=400)
    begin = time.monotonic()
    outcome = rig.run()
    assert f"{verb} raised {type(error).__name__}" in outcome.stopped
    assert time.monotonic() - begin < 4
    assert robot.log[-2:] == ["rest", "disconnect"]
    assert len(rig.store()) == 1


def test_an_exit_inside_a_driver_without_a_timeout_ends_in_rest_too(tmp_path: Path) -> None:
    rig = Rig(tmp_path, robot=Breaking("get_observation", SystemExit("gone")), pace="step")  # type: ignore[arg-type]
    assert "SystemExit: gone" in rig.run().stopped
    assert rig.robot.log[-2:] == ["rest", "disconnect"]


@pytest.mark.parametrize("pace", ["real", "step"])
def test_an_exit_inside_a_policy_stops_the_loop(tmp_path: Path, pace: str) -> None:
    class Leaving(Counting):
        def predict_action_chunk(
            self, seen: ObservationHistory, seeds: Sequence[int], prefix: np.ndarray | None = None
        ) -> np.ndarray:
            sys.exit("no licence")

    rig = Rig(tmp_path, policy=Leaving(), pace=pace, hz=100.0, steps=100_000)
    assert "SystemExit: no licence" in rig.run().stopped


class Hung(LineRobot):
    """Its call of ``verb`` number 20 returns only once it is ``over``."""

    def __init__(self, verb: str) -> None:
        super().__init__()
        self.verb, self.calls, self.over = verb, 0, threading.Event()

    def _wait(self, verb: str) -> None:
        self.calls += verb == self.verb
        if verb == self.verb and self.calls == 20:
            self.over.wait(30)

    def get_observation(self) -> dict[str, Any]:
        self._wait("get_observation")
        return super().get_observation()

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self._wait("send_action")
        return super().send_action(action)


@pytest.mark.parametrize("verb", ["get_observation", "send_action"])
def test_while_a_call_hangs_the_robot_is_brought_to_rest_and_let_go(tmp_path: Path, verb: str) -> None:
    robot = Hung(verb)
    rig = Rig(tmp_path, robot=TimeoutRobot(robot, 0.3), pace="step", steps=400)
    outcome = rig.run()
    assert f"RobotLost: robot 'line': {verb} has not returned for 0.3 s" in outcome.stopped
    assert not robot.over.is_set()  # the call still hangs
    assert robot.log[-2:] == ["rest", "disconnect"]
    robot.over.set()


@pytest.mark.parametrize("verb", ["get_observation", "send_action"])
def test_the_emergency_stop_does_not_wait_for_a_call_that_hangs(tmp_path: Path, verb: str) -> None:
    robot, stop = Hung(verb), StopButton()
    rig = Rig(tmp_path, robot=TimeoutRobot(robot, 60.0, stop), pace="step", steps=400, button=stop)

    def press() -> None:
        while robot.calls < 20:
            time.sleep(0.01)
        time.sleep(0.2)
        stop.press("emergency stop")

    threading.Thread(target=press, daemon=True).start()
    begin = time.monotonic()
    outcome = rig.run()
    assert outcome.stopped == "emergency stop"
    assert time.monotonic() - begin < 20  # not 60
    assert robot.log[-2:] == ["rest", "disconnect"]
    robot.over.set()


def test_a_robot_that_was_let_go_can_be_connected_again() -> None:
    robot = TimeoutRobot(LineRobot(), 5.0)
    for _ in range(2):
        robot.connect()
        assert robot.is_connected
        assert robot.get_observation()["step"] == 0
        robot.disconnect()
        assert not robot.is_connected


# -- what is sent ----------------------------------------------------------------------------------------------------------


def test_a_dry_run_never_sends_and_tells_what_it_would(tmp_path: Path) -> None:
    robot, told = LineRobot(), list[dict[str, Any]]()
    dry = DryRunRobot(robot, LINE, told.append)
    rig = in_real_time(tmp_path, lambda: 0.1, robot=dry, real_actions=False, steps=50)
    outcome = rig.run()
    assert robot.sent == []
    assert robot.log == ["disconnect"]
    assert outcome.steps == 50
    assert len(told) == 50
    assert any(t["x"] for t in told)
    store = rig.store()
    assert not store[0].has_actions
    assert len(store[0].frames) == 51


def test_every_action_goes_through_the_limits_and_what_was_really_sent_is_recorded(tmp_path: Path) -> None:
    rig = Rig(tmp_path, guard=Guarding(most=0.01), pace="step", steps=30)
    rig.run()
    assert max(x for x, _ in rig.robot.sent) == pytest.approx(0.01)
    episode = rig.store()[0]
    assert episode.actions[:, 0].max() == np.float32(0.01)
    limited = episode.provenance["ticks"]["limited"]
    assert limited == (np.arange(1, 31) > 10).tolist()
    assert rig.statistics.limited == sum(limited)


def test_every_chunk_is_imagined_before_it_is_done_unless_that_is_switched_off(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "a", pace="step", steps=24)
    rig.run()
    assert len(rig.guard.imagined) == len(rig.policy.asked) == 3
    assert {step for _, step in rig.guard.compared} == set(range(1, 9))
    free = Rig(tmp_path / "b", pace="step", steps=24, check=False, guard=Guarding(most=0.01))
    free.run()
    assert free.guard.imagined == free.guard.compared == []
    assert max(x for x, _ in free.robot.sent) == pytest.approx(0.01)  # hard limits stay


def test_refused_hold_rests_and_asks_anew(tmp_path: Path) -> None:
    rig = in_real_time(tmp_path, lambda: 0.1, guard=Guarding(refused=[3]), steps=60, on_refusal="hold")
    assert not rig.run().stopped
    assert rig.statistics.refusals == 1
    assert rig.statistics.held >= 1
    assert rig.robot.log[55] == "move"
    assert any("it would hit the wall" in line for line in rig.logged)
    refused = rig.guard.imagined[2]
    prefix = rig.policy.asked[2][1]
    new = refused[0 if prefix is None else prefix.shape[1] :]
    assert not {tuple(a) for a in new.tolist()} & {tuple(np.float32(s).tolist()) for s in rig.robot.sent}


def test_refused_stop_stops(tmp_path: Path) -> None:
    rig = Rig(tmp_path, guard=Guarding(refused=[2]), pace="step", on_refusal="stop")
    outcome = rig.run()
    assert "hit the wall" in outcome.stopped
    assert rig.robot.log[-2:] == ["rest", "disconnect"]
    assert outcome.steps == 8


def test_refused_retreat_undoes_what_was_done_last_first(tmp_path: Path) -> None:
    rig = Rig(tmp_path, guard=Guarding(refused=[2]), pace="step", steps=30, on_refusal="retreat", retreat=5)
    rig.run()
    moves = [round(x * 1000) for x, _ in rig.robot.sent[:15]]
    assert moves[:8] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert moves[8:13] == [-8, -7, -6, -5, -4]
    assert rig.statistics.retreats == 5
    assert moves[13] == 14  # then it goes on, from what it sees


def test_too_many_refusals_in_a_row_stop(tmp_path: Path) -> None:
    rig = Rig(tmp_path, guard=Guarding(refused=range(3, 100)), pace="step", refusals=4)
    outcome = rig.run()
    assert "4 chunks in a row" in outcome.stopped
    assert rig.statistics.refusals == 4


def test_a_world_that_does_not_follow_ends_the_chunk(tmp_path: Path) -> None:
    rig = Rig(tmp_path, guard=Guarding(left=[2]), pace="step", steps=32)
    assert not rig.run().stopped
    assert rig.statistics.mismatches == 1
    starts = [int(seen.frames[0, -1, 0, 0, 0]) for seen, _ in rig.policy.asked]
    assert starts == [0, 8, 10, 18, 26]  # the second chunk ended after two actions


def test_a_world_that_never_follows_stops(tmp_path: Path) -> None:
    rig = Rig(tmp_path, guard=Guarding(left=range(100)), pace="step", steps=100, refusals=3)
    assert "the block is elsewhere" in rig.run().stopped
    assert rig.statistics.mismatches == 3


# -- recordings ------------------------------------------------------------------------------------------------------------


def test_recorded_actions_played_again_give_the_recorded_frames(tmp_path: Path) -> None:
    class Wild(Counting):
        def predict_action_chunk(
            self, seen: ObservationHistory, seeds: Sequence[int], prefix: np.ndarray | None = None
        ) -> np.ndarray:
            actions = np.random.default_rng(seeds[0]).uniform(-1, 1, (1, 8, 2)).astype(np.float32)
            if prefix is not None:
                actions[:, : prefix.shape[1]] = prefix
            return actions

    robot = PushTRobot(64, truth=True)
    rig = Rig(tmp_path, robot=robot, policy=Wild(SPEC), hz=100.0, steps=25)
    rig.run(2, begin=lambda number: robot.reset(seed=number))
    store, env = rig.store(), PushTRealEnv()
    assert len(store) == 2
    for episode in store:
        env.reset(options={"state": episode.states[0].astype(np.float64)})
        assert np.abs(env.render().astype(int) - episode.frames[0]).max() <= 1
        for action, frame, coverage in zip(episode.actions, episode.frames[1:], episode.rewards, strict=True):
            shown, reward, *_ = env.step(action)
            assert np.abs(shown.astype(int) - frame).max() <= 1
            assert reward == pytest.approx(coverage, abs=1e-5)
        ticks = episode.provenance["ticks"]
        assert all(len(column) == len(episode) for column in ticks.values())
        assert {"deadline", "sent", "kind", "chunk", "inference_s", "limited"} <= set(ticks)
        assert len(episode.provenance["frame_times"]) == len(episode) + 1


def test_where_a_frame_was_lost_the_next_episode_begins() -> None:
    buffer = TrajectoryBuffer(LINE)
    for step in (0, 1, 2, 5, 6, 8):
        buffer.add_observation(TimedObservation(step, np.full((8, 8, 3), step, np.uint8), float(step), 0.0))
    for step in range(9):
        buffer.add_action(step, np.full(2, step / 10, np.float32), {"n": step})
    episodes = buffer.episodes({"seed": 1})
    assert [e.frames[:, 0, 0, 0].tolist() for e in episodes] == [[0, 1, 2], [5, 6]]
    assert [np.round(e.actions[:, 0] * 10).tolist() for e in episodes] == [[0, 1], [5]]
    assert [e.provenance["ticks"]["n"] for e in episodes] == [[0, 1], [5]]


def test_frames_that_come_late_or_twice_shift_nothing() -> None:
    buffer = TrajectoryBuffer(LINE)
    for step, taken in ((0, 0.0), (2, 2.0), (1, 1.0), (2, 2.0), (1, 0.5), (3, 3.0)):
        buffer.add_observation(
            TimedObservation(step, np.full((8, 8, 3), 10 * step + int(taken == 0.5), np.uint8), taken, 0.0)
        )
    for step in range(3):
        buffer.add_action(step, np.full(2, step / 10, np.float32), {})
    assert buffer.newest is not None
    assert buffer.newest.step == 3
    (episode,) = buffer.episodes({"seed": 1})
    assert episode.frames[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
    assert buffer.history(buffer.newest).frames[0, :, 0, 0, 0].tolist() == [10, 20, 30]


def test_long_runs_reach_the_disk_in_parts_that_do_not_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuralsim.agents.robot import control_loop

    monkeypatch.setattr(control_loop, "LONGEST", 20)
    rig = Rig(tmp_path, pace="step", steps=100)
    rig.run()
    store = rig.store()
    assert store.lengths.sum() == 100
    actions = np.concatenate([e.actions[:, 0] for e in sorted(store, key=lambda e: e.provenance["first_step"])])
    assert np.round(actions * 1000).astype(int).tolist() == list(range(1, 101))
    assert len({e.provenance["seed"] for e in store}) == 1  # so that all parts are held out or none


# -- beside the loop -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux alone")
def test_background_work_stands_back_for_the_loop() -> None:
    own, bell = os.getpriority(os.PRIO_PROCESS, 0), threading.Event()
    work: BackgroundWorker[None, int] = BackgroundWorker(lambda _: os.getpriority(os.PRIO_PROCESS, 0), "test", bell)
    work.offer(None)
    assert bell.wait(5)
    assert work.take() == min(19, own + NICE)
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
    assert work.close()


def test_background_work_never_makes_the_asker_wait_and_its_errors_arrive() -> None:
    bell, go = threading.Event(), threading.Event()

    def halve(n: int) -> float:
        go.wait(60)
        return 1 / n

    work: BackgroundWorker[int, float] = BackgroundWorker(halve, "test", bell)
    work.offer(2)
    assert work.take() is None
    assert not work.idle
    go.set()  # only now may the work be done
    assert bell.wait(60)
    assert work.take() == 0.5
    work.offer(0)
    while not work.idle:
        time.sleep(0.005)
    with pytest.raises(ZeroDivisionError):
        work.take()
    assert work.close()
