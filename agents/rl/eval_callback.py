"""Evaluate a policy during its training, in the real environment and in imagination."""

from __future__ import annotations

from typing import Any

from neuralsim.agents.evaluation.eval_envs import ImaginedEvalEnv, RealEvalEnv
from neuralsim.agents.evaluation.rollout import MAX_ENVS, evaluate
from neuralsim.agents.rl.config import RLConfig
from neuralsim.agents.rl.learning_curve import Point, mean_return_and_success
from neuralsim.pretrained.world import World

EVAL_SEED = 1_000_000
"""Seed of the starts of evaluations. Training draws its own from small seeds, so the two never meet."""


class PolicyEvaluator:
    """Evaluates policies from the same real and imagined starts, always in the world as it was at first, so that curves of one run
    compare.

    Imagined episodes are not truncated by uncertainty, as real ones are not; the share that would have been is reported. Where
    no real environment is known, evaluation is imagined alone.
    """

    def __init__(self, config: RLConfig, world: World) -> None:
        rl_task, self.episodes = config.rl_task, config.n_eval_episodes
        starts = rl_task.starts_in(world, self.episodes, EVAL_SEED)
        n_envs, observation = min(self.episodes, MAX_ENVS), config.observation
        self.real_env = RealEvalEnv(world, rl_task, starts, n_envs, observation) if rl_task.has_real_world else None
        self.imagined_env = ImaginedEvalEnv(world, rl_task, starts, n_envs, observation, float("inf"))

    def __call__(self, policy: Any, steps: int, true_steps: int, seconds: float, file: str = "") -> Point:
        """Return a point of the learning curve; see Point for the arguments."""
        imagined = evaluate(policy, self.imagined_env, self.episodes)
        returns, success = mean_return_and_success(imagined)
        true_returns = true_success = None
        if self.real_env is not None:
            true_returns, true_success = mean_return_and_success(evaluate(policy, self.real_env, self.episodes))
        doubted = float(imagined.doubted.mean())
        return Point(steps, true_steps, seconds, returns, success, true_returns, true_success, doubted, file)
