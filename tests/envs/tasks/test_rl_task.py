"""Tasks in imagination and in the real world alike: same observations, rewards, ends and limits, step for step."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import DummyVecEnv

from neuralsim.agents.evaluation.eval_envs import ImaginedEvalEnv, RealEvalEnv
from neuralsim.agents.evaluation.rollout import evaluate
from neuralsim.agents.policies.pusht_expert import PushTExpert
from neuralsim.agents.policies.random_policies import RandomPolicy
from neuralsim.envs.imagined.sb3_vec_env import ImaginedVecEnv
from neuralsim.envs.oracle import Oracle, OracleState
from neuralsim.envs.pusht.env import GOAL_POSE, distance_to_block
from neuralsim.envs.pusht.tasks import block_gap, pusher_gap
from neuralsim.envs.registry import get_real_world
from neuralsim.envs.tasks.rl_task import find_task, tasks_of
from neuralsim.envs.tworoom.tasks import goal_path
from neuralsim.envs.wrappers.discrete_actions import (
    DiscreteActionEnv,
    DiscreteActionVecEnv,
    discrete_actions,
    to_actions,
)
from neuralsim.envs.wrappers.features import FeatureEnv, FeatureVecEnv
from neuralsim.pretrained.starts import Starts
from neuralsim.pretrained.world import World, open_world
from neuralsim.task import StateTask, UncertaintyPenaltyTask

EVERY = [(world, name) for world in ("pusht", "tworoom") for name in tasks_of(get_real_world(world))]


class ExactStart(Oracle):
    """The Oracle, beginning exactly at given states: reading frames is the one thing it does not do to the bit."""

    known: np.ndarray

    def encode(self, frames: torch.Tensor, actions: torch.Tensor) -> OracleState:
        """The known state whose frame this is."""
        pictures = np.stack([self.simulator.draw(state) for state in self.known])
        seen = frames[:, -1].cpu().numpy()
        which = [int(np.flatnonzero((pictures == frame).all((1, 2, 3)))[0]) for frame in seen]
        return self.at(self.known[which])


@pytest.mark.parametrize(("world", "name"), EVERY)
def test_an_exact_dream_returns_what_the_truth_returns_step_for_step_through_every_end(world: str, name: str) -> None:
    rl_task = replace(find_task(world, name), horizon=12)
    starts = rl_task.starts(6, seed=3)
    if world == "pusht":  # some that soon end: at the block, and nearly home
        states = np.array(starts.states[:, -1])
        states[0] = (150.0, 150.0, 256.0, 256.0, GOAL_POSE[2] + 0.36)
        states[1] = (190.0, 300.0, 280.0, 256.0, GOAL_POSE[2])
        env = rl_task.env()
        frames = [env.reset(options={"state": state})[0] for state in states]
        starts = Starts(np.stack(frames)[:, None], starts.actions, states[:, None])
    model = ExactStart(world, 64, 1)
    model.known = np.asarray(starts.states[:, -1], np.float64)
    slots = 3
    dream = ImaginedVecEnv(World(model, starts), num_envs=slots, observation="features", task=rl_task.task, horizon=12)
    dream.seed(5)
    dream.reset()
    truths = [rl_task.env() for _ in range(slots)]
    for slot, truth in enumerate(truths):
        truth.reset(options={"state": dream.reset_infos[slot]["state"]})
    expert = PushTExpert(0) if world == "pusht" else None
    rng, returned, ends = np.random.default_rng(0), np.zeros((2, slots)), 0
    for _ in range(26):
        actions = rng.uniform(-1, 1, (slots, 2)).astype(np.float32)
        if expert is not None:
            actions[0] = expert.predict(truths[0].env.state(), None)[0]
        elif world == "tworoom":
            actions[0] = np.clip((np.array([384.0, 256.0]) - truths[0].env.state()) / 16, -1, 1)
        _, rewards, dones, infos = dream.step(actions)
        for slot, truth in enumerate(truths):
            _, reward, terminated, truncated, _ = truth.step(actions[slot])
            assert rewards[slot] == pytest.approx(reward, abs=1e-5)
            returned[:, slot] += rewards[slot], reward
            assert dones[slot] == (terminated or truncated)
            if dones[slot]:
                assert infos[slot]["TimeLimit.truncated"] == (truncated and not terminated)
                ends += 1
                truth.reset(options={"state": dream.reset_infos[slot]["state"]})
    assert ends >= 5
    np.testing.assert_allclose(returned[0], returned[1], atol=1e-4)


def test_features_of_the_truth_are_those_that_a_dream_begins_with() -> None:
    for name in ("tworoom-latent", "pusht-video"):
        world = open_world(name, "cpu")
        rl_task = find_task(world.spec.name)
        env = FeatureEnv(rl_task.env(), world.model, "float32")
        frame_env = rl_task.env()
        seen, _ = env.reset(seed=1)
        frame, _ = frame_env.reset(seed=1)
        frames, actions = [frame], []
        for i in range(6):
            context = world.spec.context
            past = torch.as_tensor(np.stack(frames[-context:]))[None]
            done = torch.as_tensor(
                np.array(actions[len(actions) - (past.shape[1] - 1) :], np.float32).reshape(1, -1, 2)
            )
            with torch.inference_mode():
                expected = world.model.features(world.model.encode(past, done))[0].numpy()
            np.testing.assert_allclose(seen, expected, atol=1e-5)
            action = np.full(2, 0.1 * i, np.float32)
            seen, *_ = env.step(action)
            frame, *_ = frame_env.step(action)
            frames.append(frame)
            actions.append(action)


def test_the_vector_face_of_features_agrees_with_the_single_one_through_ends() -> None:
    world = open_world("pusht-video", "cpu")
    rl_task = replace(find_task("pusht", "touch"), horizon=5)
    many = FeatureVecEnv(DummyVecEnv([rl_task.env, rl_task.env]), world.model, "float32")
    many.seed(3)
    alone = [FeatureEnv(rl_task.env(), world.model, "float32") for _ in range(2)]
    observed = many.reset()
    for i, env in enumerate(alone):
        np.testing.assert_allclose(env.reset(seed=3 + i)[0], observed[i], atol=1e-4)
    ended = 0
    for step in range(12):
        actions = np.full((2, 2), 0.2 if step % 2 else -0.3, np.float32)
        observed, rewards, dones, infos = many.step(actions)
        for i, env in enumerate(alone):
            seen, reward, terminated, truncated, _ = env.step(actions[i])
            assert reward == pytest.approx(rewards[i], abs=1e-6)
            assert (terminated or truncated) == dones[i]
            if dones[i]:
                np.testing.assert_allclose(infos[i]["terminal_observation"], seen, atol=1e-4)
                seen, _ = env.reset()
                ended += 1
            np.testing.assert_allclose(observed[i], seen, atol=1e-4)
    assert ended >= 4


def test_a_feature_env_of_another_frame_size_is_refused_by_name() -> None:
    world = open_world("tworoom-latent", "cpu")
    with pytest.raises(ValueError, match=r"uint8 \(64, 64, 3\).*size=64"):
        FeatureEnv(find_task("tworoom").env(32), world.model)


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
@pytest.mark.parametrize(("world", "name"), EVERY)
def test_the_true_tasks_pass_the_checkers(world: str, name: str) -> None:
    env = find_task(world, name).env()
    check_env(env, skip_render_check=True)
    sb3_check_env(env, warn=False)


def test_what_counts_as_there_is_less_than_what_the_learner_is_asked_for() -> None:
    world, rl_task = open_world("tworoom-latent", "cpu"), find_task("tworoom", "reach")
    env = rl_task.env()
    goal, still = np.array([384.0, 256.0]), np.zeros(2, np.float32)
    for away, terminated, success in ((8.0, True, True), (14.0, False, True), (20.0, False, False)):
        env.reset(options={"state": goal + np.array([away, 0.0])})
        _, _, ended, _, info = env.step(still)
        assert (ended, info["success"]) == (terminated, success)
    places = goal + np.array([[0.0, 0.0], [14.0, 0.0], [40.0, 0.0]])
    frames = [env.reset(options={"state": place})[0] for place in places]
    starts = Starts(np.stack(frames)[:, None], np.zeros((3, 0, 2), np.float32), places[:, None])
    for eval_env in (RealEvalEnv(world, rl_task, starts, 3), ImaginedEvalEnv(world, rl_task, starts, 3)):
        eval_env.begin(np.arange(3))
        heard = eval_env.step(np.zeros((3, 2), np.float32), np.ones(3, bool))
        assert heard.terminated.tolist() == [True, False, False]
        assert heard.success.tolist() == [True, True, False]


def test_unknown_worlds_and_tasks_are_named_with_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"no real world 'moon' to learn in; there are pusht, tworoom"):
        find_task("moon")
    with pytest.raises(ValueError, match=r"no task 'puhs' in world 'pusht'.*did you mean 'push'"):
        find_task("pusht", "puhs")


coordinate = st.floats(20, 490)
states = st.tuples(coordinate, coordinate, coordinate, coordinate, st.floats(-3.1, 3.1)).map(np.array)


@given(states)
@settings(max_examples=50, deadline=None)
def test_the_pushers_way_to_the_block_is_the_simulators(state: np.ndarray) -> None:
    expected = max(0.0, distance_to_block(state[:2], state[2:]) - 15.0)
    assert pusher_gap(state[None])[0] == pytest.approx(expected, abs=1e-6)


@given(states)
@settings(max_examples=50, deadline=None)
def test_the_blocks_gap_is_a_distance(state: np.ndarray) -> None:
    home = np.concatenate([state[:2], GOAL_POSE])
    assert block_gap(home[None])[0] == pytest.approx(0, abs=1e-9)
    moved = home.copy()
    moved[2:4] += (30.0, 40.0)
    assert block_gap(moved[None])[0] == pytest.approx(50.0)
    assert block_gap(state[None])[0] > 0


def test_the_way_home_leads_through_the_door_without_a_jump() -> None:
    xs = np.linspace(60, 480, 400)
    way = goal_path(np.stack([xs, np.full_like(xs, 190.0)], 1))
    assert np.abs(np.diff(way)).max() < 3.0
    blocked = goal_path(np.array([[220.0, 400.0]]))[0]
    assert blocked > np.hypot(220 - 384, 400 - 256) + 50


def test_doubt_is_taken_off_the_reward_and_ends_nothing() -> None:
    world = open_world("tworoom-latent", "cpu")
    rl_task = find_task("tworoom")
    starts = rl_task.starts(8, 0)
    plain, doubtful = (
        ImaginedVecEnv(replace(world, starts=starts), num_envs=4, observation="features", task=task)
        for task in (rl_task.task, UncertaintyPenaltyTask(rl_task.task, 2.0))
    )
    for env in (plain, doubtful):
        env.seed(0)
        env.reset()
    actions = np.ones((4, 2), np.float32)
    _, reward, done, infos = plain.step(actions)
    _, less, also, _ = doubtful.step(actions)
    doubt = np.array([info["uncertainty"] for info in infos])
    assert (doubt > 0).all()
    np.testing.assert_allclose(reward - less, 2 * doubt, atol=1e-5)
    assert (done == also).all()


def test_a_wish_told_in_states_needs_a_model_that_tells_states() -> None:
    video = ImaginedVecEnv("pusht", num_envs=1, task=StateTask(lambda b, a, c: (a[:, 0], a[:, 0] > 2)))
    video.seed(0)
    video.reset()
    with pytest.raises(TypeError, match="VideoWAM does not predict simulator states; use a compact world"):
        video.step(np.zeros((1, 2), np.float32))


def test_starts_join_as_far_as_both_know() -> None:
    rl_task = find_task("tworoom")
    ours, theirs = rl_task.starts(3, 0), rl_task.starts(2, 1)
    longer = Starts(
        np.repeat(theirs.frames, 2, axis=1), np.zeros((2, 1, 2), np.float32), np.repeat(theirs.states, 2, axis=1)
    )
    for joined in (ours.join(theirs), ours.join(longer), ours.join(replace(theirs, states=None))):
        assert joined.frames.shape == (5, 1, 64, 64, 3)
        assert joined.actions.shape == (5, 0, 2)
        np.testing.assert_array_equal(joined.frames[:3], ours.frames)
        np.testing.assert_array_equal(joined.frames[3:], theirs.frames)
    np.testing.assert_array_equal(ours.join(longer).states[3:], theirs.states)
    assert ours.join(replace(theirs, states=None)).states is None


def test_moves_are_whole_moves_in_every_face() -> None:
    table = discrete_actions(2)
    assert table.shape == (9, 2)
    assert (table[0] == 0).all()
    assert len(np.unique(table, axis=0)) == 9
    assert discrete_actions(5).shape == (11, 5)
    np.testing.assert_array_equal(to_actions(np.array([0, 3]), 2), table[[0, 3]])
    np.testing.assert_array_equal(to_actions(np.array([[3.0, -0.5]]), 2), [[1.0, -0.5]])
    rl_task = find_task("tworoom")
    one, plain = DiscreteActionEnv(rl_task.env()), rl_task.env()
    many = DiscreteActionVecEnv(DummyVecEnv([rl_task.env]))
    assert isinstance(one.action_space, gym.spaces.Discrete)
    assert many.action_space == one.action_space
    for env in (one, plain):
        env.reset(seed=4)
    many.seed(4)
    many.reset()
    for move in range(9):
        seen, *_ = one.step(np.int64(move))
        expected, *_ = plain.step(table[move])
        np.testing.assert_array_equal(seen, expected)
        np.testing.assert_array_equal(many.step(np.array([move]))[0][0], expected)


def test_evaluation_tries_every_start_once_whatever_the_number_of_slots() -> None:
    world, rl_task = open_world("tworoom-latent", "cpu"), find_task("tworoom")
    starts = rl_task.starts(10, 5)

    class Right:
        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            return np.tile(np.array([1.0, 0.1], np.float32), (len(observation), 1)), None

    few = evaluate(Right(), RealEvalEnv(world, rl_task, starts, 3), 10)
    many = evaluate(Right(), RealEvalEnv(world, rl_task, starts, 10), 10)
    np.testing.assert_array_equal(few.returns, many.returns)
    np.testing.assert_array_equal(few.lengths, many.lengths)
    alone = []
    env = rl_task.env()
    for i in range(10):
        env.reset(options={"state": starts.states[i, -1]})
        total, done = 0.0, False
        while not done:
            _, reward, terminated, truncated, _ = env.step(np.array([1.0, 0.1], np.float32))
            total, done = total + reward, terminated or truncated
        alone.append(total)
    np.testing.assert_allclose(few.returns, alone)
    dreamt = evaluate(Right(), ImaginedEvalEnv(world, rl_task, starts, 4), 10)
    assert len(dreamt) == 10
    assert np.abs(dreamt.returns - few.returns).mean() < 1.5
    chance = evaluate(RandomPolicy(world.spec), RealEvalEnv(world, rl_task, starts, 5), 10)
    assert chance.mean_return().value < few.returns.max()
