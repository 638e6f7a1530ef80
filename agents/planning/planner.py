"""Planner: model-predictive control in imagination. At each decision it searches the world model for the plan that a
task likes best, executes the first actions of it, looks again, and starts from what is left of the plan.

It is a Policy as Stable-Baselines3 has them: ``evaluate_policy(planner, real_env)`` just works. All it remembers travels
in the ``state`` that ``predict`` returns, so one planner serves any number of environments at once.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from neuralsim.agents.planning.cost import CostConfig, PlanCost, When
from neuralsim.agents.planning.distributions import anything
from neuralsim.agents.planning.solvers import ICEM, PlanResult, Solver, SolverIteration, Stop
from neuralsim.noise import Noise
from neuralsim.pretrained.world import World, open_world
from neuralsim.runtime.device import pick_dtype
from neuralsim.task import GoalImage, SumTask, Task, inference
from neuralsim.world_model import State, WorldModel

Proposals = Callable[[State, int], Any]
"""A state (one row) and a number of actions l -> plans ``(p, l, a)`` worth trying, e.g. a policy's."""
STRANGE = 10.0
"""A goal of which the model is this many times as unsure as it may be of a dream is none of its world."""


@dataclass(frozen=True)
class Decision:
    """What a decision took: at which step of the episode, the plan's predicted cost, model evaluations (plans scored),
    rounds, what ended the search, and milliseconds for reading the frames, for the search, and in all."""

    step: int
    cost: float
    evaluations: int
    rounds: int
    stopped: Stop
    encode_ms: float
    search_ms: float
    total_ms: float


@dataclass(frozen=True, eq=False)
class Memory:
    """What a planner remembers of one environment's episode; a value, empty at its start.

    frames uint8 ``(t, h, w, 3)`` and actions ``(t, a)``: the newest that the model may read, each frame with the action
    taken there. queue ``(q, a)``: decided, but not executed. plan: the last one, for the next to start from. step:
    actions so far. The luck of a decision is settled by the planner's seed and the number of ``decisions`` before it.
    """

    frames: np.ndarray | None = None
    actions: np.ndarray | None = None
    queue: np.ndarray | None = None
    plan: PlanResult | None = None
    step: int = 0
    decisions: tuple[Decision, ...] = field(default=(), repr=False)


class Planner:
    """Plans in ``world`` (a name, a folder, a World or a model) what ``task`` wishes for, by ``search``.

    lookahead: actions per plan. block: actions per ``jump`` of the model. n_action_steps: actions executed per decision.
    budget_ms: a decision's time, reading the frames included; what is found by then counts, and the batch under way is
    finished (None: as long as the search takes). when, discount, uncertainty_penalty, chunk, rows: see Scoring. horizon:
    length of an episode, if known; plans then do not look beyond its end. proposals: plans worth trying from a state.
    action_space: by default the world's own, be it a Box or of choices. precision: as in
    Imagination. on_round and on_decision are told what happens, for whoever wants to watch. ``clock`` counts seconds.

    The same episode gives the same actions, unless a budget cuts the search. Raises ValueError, before anything runs,
    for settings that do not fit each other, the task, or the world.
    """

    def __init__(
        self,
        world: str | os.PathLike[str] | World | WorldModel,
        task: Task,
        search: Solver | None = None,
        lookahead: int = 25,
        block: int = 5,
        n_action_steps: int = 5,
        budget_ms: float | None = None,
        when: When = "end",
        discount: float = 1.0,
        uncertainty_penalty: float = 0.0,
        proposals: Proposals | None = None,
        seed: int = 0,
        device: str = "auto",
        precision: str = "auto",
        *,
        chunk: int = 1,
        rows: int = 1024,
        horizon: int | None = None,
        action_space: gym.Space | None = None,
        on_round: Callable[[SolverIteration], object] | None = None,
        on_decision: Callable[[Decision], object] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        for name, count in (
            ("lookahead", lookahead),
            ("block", block),
            ("n_action_steps", n_action_steps),
            ("horizon", horizon),
        ):
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
                raise ValueError(f"{name}: expected a whole number of at least 1, got {count!r}")
        for name, count in (("block", block), ("n_action_steps", n_action_steps)):
            if count > lookahead:
                raise ValueError(f"{name}: expected at most the lookahead of {lookahead} actions, got {count}")
        if budget_ms is not None and not 0 < budget_ms < math.inf:
            raise ValueError(f"budget_ms: expected milliseconds above 0, or None for no limit, got {budget_ms!r}")
        if not callable(task):
            raise TypeError(f"task: expected a Task, e.g. goal_image(frame) or LearnedTask(), got {task!r}")
        self.world = open_world(World(world) if isinstance(world, WorldModel) else world, device)
        self.model, self.spec = self.world.model, self.world.spec
        self.task = task
        self.search = search or ICEM()
        self.scoring = CostConfig(when, block, chunk, discount, uncertainty_penalty, rows)
        self.lookahead, self.n_action_steps, self.horizon = lookahead, n_action_steps, horizon
        self.budget_ms, self.proposals, self.seed = budget_ms, proposals, seed
        self.action_space = action_space or self.spec.action_space()
        self.dtype = pick_dtype(precision, self.model.device)
        self.on_round, self.on_decision, self.clock = on_round, on_decision, clock
        self._rehearse()

    # -- the Policy ----------------------------------------------------------------------------------------------------

    def predict(
        self,
        observation: Any,
        state: Sequence[Memory] | None = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[Memory, ...]]:
        """The action ``(a,)`` for a frame uint8 ``(h, w, 3)``, or ``(b, a)`` for ``(b, h, w, 3)``, each environment
        planned for by itself; of a Discrete space without the last axis.

        ``state`` is what the last call returned, one Memory per environment; it begins anew where ``episode_start``
        ``(b,)`` holds. ``deterministic`` changes nothing. Raises ValueError for frames of another kind, or another
        number of them.
        """
        frames = np.array(self.spec.check_frames(observation, "observation"))  # what is remembered is nobody else's
        if frames.ndim > 4 or not len(frames):
            raise ValueError(f"observation: expected a frame (h, w, 3) or frames (b, h, w, 3), got {frames.shape}")
        single = frames.ndim == 3
        batch = frames[None] if single else frames
        memories = self._memories(state, episode_start, len(batch))
        acted = [self._act(frame, memory) for frame, memory in zip(batch, memories, strict=True)]
        actions = np.stack([action for action, _ in acted])
        if isinstance(self.action_space, gym.spaces.Discrete):
            actions = actions[:, 0]
        return actions[0] if single else actions, tuple(memory for _, memory in acted)

    def decide(self, state: State, memory: Memory | None = None) -> tuple[PlanResult, Memory]:
        """The plan from a state of the model (one row), and what to remember for the next decision, which is understood
        to come ``n_action_steps`` actions later. For whoever knows the state and needs no frames."""
        plan, memory = self._decide(state, memory or Memory(), self.clock())
        return plan, replace(memory, queue=None, step=memory.step + len(plan.actions[: self.n_action_steps]))

    # -- one environment -----------------------------------------------------------------------------------------------

    def _memories(self, state: Sequence[Memory] | None, episode_start: Any, b: int) -> list[Memory]:
        """One Memory per environment, new ones where an episode starts."""
        memories = [Memory()] * b if state is None else list(state)
        if len(memories) != b or not all(isinstance(memory, Memory) for memory in memories):
            raise ValueError(
                f"state: expected what predict returned for {b} environments, got {len(memories)} of "
                f"{', '.join(sorted({type(memory).__name__ for memory in memories}))}"
            )
        if episode_start is None:
            return memories
        starts = np.asarray(episode_start, dtype=bool).reshape(-1)
        if len(starts) != b:
            raise ValueError(f"episode_start: expected shape ({b},), got {np.shape(episode_start)}")
        return [Memory() if start else memory for start, memory in zip(starts, memories, strict=True)]

    def _act(self, frame: np.ndarray, memory: Memory) -> tuple[np.ndarray, Memory]:
        """The next action, from the queue if there is one left."""
        frames = frame[None] if memory.frames is None else np.concatenate([memory.frames, frame[None]])
        frames = frames[-self.spec.context :]
        queue = memory.queue
        if queue is None or not len(queue):
            began = self.clock()
            past = self._no_actions if memory.actions is None else memory.actions[None]
            state = self._encode(frames[None], past[:, past.shape[1] - (len(frames) - 1) :])
            plan, memory = self._decide(state, memory, began)
            queue = plan.actions[: self.n_action_steps].numpy()
        action = queue[0]
        actions = action[None] if memory.actions is None else np.concatenate([memory.actions, action[None]])
        actions = actions[-self.spec.context :]
        return action, replace(memory, frames=frames, actions=actions, queue=queue[1:], step=memory.step + 1)

    def _decide(self, state: State, memory: Memory, began: float) -> tuple[PlanResult, Memory]:
        """The plan from ``state``, counting time from ``began``."""
        encoded = self.clock()
        lookahead = self.lookahead
        if self.horizon is not None:
            lookahead = max(1, min(lookahead, self.horizon - memory.step))
        noise, rng = self._luck(len(memory.decisions))
        plan = self.search.plan(
            PlanCost(self.model, self.task, state, noise, self.scoring, self.dtype),
            self.action_space,
            lookahead,
            rng,
            warm=memory.plan,
            shift=self.n_action_steps,
            proposals=None if self.proposals is None else self.proposals(state, lookahead),
            deadline=math.inf if self.budget_ms is None else began + self.budget_ms / 1000,
            batch=self.scoring.rows,
            clock=self.clock,
            on_round=self.on_round,
        )
        ended = self.clock()
        decision = Decision(
            step=memory.step,
            cost=plan.cost,
            evaluations=plan.evaluations,
            rounds=plan.rounds,
            stopped=plan.stopped,
            encode_ms=1000 * (encoded - began),
            search_ms=1000 * (ended - encoded),
            total_ms=1000 * (ended - began),
        )
        if self.on_decision is not None:
            self.on_decision(decision)
        return plan, replace(memory, plan=plan, decisions=(*memory.decisions, decision))

    def _luck(self, decision: int) -> tuple[Noise, torch.Generator]:
        """The model's noise and the search's, for the given decision of any episode."""
        one, other = np.random.SeedSequence([self.seed % 2**64, decision]).generate_state(2)
        return Noise.from_seeds([int(one)], self.model.device), torch.Generator().manual_seed(int(other))

    def _encode(self, frames: np.ndarray, past: np.ndarray) -> State:
        with inference(self.model.device, self.dtype):
            pixels, actions = (torch.as_tensor(np.ascontiguousarray(x)) for x in (frames, past))
            return self.model.encode(pixels.to(self.model.device), actions.to(self.model.device))

    # -- before anything runs ------------------------------------------------------------------------------------------

    def _rehearse(self) -> None:
        """Score one block of rest from a start of the world, or from a blank frame: what does not fit shows here."""
        rest = anything(self.action_space, 1, 0.0).rest
        if len(rest) != self.spec.action_size:
            raise ValueError(
                f"action_space: world {self.spec.name!r} has actions of {self.spec.action_size} numbers "
                f"({', '.join(self.spec.action_names)}), got {self.action_space}"
            )
        self._no_actions = rest.new_zeros(1, 0, len(rest)).numpy()
        for goal in _goals(self.task):
            frame = self.spec.check_frames(goal.frame, "goal")
            if frame.ndim != 3:
                raise ValueError(f"goal: expected one frame (h, w, 3), got shape {frame.shape}")
            self._check_goal(self._encode(frame[None, None], self._no_actions))
        starts = self.world.starts
        frame = np.zeros((1, *self.spec.frame_shape), np.uint8) if starts is None else starts.frames[0, -1:]
        scorer = PlanCost(
            self.model,
            self.task,
            self._encode(frame[None], self._no_actions),
            self._luck(0)[0],
            self.scoring,
            self.dtype,
        )
        cost = scorer(rest.expand(2, self.scoring.block, -1))
        if not bool(cost.isfinite().all()):
            raise ValueError(f"task: expected rewards that are finite numbers, got a cost of {cost[0]:g} ({scorer})")

    def _check_goal(self, goal: State) -> None:
        """Refuse a goal that the model, where it can tell, takes for no frame of its world."""
        with inference(self.model.device, self.dtype):
            doubt = float(self.model.uncertainty(goal))
        limit = STRANGE * float(getattr(self.model, "uncertainty_threshold", math.inf))
        if not doubt <= limit:
            raise ValueError(
                f"goal: expected a frame of world {self.spec.name!r}; of this one its model is as unsure as {doubt:.3g}, "
                f"and {limit:.3g} is the most; is it from another world, or not drawn by this one's camera?"
            )


def goal_image(frame: Any, tolerance: float = 0.0) -> GoalImage:
    """The task to make the world look like ``frame``, uint8 ``(h, w, 3)``.

    ``tolerance``: the distance, in the model's features, at which an imagined plan counts as arrived and its rest no
    longer matters. 0, the default, is for plans that are to be at the goal when they end, as near as they can.
    """
    array = np.array(frame.detach().cpu() if isinstance(frame, torch.Tensor) else frame)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        strange = array.dtype.kind == "f" and not np.isfinite(array).all()
        raise ValueError(
            f"goal: expected one frame, uint8 (h, w, 3) in 0..255, got {array.dtype} {array.shape}"
            + (" with NaN or infinity in it" if strange else "")
        )
    return GoalImage(array, tolerance)


def _goals(task: Task) -> Iterator[GoalImage]:
    """Every goal image within ``task``."""
    if isinstance(task, GoalImage):
        yield task
    elif isinstance(task, SumTask):
        for _, part in task.parts:
            yield from _goals(part)
