"""Bench: figures are made from real calls, stand beside a reference, and are held to their bars."""

from __future__ import annotations

import json
import math
import time

import pytest

from neuralsim.agents.bench import TARGETS, run_bench, time_calls
from neuralsim.evaluation.report import Report
from neuralsim.pretrained.world import World, open_world


@pytest.fixture(scope="module")
def report(tiny_world) -> Report:
    return run_bench(open_world(tiny_world), seconds=0.1)


def test_everything_is_timed(report):
    keys = {r.key for r in report.rows}
    assert keys >= set(TARGETS)
    assert keys >= {"matmul_float32", "matmul_bfloat16", "env_1", "env_32", "features_32", "features_256", "sb3_32"}
    assert keys >= {
        "model_1",
        "model_32",
        "encode_1",
        "decode_1",
        "snapshot",
        "restore",
        "true",
        "bare",
        "reader",
        "windows",
    }
    for row in report.rows:
        assert math.isfinite(row.value), row
        assert row.value >= 0, row


def test_the_best_is_no_worse_than_the_median(report):
    for row in report.rows:
        if row.median is not None and row.key != "true_ratio":
            assert row.value >= row.median if row.better == "high" else row.value <= row.median, row


def test_figures_agree_with_each_other(report):
    """A batch does more a second than a single dream, features more than frames, and a face no more than the model under it."""
    assert report["model_32"].value > report["model_1"].value
    assert report["features_32"].value > 0.8 * report["env_32"].value
    assert report["env_1"].value < 1.2 * report["model_1"].value
    assert report["true_ratio"].value == pytest.approx(report["true"].value / report["bare"].value, rel=1e-6)
    assert report["memory"].value > 50


def test_circumstances_stand_beside_the_figures(report):
    body = json.loads(report.to_json())
    assert {"date", "cpu", "cores", "load", "torch", "threads"} <= set(body["circumstances"])
    assert {r["key"]: r["bar"] for r in body["rows"]}["true_ratio"] == {
        "least": 0.7,
        "most": None,
        "beats": False,
        "surely": False,
    }


def test_time_is_shared_and_the_least_is_found():
    calls: list[str] = []

    def short() -> None:
        calls.append("short")
        time.sleep(0.002)

    def uneven() -> None:
        calls.append("uneven")
        time.sleep(0.002 if len(calls) % 2 else 0.004)

    first, second = time_calls([short, uneven], seconds=0.1)
    assert 0.002 <= first.best <= first.median < 0.02
    assert second.best <= second.median
    assert "short" in calls[-len(calls) // 2 :], "calls take turns, rather than one after the other"


def test_a_world_that_cannot_begin_is_refused(tiny_world):
    opened = open_world(tiny_world)
    with pytest.raises(ValueError, match=r"no starts\.npz"):
        run_bench(World(opened.model))
    with pytest.raises(ValueError, match="seconds"):
        run_bench(opened, seconds=0)


def test_a_compact_worlds_learning_is_timed() -> None:
    report = run_bench(open_world("tworoom-latent", "cpu"), seconds=0.05)
    assert report["ppo_256"].value > 0
    assert report["ppo_256"].target is not None
    assert report["ppo_256"].value < report["features_256"].value
    assert report["true_features"].value > 0
