"""ControlLoop: closes a policy on a robot at a fixed rate. The robot never waits for the model, nothing unchecked is sent, and whatever
goes wrong ends in rest.

One tick: look, hear what was thought, ask for more, send what is due. Thinking and comparing are done by threads of their own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from neuralsim.agents.heads.chunk_policy import ActionChunkPolicy, ObservationHistory
from neuralsim.agents.robot.action_queue import ActionChunk, ActionQueue
from neuralsim.agents.robot.async_inference import (
    AsyncInference,
    Guard,
    InferenceRequest,
    InferenceResult,
    MonitorVerdict,
)
from neuralsim.agents.robot.background_worker import BackgroundWorker
from neuralsim.agents.robot.episode_recorder import EpisodeRecorder
from neuralsim.agents.robot.interface import RobotInterface
from neuralsim.agents.robot.latency import LatencyTracker
from neuralsim.agents.robot.loop_statistics import LoopStatistics
from neuralsim.agents.robot.timing import FixedRateTimer, Tick
from neuralsim.agents.robot.trajectory import LONGEST, TimedObservation, TrajectoryBuffer

SILENCE = 0.4
"""Seconds without an action after which robots forget those that wait; ours does after half a second."""

OnRefusal = Literal["hold", "retreat", "stop"]


class SafeStop(Exception):
    """The robot is to rest and be let go; the text says why."""


class StopButton:
    """Anything may press it, from any thread; the loop ends at once. The first reason counts."""

    def __init__(self) -> None:
        self.reason = ""
        self.pressed = threading.Event()
        self.bell = threading.Event()
        """Also rung when something was thought, for whoever waits for that."""

    def press(self, reason: str) -> None:
        """Stop, and say why."""
        self.reason = self.reason or reason
        self.pressed.set()
        self.bell.set()

    def check(self) -> None:
        """Raises SafeStop once it was pressed."""
        if self.pressed.is_set():
            raise SafeStop(self.reason)


@dataclass(frozen=True)
class ControlLoopConfig:
    """How a loop drives. steps: actions in an episode. n_action_steps: how many of a chunk are done before the next takes over (None: what
    the policy says, else all). pace: ``real`` keeps ``hz`` and thinks meanwhile; ``step`` lets the robot wait for each decision, as
    only simulated ones may. check: whether chunks are imagined before they are done. on_refusal: what to do about a chunk whose
    future is not allowed: rest, undo what was done last (of actions that are displacements), or stop. refusals: so many in a row
    stop in any case. oldest: seconds after which a plan is too old to begin. retreat: how many actions are undone at most.
    real_actions: whether actions really reach the robot; of a dry run video is kept, and nothing is held against what was imagined.
    """

    steps: int = 300
    n_action_steps: int | None = None
    pace: Literal["real", "step"] = "real"
    check: bool = True
    on_refusal: OnRefusal = "hold"
    refusals: int = 5
    oldest: float = 5.0
    retreat: int = 8
    real_actions: bool = True
    seed: int = 0


@dataclass(frozen=True)
class RobotEpisode:
    """One episode on the robot: actions sent, whether it came to what is wished for (None: nobody knows), the share of it at the end
    and at best where that is known, and why it was stopped ("" where it ran to its end)."""

    number: int
    steps: int
    success: bool | None
    coverage: float | None
    best: float | None
    stopped: str = ""


class Aside(Protocol):
    """See Background, which is one."""

    @property
    def idle(self) -> bool: ...

    def offer(self, job: Any) -> None: ...

    def take(self) -> Any: ...

    def close(self, seconds: float = 1.0) -> bool: ...


@dataclass(frozen=True, eq=False)
class _Comparison:
    round: int
    plan: ActionChunk
    step: int
    seen: ObservationHistory


class ControlLoop:
    """``policy`` on ``body``, under ``guard``, at the pace of ``pacemaker``; what was driven goes to ``box``.

    ``tell`` is told of events in words, ``watch`` of the gauges after every tick. ``aside`` makes what thinks beside the loop.
    """

    def __init__(
        self,
        body: RobotInterface,
        policy: ActionChunkPolicy,
        guard: Guard,
        pacemaker: FixedRateTimer,
        box: EpisodeRecorder,
        rules: ControlLoopConfig | None = None,
        button: StopButton | None = None,
        tell: Callable[[str], None] = lambda text: None,
        watch: Callable[[LoopStatistics], None] = lambda gauges: None,
        aside: Callable[[Callable[[Any], Any], str], Aside] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.body, self.policy, self.guard, self.pacemaker, self.box = body, policy, guard, pacemaker, box
        self.rules, self.button = rules or ControlLoopConfig(), button or StopButton()
        self.tell, self.watch, self.about = tell, watch, dict(about or {})
        self.gauges = LoopStatistics()
        self.spec, self.clock = body.spec, pacemaker.clock
        if self.rules.on_refusal == "retreat" and self.spec.discrete:
            raise ValueError("--on-refusal retreat: choices cannot be undone; hold or stop")
        own: int = getattr(policy, "n_action_steps", policy.chunk)
        self.n_action_steps = own if self.rules.n_action_steps is None else self.rules.n_action_steps
        if not 1 <= self.n_action_steps <= policy.chunk:
            raise ValueError(
                f"--n-action-steps: expected 1 to {policy.chunk} (the policy's chunk), got {self.n_action_steps}"
            )
        self.latency = LatencyTracker()
        make = aside or (lambda work, name: BackgroundWorker(work, name, self.button.bell))
        self._thinker = make(AsyncInference(policy, guard if self.rules.check else None), "thinker")
        self._sentry = make(self._compare, "sentry")
        self._round = self._number = 0
        self._driven = 0.0
        self._begin_episode(0)

    # -- a run

    def run(self, episodes: int = 1, begin: Callable[[int], None] | None = None) -> list[RobotEpisode]:
        """Connect, drive ``episodes`` (``begin`` puts the robot where each starts), let go. Never raises for what goes wrong while
        driving: the last Outing says why it stopped. A second ctrl-C is a KeyboardInterrupt, after rest all the same."""
        outings: list[RobotEpisode] = []
        try:
            self.body.connect()
            for number in range(episodes):
                outings.append(self._episode(number, begin))
                if outings[-1].stopped:
                    break
        finally:
            self._let_go()
        return outings

    def close(self) -> None:
        """Wait a little for the threads beside the loop; those that hang are left behind, and keep no program alive."""
        self._thinker.close(0.5)
        self._sentry.close(0.5)

    def _episode(self, number: int, begin: Callable[[int], None] | None) -> RobotEpisode:
        stopped = ""
        try:
            self._begin_episode(number)
            if begin is not None:
                begin(number)
            self.body.begin()
            self._look()  # robots wait for their first frame
            self.pacemaker.begin()
            self._started = self.clock.now()
            while self._tick():
                pass
        except Exception as error:
            stopped = _why(error)
        except KeyboardInterrupt:
            self.button.press("ctrl-C")
            stopped = "ctrl-C"
            raise
        finally:
            self._driven += self.clock.now() - self._started
            self._rest()
            self._keep(stopped)
            self.gauges.episodes += 1
        truth = self._last.truth if self._last is not None else None
        return RobotEpisode(
            number,
            self._sent,
            None if truth is None else self._solved,
            None if truth is None else float(truth["coverage"]),
            None if truth is None else self._best,
            stopped,
        )

    def _begin_episode(self, number: int) -> None:
        self._round += 1  # what is still being thought for the last one counts no more
        self._tape, self._queue = TrajectoryBuffer(self.spec), ActionQueue()
        self._step: int | None = None  # the step that the next action carries on from
        self._last: TimedObservation | None = None
        self._sent = 0
        self._episode_number, self._started = number, self.clock.now()
        self._asking: int | None = None
        self._in_a_row, self._holding = 0, False
        self._undo: deque[np.ndarray] = deque(maxlen=self.rules.retreat)
        self._retreat: deque[np.ndarray] = deque()
        self._previous: np.ndarray | None = None
        self._solved, self._best = False, 0.0
        self._compared: tuple[int, int] = (-1, -1)
        self._asked_robot = self.clock.now()

    def _rest(self) -> None:
        """Whatever happened, the robot is told to rest, if it can be told anything."""
        if not self.rules.real_actions:
            return
        try:
            self.body.rest()
        except Exception as error:
            self.tell(f"could not send rest: {_why(error)}")

    def _let_go(self) -> None:
        try:
            self.body.robot.disconnect()
        except Exception as error:
            self.tell(f"could not disconnect: {_why(error)}")

    def _keep(self, stopped: str = "") -> None:
        """Hand what was driven to the black box."""
        # From 1 on: numbers that 20 divides are held out, and the first episodes are wanted for training.
        seed = self.rules.seed * 1_000_003 + 1 + self.box.first + self._episode_number
        told = {**self.about, "start": self._episode_number, "seed": seed, "stopped": stopped}
        make = self._tape.episodes if self.rules.real_actions else self._tape.video
        try:
            self.box.keep(make(told))
        except Exception as error:  # a tape that cannot be cut must not keep the robot from being let go
            self.tell(f"could not record: {_why(error)}")

    # -- a tick

    def _tick(self) -> bool:
        """One turn; False at the end of the episode."""
        tick = self._wait()
        self.button.check()
        self._look()
        if self._solved or self._sent >= self.rules.steps:
            return False
        self._hear()
        self._ask(tick)
        kind, action = self._due()
        self._send(tick, kind, action)
        if self.box.full:
            raise SafeStop(f"the disk takes no recordings and memory for them is full: {self.box.trouble}")
        if len(self._tape) > LONGEST:
            self._keep()
            self._tape = self._tape.rest()
        self._count()
        self._look_again(tick)
        return True

    def _wait(self) -> Tick:
        if self.rules.pace == "real":
            return self.pacemaker.wait(self.button.pressed)
        now = self.clock.now()
        return Tick(self.gauges.ticks, now, now)

    def _look_again(self, tick: Tick) -> None:
        """Look between two ticks too: of two frames that come between two looks, the first would be lost."""
        if self.rules.pace == "real":
            self.clock.wait(tick.deadline + self.pacemaker.period / 2, self.button.pressed)
            self.button.check()
            self._look()

    def _resume(self, sight: TimedObservation) -> None:
        """After a pause of our own (this machine stood still) robots have forgotten what they had not begun: what they count is true."""
        silence = max(SILENCE, 1.5 * self.pacemaker.period)
        if self.rules.pace != "real" or self._step is None or self.clock.now() - self._asked_robot < silence:
            return
        if sight.step < self._step:
            self.tell(f"the loop stood still; the robot has forgotten {self._step - sight.step} actions")
            self._step = sight.step
            self._queue.drop()
            self._asking = None

    def _look(self) -> None:
        """The newest frame, onto the tape."""
        sight = self.body.look()
        self._resume(sight)
        if self._step is None:
            self._step = sight.step
        if sight.step > self._step:
            raise SafeStop(
                f"the robot has carried out {sight.step - self._step} actions more than were sent: does somebody else drive it?"
            )
        if self._last is not None and sight.step < self._last.step and sight.taken > self._last.taken:
            raise SafeStop(f"the robot counts anew (step {sight.step} after {self._last.step}): it was started again")
        new = self._tape.see(sight)
        self._last = self._tape.newest
        if sight.truth is not None:
            self._solved |= bool(sight.truth["success"])
            self._best = max(self._best, float(sight.truth["coverage"]))
        if new:
            self._watch_over(sight)

    def _watch_over(self, sight: TimedObservation) -> None:
        """Have a newly seen frame held against what was imagined of it."""
        plan = self._queue.plan
        if plan is None or plan.foresight is None or not self.rules.real_actions:
            return
        index = self._queue.index_of_frame(sight.step)
        if index is None or (plan.number, index) == self._compared:
            return
        comparison = _Comparison(self._round, plan, index, self._tape.seen(sight))
        if self.rules.pace == "step":
            self._judge(comparison, self._compare(comparison)[1])
        elif self._sentry.idle:
            self._sentry.offer(comparison)
        else:
            return
        self._compared = (plan.number, index)

    def _compare(self, comparison: _Comparison) -> tuple[_Comparison, MonitorVerdict]:
        return comparison, self.guard.compare(comparison.plan.foresight, comparison.step, comparison.seen)

    def _judge(self, comparison: _Comparison, verdict: MonitorVerdict) -> None:
        plan = self._queue.plan
        if verdict.allowed or comparison.round != self._round or plan is None or plan.number != comparison.plan.number:
            return
        self.gauges.mismatches += 1
        self._halted("the world does not follow", verdict.reasons, retreat=False)

    def _hear(self) -> None:
        """What the threads have found."""
        while (found := self._sentry.take()) is not None:
            self._judge(*found)
        while (thought := self._thinker.take()) is not None:
            self._consider(thought)

    def _consider(self, thought: InferenceResult) -> None:
        """A plan came."""
        self.latency.add(self.clock.now() - thought.request.asked if self.rules.pace == "real" else 0.0)
        self.gauges.decisions.append(thought.seconds)
        self.gauges.imagined.append(thought.imagined)
        if (thought.request.round, thought.request.number) != (self._round, self._asking):
            return
        self._asking = None
        plan, step, before = thought.plan, self._step, (self._queue.plan is not None, self._queue.late)
        assert step is not None
        if thought.refused:
            self.gauges.refusals += 1
            self._halted(f"chunk {plan.number} refused", thought.refused, retreat=True)
            return
        age = self.clock.now() - plan.asked
        if (self.rules.pace == "real" and age > self.rules.oldest) or not self._queue.swap(plan, step):
            self.gauges.expired += 1
            self.tell(f"chunk {plan.number} came {age:.1f} s after its frame, too late to begin")
            return
        followed, late = before
        self.gauges.late += self._queue.late - late
        self._in_a_row = 0 if followed else self._in_a_row  # one that is allowed proves nothing before it has been done
        self._holding = False

    def _halted(self, what: str, reasons: tuple[str, ...], retreat: bool) -> None:
        """Nothing more of the plan is done; then what ``on_refusal`` says."""
        self._queue.drop()
        self._asking = None
        self._holding = True
        self._in_a_row += 1
        told = f"{what}: {'; '.join(reasons)}"
        self.tell(told)
        if self.rules.on_refusal == "stop":
            raise SafeStop(told)
        if self._in_a_row >= self.rules.refusals:
            raise SafeStop(f"{self._in_a_row} chunks in a row were not allowed; the last: {told}")
        if retreat and self.rules.on_refusal == "retreat":
            twice_rest = 2 * self.spec.rest_action()
            self._retreat = deque(np.clip(twice_rest - a, -1, 1).astype(np.float32) for a in reversed(self._undo))
            self._undo.clear()

    # -- asking

    def _ask(self, tick: Tick) -> None:
        """Ask for a new chunk when it is time to; in lock-step wait for it."""
        if self._asking is not None or self._retreat or not self._thinker.idle or not self._time_to_ask():
            return
        step, sight = self._step, self._last
        assert step is not None
        assert sight is not None
        if step - sight.step >= self.policy.chunk:
            return  # a chunk from so old a frame would be over before it began
        until = step if self._queue.action(step) is None else self._handover(sight.step, step)
        prefix = self._queue.settled(sight.step, step, until, self._tape)
        self._number += 1
        self._asking = self._number
        seed = self.rules.seed + 1_000_003 * self._number + self._episode_number
        request = InferenceRequest(
            self._round, self._number, self._tape.seen(sight), sight.step, prefix, seed, tick.came, sight.came
        )
        self.gauges.prefixes.append(len(prefix))
        self._thinker.offer(request)
        if self.rules.pace == "step":
            while not self._thinker.idle:
                self.button.check()
                self.button.bell.wait(1.0)
                self.button.bell.clear()
            self.button.check()
            self._hear()

    def _time_to_ask(self) -> bool:
        """Whether a chunk asked for now would be in force just when the one at work has been done as far as it is to be."""
        end = self._queue.end
        if end is None or self._step is None:
            return True
        return self._step >= min(self._queue.force + self.n_action_steps, end) - self._lead()

    def _lead(self) -> int:
        """Control periods between asking and the first action that can be new."""
        return max(1, self.latency.periods(self.pacemaker.hz)) if self.rules.pace == "real" else 0

    def _handover(self, first: int, step: int) -> int:
        """The step at which a chunk that is asked for now, at ``step``, from the frame of step ``first``, takes over. Where thinking
        takes so long that chunks cannot follow each other without a gap, the robot is to pause there."""
        lead, chunk = self._lead(), self.policy.chunk
        until = step + lead
        if until - first + lead > chunk:
            until = min(until, max(step, first + chunk // 2))
            self._queue.stop_at(until)
        return until

    # -- sending

    def _due(self) -> tuple[str, np.ndarray]:
        """What to send now, and what kind of thing that is."""
        assert self._step is not None
        if self._retreat:
            return "retreat", self._retreat.popleft()
        action = self._queue.action(self._step)
        if action is not None:
            return "plan", action
        return ("held" if self._holding else "starved"), self.spec.rest_action()

    def _send(self, tick: Tick, kind: str, action: np.ndarray) -> None:
        assert self._step is not None
        place = None if self._last is None else self._last.place
        allowed = self.guard.limit(action, self._previous, place)
        limited = not np.array_equal(allowed, action)
        sent = self.body.send(allowed)
        self._asked_robot = self.clock.now()
        if sent is None:
            self.gauges.denied += 1
            if kind == "retreat":
                self._retreat.appendleft(action)
            return
        plan = self._queue.plan if kind == "plan" else None
        note = {
            "deadline": round(tick.deadline, 6),
            "sent": round(self.clock.now(), 6),
            "kind": kind,
            "chunk": None if plan is None else plan.number,
            "frame_step": None if plan is None else plan.start,
            "inference_s": None if plan is None else round(plan.seconds, 6),
            "limited": limited,
        }
        self._tape.did(self._step, sent, note)
        if kind in ("starved", "held"):
            self._queue.rested(self._step)
        elif kind == "plan":
            self._undo.append(sent)
        g = self.gauges
        g.starved, g.held = g.starved + (kind == "starved"), g.held + (kind == "held")
        g.retreats, g.limited = g.retreats + (kind == "retreat"), g.limited + limited
        g.lateness.append(tick.late)
        self._previous = sent
        self._step += 1
        self._sent += 1

    def _count(self) -> None:
        g = self.gauges
        g.ticks += 1
        g.missed = self.pacemaker.missed
        period = self.pacemaker.period if self.rules.pace == "real" else 0.0
        g.seconds = self._driven + self.clock.now() - self._started + period  # a tick lasts until the next
        self.watch(g)


def _why(error: BaseException) -> str:
    """What to tell of an error."""
    if isinstance(error, SafeStop):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
