"""Infos, attributes and autoreset of the three interfaces: the same everywhere, and as Gymnasium batches single environments."""

from __future__ import annotations

import copy
import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList
from stable_baselines3.common.vec_env import DummyVecEnv, VecVideoRecorder
from torch.utils import _pytree

from neuralsim.envs.imagined.config import ImaginedEnvConfig
from neuralsim.envs.imagined.env import ImaginedEnv
from neuralsim.envs.imagined.sb3_vec_env import ImaginedVecEnv
from neuralsim.envs.imagined.truncation import TruncationReason
from neuralsim.envs.imagined.vector_env import ImaginedVectorEnv
from neuralsim.envs.wrappers.discrete_actions import DiscreteActionVecEnv
from neuralsim.envs.wrappers.features import FeatureVecEnv

FORMS = [{}, {"observation": "features"}, {"chunk": 2}, {"chunk": 2, "observation": "features"}]
PUSH = np.array([1.0, 0.0], np.float32)


def types_of(info: dict[str, Any]) -> dict[str, Any]:
    return {k: (v.dtype, v.ndim) if isinstance(v, np.ndarray) else type(v) for k, v in info.items() if k[:5] != "final"}


def action_for(space: gym.Space[Any]) -> np.ndarray:
    return np.broadcast_to(PUSH, space.shape).astype(np.float32)


# -- the same keys and types -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_infos_have_the_same_keys_and_types_after_resets_and_steps(dot_world: Any, form: dict[str, Any]) -> None:
    own = {"frames": dot_world.starts.frames[0], "actions": dot_world.starts.actions[0]}
    env = ImaginedEnv(dot_world, horizon=3, **form)
    envs, venv = ImaginedVectorEnv(2, dot_world, horizon=3, **form), ImaginedVecEnv(dot_world, 2, horizon=3, **form)
    seen = [[env.reset(seed=0)[1]], [envs.reset(seed=0)[1]], []]
    venv.reset()
    seen[2] += copy.deepcopy(venv.reset_infos)
    for _ in range(7):
        _, _, terminated, truncated, info = env.step(action_for(env.action_space))
        seen[0].append(info)
        assert bool(info["truncated_by"]) is truncated
        if terminated or truncated:
            seen[0] += [env.reset()[1], env.reset(options=own)[1]]
            assert np.isnan(seen[0][-1]["state"]).all()
        seen[1].append(envs.step(action_for(envs.action_space))[4])
        infos = venv.step(action_for(gym.spaces.Box(-1, 1, (2, *venv.action_space.shape))))[3]
        seen[2] += [
            {k: v for k, v in i.items() if k not in ("terminal_observation", "TimeLimit.truncated")} for i in infos
        ]
    for infos in seen:
        for info in infos:
            assert types_of(info) == types_of(infos[0])
    assert types_of(seen[0][0]) == types_of(seen[2][0])
    assert set(seen[1][0]) == {key for name in seen[0][0] for key in (name, f"_{name}")}


def test_a_reason_is_a_number_and_a_name() -> None:
    reasons = TruncationReason.of(np.array([None, "horizon", "uncertainty"], dtype=object))
    assert [bool(r) for r in reasons] == [False, True, True]
    assert reasons[1] == "horizon" != reasons[2]
    assert reasons[1] == 1
    assert np.asarray(list(reasons)).tolist() == np.stack(reasons).tolist() == [0, 1, 2]
    assert json.dumps(list(reasons)) == "[0, 1, 2]"
    assert pickle.loads(pickle.dumps(reasons[2])) is TruncationReason.UNCERTAINTY  # noqa: S301 (our own bytes)
    assert {reasons[1]: 3}[TruncationReason.HORIZON] == 3


@pytest.mark.filterwarnings("ignore::UserWarning")  # Minari's, about the spec's world and about metadata
def test_minari_records_the_infos(dot_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import minari

    jax = types.ModuleType("jax")
    jax.tree_util = types.SimpleNamespace(tree_map=_pytree.tree_map)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jax", jax)  # the one function that Minari takes of it
    monkeypatch.setitem(sys.modules, "jax.tree_util", jax.tree_util)  # type: ignore[attr-defined]
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = minari.DataCollector(gym.make("neuralsim/PushT-v0", world=dot_world, horizon=3), record_infos=True)
    for seed in range(2):
        env.reset(seed=seed)
        for _ in range(3):
            env.step(PUSH)
    dataset = env.create_dataset(
        "ours-v0",
        algorithm_name="a",
        author="a",
        author_email="a@b.c",
        code_permalink="x",
        description="x",
        eval_env=None,
    )
    assert [e.infos["truncated_by"].tolist() for e in dataset] == [[0, 0, 0, 1]] * 2
    assert dataset[0].infos["elapsed"].tolist() == [0, 1, 2, 3]


# -- autoreset ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_vector_environment_is_gymnasiums_own_of_single_ones(
    dot_world: Any, mode: AutoresetMode, form: dict[str, Any]
) -> None:
    """Observations, rewards, ends, infos, their masks and final observations, over several episodes."""
    settings = {"world": dot_world, "horizon": 3, "precision": "float32", **form}
    ours = gym.make_vec("neuralsim/PushT-v0", num_envs=3, autoreset_mode=mode, **settings)
    theirs = SyncVectorEnv([lambda: ImaginedEnv(**settings)] * 3, autoreset_mode=mode)
    assert ours.metadata["autoreset_mode"] is mode
    rng = np.random.default_rng(0)
    steps = [(ours.reset(seed=4), theirs.reset(seed=4))]
    for _ in range(9):
        action = rng.uniform(-1, 1, ours.action_space.shape).astype(np.float32)
        steps.append((ours.step(action), theirs.step(action)))
    for mine, gymnasiums in steps:
        for one, other in zip(mine[:-1], gymnasiums[:-1], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4 if "observation" in form else 2)
        assert_same_infos(mine[-1], gymnasiums[-1], ragged="chunk" in form)
    if "chunk" not in form:
        assert [len(i) for i in (DictInfoToList(ours).reset(seed=4)[1],)] == [3]


def assert_same_infos(one: dict[str, Any], other: dict[str, Any], ragged: bool) -> None:
    left_out = (
        {"frames", "features", "_frames", "_features"} if ragged else set()
    )  # whole chunks here, played parts there
    assert set(one) - left_out == set(other) - left_out
    for name in set(other) - left_out:
        if name == "final_info":
            assert_same_infos(one[name], other[name], ragged)
        elif name == "final_obs":
            for a, b in zip(one[name], other[name], strict=True):
                assert (a is None) == (b is None)
                assert a is None or np.allclose(a, b, atol=2)
        else:
            mask = other.get(f"_{name}", np.ones(3, bool))
            a, b = np.asarray(one[name]), np.asarray(other[name])
            np.testing.assert_allclose(a[mask].astype(float), b[mask].astype(float), atol=1e-4, err_msg=name)


def test_without_autoreset_the_caller_resets_the_ended_rows(dot_world: Any) -> None:
    envs = gym.make_vec("neuralsim/PushT-v0", num_envs=2, world=dot_world, horizon=2, autoreset_mode="DISABLED")
    envs.reset(seed=0)
    action = np.zeros((2, 2), np.float32)
    envs.step(action)
    _, _, _, truncated, infos = envs.step(action)
    assert truncated.all()
    assert infos["elapsed"].tolist() == [2, 2]
    with pytest.raises(gym.error.ResetNeeded, match=r"rows \[0, 1\] have ended: reset them"):
        envs.step(action)
    envs.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(gym.error.ResetNeeded, match=r"rows \[1\] have ended"):
        envs.step(action)
    envs.reset(options={"reset_mask": np.array([False, True])})
    assert envs.step(action)[4]["elapsed"].tolist() == [1, 1]


def test_episode_lengths_are_limited_as_in_gymnasium(dot_world: Any) -> None:
    for limit, horizon, length in ((2, 300, 2), (5, 3, 3), (4, None, 4), (-1, 3, 3)):
        envs = gym.make_vec("neuralsim/PushT-v0", 2, world=dot_world, max_episode_steps=limit, horizon=horizon)
        sync = gym.make_vec("neuralsim/PushT-v0", 2, "sync", world=dot_world, max_episode_steps=limit, horizon=horizon)
        for tried in (envs, sync):
            tried.reset(seed=0)
            ends = [tried.step(np.zeros((2, 2), np.float32))[3].all() for _ in range(length)]
            assert ends == [False] * (length - 1) + [True]
    for wrong in (0, 2.5, True):
        with pytest.raises(ValueError, match="max_episode_steps: expected a whole number"):
            ImaginedVectorEnv(1, dot_world, max_episode_steps=wrong)
    with pytest.raises(ValueError, match="autoreset_mode: expected one of NEXT_STEP, SAME_STEP, DISABLED, got 'never'"):
        ImaginedVectorEnv(1, dot_world, autoreset_mode="never")


# -- settings and attributes -------------------------------------------------------------------------------------------


def test_settings_are_given_as_a_config_as_keywords_or_both(dot_world: Any) -> None:
    config = ImaginedEnvConfig(observation="features", horizon=7)
    for make in (
        lambda **s: ImaginedEnv(dot_world, config, **s),
        lambda **s: ImaginedVectorEnv(2, dot_world, config, **s),
        lambda **s: ImaginedVecEnv(dot_world, 2, config, **s),
    ):
        assert make().imagination.horizon == 7
        assert make(horizon=9).session.config == ImaginedEnvConfig(observation="features", horizon=9)
        with pytest.raises(TypeError, match="unexpected keyword argument 'horizont'; did you mean 'horizon'"):
            make(horizont=3)
    with pytest.raises(TypeError, match="config: expected an ImaginedEnvConfig or None, got 'features'"):
        ImaginedEnv(dot_world, "features")  # type: ignore[arg-type]


def interfaces(world: Any, **settings: Any) -> list[Any]:
    return [
        ImaginedEnv(world, **settings),
        ImaginedVectorEnv(2, world, **settings),
        ImaginedVecEnv(world, 2, **settings),
    ]


def test_the_three_interfaces_carry_the_same_attributes(dot_world: Any) -> None:
    single, vector, venv = interfaces(dot_world, render_mode="rgb_array")
    rate = dot_world.spec.rate_hz
    for env in (single, vector, venv):
        assert env.metadata["render_modes"] == type(env).metadata["render_modes"] == ["rgb_array"]
        assert env.metadata["render_fps"] == rate
        assert type(env).metadata["render_fps"] == ImaginedEnv.metadata["render_fps"]
        assert (env.render_mode, env.spec, env.unwrapped) == ("rgb_array", None, env)
        assert env.imagination is env.session.imagination
    assert venv.get_attr("metadata") == [single.metadata] * 2
    assert venv.num_envs == vector.num_envs == 2
    assert venv.observation_space == vector.single_observation_space == single.observation_space
    assert venv.action_space == vector.single_action_space == single.action_space

    def public(env: Any, library: type) -> set[str]:
        return {n for n in dir(env) if n[0] != "_"} - {n for n in dir(library) if n[0] != "_"}

    own = public(single, gym.Env)
    assert {"session", "imagination", "snapshot", "restore", "fork", "from_session"} <= own
    for env in (vector, venv):
        assert own - {n for n in dir(env) if n[0] != "_"} == set()


@pytest.mark.parametrize("which", range(3))
def test_snapshots_restore_in_copies_and_after_pickling_on_every_interface(dot_world: Any, which: int) -> None:
    env = interfaces(dot_world, observation="features")[which]
    if which < 2:
        env.reset(seed=3)
    else:
        env.seed(3)
        env.reset()
    space = env.action_space if which < 2 else gym.spaces.Box(-1, 1, (2, *env.action_space.shape))
    action = np.broadcast_to(np.array([0.3, -0.2], np.float32), space.shape)
    env.step(action)
    snap = env.snapshot()
    expected = env.step(action)[0]
    twin = copy.deepcopy(env)
    for kept in (snap, copy.deepcopy(snap), pickle.loads(pickle.dumps(snap))):  # noqa: S301 (our own bytes)
        for tried in (env, twin):
            tried.restore(kept)
            np.testing.assert_array_equal(tried.step(action)[0], expected)
    env.restore(snap)
    fork = env.fork(3)
    assert fork.num_envs == (3 if which == 0 else 6)
    rows = np.broadcast_to(np.array([0.3, -0.2], np.float32), (fork.num_envs, 2))
    np.testing.assert_allclose(fork.step(rows)[0], np.repeat(np.atleast_2d(expected), 3, 0), atol=1e-3)


def test_recorded_videos_play_at_the_worlds_rate(dot_world: Any, tmp_path: Path) -> None:
    rate = dot_world.spec.rate_hz
    venv = ImaginedVecEnv(dot_world, 2, render_mode="rgb_array")
    dummy = DummyVecEnv([lambda: ImaginedEnv(dot_world, render_mode="rgb_array")])
    for wrapped in (venv, dummy, DiscreteActionVecEnv(venv), FeatureVecEnv(venv, dot_world.model)):
        assert wrapped.get_attr("metadata")[0]["render_fps"] == rate
    for wrapped in (DiscreteActionVecEnv(dummy), FeatureVecEnv(dummy, dot_world.model), DiscreteActionVecEnv(venv)):
        assert wrapped.metadata["render_fps"] == rate
    try:
        recorder = VecVideoRecorder(venv, str(tmp_path), lambda step: step == 0)
    except gym.error.DependencyNotInstalled:
        pytest.skip("moviepy is not installed")
    assert recorder.frames_per_sec == rate
