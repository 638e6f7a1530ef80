"""Contest: the same starts in imagination and in truth, for all who are to be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from math import inf

import torch

from neuralsim.agents.evaluation.eval_envs import EvalEnv, ImaginedEvalEnv, RealEvalEnv
from neuralsim.agents.evaluation.rollout import SLOTS, PolicyEvalResult, evaluate
from neuralsim.agents.policies.resolve import CandidatePolicy
from neuralsim.data.images import Size
from neuralsim.envs.tasks.rl_task import RLTask
from neuralsim.pretrained.world import Starts, World

FIRST_SEED = 2_000_000
"""Added to seeds, so that contests never begin where policies were trained or looked at."""

Tick = Callable[[int], None]


@dataclass(frozen=True)
class PairedEvaluation:
    """``episodes`` attempts at ``rl_task``.

    doubt_limit: uncertainty at which an imagined episode is cut off. deterministic: whether policies do what they hold best,
    or draw from their distribution.
    """

    rl_task: RLTask
    episodes: int
    seed: int = 0
    doubt_limit: float = inf
    deterministic: bool = True

    def starts(self, world: World) -> Starts:
        """Where all attempts begin, in frames of ``world``."""
        seed = FIRST_SEED + self.seed
        if self.rl_task.truth is None:
            return self.rl_task.starts_in(world, self.episodes, seed)
        return _starts(self.rl_task, self.episodes, seed, (world.spec.height, world.spec.width))

    def imagined(self, contender: CandidatePolicy, tick: Tick | None = None) -> PolicyEvalResult:
        """How ``contender`` fares in its world's imagination; ``tick`` hears of finished episodes."""
        return self._try(contender, partial(ImaginedEvalEnv, doubt_limit=self.doubt_limit), tick)

    def true(self, contender: CandidatePolicy, tick: Tick | None = None) -> PolicyEvalResult:
        """How ``contender`` fares in the true simulator."""
        return self._try(contender, RealEvalEnv, tick)

    def _try(self, contender: CandidatePolicy, make: Callable[..., EvalEnv], tick: Tick | None) -> PolicyEvalResult:
        starts = self.starts(contender.world)
        eval_env = make(contender.world, self.rl_task, starts, min(SLOTS, self.episodes), contender.sees)
        with torch.random.fork_rng(devices=[]):  # policies draw from torch's own generator
            torch.manual_seed(self.seed)
            return evaluate(contender.make(), eval_env, self.episodes, self.deterministic, tick)


@lru_cache(maxsize=4)
def _starts(rl_task: RLTask, episodes: int, seed: int, size: Size) -> Starts:
    """Made once for all who begin there: a reset may take longer than an attempt."""
    return rl_task.starts(episodes, seed, size)
