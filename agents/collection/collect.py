"""The command ``collect``: make episodes of a real world, or of any Gymnasium environment, on all cores, resumable.

Episode i of a collection is a function of ``(seed, i)`` alone, so neither the number of workers nor an interruption changes
the data: of n episodes in a shard, shard s always ends up holding episodes n s to n s + n - 1.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import signal
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from neuralsim.agents.policies.resolve import check_policy, policy_label, resolve_policy
from neuralsim.agents.policies.rollout import RolloutConfig, rollout
from neuralsim.data.episode import Episode, knows_actions
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.registry import RealWorld, get_real_world
from neuralsim.runtime.command import CommandOutput
from neuralsim.runtime.files import check_space, folder_lock, sweep_leftovers
from neuralsim.runtime.progress import progress
from neuralsim.version import __version__

EPISODES_PER_SHARD = 100
"""Episodes in a shard at most."""
SHARD_BYTES = 96_000_000
"""Largest size of a shard; its worker holds it in memory."""
NEAR_GOAL = 0.2
"""Share of episodes that start near the goal, where a world has one."""
SPARE_BYTES = 64 * 2**20
"""Disk space that a collection leaves free."""


@dataclass(frozen=True)
class CollectConfig:
    """Collect episodes of a real world, or of any registered Gymnasium environment."""

    world: str = "pusht"
    """Name of the world: pusht, tworoom or carracing."""
    out: Path | None = None
    """Folder of the episode store; data/<world> or data/<ID> by default."""
    episodes: int = 2000
    """Episodes in the end; existing ones count, so the same command resumes."""
    steps: int | None = None
    """Actions in an episode at most. By default 100, carracing 300, and with --env its own time limit (1000 at most)."""
    seed: int = 0
    """Seed of the collection."""
    size: int | tuple[int, int] = 64
    """Frame side in pixels, or height and width; multiples of 8."""
    policy: str = "explorer"
    """The policy that acts: explorer; random; noop; expert, which demonstrates pusht; a Stable-Baselines3 .zip, not unpickled; or
    module:function. The last runs your code, found in this folder: function(env, seed) returns an object with SB3's
    predict(), on the observations and actions of env itself."""
    near_goal: float | None = None
    """Share of episodes that start near the goal, so that success is seen from both sides: 0.2 in pusht and tworoom."""
    env: str | None = None
    """Instead of a world: the id of any registered Gymnasium environment that has frames, or module:ID."""
    env_kwargs: str = "{}"
    """With --env: further arguments of gym.make, as JSON, e.g. '{"continuous": false}'."""
    frames: Literal["auto", "render", "observation"] = "auto"
    """With --env: the source of frames; auto takes observations where these are images, else rgb_array renders."""
    fit: Literal["stretch", "pad"] = "stretch"
    """With --env: resize its images by stretching them, or pad them with black."""
    repeat: int = 1
    """With --env: steps that an action is repeated for; rewards are summed."""
    rate: float | None = None
    """With --env: its steps a second; by default as its metadata says."""
    action_names: tuple[str, ...] = ()
    """With --env: names of its action dimensions; numbered by default."""
    video_only: bool = False
    """Keep the frames alone, as in a video: no actions, states or rewards. A world learns from it how scenes change."""
    workers: int = 2
    """Processes."""
    json: Path | None = None
    """Also write the figures to this file."""

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("steps", 1), ("seed", 0), ("workers", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name}: expected {least} or more, got {value}")
        if self.near_goal is not None and not 0 <= self.near_goal <= 1:
            raise ValueError(f"--near-goal: expected a share from 0 to 1, got {self.near_goal:g}")
        real_world = self.real_world
        real_world.make_spec(self.size)  # raises for a size that there is not
        check_policy(self.policy, real_world)
        if self.near_goal is not None and real_world.seeded:
            raise ValueError(f"--near-goal: episodes of {self.env or self.world} begin by seed alone; leave it out")

    @property
    def real_world(self) -> RealWorld:
        """The record of the world."""
        if self.env is None:
            self._check_env_alone()
            return get_real_world(self.world)
        if self.world != CollectConfig.world:
            raise ValueError(f"--env {self.env}: stands for a world, got world {self.world!r} too; give one of them")
        from neuralsim.envs.gym_adapter.env import GymEnvConfig
        from neuralsim.envs.tasks.gym_world import gym_real_world

        names = ("env", "env_kwargs", "frames", "fit", "repeat", "rate", "action_names")
        return gym_real_world(GymEnvConfig(*(getattr(self, name) for name in names)))

    def _check_env_alone(self) -> None:
        for name in ("env_kwargs", "frames", "fit", "repeat", "rate", "action_names"):
            if getattr(self, name) != getattr(CollectConfig, name):
                raise ValueError(f"--{name.replace('_', '-')}: is for --env; world {self.world!r} has its own")

    @property
    def most_steps(self) -> int:
        """Actions in an episode at most."""
        return self.real_world.most_collected if self.steps is None else self.steps

    @property
    def folder(self) -> Path:
        """Folder of the store."""
        return (
            Path("data") / self.real_world.make_spec(self.size).name.replace("/", "-") if self.out is None else self.out
        )

    @property
    def near_share(self) -> float:
        """Share of episodes that start near the goal."""
        return NEAR_GOAL if self.near_goal is None else self.near_goal

    @property
    def bytes_per_episode(self) -> int:
        """Largest disk space of one episode, nearly all of it frames."""
        spec = self.real_world.make_spec(self.size)
        return (self.most_steps + 1) * (spec.height * spec.width * 3 + 64)

    @property
    def per_shard(self) -> int:
        """Episodes in a shard."""
        fit = max(1, SHARD_BYTES // self.bytes_per_episode)
        return min(EPISODES_PER_SHARD, self.real_world.episodes_per_shard or fit)

    @property
    def source(self) -> dict[str, Any]:
        """The origin of the episodes as the store records it; empty for a registered world."""
        made = dict(self.real_world.source)
        return made | {"steps": self.most_steps} if made else {}


def collect_episode(config: CollectConfig, index: int, env: gym.Env[np.ndarray, Any] | None = None) -> Episode:
    """Make episode ``index`` of the collection: at most ``config.most_steps`` steps of ``config.policy``.

    In worlds that can be put at a state it goes on after success; others end it. ``env``, the world's, saves making one.
    """
    real_world = config.real_world
    made = real_world.make_env(config.size) if env is None else env
    try:
        return _run_episode(config, real_world, made, index)
    finally:
        if env is None:
            made.close()


def _run_episode(config: CollectConfig, real_world: RealWorld, env: gym.Env[np.ndarray, Any], index: int) -> Episode:
    rng, near_goal = _begin(config, index)
    policy = resolve_policy(config.policy, real_world, env, int(rng.integers(2**31)))
    if real_world.seeded:
        reset: dict[str, Any] = {"seed": int(rng.integers(2**31))}
    else:
        reset = {"options": {"state": real_world.draw_state(rng, near_goal)}}
    settings = RolloutConfig(reset, config.most_steps, real_world.seeded, states=bool(real_world.state_names))
    provenance = {
        "seed": config.seed * 1_000_003 + index,
        "collection_seed": config.seed,
        "index": index,
        "policy": _policy_name(config, near_goal),
        "version": __version__,
    }
    episode = rollout(policy, env, settings, provenance)
    return Episode.of_video(episode.frames, provenance) if config.video_only else episode


def collect(config: CollectConfig) -> Generator[tuple[int, int, float], None, None]:
    """Run the collection; yields (episodes done, episodes wanted, seconds) first and after every shard.

    Interrupt or kill it and call again to resume: every finished episode is kept. A later call may ask for more episodes;
    a short last shard is then filled up. Raises ValueError where ``config.folder`` holds anything but this collection,
    BlockingIOError where another process is at work there, DiskFullError when the disk is full, and RuntimeError where
    workers would run the main program again because it has no ``__main__`` guard.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(1)  # a worker that imports a main program without a guard: see _check_guard
    with folder_lock(config.folder, "collecting"):
        with _shards_locked(config.folder, fcntl.LOCK_EX):  # workers of a killed collection may still write an episode
            sweep_leftovers(config.folder)
            store, present = _open_store(config)
        done, begin = len(present), time.perf_counter()
        jobs = [
            (config, shard)
            for shard in range(-(-config.episodes // config.per_shard))
            if not present.issuperset(_indices(config, shard))
        ]
        missing = max(config.episodes - done, 0)
        go_on = "ask for fewer --episodes or choose another --out"
        check_space(store.folder, missing * config.bytes_per_episode, f"{missing} episodes", go_on, SPARE_BYTES)
        yield done, config.episodes, 0.0
        try:
            for count in _run(jobs, min(config.workers, len(jobs))):
                done += count
                yield done, config.episodes, time.perf_counter() - begin
        finally:
            store.finish_shards(_index_of)  # those of workers that were interrupted


def _open_store(config: CollectConfig) -> tuple[EpisodeStore, set[int]]:
    """Open or make the store, and join what interrupted writers left; returns it, and the indices of its episodes."""
    if (config.folder / "store.json").is_file():
        _check_source(EpisodeStore(config.folder), config)
    real_world = config.real_world
    store = EpisodeStore.create(config.folder, real_world.make_spec(config.size), real_world.state_names)
    if not len(store) and store.info.source != config.source:
        store.set_source(config.source)
    present = _check_same_collection(store, config)
    store.finish_shards(_index_of)
    return store, present


def _run(jobs: list[tuple[CollectConfig, int]], workers: int) -> Iterator[int]:
    if workers <= 1:
        yield from map(_collect_shard, jobs)
        return
    context = multiprocessing.get_context("spawn")
    _check_guard(context)
    # Workers ignore ctrl-C: the parent hears it and ends them.
    pool = context.Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        yield from pool.imap_unordered(_collect_shard, jobs)
    finally:
        pool.terminate()
        pool.join()


def _check_guard(context: multiprocessing.context.SpawnContext) -> None:
    """Raise RuntimeError where a worker cannot import the main program: a pool would start such workers again and again."""
    probe = context.Process(target=time.time)
    probe.start()
    probe.join()
    if probe.exitcode:
        raise RuntimeError(
            "collect: worker processes import the main program, which starts collecting itself; put the call under "
            "if __name__ == '__main__': or collect with workers=1"
        )


def _collect_shard(job: tuple[CollectConfig, int]) -> int:
    """Write shard number ``job[1]``, or fill it up; returns how many episodes were made."""
    config, shard = job
    with _shards_locked(config.folder, fcntl.LOCK_SH):
        return _make_shard(config, shard)


def _make_shard(config: CollectConfig, shard: int) -> int:
    real_world = config.real_world
    env = None if real_world.fresh_env else real_world.make_env(config.size)
    parent, made = multiprocessing.parent_process(), 0
    # A short shard stems from a collection that asked for fewer episodes, or was killed; its episodes are kept.
    store = EpisodeStore(config.folder)
    there = {_index_of(store.provenance(i)) for i in range(len(store))}
    with store.open_shard(shard, _index_of) as writer:
        for i in _indices(config, shard):
            if i in there:
                continue
            if parent is not None and not parent.is_alive():
                sys.exit(1)  # killed: the next collection in this folder goes on
            writer.add(collect_episode(config, i, env))
            made += 1
    return made


def _index_of(provenance: dict[str, Any]) -> int:
    return int(provenance["index"])


def _begin(config: CollectConfig, index: int) -> tuple[np.random.Generator, bool]:
    """The random generator of episode ``index``; and True where the episode starts near the goal."""
    rng = np.random.default_rng([config.seed, index])
    return rng, not config.real_world.seeded and bool(rng.random() < config.near_share)


def _policy_name(config: CollectConfig, near_goal: bool) -> str:
    return policy_label(config.policy) + ("-near-goal" if near_goal else "")


def _indices(config: CollectConfig, shard: int) -> range:
    return range(shard * config.per_shard, min((shard + 1) * config.per_shard, config.episodes))


def _check_source(store: EpisodeStore, config: CollectConfig) -> None:
    """Raise a ValueError where ``store`` records another origin than that of ``config``."""
    there, asked = store.info.source, config.source
    if not len(store) or there == asked:
        return
    if there.keys() != asked.keys():
        raise ValueError(
            f"{store.folder}: holds episodes of {there.get('env', store.spec.name)!r} that this command does not make; choose "
            "another folder with --out"
        )
    name = next(name for name in there if there[name] != asked[name])
    raise ValueError(
        f"{store.folder}: holds a collection made with other arguments (--{'env-' * (name == 'kwargs')}{name} {there[name]}, "
        f"asked for {asked[name]}); give the same ones to go on with it, or choose another --out"
    )


def _check_same_collection(store: EpisodeStore, config: CollectConfig) -> set[int]:
    """The indices of the episodes in ``store``; a ValueError for one that ``config`` would not have made."""
    present = set()
    for i in range(len(store)):
        origin = store.provenance(i)
        index = origin.get("index")
        if index is None or "collection_seed" not in origin:
            raise ValueError(f"{store.folder}: holds episodes that were not collected ({origin}); choose another --out")
        length = int(store.lengths[i])
        whole = length < config.most_steps and config.real_world.seeded and _ended(store, i)
        ours = {
            "--seed": (origin["collection_seed"], config.seed),
            "--steps": (length, length if whole else config.most_steps),
            "--video-only": (not knows_actions(origin), config.video_only),
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


def _ended(store: EpisodeStore, i: int) -> bool:
    """True where the world ended episode ``i``; where the source records the limit of steps, all may have been."""
    return bool(store.info.source) or bool(store[i].terminated[-1])


@contextmanager
def _shards_locked(folder: Path, how: int) -> Iterator[None]:
    """Hold the lock of the folder's shards: LOCK_SH while one is made, LOCK_EX to wait until no worker makes any.

    A worker that holds it and then sees its parent alive knows that the next collection here will wait.
    """
    with open(folder / ".making", "w") as lock:
        fcntl.flock(lock, how)
        yield


def collect_command(config: CollectConfig) -> CommandOutput:
    """Run `collect` behind a progress bar and return its figures."""
    for remark in config.real_world.remarks(config.size):
        print(remark)
    before, frames, seconds = -1, 0, 0.0
    with progress(passing=False) as bar, closing(collect(config)) as steps:
        task = bar.add_task("episodes", total=config.episodes)
        for step in steps:
            done, wanted, seconds = step
            if before < 0:
                before, frames = done, EpisodeStore(config.folder).frames
                bar.reset(task, total=wanted, completed=done)  # the rate counts what is made now
            bar.update(task, completed=done)
    store = EpisodeStore(config.folder)
    made, now = len(store) - before, store.frames - frames
    figures = {
        "store": str(config.folder),
        "episodes": len(store),
        "frames": store.frames,
        "collected_now": made,
        "seconds": round(seconds, 1),
        "frames_per_second": round(now / seconds, 1) if made else None,
    }
    news = f"{made} of them now, {figures['frames_per_second']} frames/s" if made else "there was nothing to add"
    line = f"{config.folder}: {len(store)} episodes, {store.frames} frames; {news}"
    return CommandOutput(lines=[line], json=config.json, figures=figures)
