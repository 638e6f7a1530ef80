"""The faces: Gymnasium's two and Stable-Baselines3's, on one heart, each with its own ecosystem's semantics."""

import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check
from stable_baselines3.common.vec_env import VecMonitor

import neuralsim
from neuralsim.envs.imagined.env import ImaginedEnv
from neuralsim.envs.imagined.sb3_vec_env import ImaginedVecEnv
from neuralsim.envs.imagined.vector_env import ImaginedVectorEnv
from neuralsim.storage.resolve import list_worlds
from neuralsim.task import GoalImage

OBSERVATIONS = ("pixels", "features")


def worlds() -> list[str]:
    return [i for i in gym.registry if i.startswith("neuralsim/")]


@pytest.fixture
def make(tiny_world, endless):
    """``gym.make`` of any of our ids; imagined ones on the tiny world."""

    def make(name="neuralsim/PushT-v0", **settings):
        if "Real" not in name:
            settings = {"world": str(tiny_world), "task": endless, **settings}
        return gym.make(name, **settings)

    return make


# -- the checkers ------------------------------------------------------------------------------------------------------


def test_the_ids_are_registered():
    assert set(worlds()) >= {"neuralsim/PushT-v0", "neuralsim/PushTReal-v0"}
    assert gym.spec("neuralsim/PushTReal-v0").max_episode_steps == 300
    assert gym.spec("neuralsim/PushT-v0").kwargs == {"world": "pusht"}


@pytest.mark.parametrize("name", sorted(worlds()))
def test_every_registered_world_passes_both_checkers(make, name):
    env = make(name)
    gymnasium_check(env.unwrapped)
    sb3_check(make(name).unwrapped)


@pytest.mark.skipif("pusht" not in list_worlds(), reason="no weights in assets yet")
def test_the_shipped_world_passes_both_checkers():
    env = gym.make("neuralsim/PushT-v0")
    gymnasium_check(env.unwrapped)
    sb3_check(env.unwrapped)
    envs = gym.make_vec("neuralsim/PushT-v0", num_envs=3)
    envs.reset(seed=0)
    assert envs.step(envs.action_space.sample())[0].shape == (3, 64, 64, 3)


@pytest.mark.parametrize(
    "settings", [{"observation": "features"}, {"chunk": 3}, {"chunk": 2, "observation": "features"}]
)
def test_every_form_of_the_imagined_world_passes_both_checkers(make, settings):
    with warnings.catch_warnings():
        # Features have no natural bounds, and a chunk of actions is no vector: both are advice, not faults.
        warnings.filterwarnings("ignore", message=".*(infinity|Your action space is not a vector|not a.*normalized).*")
        gymnasium_check(make(**settings).unwrapped)
        sb3_check(make(**settings).unwrapped)


def test_true_and_imagined_worlds_have_the_same_spaces(make):
    real, imagined = make("neuralsim/PushTReal-v0"), make()
    assert real.observation_space == imagined.observation_space
    assert real.action_space == imagined.action_space


def test_importing_the_package_imports_no_model():
    code = (
        "import sys, neuralsim; "
        "print([m for m in ('torch', 'diffusers', 'pygame', 'stable_baselines3') if m in sys.modules]); "
        "import gymnasium; print('neuralsim/PushT-v0' in gymnasium.registry, 'open_world' in neuralsim.__all__)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split("\n")[:2] == ["[]", "True True"]
    assert neuralsim.open_world is not None
    with pytest.raises(AttributeError, match=r"attribute .?fun"):
        neuralsim.fun  # noqa: B018


# -- the faces agree ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 3])
def test_the_three_faces_show_one_dream(tiny_world, endless, pushes, chunk):
    n, steps = 4, 6
    shape = (n,) if chunk is None else (n, chunk)
    moves = pushes(steps, *shape)
    settings = {"chunk": chunk, "horizon": 12, "task": endless}
    vector = ImaginedVectorEnv(n, tiny_world, **settings)
    sb3 = ImaginedVecEnv(tiny_world, n, **settings)
    sb3.seed(20)
    seen = [[vector.reset(seed=20)[0]], [sb3.reset()]]
    rewards: list[list[np.ndarray]] = [[], []]
    for action in moves[:3]:
        observation, reward, *_ = vector.step(action)
        seen[0].append(observation)
        rewards[0].append(reward)
        observation, reward, _, _ = sb3.step(action)
        seen[1].append(observation)
        rewards[1].append(reward)
    assert np.array_equal(np.array(seen[0]), np.array(seen[1]))
    assert np.allclose(rewards[0], rewards[1])
    for i in range(n):
        single = ImaginedEnv(tiny_world, **settings)
        frames = [single.reset(seed=20 + i)[0]] + [single.step(action[i])[0] for action in moves[:3]]
        assert np.abs(np.array(frames).astype(int) - np.array(seen[0])[:, i]).mean() < 1
    lone = ImaginedVectorEnv(1, tiny_world, **settings)
    lone.reset(seed=20)
    single = ImaginedEnv(tiny_world, **settings)
    single.reset(seed=20)
    for action in moves[:3]:
        assert np.array_equal(lone.step(action[:1])[0][0], single.step(action[0])[0])


def test_the_faces_agree_beyond_the_first_episode(dot_world, pushes):
    # NEXT_STEP, same-step and a caller's own reset: three ways over an episode's end, one sequence of starts.
    moves = pushes(14, 1)
    vector = ImaginedVectorEnv(1, dot_world, horizon=3, observation="features")
    sb3 = ImaginedVecEnv(dot_world, 1, horizon=3, observation="features")
    single = ImaginedEnv(dot_world, horizon=3, observation="features")
    sb3.seed(1)
    trails: list[list[np.ndarray]] = [[vector.reset(seed=1)[0][0]], [sb3.reset()[0]], [single.reset(seed=1)[0]]]
    played, turn = 0, 0
    while played < 12:
        begins = bool(vector.imagination.ended[0])
        observation = vector.step(moves[turn])[0][0]
        trails[0].append(observation)
        if not begins:
            observation, _, done, infos = sb3.step(moves[turn])
            if done[0]:
                trails[1].append(infos[0]["terminal_observation"])
            trails[1].append(observation[0])
            observation, _, terminated, truncated, _ = single.step(moves[turn][0])
            trails[2].append(observation)
            if terminated or truncated:
                trails[2].append(single.reset()[0])
            played += 1
        turn = (turn + 1) % len(moves)
    length = len(trails[0])
    assert length >= 15  # three episodes' ends at least
    assert np.array_equal(trails[0], trails[1][:length])
    assert np.array_equal(trails[0], trails[2][:length])


# -- Gymnasium, one ----------------------------------------------------------------------------------------------------


def test_an_episode_from_gym_make(make, pushes):
    env = make(render_mode="rgb_array", horizon=5)
    frame, info = env.reset(seed=3)
    assert frame.dtype == np.uint8
    assert frame.shape == (64, 64, 3)
    assert info["start"] in range(6)
    assert info["state"].shape == (5,)
    for k in range(1, 6):
        frame, reward, terminated, truncated, info = env.step(pushes(seed=k))
        assert np.array_equal(env.render(), frame)
        assert isinstance(reward, float)
        assert terminated is False
        assert truncated is (k == 5)
        assert info["elapsed"] == k
        assert info["uncertainty"] >= 0
    assert info["truncated_by"] == "horizon"
    env.close()


def test_a_seeded_reset_settles_everything_to_come(make, pushes):
    runs = []
    for _ in range(2):
        env = make(horizon=4)
        frames = [env.reset(seed=11)[0]]
        for k in range(12):
            frame, _, terminated, truncated, _ = env.step(pushes(seed=k))
            frames.append(frame)
            if terminated or truncated:
                frames.append(env.reset()[0])
        runs.append(np.array(frames))
    assert np.array_equal(*runs)


def test_a_chunk_returns_the_frames_between(make, pushes):
    env = make(chunk=5, horizon=8)
    assert env.action_space.shape == (5, 2)
    env.reset(seed=0)
    observation, _, _, truncated, info = env.step(pushes(5))
    assert info["frames"].shape == (5, 64, 64, 3)
    assert np.array_equal(info["frames"][-1], observation)
    assert (info["played"], info["elapsed"], truncated) == (5, 5, False)
    observation, _, _, truncated, info = env.step(pushes(5, seed=1))
    assert info["frames"].shape == (3, 64, 64, 3)
    assert np.array_equal(info["frames"][-1], observation)
    assert (info["played"], info["elapsed"], truncated, info["truncated_by"]) == (3, 8, True, "horizon")


def test_snapshot_restore_and_fork_through_gym_make(make, pushes):
    env = make()
    env.reset(seed=0)
    env.step(pushes())
    snap = env.unwrapped.snapshot()
    first = [env.step(pushes(seed=k))[0] for k in range(5)]
    env.unwrapped.restore(snap)
    assert np.array_equal(first, [env.step(pushes(seed=k))[0] for k in range(5)])
    env.unwrapped.restore(snap)
    branches = env.unwrapped.fork(3)
    assert isinstance(branches, ImaginedVectorEnv)
    assert branches.observation_space.shape == (3, 64, 64, 3)
    frames = [branches.step(np.stack([pushes(seed=k)] * 3))[0] for k in range(5)]
    assert np.abs(np.array(frames).astype(int) - np.array(first)[:, None]).mean() < 1
    assert env.unwrapped.snapshot() is snap


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(3, np.float32), r"expected shape \(\.\.\., 2\)"),
        (np.zeros((1, 2), np.float32), r"expected shape \(2,\), got \(1, 2\)"),
        (np.array([0, np.nan], np.float32), "NaN"),
        (np.array([0, 2], np.float32), r"\[-1, 1\]"),
    ],
)
def test_a_bad_action_leaves_the_environment_as_it_was(make, action, message):
    env = make().unwrapped
    env.reset(seed=0)
    before = env.snapshot()
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert env.snapshot() is before


def test_a_bad_reset_leaves_the_environment_as_it_was(make):
    env = make().unwrapped
    env.reset(seed=0)
    before, luck = env.snapshot(), env.np_random.bit_generator.state
    for arguments in (
        {"seed": 1, "options": {"start": 99}},
        {"seed": -1},
        {"seed": 1, "options": {"frames": np.zeros((2, 9))}},
    ):
        with pytest.raises((ValueError, gym.error.Error)):
            env.reset(**arguments)
        assert env.snapshot() is before
        assert env.np_random.bit_generator.state == luck
    with pytest.raises(gym.error.ResetNeeded):
        make().unwrapped.step(np.zeros(2, np.float32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"observation": "state"}, "observation: expected 'pixels' or 'features', got 'state'"),
        ({"chunk": 0}, "chunk: expected None or a whole number of at least 1, got 0"),
        ({"render_mode": "ansi"}, "render_mode"),
    ],
)
def test_bad_settings_are_named(tiny_world, settings, message):
    with pytest.raises(ValueError, match=message):
        ImaginedEnv(tiny_world, **settings)


def test_every_setting_reaches_the_dream(tiny_world, endless):
    settings = {
        "task": endless,
        "horizon": 17,
        "denoise_steps": 2,
        "temperature": 0.5,
        "uncertainty_limit": 3.0,
        "device": "cpu",
        "precision": "float32",
    }
    for env in (
        gym.make("neuralsim/PushT-v0", world=str(tiny_world), **settings).unwrapped,
        gym.make_vec("neuralsim/PushT-v0", num_envs=2, world=str(tiny_world), **settings).unwrapped,
        ImaginedVecEnv(tiny_world, 2, **settings),
    ):
        dream = env.imagination
        assert dream.task == endless
        assert (dream.horizon, dream.denoise_steps, dream.temperature, dream.uncertainty_limit) == (17, 2, 0.5, 3.0)
        assert (dream.device.type, dream.dtype) == ("cpu", torch.float32)


def test_another_wish_through_gym_make(make, pushes):
    env = make(observation="features")
    env.reset(seed=0)
    goal = env.unwrapped.imagination.frames()[0]
    env = make(task=GoalImage(goal, tolerance=0.0))
    env.reset(seed=0)
    reward = env.step(pushes())[1]
    assert -10 < reward < 0


# -- Gymnasium, many ---------------------------------------------------------------------------------------------------


def test_make_vec_gives_one_batched_model(tiny_world, pushes):
    envs = gym.make_vec("neuralsim/PushT-v0", num_envs=64, world=str(tiny_world))
    assert isinstance(envs.unwrapped, ImaginedVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observations, infos = envs.reset(seed=0)
    assert observations.shape == (64, 64, 64, 3)
    assert envs.observation_space.contains(observations)
    assert infos["start"].shape == infos["_start"].shape == (64,)
    assert infos["state"].shape == (64, 5)
    observations, rewards, terminated, truncated, _ = envs.step(envs.action_space.sample())
    assert observations.shape == (64, 64, 64, 3)
    assert rewards.shape == terminated.shape == truncated.shape == (64,)
    assert rewards.dtype == np.float64
    envs.close()


def test_next_step_autoreset(dot_world, pushes):
    envs = ImaginedVectorEnv(3, dot_world, horizon=3, observation="features")
    envs.reset(seed=0)
    envs.step(pushes(3))
    envs.reset(options={"reset_mask": np.array([False, True, False])})
    flags = []
    for k in range(4):
        before = envs.imagination.features()
        pending = envs.imagination.ended
        observation, reward, terminated, truncated, infos = envs.step(pushes(3, seed=k))
        flags.append((terminated | truncated).tolist())
        assert infos["elapsed"][pending].tolist() == [0] * pending.sum()
        assert (reward[pending] == 0).all()
        assert not (terminated | truncated)[pending].any()
        moved = np.linalg.norm(observation - before, axis=1)
        assert (moved[~pending] < 0.3).all()  # a step, not a jump to a new start
        assert infos["_start"].all()
        if pending.any():
            starts = dot_world.starts.states[infos["start"][pending], -1]
            assert np.allclose(observation[pending], starts, atol=0.02)
        ended = truncated & ~terminated
        assert [bool(reason) for reason in infos["truncated_by"]] == truncated.tolist()
        assert all(infos["truncated_by"][i] == "horizon" for i in np.flatnonzero(ended))
    assert flags == [[False] * 3, [True, False, True], [False, True, False], [False] * 3]


def test_an_ended_row_changes_no_other(dot_world, pushes):
    troubled = ImaginedVectorEnv(3, dot_world, horizon=None, uncertainty_limit=0.3)
    peaceful = ImaginedVectorEnv(3, dot_world, horizon=None, uncertainty_limit=0.3)
    moves = 0.05 * pushes(12, 3)
    hurried = moves.copy()
    hurried[:, 0] = [0, 1]  # row 0 wears its trust out every few steps
    for envs in (troubled, peaceful):
        envs.reset(seed=0)
    ends = 0
    for calm, hurry in zip(moves, hurried, strict=True):
        one, two = peaceful.step(calm), troubled.step(hurry)
        ends += int(two[3][0])
        for a, b in zip(one[:4], two[:4], strict=True):
            assert np.array_equal(a[1:], b[1:])
    assert ends >= 2


def test_vector_seeds_and_histories(tiny_world, pushes):
    envs = ImaginedVectorEnv(3, tiny_world)
    by_number, _ = envs.reset(seed=4)
    by_list, _ = envs.reset(seed=[4, 5, 6])
    assert np.array_equal(by_number, by_list)
    starts = neuralsim.open_world(tiny_world).starts
    frames, infos = envs.reset(options={"frames": starts.frames[:3], "actions": starts.actions[:3]})
    assert infos["start"].tolist() == [-1] * 3
    assert infos["_state"].tolist() == [False] * 3
    shipped, infos = envs.reset(options={"start": [0, 1, 2]})
    assert np.array_equal(frames, shipped)
    assert np.array_equal(infos["state"], starts.states[:3, -1])
    with pytest.raises(ValueError, match="seeds: expected one for each of the 3"):
        envs.reset(seed=[1, 2])


def test_a_restore_brings_pending_autoresets_back(dot_world, pushes):
    envs = ImaginedVectorEnv(2, dot_world, horizon=2)
    envs.reset(seed=0)
    envs.step(pushes(2))
    envs.step(pushes(2))
    snap = envs.snapshot()
    first = envs.step(pushes(2))
    envs.step(pushes(2))
    envs.restore(snap)
    again = envs.step(pushes(2))
    assert again[4]["elapsed"].tolist() == [0, 0]
    for a, b in zip(first[:4], again[:4], strict=True):
        assert np.array_equal(a, b)


def test_a_bad_vector_step_changes_nothing(dot_world, pushes):
    envs = ImaginedVectorEnv(2, dot_world, horizon=2, chunk=2)
    envs.reset(seed=0)
    envs.step(pushes(2, 2))
    before = envs.snapshot()
    for bad in (pushes(2), pushes(2, 3), np.full((2, 2, 2), np.nan)):
        with pytest.raises(ValueError, match="action: expected"):
            envs.step(bad)
        assert envs.snapshot() is before
    with pytest.raises(ValueError, match="mask"):
        envs.reset(options={"reset_mask": np.ones(3, bool)})
    assert envs.snapshot() is before


def test_vector_render(tiny_world):
    envs = gym.make_vec("neuralsim/PushT-v0", num_envs=2, world=str(tiny_world), render_mode="rgb_array")
    observations, _ = envs.reset(seed=0)
    assert np.array_equal(envs.render(), observations)


# -- features ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 2])
def test_an_agent_on_features_never_pays_for_pixels(tiny_world, endless, monkeypatch, pushes, chunk):
    from neuralsim.models.video_wam import VideoWAM

    def decode(self, state):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(VideoWAM, "decode", decode)
    shape = () if chunk is None else (chunk,)
    settings = {"observation": "features", "chunk": chunk, "horizon": 3, "task": endless}
    env = ImaginedEnv(tiny_world, **settings)
    observation, _ = env.reset(seed=0)
    assert observation.dtype == np.float32
    assert observation.shape == env.observation_space.shape
    info = env.step(pushes(*shape))[4]
    if chunk:
        assert info["features"].shape == (2, *observation.shape)
        assert "frames" not in info
    envs = ImaginedVectorEnv(3, tiny_world, **settings)
    envs.reset(seed=0)
    sb3 = ImaginedVecEnv(tiny_world, 3, **settings)
    sb3.reset()
    for _ in range(5):
        envs.step(pushes(3, *shape))
        sb3.step(pushes(3, *shape))


# -- Stable-Baselines3 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_same_step_autoreset_and_its_infos(dot_world, pushes, observation):
    envs = ImaginedVecEnv(dot_world, 3, horizon=4, observation=observation, temperature=0.0)
    envs.seed(0)
    envs.set_options({"start": 0})  # at (0.6, 0)
    first = envs.reset()
    towards = np.zeros((3, 2), np.float32)
    towards[0] = (-1, 0)  # at the middle's rim after 5 steps: never, for the horizon is 4
    watch = ImaginedVecEnv(dot_world, 3, horizon=None, observation=observation, temperature=0.0)
    watch.set_options({"start": 0})
    watch.reset()
    for k in range(1, 5):
        observations, rewards, dones, infos = envs.step(towards)
        ended = watch.step(towards)[0]
        assert rewards.dtype == np.float32
        assert dones.tolist() == [k == 4] * 3
        for info in infos:
            assert ("terminal_observation" in info) == ("TimeLimit.truncated" in info) == (k == 4)
    for i, info in enumerate(infos):
        assert info["TimeLimit.truncated"] is True
        assert info["truncated_by"] == "horizon"
        assert np.array_equal(info["terminal_observation"], ended[i])
        assert envs.reset_infos[i]["start"] == envs.imagination.start[i]
    assert not np.array_equal(observations[0], ended[0])
    assert envs.imagination.elapsed.tolist() == [0, 0, 0]
    assert first.shape == observations.shape


def test_only_finished_rows_have_a_terminal_observation(dot_world):
    envs = ImaginedVecEnv(dot_world, 3, horizon=5, observation="features", temperature=0.0)
    envs.set_options({"start": 0})  # at (0.6, 0), five steps from the end in the middle
    envs.reset()
    moves = np.array([[-1, 0], [0, 0], [0, 0]], np.float32)
    envs.step(moves)
    envs.imagination.reset(np.array([False, False, True]), options={"start": 0})
    for _ in range(4):
        observations, _, dones, infos = envs.step(moves)
    assert dones.tolist() == [True, True, False]
    assert infos[0]["terminal_observation"] == pytest.approx([0.1, 0], abs=0.02)
    assert infos[0]["TimeLimit.truncated"] is False  # it arrived with the bell: an end, not a cut
    assert infos[1]["terminal_observation"] == pytest.approx([0.6, 0], abs=0.02)
    assert infos[1]["TimeLimit.truncated"] is True
    assert set(infos[2]) == {"uncertainty", "truncated_by", "elapsed", "start", "state"}
    assert np.linalg.norm(observations[0]) == pytest.approx(0.6, abs=0.02)  # already on the ring again
    assert observations[2] == pytest.approx([0.6, 0], abs=0.02)


def test_options_per_slot(dot_world):
    envs = ImaginedVecEnv(dot_world, 3, observation="features")
    envs.seed(0)
    envs.set_options([{"start": 1}, {}, {"start": 2}])
    envs.reset()
    assert envs.imagination.start[[0, 2]].tolist() == [1, 2]
    assert [info["start"] for info in envs.reset_infos] == envs.imagination.start.tolist()
    envs.set_options([{"start": 1}, {}, {"start": 99}])
    before = envs.imagination.snapshot()
    with pytest.raises(ValueError, match=r"starts 0\.\.7"):
        envs.reset()
    assert envs.imagination.snapshot() is before


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_ppo_learns_inside(tiny_world, observation):
    envs = VecMonitor(ImaginedVecEnv(tiny_world, num_envs=4, observation=observation, horizon=6))
    policy = "MlpPolicy" if observation == "features" else "CnnPolicy"
    agent = PPO(policy, envs, n_steps=8, batch_size=16, n_epochs=1, seed=0, device="cpu")
    before = [p.clone() for p in agent.policy.parameters()]
    agent.learn(64)
    assert any(not torch.equal(a, b) for a, b in zip(before, agent.policy.parameters(), strict=True))
    lengths = [e["l"] for e in agent.ep_info_buffer]
    assert lengths
    assert max(lengths) <= 6


def test_attributes_are_answered_honestly(dot_world):
    envs = ImaginedVecEnv(dot_world, 3, render_mode="rgb_array")
    envs.reset()
    assert envs.get_attr("render_mode") == ["rgb_array"] * 3
    assert envs.get_attr("num_envs", [0]) == [3]
    assert not envs.has_attr("envs")
    with pytest.raises(ValueError, match="rows share one Imagination"):
        envs.set_attr("label", 1, indices=[0])
    envs.set_attr("label", 1)
    assert envs.get_attr("label", 2) == [1]
    assert np.array_equal(envs.env_method("render", indices=[1])[0], envs.imagination.frames()[1])
    with pytest.raises(AttributeError, match="only 'render'"):
        envs.env_method("set_state", 3)
    assert envs.env_is_wrapped(gym.Wrapper) == [False] * 3
    assert envs.render().shape == (64, 64, 3)  # four tiles of 32, one of them blank
    assert len(set(envs.seed(4))) == 3
    with pytest.raises(RuntimeError, match="step_wait without step_async"):
        envs.step_wait()
    envs.close()
