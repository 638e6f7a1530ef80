"""Promises of ranking: statistics that are what they say, intervals that hold, and one order in truth and imagination."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv

from neuralsim import cli
from neuralsim.agents.evaluation.ranking import RankConfig, Ranking, rank
from neuralsim.agents.evaluation.rollout import PolicyEvalResult
from neuralsim.agents.policies.sb3_file import PolicyNote, save_policy
from neuralsim.agents.rl.algorithms import build
from neuralsim.envs.tasks.rl_task import find_task
from neuralsim.envs.wrappers.features import FeatureVecEnv
from neuralsim.evaluation.statistics import CrossedBootstrap, mmrv, pearson, rank_correlation, ratio, student
from neuralsim.pretrained.world import open_world

DIRECTIONS = 6
"""Policies that always go one way: some towards the goal from most places, some away from it."""

scores = st.integers(-50, 50).map(lambda n: n / 10)
pairs = st.lists(st.tuples(scores, scores), min_size=3, max_size=9).map(lambda p: np.array(p).T)


# -- agreement ---------------------------------------------------------------------------------------------------------


@given(pairs, st.integers(0, 2**31))
def test_pearson_is_numpys_and_knows_no_units(pair: np.ndarray, seed: int) -> None:
    x, y = pair
    assume(np.ptp(x) > 0 and np.ptp(y) > 0)
    found = pearson(x, y)
    assert found == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)
    assert found == pytest.approx(pearson(y, x))
    assert found == pytest.approx(pearson(3 * x - 7, 0.1 * y + 2), abs=1e-9)
    assert found == pytest.approx(-pearson(-x, y))
    assert found == pytest.approx(pearson(1e-200 * x, 1e200 * y), abs=1e-9)
    order = np.random.default_rng(seed).permutation(len(x))
    assert found == pytest.approx(pearson(x[order], y[order]), abs=1e-9)


def test_correlations_of_what_does_not_vary_are_no_numbers() -> None:
    x = np.array([1.0, 2.0, 3.0])
    for f in (pearson, rank_correlation):
        assert np.isnan(f(x, np.full(3, 0.1)))
        assert np.isnan(f(x[:2], x[:2]))
        assert f(x, 5 * x) == pytest.approx(1)


@given(pairs, st.integers(0, 2**31))
def test_mmrv_is_the_papers(pair: np.ndarray, seed: int) -> None:
    imagined, true = pair
    worst = []
    for i in range(len(true)):
        wrong = [j for j in range(len(true)) if (imagined[i] < imagined[j]) != (true[i] < true[j])]
        worst.append(max((abs(true[i] - true[j]) for j in wrong), default=0.0))
    found = mmrv(imagined, true)
    assert found == pytest.approx(np.mean(worst))
    assert 0 <= found <= np.ptp(true) + 1e-9
    assert found == pytest.approx(mmrv(np.exp(imagined), true)), "it asks for the order alone"
    assert 3 * found == pytest.approx(mmrv(imagined, 3 * true + 1)), "and answers in units of the true score"
    assert mmrv(true, true) == 0
    order = np.random.default_rng(seed).permutation(len(true))
    assert found == pytest.approx(mmrv(imagined[order], true[order]))


def test_mmrv_of_simplers_own_example() -> None:
    """Four policies on 'pick coke can', of which imagination swaps the best two."""
    true = np.array([0.87, 0.7333, 0.5867, 0.0367])
    assert mmrv(np.array([0.8533, 0.92, 0.76, 0.1333]), true) == pytest.approx(2 * 0.1367 / 4)
    assert mmrv(-true, true) == pytest.approx((2 * 0.8333 + 0.6966 + 0.55) / 4)
    assert np.isnan(mmrv(np.zeros(0), np.zeros(0)))


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_intervals_over_policies_and_starts_hold_what_they_promise() -> None:
    """The mean over all policies and starts there might be, from 8 of the ones on 12 of the others: held at least 95 times in
    a hundred, where drawing the starts alone anew would hold it in far fewer."""
    rng, held, blind = np.random.default_rng(0), 0, 0
    for _ in range(150):
        table = rng.normal(size=(8, 1)) + rng.normal(size=(1, 12)) + rng.normal(size=(8, 12))
        found = CrossedBootstrap(8, 12, resamples=200)(lambda x: float(x.mean()), table)
        held += found.low <= 0 <= found.high
        means = np.quantile([table[:, rng.integers(12, size=12)].mean() for _ in range(200)], [0.025, 0.975])
        blind += means[0] <= 0 <= means[1]
    assert held / 150 >= 0.88
    assert blind < held


def test_the_same_seed_gives_the_same_interval_and_shapes_are_checked() -> None:
    x, y = np.random.default_rng(1).random((2, 9, 20))
    one, other, third = (CrossedBootstrap(9, 20, 100, seed=s)(pearson, x, y) for s in (5, 5, 6))
    assert one == other
    assert one.low != third.low
    assert (one.n, one.value) == (9, pearson(x.mean(1), y.mean(1)))
    with pytest.raises(ValueError, match=r"of \(9, 20\): got .* \(9, 19\)"):
        CrossedBootstrap(9, 20)(pearson, x, y[:, :19])


def test_students_interval_by_hand_and_by_trial() -> None:
    found = student(np.array([1.0, 2.0, 3.0]))
    assert found.value == 2
    assert found.high - found.value == pytest.approx(4.303 / np.sqrt(3), rel=1e-3)
    assert np.isnan(student(np.array([1.0])).low)
    rng = np.random.default_rng(2)
    for n in (2, 3, 25):
        trials = [student(rng.normal(4, 2, n)) for _ in range(2000)]
        assert np.mean([t.low <= 4 <= t.high for t in trials]) == pytest.approx(0.95, abs=0.015)


def test_ratios_of_seeds_hold_the_true_ratio() -> None:
    rng = np.random.default_rng(3)
    trials = [ratio(rng.normal(9, 0.5, 3), rng.normal(10, 0.5, 5)) for _ in range(1000)]
    assert np.mean([t.low <= 0.9 <= t.high for t in trials]) > 0.93
    assert np.mean([t.value for t in trials]) == pytest.approx(0.9, abs=0.01)
    assert np.isnan(ratio(np.ones(3), -np.ones(3)).value), "no share of a loss"
    single = ratio(np.array([1.0]), np.array([2.0, 2.0]))
    assert (single.value, single.n) == (0.5, 1)
    assert np.isnan(single.high)


# -- ranking -----------------------------------------------------------------------------------------------------------


def tally(returns: np.ndarray) -> PolicyEvalResult:
    """Episodes that succeed where they return more than 1."""
    n = len(returns)
    return PolicyEvalResult(returns, np.full(n, 10), returns > 1, np.zeros(n, bool))


def test_an_imagination_that_shrinks_returns_still_ranks_and_one_that_knows_nothing_does_not() -> None:
    rng = np.random.default_rng(4)
    true = np.linspace(0, 3, 10)[:, None] + 0.3 * rng.normal(size=(10, 50))
    order = rng.permutation(10)
    names = tuple(f"policy {i}" for i in order)
    honest = Ranking(names, tuple(map(tally, 0.5 * true[order])), tuple(map(tally, true[order])))
    assert honest.names[0] == "policy 9"
    assert honest.names[-1] == "policy 0"
    rows = {row.key: row for row in honest.agreement()}
    assert rows["pearson_return"].value > 0.99
    assert rows["spearman_return"].value == 1
    assert rows["mmrv_return"].value == 0
    assert rows["pearson_success"].target is not None, "ten policies are enough to ask for it"
    noise = Ranking(names, tuple(tally(rng.normal(size=50)) for _ in order), tuple(map(tally, true[order])))
    rows = {row.key: row for row in noise.agreement()}
    low, high = rows["spearman_return"].low, rows["spearman_return"].high
    assert low is not None
    assert high is not None
    assert low < 0.5
    assert rows["mmrv_return"].value > 0.5


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files of policies that go one way each, wherever they are."""
    rl_task = find_task("tworoom")
    env = FeatureVecEnv(DummyVecEnv([rl_task.env]), open_world("tworoom-latent").model)
    agent, _ = build("ppo", env, False, 0, "cpu")
    folder, files = tmp_path_factory.mktemp("policies"), []
    for i in range(DIRECTIONS):
        angle = 2 * np.pi * i / DIRECTIONS
        with torch.no_grad():
            agent.policy.action_net.weight.zero_()
            agent.policy.action_net.bias.copy_(torch.tensor([np.cos(angle), np.sin(angle)]))
        path = folder / f"way-{i}" / "policy.zip"
        path.parent.mkdir()
        save_policy(agent, path, PolicyNote("ppo", "features", "tworoom", "reach", "tworoom-latent"))
        files.append(str(path))
    return files


def test_a_true_world_and_its_dream_rank_alike(
    policies: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["rank", "tworoom", "--policies", *policies, "random", "still", "--episodes", "4"]
    assert cli.main([*words, "--out", str(tmp_path), "--json", str(tmp_path / "copy.json")]) == 0
    out = capsys.readouterr().out
    assert "way-0" in out
    assert "still" in out
    found = json.loads((tmp_path / "rank.json").read_text())
    assert found == json.loads((tmp_path / "copy.json").read_text())
    rows = {row["key"]: row for row in found["rows"]}
    assert rows["pearson_return"]["value"] > 0.7  # they press into walls for long, where dreams stray
    assert rows["spearman_return"]["value"] > 0.7
    assert rows["pearson_return"]["n"] == DIRECTIONS + 2
    assert rows["true_return/way-0"]["n"] == 4
    assert found["circumstances"]["policies"]["way-0"] == policies[0]
    assert "beware" not in found["circumstances"]
    picture = iio.imread(tmp_path / "rank.png")
    assert picture.shape[0] > 300
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 50


def test_two_policies_will_do_and_are_said_to_tell_little(policies: list[str], tmp_path: Path) -> None:
    ranking, report, _ = rank(RankConfig("tworoom", (policies[0], "random", policies[0]), episodes=3, out=tmp_path))
    assert len(ranking.names) == 2
    assert "tell little" in str(report.circumstances["beware"])
    assert np.isnan(report["pearson_success"].value)
    assert report["mmrv_return"].value >= 0
    assert report["pearson_success"].target is None


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"policies": ("random",)}, "2 or more that differ"),
        ({"policies": ("random", "random")}, "2 or more that differ"),
        ({"policies": ("random", "still"), "episodes": 0}, "--episodes"),
        ({"policies": ("random", "still"), "uncertainty_limit": -1.0}, "--uncertainty-limit"),
    ],
)
def test_impossible_wishes_are_refused(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        RankConfig("tworoom", **settings)


def test_policies_of_different_tasks_need_a_word(policies: list[str], tmp_path: Path) -> None:
    rl_task = find_task("tworoom", "stay")
    env = FeatureVecEnv(DummyVecEnv([rl_task.env]), open_world("tworoom-latent").model)
    other = tmp_path / "stay.zip"
    save_policy(build("ppo", env, False, 0, "cpu")[0], other, PolicyNote("ppo", "features", "tworoom", "stay"))
    with pytest.raises(ValueError, match=r"different tasks .* say with --task"):
        rank(RankConfig("tworoom", (policies[0], str(other)), episodes=1, out=tmp_path))
    ranking, _, _ = rank(RankConfig("tworoom", (policies[0], str(other)), task="stay", episodes=1, out=tmp_path))
    assert len(ranking.names) == 2
