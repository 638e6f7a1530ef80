"""Promises of recording: keys drive the true world as its spec says, the window shows what is recorded, and the store holds what
was kept and nothing else."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuralsim import cli
from neuralsim.agents.collection.collect import CollectConfig, collect
from neuralsim.agents.teleop import record as module
from neuralsim.agents.teleop.key_bindings import BoxKeyboard, keyboard_for, layout
from neuralsim.agents.teleop.record import RecordConfig, RecordPlayer, RecordReport, record
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.gym_adapter.env import GymRealEnv
from neuralsim.envs.pusht.env import pusht_spec
from neuralsim.envs.registry import get_real_world
from neuralsim.envs.tasks.gym_world import real_env_of
from neuralsim.runtime.files import DiskFullError, folder_lock
from neuralsim.spec import WorldSpec


@pytest.fixture(autouse=True)
def dummy_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("SDL_AUDIODRIVER", "dummy")


def played(tmp_path: Path, real: str, script: str, **config: Any) -> tuple[RecordReport, EpisodeStore]:
    settings: dict[str, Any] = {"size": 16, "out": tmp_path / "mine"} | config
    report = record(RecordConfig(real, script=script, headless=True, **settings))
    return report, EpisodeStore(report.store)


def spec_of(**fields: Any) -> WorldSpec:
    names = fields.pop("action_names")
    n = len(names)
    return WorldSpec("any", 8, 8, names, ("u",) * n, rate_hz=10.0, context=1, **({"action_scale": (1.0,) * n} | fields))


# -- keys --------------------------------------------------------------------------------------------------------------


def test_keys_are_laid_out_by_what_the_spec_says() -> None:
    car = get_real_world("carracing").make_spec(64)
    assert layout(car) == {"left": (0, -1.0), "right": (0, 1.0), "up": (1, 1.0), "down": (2, 1.0)}
    assert layout(pusht_spec()) == {"left": (0, -1.0), "right": (0, 1.0), "up": (1, -1.0), "down": (1, 1.0)}
    assert layout(spec_of(action_names=("torque",))) == {"left": (0, -1.0), "right": (0, 1.0)}
    assert layout(spec_of(action_names=("x", "y")))["up"] == (1, 1.0)
    joints = layout(spec_of(action_names=tuple("abcdefgh")))
    assert [dimension for dimension, _ in joints.values()] == [i for i in range(6) for _ in range(2)]
    assert layout(spec_of(action_names=("gas",), action_scale=(0.5,), action_offset=(-0.5,))) == {"up": (0, -1.0)}


def test_held_keys_lift_what_rests_and_shift_goes_a_third_of_the_way() -> None:
    keyboard = BoxKeyboard(get_real_world("carracing").make_spec(64))
    np.testing.assert_array_equal(keyboard.predict()[0], [0, -1, -1])
    keyboard.hold("left")
    keyboard.hold("up")
    np.testing.assert_array_equal(keyboard.predict()[0], [-1, 1, -1])
    keyboard.hold("gentle")
    np.testing.assert_allclose(keyboard.predict()[0], [-1 / 3, -1 / 3, -1], atol=1e-6)
    keyboard.hold("right")
    np.testing.assert_allclose(keyboard.predict()[0], [0, -1 / 3, -1], atol=1e-6)
    keyboard.clear()
    np.testing.assert_array_equal(keyboard.predict()[0], [0, -1, -1])


def test_few_choices_without_names_are_left_and_right() -> None:
    three = spec_of(action_names=("push",), action_choices=(3,))
    keyboard, legend = keyboard_for(three)
    assert legend == (("0", "left"), ("1", "none (rest)"), ("2", "right"))
    for key, choice in (("", 1), ("left", 0), ("right", 2)):
        keyboard.clear()
        if key:
            keyboard.hold(key)
        assert keyboard.predict()[0].tolist() == [choice]


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_what_was_driven_and_kept_is_what_the_true_world_does(tmp_path: Path) -> None:
    script = "0 down UP; 0.6 down a; 1.2 up UP; 1.2 down DOWN; 1.8 tap RETURN; 2.2 quit"
    report, store = played(tmp_path, "carracing", script)
    (episode,) = store
    assert (report.kept, report.steps_kept, report.episodes) == (1, len(episode), 1)
    assert report.steps > len(episode)  # what came after was not kept
    acts = episode.actions
    np.testing.assert_array_equal(acts[0], [0, 1, -1])
    np.testing.assert_array_equal(acts[12], [-1, 1, -1])
    np.testing.assert_array_equal(acts[-1], [-1, -1, 1])
    assert episode.provenance["policy"] == "keyboard"
    assert not episode.held_out
    assert episode.truncated.tolist() == [False] * (len(episode) - 1) + [True]
    assert episode.states is not None
    env = get_real_world("carracing").make_env(16)
    state, _ = env.reset(seed=episode.provenance["reset_seed"])
    for i, action in enumerate(acts):
        np.testing.assert_array_equal(state, episode.states[i])
        np.testing.assert_array_equal(env.render(), episode.frames[i])
        state, reward, *_ = env.step(action)
        assert np.float32(reward) == episode.rewards[i]


def test_enter_keeps_backspace_discards_and_r_begins_the_same_episode_again(tmp_path: Path) -> None:
    script = "0.2 tap RETURN; 0.4 tap BACKSPACE; 0.6 tap RETURN; 0.8 tap r; 1.3 tap RETURN; 1.5 quit"
    report, store = played(tmp_path, "Pendulum-v1", script)
    lengths = [len(episode) for episode in store]
    assert lengths == [6, 6, 15]
    assert report.kept == 3
    seeds = [episode.provenance["reset_seed"] for episode in store]
    assert len(set(seeds)) == 3
    assert [e.provenance["index"] for e in store] == [0, 1, 2]
    again, more = played(tmp_path, "Pendulum-v1", "0.2 tap RETURN; 0.3 quit")
    assert (again.kept, len(more)) == (1, 4)
    assert len({more[i].provenance["seed"] for i in range(4)}) == 4
    env = real_env_of(more.spec, more.info.source)
    assert isinstance(env, GymRealEnv)
    np.testing.assert_array_equal(env.reset(seed=seeds[2])[0], more[2].frames[0])


def test_an_end_waits_for_the_answer_and_is_kept_as_what_it_was(tmp_path: Path) -> None:
    report, store = played(tmp_path, "CartPole-v1", "0 down RIGHT; 2 tap RETURN; 2.1 quit")
    (episode,) = store
    assert len(episode) < 15
    assert (episode.actions == 1).all()
    assert episode.terminated[-1]
    assert not episode.truncated.any()
    assert report.steps <= len(episode) + 6
    _, cut = played(tmp_path, "Pendulum-v1", "1 tap RETURN; 1.1 quit", steps=4, out=tmp_path / "cut")
    assert (len(cut[0]), cut[0].truncated[-1], cut[0].terminated.any()) == (4, True, False)


def test_a_pause_takes_no_steps_and_quitting_keeps_nothing(tmp_path: Path) -> None:
    report, store = played(tmp_path, "Pendulum-v1", "0.2 tap SPACE; 1.2 tap SPACE; 1.4 quit")
    assert (report.kept, len(store)) == (0, 0)
    assert report.steps == pytest.approx(12, abs=1)


def test_nothing_is_kept_of_an_episode_without_a_step(tmp_path: Path) -> None:
    report, _ = played(
        tmp_path, "Pendulum-v1", "0 tap RETURN; 0.1 tap SPACE; 0.2 tap BACKSPACE; 0.3 tap RETURN; 0.4 quit"
    )
    assert report.kept == 0


def test_the_window_shows_the_frame_that_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[np.ndarray, np.ndarray]] = []

    class Watched(RecordPlayer):
        def tick(self) -> None:
            super().tick()
            shown.append((self.episode.frames[-1], self.window.panel()))

    monkeypatch.setattr(module, "RecordPlayer", Watched)
    played(tmp_path, "carracing", "0 down UP; 0.5 quit", scale=3, size=24)
    assert len(shown) >= 8
    for frame, panel in shown:
        np.testing.assert_array_equal(panel, frame.repeat(3, 0).repeat(3, 1))
    assert not np.array_equal(shown[0][0], shown[-1][0])


def test_a_live_window_goes_at_the_worlds_own_pace(tmp_path: Path) -> None:
    """Slower than asked where the machine is busy, never faster."""
    settings: dict[str, Any] = {"size": 16, "out": tmp_path / "live"}
    report = record(RecordConfig("Pendulum-v1", script="0 down LEFT; 0.9 tap RETURN; 1 quit", **settings))
    assert report.seconds > 0.95
    assert 1 <= report.steps <= 1 + 30 * report.seconds
    assert report.kept == 1


# -- the store ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Path]:
    played(tmp_path, "Pendulum-v1", "0.2 tap RETURN; 0.3 quit")
    yield tmp_path / "mine"
    assert len(EpisodeStore(tmp_path / "mine")) == 1


@pytest.mark.parametrize(
    ("real", "config"),
    [("CartPole-v1", {}), ("Pendulum-v1", {"env_kwargs": '{"g": 1.0}'}), ("Pendulum-v1", {"size": 24})],
)
def test_episodes_of_another_world_are_not_mixed_in(kept: Path, real: str, config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="choose another"):
        played(kept.parent, real, "0.2 tap RETURN; 0.3 quit", **config)


def test_recordings_and_collections_do_not_share_a_folder(kept: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"choose another"):
        for _ in collect(CollectConfig(env="Pendulum-v1", out=kept, episodes=2, steps=2, size=16, workers=1)):
            pass
    for _ in collect(CollectConfig(env="Pendulum-v1", out=tmp_path / "c", episodes=2, steps=2, size=16, workers=1)):
        pass
    with pytest.raises(ValueError, match="holds a collection"):
        played(tmp_path, "Pendulum-v1", "0.1 quit", out=tmp_path / "c")


def test_another_writer_keeps_record_out(tmp_path: Path) -> None:
    with (
        folder_lock(tmp_path / "mine", "collecting"),
        pytest.raises(BlockingIOError, match=rf"mine: another process \({os.getpid()}\) is collecting here"),
    ):
        played(tmp_path, "Pendulum-v1", "0.2 tap RETURN; 0.3 quit")
    assert played(tmp_path, "Pendulum-v1", "0.2 tap RETURN; 0.3 quit")[0].kept == 1


def test_no_two_kept_episodes_begin_alike_also_after_discarded_ones(tmp_path: Path) -> None:
    played(tmp_path, "Pendulum-v1", "0.1 tap RETURN; 0.2 tap BACKSPACE; 0.3 tap RETURN; 0.4 quit")
    _, store = played(tmp_path, "Pendulum-v1", "0.1 tap RETURN; 0.2 tap RETURN; 0.3 quit")
    for name in ("reset_seed", "seed"):
        assert len({episode.provenance[name] for episode in store}) == len(store) == 4


def test_on_a_full_disk_the_episode_stays_and_can_be_kept_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add, tries = EpisodeStore.add, []

    def full_once(store: EpisodeStore, episodes: Any, *more: Any) -> Path:
        tries.append(len(episodes[0]))
        if len(tries) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return add(store, episodes, *more)

    monkeypatch.setattr(EpisodeStore, "add", full_once)
    settings: dict[str, Any] = {"size": 16, "out": tmp_path / "mine", "steps": 5}
    report = record(RecordConfig("Pendulum-v1", script="0.6 tap RETURN; 0.8 tap RETURN; 1 quit", **settings))
    assert report.kept == 1
    assert tries[0] <= tries[1] == len(EpisodeStore(report.store)[0])
    error = capsys.readouterr().err
    assert "mine: the disk is full" in error
    assert "press enter again" in error
    tries.clear()
    with pytest.raises(DiskFullError, match="mine: the disk is full"):
        played(tmp_path, "Pendulum-v1", "0.2 tap RETURN; 0.3 quit")


def test_a_kill_loses_no_kept_episode_and_its_leftovers_are_swept(tmp_path: Path) -> None:
    words = ["record", "Pendulum-v1", "--size", "16", "--out", str(tmp_path / "mine"), "--script"]
    script = "0.1 tap RETURN; 0.2 tap RETURN; 60 quit"
    with subprocess.Popen([sys.executable, "-m", "neuralsim.cli", *words, script]) as process:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("mine/shard-*"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    half = tmp_path / "mine" / f".writing-{process.pid}-x"
    half.mkdir()
    report, store = played(tmp_path, "Pendulum-v1", "0.2 tap RETURN; 0.3 quit")
    assert (report.kept, len(store)) == (1, 3)
    assert len({episode.provenance["reset_seed"] for episode in store}) == 3
    assert not half.exists()


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_records_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--real", "CartPole-v1", "--size", "16", "--headless", "--script", "0.1 tap RETURN; 0.2 quit"]
    assert cli.main(["record", *words, "--json", "out/report.json"]) == 0
    assert "data/CartPole-v1-played: 1 episodes kept, 5 steps; 1 episodes in all" in capsys.readouterr().out
    assert json.loads(Path("out/report.json").read_text())["steps_kept"] == 5


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["CartPol-v1"], "did you mean 'CartPole-v1'"),
        (["Pendulum-v1", "--headless"], "--headless has no keyboard"),
        (["Pendulum-v1", "--speed", "-1"], "--speed: expected 0 or more"),
        ([], "--real"),
    ],
)
def test_a_wrong_word_is_answered_with_a_line_that_helps(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["record", *words])
    assert left.value.code == 2
    assert line in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_without_a_screen_the_error_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDL_VIDEODRIVER")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OSError, match="--headless and --script"):
        record(RecordConfig("Pendulum-v1", out=tmp_path / "mine", size=16))
