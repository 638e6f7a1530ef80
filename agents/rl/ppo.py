"""PPO in one file, on Gymnasium's vector face of a learned world: an example to read, copy and change.

    python -m neuralsim.agents.rl.ppo --world tworoom --steps 300000

The algorithm is Schulman et al. 2017 (arXiv 1707.06347) with the customs of CleanRL (Huang et al. 2022, JMLR 23:274). Two things
here are often got wrong. These vector environments reset in the step AFTER an episode's end (Gymnasium's NEXT_STEP): that step
ignores its action, so it is no experience, and must be left out of the loss. And an episode that was only cut off (truncated)
goes on in truth: the value of where it was cut off still counts; only one that ended (terminated) is worth nothing further.
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
    """Train PPO inside a learned world, then try it in the true one."""

    world: str = "pusht"
    """Name of the true world: pusht or tworoom."""
    task: str | None = None
    """What to learn; the world's first task by default."""
    steps: int = 1_000_000
    """Environment steps."""
    n_envs: int = 256
    """Dreams side by side."""
    rollout: int = 32
    """Steps of each dream between two updates."""
    epochs: int = 5
    """Passes over a rollout per update."""
    batch: int = 2048
    """Steps per gradient step."""
    rate: float = 5e-4
    """Learning rate; it falls to zero over the run."""
    gamma: float = 0.99
    """What a reward one step later is worth."""
    gae_lambda: float = 0.95
    """Between trusting the value function (0) and the rewards seen (1)."""
    clip: float = 0.2
    """How far an update may move the probability of an action, as a share."""
    value_weight: float = 0.5
    """What the value's error counts in the loss."""
    entropy_weight: float = 0.0
    """What the policy's entropy counts in the loss."""
    trials: int = 50
    """Episodes in the true world at the end."""
    seed: int = 0
    """Seed of everything."""


class Agent(nn.Module):
    """A policy (normal, its spread the same everywhere) and a value function on observations ``(n, d)``."""

    def __init__(self, size: int, actions: int, width: int = 256) -> None:
        super().__init__()
        self.actor, self.critic = (
            nn.Sequential(nn.Linear(size, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out))
            for out in (actions, 1)
        )
        self.log_std = nn.Parameter(torch.full((actions,), -0.5))
        for layer in (m for m in self.modules() if isinstance(m, nn.Linear)):
            nn.init.orthogonal_(layer.weight, 2**0.5 if layer.out_features == width else 0.01)
            nn.init.zeros_(layer.bias)

    def policy(self, observation: torch.Tensor) -> Normal:
        """What it would do."""
        return Normal(self.actor(observation), self.log_std.exp())

    def value(self, observation: torch.Tensor) -> torch.Tensor:
        """The return that it expects from here, ``(n,)``."""
        return self.critic(observation).squeeze(-1)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Stable-Baselines3's predict, so that everything which tries policies can try this one."""
        with torch.no_grad():
            found = self.policy(torch.as_tensor(observation))
            return (found.mean if deterministic else found.sample()).numpy(), None


@dataclass(frozen=True, eq=False)
class Rollout:
    """Steps of every slot, ``(t, n, ...)``. following: values of what the steps led to. terminated: those that ended an episode;
    over: those after which the next step is a reset. real: False for these resets, which are no experience."""

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
    """Real steps alone, ``(b, ...)``, ready to learn from."""

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
    """Acts in ``envs``; remembers between rollouts where they stand and which of them are about to be reset."""

    def __init__(self, envs: gym.vector.VectorEnv[Any, Any, Any], seed: int) -> None:
        self.envs = envs
        self.observation = torch.as_tensor(envs.reset(seed=seed)[0])
        self.over = torch.zeros(envs.num_envs, dtype=torch.bool)
        self.sums = torch.zeros(envs.num_envs, dtype=torch.float64)
        self.returns: list[float] = []

    @torch.no_grad()
    def collect(self, agent: Agent, steps: int) -> Rollout:
        """``steps`` steps in every slot. ``returns`` gains those of the episodes that ended."""
        rows = []
        for _ in range(steps):
            found = agent.policy(self.observation)
            action = found.sample()
            answer = self.envs.step(action.clamp(-1, 1).numpy())
            following, reward, terminated, truncated = (torch.as_tensor(x) for x in answer[:4])
            over = terminated | truncated
            log_prob, value = found.log_prob(action).sum(-1), agent.value(self.observation)
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
    """Advantages by generalized estimation (Schulman et al. 2015, arXiv 1506.02438), of real steps alone.

    Nothing flows back over an episode's end, and so nothing from the step that resets it. What a truncated step led to is the
    next observation even there: NEXT_STEP shows it before it resets.
    """
    surprise = rollout.reward + gamma * rollout.following * ~rollout.terminated - rollout.value
    advantage, later = torch.zeros_like(surprise), torch.zeros_like(surprise[0])
    for t in reversed(range(len(surprise))):
        later = surprise[t] + gamma * gae_lambda * torch.where(rollout.over[t], 0, later)
        advantage[t] = later
    parts = (rollout.observation, rollout.action, rollout.log_prob, advantage, advantage + rollout.value)
    return Batch(*(part[rollout.real] for part in parts))


def loss_of(agent: Agent, batch: Batch, settings: PPOConfig) -> torch.Tensor:
    """PPO's clipped objective, the value's error and the entropy, as one number to make small."""
    found = agent.policy(batch.observation)
    change = (found.log_prob(batch.action).sum(-1) - batch.log_prob).exp()
    worth = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std(correction=0) + 1e-8)
    gain = torch.min(change * worth, change.clamp(1 - settings.clip, 1 + settings.clip) * worth).mean()
    error = 0.5 * (agent.value(batch.observation) - batch.target).square().mean()
    return settings.value_weight * error - gain - settings.entropy_weight * found.entropy().sum(-1).mean()


def train(
    settings: PPOConfig, envs: gym.vector.VectorEnv[Any, Any, Any], agent: Agent
) -> Iterator[tuple[int, list[float]]]:
    """Train ``agent`` in ``envs``; yields after every update: steps so far, and the returns of the episodes that ended in it."""
    optimizer = torch.optim.Adam(agent.parameters(), settings.rate, eps=1e-5)
    collector = RolloutCollector(envs, settings.seed)
    updates = max(1, settings.steps // (settings.rollout * settings.n_envs))
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = settings.rate * (1 - update / updates)
        experience = learnable(collector.collect(agent, settings.rollout), settings.gamma, settings.gae_lambda)
        for _ in range(settings.epochs):
            for rows in torch.randperm(len(experience)).split(settings.batch):
                optimizer.zero_grad()
                loss_of(agent, experience[rows], settings).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        yield (update + 1) * settings.rollout * settings.n_envs, collector.returns
        collector.returns = []


def main(settings: PPOConfig) -> None:
    """Train, say how it goes, and try the agent in the true world."""
    rl_task, world = find_task(settings.world, settings.task), open_world(f"{settings.world}-latent")
    begins = replace(world, starts=rl_task.starts(4096, settings.seed, world.spec.height))
    envs = gym.make_vec(
        "neuralsim/PushT-v0",  # any of NeuralSim's ids: ``world`` says which one is dreamt
        num_envs=settings.n_envs,
        world=begins,
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
    eval_env = RealEvalEnv(world, rl_task, rl_task.starts(settings.trials, 1_000_000 + settings.seed), settings.trials)
    tally = evaluate(agent, eval_env, settings.trials)
    print(f"true return {tally.returns.mean():.2f}, success {tally.success.mean():.0%} of {len(tally)}")


if __name__ == "__main__":
    main(tyro.cli(PPOConfig))
