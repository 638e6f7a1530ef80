"""Planner: model-predictive control in imagination. Each decision searches the world model for the plan of least cost
under a task, executes its first actions, observes again, and starts the next search from the rest of the plan.

It is a Policy (Stable-Baselines3's ``predict``), so ``evaluate_policy(planner, real_env)`` works. All its memory travels
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

from neuralsim.agents.planning.cost import CostConfig, PlanCost, check_count
from neuralsim.agents.planning.distributions import uniform
from neuralsim.agents.planning.solvers import (
    ICEM,
    PlanResult,
    SearchLimits,
    Solver,
    SolverIteration,
    StopReason,
    WarmStart,
)
from neuralsim.noise import Noise
from neuralsim.pretrained.world import World, open_world
from neuralsim.runtime.device import inference, pick_dtype
from neuralsim.task import GoalImage, SumTask, Task
from neuralsim.world_model import State, WorldModel

Proposals = Callable[[State, int], Any]
"""A state (one row) and a number of actions l -> plans ``(p, l, a)`` to try, e.g. a policy's."""
FOREIGN = 10.0
"""A goal whose uncertainty is this many times the model's own threshold is not an image of its world."""


@dataclass(frozen=True)
class PlannerConfig(CostConfig):
    """Settings of a Planner, those of its cost included; raises ValueError for values that do not fit together."""

    lookahead: int = 25
    """Actions per plan."""
    n_action_steps: int = 5
    """Actions executed per decision."""
    horizon: int | None = None
    """Length of an episode, if known; plans then do not look beyond its end."""
    budget_ms: float | None = None
    """Time per decision, encoding included. A search over time finishes its batch and returns the best so far; None: no limit."""
    batch: int = 1024
    """Candidates per pass of the model at most, which bounds memory."""
    seed: int = 0
    """Seed of the solver's draws and of the model's noise."""
    device: str = "auto"
    """Device of the model, where it is opened here: auto, cpu or cuda."""
    precision: str = "auto"
    """Arithmetic of the model: auto, float32 or bfloat16."""
    action_space: gym.Space | None = None
    """Space of the actions, a Box or choices; None: the world's own."""

    def __post_init__(self) -> None:
        for name in ("lookahead", "block", "n_action_steps", "batch"):
            check_count(name, getattr(self, name))
        if self.horizon is not None:
            check_count("horizon", self.horizon)
        for name in ("block", "n_action_steps"):
            if getattr(self, name) > self.lookahead:
                raise ValueError(
                    f"{name}: expected at most the lookahead of {self.lookahead} actions, got {getattr(self, name)}"
                )
        if self.budget_ms is not None and not 0 < self.budget_ms < math.inf:
            raise ValueError(f"budget_ms: expected milliseconds above 0, or None for no limit, got {self.budget_ms!r}")
        super().__post_init__()


@dataclass(frozen=True)
class Decision:
    """Record of one decision.

    step: actions of the episode before it. cost: predicted cost of the plan. evaluations: plans evaluated, in ``rounds``
    rounds. stopped: reason why the search ended. Milliseconds: encoding the frames, the search, and in all.
    """

    step: int
    cost: float
    evaluations: int
    rounds: int
    stopped: StopReason
    encode_ms: float
    search_ms: float
    total_ms: float


@dataclass(frozen=True, eq=False)
class Memory:
    """A planner's memory of one environment's episode; a value, empty at its start.

    frames uint8 ``(t, h, w, 3)`` and actions ``(t, a)``: the newest that the model may read, each frame with the action
    taken there. queue ``(q, a)``: decided, but not executed. plan: the last one, which the next search starts from.
    step: actions so far. A decision's random draws follow from the planner's seed and the number of ``decisions`` before.
    """

    frames: np.ndarray | None = None
    actions: np.ndarray | None = None
    queue: np.ndarray | None = None
    plan: PlanResult | None = None
    step: int = 0
    decisions: tuple[Decision, ...] = field(default=(), repr=False)


class Planner:
    """Policy that plans in a world model for a task.

    Args:
        world: a name, a folder, a World or a model.
        task: a Task, e.g. ``goal_image(frame)`` or ``LearnedTask()``.
        solver: how plans are searched; ICEM by default.
        config: all other settings.
        proposals: plans to try from a state, besides the solver's own.
        on_iteration: called after each round of a search.
        on_decision: called after each decision.
        clock: seconds, for the budget.

    The same episode gives the same actions, unless a budget cuts the search. Raises ValueError, before anything runs,
    for settings that do not fit the task or the world, TypeError for a task that cannot be called.
    """

    def __init__(
        self,
        world: str | os.PathLike[str] | World | WorldModel,
        task: Task,
        solver: Solver | None = None,
        config: PlannerConfig | None = None,
        *,
        proposals: Proposals | None = None,
        on_iteration: Callable[[SolverIteration], object] | None = None,
        on_decision: Callable[[Decision], object] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not callable(task):
            raise TypeError(f"task: expected a Task, e.g. goal_image(frame) or LearnedTask(), got {task!r}")
        self.config = config or PlannerConfig()
        self.world = open_world(World(world) if isinstance(world, WorldModel) else world, self.config.device)
        self.model, self.spec = self.world.model, self.world.spec
        self.task, self.solver, self.proposals = task, solver or ICEM(), proposals
        self.action_space = self.config.action_space or self.spec.action_space()
        self.dtype = pick_dtype(self.config.precision, self.model.device)
        self.on_iteration, self.on_decision, self.clock = on_iteration, on_decision, clock
        self._rest = uniform(self.action_space, 1, 0.0).rest
        self._no_actions = self._rest.new_zeros(1, 0, len(self._rest)).numpy()
        self.validate()

    # -- the Policy ----------------------------------------------------------------------------------------------------

    def predict(
        self,
        observation: Any,
        state: Sequence[Memory] | None = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[Memory, ...]]:
        """Return the action ``(a,)`` for a frame uint8 ``(h, w, 3)``, or ``(b, a)`` for frames ``(b, h, w, 3)``.

        Each environment is planned for by itself. Actions of a Discrete space have no last axis. ``state`` is what the
        last call returned, one Memory per environment; it is reset where ``episode_start`` ``(b,)`` holds.
        ``deterministic`` changes nothing. Raises ValueError for frames of another kind or number.
        """
        frames = np.array(self.spec.check_frames(observation, "observation"))  # a copy, for memory outlives the call
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
        """Plan from a state of the model (one row), without frames.

        Returns the plan and the memory for the next decision, which is expected ``n_action_steps`` actions later.
        """
        plan, memory = self._decide(state, memory or Memory(), self.clock())
        return plan, replace(memory, queue=None, step=memory.step + len(plan.actions[: self.config.n_action_steps]))

    # -- one environment -----------------------------------------------------------------------------------------------

    def _memories(self, state: Sequence[Memory] | None, episode_start: Any, b: int) -> list[Memory]:
        """One Memory per environment, empty where an episode starts."""
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
        """The next action: the first of the queue, after a decision where the queue is empty."""
        frames = frame[None] if memory.frames is None else np.concatenate([memory.frames, frame[None]])
        frames = frames[-self.spec.context :]
        queue = memory.queue
        if queue is None or not len(queue):
            began = self.clock()
            past = self._no_actions if memory.actions is None else memory.actions[None]
            state = self._encode(frames[None], past[:, past.shape[1] - (len(frames) - 1) :])
            plan, memory = self._decide(state, memory, began)
            queue = plan.actions[: self.config.n_action_steps].numpy()
        action = queue[0]
        actions = action[None] if memory.actions is None else np.concatenate([memory.actions, action[None]])
        actions = actions[-self.spec.context :]
        return action, replace(memory, frames=frames, actions=actions, queue=queue[1:], step=memory.step + 1)

    def _decide(self, state: State, memory: Memory, began: float) -> tuple[PlanResult, Memory]:
        """Plan from ``state``, counting time from ``began``."""
        encoded, config = self.clock(), self.config
        lookahead = config.lookahead
        if config.horizon is not None:
            lookahead = max(1, min(lookahead, config.horizon - memory.step))
        noise, rng = self._random_streams(len(memory.decisions))
        proposals = None if self.proposals is None else self.proposals(state, lookahead)
        deadline = math.inf if config.budget_ms is None else began + config.budget_ms / 1000
        plan = self.solver.plan(
            PlanCost(self.model, self.task, state, noise, config, self.dtype),
            self.action_space,
            lookahead,
            rng,
            start=WarmStart(memory.plan, config.n_action_steps, proposals),
            limits=SearchLimits(deadline, config.batch, self.clock),
            on_iteration=self.on_iteration,
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

    def _random_streams(self, decision: int) -> tuple[Noise, torch.Generator]:
        """The model's noise and the solver's generator for the given decision of any episode."""
        one, other = np.random.SeedSequence([self.config.seed % 2**64, decision]).generate_state(2)
        return Noise.from_seeds([int(one)], self.model.device), torch.Generator("cpu").manual_seed(int(other))

    def _encode(self, frames: np.ndarray, past: np.ndarray) -> State:
        with inference(self.model.device, self.dtype):
            pixels, actions = (torch.as_tensor(np.ascontiguousarray(x), device="cpu") for x in (frames, past))
            return self.model.encode(pixels.to(self.model.device), actions.to(self.model.device))

    # -- before anything runs ------------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Raise ValueError unless world, task and settings fit: cost one block of rest from a start or a blank frame."""
        rest = self._rest
        if len(rest) != self.spec.action_size:
            raise ValueError(
                f"action_space: world {self.spec.name!r} has actions of {self.spec.action_size} numbers "
                f"({', '.join(self.spec.action_names)}), got {self.action_space}"
            )
        for goal in _goals(self.task):
            frame = self.spec.check_frames(goal.frame, "goal")
            if frame.ndim != 3:
                raise ValueError(f"goal: expected one frame (h, w, 3), got shape {frame.shape}")
            self._check_goal(self._encode(frame[None, None], self._no_actions))
        starts = self.world.starts
        frame = np.zeros((1, *self.spec.frame_shape), np.uint8) if starts is None else starts.frames[0, -1:]
        state = self._encode(frame[None], self._no_actions)
        cost = PlanCost(self.model, self.task, state, self._random_streams(0)[0], self.config, self.dtype)
        found = cost(rest.expand(2, self.config.block, -1))
        if not bool(found.isfinite().all()):
            raise ValueError(f"task: expected rewards that are finite numbers, got a cost of {found[0]:g} ({cost})")

    def _check_goal(self, goal: State) -> None:
        """Refuse a goal that is no frame of the model's world, where the model can tell."""
        with inference(self.model.device, self.dtype):
            uncertainty = float(self.model.uncertainty(goal))
        limit = FOREIGN * float(getattr(self.model, "uncertainty_threshold", math.inf))
        if not uncertainty <= limit:
            raise ValueError(
                f"goal: expected a frame of world {self.spec.name!r}; the model's uncertainty of this one is "
                f"{uncertainty:.3g}, at most {limit:.3g} is accepted; is it from another world or camera?"
            )


def goal_image(frame: Any, tolerance: float = 0.0) -> GoalImage:
    """Task to make the world look like ``frame``, uint8 ``(h, w, 3)``; a ValueError for anything else.

    ``tolerance``: distance in the model's features at which an imagined plan has arrived, so that its rest no longer
    counts. 0, the default, is for plans that are to be at the goal when they end, as near as they can.
    """
    array = np.array(frame.detach().cpu() if isinstance(frame, torch.Tensor) else frame)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        not_finite = array.dtype.kind == "f" and not np.isfinite(array).all()
        raise ValueError(
            f"goal: expected one frame, uint8 (h, w, 3) in 0..255, got {array.dtype} {array.shape}"
            + (" with NaN or infinity in it" if not_finite else "")
        )
    return GoalImage(array, tolerance)


def _goals(task: Task) -> Iterator[GoalImage]:
    """Every goal image within ``task``."""
    if isinstance(task, GoalImage):
        yield task
    elif isinstance(task, SumTask):
        for _, part in task.parts:
            yield from _goals(part)
