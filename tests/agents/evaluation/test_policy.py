"""Promises of trying policies: the same starts on both sides, equal figures where the model is exact, and nothing hidden."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from neuralsim import cli
from neuralsim.agents.evaluation.candidate import CandidatePolicy, find_candidate, short_names
from neuralsim.agents.evaluation.paired_evaluation import PairedEvaluation
from neuralsim.agents.evaluation.policy import EvaluateConfig, evaluate_transfer
from neuralsim.agents.policies.sb3_file import PolicyNote, save_policy
from neuralsim.agents.rl.algorithms import build
from neuralsim.envs.oracle import Oracle
from neuralsim.envs.tasks.rl_task import find_task
from neuralsim.envs.tworoom.env import ARENA, GOAL, STEP_UNITS
from neuralsim.envs.tworoom.shortest_path import shortest_path
from neuralsim.envs.wrappers.features import FeatureVecEnv
from neuralsim.pretrained.world import World, open_world

REACH = find_task("tworoom", "reach")


class Homing:
    """Goes home through the door; reads the Oracle's features ``(n, 2)``, the place in half arenas about the middle."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        places = (np.asarray(observation, np.float64) + 1) * ARENA / 2
        ways = [(shortest_path(place, np.array(GOAL))[1] - place) / STEP_UNITS for place in places]
        return np.stack([way / max(1.0, np.abs(way).max()) for way in ways]), None


@pytest.fixture(scope="module")
def exact() -> World:
    """The true TwoRoom as its own model."""
    return World(Oracle("tworoom", context=1).eval())


@pytest.fixture(scope="module")
def model() -> PPO:
    """An agent that knows nothing, on the compact TwoRoom's features."""
    env = FeatureVecEnv(DummyVecEnv([REACH.env]), open_world("tworoom-latent").model)
    return build("ppo", env, False, 0, "cpu")[0]


@pytest.fixture(scope="module")
def policy(model: PPO, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its file."""
    path = tmp_path_factory.mktemp("policy") / "policy.zip"
    note = PolicyNote("ppo", "features", "tworoom", "reach", "tworoom-latent", steps=7)
    save_policy(model, path, note)
    return str(path)


# -- paireds ----------------------------------------------------------------------------------------------------------


def test_where_the_model_is_exact_a_policy_fares_in_truth_as_in_imagination(exact: World) -> None:
    """But for the reading of the start off its frame, two units at most, of which a reward counts fifty as one."""
    paired = PairedEvaluation(REACH, episodes=24)
    homing = CandidatePolicy("homing", exact, "features", Homing)
    imagined, true = paired.imagined(homing), paired.real(homing)
    assert imagined.success.all()
    assert true.success.all()
    assert np.abs(imagined.lengths - true.lengths).max() <= 1
    np.testing.assert_allclose(imagined.returns, true.returns, atol=0.5)
    assert np.corrcoef(imagined.returns, true.returns)[0, 1] > 0.99


def test_trials_do_not_depend_on_one_another(policy: str) -> None:
    """Chance comes from the seed alone, whoever was tried before, and torch's own generator is left as it was."""
    paired = PairedEvaluation(replace(REACH, horizon=6), episodes=5, seed=3, deterministic=False)
    for source in ("random", policy):
        candidate = find_candidate(source, "tworoom", seed=3)
        first = paired.imagined(candidate)
        torch.rand(1)
        before = torch.get_rng_state()
        again = paired.imagined(candidate)
        np.testing.assert_array_equal(first.returns, again.returns)
        assert np.ptp(first.returns) > 0
    likeliest = replace(paired, deterministic=True).imagined(candidate)
    assert (likeliest.returns != first.returns).all()
    assert torch.equal(before, torch.get_rng_state())


def test_starts_are_the_seeds_and_the_first_of_many_are_the_few() -> None:
    world = open_world("tworoom-latent")
    many, few = PairedEvaluation(REACH, 8).starts(world), PairedEvaluation(REACH, 3).starts(world)
    assert many.states is not None
    assert few.states is not None
    np.testing.assert_array_equal(many.states[:3], few.states)
    assert (PairedEvaluation(REACH, 3, seed=1).starts(world).states != few.states).all()
    assert not np.isin(REACH.starts(50, seed=0).states, many.states).any(), "training begins elsewhere"


def test_doubt_cuts_imagined_episodes_only_where_it_is_asked_to() -> None:
    candidate = find_candidate("random", "tworoom")
    paired = PairedEvaluation(replace(REACH, horizon=8), 4)
    free, cut = paired.imagined(candidate), replace(paired, uncertainty_limit=1e-9).imagined(candidate)
    assert cut.doubted.all()
    assert not free.doubted.all()
    assert (cut.lengths < free.lengths).all()


def test_still_does_nothing(exact: World) -> None:
    tally = PairedEvaluation(replace(REACH, horizon=5), 3).real(find_candidate("still", "tworoom", exact))
    np.testing.assert_array_equal(tally.returns, 0)
    np.testing.assert_array_equal(tally.lengths, 5)


# -- candidates --------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.sampled_from(["a", "b", "c", "runs"]), min_size=1, max_size=4), min_size=1, max_size=6))
def test_short_names_tell_policies_apart(parts: list[list[str]]) -> None:
    sources = list(dict.fromkeys(("random", *("/".join(p) + ".zip" for p in parts))))
    names = short_names(sources)
    assert len(set(names)) == len(sources)
    assert names[0] == "random"
    assert "" not in names


def test_short_names_leave_out_what_all_have() -> None:
    assert short_names(["runs/rl/a-0/policy.zip", "runs/rl/a-1/policy.zip", "still"]) == ["a-0", "a-1", "still"]


def test_a_policy_of_frames_is_shown_frames(tmp_path: Path) -> None:
    agent, _ = build("ppo", DummyVecEnv([REACH.env]), True, 0, "cpu")
    save_policy(agent, tmp_path / "seer.zip", PolicyNote())
    candidate = find_candidate(str(tmp_path / "seer.zip"), "tworoom")
    assert candidate.observation == "pixels"
    tally = PairedEvaluation(replace(REACH, horizon=3), 2).real(candidate)
    assert tally.lengths.tolist() == [3, 3]


def test_a_file_that_sb3_saved_itself_will_do(model: PPO, tmp_path: Path) -> None:
    model.save(tmp_path / "plain.zip")
    candidate = find_candidate(str(tmp_path / "plain.zip"), "tworoom")
    assert candidate.observation == "features"
    assert candidate.world.folder == open_world("tworoom-latent").folder


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"world": "pusht"}, "trained in 'tworoom'; asked to evaluate it in 'pusht'"),
        ({"policy": "nowhere.zip"}, "no such file; expected a .zip"),
        ({"task": "rech"}, "did you mean 'reach'"),
        ({"model": "pusht-latent"}, "is a world of 'pusht', asked for 'tworoom'"),
        ({"model": "nowhere"}, "say with --model which world"),
        ({"world": "atlantis", "policy": "random"}, "world 'atlantis-latent'"),
    ],
)
def test_what_does_not_fit_is_said(policy: str, change: dict[str, Any], line: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=line):
        evaluate_transfer(EvaluateConfig(**{"world": "tworoom", "policy": policy, "episodes": 1, **change}))


def test_a_policy_of_other_features_is_refused(policy: str, exact: World) -> None:
    with pytest.raises(ValueError, match=r"observations of shape \(\d+,\); .* has features \(2,\)"):
        find_candidate(policy, "tworoom", exact)


# -- the command -------------------------------------------------------------------------------------------------------


def test_both_sides_are_told_with_their_gap_and_filmed(policy: str, tmp_path: Path) -> None:
    report, files = evaluate_transfer(
        EvaluateConfig("tworoom", policy, episodes=6, video=tmp_path / "v.mp4", json=tmp_path / "e.json")
    )
    assert files == [tmp_path / "v.mp4", tmp_path / "e.json"]
    gap = report["imagined_return"].value - report["true_return"].value
    assert report["gap_return"].value == pytest.approx(gap)
    assert report["true_length"].n == 6
    assert json.loads((tmp_path / "e.json").read_text())["circumstances"]["trained_steps"] == 7
    assert len(iio.imread(tmp_path / "v.mp4")) > 10


@pytest.mark.parametrize("side", ["real", "imagined"])
def test_one_side_alone(policy: str, side: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "tworoom", "--policy", policy, f"--{side}", "--episodes", "2"]) == 0
    out = capsys.readouterr().out
    assert ("true: return" in out) == (side == "real")
    assert ("imagined: return" in out) == (side == "imagined")
    assert "gap" not in out


@pytest.mark.parametrize(
    "wrong", [{"real": True, "imagined": True}, {"episodes": 0}, {"uncertainty_limit": 0.0}, {"seed": -1}]
)
def test_impossible_wishes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="--"):
        EvaluateConfig(**wrong)


def test_the_words_are_all_known() -> None:
    assert [find_candidate(word, "tworoom").name for word in ("random", "noop", "still")] == ["random", "noop", "still"]
