"""Stable-Baselines3's algorithms with settings that suit short episodes on 24 features, and few processor cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env.base_vec_env import VecEnv
from torch import nn

from neuralsim.agents.policies.sb3_file import algorithm_class

ON_POLICY = ("ppo", "a2c", "recurrent-ppo")
ALGORITHMS = (*ON_POLICY, "sac", "td3", "dqn")
ROLLOUT = 4096
"""Steps over all environments between two updates of PPO: the same for 256 environments and for 8."""
ACTION_SPACES: Mapping[str, type[spaces.Space[Any]]] = {"sac": spaces.Box, "td3": spaces.Box, "dqn": spaces.Discrete}
"""The action space of an algorithm, where it does not support all."""
BUFFER = 300_000
"""Transitions that off-policy algorithms keep."""
NETWORK = [256, 256]


@dataclass
class Decay:
    """A learning rate that falls linearly to a tenth over the run. ``done``: the share of the run that is over, 0..1; the trainer sets
    it, since SB3 counts from zero whenever ``learn`` is called again."""

    rate: float
    done: float = 0.0

    def __call__(self, _: float) -> float:
        """The present learning rate."""
        return self.rate * (1 - 0.9 * min(1.0, self.done))


def build(algorithm: str, env: VecEnv, pixels: bool, seed: int, device: str) -> tuple[Any, Decay]:
    """Make an SB3 algorithm on ``env``; returns it and its learning rate. Raises ValueError where it does not support the actions."""
    known = ACTION_SPACES.get(algorithm)
    if known is not None and not isinstance(env.action_space, known):
        others = ", ".join(
            a for a in ALGORITHMS if a not in ACTION_SPACES or isinstance(env.action_space, ACTION_SPACES[a])
        )
        raise ValueError(f"--algo {algorithm}: does not act in {env.action_space}; here there are {others}")
    n_envs = env.num_envs
    rate = Decay({"ppo": 7e-4, "recurrent-ppo": 7e-4, "a2c": 7e-4, "dqn": 5e-4}.get(algorithm, 1e-3))
    settings: dict[str, Any] = {}
    if algorithm in ("ppo", "recurrent-ppo"):
        steps = max(1, ROLLOUT // n_envs)
        settings = {"n_steps": steps, "batch_size": min(512, steps * n_envs), "n_epochs": 8}
    elif algorithm == "a2c":
        settings = {"n_steps": 8}
    else:
        # One update for every four transitions: an imagined step costs far less than an update.
        updates = max(1, n_envs // 4)
        settings = {"buffer_size": BUFFER, "learning_starts": 1500, "train_freq": 1, "gradient_steps": updates}
        if algorithm == "sac":
            settings["ent_coef"] = "auto_0.05"  # rewards are small here: from SB3's 1 entropy would rule for long
        if algorithm == "dqn":
            settings |= {"exploration_fraction": 0.3, "target_update_interval": max(1, 2000 // n_envs)}
        if algorithm == "td3":
            size = env.action_space.shape or (1,)
            settings["action_noise"] = NormalActionNoise(np.zeros(size), np.full(size, 0.2))
    kwargs: dict[str, Any] = {"net_arch": NETWORK, "activation_fn": nn.ReLU}
    if algorithm in ON_POLICY:
        kwargs["log_std_init"] = -0.5
    policy = "CnnPolicy" if pixels else "MlpLstmPolicy" if algorithm == "recurrent-ppo" else "MlpPolicy"
    model = algorithm_class(algorithm)(
        policy,
        env,
        learning_rate=rate,
        gamma=0.99 if algorithm in ON_POLICY else 0.98,
        policy_kwargs=kwargs,
        seed=seed,
        device=device,
        **settings,
    )
    return model, rate
