"""Promises of comparing runs: figures that can be worked out by hand, and nothing said that no run has shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralsim import cli
from neuralsim.agents.rl.compare import CompareConfig, Comparison, Group, compare, first_reaching, group_runs
from neuralsim.agents.rl.learning_curve import LearningCurve, MeanWithInterval, Point
from neuralsim.evaluation.report import Report

STEPS = (0, 100, 200, 300, 400)


def figure(value: float) -> MeanWithInterval:
    return MeanWithInterval(value, value - 0.1, value + 0.1, 20)


def curve(
    label: str,
    seed: int,
    returns: Sequence[float],
    seconds_a_step: float,
    steps: Sequence[int] = STEPS,
    gap: float = 0.5,
    real: bool = False,
    task: str = "push",
    **settings: Any,
) -> LearningCurve:
    """A run that returned ``returns`` at ``steps``, and ``gap`` more in imagination."""
    points = [
        Point(s, s if real else 0, s * seconds_a_step, figure(r + gap), figure(0.9), figure(r), figure(0.8), 0.25)
        for s, r in zip(steps, returns, strict=True)
    ]
    made = {"algo": "ppo", "seed": seed, "label": label, **settings}
    return LearningCurve(
        label, "pusht", task, "ppo", seed, made, {"date": "2026-01-01", "load": 1.5 + seed}, tuple(points)
    )


def save(folder: Path, curves: Sequence[LearningCurve]) -> tuple[Path, ...]:
    """A folder for each."""
    places: list[Path] = []
    for c in curves:
        place = folder / f"{c.label}-{c.seed}-{len(places)}"
        place.mkdir(parents=True)
        c.save(place)
        places.append(place)
    return tuple(places)


def three(real_seconds: float = 1.0) -> list[LearningCurve]:
    """Two seeds imagined and two real: at equal steps 90 % as good, in a tenth of the time."""
    imagined = [curve("imagined", seed, [0, 1.8, 3.6, 5.4, 7.2 + seed * 3.6], 0.1) for seed in (0, 1)]
    real = [curve("real", seed, [0, 4, 6, 8, 10], real_seconds, gap=-1, real=True) for seed in (0, 1)]
    return [*imagined, *real, curve("random", 0, [1.0], 0, steps=[0])]


def report_of(curves: list[LearningCurve], folder: Path, baseline: str = "real") -> tuple[Comparison, Report]:
    comparison, report, _ = compare(CompareConfig(save(folder / "runs", curves), baseline, folder / "out"))
    return comparison, report


# -- reaching a level --------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=8),
    st.lists(st.integers(1, 20), min_size=1, max_size=8),
    st.floats(0, 1),
)
def test_what_rises_reaches_a_level_where_it_says(gaps: list[int], rises: list[int], share: float) -> None:
    n = min(len(gaps), len(rises))
    times, values = (np.cumsum([0, *steps[:n]]).astype(float) for steps in (gaps, rises))
    level = share * values[-1]
    assert np.interp(first_reaching(times, values, level), times, values) == pytest.approx(level)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=8), st.integers(-6, 6))
def test_the_first_crossing_counts_and_none_is_none(values: list[int], level: int) -> None:
    times = 10.0 * np.arange(len(values))
    found = first_reaching(times, np.array(values, float), level)
    if max(values) < level:
        assert np.isnan(found)
        return
    before = np.arange(0, found, 0.5)
    assert (np.interp(before, times, values) < level).all()
    assert np.interp(found, times, values) >= level - 1e-9


# -- figures -----------------------------------------------------------------------------------------------------------


def test_every_figure_by_hand(tmp_path: Path) -> None:
    _, report = report_of(three(), tmp_path)
    value = {row.key: row.value for row in report.rows}
    assert value["imagined/true"] == pytest.approx((7.2 + 10.8) / 2)
    assert value["imagined/gap"] == pytest.approx(0.5)
    assert value["real/gap"] == pytest.approx(-1)
    assert value["imagined/doubted"] == 0.25
    assert value["imagined/seconds"] == pytest.approx(40)
    assert value["real/true_steps"] == 400
    assert value["imagined/share_at_steps"] == pytest.approx(9 / 10)
    # In the 40 s that imagination took, the real runs came to step 40: a return of 1.6.
    assert value["imagined/share_at_seconds"] == pytest.approx(9 / 1.6)
    # 90 % of the real end is 9: the real runs at step 350, the imagined ones on average at their very end.
    assert value["real/seconds_to_90"] == pytest.approx(350)
    assert value["imagined/seconds_to_90"] == pytest.approx(40)
    assert value["imagined/sooner_90"] == pytest.approx(350 / 40)
    assert value["imagined/sooner_own"] == pytest.approx(350 / 40)
    assert value["random/share"] == pytest.approx(0.1)
    assert report["imagined/share_at_steps"].passed
    assert report["imagined/sooner_90"].passed
    assert report["imagined/true"].n == 2
    assert report["imagined/true"].low == pytest.approx(9 - 12.706 * 1.8, rel=1e-3)
    assert report["random/true"].low is None, "one seed knows no interval"


def test_equal_means_as_far_as_both_went(tmp_path: Path) -> None:
    """A real run half as long is compared at its end, not at the imagined one's."""
    curves = [
        curve("imagined", 0, [0, 2, 4, 6, 8], 1.0),
        curve("real", 0, [0, 5, 7], 1.5, steps=(0, 100, 200), real=True),
    ]
    _, report = report_of(curves, tmp_path)
    assert report["imagined/share_at_steps"].value == pytest.approx(4 / 7)
    assert "after 200 steps" in report["imagined/share_at_steps"].label
    assert report["imagined/share_at_seconds"].value == pytest.approx(6 / 7)
    assert "after 300 s" in report["imagined/share_at_seconds"].label


def test_what_was_never_reached_is_a_dash(tmp_path: Path) -> None:
    curves = [curve("imagined", 0, [0, 1, 2, 3, 4], 0.1), curve("real", 0, [0, 4, 6, 8, 10], 1.0, real=True)]
    comparison, report = report_of(curves, tmp_path)
    assert np.isnan(report["imagined/seconds_to_90"].value)
    assert np.isnan(report["imagined/sooner_90"].value)
    assert report["imagined/sooner_90"].passed is False
    assert report["imagined/sooner_own"].value == pytest.approx(100 / 40)
    assert json.loads(report.to_json())["rows"][0]["key"] == "real/seconds_to_90"
    assert len(comparison.tables(report)) == 3


def test_seeds_that_were_looked_at_elsewhere_are_read_in_between() -> None:
    """Straight lines stay straight, wherever the looks fell."""
    group = Group("x", (curve("x", 0, [0, 4], 1, steps=(0, 400)), curve("x", 1, [0, 3, 6], 2, steps=(0, 150, 300))))
    line = group.line()
    np.testing.assert_array_equal(group.steps(), [0, 150, 300])
    np.testing.assert_allclose(line.true, [0, (1.5 + 3) / 2, (3 + 6) / 2])
    np.testing.assert_allclose(line.least, [0, 1.5, 3])
    np.testing.assert_allclose(line.most, [0, 3, 6])
    np.testing.assert_allclose(line.imagined, line.true + 0.5)
    np.testing.assert_allclose(line.x["seconds"], [0, 225, 450])


# -- grouping ----------------------------------------------------------------------------------------------------------


def test_runs_of_one_label_are_told_apart_by_the_settings_that_differ() -> None:
    curves = [curve("imagined", s, [0, 1, 2, 3, 4], 1, doubt_penalty=p, looks=s) for p in (0.0, 0.5) for s in (0, 1)]
    groups = list(group_runs([*curves, curve("real", 0, [0, 1, 2, 3, 4], 1)]))
    assert [g.name for g in groups] == ["imagined doubt_penalty=0.0", "imagined doubt_penalty=0.5", "real"]
    assert [len(g.curves) for g in groups] == [2, 2, 1]


def test_a_seed_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'real' with the seeds \[0, 0\]; .*--label"):
        list(group_runs([curve("real", 0, [0, 1, 2, 3, 4], 1)] * 2))


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_draws_prints_and_names_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = save(tmp_path / "runs", three())
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "runs" / "note.txt").touch()
    words = ["compare", *map(str, sorted((tmp_path / "runs").iterdir())), "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--json", str(tmp_path / "copy.json")]) == 0
    out = capsys.readouterr().out
    for word in ("imagined", "random", "share of real's", "load", "2.5", "where the circumstances are alike"):
        assert word in out
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found == json.loads((tmp_path / "copy.json").read_text())
    told = found["circumstances"]
    assert sorted(Path(name).name for name in told["left_out"]) == ["empty", "note.txt"]
    assert [origin["run"] for origin in told["runs"]] == sorted(path.name for path in runs)
    picture = iio.imread(tmp_path / "out" / "compare.png")
    colours = np.unique(picture[..., :3].reshape(-1, 3), axis=0)
    for red, green, blue in ((0x2B, 0x6C, 0xB0), (0xC0, 0x56, 0x21), (0x2F, 0x85, 0x5A)):
        assert (colours == (red, green, blue)).all(1).any(), "a colour for each label"


def test_without_a_baseline_there_are_ends_and_curves_but_no_comparison(tmp_path: Path) -> None:
    comparison, report = report_of(three()[:2], tmp_path)
    assert comparison.baseline is None
    assert "no runs labelled 'real'" in str(report.circumstances["beware"])
    assert not list(comparison.comparisons())
    assert len(comparison.tables(report)) == 2
    assert report["imagined/true"].value == pytest.approx(9)


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got none"):
        CompareConfig()
    with pytest.raises(ValueError, match=r"none of .*nowhere is a run"):
        compare(CompareConfig((tmp_path / "nowhere",)))
    mixed = save(
        tmp_path / "mixed", [curve("real", 0, [0, 1], 1, (0, 1)), curve("real", 0, [0, 1], 1, (0, 1), task="touch")]
    )
    with pytest.raises(ValueError, match=r"different tasks .*pusht push.*pusht touch"):
        compare(CompareConfig(mixed))
    many = [curve("real", 0, [0, 1, 2, 3, 4], 1, slots=n) for n in (8, 16)]
    with pytest.raises(ValueError, match=r"--baseline 'real': there are .*slots=8.*slots=16"):
        compare(CompareConfig(save(tmp_path / "many", many)))
    (mixed[0] / "curve.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        compare(CompareConfig(mixed[:1]))
