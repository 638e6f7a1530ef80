"""ControlLoop: runs a policy on a robot at a fixed rate.

The robot never waits for the model, nothing unchecked is sent, and any failure ends in rest. One tick: observe, take the results of
the threads beside the loop, request a chunk, send the action that is due. Inference and comparison run in threads of their own.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuralsim.agents.heads.chunk_policy import ActionChunkPolicy, ObservationHistory
from neuralsim.agents.robot.action_queue import ActionChunk
from neuralsim.agents.robot.action_selector import ActionSelector, ControlLoopConfig, EpisodeState
from neuralsim.agents.robot.async_inference import AsyncInference
from neuralsim.agents.robot.background_worker import BackgroundWorker
from neuralsim.agents.robot.emergency_stop import SafeStop, StopButton
from neuralsim.agents.robot.episode_recorder import EpisodeRecorder
from neuralsim.agents.robot.interface import RobotInterface
from neuralsim.agents.robot.loop_statistics import LoopStatistics
from neuralsim.agents.robot.timing import FixedRateTimer, Tick
from neuralsim.agents.robot.trajectory import LONGEST, TimedObservation, TrajectoryBuffer
from neuralsim.agents.safety.monitor import SafetyMonitor, Verdict

SILENCE_SECONDS = 0.4
"""Time without an action after which robots drop those that wait; ours does after half a second."""


@dataclass(frozen=True)
class RobotEpisode:
    """Outcome of one episode on the robot."""

    number: int
    steps: int
    """Actions sent."""
    success: bool | None
    """None where the robot reports no ground truth; so are the next two."""
    coverage: float | None
    """Share of the goal that is covered at the end."""
    best: float | None
    """Largest such share."""
    stopped: str = ""
    """Reason of an early end; empty where the episode ran to its end."""


@dataclass(frozen=True)
class LoopHooks:
    """Functions that a control loop calls."""

    log: Callable[[str], None] = lambda text: None
    """Receives events in words."""
    on_tick: Callable[[LoopStatistics], None] = lambda statistics: None
    """Receives the statistics after each tick."""
    make_worker: Callable[[Callable[[Any], Any], str], BackgroundWorker[Any, Any]] | None = None
    """Makes the worker for a function and a name; a thread by default."""


@dataclass(frozen=True, eq=False)
class _Comparison:
    """A frame to compare with the imagined one: that after ``index`` actions of ``chunk``."""

    chunk: ActionChunk
    index: int
    history: ObservationHistory


class ControlLoop:
    """Closed loop of ``policy`` on ``robot``.

    Args:
        robot: robot in the terms of the policy's world.
        policy: predicts chunks of actions.
        monitor: limits each action, imagines each chunk, and compares frames with the imagined ones.
        timer: the rate.
        recorder: receives each episode.
        config: settings.
        stop: emergency stop.
        hooks: functions that are called on events.
    """

    def __init__(
        self,
        robot: RobotInterface,
        policy: ActionChunkPolicy,
        monitor: SafetyMonitor,
        timer: FixedRateTimer,
        recorder: EpisodeRecorder,
        config: ControlLoopConfig | None = None,
        stop: StopButton | None = None,
        hooks: LoopHooks | None = None,
    ) -> None:
        self.robot, self.policy, self.monitor, self.timer, self.recorder = robot, policy, monitor, timer, recorder
        self.config, self.stop = config or ControlLoopConfig(), stop or StopButton()
        hooks = hooks or LoopHooks()
        self.log, self.on_tick = hooks.log, hooks.on_tick
        self.statistics = LoopStatistics()
        self.spec, self.clock = robot.spec, timer.clock
        self.selector = ActionSelector(policy, self.config, timer, self.statistics, self.log)
        make = hooks.make_worker or (lambda work, name: BackgroundWorker(work, name, self.stop.wake))
        self._inference = make(AsyncInference(policy, monitor if self.config.check else None), "inference")
        self._comparison = make(self._compare, "monitor")
        self._seconds = 0.0
        self._state = self._new_state(0)

    # -- a run

    def run(self, episodes: int = 1, begin: Callable[[int], None] | None = None) -> list[RobotEpisode]:
        """Connect, run ``episodes``, disconnect; return the outcome of each.

        ``begin`` puts the robot where each episode starts. Errors while driving are not raised: the last episode gives the
        reason of its end. A second ctrl-C raises KeyboardInterrupt, after rest all the same.
        """
        outcomes: list[RobotEpisode] = []
        try:
            self.robot.connect()
            for number in range(episodes):
                outcomes.append(self._episode(number, begin))
                if outcomes[-1].stopped:
                    break
        finally:
            self._disconnect()
        return outcomes

    def close(self) -> None:
        """Wait shortly for the threads beside the loop; those that hang are left behind, and keep no program alive."""
        self._inference.close(0.5)
        self._comparison.close(0.5)

    def _episode(self, number: int, begin: Callable[[int], None] | None) -> RobotEpisode:
        stopped = ""
        state = self._state = self._new_state(number)
        try:
            if begin is not None:
                begin(number)
            self.robot.begin()
            self._observe()  # robots wait for their first frame
            self.timer.begin()
            state.started = self.clock.now()
            while self._tick():
                pass
        except (Exception, SystemExit) as error:
            stopped = _reason(error)
        except KeyboardInterrupt:
            self.stop.press("ctrl-C")
            stopped = "ctrl-C"
            raise
        finally:
            self._seconds += self.clock.now() - state.started
            self._rest()
            self._record(stopped)
            self.statistics.episodes += 1
        truth = state.observation.ground_truth if state.observation is not None else None
        return RobotEpisode(
            number,
            state.sent,
            None if truth is None else state.success,
            None if truth is None else float(truth["coverage"]),
            None if truth is None else state.best_coverage,
            stopped,
        )

    def _new_state(self, number: int) -> EpisodeState:
        now = self.clock.now()
        return EpisodeState(number, TrajectoryBuffer(self.spec), now, now, deque(maxlen=self.config.retreat))

    def _rest(self) -> None:
        """Bring the robot to rest if it can be reached at all."""
        if not self.config.real_actions:
            return
        try:
            self.robot.rest()
        except (Exception, SystemExit) as error:
            self.log(f"could not send rest: {_reason(error)}")

    def _disconnect(self) -> None:
        try:
            self.robot.robot.disconnect()
        except (Exception, SystemExit) as error:
            self.log(f"could not disconnect: {_reason(error)}")

    def _record(self, stopped: str = "") -> None:
        """Hand the trajectory to the recorder."""
        # From 1 on: numbers that 20 divides are held out, and the first episodes are wanted for training.
        seed = self.config.seed * 1_000_003 + 1 + self.recorder.first + self._state.number
        provenance = {**self.config.provenance, "start": self._state.number, "seed": seed, "stopped": stopped}
        trajectory = self._state.trajectory
        try:
            self.recorder.keep((trajectory.episodes if self.config.real_actions else trajectory.video)(provenance))
        except Exception as error:  # a trajectory that cannot be cut must not keep the robot from being disconnected
            self.log(f"could not record: {_reason(error)}")

    # -- a tick

    def _tick(self) -> bool:
        """Do one turn; False at the end of the episode."""
        state = self._state
        tick = self._wait()
        self.stop.check()
        self._observe()
        if state.success or state.sent >= self.config.steps:
            return False
        self._take_results()
        self._request(tick)
        self._send(tick)
        if self.recorder.full:
            raise SafeStop(f"the disk takes no recordings and memory for them is full: {self.recorder.trouble}")
        if len(state.trajectory) > LONGEST:
            self._record()
            state.trajectory = state.trajectory.continuation()
        self._count()
        self._observe_again(tick)
        return True

    def _wait(self) -> Tick:
        if self.config.pace == "real":
            return self.timer.wait(self.stop.pressed)
        now = self.clock.now()
        return Tick(self.statistics.ticks, now, now)

    def _observe_again(self, tick: Tick) -> None:
        """Observe between two ticks too: of two frames that arrive between two observations, the first would be lost."""
        if self.config.pace == "real":
            self.clock.wait(tick.deadline + self.timer.period / 2, self.stop.pressed)
            self.stop.check()
            self._observe()

    def _observe(self) -> None:
        """Add the newest observation to the trajectory."""
        state, observation = self._state, self.robot.observe()
        self._resume(observation)
        if state.step is None:
            state.step = observation.step
        if observation.step > state.step:
            raise SafeStop(
                f"the robot has carried out {observation.step - state.step} actions more than were sent: "
                "does another program drive it?"
            )
        last = state.observation
        if last is not None and observation.step < last.step and observation.timestamp > last.timestamp:
            raise SafeStop(
                f"the robot counts from 0 again (step {observation.step} after {last.step}): it was started again"
            )
        new = state.trajectory.add_observation(observation)
        state.observation = state.trajectory.newest
        self._report_readings(observation)
        if observation.ground_truth is not None:
            state.success |= bool(observation.ground_truth["success"])
            state.best_coverage = max(state.best_coverage, float(observation.ground_truth["coverage"]))
        if new:
            self._compare_with_imagined(observation)

    def _resume(self, observation: TimedObservation) -> None:
        """Adopt the robot's count after a pause of our own (this machine stood still), when robots drop actions not begun."""
        state, silence = self._state, max(SILENCE_SECONDS, 1.5 * self.timer.period)
        if self.config.pace != "real" or state.step is None or self.clock.now() - state.last_send < silence:
            return
        if observation.step < state.step:
            self.log(f"the loop stood still; the robot has forgotten {state.step - observation.step} actions")
            state.step = observation.step
            state.queue.drop()
            state.pending = None

    def _report_readings(self, observation: TimedObservation) -> None:
        """Log once each reading of the robot that is not finite."""
        for name, value in observation.readings.items():
            if not math.isfinite(value) and name not in self._state.odd_readings:
                self._state.odd_readings.add(name)
                self.log(f"the robot reports {name} as {value}")

    # -- the threads beside the loop

    def _compare_with_imagined(self, observation: TimedObservation) -> None:
        """Have a new frame compared with the imagined one."""
        state, chunk = self._state, self._state.queue.chunk
        if chunk is None or chunk.imagined is None or not self.config.real_actions:
            return
        index = state.queue.index_of_frame(observation.step)
        if index is None or (chunk.number, index) == state.compared:
            return
        comparison = _Comparison(chunk, index, state.trajectory.history(observation))
        if self.config.pace == "step":
            self._apply_verdict(*self._compare(comparison))
        elif self._comparison.idle:
            self._comparison.offer(comparison)
        else:
            return
        state.compared = (chunk.number, index)

    def _compare(self, comparison: _Comparison) -> tuple[_Comparison, Verdict]:
        imagined = comparison.chunk.imagined
        assert imagined is not None
        return comparison, self.monitor.compare(imagined, comparison.index, comparison.history)

    def _apply_verdict(self, comparison: _Comparison, verdict: Verdict) -> None:
        """Halt the current chunk where its frames differ from the imagined ones."""
        chunk = self._state.queue.chunk
        if verdict.allowed or chunk is None or chunk.number != comparison.chunk.number:
            return
        self.statistics.mismatches += 1
        self.selector.halt(self._state, "the world does not follow", verdict.reasons, retreat=False)

    def _take_results(self) -> None:
        """Apply what the threads have found."""
        while (compared := self._comparison.take()) is not None:
            self._apply_verdict(*compared)
        while (result := self._inference.take()) is not None:
            self.selector.accept(self._state, result)

    def _request(self, tick: Tick) -> None:
        """Request a new chunk when it is time to; in lock-step wait for it."""
        request = self.selector.request(self._state, tick) if self._inference.idle else None
        if request is None:
            return
        self._inference.offer(request)
        if self.config.pace == "step":
            while not self._inference.idle:
                self.stop.check()
                self.stop.wake.wait(1.0)
                self.stop.wake.clear()
            self.stop.check()
            self._take_results()

    # -- sending

    def _send(self, tick: Tick) -> None:
        """Send the action that is due, within the limits, and record the one really sent."""
        state = self._state
        kind, action = self.selector.due(state)
        assert state.step is not None
        readings = None if state.observation is None else state.observation.readings
        allowed = self.monitor.limit(action, state.previous, readings)
        limited = not np.array_equal(allowed, action)
        sent = self.robot.send(allowed)
        state.last_send = self.clock.now()
        if sent is None:
            self.selector.denied(state, kind, action)
            return
        chunk = state.queue.chunk if kind == "plan" else None
        metadata = {
            "deadline": round(tick.deadline, 6),
            "sent": round(self.clock.now(), 6),
            "kind": kind,
            "chunk": None if chunk is None else chunk.number,
            "frame_step": None if chunk is None else chunk.start,
            "inference_s": None if chunk is None else round(chunk.seconds, 6),
            "limited": limited,
        }
        state.trajectory.add_action(state.step, sent, metadata)
        self.statistics.limited += limited
        self.statistics.lateness.append(tick.late)
        self.selector.sent(state, kind, sent)

    def _count(self) -> None:
        s = self.statistics
        s.ticks += 1
        s.missed = self.timer.missed
        period = self.timer.period if self.config.pace == "real" else 0.0
        s.seconds = self._seconds + self.clock.now() - self._state.started + period  # a tick lasts until the next
        self.on_tick(s)


def _reason(error: BaseException) -> str:
    """Describe ``error`` in one line."""
    if isinstance(error, SafeStop):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
