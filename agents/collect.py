"""collect: make episodes of a true world with a scripted explorer or an expert, on all cores, resumable.

Episode i of a collection is a function of ``(seed, i)`` alone, so neither the number of workers nor an interruption changes
the data: shard s always ends up holding episodes 100 s to 100 s + 99.
"""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import shutil
import signal
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np

import neuralsim
from neuralsim.agents.collector import Collector, find_collector
from neuralsim.episode import Episode, EpisodeStore

EPISODES_PER_SHARD = 100
SPARE_BYTES = 64 * 2**20
"""Disk space that a collection leaves free."""


@dataclass(frozen=True)
class Collect:
    """Collect episodes of a true world."""

    world: str = "pusht"
    """Name of the world: pusht or tworoom."""
    out: Path | None = None
    """Folder of the episode store; data/<world> by default."""
    episodes: int = 2000
    """How many episodes there should be in the end; existing ones count, so the same command resumes."""
    steps: int = 100
    """Actions in each episode."""
    seed: int = 0
    """Seed of the collection."""
    size: int = 64
    """Frame side in pixels."""
    policy: Literal["explorer", "oracle"] = "explorer"
    """Who acts: explorer shows what can happen; oracle demonstrates the task, by looking ahead in the true simulator."""
    near_goal: float = 0.2
    """Share of episodes that start near the goal (Push-T's block, TwoRoom's agent), so that success is seen from both sides."""
    workers: int = 2
    """Processes."""
    json: Path | None = None
    """Also write the figures to this file."""

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("steps", 1), ("seed", 0), ("workers", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name}: expected {least} or more, got {getattr(self, name)}")
        if not 0 <= self.near_goal <= 1:
            raise ValueError(f"--near-goal: expected a share from 0 to 1, got {self.near_goal:g}")
        self.collector.spec(self.size)  # says what worlds and sizes there are
        if self.policy == "oracle" and self.collector.expert is None:
            raise ValueError(f"--policy oracle: nobody demonstrates world {self.world!r}; there is --policy explorer")

    @property
    def collector(self) -> Collector:
        """How the world's episodes are made."""
        return find_collector(self.world)

    @property
    def folder(self) -> Path:
        """Where the episodes go."""
        return Path("data") / self.world if self.out is None else self.out

    @property
    def bytes_per_episode(self) -> int:
        """Disk space of one episode, nearly all of it frames."""
        return (self.steps + 1) * (self.size * self.size * 3 + 64)


def collect_episode(config: Collect, index: int, env: gym.Env[np.ndarray, np.ndarray] | None = None) -> Episode:
    """Episode ``index`` of the collection: ``config.steps`` steps of ``config.policy``, going on after success.

    ``env``, one of the collector's, saves making a new one.
    """
    number = config.seed * 1_000_003 + index
    rng, near_goal = _begin(config, index)
    collector = config.collector
    env = env or collector.env(config.size)
    make = collector.expert if config.policy == "oracle" and collector.expert else collector.explorer
    policy = make(int(rng.integers(2**31)))
    observation, _ = env.reset(options={"state": collector.start(rng, near_goal)})
    frames, states, actions = [np.asarray(env.render())], [observation], []
    rewards, terminated = [], []
    memory = None
    for _ in range(config.steps):
        action, memory = policy.predict(observation, memory)
        observation, reward, success, _, _ = env.step(action)
        frames.append(np.asarray(env.render()))
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
            "policy": _policy_name(config, near_goal),
            "version": neuralsim.__version__,
        },
    )


def collect(config: Collect) -> Generator[tuple[int, int, float], None, None]:
    """Run the collection; yields (episodes done, episodes wanted, seconds) first and after every shard.

    Interrupt or kill it and call again to resume. A later call may ask for more episodes: what is there stays, a short
    last shard is filled up. Raises ValueError where ``config.folder`` holds anything but this collection, BlockingIOError
    where another process is collecting there, OSError when the disk is full.
    """
    collector = config.collector
    with _alone_in(config.folder):
        store = EpisodeStore.create(config.folder, collector.spec(config.size), collector.state_names)
        present = _check_same_collection(store, config)
        jobs = [
            (config, shard)
            for shard in range(-(-config.episodes // EPISODES_PER_SHARD))
            if not present.issuperset(_indices(config, shard))
        ]
        done, begin = len(present), time.perf_counter()
        _check_space(store.folder, config, max(config.episodes - done, 0))
        yield done, config.episodes, 0.0
        for count in _run(jobs, min(config.workers, len(jobs))):
            done += count
            yield done, config.episodes, time.perf_counter() - begin


def _run(jobs: list[tuple[Collect, int]], workers: int) -> Iterator[int]:
    if workers <= 1:
        yield from map(_collect_shard, jobs)
        return
    # Workers ignore ctrl-C: the parent hears it and ends them.
    pool = multiprocessing.get_context("spawn").Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        yield from pool.imap_unordered(_collect_shard, jobs)
    finally:
        pool.terminate()
        pool.join()


def _collect_shard(job: tuple[Collect, int]) -> int:
    """Write shard number ``job[1]``, or fill it up; returns how many episodes were made."""
    config, shard = job
    with _shards_locked(config.folder, fcntl.LOCK_SH):
        return _make_shard(config, shard)


def _make_shard(config: Collect, shard: int) -> int:
    store = EpisodeStore(config.folder)
    env = config.collector.env(config.size)
    # A short shard stems from a collection that asked for fewer episodes; what it holds is kept.
    where = {store.provenance(i)["index"]: i for i in range(len(store))}
    old = {index: i for index, i in where.items() if index // EPISODES_PER_SHARD == shard}
    indices = sorted({*_indices(config, shard), *old})
    parent = multiprocessing.parent_process()
    episodes = []
    for i in indices:
        if parent is not None and not parent.is_alive():
            sys.exit(1)  # killed: whoever resumes makes this shard
        episodes.append(store[old[i]] if i in old else collect_episode(config, i, env))
    try:
        if old:
            store.replace(shard, episodes)
        else:
            store.add(episodes, shard=shard)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        message = f"{config.folder}: the disk is full; make room and run the same command again"
        raise OSError(errno.ENOSPC, message) from error
    return len(indices) - len(old)


def _begin(config: Collect, index: int) -> tuple[np.random.Generator, bool]:
    """Episode ``index``'s generator, and whether the episode starts near the goal."""
    rng = np.random.default_rng([config.seed, index])
    return rng, bool(rng.random() < config.near_goal)


def _policy_name(config: Collect, near_goal: bool) -> str:
    return config.policy + ("-near-goal" if near_goal else "")


def _indices(config: Collect, shard: int) -> range:
    return range(shard * EPISODES_PER_SHARD, min((shard + 1) * EPISODES_PER_SHARD, config.episodes))


def _check_same_collection(store: EpisodeStore, config: Collect) -> set[int]:
    """The indices of the episodes that ``store`` has, each of which ``config`` would have made."""
    present = set()
    for i in range(len(store)):
        origin = store.provenance(i)
        index = origin.get("index")
        if index is None or "collection_seed" not in origin:
            raise ValueError(f"{store.folder}: holds episodes that were not collected ({origin}); choose another --out")
        ours = {
            "--seed": (origin["collection_seed"], config.seed),
            "--steps": (int(store.lengths[i]), config.steps),
            "--near-goal, policy": (origin["policy"], _policy_name(config, _begin(config, index)[1])),
        }
        for name, (there, asked) in ours.items():
            if there != asked:
                raise ValueError(
                    f"{store.folder}: holds a collection made with other arguments (episode {index}: {name} {there}, "
                    f"asked for {asked}); give the same ones to go on with it, or choose another --out"
                )
        present.add(index)
    return present


def _check_space(folder: Path, config: Collect, episodes: int) -> None:
    """An OSError before the first episode is better than one after the thousandth."""
    needed, free = episodes * config.bytes_per_episode, shutil.disk_usage(folder).free
    if episodes and needed + SPARE_BYTES > free:
        raise OSError(
            errno.ENOSPC,
            f"{folder}: {episodes} episodes need {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left; "
            "ask for fewer --episodes or choose another --out",
        )


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which goes with the process however it dies, and sweep up what killed writers left.

    Workers whose parent was killed may still finish the shard they have begun; they are waited for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".collecting", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"{folder}: another process is collecting here; wait for it or choose another --out"
            raise BlockingIOError(errno.EWOULDBLOCK, message) from error
        with _shards_locked(folder, fcntl.LOCK_EX):
            _sweep(folder)
        try:
            yield
        finally:
            _sweep(folder)


@contextmanager
def _shards_locked(folder: Path, how: int) -> Iterator[None]:
    """Hold the lock of the folder's shards: LOCK_SH while one is made, LOCK_EX to wait until nobody makes any.

    A worker that has it and then sees its parent alive knows that whoever collects here next will wait.
    """
    with open(folder / ".making", "w") as lock:
        fcntl.flock(lock, how)
        yield


def _sweep(folder: Path) -> None:
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)
