"""Trial: a look at a policy in the middle of its training, in truth and in imagination."""

from __future__ import annotations

from typing import Any

from neuralsim.agents.evaluation.eval_envs import ImaginedEvalEnv, RealEvalEnv
from neuralsim.agents.evaluation.rollout import MAX_ENVS, evaluate
from neuralsim.agents.rl.config import RLConfig
from neuralsim.agents.rl.learning_curve import Point, figures_of
from neuralsim.pretrained.world import World

TRIAL_SEED = 1_000_000
"""Seed of the starts that policies are tried from. Training draws its own from small seeds: the two never meet."""


class PolicyEvaluator:
    """Looks at policies: the same starts in truth and in imagination, always of the world as it was at first, so that curves
    of one run compare. Dreams are not cut off by doubt, as the truth is not; how many would have been is told. Where no true
    world is known, imagination alone."""

    def __init__(self, config: RLConfig, world: World) -> None:
        rl_task = config.rl_task
        starts = rl_task.starts_in(world, config.trials, TRIAL_SEED)
        n_envs = min(config.trials, MAX_ENVS)
        self.config, self.rl_task = config, rl_task
        self.true = None if not rl_task.has_real_world else RealEvalEnv(world, rl_task, starts, n_envs, config.observation)
        self.dream = ImaginedEvalEnv(world, rl_task, starts, n_envs, config.observation, float("inf"))

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
