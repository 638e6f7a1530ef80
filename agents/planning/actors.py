"""PlanActor: a Planner let loose in the true world, and what it had in mind, for whoever watches."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch

from neuralsim.agents.planning.diagnostics import see
from neuralsim.agents.planning.goal_trial import DecisionCost
from neuralsim.agents.planning.overlay import ImaginedPaths
from neuralsim.agents.planning.planner import Memory, Planner
from neuralsim.agents.planning.solvers import PlanResult, SolverIteration
from neuralsim.envs.oracle import Oracle, OracleState
from neuralsim.envs.real_env import RealEnv
from neuralsim.noise import Noise
from neuralsim.world_model import State, WorldModel

FAN = 10
"""Plans of a decision's first round whose paths are shown, its best ones, beside the last round's elites."""
STRIDE = 5
"""Steps between the points of a path that must be read off decoded frames."""


class PlannerActor(ABC):
    """What both actors below share: the planner, and what it had in mind at the last decision. ``plan``: the plan chosen;
    ``fan`` ``(n, l, a)``: that, the last round's elites, and the first round's best, best first."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self._first: SolverIteration | None = None
        planner.on_round = self._watch

    def _watch(self, heard: SolverIteration) -> None:
        if heard.number == 0:
            self._first = heard

    @property
    @abstractmethod
    def memory(self) -> Memory | None:
        """What the planner remembers; None before the first action."""

    @property
    def decisions(self) -> tuple[DecisionCost, ...]:
        """What each decision so far took."""
        made = () if self.memory is None else self.memory.decisions
        return tuple(DecisionCost(d.total_ms, d.evaluations, d.cost) for d in made)

    @property
    def plan(self) -> PlanResult:
        """See the class; a RuntimeError before the first action."""
        if self.memory is None or self.memory.plan is None:
            raise RuntimeError(f"{type(self).__name__}.plan before the first action: there is none yet")
        return self.memory.plan

    @property
    def fan(self) -> torch.Tensor:
        """See the class."""
        parts = [self.plan.actions[None], self.plan.elites]
        if self._first is not None:
            parts.append(self._first.candidates[self._first.costs.argsort()[:FAN]])
        return torch.cat(parts)


class PlanActor(PlannerActor):
    """Acts by what it sees: frames alone."""

    def __init__(self, planner: Planner) -> None:
        super().__init__(planner)
        self._memories: tuple[Memory, ...] | None = None
        self._frame: np.ndarray | None = None

    def __call__(self, env: RealEnv, step: int) -> np.ndarray:
        """See Actor."""
        frame = env.frame(self.planner.spec.height)
        made = len(self.decisions)
        action, self._memories = self.planner.predict(frame, self._memories)
        if len(self.decisions) > made:
            self._frame = frame
        return action

    @property
    def memory(self) -> Memory | None:
        """See PlannerActor."""
        return None if self._memories is None else self._memories[0]

    @property
    def seen(self) -> State:
        """What the model takes the frame of the last decision for."""
        return see(self.planner.model, torch.from_numpy(np.asarray(self._frame))[None])


class OracleActor(PlannerActor):
    """Acts by the true state: the same planner with the truth inside."""

    def __init__(self, planner: Planner) -> None:
        super().__init__(planner)
        if not isinstance(planner.model, Oracle):
            raise TypeError(f"OracleActor: expected a planner in an Oracle, got one in {type(planner.model).__name__}")
        self._oracle = planner.model
        self._memory: Memory | None = None
        self._queue = np.zeros((0, 0))
        self._state: np.ndarray | None = None

    def __call__(self, env: RealEnv, step: int) -> np.ndarray:
        """See Actor."""
        if not len(self._queue):
            self._state = env.state()
            plan, self._memory = self.planner.decide(self._oracle.at(self._state), self._memory)
            self._queue = plan.actions[: self.planner.n_action_steps].numpy()
        action, self._queue = self._queue[0], self._queue[1:]
        return action

    @property
    def memory(self) -> Memory | None:
        """See PlannerActor."""
        return self._memory

    @property
    def seen(self) -> OracleState:
        """The true state at the last decision."""
        return self._oracle.at(self._state)


@torch.inference_mode()
def imagine(model: WorldModel, oracle: Oracle, seen: State, plans: torch.Tensor) -> ImaginedPaths:
    """Dream ``plans`` ``(n l a)`` from ``seen`` again, this time to be looked at: where they lead, and the first one's end.
    Made after the decision, outside its time."""
    plans = plans.to(model.device)
    n, k = plans.shape[:2]
    states = model.unroll(seen.repeat(n), plans, Noise.from_seeds([0] * n, model.device))
    steps = list(range(k)) if _told(model, seen, oracle) is not None else list(range(k - 1, -1, -STRIDE))[::-1]
    some = states.map(lambda x: x[:, steps].flatten(0, 1))
    read = _told(model, some, oracle)
    if read is None:
        read = oracle.simulator.read(model.decode(some).cpu().numpy())
    read = read.reshape(n, len(steps), -1)
    end = states.map(lambda x: x[:1, -1])
    start = _told(model, seen, oracle)
    here = oracle.simulator.read(model.decode(seen).cpu().numpy()) if start is None else start
    paths = np.concatenate([np.broadcast_to(here[:, None, :2], (n, 1, 2)), read[..., :2]], 1)
    return ImaginedPaths(paths, read[0, -1], model.decode(end)[0].cpu().numpy())


def _told(model: WorldModel, state: State, oracle: Oracle) -> np.ndarray | None:
    """The true states ``(b, s)`` that a model without pixels believes in; None where it must be drawn to know."""
    if isinstance(state, OracleState):
        return state.values.cpu().numpy()
    try:
        told = model.read_state(state).double().cpu().numpy()
    except TypeError:  # it knows none
        return None
    return told if told.shape[-1] == len(oracle.simulator.state_names) else None
