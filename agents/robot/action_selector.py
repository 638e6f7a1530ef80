"""ActionSelector: decides what the robot does at each tick, when a chunk is requested, and what becomes of one that arrives."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from neuralsim.agents.heads.chunk_policy import ActionChunkPolicy
from neuralsim.agents.robot.action_queue import ActionQueue
from neuralsim.agents.robot.async_inference import InferenceRequest, InferenceResult
from neuralsim.agents.robot.emergency_stop import SafeStop
from neuralsim.agents.robot.loop_statistics import LoopStatistics
from neuralsim.agents.robot.timing import FixedRateTimer, LatencyTracker, Tick
from neuralsim.agents.robot.trajectory import TimedObservation, TrajectoryBuffer
from neuralsim.envs.robots.robot import MOST_REFUSED

OnRefusal = Literal["hold", "retreat", "stop"]


@dataclass(frozen=True)
class ControlLoopConfig:
    """Settings of a control loop."""

    steps: int = 300
    """Actions in an episode."""
    n_action_steps: int | None = None
    """Actions of a chunk that are done before the next takes over; None: as the policy says, else all."""
    pace: Literal["real", "step"] = "real"
    """real: keep the rate and infer meanwhile. step: the robot waits for each decision, as only simulated ones may."""
    check: bool = True
    """Imagine chunks before they are done."""
    on_refusal: OnRefusal = "hold"
    """Reaction to a chunk whose future is not allowed: rest, undo the last actions (displacements only), or stop."""
    refusals: int = 5
    """Refused chunks in a row that stop the loop in any case."""
    denials: int = MOST_REFUSED
    """Actions in a row refused by the robot that stop the loop."""
    oldest: float = 5.0
    """Seconds after which a chunk is too old to begin."""
    retreat: int = 8
    """Most actions that are undone."""
    real_actions: bool = True
    """False in a dry run, of which video is kept and nothing is compared with its imagined future."""
    seed: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)
    """Recorded with each episode."""


@dataclass(eq=False)
class EpisodeState:
    """State of one episode, shared by the loop and its action selector."""

    number: int
    trajectory: TrajectoryBuffer
    started: float
    """Seconds of the loop's clock."""
    last_send: float
    """Seconds of the loop's clock."""
    undo: deque[np.ndarray]
    """Newest actions of chunks, the last one last."""
    queue: ActionQueue = field(default_factory=ActionQueue)
    step: int | None = None
    """Number of the next action, by the robot's count."""
    observation: TimedObservation | None = None
    """Observation of the latest step."""
    sent: int = 0
    pending: int | None = None
    """Number of the chunk that is being inferred."""
    refusals: int = 0
    """Chunks in a row that were not allowed."""
    denials: int = 0
    """Actions in a row that the robot refused."""
    holding: bool = False
    """At rest after a refusal."""
    retreat: deque[np.ndarray] = field(default_factory=deque)
    """Actions that undo the last ones, still to be sent."""
    previous: np.ndarray | None = None
    """Action sent last."""
    success: bool = False
    best_coverage: float = 0.0
    compared: tuple[int, int] = (-1, -1)
    """Chunk, and action of it, whose frame was compared last with the imagined one."""
    odd_readings: set[str] = field(default_factory=set)
    """Readings that were reported as not finite."""


class ActionSelector:
    """Selects actions from chunks of ``policy``; counts go to ``statistics``, and events in words to ``log``."""

    def __init__(
        self,
        policy: ActionChunkPolicy,
        config: ControlLoopConfig,
        timer: FixedRateTimer,
        statistics: LoopStatistics,
        log: Callable[[str], None],
    ) -> None:
        self.policy, self.config, self.timer, self.statistics, self.log = policy, config, timer, statistics, log
        self.spec, self.latency = policy.spec, LatencyTracker()
        preferred: int = getattr(policy, "n_action_steps", policy.chunk)
        self.n_action_steps = preferred if config.n_action_steps is None else config.n_action_steps
        if not 1 <= self.n_action_steps <= policy.chunk:
            raise ValueError(
                f"--n-action-steps: expected 1 to {policy.chunk} (the policy's chunk), got {self.n_action_steps}"
            )
        if config.on_refusal == "retreat" and self.spec.discrete:
            raise ValueError("--on-refusal retreat: choices cannot be undone; hold or stop")
        self._chunks = 0

    def due(self, state: EpisodeState) -> tuple[str, np.ndarray]:
        """Return the action to send now, and its kind: retreat, plan, held or starved."""
        assert state.step is not None
        if state.retreat:
            return "retreat", state.retreat.popleft()
        action = state.queue.action(state.step)
        if action is not None:
            return "plan", action
        return ("held" if state.holding else "starved"), self.spec.rest_action()

    def sent(self, state: EpisodeState, kind: str, action: np.ndarray) -> None:
        """Note that ``action`` was sent, and pass on to the next step."""
        assert state.step is not None
        if kind in ("starved", "held"):
            state.queue.add_rest(state.step)
        elif kind == "plan":
            state.undo.append(action)
        s = self.statistics
        s.starved, s.held, s.retreats = (
            s.starved + (kind == "starved"),
            s.held + (kind == "held"),
            s.retreats + (kind == "retreat"),
        )
        state.previous, state.denials = action, 0
        state.step += 1
        state.sent += 1

    def denied(self, state: EpisodeState, kind: str, action: np.ndarray) -> None:
        """Note that the robot refused ``action``. Raises SafeStop after too many in a row."""
        self.statistics.denied += 1
        state.denials += 1
        if self.statistics.denied == 1:
            self.log("the robot refused an action; it is sent again")
        if state.denials >= self.config.denials:
            raise SafeStop(
                f"the robot refused {state.denials} actions in a row; it takes none, or fewer a second than are sent"
            )
        if kind == "retreat":
            state.retreat.appendleft(action)

    # -- chunks that arrive

    def accept(self, state: EpisodeState, result: InferenceResult) -> None:
        """Use a chunk, or drop it where it is refused, too late, or of an earlier request."""
        real = self.config.pace == "real"
        now = self.timer.clock.now()
        self.latency.add(now - result.request.requested if real else 0.0)
        self.statistics.decisions.append(result.seconds)
        self.statistics.imagined.append(result.imagine_s)
        if result.request.number != state.pending:
            return
        state.pending = None
        chunk, queue = result.chunk, state.queue
        assert state.step is not None
        if result.refused:
            self.statistics.refusals += 1
            self.halt(state, f"chunk {chunk.number} refused", result.refused, retreat=True)
            return
        age = now - chunk.frame_time
        followed, late = queue.chunk is not None, queue.late
        if (real and age > self.config.oldest) or not queue.replace(chunk, state.step):
            self.statistics.expired += 1
            self.log(f"chunk {chunk.number} came {age:.1f} s after its frame, too late to begin")
            return
        self.statistics.late += queue.late - late
        if followed:  # an allowed chunk proves nothing before it has been done
            state.refusals = 0
        state.holding = False

    def halt(self, state: EpisodeState, event: str, reasons: tuple[str, ...], retreat: bool) -> None:
        """Drop the current chunk and apply ``on_refusal``. Raises SafeStop where that, or their number, demands it."""
        state.queue.drop()
        state.pending = None
        state.holding = True
        state.refusals += 1
        text = f"{event}: {'; '.join(reasons)}"
        self.log(text)
        if self.config.on_refusal == "stop":
            raise SafeStop(text)
        if state.refusals >= self.config.refusals:
            raise SafeStop(f"{state.refusals} chunks in a row were not allowed; the last: {text}")
        if retreat and self.config.on_refusal == "retreat":
            twice_rest = 2 * self.spec.rest_action()
            state.retreat = deque(np.clip(twice_rest - a, -1, 1).astype(np.float32) for a in reversed(state.undo))
            state.undo.clear()

    # -- requests

    def request(self, state: EpisodeState, tick: Tick) -> InferenceRequest | None:
        """Return a request for a new chunk when it is time for one."""
        if state.pending is not None or state.retreat or not self._time_to_request(state):
            return None
        step, observation = state.step, state.observation
        assert step is not None
        assert observation is not None
        if step - observation.step >= self.policy.chunk:
            return None  # a chunk from so old a frame would be over before it began
        until = step if state.queue.action(step) is None else self._handover(state, observation.step, step)
        prefix = state.queue.settled(observation.step, step, until, state.trajectory)
        self._chunks += 1
        state.pending = self._chunks
        self.statistics.prefixes.append(len(prefix))
        return InferenceRequest(
            number=self._chunks,
            history=state.trajectory.history(observation),
            start=observation.step,
            prefix=prefix,
            seed=self.config.seed + 1_000_003 * self._chunks + state.number,
            requested=tick.time,
            frame_time=observation.received,
        )

    def _time_to_request(self, state: EpisodeState) -> bool:
        """True if a chunk requested now would take over just when the current one has been done as far as it is to be."""
        end = state.queue.end
        if end is None or state.step is None:
            return True
        return state.step >= min(state.queue.begun_at + self.n_action_steps, end) - self._lead()

    def _lead(self) -> int:
        """Return the control periods between a request and the first action that it can change."""
        return max(1, self.latency.periods(self.timer.hz)) if self.config.pace == "real" else 0

    def _handover(self, state: EpisodeState, first: int, step: int) -> int:
        """Return the step at which a chunk requested at ``step``, from the frame of step ``first``, takes over.

        Where inference takes so long that chunks cannot follow each other without a gap, the robot is to pause there.
        """
        lead, chunk = self._lead(), self.policy.chunk
        until = step + lead
        if until - first + lead > chunk:
            until = min(until, max(step, first + chunk // 2))
            state.queue.stop_at(until)
        return until
