"""Default dtype and device of torch: results do not depend on what the user's program has set."""

from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import pytest
import torch

from neuralsim.envs.imagined import ImaginedEnv
from neuralsim.envs.pusht.state_estimator import PushTStateEstimator
from neuralsim.models.joint_stream import JointConfig
from neuralsim.models.latent_world import LatentConfig, LatentWorld
from neuralsim.models.roles import infer_actions, predict_jointly, predict_value, predict_video
from neuralsim.models.video_wam import CodecConfig, StreamConfig, VideoWAM
from neuralsim.noise import Noise
from neuralsim.pretrained.world import open_world
from neuralsim.spec import WorldSpec
from neuralsim.task import GoalImage, LearnedTask
from neuralsim.training.config import TrainConfig
from neuralsim.training.trainer import train
from neuralsim.world_checker import check_world

SPEC = WorldSpec("small", 16, 16, ("x", "y"), ("u", "u"), (1.0, 1.0), 10, 3)
CHOICES = WorldSpec("choices", 16, 16, ("x", "y"), ("choice",) * 2, (1.0, 1.0), 10, 3, action_choices=(2, 3))


def video(spec: WorldSpec) -> VideoWAM:
    torch.manual_seed(0)
    codec, stream = CodecConfig(1, 8, 8), StreamConfig(16, 1, 2, 3)
    return VideoWAM.build(spec, codec, stream, ("a", "turn angle"), JointConfig(4, 2)).eval()


def latent(spec: WorldSpec) -> LatentWorld:
    torch.manual_seed(0)
    return LatentWorld.build(spec, LatentConfig(6, 4, 8, 1, 16, 1, 2, 3), ("a",)).eval()


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=["float64", "meta"])
def unusual(request: pytest.FixtureRequest) -> Iterator[None]:
    """Another default dtype, or another default device."""
    if request.param == "float64":
        torch.set_default_dtype(torch.float64)
    else:
        torch.set_default_device("meta")
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.filterwarnings("ignore:.*opposite actions")
@pytest.mark.parametrize("spec", [SPEC, CHOICES], ids=["continuous", "discrete"])
@pytest.mark.parametrize("build", [video, latent])
def test_a_model_is_built_in_float32_and_keeps_the_contract(build, spec, double):
    model = build(spec)
    dtypes = {x.dtype for x in model.state_dict().values() if x.is_floating_point()}
    assert dtypes == {torch.float32}
    check_world(model)


def test_roles_run_under_another_default_dtype(double):
    model, b = video(SPEC), 2
    frames = torch.zeros(b, 2, 16, 16, 3, dtype=torch.uint8)
    state, noise = model.encode(frames, torch.zeros(b, 1, 2, dtype=torch.float32)), Noise.from_seeds([1, 2])
    with torch.inference_mode():
        seen = predict_video(model, state, noise)
        both = predict_jointly(model, state, noise)
        parts = (seen, infer_actions(model, state, seen, noise), both.actions, both.frames, predict_value(model, state))
    assert {part.dtype for part in parts} == {torch.float32}


@pytest.mark.parametrize("observation", ["pixels", "features"])
def test_an_environment_gives_the_same_frames(tiny_world, observation, unusual, request):
    def run() -> tuple[np.ndarray, np.ndarray]:
        task = GoalImage(world.starts.frames[0, -1]) if observation == "features" else LearnedTask(1.0)
        env = ImaginedEnv(world, observation=observation, task=task, precision="float32", horizon=None, device="cpu")
        seen = [env.reset(seed=0)[0]]
        outcomes = [env.step(np.array([0.5, -0.5], np.float32)) for _ in range(4)]
        return np.stack([*seen, *(o[0] for o in outcomes)]), np.array([o[1] for o in outcomes])

    world = open_world(tiny_world, "cpu")  # read under the unusual defaults too
    unusual_frames, unusual_rewards = run()
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    frames, rewards = run()
    assert np.array_equal(frames, unusual_frames)
    assert np.array_equal(rewards, unusual_rewards)


def test_the_state_estimator_reads_the_same_states(tiny_world):
    frames = open_world(tiny_world, "cpu").starts.frames[:, -1]
    torch.set_default_dtype(torch.float64)
    try:
        found = PushTStateEstimator(64)(frames)
    finally:
        torch.set_default_dtype(torch.float32)
    expected = PushTStateEstimator(64)(frames)
    for field in fields(expected):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        assert np.allclose(one, other, rtol=1e-5, equal_nan=True), field.name


@pytest.mark.parametrize("recipe", ["pusht-video-mini", "pusht-latent-mini"])
def test_a_world_trains_under_another_default_dtype(store, tmp_path, recipe, double):
    config = TrainConfig(recipe=recipe, data=store, out=tmp_path / "run", threads=1, effort=0.005)
    world = open_world(train(config), "cpu")
    assert all(x.dtype == torch.float32 for x in world.model.parameters())
