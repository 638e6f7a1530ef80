"""collect: make episodes of a true world with scripted explorers, on all cores, resumable.

Episode i of a collection is a function of ``(seed, i)`` alone, so neither the number of workers nor an interruption changes the data.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import neuralsim
from neuralsim.agents.explorer import PushTExplorer
from neuralsim.envs.pusht import STATE_NAMES, PushTRealEnv, pusht_spec, random_state
from neuralsim.episode import Episode, EpisodeStore

EPISODES_PER_SHARD = 100


@dataclass(frozen=True)
class Collect:
    """Collect episodes of the true world."""

    out: Path = Path("data/pusht")
    """Folder of the episode store."""
    episodes: int = 2000
    """How many episodes there should be in the end; existing ones count, so the same command resumes."""
    steps: int = 100
    """Actions in each episode."""
    seed: int = 0
    """Seed of the collection."""
    size: int = 64
    """Frame side in pixels."""
    near_goal: float = 0.2
    """Share of episodes that start with the block near its goal, so that success is seen from both sides."""
    workers: int = 2
    """Processes."""


def collect_episode(config: Collect, index: int, env: PushTRealEnv | None = None) -> Episode:
    """Episode ``index`` of the collection: 100 steps of the scripted explorer, going on after success."""
    number = config.seed * 1_000_003 + index
    rng = np.random.default_rng([config.seed, index])
    env = env or PushTRealEnv(size=config.size, observation="state")
    near_goal = bool(rng.random() < config.near_goal)
    explorer = PushTExplorer(seed=int(rng.integers(2**31)))
    observation, _ = env.reset(options={"state": random_state(rng, near_goal)})
    frames, states, actions = [env.render()], [observation], []
    rewards, terminated = [], []
    segment = None
    for _ in range(config.steps):
        action, segment = explorer.predict(observation, segment)
        observation, reward, success, _, _ = env.step(action)
        frames.append(env.render())
        states.append(observation)
        actions.append(action)
        rewards.append(reward)
        terminated.append(success)
    truncated = np.zeros(config.steps, bool)
    truncated[-1] = True
    return Episode(
        frames=np.stack(frames),
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float32),
        terminated=np.array(terminated),
        truncated=truncated,
        states=np.stack(states).astype(np.float32),
        provenance={
            "seed": number,
            "collection_seed": config.seed,
            "index": index,
            "policy": "explorer" + ("-near-goal" if near_goal else ""),
            "version": neuralsim.__version__,
        },
    )


def _collect_shard(job: tuple[Collect, int]) -> int:
    config, shard = job
    store = EpisodeStore(config.out)
    env = PushTRealEnv(size=config.size, observation="state")
    first = shard * EPISODES_PER_SHARD
    count = min(EPISODES_PER_SHARD, config.episodes - first)
    store.add([collect_episode(config, i, env) for i in range(first, first + count)], shard=shard)
    return count


def collect(config: Collect) -> Iterator[tuple[int, int, float]]:
    """Run the collection; yields (episodes done, episodes wanted, seconds) after every shard. Interrupt and call again to resume."""
    store = EpisodeStore.create(config.out, pusht_spec(config.size), STATE_NAMES)
    shards = -(-config.episodes // EPISODES_PER_SHARD)
    present = {int(p.name.split("-")[1]) for p in store.folder.glob("shard-*")}
    jobs = [(config, s) for s in range(shards) if s not in present]
    done, begin = len(store), time.perf_counter()
    yield done, config.episodes, 0.0
    if not jobs:
        return
    with multiprocessing.get_context("spawn").Pool(min(config.workers, len(jobs))) as pool:
        for count in pool.imap_unordered(_collect_shard, jobs):
            done += count
            yield done, config.episodes, time.perf_counter() - begin
