"""The command ``bench``: speed of a world on this machine, through each kind of environment, beside the real simulator.

Values compare only within one run: the machine's load and the rate of a reference matrix product stand beside them. Each value is
the best of several repeats (other programs can only slow it down), with the median next to it.
"""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rich.console import Console

from neuralsim.agents.collection.collect import CollectConfig, collect
from neuralsim.agents.rl.algorithms import build
from neuralsim.agents.rl.vec_envs import make_imagined_vec_env
from neuralsim.data.store import EpisodeStore
from neuralsim.data.windows import WindowSampler
from neuralsim.envs.imagined.sb3_vec_env import ImaginedVecEnv
from neuralsim.envs.registry import RealWorld, find_metrics, find_real_world
from neuralsim.envs.tasks.gym_world import real_env_of
from neuralsim.envs.tasks.real_world import load
from neuralsim.envs.tasks.rl_task import find_task
from neuralsim.envs.wrappers.features import FeatureEnv
from neuralsim.evaluation.long_horizon import random_keys
from neuralsim.evaluation.report import Metric, Report, Target
from neuralsim.imagination import Imagination
from neuralsim.models.latent_world import LatentWorld
from neuralsim.noise import Noise
from neuralsim.pretrained.world import World, open_world, training_record
from neuralsim.runtime.device import float32_by_default, inference, pick_dtype
from neuralsim.runtime.machine import circumstances, resident_megabytes
from neuralsim.spec import WorldSpec
from neuralsim.task import FunctionTask, LearnedTask

REPEATS = 5
WINDOW = 16
"""Frames in a training window."""
ENV_ID = "neuralsim/PushT-v0"

TARGETS = {
    "env_1": Target(least=30),
    "env_32": Target(least=300),
    "fork_32": Target(most=5),
    "true_ratio": Target(least=0.7),
    "import": Target(most=0.3),
    "windows": Target(least=1500),
}
"""Targets of a shipped world on two CPU cores."""
COMPACT_TARGETS = {"features_256": Target(least=20_000), "ppo_256": Target(least=5_000)}
"""Further targets of a compact world."""


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the best of the repeats and their median."""

    best: float
    median: float


def time_calls(
    calls: Sequence[Callable[[], object]],
    seconds: float,
    repeats: int = REPEATS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Time each of ``calls`` for about ``seconds`` in all, in turns, so that a change of load affects all of them alike."""
    for call in calls:
        call()
    counts = []
    for call in calls:
        begin = clock()
        call()
        counts.append(max(1, math.ceil(seconds / repeats / max(clock() - begin, 1e-7))))
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for times, call, count in zip(found, calls, counts, strict=True):
            begin = clock()
            for _ in range(count):
                call()
            times.append((clock() - begin) / count)
    return [Timing(min(times), statistics.median(times)) for times in found]


@float32_by_default()
def run_bench(world: World, seconds: float = 2.0, store: EpisodeStore | None = None, show: bool = False) -> Report:
    """Time everything on ``world`` (which must have starts), ``seconds`` for each value, and return the report.

    The real environment and the state estimator are timed too, where the world has them. ``store``: episodes for the window
    sampler; by default those the world was trained on, where they are still there, or a few made for it. ``show`` names on
    stderr what is being timed. Raises ValueError for a store of another world, a world without starts, or no time.
    """
    if store is not None and store.spec.frame_shape != world.spec.frame_shape:
        raise ValueError(
            f"bench: the world's frames are {world.spec.frame_shape}, those of {store.folder} {store.spec.frame_shape}"
        )
    if not seconds > 0:
        raise ValueError(f"seconds: expected more than 0 for each value, got {seconds!r}")
    if world.starts is None:
        raise ValueError(
            f"bench: the world in {world.folder} has no starts.npz, so its environments cannot begin by themselves"
        )
    rows: list[Metric] = []
    console = Console(stderr=True, quiet=not show)
    with console.status("matrix product") as status:
        for name, part in (
            ("matrix product", _reference),
            ("environments", lambda s: _environments(world, s)),
            ("bare model", lambda s: _bare(world, s)),
            ("snapshots", lambda s: _snapshots(world, s)),
            ("learning", lambda s: _learning(world, s)),
            ("real environment", lambda s: _real(world, s)),
            ("training data", lambda s: _data(world, s, store)),
            ("import", lambda s: _import()),
        ):
            if name == "learning" and not (
                isinstance(world.model, LatentWorld) and find_real_world(world.spec.name) is not None
            ):
                continue
            status.update(name)
            rows += part(seconds)
            gc.collect()
    if isinstance(world.model, LatentWorld):
        rows = [replace(row, target=COMPACT_TARGETS.get(row.key, row.target)) for row in rows]
    rows.append(Metric("memory", "memory of this process", resident_megabytes(), unit="MB"))
    return Report(
        f"speed of {world.spec.name}",
        tuple(rows),
        circumstances() | {"denoise_steps": getattr(world.model, "denoise_steps", None)},
    )


def _rate(key: str, label: str, timing: Timing, count: float, unit: str) -> Metric:
    """A rate per second, of ``count`` per call."""
    value, median = count / timing.best, count / timing.median
    return Metric(key, label, value, unit=unit, median=median, better="high", target=TARGETS.get(key))


def _milliseconds(key: str, label: str, timing: Timing) -> Metric:
    return Metric(
        key, label, 1e3 * timing.best, unit="ms", median=1e3 * timing.median, better="low", target=TARGETS.get(key)
    )


def _reference(seconds: float) -> Iterator[Metric]:
    n = 1024
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        a = torch.ones(n, n, dtype=dtype)
        (timing,) = time_calls([lambda a=a: a @ a], seconds / 4)  # type: ignore[misc]
        yield _rate(f"matmul_{name}", f"reference: {n}² matrix product, {name}", timing, 2 * n**3 * 1e-9, "Gflop/s")


def _actions(world: World, rows: int) -> Iterator[np.ndarray]:
    """Endless random actions, ``(rows, a)`` each, of the environments' action space."""
    spec = world.spec
    keys = random_keys(np.random.default_rng(0), 4096, spec.action_size * rows, spec.action_choices * rows)
    keys = spec.to_space(keys.reshape(4096, rows, spec.action_size))
    while True:
        yield from keys


def _environments(world: World, seconds: float) -> Iterator[Metric]:
    # No episode ends, so that steps are timed and not resets; the task, if there is one, is evaluated all the same.
    has_task = {"reward", "terminated"} <= set(world.model.head_names)
    settings: dict[str, Any] = {
        "world": world,
        "horizon": None,
        "uncertainty_limit": math.inf,
        "task": LearnedTask(threshold=math.inf) if has_task else FunctionTask(lambda before, *_: np.zeros(len(before))),
    }
    env = gym.make(ENV_ID, **settings)
    env.reset(seed=0)
    actions = _actions(world, 1)

    (timing,) = time_calls([lambda: env.step(next(actions)[0])], seconds)
    yield _rate("env_1", "imagined steps, gym.make, frames, batch 1", timing, 1, "steps/s")
    env.close()
    for key, num, observation in (
        ("env_32", 32, "pixels"),
        ("features_32", 32, "features"),
        ("features_256", 256, "features"),
    ):
        envs = gym.make_vec(ENV_ID, num_envs=num, observation=observation, **settings)
        envs.reset(seed=0)
        batch = _actions(world, num)
        (timing,) = time_calls([lambda e=envs, b=batch: e.step(next(b))], seconds)  # type: ignore[misc]
        shown = "frames" if observation == "pixels" else "features only"
        yield _rate(key, f"imagined steps, gym.make_vec, {shown}, batch {num}", timing, num, "steps/s")
        envs.close()
    sb3 = ImaginedVecEnv(num_envs=32, **settings)
    sb3.reset()
    sb3_actions = _actions(world, 32)
    (timing,) = time_calls([lambda: sb3.step(next(sb3_actions))], seconds)
    yield _rate("sb3_32", "imagined steps, Stable-Baselines3 VecEnv, frames, batch 32", timing, 32, "steps/s")
    sb3.close()


def _bare(world: World, seconds: float) -> Iterator[Metric]:
    model, starts = world.model, world.starts
    assert starts is not None
    with inference(model.device, pick_dtype("auto", model.device)):
        for batch in (1, 32):
            rows = np.arange(batch) % len(starts)
            frames = torch.as_tensor(starts.frames[rows], device=model.device)
            past = torch.as_tensor(starts.actions[rows], device=model.device)
            rng = Noise.from_seeds(range(batch), model.device)
            action = torch.as_tensor(np.tile(world.spec.rest_action(), (batch, 1)), device=model.device)
            state = model.encode(frames, past)
            step, decode, encode = time_calls(
                [
                    lambda s=state, a=action, r=rng: model.decode(model.step(s, a, r)),  # type: ignore[misc]
                    lambda s=state: model.decode(s),  # type: ignore[misc]
                    lambda f=frames, p=past: model.encode(f, p),  # type: ignore[misc]
                ],
                seconds,
            )
            yield _rate(f"model_{batch}", f"bare model, step and decode, batch {batch}", step, batch, "steps/s")
            yield _milliseconds(f"decode_{batch}", f"decode, batch {batch}", decode)
            yield _milliseconds(
                f"encode_{batch}", f"encode a history of {frames.shape[1]} frames, batch {batch}", encode
            )


def _snapshots(world: World, seconds: float) -> Iterator[Metric]:
    imagination = Imagination(world.model, num_envs=1, starts=world.starts, horizon=None, uncertainty_limit=math.inf)
    imagination.reset(seeds=0)
    snap = imagination.snapshot()
    fork, snapshot, restore = time_calls(
        [lambda: imagination.fork(32), imagination.snapshot, lambda: imagination.restore(snap)], seconds
    )
    yield _milliseconds("fork_32", "fork(32)", fork)
    yield _milliseconds("snapshot", "snapshot", snapshot)
    yield _milliseconds("restore", "restore", restore)


def _learning(world: World, seconds: float) -> Iterator[Metric]:
    """Steps of PPO as 'neuralsim rl' runs it in imagination, updates included; and the real simulator's rate of the same
    observations."""
    rl_task, n_envs = find_task(world.spec.name), 256
    envs = make_imagined_vec_env(world, rl_task, rl_task.starts(n_envs, 0, world.spec.height), n_envs)
    ppo, _ = build("ppo", envs, False, 0, str(world.model.device))
    steps = ppo.n_steps * n_envs

    def learn() -> None:
        ppo.learn(steps, reset_num_timesteps=False)

    (timing,) = time_calls([learn], seconds, repeats=3)
    label = f"PPO in imagination, end to end, features, {n_envs} environments"
    yield _rate("ppo_256", label, timing, steps, "steps/s")
    env, keys = FeatureEnv(rl_task.env(world.spec.height), world.model), _actions(world, 1)
    env.reset(seed=0)

    def step() -> None:
        *_, terminated, truncated, _ = env.step(next(keys)[0])
        if terminated or truncated:
            env.reset()

    (timing,) = time_calls([step], seconds)
    yield _rate("true_features", "real environment, step and features, one process", timing, 1, "steps/s")


def _real(world: World, seconds: float) -> Iterator[Metric]:
    """The real environment, where it can be made."""
    real_world = find_real_world(world.spec.name)
    if real_world is not None and real_world.bare_env is not None:
        yield from _real_and_bare(real_world, world.spec, seconds)
        return
    try:
        env = real_env_of(world.spec, training_record(world).get("source"))
    except ValueError:
        return
    env.reset(seed=0)
    actions = _actions(world, 1)

    def step() -> None:
        *_, terminated, truncated, _ = env.step(next(actions)[0])
        if terminated or truncated:
            env.reset()

    (timing,) = time_calls([step], seconds)
    yield _rate("true", "real environment, step and frame", timing, 1, "steps/s")
    env.close()


def _real_and_bare(real_world: RealWorld, spec: WorldSpec, seconds: float) -> Iterator[Metric]:
    """The real environment and the bare one it wraps, under the same actions, frames of the same size, in turns."""
    assert real_world.bare_env is not None
    envs = real_world.make_env(spec.height, "pixels"), load(real_world.bare_env)(spec.height)
    keys = random_keys(np.random.default_rng(0), 4096, spec.action_size)

    def stepper(env: gym.Env[Any, Any]) -> Callable[[], None]:
        env.reset(seed=0)
        actions = itertools.cycle(keys)

        def step() -> None:
            env.step(next(actions))

        return step

    mine, theirs = time_calls([stepper(env) for env in envs], 2 * seconds)
    yield _rate("true", "real environment, step and frame", mine, 1, "steps/s")
    yield _rate("bare", "bare environment, step and frame", theirs, 1, "steps/s")
    yield Metric(
        "true_ratio",
        "real environment over the bare one",
        theirs.best / mine.best,
        median=theirs.median / mine.median,
        better="high",
        target=TARGETS["true_ratio"],
    )
    for env in envs:
        env.close()


def _data(world: World, seconds: float, store: EpisodeStore | None) -> Iterator[Metric]:
    metrics = find_metrics(world.spec)
    with _episodes(world, store) as episodes:
        if episodes is None:
            return
        length = min(WINDOW, int(episodes.lengths.max()) + 1)
        acted = bool(episodes.acted(range(len(episodes))).any())
        sampler = WindowSampler(episodes, length, held_out=not len(episodes.split(False)), actions=acted)
        rng = np.random.default_rng(0)
        frames = np.concatenate([episodes[i].frames for i in range(min(4, len(episodes)))])[:128]
        calls: list[Callable[[], object]] = [lambda: sampler.sample(64, rng)]
        if metrics is not None:
            calls.append(lambda: metrics.estimator(frames))
        sample, *estimate = time_calls(calls, seconds)
    yield _rate("windows", f"training windows of {length} frames", sample, 64, "windows/s")
    if estimate:
        yield _rate("reader", "states estimated from frames", estimate[0], len(frames), "frames/s")


@contextmanager
def _episodes(world: World, store: EpisodeStore | None) -> Iterator[EpisodeStore | None]:
    """``store``; or the one the world was trained on; or a temporary one of four short episodes; or None."""
    trained = training_record(world).get("store")
    if store is not None:
        yield store
    elif trained and (Path(trained) / "store.json").is_file():
        yield EpisodeStore(trained)
    elif find_real_world(world.spec.name) is not None and world.spec.height == world.spec.width:
        with tempfile.TemporaryDirectory(prefix="neuralsim-bench-") as folder:
            config = CollectConfig(
                world.spec.name, out=Path(folder), episodes=4, steps=40, seed=1, size=world.spec.height, workers=1
            )
            for _ in collect(config):
                pass
            yield EpisodeStore(folder)
    else:
        yield None


def _import() -> Iterator[Metric]:
    """Time of ``import neuralsim`` in a new process that has imported torch and gymnasium."""
    program = "import time, torch, gymnasium; begin = time.perf_counter(); import neuralsim; print(time.perf_counter() - begin)"
    times = [
        float(
            subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()[
                -1
            ]
        )
        for _ in range(2)
    ]
    yield Metric(
        "import",
        "import neuralsim, beyond torch and gymnasium",
        min(times),
        unit="s",
        median=statistics.median(times),
        better="low",
        target=TARGETS["import"],
    )


@dataclass(frozen=True)
class BenchConfig:
    """Measure the speed of a world on this machine."""

    world: str = "pusht"
    """Name of a shipped world, or the folder of one of your own."""
    seconds: float = 2.0
    """Time spent on each figure."""
    data: Path | None = None
    """Episode store for the window sampler's figure; a few episodes are made without one."""
    json: Path | None = None
    """Also write the figures to this file."""
    device: str = "auto"
    """Device of the model: auto, cpu or cuda."""


def bench_command(config: BenchConfig) -> tuple[Report, list[Path]]:
    """Run `run_bench` on the config's world; return the report, and the files it wrote."""
    store = None if config.data is None else EpisodeStore(config.data)
    report = run_bench(open_world(config.world, config.device), config.seconds, store, show=True)
    return report, [] if config.json is None else [report.save(config.json)]
