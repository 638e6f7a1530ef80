"""Scoring: what candidate plans cost, dreamt from one state side by side and judged by a task. Never decodes.

A cost is minus a return. The state is encoded once by whoever asks, and repeated once for all candidates of a decision;
all of them meet the same noise, so that differences come from their actions alone.

What counts after an imagined end (where the task terminates): nothing. Looking at the end alone, a plan that ended
earlier keeps the reward of that moment. Summing, missing steps count 0: where rewards are distances below 0, arriving
is worth the distances saved, and where they are above 0, an end forgoes what would have come, as it does in truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from neuralsim.noise import Noise
from neuralsim.task import GoalImage, SumTask, Task, View, inference, judge
from neuralsim.world_model import State, WorldModel

When = Literal["end", "blocks", "steps"]
WHENS = ("end", "blocks", "steps")


@dataclass(frozen=True)
class CostConfig:
    """How plans are judged.

    when: "end", by the reward of the last step alone; "blocks", by the sum over the last steps of blocks; "steps", over
    all steps. block: actions per ``jump`` of the model, for "end" and "blocks", which make nothing in between. chunk:
    steps per ``unroll`` for "steps"; 1 is ``step``. discount: of sums, per step. uncertainty_penalty: cost of each unit
    of the model's uncertainty at each moment looked at. rows: candidates per pass, which bounds memory.
    """

    when: When = "end"
    block: int = 5
    chunk: int = 1
    discount: float = 1.0
    uncertainty_penalty: float = 0.0
    rows: int = 1024

    def __post_init__(self) -> None:
        if self.when not in WHENS:
            raise ValueError(f"when: expected one of {', '.join(WHENS)}, got {self.when!r}")
        for name in ("block", "chunk", "rows"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount: expected a number above 0 and at most 1, got {self.discount!r}")
        if not 0 <= self.uncertainty_penalty < math.inf:
            raise ValueError(f"uncertainty_penalty: expected at least 0, got {self.uncertainty_penalty!r}")


class PlanCost:
    """Costs of plans that begin in ``state`` (one row), under ``noise`` (one row) and ``task``.

    Called with ``(n, l, a)``, on any device; answers float32 ``(n,)`` on the model's. A cost that is no number stays
    one: searches take it for infinitely bad.
    """

    def __init__(
        self,
        model: WorldModel,
        task: Task,
        state: State,
        noise: Noise,
        scoring: CostConfig | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if len(state) != 1 or len(noise) != 1:
            raise ValueError(
                f"Scorer: expected one state and its noise, got {len(state)} and {len(noise)}; plan from each by itself"
            )
        self.model, self.task, self.state, self.noise, self.dtype = model, task, state, noise, dtype
        self.scoring = scoring or CostConfig()
        if not self.scoring.uncertainty_penalty:
            self.state = model.lean(state)
        self._crowd = self.state
        # Where nothing on the way to the end counts, nobody is asked about it.
        self._looks = self.scoring.when != "end" or self.scoring.uncertainty_penalty > 0 or may_end(task)

    def __repr__(self) -> str:
        return f"{type(self.model).__name__} {self.model.spec.name!r} judged by {type(self.task).__name__}"

    def __call__(self, actions: torch.Tensor) -> torch.Tensor:
        """See the class."""
        with inference(self.model.device, self.dtype):
            parts = actions.to(self.model.device).split(self.scoring.rows)
            return torch.cat([self._score(part) for part in parts])

    def _score(self, actions: torch.Tensor) -> torch.Tensor:
        n, how = len(actions), self.scoring
        before = View(self.model, self._repeated(n), self.dtype)
        going = torch.ones(n, dtype=torch.bool, device=actions.device)
        worth, doubt = (torch.zeros(n, device=actions.device) for _ in range(2))
        for last, state in self._moments(before.state, actions):
            after = View(self.model, state, self.dtype)
            if not self._looks and last < actions.shape[1] - 1:
                before = after
                continue
            outcome = judge(self.task, before, actions[:, last], after)
            reward = outcome.reward.float()
            if how.when == "end":
                worth = torch.where(going, reward, worth)
            else:
                worth = torch.where(going, worth + how.discount**last * reward, worth)
            if how.uncertainty_penalty:
                doubt = torch.where(going, doubt + after.uncertainty, doubt)
            going = going & ~outcome.terminated
            if not bool(going.any()):
                break
            before = after
        return how.uncertainty_penalty * doubt - worth

    def _repeated(self, n: int) -> State:
        """The state ``n`` times; a smaller crowd is a part of a larger one, at no cost."""
        if len(self._crowd) < n:
            self._crowd = self.state.repeat(n)
        return self._crowd.index(slice(n))

    def _moments(self, state: State, actions: torch.Tensor) -> Iterator[tuple[int, State]]:
        """The moments that are looked at: the number of the action that led there, and the state after it."""
        how = self.scoring
        noise = self.noise.index(torch.zeros(len(actions), dtype=torch.int64, device=self.noise.seed.device))
        stride = how.chunk if how.when == "steps" else how.block
        for i in range(0, actions.shape[1], stride):
            part = actions[:, i : i + stride]
            end = i + part.shape[1] - 1
            if how.when != "steps":
                state = self.model.jump(state, part, noise.advance(i))
                yield end, state
            elif stride == 1:
                state = self.model.step(state, part[:, 0], noise.advance(i))
                yield end, state
            else:
                states = self.model.unroll(state, part, noise.advance(i))
                for j in range(part.shape[1]):
                    state = states.map(lambda x, j=j: x[:, j])  # type: ignore[misc]
                    yield i + j, state


def may_end(task: Task) -> bool:
    """Whether ``task`` can terminate at all, as far as can be told from it: a GoalImage without tolerance cannot."""
    if isinstance(task, GoalImage):
        return task.tolerance > 0
    return any(may_end(part) for _, part in task.parts) if isinstance(task, SumTask) else True
