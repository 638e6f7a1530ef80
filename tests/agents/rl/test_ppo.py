"""Promises of the single-file PPO: what the resets of NEXT_STEP bring is never learned from, ends and cut-offs are told apart,
and it learns."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields, replace

import gymnasium as gym
import numpy as np
import pytest
import torch

import neuralsim
from neuralsim.agents.rl.ppo import Agent, PPOConfig, Rollout, RolloutCollector, learnable, loss_of, train
from neuralsim.pretrained.world import World

assert neuralsim  # registers the worlds
GAMMA, LAMBDA = 0.9, 0.8


def dreams(world: World, n_envs: int, horizon: int) -> gym.vector.VectorEnv:
    return gym.make_vec(
        "neuralsim/PushT-v0",
        num_envs=n_envs,
        world=world,
        observation="features",
        horizon=horizon,
        uncertainty_limit=math.inf,
    )


@pytest.fixture
def rollout(dot_world: World) -> Rollout:
    """40 steps of 8 slots in episodes of 6 steps at most, some of which end before."""
    torch.manual_seed(0)
    collector = RolloutCollector(dreams(dot_world, 8, 6), seed=3)
    agent = Agent(2, 2)
    with torch.no_grad():  # towards the middle, so that some arrive
        agent.actor[0].weight[:2] = torch.eye(2)
        agent.actor[2].weight[:2, :2] = torch.eye(2)
        agent.actor[4].weight[:, :2] = -3 * torch.eye(2)
    return collector.collect(agent, 40)


def poisoned(rollout: Rollout) -> Rollout:
    """The same with no numbers wherever a reset stands for a step."""
    spoilt = {
        name: torch.where(rollout.real.view(*rollout.real.shape, *[1] * (x.ndim - 2)), x, torch.nan)
        for name in ("action", "log_prob", "reward", "following")
        for x in (getattr(rollout, name),)
    }
    return replace(rollout, **spoilt)


def test_the_steps_after_an_end_are_the_unreal_ones(rollout: Rollout) -> None:
    assert rollout.real[0].all()
    assert torch.equal(~rollout.real[1:], rollout.over[:-1])
    assert (~rollout.real).sum() > 20
    assert rollout.terminated.sum() > 3
    assert (rollout.over & ~rollout.terminated).sum() > 3
    assert not rollout.over[~rollout.real].any()
    assert not rollout.reward[~rollout.real].any(), "the environment gives 0 for them"
    moved = (rollout.observation[1:] - rollout.observation[:-1]).norm(dim=-1)
    assert moved[rollout.real[:-1]].max() < 0.3, "a step is a tenth of its action and a little chance"
    begun = rollout.observation[1:][~rollout.real[:-1]].norm(dim=-1)
    torch.testing.assert_close(begun, torch.full_like(begun, 0.6), rtol=0, atol=0.02, msg="a reset leads to a start")


def test_an_unreal_step_enters_neither_the_loss_nor_the_advantages_of_others(rollout: Rollout) -> None:
    clean, spoilt = (learnable(r, GAMMA, LAMBDA) for r in (rollout, poisoned(rollout)))
    assert len(clean) == int(rollout.real.sum()) < rollout.real.numel()
    for field in fields(clean):
        torch.testing.assert_close(getattr(clean, field.name), getattr(spoilt, field.name), rtol=0, atol=0)
    gradients = []
    for batch in (clean, spoilt):
        torch.manual_seed(1)
        agent = Agent(2, 2)
        loss_of(agent, batch, PPOConfig()).backward()
        gradients.append([p.grad for p in agent.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()
    kept_all = replace(rollout, reward=poisoned(rollout).reward, real=torch.ones_like(rollout.real))
    assert loss_of(Agent(2, 2), learnable(kept_all, GAMMA, LAMBDA), PPOConfig()).isnan(), "without the mask it would"


def test_advantages_are_each_episodes_own_by_hand(rollout: Rollout) -> None:
    """Sums of later surprises, each (gamma lambda) times less; a cut-off episode's last step counts what it led to, an ended
    one's does not."""
    steps, n_envs = rollout.real.shape
    wanted = torch.full((steps, n_envs), torch.nan)
    for i in range(n_envs):
        for t in range(steps):
            if not rollout.real[t, i]:
                continue
            total = 0.0
            for k in range(t, steps):
                after = 0.0 if rollout.terminated[k, i] else float(rollout.following[k, i])
                surprise = float(rollout.reward[k, i]) + GAMMA * after - float(rollout.value[k, i])
                total += (GAMMA * LAMBDA) ** (k - t) * surprise
                if rollout.over[k, i]:
                    break
            wanted[t, i] = total
    found = learnable(rollout, GAMMA, LAMBDA)
    torch.testing.assert_close(found.advantage, wanted[rollout.real], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.target, (wanted + rollout.value)[rollout.real], rtol=1e-4, atol=1e-5)


def test_what_a_step_led_to_is_valued_where_it_was_seen(dot_world: World) -> None:
    """Across rollouts too: the second begins where the first ended, resets included, and the returns are whole episodes'."""
    torch.manual_seed(0)
    agent = Agent(2, 2)
    halves, whole = RolloutCollector(dreams(dot_world, 4, 5), seed=1), RolloutCollector(dreams(dot_world, 4, 5), seed=1)
    parts = []
    for collector, lengths in ((halves, (9, 8)), (whole, (17,))):
        torch.manual_seed(2)
        parts.append([collector.collect(agent, n) for n in lengths])
    (first, second), (all_of_it,) = parts
    for field in fields(Rollout):
        joined = torch.cat([getattr(first, field.name), getattr(second, field.name)])
        torch.testing.assert_close(joined, getattr(all_of_it, field.name))
    assert halves.returns == whole.returns
    with torch.no_grad():
        torch.testing.assert_close(first.following[-1], agent.value(second.observation[0]))
    over = all_of_it.over.sum()
    assert len(whole.returns) == over
    assert sum(whole.returns) == pytest.approx(float(all_of_it.reward.sum() - whole.sums.sum()), rel=1e-5)


def test_it_learns_a_miniature(dot_world: World) -> None:
    """Minus the distance to the middle, until it is near: the sooner the better."""
    settings = PPOConfig(steps=64 * 16 * 25, n_envs=64, rollout=16, batch=256, rate=3e-3)
    torch.manual_seed(0)
    agent = Agent(2, 2)
    history = list(train(settings, dreams(dot_world, 64, 20), agent))
    assert [steps for steps, _ in history] == [1024 * k for k in range(1, 26)]
    first, last = (np.mean([r for _, returns in part for r in returns]) for part in (history[:3], history[-3:]))
    assert last > first + 3
    actions, memory = agent.predict(np.array([[0.6, 0.0], [0.0, -0.6]], np.float32), deterministic=True)
    assert memory is None
    assert actions[0, 0] < -0.3
    assert actions[1, 1] > 0.3


def test_it_is_a_program() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "neuralsim.agents.rl.ppo", "--help"], capture_output=True, text=True, check=True
    )
    assert "--gae-lambda" in ran.stdout
    assert "Train PPO inside a learned world" in ran.stdout
