"""A trained folder in every command that plays, learns, plans and evaluates, for any actions and frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuralsim import cli
from neuralsim.agents.collection.collect import CollectConfig, collect
from neuralsim.agents.evaluation.candidate import find_candidate
from neuralsim.agents.evaluation.paired_evaluation import PairedEvaluation
from neuralsim.agents.planning.config import PlanConfig
from neuralsim.agents.planning.evaluate import plan
from neuralsim.agents.planning.setup import resolve_goal_task
from neuralsim.agents.policies.resolve import resolve_policy
from neuralsim.agents.policies.sb3_file import read_note
from neuralsim.agents.rl.behavior_cloning import CloneConfig, clone
from neuralsim.agents.rl.config import RLConfig
from neuralsim.agents.rl.learning_curve import load_curve
from neuralsim.agents.teleop.config import PlayConfig
from neuralsim.agents.teleop.key_bindings import RAMP_SECONDS, BoxKeyboard, keyboard_and_labels, keyboard_for
from neuralsim.agents.teleop.panels import PanelRenderer
from neuralsim.agents.teleop.play import play
from neuralsim.agents.teleop.player import Player
from neuralsim.agents.teleop.recorder import Recorder
from neuralsim.agents.teleop.session import Session, open_imagination
from neuralsim.agents.teleop.window import Window
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.carracing.env import STATE_NAMES, car_racing_spec
from neuralsim.envs.tasks.rl_task import find_task, task_for, task_of
from neuralsim.models.video_wam import CodecConfig, StreamConfig, VideoWAM
from neuralsim.pretrained.starts import Starts
from neuralsim.pretrained.world import World, open_world
from neuralsim.spec import WorldSpec
from neuralsim.training.config import TrainConfig
from neuralsim.training.trainer import train

STEPS = 20
"""Steps of the small CartPole's episodes at most."""


@pytest.fixture(autouse=True)
def dummy_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("SDL_AUDIODRIVER", "dummy")


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a world that hardly learned CartPole: two choices, frames that are not square."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDL_VIDEODRIVER", "dummy")
        folder = tmp_path_factory.mktemp("cartpole")
        kwargs = json.dumps({"max_episode_steps": STEPS})
        for _ in collect(
            CollectConfig(
                env="CartPole-v1", env_kwargs=kwargs, episodes=24, size=(16, 24), out=folder / "data", workers=1
            )
        ):
            pass
        train(TrainConfig(data=folder / "data", size="tiny", effort=0.01, threads=1, out=folder / "run"))
    return folder / "run"


@pytest.fixture(scope="module")
def untold(cartpole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same world without a word of where it comes from."""
    world = open_world(cartpole, "cpu")
    return World(world.model, world.starts).save(tmp_path_factory.mktemp("untold") / "mine")


@pytest.fixture(scope="module")
def agent(cartpole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of an agent that hardly learned in there, by the command line."""
    out = tmp_path_factory.mktemp("rl") / "ppo"
    line = f"rl {cartpole} --algo ppo --steps 512 --n-envs 16 --n-eval-episodes 3 --n-evals 1 --device cpu --threads 1 --out {out}"
    assert cli.main(line.split()) == 0
    return out


def invented(spec: WorldSpec, states: tuple[str, ...] = ()) -> World:
    """A world that nobody trained, with starts of noise."""
    rng = np.random.default_rng(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VideoWAM.build(
            spec,
            CodecConfig(tokens=1, size=8, conv_width=8),
            StreamConfig(width=32, layers=1, heads=2, window=3),
            states,
        )
    frames = rng.integers(0, 255, (3, 2, *spec.frame_shape), np.uint8)
    return World(model.eval().requires_grad_(False), Starts(frames, spec.random_actions(rng, 3, 1)))


def played(place: Path, out: Path, script: str, **config: Any) -> tuple[dict[str, Any], EpisodeStore]:
    """What a headless play of the world in ``place`` reports, and the episodes it left."""
    report = play(
        PlayConfig(
            str(place), script=script, headless=True, record=True, out=out, json=out / "r.json", scale=3, **config
        )
    )
    assert all(Path(video).stat().st_size > 0 for video in report.videos)
    return json.loads((out / "r.json").read_text()), EpisodeStore(out / "imagined")


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Saves an invented world."""
    return lambda spec, *states: invented(spec, *states).save(tmp_path / "world")


# -- play --------------------------------------------------------------------------------------------------------------


def test_carracing_is_played_with_pedals_that_come_back_and_nothing_of_pusht_is_said(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    folder = saved(car_racing_spec(), STATE_NAMES)
    report, store = played(folder, tmp_path, "0 down UP; 0.06 down LEFT; 0.9 up UP; 0.9 up LEFT; 2 quit")
    steer, gas, brake = store[0].actions.T
    assert gas[0] == pytest.approx(-1 + 1 / (RAMP_SECONDS * 50 / 3))
    assert (np.diff(gas[:15]) >= 0).all()
    assert gas[:15].max() == 1
    assert steer.min() == steer[14] == -1
    assert (brake == -1).all()
    assert gas[-1] == -1, "a pedal that nobody holds comes up"
    assert steer[-1] == 0
    assert set(report["readings"]) == {"reward_dream", "end_dream", "return_dream", *STATE_NAMES}
    assert "coverage" not in json.dumps(report)
    assert report["difference"] is None
    assert not (tmp_path / "true").exists()


def test_steering_is_under_way_for_a_moment_and_at_once_where_nobody_wants_a_ramp() -> None:
    soft, hard = BoxKeyboard(car_racing_spec(), 0.15), BoxKeyboard(car_racing_spec())
    for keyboard in (soft, hard):
        keyboard.hold("left")
    np.testing.assert_allclose([soft.read().action[0] for _ in range(4)], [-0.4, -0.8, -1, -1], atol=1e-6)
    assert hard.read().action[0] == -1
    for keyboard in (soft, hard):
        keyboard.clear()
    np.testing.assert_allclose([soft.read().action[0] for _ in range(4)], [-0.6, -0.2, 0, 0], atol=1e-6)
    assert hard.read().action[0] == 0


def test_digits_choose_where_there_are_choices(cartpole: Path, tmp_path: Path) -> None:
    report, store = played(cartpole, tmp_path, "0 down 1; 0.1 up 1; 0.2 tap RIGHT; 0.3 quit")
    actions = store[0].actions[:, 0]
    assert actions.dtype == np.int64
    assert actions.tolist() == [1] * 5 + [0] * 5 + [1] + [0] * 4
    assert store[0].frames.shape[1:] == (16, 24, 3)
    assert store[0].provenance["denoise_steps"] == [1] * 15, "1 was a choice, not a number of denoising steps"
    assert {"reward_dream", "end_dream"} < set(report["readings"])


def test_several_choices_at_once_have_a_pair_of_keys_each(saved: Callable[..., Path], tmp_path: Path) -> None:
    spec = WorldSpec("gates", 16, 24, ("a", "b", "c"), ("choice",) * 3, (1.0,) * 3, 10.0, 2, action_choices=(3, 2, 4))
    keyboard, legend = keyboard_for(spec)
    assert legend == (("left", "a 1"), ("right", "a 2"), ("up", "b 1"), ("j", "c 1"), ("l", "c 2"))
    assert keyboard.predict()[0].tolist() == [0, 0, 0]
    _, store = played(saved(spec), tmp_path, "0 down RIGHT; 0.1 down UP; 0.2 up RIGHT; 0.3 down j; 0.4 quit")
    assert store[0].actions.tolist() == [[2, 0, 0], [2, 1, 0], [0, 1, 0], [0, 1, 1]]


def test_the_window_shows_the_dream_beside_its_readings(cartpole: Path, tmp_path: Path, monkeypatch: Any) -> None:
    shown: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    draw = Player.draw

    def watched(self: Player) -> None:
        draw(self)
        import pygame

        pixels = pygame.surfarray.array3d(self.window.surface).transpose(1, 0, 2)
        shown.append((self.frame.imagined, self.window.panel(0), pixels))

    monkeypatch.setattr(Player, "draw", watched)
    played(cartpole, tmp_path, "0 down 1; 0.1 tap h; 0.12 quit")
    dream, panel, pixels = shown[0]
    np.testing.assert_array_equal(panel, dream.repeat(3, 0).repeat(3, 1))
    right = pixels[: panel.shape[0], panel.shape[1] + 60 :]
    assert len(np.unique(right.reshape(-1, 3), axis=0)) > 20, "words, in smooth letters"
    helped = shown[-1][2]
    assert (helped != pixels).any(-1).mean() > 0.5


def test_tworoom_has_its_real_environment_beside_it(tmp_path: Path) -> None:
    report = play(
        PlayConfig("tworoom", script="0 down LEFT; 0.5 quit", headless=True, record=True, out=tmp_path, scale=3)
    )
    true, imagined = EpisodeStore(tmp_path / "true"), EpisodeStore(tmp_path / "imagined")
    np.testing.assert_array_equal(true[0].actions, imagined[0].actions)
    assert true[0].states is not None
    assert "coverage_truth" not in report.readings
    assert report.readings["reward_truth"] == pytest.approx(true[0].rewards[-1])


def test_who_drives_any_world(cartpole: Path, agent: Path, tmp_path: Path) -> None:
    zip_file = sorted((agent / "policies").glob("*.zip"))[-1]
    for policy in ("explorer", str(zip_file)):
        _, store = played(cartpole, tmp_path / Path(policy).stem, "0 tap p; 0.2 quit", policy=policy)
        assert store[0].provenance["policy"] == Path(policy).stem
        assert set(store[0].actions[:, 0].tolist()) <= {0, 1}
    assert resolve_policy("driver", car_racing_spec()).observation == "pixels"
    with pytest.raises(FileNotFoundError, match=r"no policy of that name; expected .*driver"):
        resolve_policy("nobody", car_racing_spec())


def test_the_benchmark_presses_the_keys_that_act(cartpole: Path, tmp_path: Path) -> None:
    report = play(PlayConfig(str(cartpole), benchmark=2.0, out=tmp_path, scale=3))
    assert report.key_changes > 0
    assert report.steps > 0


def test_a_world_is_played_at_its_own_pace(saved: Callable[..., Path], tmp_path: Path) -> None:
    world = open_world(saved(car_racing_spec()), "cpu")

    def pace(fps: float | None) -> float:
        keyboard, labels = keyboard_and_labels(world.spec)
        session = Session(open_imagination(world), resolve_policy("explorer", world), keyboard)
        window = Window((64, 64), 3, "test", PanelRenderer(labels), False)
        try:
            return Player(PlayConfig(fps=fps), session, window, Recorder(tmp_path, world.spec)).fps
        finally:
            window.close()

    assert pace(None) == pytest.approx(50 / 3)
    assert pace(5.0) == 5


def test_a_world_that_begins_nowhere_is_named(saved: Callable[..., Path]) -> None:
    folder = saved(car_racing_spec())
    (folder / "world.json").unlink()
    (folder / "starts.npz").unlink()
    with pytest.raises(ValueError, match=r"no starts\.npz"):
        play(PlayConfig(str(folder), script="0 quit", headless=True))


# -- rl, evaluate, rank ------------------------------------------------------------------------------------------------


def test_an_agent_learns_inside_and_is_tried_outside(cartpole: Path, agent: Path) -> None:
    curve = load_curve(agent)
    assert (curve.world, curve.task, curve.outcome) == ("CartPole-v1", "own", "terminated")
    last = curve.points[-1]
    assert last.steps >= 512
    assert last.true is not None
    assert 1 <= last.true.value <= STEPS, "a reward of one a step, until it falls or time is over"
    note = read_note(agent / last.policy)
    assert (note.world, note.task, note.model) == ("CartPole-v1", "own", str(cartpole))
    assert (agent / "policy.mp4").stat().st_size > 0


def test_dqn_learns_of_choices_and_quantities_are_not_asked_of_them(cartpole: Path, tmp_path: Path) -> None:
    line = f"rl {cartpole} --steps 64 --n-eval-episodes 2 --n-evals 1 --no-video --device cpu --threads 1"
    assert cli.main([*line.split(), "--algo", "dqn", "--out", str(tmp_path / "dqn")]) == 0
    assert load_curve(tmp_path / "dqn").points[-1].true is not None
    from neuralsim.agents.rl.train import RLTrainer

    with pytest.raises(ValueError, match=r"--algo sac: does not act in Discrete\(2\); here there are ppo, a2c"):
        RLTrainer(RLConfig(str(cartpole), algo="sac", n_eval_episodes=1, device="cpu", out=tmp_path / "sac"))


def test_an_agent_learns_in_the_true_world_too(cartpole: Path, tmp_path: Path) -> None:
    line = f"rl {cartpole} --real --steps 64 --n-envs 2 --n-eval-episodes 2 --n-evals 1 --no-video --device cpu --out {tmp_path}"
    assert cli.main(line.split()) == 0
    assert load_curve(tmp_path).points[-1].true_steps >= 64


def test_both_sides_begin_at_the_same_resets(cartpole: Path) -> None:
    world, rl_task = open_world(cartpole, "cpu"), task_for(cartpole)
    assert rl_task.horizon == STEPS
    paired = PairedEvaluation(rl_task, 3)
    starts = paired.starts(world)
    assert starts.seeds is not None
    env = rl_task.env((16, 24))
    for frames, seed in zip(starts.frames, starts.seeds, strict=True):
        np.testing.assert_array_equal(env.reset(seed=int(seed))[0], frames[-1])
    still = paired.real(find_candidate("still", str(cartpole)))
    assert (still.returns == still.lengths).all()
    assert still.success.all(), "pushed to one side alone it falls"
    few = PairedEvaluation(rl_task, 2).starts(world)
    np.testing.assert_array_equal(few.frames, starts.frames[:2])


def test_evaluate_and_rank_take_the_folder(
    cartpole: Path, agent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = str(sorted((agent / "policies").glob("*.zip"))[-1])
    video, found = tmp_path / "v.mp4", tmp_path / "e.json"
    line = f"evaluate {cartpole} --policy {policy} --episodes 3 --video {video} --json {found}"
    assert cli.main(line.split()) == 0
    rows = {row["key"] for row in json.loads(found.read_text())["rows"]}
    assert {"true_return", "true_terminated", "imagined_return", "gap_return"} <= rows
    assert not any("success" in key for key in rows), "an end is no success where nobody says so"
    assert video.stat().st_size > 0
    assert cli.main(f"rank {cartpole} --policies {policy} random still --episodes 3 --out {tmp_path}".split()) == 0
    ranked = {row["key"] for row in json.loads((tmp_path / "rank.json").read_text())["rows"]}
    assert "pearson_return" in ranked
    assert "pearson_success" not in ranked
    out = capsys.readouterr().out
    assert "true return" in out


def test_without_a_true_world_imagination_alone_is_told_and_said_to_be(
    untold: Path, cartpole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"rl {untold} --steps 64 --n-envs 4 --n-eval-episodes 2 --n-evals 1 --no-video --device cpu --out {tmp_path / 'rl'}"
    assert cli.main(line.split()) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "imagined return" in out
    assert "true return" not in out
    assert "all figures are imagined" in out
    assert load_curve(tmp_path / "rl").points[-1].true is None
    assert cli.main(f"evaluate {untold} --policy still --episodes 1".split()) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "imagined: return" in out
    assert "true: return" not in out
    with pytest.raises(ValueError, match=r"imagination alone: .* nothing says which real environment"):
        RLConfig(str(untold), real=True)
    for wrong in (
        f"evaluate {untold} --real",
        f"rank {untold} --policies random still",
        f"plan {untold} --out {tmp_path / 'plan'}",
        f"compare {tmp_path / 'rl'}",
    ):
        assert cli.main(wrong.split()) == 2, wrong
        assert "imagination alone" in capsys.readouterr().err, wrong


def test_choices_are_copied_from_demonstrations(cartpole: Path) -> None:
    world, rl_task = open_world(cartpole, "cpu"), task_for(cartpole)
    store = EpisodeStore(cartpole.parent / "data")
    errors: list[float] = []
    copied = clone(
        world,
        rl_task,
        store,
        CloneConfig(epochs=30, patience=30),
        tick=lambda _, learned, unseen: errors.append(learned),
    )
    assert errors[-1] < errors[0] < 1.0, "nats of two choices"
    assert copied.policy.action_space == world.spec.action_space()


def test_a_policy_of_another_world_is_refused(cartpole: Path, agent: Path) -> None:
    policy = str(sorted((agent / "policies").glob("*.zip"))[-1])
    with pytest.raises(ValueError, match=r"trained in 'CartPole-v1'; asked to evaluate it in 'tworoom'"):
        find_candidate(policy, "tworoom")
    with pytest.raises(ValueError, match=r"no task 'push' in world 'CartPole-v1'; there are own"):
        RLConfig(str(cartpole), task="push")


# -- plan --------------------------------------------------------------------------------------------------------------


def test_a_world_that_begins_by_seed_is_planned_for_its_reward(cartpole: Path, tmp_path: Path) -> None:
    config = PlanConfig(
        str(cartpole),
        episodes=2,
        candidates=4,
        rounds=1,
        lookahead=4,
        block=2,
        n_action_steps=2,
        out=tmp_path,
        device="cpu",
    )
    report, files = plan(config)
    assert {f.name for f in files} == {"plan.json", "plan-0.mp4"}
    for actor in ("planner", "random", "still", "explorer"):
        assert 1 <= report[f"{actor}_return"].value <= STEPS
        assert report[f"{actor}_return"].n == 2
    gap = report["planner_return"].value - report["random_return"].value
    assert report["more_than_random"].value == pytest.approx(gap)
    assert report["ms_p50"].value > 0
    lines = (tmp_path / "attempts.jsonl").read_text().splitlines()
    again, _ = plan(config)
    assert (tmp_path / "attempts.jsonl").read_text().splitlines() == lines, "what was done is kept"
    assert [row.value for row in again.rows] == [row.value for row in report.rows]
    with pytest.raises(ValueError, match="begun with other settings"):
        plan(replace(config, seed=1))
    with pytest.raises(ValueError, match=r"--goal: .* no simulator that can be put at a state"):
        plan(replace(config, goal="random"))


# -- worlds by name ----------------------------------------------------------------------------------------------------


def test_a_learned_world_with_a_course_stands_for_it(tiny_world: Path) -> None:
    settled = resolve_goal_task(PlanConfig(str(tiny_world)))
    assert settled is not None
    assert (settled.world, settled.model) == ("pusht", str(tiny_world))
    assert settled.folder.name == tiny_world.name
    assert task_for(tiny_world).name == "push"
    assert RLConfig(str(tiny_world)).learned_world == str(tiny_world)


def test_carracing_goes_by_its_name() -> None:
    rl_task = find_task("carracing")
    assert (rl_task.name, rl_task.horizon, rl_task.outcome) == ("drive", 300, "terminated")
    env = rl_task.env(64)
    first, again = env.reset(seed=4)[0], env.reset(seed=4)[0]
    np.testing.assert_array_equal(first, again)
    _, reward, terminated, truncated, info = env.step(np.array([0, 1, -1], np.float32))
    assert reward == info["own_reward"]
    assert not terminated
    assert not truncated
    env.close()
    assert task_of(invented(car_racing_spec())) is rl_task


def test_the_folder_of_a_run_means_the_world_in_it(cartpole: Path) -> None:
    assert open_world(cartpole, "cpu").folder == (cartpole / "world").resolve()
