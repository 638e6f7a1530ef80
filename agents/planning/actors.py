"""Adapters that run a Planner in a real environment and expose its last plan.

A Planner that sees frames is a policy already. ``OraclePolicy`` gives one with the real simulator inside the true state;
``PlanRecorder`` collects what a planner reports through its callbacks; ``imagine_paths`` rolls plans out for display.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from neuralsim.agents.planning.overlay import ImaginedPaths
from neuralsim.agents.planning.planner import Decision, Memory, Planner
from neuralsim.agents.planning.solvers import PlanResult, SolverIteration
from neuralsim.envs.oracle import Oracle, OracleState
from neuralsim.envs.real_env import RealEnv
from neuralsim.noise import Noise
from neuralsim.world_model import State, WorldModel

N_FIRST = 10
"""Plans of a decision's first round whose paths are shown, its best ones, beside the last round's elites."""
STRIDE = 5
"""Steps between the points of a path that must be estimated from decoded frames."""


class OraclePolicy:
    """Policy of a planner with an Oracle inside, which reads the true state of ``env`` instead of an observation.

    Raises TypeError for a planner in another model.
    """

    def __init__(self, planner: Planner, env: RealEnv) -> None:
        if not isinstance(planner.model, Oracle):
            raise TypeError(f"OraclePolicy: expected a planner in an Oracle, got one in {type(planner.model).__name__}")
        self.planner, self.oracle, self.env = planner, planner.model, env

    def predict(
        self,
        observation: Any,
        state: tuple[Memory, ...] | None = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[Memory, ...]]:
        """Return the action ``(a,)`` and the planner's memory."""
        memory = Memory() if state is None or bool(np.any(episode_start)) else state[0]
        queue = memory.queue
        if queue is None or not len(queue):
            plan, memory = self.planner.decide(self.oracle.at(self.env.state()), memory)
            queue = plan.actions[: self.planner.config.n_action_steps].numpy()
        return queue[0], (replace(memory, queue=queue[1:]),)


@dataclass(eq=False)
class PlanRecorder:
    """Reports of a planner: pass ``on_iteration`` and ``on_decision`` to it under these names."""

    decisions: list[Decision] = field(default_factory=list)
    """Every decision so far."""
    first: SolverIteration | None = None
    """First round of the last decision."""

    def on_iteration(self, iteration: SolverIteration) -> None:
        """Keep the first round."""
        if iteration.number == 0:
            self.first = iteration

    def on_decision(self, decision: Decision) -> None:
        """Keep the decision."""
        self.decisions.append(decision)

    def candidates(self, plan: PlanResult) -> torch.Tensor:
        """Return plans ``(n, l, a)`` to show: ``plan``, its elites, and the best of the first round, best first."""
        parts = [plan.actions[None], plan.elites]
        if self.first is not None:
            parts.append(self.first.candidates[self.first.costs.argsort()[:N_FIRST]])
        return torch.cat(parts)


@torch.inference_mode()
def imagine_paths(model: WorldModel, oracle: Oracle, state: State, plans: torch.Tensor) -> ImaginedPaths:
    """Roll ``plans`` ``(n l a)`` out from ``state`` (one row) for display: their paths, and the end of the first.

    Run after the decision, outside its time.
    """
    plans = plans.to(model.device)
    n, k = plans.shape[:2]
    states = model.unroll(state.repeat(n), plans, Noise.from_seeds([0] * n, model.device))
    here = _predicted_states(model, state, oracle)
    steps = list(range(k)) if here is not None else list(range(k - 1, -1, -STRIDE))[::-1]
    some = states.map(lambda x: x[:, steps].flatten(0, 1))
    places = _predicted_states(model, some, oracle)
    if places is None:
        places = oracle.simulator.read(model.decode(some).cpu().numpy())
    places = places.reshape(n, len(steps), -1)
    if here is None:
        here = oracle.simulator.read(model.decode(state).cpu().numpy())
    end = states.map(lambda x: x[:1, -1])
    paths = np.concatenate([np.broadcast_to(here[:, None, :2], (n, 1, 2)), places[..., :2]], 1)
    return ImaginedPaths(paths, places[0, -1], model.decode(end)[0].cpu().numpy())


def _predicted_states(model: WorldModel, state: State, oracle: Oracle) -> np.ndarray | None:
    """States ``(b, s)`` that the model predicts without pixels; None where they must be estimated from decoded frames."""
    if isinstance(state, OracleState):
        return state.values.cpu().numpy()
    try:
        predicted = model.read_state(state).double().cpu().numpy()
    except TypeError:  # the model predicts no states
        return None
    return predicted if predicted.shape[-1] == len(oracle.simulator.state_names) else None
