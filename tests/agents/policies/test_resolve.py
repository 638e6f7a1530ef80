"""One resolver for every policy word: the same word means the same policy in every command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3 as sb3

from neuralsim.agents.policies.policy import NamedPolicy
from neuralsim.agents.policies.random_policies import HoldActionPolicy, NoOpPolicy, RandomPolicy
from neuralsim.agents.policies.resolve import check_policy, policy_label, resolve_policy
from neuralsim.envs.carracing.env import car_racing_spec
from neuralsim.envs.pusht.env import pusht_spec
from neuralsim.envs.registry import get_real_world
from neuralsim.envs.tworoom.env import TwoRoomRealEnv, tworoom_spec

TWOROOM = get_real_world("tworoom")


@pytest.fixture
def env() -> Any:
    made = TWOROOM.make_env(16)
    made.reset(seed=0)
    yield made
    made.close()


@pytest.mark.parametrize(("word", "other"), [("noop", "still"), ("explorer", "explore"), ("expert", "oracle")])
def test_an_alias_is_the_same_policy(word: str, other: str, env: Any) -> None:
    world = get_real_world("pusht") if word == "expert" else TWOROOM
    one, two = (resolve_policy(w, world, world.make_env(16), seed=4) for w in (word, other))
    assert type(one.policy) is type(two.policy)
    assert one.observation == two.observation
    assert policy_label(word) == policy_label(other)


def test_the_names_in_stores_stay(tmp_path: Path) -> None:
    assert [policy_label(w) for w in ("explore", "random", "oracle", "mine:make")] == [
        "explorer",
        "random",
        "oracle",
        "mine:make",
    ]
    (tmp_path / "a.zip").write_bytes(b"weights")
    label = policy_label(str(tmp_path / "a.zip"))
    assert label.startswith("a.zip ")
    assert len(label) == len("a.zip ") + 12


def test_with_an_environment_actions_are_single_and_without_one_a_batch(env: Any) -> None:
    for word, kind in (("random", RandomPolicy), ("noop", NoOpPolicy)):
        single, batch = resolve_policy(word, TWOROOM, env), resolve_policy(word, tworoom_spec(16))
        assert isinstance(single.policy, kind)
        assert single.policy.predict(None)[0].shape == (2,)
        assert batch.policy.predict(np.zeros((5, 3)))[0].shape == (5, 2)


def test_a_world_may_be_given_by_its_name(env: Any) -> None:
    assert resolve_policy("explorer", "tworoom", env).observation == "state"
    assert resolve_policy("random", "tworoom").policy.predict(np.zeros((4, 1)))[0].shape == (4, 2)
    assert resolve_policy("noop", TWOROOM).policy.predict(np.zeros((4, 1)))[0].shape == (4, 2)


def test_a_random_policy_draws_the_same_actions_for_one_or_for_a_batch_of_one() -> None:
    single, batch = RandomPolicy(pusht_spec(8), 3, batched=False), RandomPolicy(pusht_spec(8), 3)
    for _ in range(5):
        np.testing.assert_array_equal(single.predict(None)[0], batch.predict(np.zeros((1, 4)))[0][0])


def test_an_explorer_without_an_environment_holds_random_actions() -> None:
    found = resolve_policy("explorer", tworoom_spec(16), seed=2)
    assert isinstance(found.policy, HoldActionPolicy)
    assert found.observation == "nothing"


def test_a_worlds_own_policy_goes_by_its_name() -> None:
    found = resolve_policy("driver", car_racing_spec())
    assert (found.name, found.observation) == ("driver", "pixels")


def saved(path: Path, env: Any) -> str:
    sb3.PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu", policy_kwargs={"net_arch": [8]}).save(path)
    return str(path)


def test_a_saved_policy_is_shown_what_it_was_trained_on(tmp_path: Path, env: Any) -> None:
    file = saved(tmp_path / "states.zip", TwoRoomRealEnv(16, observation="state"))
    found = resolve_policy(file, TWOROOM, env, seed=1)
    assert (found.name, found.observation) == ("states", "env")
    action, _ = found.policy.predict(env.reset(seed=1)[0])
    again, _ = resolve_policy(file, TWOROOM, env, seed=1).policy.predict(env.reset(seed=1)[0])
    other, _ = resolve_policy(file, TWOROOM, env, seed=2).policy.predict(env.reset(seed=1)[0])
    np.testing.assert_array_equal(action, again)
    assert (action != other).any(), "its random numbers come from the seed"
    with pytest.raises(ValueError, match=r"acts on observations of shape \(2,\); pusht has frames"):
        resolve_policy(file, pusht_spec(16))


def test_code_of_ones_own_is_made_for_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: Any
) -> None:
    (tmp_path / "pilots.py").write_text(
        """
class P:
    def predict(self, *_, **__): return "here", None

def make(env, seed): return P()

def bad(env, seed): return 3
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_policy("pilots:make", TWOROOM, env).policy.predict(None)[0] == "here"
    check_policy("pilots:make", TWOROOM)
    with pytest.raises(ValueError, match="expected an object with Stable-Baselines3's predict"):
        resolve_policy("pilots:bad", TWOROOM, env)
    with pytest.raises(ValueError, match="needs a real environment"):
        resolve_policy("pilots:make", tworoom_spec(16))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("randm", r"no policy of that name; expected random, noop, .*did you mean 'random'"),
        ("haed", "did you mean 'head'"),
        ("nowhere.zip", r"nowhere\.zip: no such file"),
        ("expert", "world 'tworoom' has no expert"),
    ],
)
def test_words_that_name_no_policy_are_refused_everywhere(word: str, message: str, env: Any) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        resolve_policy(word, TWOROOM, env)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check_policy(word, TWOROOM)


def test_a_named_policy_is_a_value() -> None:
    policy = NoOpPolicy(pusht_spec(8))
    assert NamedPolicy("a", policy, "nothing").policy is policy
