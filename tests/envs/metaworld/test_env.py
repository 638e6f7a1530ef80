"""The real arm: seeds that mean something, exact states, two cameras, its rates, words, and clear errors."""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from arm import missing_arm, skip_without_arm
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common import env_checker as sb3

from neuralsim.envs.metaworld.env import STATE_NAMES, MetaWorldRealEnv, metaworld_spec
from neuralsim.envs.metaworld.instructions import INSTRUCTIONS, decode, encode, task_name

ROOT = Path(__file__).resolve().parents[3]
needs_arm = pytest.mark.skipif(missing_arm() is not None, reason=str(missing_arm()))
FEW = ["basketball", "door-unlock", "peg-insert-side"]  # in the first two, variables point into MuJoCo's memory
TASKS = list(INSTRUCTIONS) if os.environ.get("NEURALSIM_FUZZ") else FEW


@pytest.fixture(scope="module")
def door() -> MetaWorldRealEnv:
    skip_without_arm()
    return MetaWorldRealEnv(observation="dict", contact_force=True)


def actions(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 4)).astype(np.float32)


def play(env: gym.Env[Any, Any], moves: np.ndarray) -> list[Any]:
    """Everything that steps return."""
    return [env.step(move) for move in moves]


def assert_same(one: Any, other: Any) -> None:
    """Equal to the bit, in nested observations and infos."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        np.testing.assert_array_equal(one, other)


def expert_episode(env: MetaWorldRealEnv, seed: int, frames: int) -> bool:
    """Let Meta-World's scripted expert act; returns its success."""
    from metaworld.policies import ENV_POLICY_MAP

    env.reset(seed=seed)
    expert = ENV_POLICY_MAP[f"{env.task}-v3"]()
    for _ in range(frames):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Constant(s) may be too high"
            move = np.clip(expert.get_action(env.observation39()), -1, 1).astype(np.float32)
        if env.step(move)[-1]["success"]:
            return True
    return False


# -- spaces and checks -------------------------------------------------------------------------------------------------


@needs_arm
@pytest.mark.parametrize("observation", ["pixels", "dict", "state"])
def test_gymnasium_and_stable_baselines3_check_it(observation: str) -> None:
    made = gym.make("neuralsim/MetaWorldReal-v0", task="drawer-open-v3", observation=observation, size=16)
    assert made.spec is not None
    assert made.spec.max_episode_steps == 125
    check_env(made.unwrapped, skip_render_check=True)
    sb3.check_env(made.unwrapped, warn=False, skip_render_check=True)
    made.close()


def test_spaces_are_known_by_name(door: MetaWorldRealEnv) -> None:
    seen, info = door.reset(seed=0)
    assert isinstance(door.observation_space, gym.spaces.Dict)
    assert set(seen) == set(door.observation_space.spaces)
    assert seen["front"].shape == seen["wrist"].shape == (64, 64, 3)
    assert decode(seen["instruction"]) == info["instruction"] == "open the door"
    np.testing.assert_array_equal(seen["proprio"], door.state()[:4].astype(np.float32))
    assert door.state().shape == (len(STATE_NAMES),)
    assert door.observation39().shape == (39,)


def test_every_task_has_a_sentence_and_a_name_without_version() -> None:
    assert len(INSTRUCTIONS) == len(set(INSTRUCTIONS.values())) == 50
    assert task_name("door-open-v3") == task_name("door-open") == "door-open"
    with pytest.raises(ValueError, match="did you mean 'door-open'"):
        task_name("dor-open")
    with pytest.raises(ValueError, match="there are assembly"):
        task_name("x")


@needs_arm
def test_the_sentences_are_those_of_the_package() -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert {name.removesuffix("-v3") for name in ALL_V3_ENVIRONMENTS} == set(INSTRUCTIONS)


# -- seeds and states --------------------------------------------------------------------------------------------------


@needs_arm
@pytest.mark.parametrize("task", TASKS)
def test_seeds_states_copies_and_replays_agree_to_the_bit(task: str) -> None:
    env = MetaWorldRealEnv(size=32, observation="dict", contact_force=True, task=task)
    before, after = actions(4, 0), actions(5, 1)
    first = env.reset(seed=5)
    played = play(env, before)
    saved, state = pickle.dumps(env.snapshot()), env.state()
    copied, pickled = copy.deepcopy(env), pickle.loads(pickle.dumps(env))  # noqa: S301
    expected = play(env, after)

    np.testing.assert_array_equal(copied.state(), state)
    for other in (copied, pickled):
        assert_same(play(other, after), expected)
    env.reset(options={"state": pickle.loads(saved)})  # noqa: S301
    np.testing.assert_array_equal(env.state(), state)
    assert_same(play(env, after), expected)

    fresh = MetaWorldRealEnv(size=32, observation="dict", contact_force=True, task=task)
    assert_same(fresh.reset(seed=5), first)
    assert_same(play(fresh, before), played)
    fresh.reset(seed=6)
    play(fresh, before)
    seen, _ = fresh.reset(options={"state": pickle.loads(saved)})  # noqa: S301
    assert_same(seen, played[-1][0])
    assert_same(play(fresh, after), expected)
    assert_same(fresh.reset(seed=5), first)
    scenes = {fresh.reset(seed=seed)[0]["front"].tobytes() + fresh.state().tobytes() for seed in range(4)}
    assert len(scenes) == 4
    for each in (env, fresh, copied, pickled):
        each.close()


@needs_arm
@pytest.mark.parametrize("task", TASKS)
def test_scenes_and_steps_change_no_part_of_the_model_that_states_leave_out(task: str) -> None:
    from neuralsim.envs.metaworld.simulator import MODEL_FIELDS, ArmSimulator

    def arrays(model: Any) -> dict[str, np.ndarray]:
        found = {n: getattr(model, n) for n in dir(model) if not n.startswith("_")}
        return {n: np.copy(a) for n, a in found.items() if isinstance(a, np.ndarray) and n not in MODEL_FIELDS}

    simulator = ArmSimulator(task)
    first = arrays(simulator.model)
    for seed in range(2):
        simulator.reset(seed)
        for move in actions(10, seed):
            simulator.step(move)
    assert_same(arrays(simulator.model), first)


def test_resets_without_a_seed_go_on_to_other_scenes(door: MetaWorldRealEnv) -> None:
    door.reset(seed=3)
    second = [door.reset()[0]["front"] for _ in range(2)]
    door.reset(seed=3)
    assert_same([door.reset()[0]["front"] for _ in range(2)], second)
    assert not np.array_equal(*second)


# -- cameras, rates, words, forces -------------------------------------------------------------------------------------


def test_two_cameras_show_the_arm_from_two_places(door: MetaWorldRealEnv) -> None:
    front, wrist = (door.reset(seed=1)[0][name].astype(int) for name in ("front", "wrist"))
    assert np.abs(front - wrist).mean() > 20
    red = (front[..., 0] > 80) & (front[..., 1:].max(-1) < 60)
    assert 60 < red.sum() < 600, "the arm is red, and a small part of the picture"
    finger = (wrist[..., 1] > 100) & (wrist[..., 2] > 100) & (wrist[..., 0] < 60)
    assert finger.sum() > 60, "the left finger is turquoise, at the left of the wrist's view"
    assert finger[:, :32].sum() > finger[:, 32:].sum()
    large = door.frame(128)
    np.testing.assert_array_equal(door.render(), front)
    assert large.shape == (128, 128, 3)
    play(door, np.tile(np.float32([0, 0, 1, 0]), (3, 1)))
    raised = door.render().astype(int)
    rows = np.nonzero((raised[..., 0] > 80) & (raised[..., 1:].max(-1) < 60))[0]
    assert rows.mean() < np.nonzero(red)[0].mean() - 2, "the arm went up"


@needs_arm
def test_a_step_is_a_twentieth_of_a_second_and_four_centimetres() -> None:
    for frame_skip, rate in ((4, 20.0), (1, 80.0)):
        env = MetaWorldRealEnv(observation="state", frame_skip=frame_skip)
        assert env.metadata["render_fps"] == env.spec_world.rate_hz == rate
        assert env.spec_world.action_scale == (0.01 * frame_skip,) * 3 + (1.0,)
        env.reset(seed=0)
        start = env.snapshot().physics[0]
        play(env, np.zeros((3, 4), np.float32))
        assert env.snapshot().physics[0] - start == pytest.approx(3 / rate)
        z = env.state()[2]
        play(env, np.tile(np.float32([0, 0, 1, 0]), (8 // frame_skip, 1)))
        assert env.state()[2] > z + 0.02
        assert MetaWorldRealEnv.metadata["render_fps"] == 20.0


def test_words_given_to_an_episode_stay_with_it(door: MetaWorldRealEnv) -> None:
    seen, _ = door.reset(seed=0, options={"instruction": "close the door"})
    assert decode(seen["instruction"]) == "close the door"
    seen, _, _, _, info = door.step(actions(1, 0)[0])
    assert decode(seen["instruction"]) == info["instruction"] == "close the door"
    assert decode(door.reset()[0]["instruction"]) == "open the door"
    own = MetaWorldRealEnv(observation="state", instruction="öffne die Tür")
    assert own.reset(seed=0)[1]["instruction"] == "öffne die Tür" == decode(encode("öffne die Tür"))


def test_fingers_feel_what_they_press(door: MetaWorldRealEnv) -> None:
    free, _ = door.reset(seed=0)
    assert free["force"].tolist() == [0, 0]
    assert expert_episode(door, 2, 60)
    pressed = door.step(np.float32([-1, -1, 0, 1]))[0]["force"]
    assert 1 < pressed.max() < 1000, "the handle"


@needs_arm
@pytest.mark.parametrize("task", ["door-open", "button-press-topdown"])
def test_the_scripted_expert_succeeds_at_twenty_hertz(task: str) -> None:
    env = MetaWorldRealEnv(observation="state", task=task, terminate_on_success=True)
    assert expert_episode(env, 2, 60)
    ended = env.step(np.zeros(4, np.float32))
    assert ended[2] is ended[-1]["success"] is True
    assert 0 <= ended[1] <= 10
    assert env.reset(options={"state": env.snapshot()})[1]["success"] is True
    assert env.reset(seed=2)[1]["success"] is False


@needs_arm
def test_infos_keep_keys_and_types_and_long_episodes_go_on() -> None:
    env = MetaWorldRealEnv(observation="state", frame_skip=80)
    _, first = env.reset(seed=0)
    for move in actions(8, 0):  # 640 of Meta-World's steps, which raises after 500
        *_, info = env.step(move)
        assert {k: type(v) for k, v in info.items()} == {k: type(v) for k, v in first.items()}


@needs_arm
def test_the_page_runs_as_it_stands() -> None:
    (block,) = re.findall(r"^```py\n(.*?)^```", (ROOT / "docs/environments.md").read_text(), re.MULTILINE | re.DOTALL)
    page: dict[str, Any] = {}
    exec(compile(block, "docs/environments.md", "exec"), page)
    assert decode(page["seen"]["instruction"]) == page["info"]["instruction"] == "open the drawer"
    assert page["env"].unwrapped.state().shape == (21,)
    page["env"].close()


# -- wrong use ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"observation": "sound"}, "'sound'"),
        ({"render_mode": "human"}, "'human'"),
        ({"frame_skip": 0}, "frame_skip: expected a whole number from 1 to 80"),
        ({"contact_force": True}, "a part of observation='dict'"),
        ({"task": "make-tea"}, "no task 'make-tea'"),
        ({"size": 60}, "multiple of 8"),
        ({"instruction": "x" * 121}, "120 bytes at most"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaWorldRealEnv(**settings)


def test_wrong_use_is_named(door: MetaWorldRealEnv) -> None:
    door.reset(seed=0)
    for act, message in (
        (lambda: door.step(np.zeros(3)), r"\(x, y, z, grip\)"),
        (lambda: door.step(np.zeros((1, 4))), r"shape \(4,\)"),
        (lambda: door.step(np.full(4, np.nan)), "finite"),
        (lambda: door.reset(options={"goal": 1}), r"unknown \['goal'\]"),
        (lambda: door.reset(options={"state": np.zeros(21)}), r"what snapshot\(\) returned"),
        (lambda: door.reset(options={"instruction": 3}), "120 bytes at most"),
        (lambda: door.frame(64, "back"), "'back'"),
    ):
        with pytest.raises(ValueError, match=message):
            act()
    other = MetaWorldRealEnv(observation="state", task="door-close")
    for call in (other.state, other.snapshot, other.render, lambda: other.step(np.zeros(4, np.float32))):
        with pytest.raises(gym.error.ResetNeeded):
            call()
    with pytest.raises(ValueError, match="expected one of task 'door-close'"):
        other.reset(options={"state": door.snapshot()})


@needs_arm
def test_a_missing_library_is_named_and_states_work_without_it() -> None:
    program = (
        "import ctypes.util, sys\n"
        "find = ctypes.util.find_library\n"
        "ctypes.util.find_library = lambda name: None if 'OSMesa' in name else find(name)\n"
        "sys.modules['OpenGL'] = None\n"
        "import numpy as np\n"
        "from neuralsim.envs.metaworld.env import MetaWorldRealEnv\n"
        "env = MetaWorldRealEnv(observation='state')\n"
        "env.reset(seed=0); env.step(np.zeros(4, np.float32))\n"
        "try:\n    env.render()\nexcept ImportError as error:\n    print(error)"
    )
    clean = {k: v for k, v in os.environ.items() if k != "MUJOCO_GL"}
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, env=clean)
    assert "apt-get install libosmesa6" in ran.stdout, ran.stderr


def test_without_the_package_the_spec_is_known_and_the_error_says_what_to_install() -> None:
    assert metaworld_spec(64).frame_shape == (64, 64, 3)
    program = (
        "import sys; sys.modules['metaworld'] = None\n"
        "from neuralsim.envs.registry import get_real_world\n"
        "world = get_real_world('metaworld')\n"
        "assert world.make_spec(64).action_size == 4\n"
        "try:\n    world.make_env(64)\nexcept ImportError as error:\n    print(error)"
    )
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert "pip install 'neuralsim[arm]'" in ran.stdout, ran.stderr
