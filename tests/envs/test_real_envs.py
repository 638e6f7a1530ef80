"""Every registered real environment: copies go on to the bit, infos keep their keys and types, frames are drawn in every mode."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from arm import skip_without_arm

from neuralsim.envs.registry import RealWorld, get_real_world, real_worlds
from neuralsim.envs.tasks.rl_task import tasks_of

NAMES = list(real_worlds())


@pytest.fixture(params=NAMES)
def world(request: pytest.FixtureRequest) -> RealWorld:
    if request.param == "metaworld":
        skip_without_arm()
    return get_real_world(request.param)


def played(env: gym.Env[Any, Any], steps: int, seed: int) -> list[tuple[np.ndarray, float]]:
    rng = np.random.default_rng(seed)
    size = env.action_space.shape[0]
    return [env.step(rng.uniform(-1, 1, size).astype(np.float32))[:2] for _ in range(steps)]


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_in_mid_episode_goes_on_to_the_bit(world: RealWorld, how: str) -> None:
    assert world.env_id is not None
    env = gym.make(world.env_id, size=16)
    env.reset(seed=3)
    played(env, 12, 0)
    other = copy.deepcopy(env) if how == "deepcopy" else pickle.loads(pickle.dumps(env))  # noqa: S301
    assert np.array_equal(env.unwrapped.state(), other.unwrapped.state())
    for (seen, reward), (copied, copied_reward) in zip(played(env, 12, 1), played(other, 12, 1), strict=True):
        assert np.array_equal(seen, copied)
        assert reward == copied_reward
    assert np.array_equal(env.unwrapped.state(), other.unwrapped.state())
    assert np.array_equal(env.reset()[0], other.reset()[0]), "its generator is copied too"


def test_a_copy_before_the_first_reset_wants_a_reset_too(world: RealWorld) -> None:
    env = copy.deepcopy(world.make_env(16))
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(env.action_space.shape, np.float32))
    env.reset(seed=0)


def test_stepping_a_copy_leaves_the_original_as_it_was(world: RealWorld) -> None:
    env = world.make_env(16)
    env.reset(seed=1)
    before = env.get_wrapper_attr("state")()
    other = copy.deepcopy(env)
    played(other, 5, 2)
    assert np.array_equal(env.get_wrapper_attr("state")(), before)
    assert not np.array_equal(other.get_wrapper_attr("state")(), before)


def kinds(info: dict[str, Any]) -> dict[str, Any]:
    return {k: (type(v), v.dtype, v.shape) if isinstance(v, np.ndarray) else type(v) for k, v in info.items()}


def test_infos_have_the_same_keys_and_types_at_reset_and_step(world: RealWorld) -> None:
    for make in (lambda: world.make_env(16), *(task.env for task in tasks_of(world).values())):
        env = make()
        _, first = env.reset(seed=0)
        for _ in range(3):
            *_, info = env.step(np.zeros(env.action_space.shape, np.float32))
            assert kinds(info) == kinds(first)
        env.close()


def test_the_names_of_states_are_as_many_as_their_numbers(world: RealWorld) -> None:
    env = world.make_env(16)
    assert env.reset(seed=0)[0].shape == (len(world.state_names),)
    assert env.render().shape == (16, 16, 3)
    assert env.get_wrapper_attr("spec_world") == world.make_spec(16)
    assert world.make_spec((16, 16)) == world.make_spec(16)
    with pytest.raises(ValueError, match="this world is square"):
        world.make_env((16, 24))
