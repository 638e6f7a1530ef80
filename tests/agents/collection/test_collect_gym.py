"""Promises of collecting in any Gymnasium environment: frames of one size, actions in the world's terms and back, ends as the
environment tells them, an episode a function of (seed, index), and a store that says how to make the true environment again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from neuralsim import cli
from neuralsim.agents.collection.collect import CollectConfig, collect, collect_episode
from neuralsim.agents.policies.random_policies import HoldActionPolicy
from neuralsim.data.episode import Episode
from neuralsim.data.images import ImageResizer
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.gym_adapter.env import GymEnvConfig, GymRealEnv
from neuralsim.envs.tasks.gym_world import real_env_of
from neuralsim.spec import WorldSpec


@pytest.fixture(autouse=True)
def dummy_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


class Told(gym.Env[Any, Any]):
    """A world of one's own: it shows its clock, and writes down what it is told to do."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self, acts: spaces.Space[Any] | None = None, sees: spaces.Space[Any] | None = None, end: int = 1000,
        render_mode: str | None = None,
    ) -> None:  # fmt: skip
        self.action_space = acts or spaces.Box(-1, 1, (2,))
        self.observation_space = sees or spaces.Box(0, 255, (24, 40, 3), np.uint8)
        self.end, self.render_mode = end, render_mode
        self.told: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.clock, self.shade = 0, int(self.np_random.integers(256))
        return self._see(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.told.append(action)
        self.clock += 1
        return self._see(), float(self.clock), self.clock >= self.end, False, {}

    def render(self) -> np.ndarray:
        return np.full((48, 32, 3), self.shade, np.uint8)

    def _see(self) -> Any:
        if isinstance(self.observation_space, spaces.Dict):
            return {"here": np.array([self.clock, 1.5]), "door": 2}
        return np.full(self.observation_space.shape, self.clock, self.observation_space.dtype)


ACTS: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(np.array([-2, 0, 5], np.float32), np.array([2, 1, 5], np.float32)),
    "square": spaces.Box(-3, 1, (2, 2), np.float64),
    "whole": spaces.Box(0, 6, (2,), np.int32),
    "one": spaces.Discrete(5, start=-2),
    "many": spaces.MultiDiscrete([3, 2, 4]),
    "bits": spaces.MultiBinary(3),
}
SEEN = spaces.Dict({"here": spaces.Box(-np.inf, np.inf, (2,)), "door": spaces.Discrete(4)})
gym.register("test/Told-v0", Told, max_episode_steps=20)


def run(config: CollectConfig) -> EpisodeStore:
    for _ in collect(config):
        pass
    return EpisodeStore(config.folder)


def same(one: Episode, other: Episode) -> bool:
    names = ("frames", "actions", "rewards", "terminated", "truncated", "states")
    return all(np.array_equal(getattr(one, n), getattr(other, n)) for n in names) and one.provenance == other.provenance


# -- what becomes of an environment ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ACTS)
def test_actions_of_every_space_reach_the_environment_and_come_back_as_they_were(kind: str) -> None:
    gym.register("test/Acts-v0", lambda **kw: Told(ACTS[kind], **kw))
    try:
        env = GymRealEnv(GymEnvConfig("test/Acts-v0", frames="render"), 32)
    finally:
        gym.registry.pop("test/Acts-v0")
    spec, space = env.spec_world, ACTS[kind]
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(50):
        action = spec.random_actions(rng)
        env.step(action)
        told = env.env.unwrapped.told[-1]  # type: ignore[attr-defined]
        assert space.contains(told)
        if kind != "whole":
            back, known = env.actions.from_own(told, spec), np.array(spec.action_scale) > 0
            np.testing.assert_allclose(back[known], action[known], atol=1e-6)
            assert back.dtype == spec.action_dtype
    if not spec.discrete:
        for end, bound in ((-1, space.low), (1, space.high)):  # type: ignore[attr-defined]
            env.step(np.full(spec.action_size, end, np.float32))
            np.testing.assert_array_equal(env.env.unwrapped.told[-1], bound)  # type: ignore[attr-defined]
    assert env.action_space == spec.action_space()
    env.step(env.action_space.sample())


def test_rest_is_what_physically_does_nothing() -> None:
    env = GymRealEnv(GymEnvConfig("CarRacing-v3"))
    own = env.actions.to_own(env.spec_world.rest_action(), env.spec_world)
    np.testing.assert_array_equal(own, [0, 0, 0])


def test_an_action_repeated_sums_rewards_divides_the_rate_and_stops_at_the_end() -> None:
    env = GymRealEnv(GymEnvConfig("test/Told-v0", kwargs='{"end": 7}', repeat=3, rate=30.0))
    assert env.spec_world.rate_hz == 10.0
    env.reset(seed=0)
    action = np.zeros(2, np.float32)
    heard = [env.step(action)[1:4] for _ in range(3)]
    assert heard == [(1 + 2 + 3, False, False), (4 + 5 + 6, False, False), (7, True, False)]
    assert env.steps == 7  # of 20 steps in all


def test_small_observations_are_kept_as_named_states_and_images_are_not() -> None:
    gym.register("test/Seen-v0", lambda **kw: Told(sees=SEEN, **kw))
    env = GymRealEnv(GymEnvConfig("test/Seen-v0"), observation="state")
    assert env.state_names == ("door_0", "here_0", "here_1")
    assert env.reset(seed=0)[0].tolist() == [2, 0, 1.5]
    assert env.step(np.zeros(2))[0].tolist() == [2, 1, 1.5]
    assert GymRealEnv(GymEnvConfig("CartPole-v1")).state_names == tuple(f"state_{i}" for i in range(4))
    assert GymRealEnv(GymEnvConfig("CarRacing-v3")).state_names == ()
    with pytest.raises(ValueError, match="no small vector"):
        GymRealEnv(GymEnvConfig("CarRacing-v3"), observation="state")


@pytest.mark.parametrize(
    ("fit", "size", "about"),
    [
        (ImageResizer(64, 96), (400, 600), "400x600 -> 64x96, resized"),
        (ImageResizer(64, 64), (400, 600), "400x600 -> 64x64, resized and stretched"),
        (ImageResizer(64, 64, "pad"), (400, 600), "400x600 -> 64x64, resized to 43x64 and padded with black"),
        (ImageResizer(96, 96), (96, 96), "96x96, as they come"),
    ],
)
def test_images_are_fitted_into_frames_as_is_said(fit: ImageResizer, size: tuple[int, int], about: str) -> None:
    image = np.full((*size, 3), 200, np.uint8)
    frame = fit(image)
    assert fit.about(*size) == about
    assert frame.shape == (fit.height, fit.width, 3)
    rows = (frame == 200).all((1, 2)).sum()
    assert rows == (43 if fit.how == "pad" else fit.height)
    assert set(np.unique(frame)) <= {0, 200}


def test_frames_are_area_averages_of_what_the_environment_shows() -> None:
    env = GymRealEnv(GymEnvConfig("CarRacing-v3"), 32)
    frame, _ = env.reset(seed=3)
    seen = env.own_observation.reshape(32, 3, 32, 3, 3).mean((1, 3))
    np.testing.assert_allclose(frame, seen, atol=1)
    told = GymRealEnv(GymEnvConfig("test/Told-v0", frames="render"), (16, 8))
    assert told.reset(seed=1)[0].shape == (16, 8, 3)
    assert (told.render() == told.env.unwrapped.shade).all()  # type: ignore[attr-defined]


def test_what_was_guessed_is_said() -> None:
    (frames, rate) = GymRealEnv(GymEnvConfig("test/Told-v0", repeat=2), (24, 40)).remarks()
    assert frames == "test-Told-v0: frames from its observations, 24x40, as they come"
    assert "15 Hz is a guess" in rate
    assert "--rate" in rate
    (frames, rate) = GymRealEnv(GymEnvConfig("CartPole-v1"), (64, 96)).remarks()
    assert frames == "CartPole-v1: frames from its rgb_array renders, 400x600 -> 64x96, resized"
    assert rate == "CartPole-v1: 50 Hz"


@pytest.mark.parametrize(
    ("world", "message"),
    [
        ({"env": "CarRacing"}, "did you mean 'CarRacing-v3'"),
        ({"env": "carpole-v1"}, "did you mean 'CartPole-v1'"),
        ({"env": "nowhere:X-v0"}, "No module named 'nowhere'"),
        ({"env": "CartPole-v1", "kwargs": '{"wings": 2}'}, "wings"),
        ({"env": "CartPole-v1", "kwargs": "wings"}, "--env-kwargs: expected JSON"),
        ({"env": "CartPole-v1", "kwargs": "[1]"}, "expected a JSON object"),
        ({"env": "CartPole-v1", "frames": "observation"}, "--frames observation needs images"),
        ({"env": "CartPole-v1", "repeat": 0}, "--repeat: expected 1 or more"),
        ({"env": "CartPole-v1", "rate": 0.0}, "--rate: expected steps a second"),
        ({"env": "CartPole-v1", "action_names": ("a", "b")}, "--action-names: expected 1 names"),
        ({"env": "test/Far-v0"}, "its actions are unbounded"),
        ({"env": "test/Spoken-v0"}, "its actions are a Text"),
        ({"env": "test/Blind-v0"}, "shows no frames"),
    ],
)
def test_what_cannot_be_a_world_is_named(world: dict[str, Any], message: str) -> None:
    blind = type("Blind", (Told,), {"metadata": {"render_modes": ["human"]}})
    gym.register("test/Far-v0", lambda **kw: Told(spaces.Box(-np.inf, 1, (2,)), **kw))
    gym.register("test/Spoken-v0", lambda **kw: Told(spaces.Text(5), **kw))
    gym.register("test/Blind-v0", blind, kwargs={"sees": SEEN})
    try:
        with pytest.raises(ValueError, match=message):
            GymRealEnv(GymEnvConfig(**world))
    finally:
        for name in ("Far", "Spoken", "Blind"):
            gym.registry.pop(f"test/{name}-v0")


# -- collecting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1", "CarRacing-v3"])
@pytest.mark.parametrize("policy", ["explore", "random"])
def test_an_episode_is_a_function_of_seed_and_index_alone(env: str, policy: str) -> None:
    config = CollectConfig(env=env, seed=3, steps=12, size=32, policy=policy)
    other = collect_episode(config, 6)
    one, again = collect_episode(config, 7), collect_episode(config, 7)
    assert same(one, again)
    assert not np.array_equal(one.frames[0], other.frames[0]) or not np.array_equal(one.actions, other.actions)
    assert one.frames.std() > 1
    assert one.actions.dtype == config.real_world.make_spec(32).action_dtype


def test_workers_interruptions_and_more_episodes_later_leave_no_trace(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"env": "CartPole-v1", "steps": 4, "size": (16, 24)}
    straight = run(CollectConfig(out=tmp_path / "one", episodes=103, workers=1, **settings))
    run(CollectConfig(out=tmp_path / "two", episodes=3, workers=2, **settings))
    store = run(CollectConfig(out=tmp_path / "two", episodes=103, workers=2, **settings))
    assert store.shard_numbers() == [0, 1]  # each made by a process of its own
    assert all(same(a, b) for a, b in zip(straight, store, strict=True))
    assert store.info.source["env"] == "CartPole-v1"
    assert store.spec.name == "CartPole-v1"


def test_terminations_and_time_limits_are_kept_apart(tmp_path: Path) -> None:
    fallen = run(CollectConfig(env="CartPole-v1", out=tmp_path / "a", episodes=4, size=16, workers=1))
    for episode in fallen:
        assert episode.terminated.nonzero()[0].tolist() == [len(episode) - 1]
        assert not episode.truncated.any()
    timed = run(CollectConfig(env="test/Told-v0", out=tmp_path / "b", episodes=1, size=16, workers=1))[0]
    assert (len(timed), timed.terminated.any(), timed.truncated[-1]) == (20, False, True)
    cut = run(CollectConfig(env="test/Told-v0", out=tmp_path / "c", episodes=1, steps=5, size=16, workers=1))[0]
    assert (len(cut), cut.terminated.any(), cut.truncated.tolist()) == (5, False, [False] * 4 + [True])


def test_the_true_environment_made_from_a_store_does_what_the_store_says(tmp_path: Path) -> None:
    kwargs = {"env_kwargs": '{"g": 4.0}', "repeat": 2, "fit": "pad", "action_names": ("torque",)}
    config = CollectConfig(env="Pendulum-v1", out=tmp_path, episodes=2, steps=10, size=(32, 48), workers=1, **kwargs)  # type: ignore[arg-type]
    store = run(config)
    env = real_env_of(store.spec, store.info.source)
    assert isinstance(env, GymRealEnv)
    assert env.spec_world == store.spec
    assert env.env.unwrapped.g == 4.0  # type: ignore[attr-defined]
    rng = np.random.default_rng([0, 1])
    rng.integers(2**31)  # the explorer's
    episode = store[1]
    frame, _ = env.reset(seed=int(rng.integers(2**31)))
    np.testing.assert_array_equal(frame, episode.frames[0])
    assert episode.states is not None
    for i, action in enumerate(episode.actions):
        frame, reward, *_ = env.step(action)
        np.testing.assert_array_equal(frame, episode.frames[i + 1])
        np.testing.assert_array_equal(env.state(), episode.states[i + 1])
        assert np.float32(reward) == episode.rewards[i]


def test_the_true_environment_of_a_world_with_a_name_is_found_by_it() -> None:
    from neuralsim.envs.pusht.env import PushTRealEnv, pusht_spec

    env = real_env_of(pusht_spec(32))
    assert isinstance(env.unwrapped, PushTRealEnv)
    assert env.reset(seed=1)[0].shape == (32, 32, 3)
    nobody = WorldSpec("nobody", 8, 8, ("a",), ("u",), (1.0,), 1.0, 1)
    with pytest.raises(ValueError, match="nothing says which real environment"):
        real_env_of(nobody)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env_kwargs": '{"g": 1.0}'}, "--env-kwargs {}, asked for {'g': 1.0}"),
        ({"fit": "pad"}, "--fit stretch, asked for pad"),
        ({"steps": 6}, "--steps 5, asked for 6"),
        ({"env": "CartPole-v1"}, "--env Pendulum-v1, asked for CartPole-v1"),
        ({"env": None, "world": "tworoom"}, "holds episodes of 'Pendulum-v1'"),
        ({"policy": "random"}, "policy explorer, asked for random"),
    ],
)
def test_another_collection_in_the_same_folder_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {
        "env": "Pendulum-v1",
        "out": tmp_path,
        "episodes": 2,
        "steps": 5,
        "size": 16,
        "workers": 1,
    }
    run(CollectConfig(**settings))
    with pytest.raises(ValueError, match=message):
        run(CollectConfig(**settings | change))
    assert len(EpisodeStore(tmp_path)) == 2


def test_explorers_hold_actions_and_show_rest_and_extremes_in_every_space() -> None:
    box = GymRealEnv(GymEnvConfig("CarRacing-v3")).spec_world
    choices = GymRealEnv(GymEnvConfig("CarRacing-v3", kwargs='{"continuous": false}')).spec_world
    for spec in (box, choices):
        taken = []
        for seed in range(40):
            explorer, memory = HoldActionPolicy(spec, seed), None
            for _ in range(60):
                action, memory = explorer.predict(None, memory)
                spec.check_actions(action)
                taken.append(action)
        acts = np.stack(taken)
        kept = (np.diff(acts, axis=0) == 0).all(1).mean()
        assert 0.3 < kept < 0.97
        assert (acts == spec.rest_action()).all(1).mean() > 0.03
        for i in range(spec.action_size):
            values = acts[:, i]
            if spec.discrete:
                assert set(values) == set(range(spec.action_choices[i]))
            else:
                assert min((values == -1).mean(), (values == 1).mean(), (np.abs(values) < 0.9).mean()) > 0.05


# -- who acts ----------------------------------------------------------------------------------------------------------


def test_a_saved_policy_acts_as_it_does_in_its_own_environment(tmp_path: Path) -> None:
    """PPO in physical units, SAC in squashed ones, DQN in numbers of choices; each with its own chance and none of torch's."""
    import torch
    from stable_baselines3 import DQN, PPO, SAC

    for algorithm, env in ((PPO, "Pendulum-v1"), (SAC, "Pendulum-v1"), (DQN, "CartPole-v1"), (PPO, "CartPole-v1")):
        model = algorithm("MlpPolicy", env, seed=1, policy_kwargs={"net_arch": [8]})  # type: ignore[operator]
        if algorithm is PPO and env == "Pendulum-v1":
            with torch.no_grad():  # far beyond [-1, 1] in the environment's own units
                model.policy.action_net.bias += 1.5
                model.policy.log_std -= 3
        path = tmp_path / f"{algorithm.__name__}-{env}.zip"
        model.save(path)
        config = CollectConfig(env=env, steps=12, size=16, policy=str(path))
        episode = collect_episode(config, 2)
        torch.rand(5)
        assert same(episode, collect_episode(config, 2))
        assert episode.states is not None
        assert episode.provenance["policy"].startswith(path.name)
        world = GymRealEnv(GymEnvConfig(env))
        wanted = [model.predict(s, deterministic=True)[0] for s in episode.states[:-1]]
        expected = np.stack([world.actions.from_own(a, world.spec_world) for a in wanted])
        if algorithm is DQN:
            np.testing.assert_array_equal(episode.actions, expected)
        elif env == "Pendulum-v1" and algorithm is PPO:
            np.testing.assert_allclose(episode.actions, expected, atol=0.15)
            assert episode.actions.mean() > 0.5
        else:
            assert np.abs(episode.actions).max() <= 1


def test_a_policy_that_looks_at_something_else_is_refused_by_what_it_looks_at(tmp_path: Path) -> None:
    from stable_baselines3 import PPO

    pendulum = gym.wrappers.RescaleAction(gym.make("Pendulum-v1"), np.float32(-1), np.float32(1))
    PPO("MlpPolicy", pendulum, policy_kwargs={"net_arch": [8]}).save(tmp_path / "p.zip")
    with pytest.raises(
        ValueError,
        match=r"acts on observations of shape \(3,\); MountainCarContinuous-v0 has frames .* environment shows",
    ):
        collect_episode(CollectConfig(env="MountainCarContinuous-v0", size=16, policy=str(tmp_path / "p.zip")), 0)
    PPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}).save(tmp_path / "p.zip")
    with pytest.raises(ValueError, match=r"p\.zip: was trained for actions Box\(-2"):
        collect_episode(CollectConfig(env="MountainCarContinuous-v0", size=16, policy=str(tmp_path / "p.zip")), 0)


MINE = """
import gymnasium as gym
import numpy as np

class Lean:
    def __init__(self, env, seed):
        self.space, self.rng = env.action_space, np.random.default_rng(seed)
    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        assert observation.shape == (4,)
        return int(observation[2] > 0), (state or 0) + 1

def lean(env, seed):
    return Lean(env, seed)

def nothing(env, seed):
    return None

class Short(gym.Wrapper):
    pass

gym.register("mine/Short-v0", lambda render_mode=None: gym.make("CartPole-v1", render_mode=render_mode), max_episode_steps=9)
"""


def test_code_of_ones_own_is_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both a policy, shown what the environment itself shows and answering in its own actions, and an environment, in two processes."""
    (tmp_path / "my_code.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    words = ["--env", "my_code:mine/Short-v0", "--policy", "my_code:lean", "--episodes", "101", "--size", "16"]
    assert cli.main(["collect", *words, "--workers", "2"]) == 0
    store = EpisodeStore(tmp_path / "data" / "mine-Short-v0")
    assert store.spec.name == "mine-Short-v0"
    for episode in store:
        assert episode.states is not None
        np.testing.assert_array_equal(episode.actions[:, 0], episode.states[:-1, 2] > 0)
        assert episode.provenance["policy"] == "my_code:lean"
    assert real_env_of(store.spec, store.info.source).reset(seed=0)[0].shape == (16, 16, 3)
    # To another process, which has not imported it, the record of somebody's world is not reason enough to run code.
    monkeypatch.delitem(sys.modules, "my_code")
    with pytest.raises(ValueError, match="NEURALSIM_MODULES=my_code"):
        real_env_of(store.spec, store.info.source)
    monkeypatch.setenv("NEURALSIM_MODULES", "my_code")
    del gym.registry["mine/Short-v0"]  # registered once more, Gymnasium would warn
    assert real_env_of(store.spec, store.info.source).reset(seed=0)[0].shape == (16, 16, 3)
    for policy, message in (("my_code:nothing", "got NoneType"), ("my_code:who", "has no function 'who'")):
        with pytest.raises(ValueError, match=message):
            collect_episode(CollectConfig(env="CartPole-v1", size=16, policy=policy), 0)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_made_of_the_environment_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "collect",
        "--env",
        "CartPole-v1",
        "--episodes",
        "2",
        "--size",
        "32",
        "48",
        "--workers",
        "1",
        "--json",
        "f.json",
    ]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    assert "400x600 -> 32x48, resized" in told
    assert "data/CartPole-v1: 2 episodes" in told
    figures = json.loads(Path("f.json").read_text())
    assert figures["frames"] == int((EpisodeStore("data/CartPole-v1").lengths + 1).sum())
    assert cli.main(words) == 0
    assert "there was nothing to add" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--env", "CarRacing-v33"], "did you mean 'CarRacing-v3'"),
        (["tworoom", "--env", "CartPole-v1"], "give one of them"),
        (["--env", "CartPole-v1", "--size", "60"], "multiple of 8"),
        (["--env", "CartPole-v1", "--policy", "oracle"], "world 'CartPole-v1' has no expert"),
        (["--env", "CartPole-v1", "--near-goal", "0.5"], "begin by seed alone"),
    ],
)
def test_a_wrong_word_is_answered_with_a_line_that_helps(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["collect", *words])
    assert left.value.code == 2
    assert line in " ".join(capsys.readouterr().err.replace("│", " ").split())
