"""Promises of collecting: an episode is a function of (seed, index); interruptions and workers leave no trace in the data."""

from __future__ import annotations

import errno
import fcntl
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arm import skip_without_arm

from neuralsim import cli
from neuralsim.agents.collection import collect as module
from neuralsim.agents.collection.collect import CollectConfig, collect, collect_episode
from neuralsim.data.episode import Episode
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.pusht.env import STEP_UNITS
from neuralsim.envs.registry import real_worlds
from neuralsim.envs.tworoom import env as tworoom


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a store; hidden ones (the lock) are no data."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.startswith(".")
    }


def run(config: CollectConfig) -> list[tuple[int, int]]:
    return [(done, wanted) for done, wanted, _ in collect(config)]


@pytest.fixture(params=real_worlds())
def small(request: pytest.FixtureRequest, tmp_path: Path) -> CollectConfig:
    if request.param == "metaworld":
        skip_without_arm()
    return CollectConfig(request.param, tmp_path / "store", episodes=11, steps=3, size=16, workers=1)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EPISODES_PER_SHARD", 4)


@pytest.mark.parametrize("world", real_worlds())
def test_an_episode_is_a_function_of_seed_and_index(world: str) -> None:
    if world == "metaworld":
        skip_without_arm()
    config = CollectConfig(world, seed=3, steps=12)
    one, again, other = collect_episode(config, 7), collect_episode(config, 7), collect_episode(config, 8)
    for name in ("frames", "actions", "rewards", "terminated", "truncated", "states"):
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name), err_msg=name)
    assert not np.array_equal(one.frames, other.frames)
    assert one.provenance["index"] == 7
    assert one.provenance["collection_seed"] == 3
    assert one.provenance["seed"] != other.provenance["seed"]


def test_frames_actions_and_states_of_an_episode_agree() -> None:
    episode = collect_episode(CollectConfig(seed=1, steps=60), 4)
    assert episode.frames.shape == (61, 64, 64, 3)
    assert episode.states is not None
    moved = np.diff(episode.states[:, :2], axis=0)
    inside = ((episode.states[1:, :2] > 17) & (episode.states[1:, :2] < 495)).all(1)
    assert inside.sum() > 30
    wanted = STEP_UNITS * episode.actions
    free = inside & (np.abs(moved - wanted).max(1) < 1e-3)
    assert free.sum() > 0.9 * inside.sum()  # the rest are pushes against a block that a wall holds
    assert (np.abs(moved) <= np.abs(wanted) + 1e-3).all()
    assert episode.truncated.tolist() == [False] * 59 + [True]


def test_a_tworoom_episode_repeats_from_its_own_states_and_actions() -> None:
    """Frames, actions, rewards and ends agree with the true world stepped again from the states as stored."""
    episode = collect_episode(CollectConfig("tworoom", seed=1, steps=60, near_goal=1.0), 4)
    assert episode.states is not None
    env = tworoom.TwoRoomRealEnv()
    for i, action in enumerate(episode.actions):
        env.reset(options={"state": episode.states[i]})
        assert np.abs(env.render().astype(int) - episode.frames[i]).max() <= 1  # the stored state is rounded
        _, reward, terminated, *_ = env.step(action)
        np.testing.assert_allclose(env.state(), episode.states[i + 1], atol=1e-3)
        assert reward == pytest.approx(episode.rewards[i], abs=1e-5)
        assert terminated == episode.terminated[i]


def test_wanderers_cover_what_the_world_must_know() -> None:
    """Over 60 episodes: both rooms alike, the door often and both ways, walls touched and left, gentle, full and no actions,
    standing at the goal and not."""
    episodes = [collect_episode(CollectConfig("tworoom", steps=100, size=8), i) for i in range(60)]
    states = np.stack([e.states for e in episodes if e.states is not None]).astype(np.float64)
    actions = np.stack([e.actions for e in episodes])
    right = states[..., 0] > np.mean(tworoom.WALL)
    assert 0.35 < right.mean() < 0.65
    for before in (True, False):
        passed = (right[:, :-1] == before) & (right[:, 1:] != before)
        assert passed.sum() > 0.3 * len(episodes)
    assert np.mean((right != right[:, :1]).any(1)) > 0.6
    free = np.abs(np.diff(states, axis=1) - tworoom.STEP_UNITS * actions).max(2) < 1e-2
    assert 0.6 < free.mean() < 0.9
    size = np.abs(actions).max(2)
    assert (size == 0).mean() > 0.03
    assert (size > 0.99).mean() > 0.15
    assert ((size > 0) & (size < 0.5)).mean() > 0.2
    cells = np.unique((states[:, :, :] // 64).astype(int).reshape(-1, 2), axis=0)
    assert len(cells) == 64, "a part of the arena was never visited"
    ended = [e.terminated.any() for e in episodes]
    assert 0.05 < np.mean(ended) < 0.5


def test_explorers_cover_the_behaviours_the_world_must_know() -> None:
    """Over 40 episodes: gentle and full-scale actions, long holds, standing still, contact, success and failure."""
    episodes = [collect_episode(CollectConfig(steps=60, size=8), i) for i in range(40)]
    actions = np.concatenate([e.actions for e in episodes])
    size = np.abs(actions).max(1)
    assert (size == 0).mean() > 0.01
    assert (size > 0.99).mean() > 0.15
    assert ((size > 0) & (size < 0.5)).mean() > 0.1
    held = [
        np.diff(np.flatnonzero(np.r_[True, (np.diff(e.actions, axis=0) != 0).any(1), True])).max() for e in episodes
    ]
    assert np.mean(np.array(held) >= 10) > 0.3
    states = [e.states for e in episodes if e.states is not None]
    block_moved = [np.abs(np.diff(s[:, 2:4], axis=0)).max() > 1 for s in states]
    assert np.mean(block_moved) > 0.6
    assert any(e.terminated.any() for e in episodes)
    assert np.mean([e.terminated.any() for e in episodes]) < 0.5


def test_an_interrupted_collection_resumes_to_identical_data(small: CollectConfig, small_shards: None) -> None:
    assert run(small) == [(0, 11), (4, 11), (8, 11), (11, 11)]
    straight = contents(small.out)
    shutil.rmtree(small.out)
    work = collect(small)
    next(work), next(work)
    work.close()
    assert run(small) == [(4, 11), (8, 11), (11, 11)]
    assert contents(small.out) == straight
    assert run(small) == [(11, 11)]


def test_more_episodes_later_are_the_same_as_all_at_once(small: CollectConfig, small_shards: None) -> None:
    run(small)
    straight = contents(small.out)
    shutil.rmtree(small.out)
    for episodes in (1, 6, 7, 11):  # each leaves a short last shard for the next to fill up
        steps = run(replace(small, episodes=episodes))
        assert steps[-1] == (episodes, episodes)
        assert len(EpisodeStore(small.out)) == episodes
    assert contents(small.out) == straight
    assert run(replace(small, episodes=5)) == [(11, 5)]  # fewer: nothing to do, nothing deleted
    assert contents(small.out) == straight


def test_kill_9_and_the_number_of_workers_leave_no_trace(tmp_path: Path) -> None:
    config = CollectConfig(out=tmp_path / "one", episodes=230, steps=2, size=8, workers=1)
    run(config)
    straight = contents(config.out)
    killed = replace(config, out=tmp_path / "two", workers=2)
    program = f"""
from pathlib import Path
from neuralsim.agents.collection.collect import CollectConfig, collect
if __name__ == "__main__":
    for _ in collect(CollectConfig(out=Path({str(killed.out)!r}), episodes=230, steps=2, size=8, workers=2)): pass
"""
    script = tmp_path / "collect.py"
    script.write_text(program)
    with subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(killed.out.glob("shard-*")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    run(replace(killed, workers=1))
    assert contents(killed.out) == straight
    assert not list(killed.out.glob(".writing-*"))


def test_a_resumed_collection_waits_for_the_workers_of_a_killed_one(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers are about to write when their parent is killed, and do so at the worst moment for whoever does not wait:
    between its look for their shards and its writing of the same ones."""
    config = CollectConfig(out=tmp_path / "one", episodes=11, steps=2, size=8, workers=1)
    run(config)
    straight = contents(config.out)
    killed, go = replace(config, out=tmp_path / "two"), tmp_path / "go"
    script = tmp_path / "collect.py"
    script.write_text(f"""
import time
from pathlib import Path
from neuralsim.agents.collection import collect as module
from neuralsim.data.shard_writer import ShardWriter

here, add = Path({str(tmp_path)!r}), ShardWriter.add

def held_up(writer, episode):
    (here / f"writing-{{writer.number}}").touch()
    while not (here / "go").exists():
        time.sleep(0.005)
    return add(writer, episode)

module.EPISODES_PER_SHARD, ShardWriter.add = 4, held_up
if __name__ == "__main__":
    for _ in module.collect(module.CollectConfig(out=here / "two", episodes=11, steps=2, size=8, workers=2)): pass
""")

    def wait_for(folder: Path, *names: str) -> None:
        deadline = time.monotonic() + 60
        while not all((folder / name).exists() for name in names):
            assert time.monotonic() < deadline
            time.sleep(0.005)

    flock = fcntl.flock

    def waits(file: Any, how: int) -> None:
        if how == fcntl.LOCK_EX:
            go.touch()
        flock(file, how)

    def does_not_wait(*arguments: Any) -> Episode:
        go.touch()
        wait_for(killed.out, "shard-00000", "shard-00001")  # appear only if they were not waited for
        return collect_episode(*arguments)

    monkeypatch.setattr(fcntl, "flock", waits)
    monkeypatch.setattr(module, "collect_episode", does_not_wait)
    try:
        with subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL) as process:
            try:
                wait_for(tmp_path, "writing-0", "writing-1")
            finally:
                process.kill()
        assert run(killed) == [(2, 11), (5, 11), (8, 11), (11, 11)], "the episodes under way are kept"
    finally:
        go.touch()
    assert contents(killed.out) == straight
    assert not list(killed.out.glob(".writing-*"))


def test_kills_more_frequent_than_a_shard_make_progress(tmp_path: Path) -> None:
    """A collection that is killed after each few episodes loses none of them."""
    config = CollectConfig(out=tmp_path / "one", episodes=9, steps=2, size=8, workers=1)
    run(config)
    killed = replace(config, out=tmp_path / "two")
    script = tmp_path / "collect.py"
    script.write_text(f"""
import os, signal
from pathlib import Path
from neuralsim.agents.collection import collect as module

made, collect_episode = [], module.collect_episode

def deadly(*arguments):
    if len(made) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    made.append(1)
    return collect_episode(*arguments)

module.collect_episode = deadly
if __name__ == "__main__":
    for _ in module.collect(module.CollectConfig(out=Path({str(killed.out)!r}), episodes=9, steps=2, size=8, workers=1)): pass
""")
    kept = []
    for _ in range(3):
        assert subprocess.run([sys.executable, str(script)], check=False).returncode == -signal.SIGKILL
        kept.append(len(EpisodeStore(killed.out)))
    assert kept == [2, 4, 6]
    run(killed)
    assert contents(killed.out) == contents(config.out)


def test_an_interrupt_keeps_all_finished_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def interrupted(*arguments: Any) -> Episode:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(collect_episode(*arguments))
        return made[-1]

    config = CollectConfig(out=tmp_path, episodes=9, steps=2, size=8, workers=1)
    monkeypatch.setattr(module, "collect_episode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert len(EpisodeStore(tmp_path)) == 3
    assert sorted(p.name for p in tmp_path.glob("shard-*")) == ["shard-00000"]


def test_a_program_without_a_guard_is_told_in_one_line(tmp_path: Path) -> None:
    script = tmp_path / "collect.py"
    script.write_text(f"""
from pathlib import Path
from neuralsim.agents.collection import collect as module

module.EPISODES_PER_SHARD = 1
for _ in module.collect(module.CollectConfig(out=Path({str(tmp_path)!r}) / "store", episodes=2, steps=2, size=8)): pass
""")
    ended = subprocess.run([sys.executable, str(script)], check=False, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr.count("Traceback") == 1
    assert "if __name__ == '__main__':" in ended.stderr.splitlines()[-1]


def test_leftovers_of_killed_writers_are_swept_up(small: CollectConfig) -> None:
    run(small)
    (small.out / ".writing-4194305-abc").mkdir()  # of a process that there cannot be
    (small.out / ".writing-4194305-abc" / "frames.npy").touch()
    run(small)
    assert not list(small.out.glob(".writing-*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "--seed 0, asked for 1"),
        ({"steps": 4}, "--steps 3, asked for 4"),
        ({"policy": "random"}, "policy explorer"),
        ({"size": 24}, "choose another folder"),
        ({"world": "the other"}, "choose another folder"),
    ],
)
def test_another_collection_in_the_same_folder_is_refused(
    small: CollectConfig, change: dict[str, Any], message: str
) -> None:
    if "world" in change:
        change = {"world": next(world for world in real_worlds() if world != small.world)}
    run(small)
    before = contents(small.out)
    with pytest.raises(ValueError, match=message):
        run(replace(small, **change))
    assert contents(small.out) == before


def test_another_share_of_starts_near_the_goal_is_another_collection(tmp_path: Path) -> None:
    config = CollectConfig(out=tmp_path, episodes=4, steps=3, size=16, workers=1)
    run(config)
    with pytest.raises(ValueError, match="--near-goal"):
        run(replace(config, near_goal=1.0))


def test_episodes_that_were_not_collected_are_not_mixed_in(small: CollectConfig) -> None:
    store = EpisodeStore.create(small.out, small.real_world.make_spec(16))
    store.add([replace(collect_episode(small, 0), provenance={"seed": 5, "policy": "human"})])
    with pytest.raises(ValueError, match="not collected"):
        run(small)


def test_two_collectors_do_not_share_a_folder(small: CollectConfig) -> None:
    work = collect(small)
    next(work)
    with pytest.raises(BlockingIOError, match="another process"):
        run(small)
    work.close()
    run(small)


def test_a_disk_too_small_is_told_before_the_first_episode(
    small: CollectConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 10**8, 10**8))
    with pytest.raises(OSError, match=r"need 1\.25 GB .* the disk has 100 MB left"):
        run(CollectConfig(small.world, small.out, episodes=1000, steps=100))


def test_a_disk_that_fills_up_says_so_and_leaves_whole_shards(
    small: CollectConfig, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, real = [], np.save

    def save(path: Path, *args: object, **keywords: object) -> None:
        saved.append(path)
        if len(saved) > 60:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *args, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(np, "save", save)
    with pytest.raises(OSError, match=r"the disk is full .*make room and run the same command again"):
        run(small)
    monkeypatch.undo()
    assert len(EpisodeStore(small.out)) == 8, "every finished episode is kept"
    assert not list(small.out.glob(".writing-*"))
    assert run(small)[-1] == (11, 11)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"episodes": 0}, "--episodes: expected 1 or more, got 0"),
        ({"steps": -1}, "--steps"),
        ({"workers": 0}, "--workers"),
        ({"seed": -1}, "--seed"),
        ({"near_goal": 1.5}, "--near-goal: expected a share"),
        ({"size": 65}, "multiple of 8, got 65x65"),
        ({"world": "tworoom", "size": 65}, "multiple of 8, got 65x65"),
        ({"world": "towroom"}, r"no real world 'towroom' \(did you mean 'tworoom'\?\)"),
        ({"world": "maze"}, "no real world 'maze'; there are pusht, tworoom"),
        ({"world": "Pendulum-v1"}, "is a Gymnasium id: --env Pendulum-v1"),
        ({"size": (64, 32)}, "--size: this world is square, got 64x32"),
        ({"world": "carracing", "near_goal": 0.5}, "begin by seed alone"),
        ({"repeat": 2}, "--repeat: is for --env"),
        ({"policy": "exlpore"}, r"did you mean 'explore'\?"),
        ({"policy": "nowhere.zip"}, "nowhere.zip: no such file"),
        ({"policy": "nowhere:make"}, "No module named 'nowhere'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        CollectConfig(**arguments)


@pytest.mark.parametrize("words", [["tworoom"], ["--world", "tworoom"], []])
def test_the_command_names_the_world_and_the_folder_follows(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--episodes", "2", "--steps", "3", "--size", "16", "--workers", "1"]
    assert cli.main(["collect", *words, *options]) == 0
    world = "tworoom" if words else "pusht"
    store = EpisodeStore(Path("data") / world)
    assert store.spec.name == world
    assert len(store) == 2
    assert f"data/{world}: 2 episodes, 8 frames" in capsys.readouterr().out
    assert cli.main(["collect", *words, *options]) == 0
    assert "there was nothing to add" in capsys.readouterr().out
