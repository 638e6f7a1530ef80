"""Promises of registration: a trained folder under an id of one's own, everywhere in the process; what is wrong is said at once."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import neuralsim
from neuralsim.envs.imagined.config import ImaginedEnvConfig
from neuralsim.envs.imagined.env import ImaginedEnv
from neuralsim.envs.imagined.vector_env import ImaginedVectorEnv
from neuralsim.pretrained.world import World, open_world
from neuralsim.storage.manifest import seal


@dataclass(frozen=True)
class GoalTask:
    """A task that holds a tensor, as one's own may."""

    goal: torch.Tensor


@pytest.fixture(autouse=True)
def clean_registry() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(gym.registry)
    yield
    gym.registry.clear()
    gym.registry.update(before)


def test_a_trained_folder_is_made_by_its_id_one_and_many(tiny_world: Path) -> None:
    neuralsim.register("me/MyWorld-v0", tiny_world)
    env = gym.make("me/MyWorld-v0", device="cpu")
    assert isinstance(env.unwrapped, ImaginedEnv)
    frame, _ = env.reset(seed=4)
    envs = gym.make_vec("me/MyWorld-v0", num_envs=3, device="cpu")
    assert isinstance(envs, ImaginedVectorEnv)
    frames, _ = envs.reset(seed=4)
    assert frames.shape == (3, 64, 64, 3)
    assert np.abs(frames[0].astype(int) - frame).mean() <= 1
    envs.step(envs.action_space.sample())
    again = gym.make(env.spec, device="cpu")  # as gymnasium.spec carries it about
    assert np.array_equal(again.reset(seed=4)[0], frame)
    assert json.loads(env.spec.to_json())["kwargs"]["world"] == str(tiny_world.resolve())


def test_a_relative_folder_is_meant_where_it_was_said(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_world, tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    neuralsim.register("me/MyWorld-v0", "runs/mine")
    monkeypatch.chdir("/")
    gym.make("me/MyWorld-v0", device="cpu").reset(seed=0)
    assert gym.spec("me/MyWorld-v0").kwargs == {"world": str((tmp_path / "runs" / "mine").resolve())}


def test_settings_are_defaults_that_make_may_change(tiny_world: Path, endless: Any) -> None:
    neuralsim.register(
        "me/Short-v0",
        tiny_world,
        horizon=2,
        observation="features",
        task=endless,
        uncertainty_limit=np.inf,
        device="cpu",
    )
    env = gym.make("me/Short-v0")
    assert env.reset(seed=0)[0].ndim == 1
    action = np.zeros(2, np.float32)
    assert [env.step(action)[3] for _ in range(2)] == [False, True]
    longer = gym.make("me/Short-v0", horizon=3, observation="pixels")
    assert longer.reset(seed=0)[0].shape == (64, 64, 3)
    assert [longer.step(action)[3] for _ in range(3)] == [False, False, True]


def test_the_settings_are_those_of_the_environment() -> None:
    names = [field.name for field in dataclasses.fields(ImaginedEnvConfig)]
    assert names == ["observation", "task", "horizon", "render_mode", "chunk", "denoise_steps", "temperature",
                     "uncertainty_limit", "lean", "device", "precision"]  # fmt: skip
    assert ImaginedEnvConfig.unknown(names) == {}


def test_shipped_names_and_the_hub_can_be_registered_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    neuralsim.register("me/Push-v0", "pusht", horizon=7)
    assert gym.spec("me/Push-v0").kwargs == {"world": "pusht", "horizon": 7}
    neuralsim.register("me/Far-v0", "hub:org/name@v1.0")  # nothing is fetched before one is made
    assert gym.spec("me/Far-v0").kwargs == {"world": "hub:org/name@v1.0"}
    with pytest.raises(FileNotFoundError, match="no such folder here; if it lies on the hub, write 'hub:runs/mine'"):
        neuralsim.register("me/Wrong-v0", "runs/mine")
    assert "me/Wrong-v0" not in gym.registry


def test_the_same_again_is_fine_another_is_an_error_unless_it_is_asked_for(tiny_world: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_world, tmp_path / "other"))
    neuralsim.register("me/MyWorld-v0", tiny_world, horizon=9)
    neuralsim.register("me/MyWorld-v0", str(tiny_world), horizon=9)
    for world, settings in ((other, {"horizon": 9}), (tiny_world, {"horizon": 8}), (tiny_world, {})):
        with pytest.raises(ValueError, match=r"me/MyWorld-v0: registered already, with world=.*overwrite=True"):
            neuralsim.register("me/MyWorld-v0", world, **settings)
    assert gym.spec("me/MyWorld-v0").kwargs["world"] == str(tiny_world.resolve())
    neuralsim.register("me/MyWorld-v0", other, overwrite=True)
    assert gym.spec("me/MyWorld-v0").kwargs == {"world": str(other.resolve())}


def test_a_task_is_the_same_if_it_is_the_same_object(tiny_world: Path) -> None:
    goals = [GoalTask(torch.zeros(4)) for _ in range(2)]  # tensors know no plain equality
    neuralsim.register("me/Goal-v0", tiny_world, task=goals[0])
    neuralsim.register("me/Goal-v0", tiny_world, task=goals[0])
    with pytest.raises(ValueError, match="registered already"):
        neuralsim.register("me/Goal-v0", tiny_world, task=goals[1])


def test_ids_of_others_are_never_taken(tiny_world: Path) -> None:
    with pytest.raises(ValueError, match="this id is another environment's"):
        neuralsim.register("neuralsim/PushTReal-v0", tiny_world, overwrite=True)
    with pytest.raises(ValueError, match="registered already"):
        neuralsim.register("neuralsim/PushT-v0", tiny_world)


@pytest.mark.parametrize(
    "name",
    ["MyWorld-v0", "me/MyWorld", "me/MyWorld-v", "me/My World-v0", "/MyWorld-v0", "a/b/C-v0", "", "me/MyWorld-v0\n", 5],
)
def test_an_id_of_another_form_is_told_the_form(name: Any, tiny_world: Path) -> None:
    before = set(gym.registry)
    with pytest.raises(ValueError, match="expected the form namespace/Name-vN"):
        neuralsim.register(name, tiny_world)
    assert set(gym.registry) == before


def test_what_is_no_world_is_refused_when_it_is_registered(tiny_world: Path, tmp_path: Path, dot_world: World) -> None:
    def refused(world: Any, error: type[Exception], said: str) -> None:
        with pytest.raises(error, match=said):
            neuralsim.register("me/MyWorld-v0", world)
        assert "me/MyWorld-v0" not in gym.registry

    refused(tmp_path / "nowhere", FileNotFoundError, "neither a shipped world")
    refused(tmp_path, ValueError, r"not a world \(config\.json is missing\)")
    refused(dot_world, TypeError, r"save it first: World\(model, starts\)\.save\(folder\)")
    broken = Path(shutil.copytree(tiny_world, tmp_path / "broken"))
    (broken / "config.json").write_text("{}")
    refused(broken, ValueError, "names no model class")
    (broken / "config.json").write_text("{")
    refused(broken, ValueError, "not a JSON object")
    shutil.copy(tiny_world / "config.json", broken)
    manifest = seal(broken)
    (broken / "world.json").write_text(json.dumps(json.loads(manifest.to_json()) | {"format": 2}))
    refused(broken, ValueError, "a world of format 2")
    (broken / "diffusion_pytorch_model.safetensors").unlink()
    refused(broken, ValueError, "safetensors is missing")


def test_an_unknown_setting_is_met_with_the_nearest(tiny_world: Path) -> None:
    with pytest.raises(ValueError, match="unknown setting 'horizont'; did you mean 'horizon'"):
        neuralsim.register("me/MyWorld-v0", tiny_world, horizont=5)
    with pytest.raises(ValueError, match="unknown setting 'fps'; there are observation, task"):
        neuralsim.register("me/MyWorld-v0", tiny_world, fps=5)


def test_registering_is_cheap_and_a_package_may_do_it_when_it_is_imported(tiny_world: Path, tmp_path: Path) -> None:
    """Gymnasium imports the module before the colon; torch waits until a world is made."""
    (tmp_path / "my_worlds.py").write_text(
        f"import sys, neuralsim\nbefore = len(sys.modules)\nneuralsim.register('me/MyWorld-v0', {str(tiny_world)!r})\n"
        "print(len(sys.modules) - before, [m for m in ('torch', 'diffusers', 'huggingface_hub') if m in sys.modules])\n"
    )
    program = "import gymnasium\nprint(gymnasium.make('my_worlds:me/MyWorld-v0', device='cpu').reset(seed=0)[0].shape)"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(neuralsim.__file__).parent.parent), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    first, shape = ran.stdout.splitlines()
    loaded, heavy = first.split(" ", 1)
    assert heavy == "[]"
    assert int(loaded) < 60
    assert shape == "(64, 64, 3)"


def test_a_world_that_was_trained_again_is_made_as_it_is_now(tiny_world: Path, tmp_path: Path) -> None:
    folder = open_world(tiny_world, "cpu").save(tmp_path / "mine")
    neuralsim.register("me/MyWorld-v0", folder)
    before = gym.make("me/MyWorld-v0", device="cpu").reset(seed=0)[0]
    world = open_world(folder, "cpu")
    assert world.starts is not None
    white = type(world.starts)(255 - world.starts.frames, world.starts.actions)
    World(world.model, white).save(folder)
    neuralsim.register("me/MyWorld-v0", folder)
    after = gym.make("me/MyWorld-v0", device="cpu").reset(seed=0)[0]
    assert not np.array_equal(before, after)
