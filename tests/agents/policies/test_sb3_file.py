"""Policy files: a loaded policy acts as Stable-Baselines3's own, whatever its settings; what cannot be is refused by name."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, NatureCNN
from torch import nn

from neuralsim.agents.policies.sb3_file import NOTE, PolicyNote, load_policy, read_note, read_weights, save_policy

FUZZ = int(os.environ.get("NEURALSIM_FUZZ", "120"))
"""Mutated files of each fuzz test."""
VECTOR = spaces.Box(-np.inf, np.inf, (5,), np.float32)
IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)
PUSH = spaces.Box(-1.0, 1.0, (2,), np.float32)
NINE = spaces.Discrete(9)


class Still(gym.Env[Any, Any]):
    """An environment of the spaces asked for, in which nothing happens."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


ON_POLICY = {"ppo": sb3.PPO, "a2c": sb3.A2C, "trpo": sb3_contrib.TRPO}
ACTOR_CRITIC = {"sac": sb3.SAC, "td3": sb3.TD3, "ddpg": sb3.DDPG, "tqc": sb3_contrib.TQC, "crossq": sb3_contrib.CrossQ}
VALUE = {"dqn": sb3.DQN, "qrdqn": sb3_contrib.QRDQN}
OTHERS = {"recurrent-ppo": sb3_contrib.RecurrentPPO, "maskable-ppo": sb3_contrib.MaskablePPO, "ars": sb3_contrib.ARS}
ALL = ON_POLICY | ACTOR_CRITIC | VALUE | OTHERS
IMAGES = sorted(ALL.keys() - {"ars", "crossq"})


def build(algorithm: str, observation: spaces.Space[Any] = VECTOR, seed: int = 0, **kwargs: Any) -> Any:
    """A model of ``algorithm`` whose policy has ``kwargs``, its weights far from where training begins."""
    policy = "Cnn" if observation is IMAGE and not kwargs.pop("flat", False) else "Mlp"
    name = f"{policy}LstmPolicy" if algorithm == "recurrent-ppo" else f"{policy}Policy"
    actions = NINE if algorithm in VALUE or algorithm == "maskable-ppo" else PUSH
    settings: dict[str, Any] = {"seed": seed, "device": "cpu", "policy_kwargs": kwargs}
    if algorithm in ACTOR_CRITIC or algorithm in VALUE:
        settings |= {"buffer_size": 10}
    if kwargs.pop("sde", False):
        settings |= {"use_sde": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ALL[algorithm](name, Still(observation, actions), **settings)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        for parameter in model.policy.parameters():
            parameter.add_(
                0.4 * torch.randn_like(parameter) / max(1, parameter.shape[-1] if parameter.ndim else 1) ** 0.5
            )
        for part, buffer in model.policy.named_buffers():
            if "running_mean" in part or part.endswith("ra_mean"):
                buffer.add_(0.3 * torch.randn_like(buffer))
    return model


def assert_acts_alike(model: Any, path: Path, action_space: spaces.Space[Any] | None = None) -> None:
    """Save ``model``, load it here, and compare the actions of both, deterministic, and drawn from the same noise."""
    model.save(path)
    native = model.action_space if action_space is None else action_space
    loaded = load_policy(path, action_space=native)
    space = model.observation_space
    seen = np.stack([space.sample() for _ in range(64)])
    if space.dtype != np.uint8:
        seen = np.random.default_rng(0).normal(0, 2, seen.shape).astype(space.dtype)
    state, start = None, np.ones(64, bool)
    other = None
    for _ in range(3):
        mine, state = loaded.predict(seen, state, start, deterministic=True)
        theirs, other = model.policy.predict(seen, other, start, deterministic=True)
        np.testing.assert_allclose(mine, theirs, atol=1e-6, rtol=0)
        start = np.zeros(64, bool)
    if not getattr(model, "use_sde", False):
        for policy in (loaded, model.policy):
            torch.manual_seed(3)
            drawn, _ = policy.predict(seen, None, np.ones(64, bool))
            state = drawn if policy is loaded else state
        np.testing.assert_allclose(state, drawn, atol=1e-6, rtol=0)


# -- the same actions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", sorted(ALL))
@pytest.mark.parametrize("activation", [None, nn.LeakyReLU, nn.GELU, nn.Mish, nn.Softsign, nn.Identity, nn.PReLU])
def test_any_activation_loads(algorithm: str, activation: type[nn.Module] | None, tmp_path: Path) -> None:
    assert_acts_alike(
        build(algorithm, **({} if activation is None else {"activation_fn": activation})), tmp_path / "p.zip"
    )


@pytest.mark.parametrize("algorithm", ["ppo", "sac", "dqn", "recurrent-ppo", "ars"])
def test_a_policy_acts_alike_under_another_default_dtype(algorithm: str, tmp_path: Path) -> None:
    model = build(algorithm, net_arch=[6])
    model.save(tmp_path / "p.zip")
    seen = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    expected = model.policy.predict(seen, None, np.ones(8, bool), deterministic=True)[0]
    torch.set_default_dtype(torch.float64)
    try:
        policy = load_policy(tmp_path / "p.zip", action_space=model.action_space)
        acts = policy.predict(seen, None, np.ones(8, bool), deterministic=True)[0]
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(acts, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("algorithm", sorted(ALL.keys() - {"ars"}))
@pytest.mark.parametrize("shared", [True, False])
def test_nets_of_any_shape_load_with_and_without_sharing(algorithm: str, shared: bool, tmp_path: Path) -> None:
    critic = "vf" if algorithm in ON_POLICY or "ppo" in algorithm else "qf"
    for arch in ([], [7], [12, 9, 5], {"pi": [6, 5], critic: [11]}):
        if algorithm in VALUE and isinstance(arch, dict):
            continue
        kwargs: dict[str, Any] = {"net_arch": arch}
        if algorithm not in VALUE:
            kwargs["share_features_extractor"] = shared
        assert_acts_alike(build(algorithm, **kwargs), tmp_path / "p.zip")


@pytest.mark.parametrize("algorithm", IMAGES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_policies_of_images_load(algorithm: str, normalize: bool, shared: bool, tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"normalize_images": normalize, "net_arch": [8]}
    if algorithm not in VALUE:
        kwargs["share_features_extractor"] = shared
    if algorithm == "recurrent-ppo":
        kwargs["lstm_hidden_size"] = 8
    assert_acts_alike(
        build(algorithm, IMAGE, features_extractor_kwargs={"features_dim": 24}, **kwargs), tmp_path / "p.zip"
    )


@pytest.mark.parametrize(
    ("algorithm", "kwargs"),
    [
        (
            "ppo",
            {"features_extractor_class": NatureCNN, "features_extractor_kwargs": {"features_dim": 12}, "flat": True},
        ),
        ("ppo", {"features_extractor_class": FlattenExtractor}),
        ("sac", {"flat": True, "net_arch": [8]}),
        ("dqn", {"flat": True, "normalize_images": False, "net_arch": [8]}),
    ],
)
def test_extractors_may_differ_from_the_policys_own(algorithm: str, kwargs: dict[str, Any], tmp_path: Path) -> None:
    assert_acts_alike(build(algorithm, IMAGE, **kwargs), tmp_path / "p.zip")


@pytest.mark.parametrize(
    ("algorithm", "kwargs"),
    [
        (
            "ppo",
            {"log_std_init": -2.0, "ortho_init": False, "optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}},
        ),
        ("ppo", {"log_std_init": np.float32(-1)}),
        ("ppo", {"sde": True}),
        ("ppo", {"sde": True, "full_std": False, "use_expln": True}),
        ("a2c", {"sde": True, "squash_output": True, "use_expln": True}),
        ("sac", {"sde": True, "clip_mean": 0.7, "use_expln": True}),
        ("sac", {"sde": True, "clip_mean": 0.0}),
        ("tqc", {"sde": True, "n_quantiles": 7, "n_critics": 3}),
        ("crossq", {"sde": True, "batch_norm_eps": 0.1}),
        ("crossq", {"batch_norm": False}),
        ("crossq", {"batch_norm_momentum": 0.2, "renorm_warmup_steps": 5}),
        ("sac", {"n_critics": 4}),
        ("td3", {"n_critics": 1}),
        ("qrdqn", {"n_quantiles": 11}),
        ("recurrent-ppo", {"lstm_hidden_size": 7, "n_lstm_layers": 2}),
        ("recurrent-ppo", {"shared_lstm": True, "enable_critic_lstm": False, "lstm_hidden_size": 5}),
        ("recurrent-ppo", {"enable_critic_lstm": False, "lstm_kwargs": {"bias": False}, "lstm_hidden_size": 5}),
        ("ars", {"net_arch": [6, 3], "with_bias": False}),
        ("ars", {"squash_output": False}),
    ],
    ids=str,
)
def test_every_further_setting_is_kept(algorithm: str, kwargs: dict[str, Any], tmp_path: Path) -> None:
    assert_acts_alike(build(algorithm, **kwargs), tmp_path / "p.zip")


@pytest.mark.parametrize(
    ("algorithm", "actions"),
    [
        (sb3.SAC, spaces.Box(np.array([-2.0, 0.1], np.float32), np.array([2.0, 3.3], np.float32))),
        (sb3.PPO, spaces.Box(-0.3, 0.4, (3,), np.float32)),
        (sb3.PPO, spaces.MultiDiscrete([3, 4])),
        (sb3.A2C, spaces.Discrete(5)),
    ],
)
def test_policies_act_in_the_space_they_were_trained_in_and_no_other(
    algorithm: Any, actions: spaces.Space[Any], tmp_path: Path
) -> None:
    model = algorithm("MlpPolicy", Still(VECTOR, actions), device="cpu")
    assert_acts_alike(model, tmp_path / "p.zip")
    for other in (None, PUSH, spaces.Discrete(7), spaces.MultiDiscrete([3, 5])):
        with pytest.raises(ValueError, match=r"p\.zip: (was trained for actions|chooses among)"):
            load_policy(tmp_path / "p.zip", 2, other)


def test_policies_without_a_space_answer_with_actions_of_the_world(tmp_path: Path) -> None:
    for algorithm in ("dqn", "ppo"):
        build(algorithm).save(tmp_path / "p.zip")
        actions, _ = load_policy(tmp_path / "p.zip").predict(np.zeros((4, 5), np.float32))
        assert (actions.shape, actions.dtype) == ((4, 2), np.float32)


# -- what is not supported ---------------------------------------------------------------------------------------------


class OwnExtractor(BaseFeaturesExtractor):
    def __init__(self, space: spaces.Box) -> None:
        super().__init__(space, 5)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return observation


class OwnPolicy(sb3.ppo.MlpPolicy):
    pass


def shifted(x: torch.Tensor) -> torch.Tensor:
    return x + 1


class ReLU(nn.ReLU):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return shifted(super().forward(input))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: build("ppo", features_extractor_class=OwnExtractor),
            "features_extractor_class=.*NatureCNN or Flatten",
        ),
        (lambda: build("ppo", activation_fn=ReLU), "activation_fn=.*expected an activation of torch.nn"),
        (lambda: build("ppo", activation_fn=lambda: nn.ReLU()), "activation_fn="),
        (lambda: sb3.PPO(OwnPolicy, Still(VECTOR, PUSH), device="cpu"), "policy_class: .*OwnPolicy|policy_class: "),
        (
            lambda: sb3.PPO("MultiInputPolicy", Still(spaces.Dict({"a": VECTOR}), PUSH), device="cpu"),
            "policy_class: .*MultiInputActorCriticPolicy is not supported",
        ),
        (lambda: sb3.PPO("MlpPolicy", Still(spaces.Discrete(4), PUSH), device="cpu"), "observation_space: Discrete"),
        (lambda: sb3.PPO("MlpPolicy", Still(VECTOR, spaces.MultiBinary(3)), device="cpu"), "action_space: MultiBinary"),
        (lambda: build("recurrent-ppo", lstm_kwargs={"proj_size": 3}, lstm_hidden_size=8), "lstm_kwargs="),
    ],
)
def test_what_cannot_be_rebuilt_is_refused_by_name(make: Callable[[], Any], message: str, tmp_path: Path) -> None:
    model = make()
    model.save(tmp_path / "own.zip")
    with pytest.raises(ValueError, match=rf"own\.zip: .*({message})"):
        load_policy(tmp_path / "own.zip")


def rewritten(source: Path, target: Path, changes: dict[str, bytes | None]) -> Path:
    """``source`` with the members in ``changes`` replaced, or left out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for name in {**dict.fromkeys(old.namelist()), **changes}:
            content = changes[name] if name in changes else old.read(name)
            if content is not None:
                new.writestr(name, content)
    return target


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A PPO policy in a file of ours."""
    save_policy(build("ppo", net_arch=[8, 8]), tmp_path / "good.zip", PolicyNote("ppo", "features", "tworoom"))
    return tmp_path / "good.zip"


def saved(tensors: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def with_data(path: Path, **changes: Any) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return json.dumps(json.loads(archive.read("data")) | changes).encode()


@pytest.mark.parametrize("name", ["n_critic", "net_archs", "sde_net_arch", "dist_kwargs", "n_critics"])
def test_unknown_settings_are_refused_by_name(good: Path, tmp_path: Path, name: str) -> None:
    wrong = rewritten(good, tmp_path / "w.zip", {"data": with_data(good, policy_kwargs={name: 3})})
    with pytest.raises(ValueError, match=rf"w\.zip: policy_kwargs: {name}=3 is not supported"):
        load_policy(wrong)


def test_a_note_that_contradicts_the_network_is_refused(good: Path, tmp_path: Path) -> None:
    for note in ({"algorithm": "sac"}, {"algorithm": "zap"}, {"steps": "many"}, {"own": 1}, [], {"extra": [1]}):
        wrong = rewritten(good, tmp_path / "w.zip", {NOTE: json.dumps(note).encode()})
        with pytest.raises(ValueError, match=r"w\.zip: (its note says 'sac'|algorithm 'zap'|.*damaged)"):
            load_policy(wrong)


def test_weights_that_are_no_numbers_are_refused_with_the_files_name(good: Path, tmp_path: Path) -> None:
    weights = read_weights(good)["policy"]
    for value in (np.nan, np.inf):
        bad = {name: tensor.clone() for name, tensor in weights.items()}
        bad["action_net.bias"][0] = value
        with pytest.raises(ValueError, match=r"w\.zip: .*action_net\.bias: holds NaN or infinity"):
            load_policy(rewritten(good, tmp_path / "w.zip", {"policy.pth": saved(bad)}))


# -- bombs -------------------------------------------------------------------------------------------------------------


class Allocate:
    """Unpickled, it would make ten gigabytes."""

    def __reduce__(self) -> Any:
        return bytearray, (10 * 2**30,)


def bombs(good: Path) -> dict[str, dict[str, bytes | None]]:
    """Members that cost gigabytes or minutes if taken at their word."""
    weights = read_weights(good)["policy"]
    wide = torch.as_strided(torch.zeros(1), (60_000, 60_000), (0, 0))
    layers = {f"mlp_extractor.policy_net.{i}.weight": torch.zeros(1, 1) for i in range(10_000)}
    with zipfile.ZipFile(io.BytesIO(saved(weights))) as inner:
        deflated = io.BytesIO()
        with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as packed:
            for name in inner.namelist():
                packed.writestr(name, inner.read(name))
            packed.writestr("archive/data/99", bytes(150 * 2**20))
    sparse = torch.sparse_coo_tensor(
        torch.zeros(2, 1, dtype=torch.int64), torch.ones(1), (60_000, 60_000), check_invariants=False
    )
    return {
        "spaces in the note": {NOTE: b" " * (80 * 2**20)},
        "spaces in the data": {"data": b" " * (150 * 2**20)},
        "lists in the data": {"data": b"[" + b"[]," * 3_000_000 + b"[]]"},
        "nested data": {"data": b"[" * 100_000},
        "stride 0": {"policy.pth": saved(weights | {"mlp_extractor.policy_net.0.weight": wide})},
        "sparse": {"policy.pth": saved(weights | {"mlp_extractor.policy_net.0.weight": sparse})},
        "meta": {"policy.pth": saved(weights | {"log_std": torch.zeros(60_000, 60_000, device="meta")})},
        "layers": {"policy.pth": saved(weights | layers), "data": with_data(good, policy_kwargs={"net_arch": [1] * 10_000})},
        "wide settings": {"data": with_data(good, policy_kwargs={"net_arch": [900_000, 900_000]})},
        "wide space": {"data": with_data(good, observation_space={":type:": "<class 'gymnasium.spaces.box.Box'>",
                                                                  "_shape": [10**6, 10**6], "dtype": "float32"})},
        "allocation": {"policy.pth": saved(weights | {"log_std": Allocate()})},
        "deflated weights": {"policy.pth": deflated.getvalue()},
        "wide weights": {"policy.pth": bytes(150 * 2**20)},
    }  # fmt: skip


def test_bombs_are_refused_in_a_moment(good: Path, tmp_path: Path) -> None:
    load_policy(good)  # imports what it needs
    for name, changes in bombs(good).items():
        bomb = rewritten(good, tmp_path / "bomb.zip", changes)
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        with pytest.raises(ValueError, match=r"bomb\.zip: "):
            load_policy(bomb)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
        assert time.process_time() - began < 10, name
        assert grown < 1, name


def test_an_archive_of_many_members_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        for i in range(5000):
            archive.writestr(f"{i}.pth", b"")
    with pytest.raises(ValueError, match=r"m\.zip: expected at most 64 members, got 5000"):
        read_weights(tmp_path / "m.zip")


# -- fuzz --------------------------------------------------------------------------------------------------------------


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """``content`` with a few bytes changed, cut out, doubled, or put elsewhere."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        i, n = int(rng.integers(len(data))), int(rng.integers(1, 40))
        match rng.integers(5):
            case 0:
                data[i] ^= 1 << int(rng.integers(8))
            case 1:
                del data[i : i + n]
            case 2:
                data[i:i] = data[i : i + n]
            case 3:
                data[i : i + n] = rng.bytes(n)
            case _:
                del data[i:]
    return bytes(data)


def mutate_json(content: bytes, rng: np.random.Generator) -> bytes:
    """A policy's ``data`` with one value of one object replaced."""
    value = json.loads(content)
    place = value[rng.choice(["policy_class", "observation_space", "action_space", "policy_kwargs"])]
    odd = [
        None,
        -1,
        0,
        1e308,
        10**30,
        "",
        "x",
        [],
        {},
        [[]],
        True,
        [1, 2],
        {"pi": [3]},
        "[nan inf]",
        "<class 'os.system'>",
    ]
    names = [n for n in place if n not in (":serialized:", "__doc__")] or ["net_arch"]
    place[str(rng.choice(names))] = odd[rng.integers(len(odd))]
    return json.dumps(value).encode()


@pytest.mark.parametrize("algorithm", ["ppo", "sac", "dqn", "recurrent-ppo"])
def test_fuzz_mutated_files_load_the_same_policy_or_are_refused_by_name(algorithm: str, tmp_path: Path) -> None:
    kwargs = {"lstm_hidden_size": 6} if algorithm == "recurrent-ppo" else {}
    model = build(algorithm, net_arch=[6], activation_fn=nn.GELU, **kwargs)
    good = tmp_path / "good.zip"
    save_policy(model, good, PolicyNote(algorithm))
    seen, start = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32), np.ones(8, bool)
    expected = load_policy(good).predict(seen, None, start, deterministic=True)[0]
    rng = np.random.default_rng(sorted(ALL).index(algorithm))
    with zipfile.ZipFile(good) as archive:
        members = {name: archive.read(name) for name in ("data", "policy.pth", NOTE)}
    loaded = 0
    for _ in range(FUZZ // 4):
        name = str(rng.choice([*members, "zip", "json"]))
        bad = tmp_path / "bad.zip"
        if name == "zip":
            bad.write_bytes(mutate(good.read_bytes(), rng))
        elif name == "json":
            rewritten(good, bad, {"data": mutate_json(members["data"], rng)})
        else:
            rewritten(good, bad, {name: mutate(members[name], rng)})
        try:
            policy = load_policy(bad)
        except ValueError as error:
            assert str(error).startswith(f"{bad}: "), error  # noqa: PT017 (most of them are refused, some are sound)
            continue
        acts = policy.predict(seen, None, start, deterministic=True)[0]
        loaded += 1
        if name in ("zip", "json"):
            np.testing.assert_allclose(acts, expected, atol=1e-6)
        assert np.isfinite(acts).all()
    assert loaded < FUZZ // 4


def test_fuzz_notes_and_weights_of_mutated_files_are_refused_by_name(good: Path, tmp_path: Path) -> None:
    rng, bad = np.random.default_rng(9), tmp_path / "bad.zip"
    for _ in range(FUZZ // 4):
        bad.write_bytes(mutate(good.read_bytes(), rng))
        for read in (read_note, read_weights):
            try:
                read(bad)
            except ValueError as error:
                assert str(error).startswith(f"{bad}: "), error  # noqa: PT017


def test_pickles_are_not_run(good: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "went off"), "w")

    for content in (saved({"a": Bomb()}), pickle.dumps(Bomb()), saved([Bomb()])):
        with pytest.raises(ValueError, match=r"w\.zip: policy\.pth does not hold plain weights"):
            load_policy(rewritten(good, tmp_path / "w.zip", {"policy.pth": content}))
    assert not (tmp_path / "went off").exists()
