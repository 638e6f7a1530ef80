"""Promises of learning inside a world: it works outside, goes on after a stop or a kill, and its files are safe to open."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.evaluation import evaluate_policy

from neuralsim.agents.policies.sb3_file import PolicyNote, load_policy, read_note, save_policy
from neuralsim.agents.rl.algorithms import ALGORITHMS, build
from neuralsim.agents.rl.checkpoint import load_progress
from neuralsim.agents.rl.config import RLConfig
from neuralsim.agents.rl.learning_curve import load_curve, summary
from neuralsim.agents.rl.train import RLTrainer, train_agent
from neuralsim.agents.rl.vec_envs import FiniteVecEnv, make_imagined_vec_env, make_real_vec_env
from neuralsim.envs.imagined.sb3_vec_env import ImaginedVecEnv
from neuralsim.envs.tasks.rl_task import find_task
from neuralsim.envs.wrappers.discrete_actions import to_actions
from neuralsim.envs.wrappers.features import FeatureEnv
from neuralsim.pretrained.world import open_world
from neuralsim.runtime.interrupt import Stopped

SMALL = RLConfig("tworoom", steps=8192, n_envs=64, n_eval_episodes=3, n_evals=2, video=False, threads=1, device="cpu")


def ground(n_envs: int = 16, moves: bool = False):
    world, rl_task = open_world("tworoom-latent", "cpu"), find_task("tworoom")
    return make_imagined_vec_env(world, rl_task, rl_task.starts(64, 0), n_envs, moves=moves)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_policy(path).network.state_dict()


def test_what_is_learned_inside_works_outside(tmp_path: Path) -> None:
    config = replace(SMALL, steps=65536, n_envs=256, n_eval_episodes=20, out=tmp_path / "run", video=True)
    curve, files = train_agent(config)
    first, last = curve.points[0], curve.points[-1]
    assert last.steps >= 65536
    assert last.true_steps == 0
    assert last.seconds > 0
    assert last.true.low > first.true.high
    assert last.true_success.value >= 0.6
    assert abs(last.imagined.value - last.true.value) < 1.0
    assert all(f.is_file() for f in files)
    assert (tmp_path / "run/policy.mp4") in files
    assert len(list((tmp_path / "run/tensorboard").iterdir())) >= 1
    assert load_curve(tmp_path / "run") == load_curve(tmp_path / "run")
    assert [p.steps for p in load_curve(tmp_path / "run").points] == [p.steps for p in curve.points]
    policy = load_policy(tmp_path / "run" / last.policy)
    assert policy.note == PolicyNote(
        "ppo", "features", "tworoom", "reach", "tworoom-latent", last.steps, 0, False, "imagined"
    )
    env = FeatureEnv(find_task("tworoom").env(), open_world("tworoom-latent", "cpu").model)
    found, _ = evaluate_policy(sb3.PPO.load(tmp_path / "run" / last.policy, device="cpu"), env, 5, warn=False)
    assert found > 0
    assert summary(curve)["true"].value == last.true.value


def test_a_run_that_was_stopped_goes_on_and_keeps_its_curve(tmp_path: Path) -> None:
    config = replace(SMALL, steps=24576, out=tmp_path / "run")
    run = RLTrainer(config)
    noted = run.note

    def note(steps: int, last: bool = False) -> None:
        noted(steps, last)
        run.stopping.asked |= steps >= 12288

    run.note = note
    with pytest.raises(Stopped, match=r"stopped at step \d+ of 24576; add --resume"):
        run.train()
    stopped = load_progress(tmp_path / "run")
    assert stopped is not None
    assert 8192 <= stopped.steps < 24576
    before = load_curve(tmp_path / "run").points
    with pytest.raises(FileExistsError, match="add --resume"):
        RLTrainer(config)
    again = RLTrainer(replace(config, resume=True))
    for name, tensor in weights(tmp_path / "run/checkpoint/policy.zip").items():
        assert torch.equal(tensor, again.model.policy.state_dict()[name])
    curve = again.train()
    assert curve.points[: len(before)] == before
    assert curve.points[-1].steps >= 24576
    assert curve.points[-1].seconds > stopped.seconds


def test_the_same_seed_learns_the_same_and_another_something_else(tmp_path: Path) -> None:
    runs = [
        RLTrainer(replace(SMALL, steps=4096, seed=seed, out=tmp_path / name))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    curves = [run.train() for run in runs]
    a, b, c = (run.model.policy.state_dict() for run in runs)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)
    assert [(p.true, p.imagined) for p in curves[0].points] == [(p.true, p.imagined) for p in curves[1].points]


def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    words = [
        "rl",
        "tworoom",
        "--steps",
        "10000000",
        "--n-envs",
        "64",
        "--n-eval-episodes",
        "2",
        "--n-evals",
        "2000",
        "--threads",
        "1",
    ]
    command = [sys.executable, "-c", "from neuralsim.cli import main; raise SystemExit(main())", *words]
    command += ["--out", str(tmp_path / "run"), "--no-video", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not (tmp_path / "run/checkpoint/standing.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    standing = load_progress(tmp_path / "run")
    assert standing is not None
    assert standing.steps > 0
    run = RLTrainer(
        RLConfig(
            "tworoom",
            steps=standing.steps + 4096,
            n_envs=64,
            n_eval_episodes=2,
            n_evals=1,
            out=tmp_path / "run",
            resume=True,
            video=False,
        )
    )
    assert run.model.num_timesteps == standing.steps
    curve = run.train()
    assert curve.points[-1].steps >= standing.steps + 4096
    assert sorted({p.steps for p in curve.points}) == [p.steps for p in curve.points]


def test_the_memory_of_an_off_policy_learner_survives(tmp_path: Path) -> None:
    config = replace(SMALL, algo="sac", steps=1024, n_envs=16, out=tmp_path / "run")
    run = RLTrainer(config)
    run.train()
    again = RLTrainer(replace(config, steps=1100, resume=True))
    old, new = run.model.replay_buffer, again.model.replay_buffer
    assert new.pos == old.pos > 0
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        np.testing.assert_array_equal(getattr(old, name)[: old.pos], getattr(new, name)[: new.pos])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_trains_on_the_same_face_and_its_file_opens_without_unpickling(
    algorithm: str, tmp_path: Path
) -> None:
    replays = algorithm in ("sac", "td3", "dqn")
    env = ground(16 if replays else 64, moves=algorithm == "dqn")
    model, _ = build(algorithm, env, False, 0, "cpu")
    model.learn(16 * 200 if replays else 1)
    note = PolicyNote(algorithm, "features", "tworoom", "reach", "tworoom-latent")
    save_policy(model, tmp_path / "policy.zip", note)
    policy = load_policy(tmp_path / "policy.zip")
    assert policy.note == note
    seen = env.reset()
    mine, _ = policy.predict(seen, None, np.ones(env.num_envs, bool), deterministic=True)
    theirs, _ = model.predict(seen, None, np.ones(env.num_envs, bool), deterministic=True)
    np.testing.assert_array_equal(mine, to_actions(theirs, 2))


def test_a_policy_file_of_anybodys_opens_without_running_what_it_holds(tmp_path: Path) -> None:
    model = sb3.PPO(
        "MlpPolicy", ground(), policy_kwargs={"activation_fn": torch.nn.ReLU, "net_arch": [16, 8]}, n_steps=8
    )
    model.save(tmp_path / "foreign.zip")
    policy = load_policy(tmp_path / "foreign.zip")
    assert read_note(tmp_path / "foreign.zip") == PolicyNote()
    seen = ground().reset()
    np.testing.assert_array_equal(
        policy.predict(seen, deterministic=True)[0], model.predict(seen, deterministic=True)[0]
    )
    trap = tmp_path / "trap.zip"
    with zipfile.ZipFile(tmp_path / "foreign.zip") as old, zipfile.ZipFile(trap, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "policy.pth":  # weights that run a program when unpickled
                buffer = io.BytesIO()
                torch.save({"bomb": Bomb(str(tmp_path / "went off"))}, buffer)
                content = buffer.getvalue()
            new.writestr(name, content)
    with pytest.raises(ValueError, match=r"trap\.zip: policy\.pth does not hold plain weights"):
        load_policy(trap)
    assert not (tmp_path / "went off").exists()


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_damaged_policy_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.zip: no such policy"):
        load_policy(tmp_path / "none.zip")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match=r"text\.zip: not a file that"):
        load_policy(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("data", "{}")
    with pytest.raises(ValueError, match=r"empty\.zip: holds no policy\.pth"):
        load_policy(tmp_path / "empty.zip")
    model, _ = build("ppo", ground(), False, 0, "cpu")
    save_policy(model, tmp_path / "good.zip", PolicyNote("ppo"))
    body = (tmp_path / "good.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(body[: len(body) // 2])
    with pytest.raises(ValueError, match=r"cut\.zip"):
        load_policy(tmp_path / "cut.zip")


def test_a_number_that_is_none_stops_with_step_slot_and_seed() -> None:
    env = ground(4)
    assert isinstance(env, FiniteVecEnv)
    env.seed(11)
    env.reset()
    env.step(np.zeros((4, 2), np.float32))
    bad = np.zeros((4, 2), np.float32)
    bad[2, 1] = np.nan
    with pytest.raises(
        FloatingPointError,
        match=r"the policy's action .* step 1 of environment 2, which began at start \d+; .* 11 \+ index",
    ):
        env.step(bad)
    world, rl_task = open_world("tworoom-latent", "cpu"), find_task("tworoom")
    judged = replace(
        rl_task, reward=lambda before, actions, after: (np.where(np.arange(4) == 3, np.nan, 0.0), np.zeros(4, bool))
    )
    env = make_imagined_vec_env(world, judged, rl_task.starts(8, 0), 4)
    env.seed(1)
    env.reset()
    with pytest.raises(FloatingPointError, match=r"the world's reward .* step 1 of environment 3"):
        env.step(np.zeros((4, 2), np.float32))


@pytest.mark.parametrize("processes", [False, True])
def test_the_true_ground_shows_the_same_features_in_one_process_or_several(processes: bool) -> None:
    world, rl_task = open_world("tworoom-latent", "cpu"), find_task("tworoom")
    env = make_real_vec_env(world, rl_task, 2, "features", processes=processes)
    try:
        env.seed(9)
        observed = env.reset()
        for i in range(2):
            alone = FeatureEnv(rl_task.env(), world.model)
            np.testing.assert_allclose(alone.reset(seed=9 + i)[0], observed[i], atol=0.05)
        _, rewards, dones, _ = env.step(np.ones((2, 2), np.float32))
        assert rewards.shape == dones.shape == (2,)
    finally:
        env.close()


def test_the_readmes_three_lines_of_python_train(tmp_path: Path) -> None:
    env = ImaginedVecEnv("tworoom", num_envs=8, observation="features")
    model = sb3.PPO("MlpPolicy", env, n_steps=16, batch_size=64, n_epochs=1, device="cpu").learn(128)
    found, _ = evaluate_policy(
        model, FeatureEnv(find_task("tworoom", "stay").env(), open_world("tworoom", "cpu").model), 2, warn=False
    )
    assert found < 0


def test_refreshing_acts_in_truth_trains_the_world_on_and_measures_its_drift(tmp_path: Path) -> None:
    config = replace(
        SMALL, steps=12288, dyna_rounds=1, dyna_episodes=10, n_evals=1, data=tmp_path / "nothing", out=tmp_path / "run"
    )
    curve, _ = train_agent(config)
    standing = load_progress(tmp_path / "run")
    assert standing is not None
    assert standing.rounds == 1
    assert Path(standing.world).is_dir()
    assert curve.points[-1].true_steps == standing.true_steps > 0
    (drift,) = standing.drift
    assert drift["episodes"] == 10
    for when in ("before", "after"):
        assert 0 < drift[when]["10"]["value"] < 3
        assert drift[when]["10"]["episodes"] == 2
    assert drift["before"] != drift["after"]
    home, new = (open_world(w, "cpu").model for w in ("tworoom-latent", standing.world))
    changed = {
        name.split(".")[0]
        for (name, old), fresh in zip(home.state_dict().items(), new.state_dict().values(), strict=True)
        if not torch.equal(old, fresh)
    }
    assert "predictors" in changed
    assert changed <= {"predictors", "reward_head", "state_head", "uncertainty_threshold"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "--steps: expected 1 or more, got 0"),
        ({"world": "moon"}, "no real world 'moon'"),
        ({"task": "push"}, "no task 'push' in world 'tworoom'; there are reach, stay"),
        ({"dyna_rounds": 2, "real": True}, "--dyna-rounds: trains the world that the agent learns in"),
        ({"n_eval_episodes": 0}, "--n-eval-episodes: expected 1 or more"),
    ],
)
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        replace(SMALL, **settings)


def test_a_damaged_curve_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run of 'neuralsim rl' here"):
        load_curve(tmp_path)
    (tmp_path / "curve.json").write_text(json.dumps({"label": "imagined"}))
    with pytest.raises(ValueError, match=r"curve\.json: damaged"):
        load_curve(tmp_path)
