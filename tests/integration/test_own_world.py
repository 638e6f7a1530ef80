"""A world of one's own: one record, registered from outside the package, and every command works with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from neuralsim import cli
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.registry import RealWorld, find_real_world, real_worlds, register_real_world
from neuralsim.envs.tasks.real_world import _worlds
from neuralsim.pretrained.world import open_world
from neuralsim.spec import WorldSpec

# -- the world: all that a user writes -----------------------------------------------------------------------------------------------


class DotEnv(gym.Env[np.ndarray, np.ndarray]):
    """A bright dot that moves right and down over a dark floor; the reward grows towards the right, where the episode ends."""

    def __init__(self, size: int = 16, observation: str = "pixels", render_mode: str | None = None) -> None:
        self.spec_world, self.observation_kind, self.render_mode = dot_spec(size), observation, render_mode
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        shape = (2,) if observation == "state" else (size, size, 3)
        self.observation_space = gym.spaces.Box(0, 255, shape, np.float32 if observation == "state" else np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.dot = np.array((options or {}).get("state", self.np_random.uniform(0.1, 0.6, 2)), np.float64)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.dot = np.clip(self.dot + 0.1 * np.asarray(action, np.float64), 0, 1)
        return self._observe(), float(self.dot[0]), bool(self.dot[0] > 0.95), False, {}

    def state(self) -> np.ndarray:
        return self.dot.copy()

    def render(self) -> np.ndarray:
        size = self.spec_world.height
        y, x = np.mgrid[:size, :size] / (size - 1)
        near = np.exp(-(((x - self.dot[0]) ** 2 + (y - self.dot[1]) ** 2) / 0.02))
        return np.stack([40 + 200 * near, 40 + 100 * near, np.full_like(near, 60)], -1).astype(np.uint8)

    def _observe(self) -> np.ndarray:
        return self.state().astype(np.float32) if self.observation_kind == "state" else self.render()


def dot_spec(size: int) -> WorldSpec:
    return WorldSpec("dot", size, size, ("right", "down"), ("widths", "widths"), (0.1, 0.1), rate_hz=10.0, context=2)


def random_dot(rng: np.random.Generator, near_goal: bool) -> np.ndarray:
    return rng.uniform(0.7 if near_goal else 0.1, 0.9, 2)


DOT = RealWorld("dot", DotEnv, dot_spec, state=("x", "y"), random_state=random_dot, horizon=12)

# -- the commands --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    register_real_world(DOT)
    yield
    del _worlds["dot"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that hardly learned the dot, by the command line, from episodes that it collected there."""
    folder = tmp_path_factory.mktemp("dot")
    run(f"collect dot --episodes 24 --size 16 --workers 1 --out {folder / 'data'}")
    run(f"train --data {folder / 'data'} --size tiny --effort 0.01 --threads 1 --device cpu --out {folder / 'run'}")
    return folder / "run"


@pytest.fixture(autouse=True)
def headless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, registered: None) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("SDL_AUDIODRIVER", "dummy")
    monkeypatch.chdir(tmp_path)


def run(line: str) -> None:
    assert cli.main(line.split()) == 0, line


def test_its_episodes_are_collected(trained: Path) -> None:
    store = EpisodeStore(trained.parent / "data")
    assert store.spec == dot_spec(16)
    assert store.info.state_names == ("x", "y")
    assert (store.lengths == 12).all(), "a world that can be put at a state goes on after success"
    episode = store[0]
    assert episode.states is not None
    env = DotEnv(16)
    env.reset(options={"state": episode.states[0]})
    for action, frame in zip(episode.actions, episode.frames[1:], strict=True):
        assert np.abs(env.step(action)[0].astype(int) - frame).max() <= 1


def test_it_is_measured_on_fresh_episodes(trained: Path) -> None:
    run(f"measure {trained} --rollouts 4 --episodes 4 --chunk 1 --denoise 1 --horizons 1 5 --device cpu --json m.json")
    rows = {(row["key"], row["step"]) for row in json.loads(Path("m.json").read_text())["rows"]}
    assert {("psnr", 1), ("psnr", 5), ("reward", 5)} <= rows
    assert Path("data/dot-held-out-16/store.json").is_file()


def test_it_is_played(trained: Path) -> None:
    script = "0 down RIGHT; 0.5 up RIGHT; 1 quit"
    command = ["play", str(trained), "--headless", "--record", "--device", "cpu", "--out", "play", "--script", script]
    assert cli.main(command) == 0
    assert EpisodeStore("play/imagined")[0].actions[:, 0].max() == 1


def test_it_is_planned_in_for_its_reward(trained: Path) -> None:
    few = "--episodes 2 --lookahead 4 --block 1 --n-action-steps 2 --candidates 8 --rounds 2 --video 0"
    run(f"plan {trained} {few} --device cpu --out plan")
    assert list(Path("plan").rglob("*.json"))


def test_agents_learn_in_it_and_are_ranked(trained: Path) -> None:
    few = "--steps 64 --n-envs 4 --n-eval-episodes 2 --n-evals 1 --no-video --device cpu --threads 1"
    run(f"rl {trained} --algo ppo {few} --out rl")
    policy = sorted(Path("rl/policies").glob("*.zip"))[-1]
    run(f"rank {trained} --policies {policy} random still --episodes 3 --device cpu --out rank")
    rows = {row["key"] for row in json.loads(Path("rank/rank.json").read_text())["rows"]}
    assert "pearson_return" in rows
    run(f"rl dot --real --model {trained} --algo ppo {few} --out real")


def test_the_record_alone_makes_it_known(trained: Path) -> None:
    assert find_real_world("dot") is DOT
    assert list(real_worlds())[-1] == "dot"
    assert open_world(trained, "cpu").spec.name == "dot"


def test_a_module_named_in_the_environment_registers_its_worlds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker processes and the command line import it when the name is not known yet."""
    (tmp_path / "my_worlds.py").write_text(
        "from neuralsim.envs.registry import RealWorld, register_real_world\n"
        "register_real_world(RealWorld('mine', 'my_envs:Env', 'my_envs:spec'))\n"
    )
    monkeypatch.setenv("NEURALSIM_MODULES", "my_worlds")
    code = "from neuralsim.envs.registry import find_real_world; print(find_real_world('mine').name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "mine"
