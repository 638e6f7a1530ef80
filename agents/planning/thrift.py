"""Thrift: how good a search's plans are for the evaluations they take, beside the field's CEM of 300 candidates x 30 rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch

from neuralsim.agents.planning.cost import PlanCost
from neuralsim.agents.planning.diagnostics import see
from neuralsim.agents.planning.goals import StartGoal
from neuralsim.agents.planning.planner import Planner
from neuralsim.agents.planning.solvers import CEM, Solver
from neuralsim.envs.oracle import Oracle
from neuralsim.noise import Noise

FIELD = CEM(candidates=300, rounds=30, elites=30)
"""What stable-worldmodel and DINO-WM run by default."""


@dataclass(frozen=True)
class SolverEfficiency:
    """One start and goal, planned for twice from nothing in the same model: predicted cost and evaluations of the search in
    question, and of the field's; and the cost of doing nothing."""

    pair: int
    rest_cost: float
    cost: float
    evaluations: int
    field_cost: float
    field_evaluations: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        return cls(**values)


def solver_efficiency(
    pair: StartGoal, make: Callable[[Solver], Planner], search: Solver, oracle: Oracle
) -> SolverEfficiency:
    """``make``: a planner for the pair's goal with the given search, and no limit of time. ``search``: the one in question."""
    ours, theirs = make(search), make(FIELD)
    state = see(ours.model, oracle.decode(oracle.at(pair.start)))
    one, other = ours.decide(state)[0], theirs.decide(state)[0]
    noise = Noise.from_seeds([ours.seed], ours.model.device)
    scorer = PlanCost(ours.model, ours.task, state, noise, ours.scoring, ours.dtype)
    rest = float(scorer(torch.zeros_like(one.actions)[None])[0])
    return SolverEfficiency(pair.index, rest, one.cost, one.evaluations, other.cost, other.evaluations)
