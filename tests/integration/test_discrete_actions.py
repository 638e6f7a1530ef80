"""Worlds of choices: Discrete and MultiDiscrete actions from the data to the agents, and worlds without any action."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from diffusers.configuration_utils import register_to_config
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from neuralsim.agents.planning.planner import Planner, PlannerConfig
from neuralsim.agents.planning.solvers import CEM, ICEM
from neuralsim.agents.policies.random_policies import NoOpPolicy, RandomPolicy
from neuralsim.agents.teleop.keyboard import DiscreteKeyboard
from neuralsim.data.episode import Episode
from neuralsim.data.inspect import describe_data
from neuralsim.data.store import EpisodeStore
from neuralsim.data.windows import WindowSampler
from neuralsim.envs.imagined.env import ImaginedEnv
from neuralsim.envs.imagined.sb3_vec_env import ImaginedVecEnv
from neuralsim.envs.imagined.vector_env import ImaginedVectorEnv
from neuralsim.envs.wrappers.discrete_actions import DiscreteActionEnv, to_actions
from neuralsim.envs.wrappers.features import FeatureEnv
from neuralsim.evaluation.long_horizon import random_keys
from neuralsim.evaluation.rollouts import ImaginedRolloutConfig, Windows, roll_out
from neuralsim.formats.action_mapping import ActionChoices, ActionScale
from neuralsim.formats.importer import ImportConfig, Importer
from neuralsim.formats.lerobot_writer import write_lerobot
from neuralsim.formats.minari import write_minari
from neuralsim.imagination import Imagination
from neuralsim.models.action_encoding import EncodedActions, encode_actions
from neuralsim.models.latent_world import LatentConfig, LatentWorld
from neuralsim.models.video_wam import CodecConfig, StreamConfig, VideoWAM
from neuralsim.noise import Noise
from neuralsim.pretrained.starts import Starts
from neuralsim.pretrained.world import World, open_world
from neuralsim.spec import WorldSpec
from neuralsim.task import LearnedTask
from neuralsim.training.config import TrainConfig
from neuralsim.training.losses import forcing_losses, reading_losses, rollout_losses
from neuralsim.training.trainer import train
from neuralsim.world_checker import check_world
from neuralsim.world_model import State, WorldModel, rollout

MOVES = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
"""What the choices of the one-dimensional world do: none, left, right, up, down."""
LABELS = ("noop", "left", "right", "up", "down")


def spec_of(*choices: int, size: int = 16, context: int = 2) -> WorldSpec:
    names = tuple(f"choice_{i}" for i in range(len(choices)))
    a = len(choices)
    return WorldSpec("steps", size, size, names, ("choice",) * a, (1.0,) * a, 10.0, context, action_choices=choices)


ONE, TWO = spec_of(5), spec_of(3, 4)


@dataclass(frozen=True)
class PlaceState(State):
    """A dot's place ``(b, 2)`` in [-1, 1]."""

    place: torch.Tensor


class StepWorld(WorldModel):
    """An exact world: a dot goes a quarter to a side, as chosen. Reward: how far to the right it is."""

    head_names: ClassVar[tuple[str, ...]] = ("reward", "terminated")

    @register_to_config
    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.spec = WorldSpec(**spec)
        self.gain = torch.nn.Parameter(torch.tensor(0.25), requires_grad=False)

    @property
    def feature_size(self) -> int:
        return 2

    def encode(self, frames: torch.Tensor, actions: torch.Tensor) -> PlaceState:
        light = frames[:, -1].float().mean(-1)
        line = torch.linspace(-1, 1, light.shape[1], device=frames.device)
        total = light.sum((1, 2)) + 1e-6
        return PlaceState(torch.stack([(light.sum(1) * line).sum(1), (light.sum(2) * line).sum(1)], 1) / total[:, None])

    def step(self, state: PlaceState, action: torch.Tensor, rng: Noise) -> PlaceState:  # type: ignore[override]
        assert action.dtype == torch.int64
        one, *other = action.unbind(1)
        move = torch.stack([one - 1, (other[0] > 1) * 1], 1).float() if other else MOVES[one]
        return PlaceState((state.place + self.gain * move).clamp(-1, 1))

    def features(self, state: PlaceState) -> torch.Tensor:  # type: ignore[override]
        return state.place

    def decode(self, state: PlaceState) -> torch.Tensor:  # type: ignore[override]
        line = torch.linspace(-1, 1, self.spec.height)
        x, y = (torch.exp(-20 * (line - state.place[:, i, None]) ** 2) for i in range(2))
        return (255 * y[:, :, None] * x[:, None]).round().to(torch.uint8)[..., None].expand(-1, -1, -1, 3).contiguous()

    def uncertainty(self, state: PlaceState) -> torch.Tensor:  # type: ignore[override]
        return torch.zeros(len(state))

    def read(self, state: PlaceState) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {"reward": state.place[:, 0], "terminated": torch.zeros(len(state))}


def exact(spec: WorldSpec) -> World:
    """The exact world with starts in the middle and a quarter off it."""
    model = StepWorld(spec=asdict(spec)).eval()
    frames = model.decode(PlaceState(torch.tensor([[0.0, 0.0], [0.25, 0.0]]))).numpy()
    actions = np.zeros((2, 1, spec.action_size), np.int64)
    return World(model, Starts(np.repeat(frames[:, None], 2, 1), actions))


def liven(model: torch.nn.Module) -> Any:
    """A fresh model hardly answers: layers begin near zero."""
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and (not parameter.any() or parameter.std() < 0.1):
            torch.nn.init.normal_(parameter, std=0.2)
        elif parameter.ndim == 4 and ("decoder" in name or "drawing" in name):
            parameter.data.mul_(3)
    return model.eval().requires_grad_(False)


def video(spec: WorldSpec) -> VideoWAM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec, stream = CodecConfig(tokens=1, size=8, conv_width=8), StreamConfig(width=16, layers=1, heads=2, window=3)
        return liven(VideoWAM.build(spec, codec, stream))


def latent(spec: WorldSpec) -> LatentWorld:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LatentConfig(size=8, keypoints=4, conv_width=8, stack=2, width=16, depth=1, members=2, block=2)
        return liven(LatentWorld.build(spec, config, ()))


def episodes(spec: WorldSpec, count: int = 4, steps: int = 6) -> list[Episode]:
    rng = np.random.default_rng(0)
    return [
        Episode(
            rng.integers(0, 256, (steps + 1, *spec.frame_shape), np.uint8),
            spec.random_actions(rng, steps),
            rng.normal(size=steps).astype(np.float32),
            np.zeros(steps, bool),
            np.arange(steps) == steps - 1,
            rng.normal(size=(steps + 1, 2)).astype(np.float32),
            {"seed": seed, "policy": "chance"},
        )
        for seed in range(count)
    ]


def stored(folder: Path, spec: WorldSpec) -> EpisodeStore:
    store = EpisodeStore.create(folder, spec, ("x", "y"))
    store.add(episodes(spec))
    return store


def imported(source: str, out: Path, **how: Any) -> tuple[EpisodeStore, list[str]]:
    importer = Importer(ImportConfig(source=source, out=out, **how))
    for _ in importer.run():
        pass
    return EpisodeStore(out), importer.report.remarks


# -- the spec ----------------------------------------------------------------------------------------------------------


def test_a_spec_of_choices_tells_its_actions_everywhere_alike() -> None:
    assert not WorldSpec("box", 8, 8, ("x",), ("m",), (1.0,), 10.0, 1).discrete
    for spec, space, width in ((ONE, spaces.Discrete(5), 5), (TWO, spaces.MultiDiscrete([3, 4]), 7)):
        assert spec.discrete
        assert spec.action_dtype == np.int64
        assert spec.action_width == width
        assert spec.action_space() == space
        assert WorldSpec.from_json(spec.to_json()) == spec
        assert spec.check_actions(spec.rest_action()).tolist() == [0] * spec.action_size
        drawn = spec.random_actions(np.random.default_rng(0), 200)
        np.testing.assert_array_equal(drawn.max(0) + 1, spec.action_choices)
        np.testing.assert_array_equal(spec.from_space(spec.to_space(drawn)), drawn)
        assert space.contains(spec.to_space(drawn)[0])
        for dtype in (np.int8, np.uint16, np.int64, np.uint64):
            checked = spec.check_actions(drawn.astype(dtype))
            assert checked.dtype == np.int64
            np.testing.assert_array_equal(checked, drawn)
    assert ONE.action_space(chunk=3) == spaces.MultiDiscrete([5, 5, 5])
    assert TWO.action_space(chunk=2) == spaces.MultiDiscrete([[3, 4], [3, 4]])


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([5], r"expected 'choice_0' in 0..4, got 5"),
        ([[1], [-1]], r"expected 'choice_0' in 0..4, got -1 at \[1, 0\]"),
        ([1.0], r"whole numbers of an integer dtype.*'choice_0' in 0..4.*float64"),
        ([True], "dtype bool"),
        ([1, 2], r"expected shape \(\.\.\., 1\) \(choice_0\), got \(2,\)"),
        (3, r"got \(\)"),
        ([[1], [2, 3]], "expected whole numbers"),
        (np.array([2**63], np.uint64), "in 0..4, got 9223372036854775808"),
    ],
)
def test_bad_choices_are_named(actions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ONE.check_actions(actions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_choices": (3, 4)}, "a whole number of at least 1 for each of the 1"),
        ({"action_choices": (0,)}, "at least 1"),
        ({"action_choices": (2.5,)}, "a whole number"),
        ({"action_scale": (2.0,)}, "an action_scale of 1"),
        ({"action_offset": (0.5,)}, "a whole action_offset"),
    ],
)
def test_a_spec_refuses_choices_that_are_none(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ONE, **changes)


def test_rest_is_what_physically_does_nothing() -> None:
    spec = WorldSpec("car", 8, 8, ("steer", "gas", "grip", "heat"), ("u",) * 4, (1.0, 0.5, 0.0, 1.0), 10.0, 1)
    spec = replace(spec, action_offset=(0.0, 0.5, 7.0, 3.0))
    np.testing.assert_array_equal(spec.rest_action(), np.array([0, -1, 0, -1], np.float32))


# -- what the networks read --------------------------------------------------------------------------------------------


def test_choices_are_read_one_hot_and_quantities_as_they_are() -> None:
    box = WorldSpec("box", 8, 8, ("x",), ("m",), (1.0,), 10.0, 1)
    pushes = torch.rand(2, 3, 1)
    assert encode_actions(box, pushes) is pushes
    read = encode_actions(TWO, torch.tensor([[0, 3], [2, 1]]))
    assert read.dtype == torch.float32
    assert read.tolist() == [[1, 0, 0, 0, 0, 0, 1], [0, 0, 1, 0, 1, 0, 0]]
    assert encode_actions(TWO, torch.zeros(4, 0, 2)).shape == (4, 0, 7)
    with pytest.raises(ValueError, match="integer dtype"):
        encode_actions(TWO, torch.ones(1, 2))
    with pytest.raises(RuntimeError):
        encode_actions(TWO, torch.tensor([[3, 0]]))


@pytest.mark.parametrize("spec", [ONE, TWO], ids=["Discrete", "MultiDiscrete"])
@pytest.mark.parametrize("make", [video, latent])
def test_a_choice_is_no_magnitude(make: Any, spec: WorldSpec) -> None:
    """Exchange what two choices are read as, and the two exchange their futures; all others stay as they were."""
    model = make(spec)
    frames = torch.randint(0, 256, (1, 2, *spec.frame_shape), dtype=torch.uint8, generator=torch.manual_seed(0))
    noise = Noise.from_seeds([0])

    def futures() -> list[torch.Tensor]:
        with torch.no_grad():
            state = model.encode(frames, torch.zeros(1, 1, spec.action_size, dtype=torch.int64))
            rest = [0] * (spec.action_size - 1)
            return [model.features(model.step(state, torch.tensor([[k, *rest]]), noise)) for k in range(3)]

    before = futures()
    assert all((before[i] - before[j]).abs().max() > 1e-5 for i, j in ((0, 1), (0, 2), (1, 2)))
    with torch.no_grad():
        if isinstance(model, VideoWAM):
            columns = model.stream.action_in[0].weight
            columns[:, [1, 2]] = columns[:, [2, 1]]
        else:
            first = model.predictors.weights[0]  # members, inputs, width; the first action's inputs come first
            at = first.shape[1] - model.block * (spec.action_width + 1)
            first[:, [at + 1, at + 2]] = first[:, [at + 2, at + 1]]
    after = futures()
    for mine, theirs in zip(after, (before[0], before[2], before[1]), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("spec", [ONE, TWO], ids=["Discrete", "MultiDiscrete"])
@pytest.mark.parametrize("make", [lambda s: exact(s).model, video, latent], ids=["exact", "video", "latent"])
def test_models_of_choices_keep_the_contract(make: Any, spec: WorldSpec) -> None:
    check_world(make(spec))


@pytest.mark.parametrize("make", [video, latent])
def test_a_saved_model_of_choices_dreams_on_to_the_bit(make: Any, tmp_path: Path) -> None:
    model = make(TWO)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["spec"]["action_choices"] == [3, 4]
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert loaded.spec == model.spec
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 2, *TWO.frame_shape), np.uint8)
    past, plan = TWO.random_actions(rng, 2, 1), TWO.random_actions(rng, 2, 5)
    dreams = [rollout(m, frames, past, plan, Noise.from_seeds([1, 2])) for m in (model, loaded)]
    np.testing.assert_array_equal(*dreams)
    with pytest.raises(ValueError, match="integer dtype"):
        rollout(model, frames, past, plan.astype(np.float32), Noise.from_seeds([1, 2]))


def test_a_video_model_learns_from_choices(tmp_path: Path) -> None:
    store = stored(tmp_path / "store", TWO)
    model = video(TWO).train().requires_grad_(True)
    clip = WindowSampler(store, 4).sample(3, np.random.default_rng(0))
    noise = Noise.from_seeds(range(3))
    actions = EncodedActions(encode_actions(TWO, torch.as_tensor(clip.actions)))
    tokens = model.codec.encode(torch.as_tensor(clip.frames).flatten(0, 1)).unflatten(0, (3, 4))
    losses, imagined = rollout_losses(model, tokens, actions, 1, noise)
    reward, ended = (torch.as_tensor(x, dtype=torch.float32).flatten() for x in (clip.rewards, clip.terminated))
    losses |= reading_losses(model.reward_head, imagined.flatten(0, 1).flatten(1), reward, ended)
    losses |= forcing_losses(model, torch.randn(3, 4, 1, 8), actions, noise)
    sum(x.mean() for x in losses.values()).backward()
    gradient = model.stream.action_in[0].weight.grad
    taken = encode_actions(TWO, torch.as_tensor(clip.actions)).flatten(0, 1).any(0)
    assert gradient[:, taken].abs().sum() > 0


@pytest.mark.parametrize("how", [{"size": "tiny", "effort": 0.01}, {"recipe": "pusht-latent-mini"}], ids=str)
def test_a_world_of_choices_is_learned_from_data(how: dict[str, Any], tmp_path: Path) -> None:
    spec = spec_of(3, 2, size=24)
    store = EpisodeStore.create(tmp_path / "store", spec, ("x", "y"))
    store.add(episodes(spec, 6, 20))
    world = open_world(train(TrainConfig(data=store.folder, out=tmp_path / "run", threads=1, **how)), "cpu")
    assert world.spec.action_choices == (3, 2)
    env = ImaginedEnv(world)
    env.reset(seed=0)
    env.step(env.action_space.sample())


@pytest.mark.parametrize("make", [video, latent])
def test_a_world_without_actions_is_a_world(make: Any, tmp_path: Path) -> None:
    spec = WorldSpec("clouds", 16, 16, (), (), (), 10.0, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # torch warns of layers without inputs
        model = make(spec)
    check_world(model)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 2, 16, 16, 3), np.uint8)
    env = ImaginedEnv(World(model, Starts(frames, np.zeros((2, 1, 0), np.float32))), task=LearnedTask(2.0))
    assert env.action_space == spaces.Box(-1, 1, (0,))
    env.reset(seed=0)
    seen, *_ = env.step(env.action_space.sample())
    assert seen.shape == spec.frame_shape


# -- the faces ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [ONE, TWO], ids=["Discrete", "MultiDiscrete"])
def test_faces_of_choices_pass_the_checkers(spec: WorldSpec) -> None:
    from stable_baselines3.common.env_checker import check_env as check_sb3

    env = ImaginedEnv(exact(spec), render_mode="rgb_array", horizon=20)
    assert env.action_space == spec.action_space()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)
    check_sb3(ImaginedEnv(exact(spec), observation="features", horizon=20))


def test_all_faces_dream_the_same_of_the_same_choices() -> None:
    world = exact(ONE)
    env, envs = ImaginedEnv(world), ImaginedVectorEnv(2, world)
    many = ImaginedVecEnv(world, num_envs=2)
    begin = {"start": 0}
    env.reset(seed=0, options=begin)
    envs.reset(seed=0, options=begin)
    many.seed(0)
    many.set_options(begin)
    many.reset()
    assert envs.action_space == spaces.MultiDiscrete([5, 5])
    for choice in (2, 2, 4, 1, 0):
        seen, reward, *_ = env.step(choice)
        for frames, rewards in (envs.step(np.array([choice, 0]))[:2], many.step(np.array([choice, 0]))[:2]):
            np.testing.assert_array_equal(frames[0], seen)
            assert rewards[0] == reward
    np.testing.assert_allclose(env.imagination.features(), [[0.25, 0.25]], atol=0.01)


@pytest.mark.parametrize(
    ("action", "message"),
    [(5, "in 0..4, got 5"), (1.0, "integer dtype"), ([1], r"expected shape \(\), got \(1,\)"), ("left", "dtype <U4")],
)
def test_faces_refuse_what_is_no_choice(action: Any, message: str) -> None:
    env = ImaginedEnv(exact(ONE))
    env.reset(seed=0)
    before = env.imagination.features()
    with pytest.raises(ValueError, match=message):
        env.step(action)
    np.testing.assert_array_equal(env.imagination.features(), before)


@pytest.mark.parametrize("spec", [ONE, TWO], ids=["Discrete", "MultiDiscrete"])
def test_a_chunk_of_choices_is_the_choices_one_by_one(spec: WorldSpec) -> None:
    whole, single = ImaginedEnv(exact(spec), chunk=3), ImaginedEnv(exact(spec))
    assert whole.action_space.shape == ((3,) if spec is ONE else (3, 2))
    envs = ImaginedVectorEnv(2, exact(spec), chunk=3)
    envs.reset(seed=0)
    for env in (whole, single):
        env.reset(seed=0, options={"start": 1})
    whole.action_space.seed(0)
    chunk = whole.action_space.sample()
    seen, reward, *_ = whole.step(chunk)
    steps = [single.step(action) for action in chunk]
    np.testing.assert_array_equal(seen, steps[-1][0])
    assert reward == pytest.approx(sum(step[1] for step in steps), abs=1e-6)
    assert envs.step(np.stack([chunk, chunk]))[0].shape == (2, *spec.frame_shape)
    with pytest.raises(ValueError, match="action"):
        whole.step(chunk[:2])


def test_a_history_of_choices_may_begin_a_dream() -> None:
    dreams = Imagination(latent(TWO), LearnedTask(2.0), num_envs=2)
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    dreams.reset(seeds=0, options={"frames": frames, "actions": np.array([[2, 3]])})
    dreams.step(torch.tensor([[0, 3], [2, 1]]))
    with pytest.raises(ValueError, match=r"'choice_1' in 0..3, got 4"):
        dreams.reset(options={"frames": frames, "actions": np.array([[2, 4]])})
    with pytest.raises(ValueError, match="integer dtype"):
        dreams.step(np.zeros((2, 2), np.float32))


def test_stable_baselines_learns_in_a_world_of_choices() -> None:
    from stable_baselines3 import DQN, PPO

    def ground(spec: WorldSpec) -> ImaginedVecEnv:
        return ImaginedVecEnv(exact(spec), num_envs=2, observation="features", horizon=8)

    dqn = DQN("MlpPolicy", ground(ONE), learning_starts=8, buffer_size=64, batch_size=8, seed=0)
    dqn.learn(32)
    PPO("MlpPolicy", ground(ONE), n_steps=8, batch_size=8, n_epochs=1, seed=0).learn(16)
    PPO("MlpPolicy", ground(TWO), n_steps=8, batch_size=8, n_epochs=1, seed=0).learn(16)
    chosen, _ = dqn.predict(np.zeros((3, 2), np.float32))
    assert ONE.check_actions(to_actions(chosen, 1, ONE.action_choices)).shape == (3, 1)
    with pytest.raises(ValueError, match="choices of its own"):
        DiscreteActionEnv(ImaginedEnv(exact(ONE)))


def test_features_of_the_truth_are_those_of_the_dream() -> None:
    """FeatureEnv on a face of the exact world: its encoder is told the choices that were made."""
    world = exact(ONE)
    model = latent(ONE)
    env = FeatureEnv(ImaginedEnv(world), model, "float32")
    env.reset(seed=0)
    seen, *_ = env.step(3)
    assert env.encoder.actions.dtype == np.int64
    assert env.encoder.actions.ravel().tolist() == [3]
    assert seen.shape == (model.feature_size,)


# -- agents ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", [ICEM(candidates=32, rounds=3), CEM(candidates=32, rounds=3, elites=4)])
@pytest.mark.parametrize("spec", [ONE, TWO], ids=["Discrete", "MultiDiscrete"])
def test_planners_choose_in_a_world_of_choices(spec: WorldSpec, search: CEM) -> None:
    world = exact(spec)
    planner = Planner(
        world, LearnedTask(2.0), search, PlannerConfig(lookahead=3, block=1, n_action_steps=1, when="steps")
    )
    env = ImaginedEnv(world)
    frame, _ = env.reset(seed=0, options={"start": 0})
    memory = None
    for _ in range(3):
        action, memory = planner.predict(frame, memory)
        frame, reward, *_ = env.step(action)
    assert reward == pytest.approx(0.75, abs=0.02)  # to the right, as fast as can be


def test_policies_of_chance_and_of_nothing_know_choices() -> None:
    seen = np.zeros((50, 2))
    drawn, _ = RandomPolicy(TWO).predict(seen)
    np.testing.assert_array_equal(TWO.check_actions(drawn), drawn)
    assert drawn.max(0).tolist() == [2, 3]
    assert (NoOpPolicy(TWO).predict(seen)[0] == 0).all()
    keys = random_keys(np.random.default_rng(0), 500, 2, TWO.action_choices)
    assert keys.dtype == np.int64
    assert keys.max(0).tolist() == [2, 3]
    assert keys.min() == 0


def test_keys_choose() -> None:
    keyboard = DiscreteKeyboard(ONE, LABELS)

    def asked() -> int:
        press = keyboard.read()
        assert press.action.dtype == np.int64
        return int(ONE.check_actions(press.action)[0])

    assert asked() == 0
    for key, choice in (("left", 1), ("up", 3), ("4", 4), ("9", 0)):
        keyboard.hold(key)
        assert asked() == choice
        keyboard.release(key)
        assert asked() == 0
    keyboard.hold("left")
    keyboard.hold("right")
    assert asked() == 2  # the newest counts
    keyboard.release("right")
    assert asked() == 1
    assert DiscreteKeyboard(replace(ONE, action_choices=(3,)), ("go", "idle", "left")).rest == 1
    both = DiscreteKeyboard(replace(ONE, action_choices=(3,)), ("up", "left", "up left"))
    both.hold("left")
    both.hold("up")
    assert both.read().action.tolist() == [2]
    plain = DiscreteKeyboard(ONE)
    plain.hold("left")
    assert plain.read().action.tolist() == [0]  # nobody knows what it would mean
    with pytest.raises(ValueError, match="let a policy drive"):
        DiscreteKeyboard(TWO)
    with pytest.raises(ValueError, match="expected 5 labels"):
        DiscreteKeyboard(ONE, ("a", "b"))


# -- data --------------------------------------------------------------------------------------------------------------


def test_choices_lie_in_a_store_as_they_are(tmp_path: Path) -> None:
    store = EpisodeStore(stored(tmp_path / "store", TWO).folder)
    assert store.spec == TWO
    assert np.load(next((tmp_path / "store").glob("shard-*/actions.npy"))).dtype == np.int64
    for ours, theirs in zip(store, episodes(TWO), strict=True):
        np.testing.assert_array_equal(ours.actions, theirs.actions)
        assert ours.actions.dtype == np.int64
    for length in (1, 3):
        clip = WindowSampler(store, length).sample(4, np.random.default_rng(0))
        assert clip.actions.shape == (4, length - 1, 2)
        assert clip.actions.dtype == np.int64
    wrong = replace(episodes(TWO)[0], actions=np.full((6, 2), 3))
    with pytest.raises(ValueError, match=r"episode 0: actions: expected 'choice_0' in 0..2, got 3 at \[0, 0\]"):
        store.add([wrong])
    told = describe_data(store)["actions"]
    taken = np.concatenate([e.actions for e in store])
    assert told[0].startswith(f"choice_0: 0 {(taken[:, 0] == 0).sum()} times (")
    assert told[1].count("times") == 4
    path = next((tmp_path / "store").glob("shard-*/actions.npy"))
    np.save(path, np.load(path).astype(np.float32))
    with pytest.raises(ValueError, match=r"its actions are float32 \(2,\), the world's int64 \(2,\)"):
        EpisodeStore(tmp_path / "store")


def test_starts_of_choices_are_saved_and_read(tmp_path: Path) -> None:
    exact(ONE).starts.save(tmp_path / "starts.npz")
    assert Starts.load(tmp_path / "starts.npz", ONE).actions.dtype == np.int64
    replace(exact(ONE).starts, actions=np.full((2, 1, 1), 3)).save(tmp_path / "bad.npz")
    with pytest.raises(ValueError, match=r"in 0..1, got 3"):
        Starts.load(tmp_path / "bad.npz", spec_of(2))


def test_open_loop_dreams_follow_recorded_choices(tmp_path: Path) -> None:
    world = exact(ONE)
    model, rng = world.model, np.random.default_rng(0)
    frames, states = [world.starts.frames[0, -1]], PlaceState(torch.zeros(1, 2))
    actions = ONE.random_actions(rng, 6)
    for action in actions:
        states = model.step(states, torch.as_tensor(action)[None], Noise.from_seeds([0]))
        frames.append(model.decode(states)[0].numpy())
    zeros = np.zeros(6, np.float32)
    store = EpisodeStore.create(tmp_path / "store", ONE)
    store.add([Episode(np.stack(frames), actions, zeros, zeros > 0, zeros > 0, provenance={"seed": 0})])
    windows = Windows(store, np.array([0]), np.array([0]), 2, 5)
    rolled = roll_out(model, windows, (1, 5), None, ImaginedRolloutConfig(precision="float32"))
    assert rolled.error[0, 1:].max() < 20  # reading the first place off a frame is not exact
    assert rolled.error[0, 2] < rolled.error_copy[0, 2] / 10


@pytest.mark.parametrize(
    "space", [spaces.Discrete(3), spaces.Discrete(3, start=2), spaces.MultiDiscrete([2, 3], start=[1, -1])], ids=str
)
def test_minari_choices_come_in_and_go_out_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: spaces.Space[Any]
) -> None:
    import minari
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    rng = np.random.default_rng(0)
    space.seed(0)
    acts = [np.stack([space.sample() for _ in range(5)]) for _ in range(3)]
    buffers = [
        EpisodeBuffer(
            observations=rng.integers(0, 256, (6, 16, 16, 3), np.uint8),
            actions=a,
            rewards=np.ones(5),
            terminations=np.zeros(5, bool),
            truncations=np.arange(5) == 4,
        )
        for a in acts
    ]
    seen = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Minari's, about metadata that this test leaves out
        minari.create_dataset_from_buffers(
            "theirs-v0", buffers, observation_space=seen, action_space=space, jpeg_encoding=False
        )
    store, remarks = imported("minari:theirs-v0", tmp_path / "store", size=16)
    assert store.spec.discrete
    assert any(remark.startswith("actions are choices: action_0 of ") for remark in remarks)
    first = np.array(space.start)
    for episode, actions in zip(store, acts, strict=True):
        native = episode.actions + np.array(store.spec.action_offset, int)
        np.testing.assert_array_equal(store.spec.to_space(native), actions)
        assert (episode.actions >= 0).all()
    assert str(int(first.ravel()[0])) in describe_data(store)["actions"][0]
    write_minari(store, "ours-v0", tmp_path / "minari")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        ours = minari.load_dataset("ours-v0")
    assert ours.action_space == space
    for episode, actions in zip(ours, acts, strict=True):
        np.testing.assert_array_equal(episode.actions, actions)
        assert all(space.contains(action) for action in episode.actions)
    back, _ = imported("minari:ours-v0", tmp_path / "back")
    assert back.info == store.info
    for one, other in zip(store, back, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.frames, other.frames)


@pytest.mark.parametrize("spec", [ONE, TWO], ids=["Discrete", "MultiDiscrete"])
def test_lerobot_keeps_choices_whole(tmp_path: Path, spec: WorldSpec) -> None:
    store = stored(tmp_path / "store", replace(spec, action_offset=(2.0,) * spec.action_size))
    write_lerobot(store, tmp_path / "lerobot")
    assert json.loads((tmp_path / "lerobot/meta/info.json").read_text())["features"]["action"]["dtype"] == "int64"
    back, _ = imported(f"lerobot:{tmp_path / 'lerobot'}", tmp_path / "back")
    assert back.info == store.info
    for ours, theirs in zip(store, back, strict=True):
        np.testing.assert_array_equal(ours.actions, theirs.actions)
    (tmp_path / "lerobot/meta/neuralsim.json").unlink()  # as if somebody else had written it
    other, remarks = imported(f"lerobot:{tmp_path / 'lerobot'}", tmp_path / "other", size=16)
    assert other.spec.action_choices == tuple(2 + np.concatenate([e.actions for e in store]).max(0) + 1)
    assert any("actions are choices" in remark for remark in remarks)
    np.testing.assert_array_equal(other[0].actions, store[0].actions + 2)
    (tmp_path / "lerobot/meta/stats.json").unlink()  # then the actions themselves tell
    again, _ = imported(f"lerobot:{tmp_path / 'lerobot'}", tmp_path / "again", size=16)
    assert again.spec == replace(other.spec, name=again.spec.name)


def test_whole_numbers_of_many_kinds_are_quantities() -> None:
    assert ActionChoices.within(ActionScale.of_bounds([0], [4095], "ticks")) is None
    assert ActionChoices.within(ActionScale.of_bounds([0.5], [3], "halves")) is None
    assert ActionChoices.within(ActionScale.of_bounds([0], [3.5], "halves")) is None
    assert ActionChoices.within(ActionScale.of_bounds([1, -2], [4, 3], "here")) == ActionChoices(
        (0, -2), (5, 6), "here"
    )
    choices = ActionChoices((2, -1), (3, 2), "here")
    with pytest.raises(ValueError, match=r"'b' is 1 in step 0; expected a whole number in -1..0"):
        choices.normalise(np.array([[2.0, 1.0]]), ("a", "b"))
    with pytest.raises(ValueError, match=r"'a' is 2.5 in step 0"):
        choices.normalise(np.array([[2.5, 0.0]]), ("a", "b"))


def test_an_old_stores_offset_is_part_of_its_spec(tmp_path: Path) -> None:
    spec = WorldSpec("arm", 16, 16, ("x", "y"), ("m", "m"), (1.0, 2.0), 10.0, 2)
    store = EpisodeStore.create(tmp_path / "old", spec)
    body = json.loads((tmp_path / "old/store.json").read_text())
    for name in ("action_offset", "action_choices"):
        del body["spec"][name]
    (tmp_path / "old/store.json").write_text(json.dumps(body | {"source": {"action_offset": [0.5, -1.0]}}))
    store = EpisodeStore(tmp_path / "old")
    assert store.spec == replace(spec, action_offset=(0.5, -1.0))
    store.set_source({"from": "here"})  # what was known only from there is not lost
    assert EpisodeStore(tmp_path / "old").spec == store.spec


def test_an_environment_made_by_gymnasium_knows_choices() -> None:
    env = gym.make("neuralsim/PushT-v0", world=exact(TWO))
    env.reset(seed=0)
    env.step(env.action_space.sample())
    envs = gym.make_vec("neuralsim/PushT-v0", num_envs=3, world=exact(TWO))
    envs.reset(seed=0)
    assert envs.step(envs.action_space.sample())[0].shape == (3, *TWO.frame_shape)
