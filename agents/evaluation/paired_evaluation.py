"""Contest: the same starts in imagination and in truth, for all who are to be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from math import inf

import torch

from neuralsim.agents.evaluation.eval_envs import Arena, DreamArena, TrueArena
from neuralsim.agents.evaluation.rollout import SLOTS, Tally, evaluate
from neuralsim.agents.policies.resolve import Contender
from neuralsim.data.images import Size
from neuralsim.envs.tasks.rl_task import Wish
from neuralsim.pretrained.world import Starts, World

FIRST_SEED = 2_000_000
"""Added to seeds, so that contests never begin where policies were trained or looked at."""

Tick = Callable[[int], None]


@dataclass(frozen=True)
class Contest:
    """``episodes`` attempts at ``wish``.

    doubt_limit: uncertainty at which an imagined episode is cut off. deterministic: whether policies do what they hold best,
    or draw from their distribution.
    """

    wish: Wish
    episodes: int
    seed: int = 0
    doubt_limit: float = inf
    deterministic: bool = True

    def starts(self, world: World) -> Starts:
        """Where all attempts begin, in frames of ``world``."""
        seed = FIRST_SEED + self.seed
        if self.wish.truth is None:
            return self.wish.starts_in(world, self.episodes, seed)
        return _starts(self.wish, self.episodes, seed, (world.spec.height, world.spec.width))

    def imagined(self, contender: Contender, tick: Tick | None = None) -> Tally:
        """How ``contender`` fares in its world's imagination; ``tick`` hears of finished episodes."""
        return self._try(contender, partial(DreamArena, doubt_limit=self.doubt_limit), tick)

    def true(self, contender: Contender, tick: Tick | None = None) -> Tally:
        """How ``contender`` fares in the true simulator."""
        return self._try(contender, TrueArena, tick)

    def _try(self, contender: Contender, make: Callable[..., Arena], tick: Tick | None) -> Tally:
        starts = self.starts(contender.world)
        arena = make(contender.world, self.wish, starts, min(SLOTS, self.episodes), contender.sees)
        with torch.random.fork_rng(devices=[]):  # policies draw from torch's own generator
            torch.manual_seed(self.seed)
            return evaluate(contender.make(), arena, self.episodes, self.deterministic, tick)


@lru_cache(maxsize=4)
def _starts(wish: Wish, episodes: int, seed: int, size: Size) -> Starts:
    """Made once for all who begin there: a reset may take longer than an attempt."""
    return wish.starts(episodes, seed, size)
