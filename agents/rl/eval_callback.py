"""Trial: a look at a policy in the middle of its training, in truth and in imagination."""

from __future__ import annotations

from typing import Any

from neuralsim.agents.evaluation.eval_envs import DreamArena, TrueArena
from neuralsim.agents.evaluation.rollout import SLOTS, evaluate
from neuralsim.agents.rl.config import Reinforce
from neuralsim.agents.rl.learning_curve import Point, figures_of
from neuralsim.pretrained.world import World

TRIAL_SEED = 1_000_000
"""Seed of the starts that policies are tried from. Training draws its own from small seeds: the two never meet."""


class Trial:
    """Looks at policies: the same starts in truth and in imagination, always of the world as it was at first, so that curves
    of one run compare. Dreams are not cut off by doubt, as the truth is not; how many would have been is told. Where no true
    world is known, imagination alone."""

    def __init__(self, config: Reinforce, world: World) -> None:
        wish = config.wish
        starts = wish.starts_in(world, config.trials, TRIAL_SEED)
        slots = min(config.trials, SLOTS)
        self.config, self.wish = config, wish
        self.true = None if wish.truth is None else TrueArena(world, wish, starts, slots, config.observation)
        self.dream = DreamArena(world, wish, starts, slots, config.observation, float("inf"))

    def __call__(self, policy: Any, steps: int, true_steps: int, seconds: float, file: str = "") -> Point:
        """A point of the curve."""
        trials = self.config.trials
        imagined = evaluate(policy, self.dream, trials)
        returns, success = figures_of(imagined)
        true_returns = true_success = None
        if self.true is not None:
            true_returns, true_success = figures_of(evaluate(policy, self.true, trials))
        doubted = float(imagined.doubted.mean())
        return Point(steps, true_steps, seconds, returns, success, true_returns, true_success, doubted, file)
