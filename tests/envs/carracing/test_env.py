"""The real CarRacing: NeuralSim's spaces, one drive for one seed, a dashboard that shows the state, and an explorer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from neuralsim.agents.collection.collect import CollectConfig, collect, collect_episode
from neuralsim.agents.collection.held_out import held_out_store
from neuralsim.agents.policies.carracing_explorer import CarRacingExplorer
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.carracing.env import FPS, STATE_NAMES, TICKS, CarRacingRealEnv

NONE, GAS = np.array([0, -1, -1], np.float32), np.array([0, 1, -1], np.float32)


@pytest.fixture(scope="module")
def env() -> CarRacingRealEnv:
    return CarRacingRealEnv(observation="state")


def drive(env: CarRacingRealEnv, seed: int, *actions: tuple[np.ndarray, int]) -> np.ndarray:
    """States ``(t, 5)`` after each of so many steps under each action."""
    env.reset(seed=seed)
    return np.stack([env.step(action)[0] for action, steps in actions for _ in range(steps)])


def test_gymnasium_makes_and_checks_it() -> None:
    made = gym.make("neuralsim/CarRacingReal-v0", size=32)
    assert made.spec is not None
    assert made.spec.max_episode_steps == 334
    check_env(made.unwrapped, skip_render_check=True)
    frame, _ = made.reset(seed=1)
    assert frame.shape == (32, 32, 3)


def test_the_same_seed_and_actions_give_the_same_drive_whatever_was_driven_before(env: CarRacingRealEnv) -> None:
    rng = np.random.default_rng(0)
    actions = [(rng.uniform(-1, 1, 3).astype(np.float32), 1) for _ in range(20)]
    one = drive(env, 5, *actions)
    picture = env.render()
    drive(env, 6, (GAS, 30))
    np.testing.assert_array_equal(one, drive(env, 5, *actions))
    np.testing.assert_array_equal(picture, env.render())
    fresh = CarRacingRealEnv(observation="state")
    np.testing.assert_array_equal(one, drive(fresh, 5, *actions))
    assert not np.array_equal(one, drive(env, 6, *actions))


def test_the_dashboard_reads_what_the_car_does(env: CarRacingRealEnv) -> None:
    name = {n: i for i, n in enumerate(STATE_NAMES)}
    states = drive(env, 3, (GAS, 12))
    assert (np.diff(states[:, name["speed"]]) > 0).all()
    for steer in (-1.0, 1.0):
        turn = drive(env, 3, (GAS, 6), (np.array([steer, -1, -1], np.float32), 4))[-1]
        assert np.sign(turn[name["turn_rate"]]) == np.sign(turn[name["steering"]]) == steer
    rolling, braking = (drive(env, 3, (GAS, 12), (a, 6))[-1] for a in (NONE, np.array([0, -1, 1], np.float32)))
    assert braking[name["speed"]] < 0.7 * rolling[name["speed"]]
    off = drive(env, 3, (np.array([0.4, 0, -1], np.float32), 60))
    assert off[0, name["off_road"]] == 0
    assert off[-1, name["off_road"]] == 1


def test_a_step_is_three_ticks_and_standing_still_costs_their_share(env: CarRacingRealEnv) -> None:
    assert env.metadata["render_fps"] == FPS / TICKS
    env.reset(seed=1)
    rewards = [env.step(NONE)[1] for _ in range(3)]
    assert rewards == pytest.approx([-0.03] * 3)


def test_leaving_the_map_terminates_with_a_fine(env: CarRacingRealEnv) -> None:
    env.reset(seed=3)
    straight, ended, steps = np.array([0.0, 0.6, -1], np.float32), False, 0
    while not ended and steps < 600:
        _, reward, ended, cut, _ = env.step(straight)
        assert not cut
        steps += 1
    assert ended
    assert reward < -9


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda e: e.step(np.zeros(2)), r"\(steer, gas, brake\)"),
        (lambda e: e.step(np.array([0, 2, 0])), r"in \[-1, 1\]"),
        (lambda e: e.reset(options={"state": 1}), "takes none"),
        (lambda e: CarRacingRealEnv(observation="sound"), "'sound'"),
        (lambda e: CarRacingRealEnv(size=60), "multiple of 8"),
    ],
)
def test_wrong_use_is_named(env: CarRacingRealEnv, act: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act(env)  # type: ignore[operator]


def test_step_before_reset_is_told() -> None:
    with pytest.raises(gym.error.ResetNeeded):
        CarRacingRealEnv().step(NONE)


def test_the_driver_shows_the_road_the_grass_the_bends_and_every_pedal(env: CarRacingRealEnv) -> None:
    states, actions = [], []
    for seed in range(6):
        driver, memory = CarRacingExplorer(env, seed), None
        state, _ = env.reset(seed=seed)
        for _ in range(150):
            action, memory = driver.predict(state, memory)
            state, *_ = env.step(action)
            states.append(state)
            actions.append(action)
    seen, done = np.array(states), np.array(actions)
    speed, off = seen[:, 0], seen[:, 4]
    assert 0.5 < np.mean(off == 0) < 0.99
    assert np.mean(off == 1) > 0.01
    assert speed.max() > 45
    assert np.mean((speed > 10) & (speed < 40)) > 0.3
    assert (np.abs(done) <= 1).all()
    for pedal in (1, 2):
        assert done[:, pedal].min() == -1
        assert done[:, pedal].max() > 0.3
    assert np.mean(done[:, 0] < -0.1) > 0.1
    assert np.mean(done[:, 0] > 0.1) > 0.1


# -- collecting --------------------------------------------------------------------------------------------------------


def test_an_episode_is_what_the_world_does_when_its_actions_are_taken_again(env: CarRacingRealEnv) -> None:
    config = CollectConfig("carracing", seed=2, steps=15)
    episode = collect_episode(config, 4)
    assert episode.states is not None
    rng = np.random.default_rng([2, 4])
    rng.integers(2**31)  # the driver's
    state, _ = env.reset(seed=int(rng.integers(2**31)))
    for i, action in enumerate(episode.actions):
        np.testing.assert_array_equal(state, episode.states[i])
        np.testing.assert_array_equal(env.render(), episode.frames[i])
        state, reward, *_ = env.step(action)
        assert np.float32(reward) == episode.rewards[i]
    assert episode.truncated.tolist() == [False] * 14 + [True]
    assert not episode.terminated.any()


class Leadfoot:
    """Straight on at full gas."""

    def predict(self, observation: np.ndarray, state: object = None, *_: object) -> tuple[np.ndarray, object]:
        return np.array([0.0, 0.6, -1], np.float32), state


def straight_on(env: gym.Env[np.ndarray, np.ndarray], seed: int) -> Leadfoot:
    """What ``--policy module:function`` names."""
    return Leadfoot()


def test_a_termination_ends_an_episode_and_is_no_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "drivers", sys.modules[__name__])
    config = CollectConfig("carracing", tmp_path, 1, steps=500, size=8, workers=1, policy="drivers:straight_on")
    for _ in range(2):  # the second time it recognises the short episode as its own
        assert [done for done, *_ in collect(config)][-1] == 1
    (episode,) = EpisodeStore(tmp_path)
    assert 50 < len(episode) < 500
    assert episode.terminated.nonzero()[0].tolist() == [len(episode) - 1]
    assert not episode.truncated.any()


def test_held_out_episodes_are_made_on_the_spot(tmp_path: Path) -> None:
    store = held_out_store(tmp_path, episodes=2, steps=3, size=16, workers=1, world="carracing")
    assert (len(store), store.spec.name, store.info.state_names) == (2, "carracing", STATE_NAMES)
    assert {store.provenance(i)["collection_seed"] for i in range(2)} == {1_000_000}
    assert CollectConfig("carracing").most_steps == 300
    assert CollectConfig("carracing").per_shard == 25


def test_without_box2d_the_command_says_what_to_install_and_nothing_else_minds() -> None:
    program = (
        "import sys; sys.modules['Box2D'] = None\n"
        "import neuralsim\nfrom neuralsim import cli\n"
        "assert cli.main(['--help']) == 0\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    for words in (["carracing"], ["--env", "CarRacing-v3"]):
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program, "collect", *words], capture_output=True, text=True
        )
        told = " ".join(ran.stderr.replace("│", " ").split())
        assert ran.returncode == 2, told
        assert "pip install 'neuralsim[car]'" in told
        assert "Traceback" not in told
