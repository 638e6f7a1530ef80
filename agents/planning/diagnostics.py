"""Gap: how far planning in a learned world stays behind planning in the truth, with everything but the dynamics alike.

Regret: the plan found in imagination and the one found in the oracle, at equal samples, are both carried out in truth; how
much farther from the goal does the first end? Rank correlation: do candidates that are dreamt to end near the goal truly
end near it? Both judge by the same task, the truth through its true last frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch

from neuralsim.agents.planning.cost import PlanCost
from neuralsim.agents.planning.goals import StartGoal
from neuralsim.agents.planning.planner import Planner
from neuralsim.agents.planning.solvers import SolverIteration
from neuralsim.envs.oracle import Oracle, OracleState
from neuralsim.evaluation.statistics import rank_correlation
from neuralsim.noise import Noise
from neuralsim.runtime.device import inference
from neuralsim.state_view import View
from neuralsim.task import FunctionTask, Task, evaluate_task
from neuralsim.world_model import State, WorldModel

LOOKAHEADS = (10, 25)
"""Steps after which candidates are compared."""
FIRST, LATE = 48, 16
"""Candidates taken from the search's first round and from its last."""
SPREAD = 0.02
"""Candidates differ in truth where the standard deviation of their true costs is at least this share of the mean."""


@dataclass(frozen=True)
class OracleRegret:
    """What one pair tells. Distances in units from the goal, as the oracle's features have it: begun from, and reached in
    truth by the plan imagined and by the oracle's. ranks: lookahead (as text) -> Spearman's correlation of imagined and
    true costs, None where the candidates do not differ in truth."""

    pair: int
    begun: float
    imagined: float
    oracle: float
    ranks: Mapping[str, float | None]

    @property
    def regret(self) -> float:
        """Units that imagination cost."""
        return self.imagined - self.oracle

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        return cls(**values)


def goal_state(oracle: Oracle, goal: np.ndarray) -> Task:
    """The task to bring ``oracle``'s world to the true state ``goal`` ``(s,)``; what GoalImage is to a learned world, without
    the reader's error."""
    aim = oracle.features(oracle.at(goal))
    return FunctionTask(lambda before, action, after: -(after.features - aim).square().mean(-1).sqrt())


def oracle_regret(pair: StartGoal, planner: Planner, oracle_planner: Planner, oracle: Oracle) -> OracleRegret:
    """Plan once from the pair's start in the world of ``planner`` and once in the truth, and carry both out."""
    start = oracle.at(pair.start)
    seen = see(planner.model, oracle.decode(start))
    plans = planner.decide(seen)[0].actions, oracle_planner.decide(start)[0].actions
    ends = [_ends(oracle, start, plan[None]) for plan in plans]
    begun, imagined, true = (goal_distance(oracle, state, pair.goal) for state in (start, *ends))
    ranks = {str(k): rank_of(pair, planner, oracle, k) for k in LOOKAHEADS}
    return OracleRegret(pair.index, begun, imagined, true, ranks)


def goal_distance(oracle: Oracle, state: OracleState, goal: np.ndarray) -> float:
    """Units by which the points of the scene (a pusher's count less, see the oracle) are off, root mean square."""
    off = oracle.features(state) - oracle.features(oracle.at(goal))
    return float(off.square().view(-1, 2).sum(1).mean().sqrt()) * oracle.half_extent


def rank_of(pair: StartGoal, planner: Planner, oracle: Oracle, lookahead: int) -> float | None:
    """Spearman's correlation between imagined and true costs of what the planner's search tries from the pair's start."""
    model, start = planner.model, oracle.at(pair.start)
    state, noise = see(model, oracle.decode(start)), Noise.from_seeds([planner.seed], model.device)
    scorer = PlanCost(model, planner.task, state, noise, planner.scoring, planner.dtype)
    rounds: list[SolverIteration] = []
    rng = torch.Generator().manual_seed(planner.seed)
    planner.search.plan(scorer, planner.action_space, lookahead, rng, on_round=rounds.append)
    candidates, imagined = _mixed(rounds)
    true = true_costs(model, planner.task, oracle, start, candidates, planner.dtype)
    if true.std() < SPREAD * abs(true.mean()):
        return None
    found = rank_correlation(imagined.numpy(), true)
    return found if np.isfinite(found) else None


def true_costs(
    model: WorldModel, task: Task, oracle: Oracle, start: OracleState, plans: torch.Tensor, dtype: torch.dtype
) -> np.ndarray:
    """What ``task``, which looks at ends alone, says of the true ends of ``plans`` ``(n l a)`` as ``model`` sees them: minus
    the reward, ``(n,)``."""
    seen = see(model, oracle.decode(start)).repeat(len(plans))
    ends = see(model, oracle.decode(_ends(oracle, start, plans)))
    with inference(model.device, dtype):
        outcome = evaluate_task(task, View(model, seen, dtype), plans[:, -1].to(model.device), View(model, ends, dtype))
    return -outcome.reward.float().cpu().numpy()


def see(model: WorldModel, frames: torch.Tensor) -> State:
    """What ``model`` takes single ``frames`` ``(b h w c)`` for."""
    with torch.inference_mode():
        frames = frames.to(model.device)
        return model.encode(frames[:, None], torch.zeros(len(frames), 0, model.spec.action_size, device=model.device))


def _ends(oracle: Oracle, start: OracleState, plans: torch.Tensor) -> OracleState:
    return oracle.unroll_last(start.repeat(len(plans)), plans, Noise.from_seeds([0] * len(plans)))


def _mixed(rounds: Sequence[SolverIteration]) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates of the first round and of the last, with the costs imagined."""
    parts = [(rounds[0], FIRST), (rounds[-1], LATE)] if len(rounds) > 1 else [(rounds[0], FIRST)]
    # A round begins with what was handed on from earlier ones; its draws come last.
    return (
        torch.cat([r.candidates[-n:] for r, n in parts]),
        torch.cat([r.costs[-n:] for r, n in parts]),
    )
