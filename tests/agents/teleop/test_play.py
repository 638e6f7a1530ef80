"""Play: keys, panels, rewinding and recording, checked on the pixels of the window and on the files that are left."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import imageio.v3 as iio
import numpy as np
import pygame
import pytest

from neuralsim.agents.policies.policy import NamedPolicy
from neuralsim.agents.policies.resolve import resolve_policy
from neuralsim.agents.teleop import recorder as recorder_module
from neuralsim.agents.teleop.config import PlayConfig, PlayReport
from neuralsim.agents.teleop.key_bindings import keyboard_and_labels
from neuralsim.agents.teleop.keyboard import Keyboard
from neuralsim.agents.teleop.panels import PanelRenderer
from neuralsim.agents.teleop.play import play
from neuralsim.agents.teleop.player import Player
from neuralsim.agents.teleop.recorder import Recorder
from neuralsim.agents.teleop.reference_env import find_reference_env
from neuralsim.agents.teleop.scripted_keys import parse_script
from neuralsim.agents.teleop.session import Session, SessionFrame, open_imagination
from neuralsim.agents.teleop.timing import InputLatency, Rate
from neuralsim.agents.teleop.window import Window
from neuralsim.data.store import EpisodeStore
from neuralsim.data.video_writer import VideoFileWriter, VideoWriter
from neuralsim.envs.pusht.env import PushTRealEnv, pusht_spec
from neuralsim.imagination import Imagination
from neuralsim.pretrained.world import open_world
from neuralsim.runtime.files import folder_lock

SCALE = 3


class Watched(Player):
    """A player that keeps every SessionFrame presented and the pixels of its three panels."""

    def draw(self) -> None:
        super().draw()
        if not hasattr(self, "shown"):
            self.shown: list[tuple[SessionFrame, list[np.ndarray]]] = []
        self.shown.append((self.frame, [self.window.panel(i) for i in range(3)]))

    def at(self, seconds: float) -> tuple[SessionFrame, list[np.ndarray]]:
        """What the screen showed ``seconds`` into the script."""
        return self.shown[round(seconds * 10)]


class Scripted:
    """A policy that takes the given actions, and keeps its observations."""

    def __init__(self, actions: Iterator[Any]) -> None:
        self.actions = actions
        self.seen: list[np.ndarray] = []

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        self.seen.append(observation)
        return next(self.actions), state


@pytest.fixture(autouse=True)
def dummy_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("SDL_AUDIODRIVER", "dummy")


@pytest.fixture
def run(tiny_world: Path, tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    """Plays a script headless and gives the player back, its window still open."""
    opened: list[Watched] = []

    def start(script: str, policy: str = "explorer", **config: object) -> Watched:
        world = open_world(tiny_world, "cpu")
        imagination = open_imagination(world, "float32")
        assert imagination.starts is not None
        reference = find_reference_env(world.spec, imagination.starts)
        driver = resolve_policy(policy, world, reference.env)
        keyboard, labels = keyboard_and_labels(world.spec)
        session = Session(imagination, driver, keyboard, reference=reference)
        window = Window((64, 64), SCALE, "test", PanelRenderer(labels))
        settings = PlayConfig(world=str(tiny_world), out=tmp_path, headless=True, **config)  # type: ignore[arg-type]
        recorder = Recorder(tmp_path, world.spec, 0, reference.state_names)
        player = Watched(settings, session, window, recorder, parse_script(script))
        opened.append(player)
        player.run_headless()
        return player

    yield start
    for player in opened:
        player.recorder.stop()
        player.window.close()
        player.session.close()


def pusher_x(panel: np.ndarray) -> float:
    """Mean column of the pusher's blue, in workspace units."""
    pixels = panel.astype(int)
    blue = (pixels[..., 2] > 180) & (pixels[..., 0] < 130)
    return float(np.nonzero(blue)[1].mean() + 0.5) * 512 / panel.shape[1]


# -- what the window shows ------------------------------------------------------------------------------------------------------


def test_a_held_key_moves_the_pusher_in_the_real_panel(run: Callable[..., Watched]) -> None:
    # Left or right, wherever there is room from this start.
    first = run("0.1 quit").at(0)[0].state[0]
    key, sign = ("RIGHT", 1) if first < 256 else ("LEFT", -1)
    player = run(f"0 down {key}; 0.5 up {key}; 0.9 quit")
    start, end = player.at(0)[0], player.at(0.8)[0]
    assert start.action is not None
    assert end.state[0] - first == pytest.approx(sign * 5 * 24)
    assert pusher_x(player.at(0.8)[1][1]) == pytest.approx(end.state[0], abs=6)
    assert end.step == 9
    assert player.at(0.7)[0].state[0] == end.state[0], "no key, no motion"


def test_panels_are_magnified_frames_and_their_difference(run: Callable[..., Watched]) -> None:
    moment, panels = run("0 down DOWN; 0.4 quit").at(0.3)
    for frame, panel in zip((moment.imagined, moment.real_image, moment.difference), panels, strict=True):
        np.testing.assert_array_equal(panel, frame.repeat(SCALE, 0).repeat(SCALE, 1))
    expected = np.abs(moment.imagined.astype(int) - moment.real_image.astype(int))
    np.testing.assert_array_equal(moment.difference, expected)


def test_plus_and_minus_resize_and_help_covers_the_window(run: Callable[..., Watched]) -> None:
    player = run("0.1 tap MINUS; 0.2 tap EQUALS; 0.4 quit")
    assert player.window.scale == SCALE + 1, "3 is the smallest"
    assert player.window.panel(0).shape[0] == 64 * (SCALE + 1)
    plain, helped = run("0.2 quit"), run("0.1 tap h; 0.2 quit")
    changed = (plain.at(0.1)[1][1] != helped.at(0.1)[1][1]).any(-1).mean()
    assert changed > 0.9


def test_pause_freezes_and_a_single_step_is_one(run: Callable[..., Watched]) -> None:
    player = run("0 down DOWN; 0.5 tap SPACE; 1.0 tap PERIOD; 1.5 tap SPACE; 2.0 quit")
    steps = [moment.step for moment, _ in player.shown]
    assert steps == [1, 2, 3, 4, 5, *[5] * 5, *[6] * 5, 7, 8, 9, 10, 11]
    for _, panels in player.shown[5:10]:
        np.testing.assert_array_equal(panels, player.shown[4][1])


# -- time: rewind, again, new -----------------------------------------------------------------------------------------------------


def test_rewind_is_bit_equal_and_goes_further_each_time(run: Callable[..., Watched]) -> None:
    keys = "0 tap p; 5 tap p; 5 tap SPACE; 5.1 tap BACKSPACE; 5.2 tap BACKSPACE; 5.3 tap BACKSPACE; 5.5 quit"
    player = run(keys)
    assert player.at(4.9)[0].step == 50
    for seconds, step in ((5.1, 30), (5.2, 10), (5.3, 0)):
        moment, panels = player.at(seconds)
        assert moment.step == step
        if step:
            np.testing.assert_array_equal(panels, player.shown[step - 1][1])
            np.testing.assert_array_equal(moment.state, player.shown[step - 1][0].state)


def test_after_a_rewind_the_same_actions_lead_to_the_same_place(run: Callable[..., Watched]) -> None:
    player = run("0 tap p; 10 quit")
    session = player.session
    before = [moment for moment, _ in player.shown]
    pushed = [(b.state[2:] != a.state[2:]).any() for a, b in itertools.pairwise(before[19:])]
    assert sum(pushed) > 10, "the block is pushed: contacts are part of what is brought back"
    session.rewind(80)
    assert session.frame.step == 20
    actions = iter([past.action for past in before[20:]])
    session.driver = NamedPolicy("again", Scripted(actions), "state")
    for past in before[20:]:
        moment = session.advance()
        assert moment is not None
        np.testing.assert_array_equal(moment.imagined, past.imagined)
        np.testing.assert_array_equal(moment.real_image, past.real_image)
        np.testing.assert_array_equal(moment.state, past.state)


def test_again_is_the_same_start_and_new_is_another(run: Callable[..., Watched]) -> None:
    player = run("0 down UP; 1 tap r; 2 tap n; 2.5 quit")
    for i in range(10):
        first, again = player.shown[i], player.shown[10 + i]
        assert again[0].episode == first[0].episode + 1
        np.testing.assert_array_equal(first[1], again[1])
    new = player.at(2.0)[0]
    assert (new.episode, new.step) == (2, 1)
    assert new.start != first[0].start


def test_both_worlds_begin_together(run: Callable[..., Watched], tiny_world: Path) -> None:
    player = run("0 tap SPACE; 0.1 quit")
    starts = open_world(tiny_world, "cpu").starts
    assert starts is not None
    moment = player.at(0)[0]
    np.testing.assert_array_equal(moment.real_image, starts.frames[moment.start, -1])


# -- who drives -------------------------------------------------------------------------------------------------------------------


def test_hand_over_resets_nothing_and_a_key_wins(run: Callable[..., Watched]) -> None:
    player = run("1 tap p; 2 down RIGHT; 2.3 up RIGHT; 3 tap p; 3.5 quit")
    moments = [moment for moment, _ in player.shown]
    assert [m.step for m in moments] == list(range(1, 36))
    assert {m.episode for m in moments} == {0}
    by_hand = [m.human for m in moments]
    assert by_hand == [True] * 10 + [False] * 10 + [True] * 3 + [False] * 7 + [True] * 5
    assert {m.driver for m in moments[10:20]} == {"explorer"}
    for m in moments[20:23]:
        np.testing.assert_array_equal(m.action, [1, 0])
    assert any(np.abs(m.action).max() > 0 for m in moments[10:20] if m.action is not None)


@pytest.mark.parametrize("observation", ["state", "pixels", "features"])
def test_a_policy_gets_the_observations_it_was_made_for(
    run: Callable[..., Watched], observation: Literal["state", "pixels", "features"]
) -> None:
    player = run("0.1 quit")
    policy = Scripted(iter([np.array([0, -0.5])]))
    player.session.driver = NamedPolicy("obedient", policy, observation)
    player.session.hand_over()
    before = player.session.frame
    moment = player.session.advance()
    assert moment is not None
    np.testing.assert_array_equal(moment.action, np.array([0, -0.5], np.float32))
    expected = {"state": before.state.astype(np.float32), "pixels": before.imagined}
    if observation in expected:
        np.testing.assert_array_equal(policy.seen[0], expected[observation])
    else:
        assert policy.seen[0].shape == (player.session.imagination.model.feature_size,)


def test_a_stable_baselines3_policy_drives(run: Callable[..., Watched], tmp_path: Path) -> None:
    from stable_baselines3 import PPO

    PPO("MlpPolicy", PushTRealEnv(observation="state"), device="cpu").save(tmp_path / "mine.zip")
    player = run("0 tap p; 0.5 quit", policy=str(tmp_path / "mine.zip"))
    assert {m.driver for m, _ in player.shown} == {"mine"}
    assert not any(m.human for m, _ in player.shown)


def test_policies_that_cannot_drive_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        resolve_policy("nobody.zip", pusht_spec())
    (tmp_path / "x.zip").write_text("no zip")
    with pytest.raises(ValueError, match="not a file that Stable-Baselines3"):
        resolve_policy(str(tmp_path / "x.zip"), pusht_spec())


def test_denoising_steps_change_while_playing(run: Callable[..., Watched]) -> None:
    player = run("0.2 tap 3; 0.4 tap 1; 0.6 quit")
    assert [m.denoise_steps for m, _ in player.shown] == [1, 1, 3, 3, 1, 1]


def test_without_a_screen_play_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pygame.display, "get_driver", lambda: "offscreen")
    with pytest.raises(OSError, match="--headless"):
        Window((64, 64), SCALE, "test", PanelRenderer())


# -- keys ---------------------------------------------------------------------------------------------------------------------------


def test_keyboard_is_a_policy() -> None:
    keyboard = Keyboard()
    keyboard.hold("right")
    keyboard.hold("up")
    np.testing.assert_array_equal(keyboard.predict()[0], [1, -1])
    keyboard.hold("gentle")
    np.testing.assert_allclose(keyboard.predict(None, "kept")[0], [1 / 3, -1 / 3], rtol=1e-6)
    assert keyboard.predict(None, "kept")[1] == "kept"
    keyboard.hold("left")
    np.testing.assert_allclose(keyboard.predict()[0], [0, -1 / 3], rtol=1e-6)
    keyboard.clear()
    assert not keyboard.read().active
    with pytest.raises(ValueError, match="expected one of"):
        keyboard.hold("sideways")


def test_a_tap_between_two_steps_pushes_once() -> None:
    keyboard = Keyboard()
    down, up = keyboard.hold("left"), keyboard.release("left")
    first, second = keyboard.read(), keyboard.read()
    np.testing.assert_array_equal(first.action, [-1, 0])
    assert first.active
    assert not second.active
    # The frame of the first step knows that the key went down, only the second's that it went up.
    assert (first.serial, second.serial) == (down, up)


def test_letters_arrows_and_a_lost_focus(run: Callable[..., Watched]) -> None:
    player = run("0 down RIGHT; 0.1 down d; 0.2 up RIGHT; 0.4 up d; 0.5 down LSHIFT; 0.5 down a; 0.7 quit")
    pushes = [0 if m.action is None else float(m.action[0]) for m, _ in player.shown]
    np.testing.assert_allclose(pushes, [1, 1, 1, 1, 0, -1 / 3, -1 / 3], rtol=1e-6)
    player.done = False
    player.handle(pygame.event.Event(pygame.WINDOWFOCUSLOST), 0.0)
    assert not player.session.keyboard.held


def test_latency_runs_from_the_key_to_the_first_frame_that_knows_it() -> None:
    meter = InputLatency()
    assert meter.median() is None
    meter.pressed(1, 0.0)
    meter.pressed(2, 0.010)
    meter.presented(0, 0.020)
    meter.presented(1, 0.040)
    meter.presented(2, 0.090)
    np.testing.assert_allclose(meter.all, [0.040, 0.080])
    rate = Rate()
    for i in range(11):
        rate.add(i / 10)
    assert rate.value(1.0) == pytest.approx(10)
    assert rate.value(9.0) == 0


@pytest.mark.parametrize(
    "script",
    ["", "# nothing", "one down RIGHT", "1 push RIGHT", "1 down", "1 down NOSUCHKEY", "1 quit RIGHT", "-1 quit"],
)
def test_a_wrong_script_is_refused_with_its_line(script: str) -> None:
    with pytest.raises(ValueError, match="script"):
        parse_script(script)


# -- recording ------------------------------------------------------------------------------------------------------------------------


def test_recording_leaves_a_video_and_episodes_that_say_who_acted(run: Callable[..., Watched], tmp_path: Path) -> None:
    player = run("0 down UP; 0.5 tap v; 1 tap p; 1 up UP; 1.5 down LEFT; 1.7 up LEFT; 2 tap v; 2.5 quit")
    report = player.finish()
    assert len(report.videos) == 1
    video = iio.imread(report.videos[0], plugin="pyav")
    assert len(video) == report.video_frames[0] == 16
    true, imagined = EpisodeStore(tmp_path / "true"), EpisodeStore(tmp_path / "imagined")
    assert len(true) == len(imagined) == 1
    shown = [m for m, _ in player.shown][4:20]
    for episode, kind in ((true[0], "true"), (imagined[0], "imagined")):
        assert episode.provenance["kind"] == kind
        assert episode.provenance["human"] == [True] * 5 + [False] * 5 + [True] * 2 + [False] * 3
        assert episode.provenance["video"] == Path(report.videos[0]).name
        np.testing.assert_array_equal(episode.actions, [m.action for m in shown[1:]])
    np.testing.assert_array_equal(true[0].frames, [m.real_image for m in shown])
    np.testing.assert_array_equal(imagined[0].frames, [m.imagined for m in shown])
    assert imagined[0].states is None
    np.testing.assert_allclose(true[0].rewards, [m.real and m.real.reward for m in shown[1:]], rtol=1e-6)


def test_a_recorded_real_episode_replays_in_the_simulator(run: Callable[..., Watched], tmp_path: Path) -> None:
    # With a rewind in the middle: the episode is the timeline that was kept, the video all that was seen.
    player = run("0 tap p; 3 tap BACKSPACE; 4 tap n; 4.5 quit", record=True)
    report = player.finish()
    assert report.video_frames == (1 + 45 + 2,)
    store = EpisodeStore(tmp_path / "true")
    assert store.lengths.tolist() == [20, 5]
    env = PushTRealEnv()
    for episode, moment in zip(store, (player.at(0)[0], player.at(4.2)[0]), strict=True):
        env.reset(options={"state": player.session.start_state(moment.start)})
        frames = [env.render(), *(env.step(action)[0] for action in episode.actions)]
        np.testing.assert_array_equal(episode.frames, frames)


def test_long_recordings_are_cut_where_they_can_be_joined(
    run: Callable[..., Watched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "LONGEST", 8)
    run("0 tap p; 2 quit", record=True).finish()
    parts = list(EpisodeStore(tmp_path / "true"))
    assert [len(part) for part in parts] == [8, 8, 4]
    assert [part.provenance["first_step"] for part in parts] == [0, 8, 16]
    np.testing.assert_array_equal(parts[0].frames[-1], parts[1].frames[0])


def test_a_start_without_a_step_is_no_episode(run: Callable[..., Watched], tmp_path: Path) -> None:
    report = run("0 tap SPACE; 0 tap v; 0.5 quit").finish()
    assert (report.video_frames, report.episodes) == ((1,), ())
    assert len(EpisodeStore(tmp_path / "true")) == 0


def test_an_encoder_that_fails_says_so_and_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(VideoFileWriter, "add", full)
    writer = VideoWriter(tmp_path / "x.mp4", 10.0)
    for _ in range(200):
        writer.add(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(OSError, match=r"x\.mp4: the disk is full"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_new_video_sweeps_the_half_ones_of_killed_writers(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    half = tmp_path / f".demo.mp4.{dead.pid}.tmp.mp4"
    half.write_bytes(b"half")
    writer = VideoWriter(tmp_path / "demo.mp4", 10.0)
    writer.add(np.zeros((32, 32, 3), np.uint8))
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["demo.mp4"]


def test_a_full_disk_ends_the_recording_and_not_the_play(
    run: Callable[..., Watched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError("8192 requested and 100 written")  # numpy's words; it has no errno

    monkeypatch.setattr(recorder_module, "LONGEST", 8)
    add, written = EpisodeStore.add, []

    def once(store: EpisodeStore, episodes: Any, *more: Any) -> Path:
        if len(written) == 2:  # one real, one imagined
            full()
        written.append(add(store, episodes, *more))
        return written[-1]

    monkeypatch.setattr(EpisodeStore, "add", once)
    player = run("0 tap p; 3 quit", record=True)
    assert player.steps == 30
    assert not player.recorder.recording
    error = capsys.readouterr().err
    assert f"{tmp_path / 'true'}: the disk is full" in error
    assert "make room and record again" in error
    assert [len(EpisodeStore(tmp_path / kind)) for kind in ("true", "imagined")] == [1, 1]
    assert len(list(tmp_path.glob("*.mp4"))) == 1, "the video up to there"
    assert not list(tmp_path.rglob(".*.tmp*"))


def test_leftovers_of_a_killed_recording_are_swept_and_those_of_a_living_one_kept(
    run: Callable[..., Watched], tmp_path: Path
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    half = tmp_path / f".play-1.mp4.{dead.pid}.tmp.mp4"
    living = tmp_path / f".play-2.mp4.{os.getpid()}.tmp.mp4"
    shard = tmp_path / "imagined" / f".writing-{dead.pid}-x"
    shard.mkdir(parents=True)
    for path in (half, living, shard / "frames.npy"):
        path.write_bytes(b"half")
    run("0.2 quit", record=True).finish()
    assert living.exists()
    assert not half.exists()
    assert not shard.exists()


def test_two_recordings_do_not_share_a_folder(
    run: Callable[..., Watched], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with folder_lock(tmp_path, "recording"):
        report = run("0.3 quit", record=True).finish()
    assert report.steps == 3
    assert report.videos == ()
    assert f"{tmp_path}: another process ({os.getpid()}) is recording here" in capsys.readouterr().err


def kept(report: PlayReport, out: Path) -> tuple[int, int]:
    """Frames of the video and steps of the true episodes that a session left."""
    assert not list(out.glob(".writing-*"))
    return len(iio.imread(report.videos[0], plugin="pyav")), int(EpisodeStore(out / "true").lengths.sum())


def test_a_window_manager_close_keeps_the_recording(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "keys.txt"
    script.write_text("0.0 down RIGHT  # push\n1.5 up RIGHT\n2.0 close\n9 quit\n")
    out = tmp_path / "out"
    config = PlayConfig(
        world=str(tiny_world),
        script=str(script),
        headless=True,
        record=True,
        out=out,
        json=tmp_path / "r.json",
        scale=3,
    )
    report = play(config)
    assert kept(report, out) == (21, 20)
    assert report.key_changes == 2
    assert report.latency_ms_median is not None
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("{") :]) == json.loads((tmp_path / "r.json").read_text())


def test_ctrl_c_keeps_the_recording_of_a_live_window(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    step, count = Imagination.step, [0]

    def counted(self: Imagination, action: Any) -> Any:
        count[0] += 1
        if count[0] == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, action)

    monkeypatch.setattr(Imagination, "step", counted)
    script = "0 down RIGHT; 0.4 up RIGHT; 600 quit"
    report = play(PlayConfig(world=str(tiny_world), script=script, record=True, out=tmp_path, scale=3))
    frames, steps = kept(report, tmp_path)
    assert report.seconds < 500
    assert (frames, steps) == (report.steps + 1, report.steps)
    assert steps > 0
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_world_that_breaks_says_so_and_keeps_the_recording(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, count = Imagination.step, [0]

    def failing(self: Imagination, action: Any) -> Any:
        count[0] += 1
        if count[0] > 4:
            raise RuntimeError("the model is gone")
        return step(self, action)

    monkeypatch.setattr(Imagination, "step", failing)
    with pytest.raises(RuntimeError, match="the model is gone"):
        play(PlayConfig(world=str(tiny_world), script="30 quit", record=True, out=tmp_path, fps=0, scale=3))
    assert EpisodeStore(tmp_path / "true").lengths.tolist() == [4]
    assert len(list(tmp_path.glob("*.mp4"))) == 1


def test_the_benchmark_measures_in_real_time(tiny_world: Path, tmp_path: Path) -> None:
    report = play(PlayConfig(world=str(tiny_world), benchmark=3.0, out=tmp_path, headless=True, scale=3))
    assert report.seconds > 2.5
    assert report.key_changes > 0
    assert report.latency_ms_median is not None
    assert report.latency_ms_median > 0
    assert report.world_fps > 0
    assert report.flat_out_fps is not None
    assert report.videos == report.episodes == ()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"headless": True}, "--script"),
        ({"script": "1 quit", "benchmark": 1.0}, "give one of them"),
        ({"fps": -1.0}, "at least 0"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        play(PlayConfig(**wrong))  # type: ignore[arg-type]
