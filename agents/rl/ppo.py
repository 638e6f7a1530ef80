"""PPO in one file, on the Gymnasium vector environment of a learned world: an example to read, copy and change.

    python -m neuralsim.agents.rl.ppo --world tworoom --steps 300000

The algorithm is Schulman et al. 2017 (arXiv 1707.06347) with the conventions of CleanRL (Huang et al. 2022, JMLR 23:274). Two
details are often done wrong. These vector environments reset in the step AFTER an episode's end (Gymnasium's NEXT_STEP): that
step ignores its action, so it is no experience, and must be left out of the loss. And a truncated episode would have gone on:
the value of its last observation still counts; only after a terminated one is the value zero.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn
from torch.distributions import Normal

from neuralsim.agents.evaluation.eval_envs import RealEvalEnv
from neuralsim.agents.evaluation.rollout import evaluate
from neuralsim.envs.tasks.rl_task import find_task
from neuralsim.pretrained.world import open_world


@dataclass(frozen=True)
class PPOConfig:
    """Train PPO inside a learned world, then evaluate it in the real environment."""

    world: str = "pusht"
    """Name of the real world: pusht or tworoom."""
    task: str | None = None
    """The task; the world's first by default."""
    steps: int = 1_000_000
    """Environment steps."""
    n_envs: int = 256
    """Imagined episodes side by side."""
    rollout: int = 32
    """Steps of each episode between two updates."""
    epochs: int = 5
    """Passes over a rollout per update."""
    batch: int = 2048
    """Steps per gradient step."""
    rate: float = 5e-4
    """Learning rate; it falls to zero over the run."""
    gamma: float = 0.99
    """Discount factor."""
    gae_lambda: float = 0.95
    """Lambda of the advantage estimate: from the value function alone (0) to observed rewards alone (1)."""
    clip: float = 0.2
    """Largest relative change of an action's probability in an update."""
    value_weight: float = 0.5
    """Weight of the value error in the loss."""
    entropy_weight: float = 0.0
    """Weight of the policy's entropy in the loss."""
    n_eval_episodes: int = 50
    """Episodes in the real environment at the end."""
    seed: int = 0
    """Seed of all random numbers."""


class Agent(nn.Module):
    """A policy (normal, with one standard deviation everywhere) and a value function on observations ``(n, d)``."""

    def __init__(self, size: int, actions: int, width: int = 256) -> None:
        super().__init__()
        self.actor, self.critic = (
            nn.Sequential(nn.Linear(size, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out))
            for out in (actions, 1)
        )
        self.log_std = nn.Parameter(torch.full((actions,), -0.5, dtype=torch.float32))
        for layer in (m for m in self.modules() if isinstance(m, nn.Linear)):
            nn.init.orthogonal_(layer.weight, 2**0.5 if layer.out_features == width else 0.01)
            nn.init.zeros_(layer.bias)
        self.float()

    def policy(self, observation: torch.Tensor) -> Normal:
        """The distribution of actions."""
        return Normal(self.actor(observation), self.log_std.exp())

    def value(self, observation: torch.Tensor) -> torch.Tensor:
        """The expected return, ``(n,)``."""
        return self.critic(observation).squeeze(-1)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Stable-Baselines3's predict, so that this agent can be evaluated like any other policy."""
        with torch.no_grad():
            distribution = self.policy(torch.as_tensor(observation))
            return (distribution.mean if deterministic else distribution.sample()).numpy(), None


@dataclass(frozen=True, eq=False)
class Rollout:
    """Steps of every environment, ``(t, n, ...)``. following: values of the next observations. terminated: steps that ended an
    episode; over: steps after which the next one is a reset. real: False for these resets, which are no experience."""

    observation: torch.Tensor
    action: torch.Tensor
    log_prob: torch.Tensor
    value: torch.Tensor
    following: torch.Tensor
    reward: torch.Tensor
    terminated: torch.Tensor
    over: torch.Tensor
    real: torch.Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Real steps alone, ``(b, ...)``, for the loss."""

    observation: torch.Tensor
    action: torch.Tensor
    log_prob: torch.Tensor
    advantage: torch.Tensor
    target: torch.Tensor

    def __len__(self) -> int:
        return len(self.action)

    def __getitem__(self, rows: torch.Tensor) -> Batch:
        return Batch(*(getattr(self, f.name)[rows] for f in fields(self)))


class RolloutCollector:
    """Acts in ``envs``, and keeps their observations between rollouts, and which of them are about to be reset."""

    def __init__(self, envs: gym.vector.VectorEnv[Any, Any, Any], seed: int) -> None:
        self.envs = envs
        self.observation = torch.as_tensor(envs.reset(seed=seed)[0])
        self.over = torch.zeros(envs.num_envs, dtype=torch.bool)
        self.sums = torch.zeros(envs.num_envs, dtype=torch.float64)
        self.returns: list[float] = []

    @torch.no_grad()
    def collect(self, agent: Agent, steps: int) -> Rollout:
        """Take ``steps`` steps in every environment; ``returns`` gains those of the episodes that ended."""
        rows = []
        for _ in range(steps):
            distribution = agent.policy(self.observation)
            action = distribution.sample()
            outcome = self.envs.step(action.clamp(-1, 1).numpy())
            following, reward, terminated, truncated = (torch.as_tensor(x) for x in outcome[:4])
            over = terminated | truncated
            log_prob, value = distribution.log_prob(action).sum(-1), agent.value(self.observation)
            rows.append(
                (self.observation, action, log_prob, value, value, reward.float(), terminated, over, ~self.over)
            )
            self.sums += reward
            self.returns += self.sums[over].tolist()
            self.sums[over] = 0
            self.observation, self.over = following, over
        rollout = Rollout(*(torch.stack(column) for column in zip(*rows, strict=True)))
        last = agent.value(self.observation)[None]
        return replace(rollout, following=torch.cat([rollout.value[1:], last]))


def learnable(rollout: Rollout, gamma: float, gae_lambda: float) -> Batch:
    """Advantages of real steps by generalized estimation (Schulman et al. 2015, arXiv 1506.02438).

    Nothing flows back over an episode's end, and so nothing from the step that resets it. The observation after a truncated
    step is the next one even there: NEXT_STEP shows it before it resets.
    """
    errors = rollout.reward + gamma * rollout.following * ~rollout.terminated - rollout.value
    advantage, later = torch.zeros_like(errors), torch.zeros_like(errors[0])
    for t in reversed(range(len(errors))):
        later = errors[t] + gamma * gae_lambda * torch.where(rollout.over[t], 0, later)
        advantage[t] = later
    parts = (rollout.observation, rollout.action, rollout.log_prob, advantage, advantage + rollout.value)
    return Batch(*(part[rollout.real] for part in parts))


def loss_of(agent: Agent, batch: Batch, settings: PPOConfig) -> torch.Tensor:
    """The loss: PPO's clipped objective, the value error and the entropy."""
    distribution = agent.policy(batch.observation)
    ratio = (distribution.log_prob(batch.action).sum(-1) - batch.log_prob).exp()
    advantage = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std(correction=0) + 1e-8)
    gain = torch.min(ratio * advantage, ratio.clamp(1 - settings.clip, 1 + settings.clip) * advantage).mean()
    error = 0.5 * (agent.value(batch.observation) - batch.target).square().mean()
    return settings.value_weight * error - gain - settings.entropy_weight * distribution.entropy().sum(-1).mean()


def train(
    settings: PPOConfig, envs: gym.vector.VectorEnv[Any, Any, Any], agent: Agent
) -> Iterator[tuple[int, list[float]]]:
    """Train ``agent`` in ``envs``; yields after every update the steps so far, and the returns of the episodes that ended in it."""
    optimizer = torch.optim.Adam(agent.parameters(), settings.rate, eps=1e-5)
    collector = RolloutCollector(envs, settings.seed)
    updates = max(1, settings.steps // (settings.rollout * settings.n_envs))
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = settings.rate * (1 - update / updates)
        experience = learnable(collector.collect(agent, settings.rollout), settings.gamma, settings.gae_lambda)
        for _ in range(settings.epochs):
            for rows in torch.randperm(len(experience), dtype=torch.int64).split(settings.batch):
                optimizer.zero_grad()
                loss_of(agent, experience[rows], settings).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        yield (update + 1) * settings.rollout * settings.n_envs, collector.returns
        collector.returns = []


def main(settings: PPOConfig) -> None:
    """Train, print the progress, and evaluate the agent in the real environment."""
    rl_task, world = find_task(settings.world, settings.task), open_world(f"{settings.world}-latent")
    from_resets = replace(world, starts=rl_task.starts(4096, settings.seed, world.spec.height))
    envs = gym.make_vec(
        "neuralsim/PushT-v0",  # any of NeuralSim's ids: ``world`` says which one is imagined
        num_envs=settings.n_envs,
        world=from_resets,
        observation="features",
        task=rl_task.task,
        horizon=rl_task.horizon,
    )
    torch.manual_seed(settings.seed)  # first weights, actions, shuffles
    agent = Agent(world.model.feature_size, world.spec.action_size)
    begin = time.perf_counter()
    for steps, returns in train(settings, envs, agent):
        if returns:
            rate = steps / (time.perf_counter() - begin)
            print(f"{steps:>9} steps, {rate:,.0f} a second, imagined return {np.mean(returns):.2f}")
    eval_env = RealEvalEnv(
        world, rl_task, rl_task.starts(settings.n_eval_episodes, 1_000_000 + settings.seed), settings.n_eval_episodes
    )
    result = evaluate(agent, eval_env, settings.n_eval_episodes)
    print(f"true return {result.returns.mean():.2f}, success {result.success.mean():.0%} of {len(result)}")


if __name__ == "__main__":
    main(tyro.cli(PPOConfig))
