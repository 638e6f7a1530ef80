"""Evaluate policies from the same starts in imagination and in the real environment, so that their results are paired."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from math import inf

import torch

from neuralsim.agents.evaluation.candidate import CandidatePolicy
from neuralsim.agents.evaluation.eval_envs import EvalEnv, ImaginedEvalEnv, RealEvalEnv
from neuralsim.agents.evaluation.rollout import MAX_ENVS, PolicyEvalResult, evaluate
from neuralsim.data.images import Size
from neuralsim.envs.tasks.rl_task import RLTask
from neuralsim.pretrained.starts import Starts
from neuralsim.pretrained.world import World

FIRST_SEED = 2_000_000
"""Added to seeds, so that evaluations never begin where policies were trained or evaluated during training."""

Tick = Callable[[int], None]


@dataclass(frozen=True)
class PairedEvaluation:
    """Episodes of ``rl_task`` from the same starts for every candidate."""

    rl_task: RLTask
    episodes: int
    seed: int = 0
    """Of the starts, and of torch's generator while a policy acts."""
    uncertainty_limit: float = inf
    """Uncertainty at which an imagined episode is truncated."""
    deterministic: bool = True
    """Take each policy's most likely action instead of drawing from its distribution."""

    def starts(self, world: World) -> Starts:
        """The starts of all episodes, in frames of ``world``'s size."""
        seed = FIRST_SEED + self.seed
        if not self.rl_task.has_real_world:
            return self.rl_task.starts_in(world, self.episodes, seed)
        return _starts(self.rl_task, self.episodes, seed, (world.spec.height, world.spec.width))

    def imagined(self, candidate: CandidatePolicy, tick: Tick | None = None) -> PolicyEvalResult:
        """Evaluate ``candidate`` in its world's imagination; ``tick`` gets the number of episodes that just ended."""
        return self._evaluate(candidate, partial(ImaginedEvalEnv, uncertainty_limit=self.uncertainty_limit), tick)

    def real(self, candidate: CandidatePolicy, tick: Tick | None = None) -> PolicyEvalResult:
        """Evaluate ``candidate`` in the real environment."""
        return self._evaluate(candidate, RealEvalEnv, tick)

    def _evaluate(
        self, candidate: CandidatePolicy, make: Callable[..., EvalEnv], tick: Tick | None
    ) -> PolicyEvalResult:
        starts = self.starts(candidate.world)
        eval_env = make(candidate.world, self.rl_task, starts, min(MAX_ENVS, self.episodes), candidate.observation)
        with torch.random.fork_rng(devices=[]):  # policies draw from torch's own generator
            torch.manual_seed(self.seed)
            return evaluate(candidate.make(), eval_env, self.episodes, self.deterministic, tick)


@lru_cache(maxsize=4)
def _starts(rl_task: RLTask, episodes: int, seed: int, size: Size) -> Starts:
    """Cache the starts for all candidates: a reset may take longer than an episode."""
    return rl_task.starts(episodes, seed, size)
