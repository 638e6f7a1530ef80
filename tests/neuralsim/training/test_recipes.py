"""Recipes on any data: the camera selects the codec, video without actions trains too, states are estimated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from safetensors.torch import load_file

from neuralsim.data.episode import ActionsAbsent, Episode
from neuralsim.data.store import EpisodeStore
from neuralsim.pretrained.world import open_world
from neuralsim.spec import WorldSpec
from neuralsim.storage.manifest import WEIGHTS
from neuralsim.training.config import TrainConfig
from neuralsim.training.recipes import find_recipe
from neuralsim.training.time_estimate import estimate_time
from neuralsim.training.token_dataset import TokenWindows
from neuralsim.training.trainer import Trainer, train
from neuralsim.world_checker import check_world

SPEC = WorldSpec("drift", 24, 32, ("right", "down"), ("pixels",) * 2, (2.0, 2.0), 10.0, 2)
"""A world that is not square."""


def drift(seed: int, moving: bool, steps: int = 24) -> Episode:
    """A square that goes where it is told, over a still ground; or a ground that goes, as a moving camera sees one."""
    rng = np.random.default_rng(seed)
    ground = np.kron(rng.integers(0, 255, (40, 40, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    actions = np.repeat(rng.uniform(-1, 1, (steps // 4, 2)), 4, 0).astype(np.float32)
    places = np.clip(np.array([12, 10]) + np.concatenate([np.zeros((1, 2)), 2 * actions.cumsum(0)]), [4, 4], [28, 20])
    frames = []
    for x, y in places.round().astype(int):
        frame = ground[100 + y : 124 + y, 100 + x : 132 + x].copy() if moving else np.full((24, 32, 3), 40, np.uint8)
        if not moving:
            frame[y - 3 : y + 3, x - 3 : x + 3] = 220
        frames.append(frame)
    off = np.zeros(steps, bool)
    reward = -np.linalg.norm(places[1:] - 16, axis=1).astype(np.float32)
    return Episode(np.stack(frames), actions, reward, off, off, places.astype(np.float32), {"seed": seed})


def as_video(episode: Episode) -> Episode:
    return Episode.of_video(episode.frames, episode.provenance)


def write(folder: Path, episodes: list[list[Episode]], spec: WorldSpec = SPEC) -> Path:
    store = EpisodeStore.create(folder, spec, ("x", "y"))
    for shard in episodes:
        store.add(shard)
    return folder


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "still", [[drift(i, False) for i in range(12)]])


def learn(data: Path, out: Path, effort: float = 0.03, **more: object) -> Path:
    return train(TrainConfig(data=data, size="tiny", out=out, effort=effort, threads=1, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("moving", [False, True])
def test_the_camera_decides_how_frames_are_coded(moving: bool, still: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data", [[drift(i, True) for i in range(6)]]) if moving else still
    world = open_world(learn(data, tmp_path / "run", 0.01))
    assert world.model.config["codec_config"]["kind"] == ("conv" if moving else "keypoints")
    assert world.spec == SPEC
    check_world(world.model)
    env = gym.make("neuralsim/PushT-v0", world=world)
    check_env(env.unwrapped, skip_render_check=True)


def test_a_world_that_knows_states_tells_them(still: Path, tmp_path: Path) -> None:
    world = open_world(learn(still, tmp_path / "run", 0.15, stages=("codec", "readings")))
    store = EpisodeStore(still)
    held_out = store[int(store.split(held_out=True)[0])]
    state = world.model.encode(torch.tensor(held_out.frames[:, None]), torch.zeros(len(held_out.frames), 0, 2))
    told = world.model.read_state(state).numpy()
    lazy = np.abs(held_out.states - held_out.states.mean(0)).mean()
    assert np.abs(told - held_out.states).mean() < 0.5 * lazy


def test_video_without_actions_teaches(still: Path, tmp_path: Path) -> None:
    """Same seed and steps, with and without the frames of episodes that withhold their actions."""
    acted = [drift(i, False) for i in range(12)]
    more = [as_video(drift(100 + i, False)) for i in range(1, 8)]
    both = write(tmp_path / "both", [acted, more])
    alone, taught = (learn(data, tmp_path / data.name, 0.01) / WEIGHTS for data in (still, both))
    ours, theirs = load_file(alone), load_file(taught)
    assert not torch.equal(ours["stream.token_out.weight"], theirs["stream.token_out.weight"])
    assert (theirs["stream.no_action"] != 0).any(), "nobody was ever told that an action is unknown"


def test_the_loader_of_video_cannot_touch_an_action(tmp_path: Path) -> None:
    folder = write(tmp_path / "video", [[as_video(drift(i, False)) for i in range(1, 4)]])
    store = EpisodeStore(folder)
    windows = TokenWindows(store, torch.zeros(sum(store.lengths + 1), 1, 2), acted=False)
    assert not windows.sample(4, 5, np.random.default_rng(0), torch.device("cpu")).actions.known
    with pytest.raises(ActionsAbsent):
        store.shards[0]["actions"]
    with pytest.raises(ValueError, match="with actions"):
        TokenWindows(store, torch.zeros(sum(store.lengths + 1), 1, 2))


def test_video_alone_makes_a_world_without_actions(tmp_path: Path) -> None:
    spec = replace(SPEC, action_names=(), action_units=(), action_scale=(), action_offset=())
    data = write(tmp_path / "video", [[as_video(drift(i, False)) for i in range(6)]], spec)
    world = open_world(learn(data, tmp_path / "run", 0.01))
    check_world(world.model)
    env = gym.make("neuralsim/PushT-v0", world=world)
    assert env.action_space.shape == (0,)
    check_env(env.unwrapped, skip_render_check=True)


def test_a_world_of_actions_cannot_be_learned_from_video_alone(tmp_path: Path) -> None:
    data = write(tmp_path / "video", [[as_video(drift(i, False)) for i in range(1, 4)]])
    with pytest.raises(ValueError, match=r"video without actions.*--also"):
        learn(data, tmp_path / "run")


def test_short_episodes_are_learned_from(tmp_path: Path) -> None:
    """Shorter than a rollout and a history together."""
    data = write(tmp_path / "short", [[drift(i, False, 4) for i in range(8)]])
    assert open_world(learn(data, tmp_path / "run", 0.01)).starts is not None


def test_the_forecast_tells_each_stage_and_changes_nothing(still: Path, tmp_path: Path) -> None:
    trainer = Trainer(TrainConfig(data=still, size="tiny", out=tmp_path / "run", effort=0.01, threads=1))
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    told = estimate_time(trainer)
    assert list(told.seconds) == ["codec", "dynamics", "readings"]
    assert all(s > 0 for s in told.seconds.values())
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
    assert "expected time" in str(told)


def test_the_dial_sizes_model_and_steps() -> None:
    tiny, small, base = (find_recipe("video", size) for size in ("tiny", "small", "base"))
    assert tiny.stream.width < small.stream.width < base.stream.width
    assert tiny.dynamics_stage.steps < small.dynamics_stage.steps < base.dynamics_stage.steps
    assert find_recipe("video") == find_recipe("video-small") == small
    with pytest.raises(ValueError, match="one size"):
        find_recipe("pusht-video", "tiny")
    with pytest.raises(ValueError, match="--data"):
        TrainConfig(recipe="video")


def test_a_run_is_named_after_its_data(still: Path) -> None:
    assert TrainConfig(data=still).folder == Path("runs/still")
    assert TrainConfig(recipe="pusht-video").folder == Path("runs/pusht-video")
