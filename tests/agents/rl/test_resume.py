"""Runs of reinforcement learning go on only as they were begun: one process per folder, the same settings, a checkpoint or none."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuralsim.agents.rl import checkpoint as checkpoint_module
from neuralsim.agents.rl.checkpoint import load_progress
from neuralsim.agents.rl.config import RECORDED_AS, RLConfig
from neuralsim.agents.rl.learning_curve import load_curve
from neuralsim.agents.rl.train import RLTrainer, train_agent
from neuralsim.runtime.files import DiskFullError, folder_lock

SMALL = RLConfig("tworoom", steps=256, n_envs=16, n_eval_episodes=2, n_evals=1, video=False, threads=1, device="cpu")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run") / "ppo"
    train_agent(replace(SMALL, out=folder))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name[0] != "."}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 3}, r"--seed 0, asked for 3"),
        ({"n_envs": 8}, r"--n-envs 16, asked for 8"),
        ({"algo": "a2c"}, r"--algo ppo, asked for a2c"),
        (
            {"n_eval_episodes": 3, "temperature": 0.5},
            r"--temperature 1.0, asked for 0.5, --n-eval-episodes 2, asked for 3",
        ),
        ({"task": "stay"}, r"--task None, asked for stay"),
        ({"uncertainty_limit": 2.0}, r"--uncertainty-limit None, asked for 2.0"),
    ],
)
def test_other_settings_are_named_and_nothing_is_touched(done: Path, change: dict[str, Any], message: str) -> None:
    before = files(done)
    with pytest.raises(ValueError, match=message):
        train_agent(replace(SMALL, out=done, resume=True, **change))
    assert files(done) == before


def test_a_longer_run_may_go_on_and_is_recorded_as_such(done: Path) -> None:
    curve, _ = train_agent(replace(SMALL, out=done, resume=True, steps=512, n_evals=2))
    assert curve.points[-1].steps >= 512
    assert load_curve(done).settings["steps"] == 512
    assert load_curve(done).settings["looks"] == 2


def test_the_keys_of_a_curve_keep_their_earlier_names(done: Path) -> None:
    settings = json.loads((done / "curve.json").read_text())["settings"]
    assert set(RECORDED_AS.values()) <= settings.keys()
    assert not set(RECORDED_AS) & settings.keys()


def test_only_one_process_learns_in_a_folder(tmp_path: Path) -> None:
    with folder_lock(tmp_path, "training an agent"):
        for algo in ("ppo", "random"):
            with pytest.raises(BlockingIOError, match="training an agent here"):
                train_agent(replace(SMALL, algo=algo, out=tmp_path))
    assert not (tmp_path / "curve.json").exists()


def test_another_algorithm_does_not_take_the_place_of_a_run(done: Path) -> None:
    before = files(done)
    with pytest.raises(FileExistsError, match=r"holds a run already .--algo ppo, asked for random"):
        train_agent(replace(SMALL, algo="random", out=done))
    assert files(done) == before


def test_a_run_in_a_world_with_new_weights_does_not_go_on(done: Path) -> None:
    path = done / "checkpoint" / "standing.json"
    text = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(text) | {"weights": "0123456789abcdef"}))
        with pytest.raises(ValueError, match="whose weights have changed since"):
            RLTrainer(replace(SMALL, out=done, resume=True))
    finally:
        path.write_text(text)


@pytest.mark.parametrize("writer", ["savez", "save_policy"])
def test_a_full_disk_names_the_checkpoint_and_keeps_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    trainer = RLTrainer(replace(SMALL, algo="sac", out=tmp_path))
    trainer.model.learn(16 * 3)
    trainer.save()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((np, "savez") if writer == "savez" else (checkpoint_module, "save_policy")), full)
    trainer.progress = replace(trainer.progress, steps=99)
    with pytest.raises(
        DiskFullError, match=r"checkpoint: the disk is full .*the checkpoint before is whole; .*--resume"
    ):
        trainer.save()
    monkeypatch.undo()
    found = load_progress(tmp_path)
    assert found is not None
    assert found.steps == 0
    assert not list(tmp_path.glob(".writing-*"))


def test_a_kill_between_the_renames_of_a_checkpoint_loses_nothing(tmp_path: Path) -> None:
    trainer = RLTrainer(replace(SMALL, out=tmp_path))
    trainer.save()
    (tmp_path / "checkpoint").rename(tmp_path / ".checkpoint-before")
    assert load_progress(tmp_path) is not None
    assert (tmp_path / "checkpoint" / "policy.zip").is_file()
    assert not list(tmp_path.glob(".checkpoint-*"))


@pytest.mark.parametrize("algo", ["ppo", "sac"])
def test_an_agent_learns_the_same_under_another_default_dtype(algo: str, tmp_path: Path) -> None:
    def learned(out: Path) -> dict[str, torch.Tensor]:
        config = replace(SMALL, algo=algo, steps=64, n_envs=4, n_eval_episodes=1, out=out)
        trainer = RLTrainer(config)
        trainer.train()
        return trainer.model.policy.state_dict()

    expected = learned(tmp_path / "float32")
    torch.set_default_dtype(torch.float64)
    try:
        weights = learned(tmp_path / "float64")
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
