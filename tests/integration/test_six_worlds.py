"""Six kinds of data, each a world by one command of training, without code; and one of them learned far enough to be used."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from foreign_datasets import demos, write_film, write_lerobot_v21
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

import neuralsim
from neuralsim import cli
from neuralsim.data.store import EpisodeStore
from neuralsim.noise import Noise
from neuralsim.pretrained.world import open_world
from neuralsim.world_checker import check_world
from neuralsim.world_model import rollout


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)


def neural(line: str) -> None:
    """``neuralsim <line>``."""
    assert cli.main(line.split()) == 0, line


def collected(env: str, episodes: int, *more: str) -> str:
    neural(" ".join(["collect", "--env", env, "--episodes", str(episodes), "--size", "32", "--workers", "1", *more]))
    return f"data/{env}"


def car_racing() -> str:
    return collected("CarRacing-v3", 4, "--steps", "24", "--repeat", "3")


def cart_pole() -> str:
    return collected("CartPole-v1", 12)


def point_maze() -> str:
    """As Gymnasium-Robotics' PointMaze datasets lie in Minari: a dictionary of vectors, here with the camera that ours needs."""
    import minari
    from minari.data_collector import EpisodeBuffer

    from neuralsim.envs.tworoom.env import TwoRoomRealEnv

    env, rng, buffers = TwoRoomRealEnv(32), np.random.default_rng(0), []
    for i in range(4):
        frame, _ = env.reset(seed=i)
        frames, places, actions = [frame], [env.state()], rng.uniform(-1, 1, (20, 2)).astype(np.float32)
        for action in actions:
            frames.append(env.step(action)[0])
            places.append(env.state())
        seen = {"image": np.stack(frames), "observation": np.stack(places).astype(np.float32)}
        end = np.arange(20) == 19
        buffers.append(
            EpisodeBuffer(
                observations=seen, actions=actions, rewards=np.ones(20), terminations=~end & end, truncations=end
            )
        )
    shown = {"image": spaces.Box(0, 255, (32, 32, 3), np.uint8), "observation": spaces.Box(0, 512, (2,))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(Path("minari").resolve()))
        minari.create_dataset_from_buffers(
            "maze/point-v0",
            buffers,
            observation_space=spaces.Dict(shown),
            action_space=spaces.Box(-1, 1, (2,)),
            jpeg_encoding=False,
        )
    neural("import minari:maze/point-v0 --root minari --as maze --size 32")
    return "data/maze"


def lerobot() -> str:
    write_lerobot_v21(Path("robot"), demos(4, rows=16, height=32, width=32))
    neural("import lerobot:robot --as robot --size 32")
    return "data/robot"


def films() -> str:
    for i, demo in enumerate(demos(4, rows=16, height=32, width=32)):
        write_film(Path(f"films/{i}.mp4"), demo.frames)
    neural("import video:films --as films --size 32")
    return "data/films"


@pytest.mark.filterwarnings("ignore::UserWarning")  # Minari's, about metadata that nobody needs
@pytest.mark.parametrize("make", [car_racing, cart_pole, point_maze, lerobot, films])
def test_kinds_of_data_become_worlds_by_one_command(make: object) -> None:
    data = make()  # type: ignore[operator]
    neural(f"data {data}")
    neural(f"train --data {data} --size tiny --effort 0.01 --threads 1 --out runs/mine")
    check_made(data)


def check_made(data: str) -> None:
    """The world in runs/mine opens, keeps the contract, is a Gymnasium environment, and knows the states of ``data``."""
    world = open_world("runs/mine/world", "cpu")
    store = EpisodeStore(data)
    assert world.spec == store.spec
    check_world(world.model)
    neuralsim.register("tests/Mine-v0", "runs/mine/world", overwrite=True)
    env = gym.make(
        "tests/Mine-v0", uncertainty_limit=float("inf")
    )  # after a hundredth of the steps it doubts all it sees
    assert env.action_space == world.spec.action_space()
    check_env(env.unwrapped, skip_render_check=True)
    neural("info runs/mine/world")
    if store.info.state_names:
        view = env.unwrapped.imagination.view
        assert view.world_state.shape == (1, len(store.info.state_names))


def test_pendulum_is_learned_from_its_pictures_in_minutes() -> None:
    """Collected, trained, and compared: an imagined frame five steps on is nearer to the true one than the frame it began with."""
    data = collected("Pendulum-v1", 44, "--steps", "60", "--repeat", "2")
    neural(f"train --data {data} --size tiny --effort 0.2 --threads 1 --out runs/mine")
    check_made(data)
    model, store = open_world("runs/mine/world", "cpu").model, EpisodeStore(data)
    imagined, copied = [], []
    for i in store.split(held_out=True):
        episode = store[int(i)]
        starts = np.arange(0, 36, 4)
        frames = np.stack([episode.frames[s : s + 4] for s in starts])
        past, future = (np.stack([episode.actions[s + k : s + k + n] for s in starts]) for k, n in ((0, 3), (3, 5)))
        truth = np.stack([episode.frames[s + 8] for s in starts]).astype(float)
        seen = rollout(model, frames, past, future, Noise.from_seeds(range(len(starts)), model.device))[:, -1]
        imagined.append(np.square(seen - truth).mean())
        copied.append(np.square(frames[:, -1] - truth).mean())
    assert np.mean(imagined) < 0.9 * np.mean(copied)  # measured: 0.77, on three episodes of nine starts
