"""PlanCost: the cost of candidate plans, rolled out side by side in the world model and scored by a task; never decodes.

A cost is minus a return. The state is encoded once per decision and repeated for all candidates; all candidates meet the
same noise, so that costs differ by their actions alone.

After an imagined end (where the task terminates) nothing counts. With ``when="end"`` a plan that ended earlier keeps the
reward of that step. In sums, missing steps count 0: where rewards are distances below 0, arriving early saves the
distances that are left; where they are above 0, an end forgoes later rewards, as it does in the real environment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from neuralsim.noise import Noise
from neuralsim.runtime.device import inference
from neuralsim.state_view import View
from neuralsim.task import GoalImage, SumTask, Task, evaluate_task
from neuralsim.world_model import State, WorldModel

When = Literal["end", "blocks", "steps"]
WHENS = ("end", "blocks", "steps")


@dataclass(frozen=True)
class CostConfig:
    """Settings of PlanCost; raises ValueError for values out of range."""

    when: When = "end"
    """Rewards that count: of the last step (end), of the last step of each block (blocks), of all steps (steps)."""
    block: int = 5
    """Actions per ``unroll_last`` of the model with "end" and "blocks", which predict nothing in between."""
    chunk: int = 1
    """Actions per ``unroll`` of the model with "steps"; 1 uses ``step``."""
    discount: float = 1.0
    """Discount per step of sums, above 0 and at most 1."""
    uncertainty_penalty: float = 0.0
    """Cost per unit of the model's uncertainty at each step that counts."""

    def __post_init__(self) -> None:
        if self.when not in WHENS:
            raise ValueError(f"when: expected one of {', '.join(WHENS)}, got {self.when!r}")
        for name in ("block", "chunk"):
            check_count(name, getattr(self, name))
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount: expected a number above 0 and at most 1, got {self.discount!r}")
        if not 0 <= self.uncertainty_penalty < math.inf:
            raise ValueError(f"uncertainty_penalty: expected at least 0, got {self.uncertainty_penalty!r}")


def check_count(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")


class PlanCost:
    """Function from plans ``(n, l, a)``, on any device, to float32 costs ``(n,)`` on the model's device.

    Plans begin in ``state`` (one row) under ``noise`` (one row) and are scored by ``task``. All n are rolled out in one
    batch. A cost may be NaN; solvers count it as infinite. Raises ValueError for more than one row.
    """

    def __init__(
        self,
        model: WorldModel,
        task: Task,
        state: State,
        noise: Noise,
        config: CostConfig | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if len(state) != 1 or len(noise) != 1:
            raise ValueError(
                f"PlanCost: expected one state and its noise, got {len(state)} and {len(noise)}; plan from each by itself"
            )
        self.model, self.task, self.state, self.noise, self.dtype = model, task, state, noise, dtype
        self.config = config or CostConfig()
        if not self.config.uncertainty_penalty:
            self.state = model.without_ensemble(state)
        self._repeated = self.state
        # Where only the final reward counts, the task need not score the steps before.
        self._scores_every_step = (
            self.config.when != "end" or self.config.uncertainty_penalty > 0 or may_terminate(task)
        )

    def __repr__(self) -> str:
        return f"{type(self.model).__name__} {self.model.spec.name!r} scored by {type(self.task).__name__}"

    def __call__(self, actions: torch.Tensor) -> torch.Tensor:
        with inference(self.model.device, self.dtype):
            return self._costs(actions.to(self.model.device))

    def _costs(self, actions: torch.Tensor) -> torch.Tensor:
        n, config = len(actions), self.config
        before = View(self.model, self._repeat(n), self.dtype)
        active = torch.ones(n, dtype=torch.bool, device=actions.device)
        returns, uncertainty = (torch.zeros(n, dtype=torch.float32, device=actions.device) for _ in range(2))
        for step, state in self._rollout(before.state, actions):
            after = View(self.model, state, self.dtype)
            if not self._scores_every_step and step < actions.shape[1] - 1:
                before = after
                continue
            outcome = evaluate_task(self.task, before, actions[:, step], after)
            reward = outcome.reward.float()
            if config.when == "end":
                returns = torch.where(active, reward, returns)
            else:
                returns = torch.where(active, returns + config.discount**step * reward, returns)
            if config.uncertainty_penalty:
                uncertainty = torch.where(active, uncertainty + after.uncertainty, uncertainty)
            active = active & ~outcome.terminated
            if not bool(active.any()):
                break
            before = after
        return config.uncertainty_penalty * uncertainty - returns

    def _repeat(self, n: int) -> State:
        """The state ``n`` times; fewer rows than last time are a slice of those."""
        if len(self._repeated) < n:
            self._repeated = self.state.repeat(n)
        return self._repeated.index(slice(n))

    def _rollout(self, state: State, actions: torch.Tensor) -> Iterator[tuple[int, State]]:
        """Steps that may count: the index of the last action taken, and the state after it."""
        config = self.config
        noise = self.noise.index(torch.zeros(len(actions), dtype=torch.int64, device=self.noise.seed.device))
        stride = config.chunk if config.when == "steps" else config.block
        for i in range(0, actions.shape[1], stride):
            part = actions[:, i : i + stride]
            end = i + part.shape[1] - 1
            if config.when != "steps":
                state = self.model.unroll_last(state, part, noise.advance(i))
                yield end, state
            elif stride == 1:
                state = self.model.step(state, part[:, 0], noise.advance(i))
                yield end, state
            else:
                states = self.model.unroll(state, part, noise.advance(i))
                for j in range(part.shape[1]):
                    state = states.map(lambda x, j=j: x[:, j])  # type: ignore[misc]
                    yield i + j, state


def may_terminate(task: Task) -> bool:
    """True unless ``task`` is known never to terminate, such as a GoalImage without tolerance."""
    if isinstance(task, GoalImage):
        return task.tolerance > 0
    return any(may_terminate(part) for _, part in task.parts) if isinstance(task, SumTask) else True
