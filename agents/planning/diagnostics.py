"""Diagnostics of planning: what is lost by planning in a learned world, and how thrifty a solver is.

OracleRegret: the plan found in imagination and the one found in the real simulator, at equal samples, are both executed
in the simulator; how much farther from the goal does the first end? Rank correlation: do candidates imagined to end near
the goal really end near it? Both use the same task, applied to the real last frame. SolverEfficiency: cost and
evaluations of a solver's plans beside those of the field's usual CEM, in the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch

from neuralsim.agents.planning.cost import PlanCost
from neuralsim.agents.planning.goals import StartGoal
from neuralsim.agents.planning.planner import Planner
from neuralsim.agents.planning.solvers import CEM, SearchLimits, Solver, SolverIteration
from neuralsim.envs.oracle import Oracle, OracleState
from neuralsim.evaluation.statistics import rank_correlation
from neuralsim.noise import Noise
from neuralsim.runtime.device import inference
from neuralsim.state_view import View
from neuralsim.task import FunctionTask, Task, evaluate_task
from neuralsim.world_model import State, WorldModel

LOOKAHEADS = (10, 25)
"""Steps after which candidates are compared."""
N_FIRST, N_LAST = 48, 16
"""Candidates taken from the search's first round and from its last."""
LEAST_SPREAD = 0.02
"""Candidates differ in reality where the standard deviation of their real costs is at least this share of the mean."""
FIELD = CEM(candidates=300, rounds=30, elites=30)
"""The default of stable-worldmodel and DINO-WM."""


@dataclass(frozen=True)
class OracleRegret:
    """Regret and rank correlations of one pair.

    Distances in units from the goal, as the oracle's features have it: ``begun`` from, and reached by executing the plan
    ``imagined`` and the ``oracle``'s. ranks: lookahead (as text) -> Spearman's correlation of imagined and real costs,
    None where the candidates' real costs do not differ.
    """

    pair: int
    begun: float
    imagined: float
    oracle: float
    ranks: Mapping[str, float | None]

    @property
    def regret(self) -> float:
        """Units lost by planning in imagination."""
        return self.imagined - self.oracle

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Invert ``to_dict``."""
        return cls(**values)


@dataclass(frozen=True)
class SolverEfficiency:
    """One pair planned for twice from nothing in the same model.

    Predicted cost and evaluations of the solver in question and of the field's; ``rest_cost``: cost of doing nothing.
    """

    pair: int
    rest_cost: float
    cost: float
    evaluations: int
    field_cost: float
    field_evaluations: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Invert ``to_dict``."""
        return cls(**values)


def goal_state(oracle: Oracle, goal: np.ndarray) -> Task:
    """Task to bring ``oracle``'s world to the state ``goal`` ``(s,)``: GoalImage without the state estimator's error."""
    features = oracle.features(oracle.at(goal))
    return FunctionTask(lambda before, action, after: -(after.features - features).square().mean(-1).sqrt())


def oracle_regret(pair: StartGoal, planner: Planner, oracle_planner: Planner, oracle: Oracle) -> OracleRegret:
    """Plan from the pair's start in the world of ``planner`` and in the simulator, and execute both plans."""
    start = oracle.at(pair.start)
    state = encode_frames(planner.model, oracle.decode(start))
    plans = planner.decide(state)[0].actions, oracle_planner.decide(start)[0].actions
    ends = [_ends(oracle, start, plan[None]) for plan in plans]
    begun, imagined, real = (goal_distance(oracle, state, pair.goal) for state in (start, *ends))
    ranks = {str(k): cost_rank_correlation(pair, planner, oracle, k) for k in LOOKAHEADS}
    return OracleRegret(pair.index, begun, imagined, real, ranks)


def goal_distance(oracle: Oracle, state: OracleState, goal: np.ndarray) -> float:
    """Root-mean-square distance in units of the scene's points (a pusher's count less, see the oracle) from the goal."""
    off = oracle.features(state) - oracle.features(oracle.at(goal))
    return float(off.square().view(-1, 2).sum(1).mean().sqrt()) * oracle.half_extent


def cost_rank_correlation(pair: StartGoal, planner: Planner, oracle: Oracle, lookahead: int) -> float | None:
    """Spearman's correlation of imagined and real costs over candidates of the planner's search from the pair's start."""
    model, start = planner.model, oracle.at(pair.start)
    cost = plan_cost(planner, encode_frames(model, oracle.decode(start)))
    rounds: list[SolverIteration] = []
    rng = torch.Generator("cpu").manual_seed(planner.config.seed)
    limits = SearchLimits(batch=planner.config.batch)
    planner.solver.plan(cost, planner.action_space, lookahead, rng, limits=limits, on_iteration=rounds.append)
    candidates, imagined = _sample(rounds)
    real = real_costs(planner, oracle, start, candidates)
    if real.std() < LEAST_SPREAD * abs(real.mean()):
        return None
    found = rank_correlation(imagined.numpy(), real)
    return found if np.isfinite(found) else None


def real_costs(planner: Planner, oracle: Oracle, start: OracleState, plans: torch.Tensor) -> np.ndarray:
    """Costs ``(n,)`` under the planner's task, which scores ends alone, of the real ends of ``plans`` ``(n l a)``."""
    model, dtype = planner.model, planner.dtype
    before = encode_frames(model, oracle.decode(start)).repeat(len(plans))
    after = encode_frames(model, oracle.decode(_ends(oracle, start, plans)))
    with inference(model.device, dtype):
        last = plans[:, -1].to(model.device)
        outcome = evaluate_task(planner.task, View(model, before, dtype), last, View(model, after, dtype))
    return -outcome.reward.float().cpu().numpy()


def solver_efficiency(
    pair: StartGoal, make: Callable[[Solver], Planner], solver: Solver, oracle: Oracle
) -> SolverEfficiency:
    """Compare ``solver`` with FIELD; ``make`` returns a planner for the pair's goal with a given solver and no time limit."""
    ours, theirs = make(solver), make(FIELD)
    state = encode_frames(ours.model, oracle.decode(oracle.at(pair.start)))
    one, other = ours.decide(state)[0], theirs.decide(state)[0]
    rest = float(plan_cost(ours, state)(torch.zeros_like(one.actions)[None])[0])
    return SolverEfficiency(pair.index, rest, one.cost, one.evaluations, other.cost, other.evaluations)


def plan_cost(planner: Planner, state: State) -> PlanCost:
    """The planner's cost from ``state``, under noise of its seed."""
    noise = Noise.from_seeds([planner.config.seed], planner.model.device)
    return PlanCost(planner.model, planner.task, state, noise, planner.config, planner.dtype)


def encode_frames(model: WorldModel, frames: torch.Tensor) -> State:
    """Encode single ``frames`` ``(b h w c)`` without history."""
    with torch.inference_mode():
        frames = frames.to(model.device)
        none = torch.zeros(len(frames), 0, model.spec.action_size, dtype=torch.float32, device=model.device)
        return model.encode(frames[:, None], none)


def _ends(oracle: Oracle, start: OracleState, plans: torch.Tensor) -> OracleState:
    return oracle.unroll_last(start.repeat(len(plans)), plans, Noise.from_seeds([0] * len(plans)))


def _sample(rounds: Sequence[SolverIteration]) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates of the first round and of the last, with the costs imagined."""
    parts = [(rounds[0], N_FIRST), (rounds[-1], N_LAST)] if len(rounds) > 1 else [(rounds[0], N_FIRST)]
    # A round begins with candidates kept from earlier ones; its draws come last.
    return (
        torch.cat([r.candidates[-n:] for r, n in parts]),
        torch.cat([r.costs[-n:] for r, n in parts]),
    )
