"""LatentWorld: the contract, prefixes that agree, no collapse unseen, and training that resumes to the bit."""

import math
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from stable_baselines3.common.env_checker import check_env as sb3_check

from neuralsim.data.store import EpisodeStore
from neuralsim.data.windows import WindowSampler
from neuralsim.envs.imagined.sb3_vec_env import ImaginedVecEnv
from neuralsim.envs.pusht.env import pusht_spec
from neuralsim.envs.tasks.rl_task import find_task
from neuralsim.imagination import Imagination
from neuralsim.models.latent_world import LatentConfig, LatentState, LatentWorld, effective_rank, sigreg
from neuralsim.models.prediction_heads import StateProbe
from neuralsim.noise import Noise
from neuralsim.pretrained.world import open_world
from neuralsim.runtime.interrupt import Stopped
from neuralsim.task import LearnedTask
from neuralsim.training.config import TrainConfig
from neuralsim.training.token_dataset import encode_store
from neuralsim.training.trainer import train
from neuralsim.world_checker import check_world

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def finished(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run in miniature."""
    out = tmp_path_factory.mktemp("run") / "whole"
    return train(TrainConfig(recipe="pusht-latent-mini", data=store, out=out, threads=1))


def build(stack: int = 1) -> LatentWorld:
    """A small compact world with random weights whose predictors do something."""
    torch.manual_seed(0)
    config = LatentConfig(size=6, keypoints=4, conv_width=8, stack=stack, width=16, depth=1, members=2, block=4)
    model = LatentWorld.build(pusht_spec(), config, ("pusher_x", "block_angle")).eval()
    torch.nn.init.normal_(model.predictors.weights[-1], std=1.0)
    return model


def begin(model: LatentWorld, rows: int) -> tuple[object, Noise]:
    """A state of ``rows`` different rows, and noise for them."""
    vectors = torch.randn(rows, 1, model.feature_size, generator=torch.Generator().manual_seed(1))
    return LatentState(vectors.repeat(1, model.sizes.members, 1), torch.zeros(rows)), Noise.from_seeds(range(rows))


def blank(model: LatentWorld) -> tuple[torch.Tensor, torch.Tensor]:
    """One grey frame."""
    return torch.full((1, 1, *model.spec.frame_shape), 128, dtype=torch.uint8), torch.zeros(1, 0, 2)


def test_a_trained_world_keeps_the_contract(finished: Path) -> None:
    world = open_world(finished)
    assert isinstance(world.model, LatentWorld)
    check_world(world.model)
    assert world.spec.context == 1
    assert torch.isfinite(world.model.uncertainty_threshold)


def test_every_face_takes_it(finished: Path) -> None:
    gymnasium_check(gym.make("neuralsim/PushT-v0", world=finished).unwrapped, skip_render_check=True)
    sb3_check(gym.make("neuralsim/PushT-v0", world=finished).unwrapped)
    endless = {"task": LearnedTask(threshold=math.inf), "uncertainty_limit": math.inf}
    envs = ImaginedVecEnv(finished, num_envs=4, observation="features", horizon=3, **endless)
    assert envs.reset().shape == (4, 8)
    for _ in range(3):
        _, rewards, dones, infos = envs.step(np.zeros((4, 2), np.float32))
    assert np.isfinite(rewards).all()
    assert dones.all()
    assert all(info["terminal_observation"].shape == (8,) for info in infos)
    imagination = Imagination(open_world(finished).model, num_envs=2, starts=open_world(finished).starts)
    imagination.reset(seeds=0)
    snap = imagination.snapshot()
    imagination.step(np.ones((2, 2), np.float32))
    first = imagination.view.features
    imagination.restore(snap)
    imagination.step(np.ones((2, 2), np.float32))
    assert torch.equal(imagination.view.features, first)


def test_an_untrained_one_that_stacks_frames_keeps_it_too() -> None:
    check_world(build(stack=3))


@settings(deadline=None, max_examples=20)
@given(k=st.integers(1, 11), rows=st.integers(1, 3))
def test_a_jump_ends_where_an_unrolled_chunk_ends(k: int, rows: int) -> None:
    model = build()
    state, rng = begin(model, rows)
    actions = torch.rand(rows, k, 2, generator=torch.Generator().manual_seed(k)) * 2 - 1
    with torch.inference_mode():
        jumped = model.unroll_last(state, actions, rng)
        unrolled = model.unroll(state, actions, rng)
    assert unrolled.vectors.shape[:2] == (rows, k)
    assert torch.allclose(jumped.vectors, unrolled.vectors[:, -1], atol=1e-5)


def test_a_lean_state_dreams_as_the_first_member_does() -> None:
    model = build()
    state, rng = begin(model, 3)
    actions = torch.rand(3, 6, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        whole, lean = (
            model.unroll_last(state, actions, rng),
            model.unroll_last(model.without_ensemble(state), actions, rng),
        )
    assert lean.vectors.shape[1] == 1
    assert torch.allclose(lean.vectors[:, 0], whole.vectors[:, 0], atol=1e-5)


def test_actions_beyond_a_prefix_change_nothing() -> None:
    model = build()
    state, _ = begin(model, 2)
    actions = torch.rand(2, 4, 2)
    other = torch.cat([actions[:, :2], -actions[:, 2:]], 1)
    two = torch.tensor([2, 2])
    with torch.inference_mode():
        assert torch.equal(model.predictors(state.vectors, actions, two), model.predictors(state.vectors, other, two))
        four = torch.tensor([4, 4])
        assert not torch.equal(
            model.predictors(state.vectors, actions, four), model.predictors(state.vectors, other, four)
        )


def test_doubt_is_how_far_the_members_came_apart() -> None:
    model = build()
    state, rng = begin(model, 2)
    assert torch.equal(model.uncertainty(state), torch.zeros(2))
    with torch.inference_mode():
        after = model.step(state, torch.rand(2, 2), rng)
    assert (model.uncertainty(after) > 0).all()
    assert torch.allclose(model.features(after), after.vectors.mean(1))


def test_a_frame_it_cannot_redraw_is_strange_from_the_start(store: Path, finished: Path) -> None:
    model = open_world(finished).model
    known = torch.as_tensor(np.stack([e.frames[:1] for e in EpisodeStore(store)]))
    noise = torch.randint(0, 256, known[:8].shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    none = torch.zeros(len(known), 0, 2)
    with torch.inference_mode():
        assert model.uncertainty(model.encode(known, none)).median() == 0
        strange = model.encode(noise, none[:8])
        assert (model.uncertainty(strange) > 0.5).all()
        after = model.unroll_last(strange, torch.zeros(8, 3, 2), Noise.from_seeds(range(8)))
        assert (model.uncertainty(after) > 0.5).all()


def test_training_in_whole_blocks_and_step_by_step_agrees(store: Path, finished: Path) -> None:
    """The one network learns both ways: their dreams differ by less than frames do."""
    model = open_world(finished).model
    clip = WindowSampler(EpisodeStore(store), 4, held_out=True).sample(32, np.random.default_rng(0))
    frames, actions = torch.as_tensor(clip.frames), torch.as_tensor(clip.actions)
    rng = Noise.from_seeds(range(32))
    with torch.inference_mode():
        state = model.encode(frames[:, :1], actions[:, :0])
        jumped, stepped = model.unroll_last(state, actions, rng), state
        for i in range(actions.shape[1]):
            stepped = model.step(stepped, actions[:, i], rng)
        moved = (model.features(jumped) - model.features(state)).norm(dim=1)
        apart = (model.features(jumped) - model.features(stepped)).norm(dim=1)
    assert apart.mean() < moved.mean()


def test_dynamics_beat_standing_still(store: Path, finished: Path) -> None:
    model = open_world(finished).model
    clip = WindowSampler(EpisodeStore(store), 4).sample(256, np.random.default_rng(0))
    frames, actions = torch.as_tensor(clip.frames), torch.as_tensor(clip.actions)
    with torch.inference_mode():
        state = model.encode(frames[:, :1], actions[:, :0])
        truth = model.features(model.encode(frames[:, -1:], actions[:, :0]))
        dreamt = model.features(model.unroll_last(state, actions, Noise.from_seeds(range(256))))
        wrong, lazy = (dreamt - truth).square().mean(), (model.features(state) - truth).square().mean()
    assert wrong < 0.9 * lazy, f"squared error {wrong:.4f}, standing still {lazy:.4f}"


def test_the_probe_tells_angles_and_places() -> None:
    probe = StateProbe(3, ["x", "angle"])
    states = torch.stack([torch.linspace(0, 500, 64), torch.linspace(-3, 3, 64)], 1)
    probe.fit(states)
    vectors = (probe.target(states) - probe.mean) / probe.std
    with torch.no_grad():
        probe.linear["weight"].copy_(torch.eye(3))
        assert torch.allclose(probe(vectors), states, atol=1e-2)
        assert probe.loss(vectors, states).max() < 1e-8
        assert probe.loss(vectors, states.flip(0)).mean() > 0.5


def test_a_world_without_known_states_has_an_empty_probe() -> None:
    config = LatentConfig(size=6, keypoints=4, conv_width=8, width=16, depth=1, members=2, block=2)
    model = LatentWorld.build(pusht_spec(), config, ()).eval()
    with torch.inference_mode():
        state = model.encode(*blank(model))
        with pytest.raises(TypeError, match="does not predict simulator states"):
            model.read_state(state)


def test_the_regulariser_knows_a_normal_from_a_collapse() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(8, 256, generator=generator), dim=0)
    normal = torch.randn(512, 8, generator=generator)
    line = normal[:, :1].repeat(1, 8)
    good, bad, point = (float(sigreg(x, directions)) for x in (normal, line, torch.zeros(512, 8)))
    assert good < 2 < bad / 5 < point / 5
    assert effective_rank(normal) > 7
    assert effective_rank(line) < 1.5


def test_stacked_frames_of_a_store_never_reach_into_another_episode(store: Path, tmp_path: Path) -> None:
    opened = EpisodeStore(store)
    seen: list[torch.Tensor] = []

    def encode(frames: torch.Tensor) -> torch.Tensor:
        seen.append(frames)
        return frames.float().mean((2, 3, 4))[:, None]

    def bar(name: str, first: int, total: int) -> range:
        return range(first, total)

    tokens = encode_store(
        encode,
        {},
        opened,
        tmp_path,
        torch.float32,
        torch.device("cpu"),
        bar,
        stack=3,  # type: ignore[arg-type]
    )
    at = 0
    for episode in opened:
        frames = torch.as_tensor(episode.frames.copy()).float().mean((1, 2, 3))
        expected = torch.stack([frames[:1].expand(len(frames)), frames.roll(1), frames], 1)
        expected[0, 1] = frames[0]
        expected[2:, 0] = frames[:-2]
        assert torch.allclose(tokens[at : at + len(frames), 0], expected)
        at += len(frames)
    assert at == len(tokens) == sum(len(x) for x in seen)


def test_a_stopped_run_goes_on_to_the_same_bits(store: Path, finished: Path, tmp_path: Path) -> None:
    stops, resume = 0, False
    while True:
        config = TrainConfig(
            recipe="pusht-latent-mini", data=store, out=tmp_path / "run", threads=1, resume=resume, stop_after=0.05
        )
        try:
            world = train(config)
            break
        except Stopped:
            stops, resume = stops + 1, True
        assert stops < 100
    assert stops >= 2, "the run ended before it could be stopped"
    ours, theirs = load_file(world / WEIGHTS), load_file(finished / WEIGHTS)
    different = [k for k in ours if not torch.equal(ours[k], theirs[k])]
    assert not different, f"differ after {stops} stops: {different[:5]}"


@pytest.mark.parametrize(("world", "most"), [("pusht-latent", 4.0), ("tworoom-latent", 1.0)])
def test_the_shipped_worlds_tell_true_states_off_frames(world: str, most: float) -> None:
    model = open_world(world, "cpu").model
    starts = find_task(model.spec.name).starts(64, seed=5)
    with torch.inference_mode():
        told = model.read_state(model.encode(torch.as_tensor(starts.frames), torch.zeros(64, 0, 2))).numpy()
    off = np.linalg.norm(told[:, :2] - starts.states[:, 0, :2], axis=1)
    assert np.median(off) < most
    if told.shape[1] > 2:
        assert np.median(np.linalg.norm(told[:, 2:4] - starts.states[:, 0, 2:4], axis=1)) < most


def test_a_lean_dream_is_one_members_and_knows_no_doubt() -> None:
    world = open_world("tworoom-latent", "cpu")
    whole, lean = (Imagination(world.model, num_envs=3, starts=world.starts, lean=flag) for flag in (False, True))
    for imagination in (whole, lean):
        imagination.reset(seeds=0)
        for _ in range(5):
            imagination.step(np.ones((3, 2), np.float32))
    assert lean.view.state.vectors.shape[1] == 1
    np.testing.assert_allclose(lean.view.state.vectors[:, 0], whole.view.state.vectors[:, 0], atol=1e-3)
    assert (lean.uncertainty() == 0).all()
    assert (whole.uncertainty() > 0).all()
