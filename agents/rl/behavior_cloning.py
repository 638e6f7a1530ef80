"""clone: copy demonstrations into a Stable-Baselines3 policy by behaviour cloning: what it sees, and what was done there."""

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

TOGETHER = 64
"""Episodes encoded side by side."""

Tick = Callable[[int, float, float], None]
"""Told after each epoch: its number, and the mean squared error of actions (of choices, nats) in training and on held-out episodes."""


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """What was seen, float32 ``(n, d)``, and what was done there, float32 ``(n, a)`` or choices int64 ``(n, a)``."""

    seen: torch.Tensor
    done: torch.Tensor

    def __len__(self) -> int:
        return len(self.seen)


def clone(
    world: World,
    rl_task: RLTask,
    store: EpisodeStore,
    seed: int = 0,
    epochs: int = 200,
    batch: int = 512,
    rate: float = 1e-3,
    patience: int = 20,
    tick: Tick | None = None,
    show: bool = False,
) -> PPO:
    """A PPO, as 'neuralsim rl' builds it, whose mean action copies ``store``'s from ``world``'s features: least squares on the
    training episodes, as good as it ever was on the held-out ones; it stops ``patience`` epochs after that. Its spread is what
    the copy still misses there. Of choices it learns how likely each is.

    Raises ValueError where the store is of another world, or has no training or no held-out episodes.
    """
    if store.spec.name != world.spec.name or store.spec.frame_shape != world.spec.frame_shape:
        raise ValueError(
            f"{store.folder}: holds episodes of {store.spec}, and {world.folder} is a world of {world.spec}"
        )
    known, unseen = (demonstrations(world, rl_task, store, held_out) for held_out in (False, True))
    model, _ = build("ppo", _shown(world, rl_task), False, seed, "cpu")
    policy = model.policy
    optimizer = torch.optim.Adam(policy.parameters(), rate)
    rng = np.random.default_rng(seed)
    best, kept, since = np.inf, copy.deepcopy(policy.state_dict()), 0
    with _progress(show) as bar:
        task = bar.add_task("copying", total=epochs)
        for epoch in range(epochs):
            total = 0.0
            for rows in np.array_split(rng.permutation(len(known)), -(-len(known) // batch)):
                loss = _missed(policy, known, torch.from_numpy(rows)).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(rows)
            with torch.no_grad():
                missed = _missed(policy, unseen).mean(0)
            found = float(missed.mean())
            if tick:
                tick(epoch, total / len(known), found)
            bar.update(task, advance=1, description=f"copying, held-out error {min(best, found):.4f}")
            since = 0 if found < best else since + 1
            if found < best and not world.spec.discrete:
                policy.log_std.data = 0.5 * missed.clamp(min=1e-4).log()
            if found < best:
                best, kept = found, copy.deepcopy(policy.state_dict())
            if since >= patience:
                break
    policy.load_state_dict(kept)
    return model


def demonstrations(world: World, rl_task: RLTask, store: EpisodeStore, held_out: bool) -> Demonstrations:
    """The pairs of the training episodes of ``store``, or of the held-out ones, as far as ``rl_task`` had not come true."""
    rows = store.split(held_out)
    if not len(rows):
        which = "held-out (one in twenty is)" if held_out else "training"
        raise ValueError(f"{store.folder}: has no {which} episodes among its {len(store)}; collect more")
    seen, done = [], []
    for first in range(0, len(rows), TOGETHER):
        episodes = [store[i] for i in rows[first : first + TOGETHER]]
        lengths = np.array([_until(rl_task, e, store) for e in episodes])
        encoder = FeatureEncoder(world.model, len(episodes))
        encoder.begin(np.arange(len(episodes)), np.stack([e.frames[0] for e in episodes]))
        for t in range(lengths.max()):
            going = np.flatnonzero(lengths > t)
            actions = np.stack([episodes[i].actions[t] for i in going])
            seen.append(encoder.features(going))
            done.append(actions)
            encoder.append(actions, np.stack([episodes[i].frames[t + 1] for i in going]), going)
    return Demonstrations(torch.from_numpy(np.concatenate(seen)), torch.from_numpy(np.concatenate(done)))


def _until(rl_task: RLTask, episode: Episode, store: EpisodeStore) -> int:
    """Actions until the wish came true: what a policy does afterwards shows nobody how to get there."""
    ends = episode.terminated
    if rl_task.reward is not None:
        if episode.states is None:
            raise ValueError(f"{store.folder}: its episodes have no true states, by which {rl_task.name!r} is judged")
        states = episode.states.astype(np.float64)
        _, ends = rl_task.reward(states[:-1], episode.actions, states[1:])
    return int(ends.argmax()) + 1 if ends.any() else len(episode)


def _shown(world: World, rl_task: RLTask) -> VecEnv:
    """An environment that shows ``world``'s features; a learner asks it for its spaces alone."""
    if not rl_task.has_real_world:
        return ImaginedVecEnv(world, 1, observation="features", task=rl_task.task)
    return FeatureVecEnv(DummyVecEnv([lambda: rl_task.env((world.spec.height, world.spec.width))]), world.model)


def _missed(policy: ActorCriticPolicy, pairs: Demonstrations, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor:
    """Squared errors ``(n, a)`` of the policy's mean action; of choices, how unlikely it holds them, in nats ``(n, 1)``."""
    held, done = policy.get_distribution(pairs.seen[rows]), pairs.done[rows]
    if done.is_floating_point():
        return (held.mode() - done).square()
    return -held.log_prob(done[:, 0] if done.shape[1] == 1 else done)[:, None]


def _progress(show: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not show, transient=True)
