"""Behaviour cloning: fit a Stable-Baselines3 policy to the observations and actions of demonstrations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

from neuralsim.agents.rl.algorithms import build
from neuralsim.data.episode import Episode
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.imagined.sb3_vec_env import ImaginedVecEnv
from neuralsim.envs.tasks.rl_task import RLTask
from neuralsim.envs.wrappers.features import FeatureEncoder, FeatureVecEnv
from neuralsim.pretrained.world import World
from neuralsim.runtime.device import float32_by_default

BATCH = 64
"""Episodes encoded side by side."""

Tick = Callable[[int, float, float], None]
"""Called after each epoch with its number and the mean squared error of actions (discrete ones: cross-entropy in nats) on training and on
held-out episodes."""


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """Pairs of features, float32 ``(n, d)``, and actions, float32 ``(n, a)`` or discrete int64 ``(n, a)``."""

    features: torch.Tensor
    actions: torch.Tensor

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class CloneConfig:
    """Settings of the optimization."""

    seed: int = 0
    """Of the first weights and the order of the pairs."""
    epochs: int = 200
    """Passes over the training pairs at most."""
    batch: int = 512
    """Pairs per gradient step."""
    rate: float = 1e-3
    """Learning rate."""
    patience: int = 20
    """Epochs without improvement on held-out episodes after which it stops."""


@float32_by_default()
def clone(
    world: World,
    rl_task: RLTask,
    store: EpisodeStore,
    config: CloneConfig | None = None,
    tick: Tick | None = None,
    show: bool = False,
) -> PPO:
    """Fit a PPO, as 'neuralsim rl' builds it, to the demonstrations in ``store``, seen as ``world``'s features.

    Its mean action is fitted by least squares on the training episodes, and the weights with the lowest error on held-out
    ones are kept; its standard deviation is the error that remains there. Discrete actions are fitted by cross-entropy.

    Raises ValueError where the store is of another world, or has no training or no held-out episodes.
    """
    config = config or CloneConfig()
    if store.spec.name != world.spec.name or store.spec.frame_shape != world.spec.frame_shape:
        raise ValueError(
            f"{store.folder}: holds episodes of {store.spec}, and {world.folder} is a world of {world.spec}"
        )
    known, held_out = (demonstrations(world, rl_task, store, held) for held in (False, True))
    model, _ = build("ppo", _feature_env(world, rl_task), False, config.seed, "cpu")
    policy = model.policy
    optimizer = torch.optim.Adam(policy.parameters(), config.rate)
    rng = np.random.default_rng(config.seed)
    best, kept, since = np.inf, copy.deepcopy(policy.state_dict()), 0
    with _progress(show) as bar:
        task = bar.add_task("copying", total=config.epochs)
        for epoch in range(config.epochs):
            total = 0.0
            for rows in np.array_split(rng.permutation(len(known)), -(-len(known) // config.batch)):
                loss = _errors(policy, known, torch.from_numpy(rows)).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(rows)
            with torch.no_grad():
                errors = _errors(policy, held_out).mean(0)
            found = float(errors.mean())
            if tick:
                tick(epoch, total / len(known), found)
            bar.update(task, advance=1, description=f"copying, held-out error {min(best, found):.4f}")
            since = 0 if found < best else since + 1
            if found < best and not world.spec.discrete:
                policy.log_std.data = 0.5 * errors.clamp(min=1e-4).log()
            if found < best:
                best, kept = found, copy.deepcopy(policy.state_dict())
            if since >= config.patience:
                break
    policy.load_state_dict(kept)
    return model


def demonstrations(world: World, rl_task: RLTask, store: EpisodeStore, held_out: bool) -> Demonstrations:
    """Pairs from the training episodes of ``store``, or from the held-out ones, up to the first success in ``rl_task``."""
    rows = store.split(held_out)
    if not len(rows):
        which = "held-out (one in twenty is)" if held_out else "training"
        raise ValueError(f"{store.folder}: has no {which} episodes among its {len(store)}; collect more")
    features, actions = [], []
    for first in range(0, len(rows), BATCH):
        episodes = [store[i] for i in rows[first : first + BATCH]]
        lengths = np.array([_until(rl_task, e, store) for e in episodes])
        encoder = FeatureEncoder(world.model, len(episodes))
        encoder.begin(np.arange(len(episodes)), np.stack([e.frames[0] for e in episodes]))
        for t in range(lengths.max()):
            going = np.flatnonzero(lengths > t)
            taken = np.stack([episodes[i].actions[t] for i in going])
            features.append(encoder.features(going))
            actions.append(taken)
            encoder.append(taken, np.stack([episodes[i].frames[t + 1] for i in going]), going)
    return Demonstrations(torch.from_numpy(np.concatenate(features)), torch.from_numpy(np.concatenate(actions)))


def _until(rl_task: RLTask, episode: Episode, store: EpisodeStore) -> int:
    """Number of actions until the first success: later ones do not show how to get there."""
    ends = episode.terminated
    if rl_task.reward is not None:
        if episode.states is None:
            raise ValueError(f"{store.folder}: its episodes have no true states, by which {rl_task.name!r} is judged")
        states = episode.states.astype(np.float64)
        _, ends = rl_task.reward(states[:-1], episode.actions, states[1:])
    return int(ends.argmax()) + 1 if ends.any() else len(episode)


def _feature_env(world: World, rl_task: RLTask) -> VecEnv:
    """An environment of ``world``'s features; an algorithm needs its spaces alone."""
    if not rl_task.has_real_world:
        return ImaginedVecEnv(world, 1, observation="features", task=rl_task.task)
    return FeatureVecEnv(DummyVecEnv([lambda: rl_task.env((world.spec.height, world.spec.width))]), world.model)


def _errors(policy: ActorCriticPolicy, pairs: Demonstrations, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor:
    """Squared errors ``(n, a)`` of the policy's mean action; of discrete ones their negative log-likelihood in nats, ``(n, 1)``."""
    distribution, actions = policy.get_distribution(pairs.features[rows]), pairs.actions[rows]
    if actions.is_floating_point():
        return (distribution.mode() - actions).square()
    return -distribution.log_prob(actions[:, 0] if actions.shape[1] == 1 else actions)[:, None]


def _progress(show: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not show, transient=True)
