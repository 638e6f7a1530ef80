"""Bench: each value is measured on real calls, counts what one call does, and stands beside a reference and its target."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from neuralsim.agents import bench
from neuralsim.agents.bench import TARGETS, Timing, run_bench, time_calls
from neuralsim.evaluation.report import Report
from neuralsim.noise import Noise
from neuralsim.pretrained.world import World, open_world
from neuralsim.world_model import WorldModel


@pytest.fixture(scope="module")
def report(tiny_world) -> Report:
    return run_bench(open_world(tiny_world), seconds=0.03)


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
    assert report["memory"].value > 50


def test_the_best_is_no_worse_than_the_median(report):
    for row in report.rows:
        if row.median is not None and row.key != "true_ratio":
            assert row.value >= row.median if row.better == "high" else row.value <= row.median, row
    assert report["true_ratio"].value == pytest.approx(report["true"].value / report["bare"].value, rel=1e-6)


def test_circumstances_stand_beside_the_values(report):
    body = json.loads(report.to_json())
    assert {"date", "cpu", "cores", "load", "torch", "threads"} <= set(body["circumstances"])
    assert {r["key"]: r["bar"] for r in body["rows"]}["true_ratio"] == {
        "least": 0.7,
        "most": None,
        "beats": False,
        "surely": False,
    }


# -- what is timed, on a clock that counts calls as seconds ----------------------------------------------------------------


class Work:
    """Rows that a model steps, decodes and encodes, counted call by call while bench times them."""

    def __init__(self, model: WorldModel, names: Sequence[str]) -> None:
        self.model, self.kind, self.calls = model, type(model), []
        self.rows: Counter[str] = Counter()

        def counted(name: str) -> Callable[..., Any]:
            own = getattr(self.kind, name)

            def method(model: WorldModel, *args: Any) -> Any:
                noise = next((x for x in args if isinstance(x, Noise)), args[0])
                self.rows[name] += len(noise)
                return own(model, *args)

            return method

        model.__class__ = type(self.kind.__name__, (self.kind,), {name: counted(name) for name in names})

    def time_calls(self, calls: Sequence[Callable[[], object]], seconds: float, repeats: int = 5) -> list[Timing]:
        """Run each call once, which takes a second."""
        for call in calls:
            self.rows.clear()
            call()
            self.calls.append(Counter(self.rows))
        return [Timing(1.0, 1.0) for _ in calls]


@pytest.fixture
def working(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[World, Sequence[str]], Work]]:
    made: list[Work] = []

    def work(world: World, names: Sequence[str]) -> Work:
        made.append(Work(world.model, names))
        monkeypatch.setattr(bench, "time_calls", made[-1].time_calls)
        return made[-1]

    yield work
    for one in made:
        one.model.__class__ = one.kind


def test_a_rate_counts_the_steps_of_one_call_and_frames_are_decoded_only_where_they_are_shown(tiny_world, working):
    world = open_world(tiny_world)
    work = working(world, ("denoise", "decode", "encode"))
    report = run_bench(world, seconds=1)
    keys = ["env_1", "env_32", "features_32", "features_256", "sb3_32", "model_1", "decode_1", "encode_1", "model_32"]
    done = dict(zip(keys, work.calls[2:], strict=False))  # after the two matrix products
    for key, rows in (("env_1", 1), ("env_32", 32), ("sb3_32", 32), ("model_1", 1), ("model_32", 32)):
        assert report[key].value == rows  # steps a second, for a call takes one
        assert done[key] == {"denoise": rows, "decode": rows}, key
    for key, rows in (("features_32", 32), ("features_256", 256)):
        assert report[key].value == rows
        assert done[key] == {"denoise": rows}, key
    assert done["decode_1"] == {"decode": 1}
    assert done["encode_1"] == {"encode": 1}
    assert report["true_ratio"].value == 1


def test_learning_counts_every_step_and_learns(working, monkeypatch):
    world = open_world("tworoom-latent", "cpu")
    work = working(world, ("step",))
    built: list[Any] = []
    build = bench.build
    monkeypatch.setattr(bench, "build", lambda *args: built.append(build(*args)) or built[-1])
    report = run_bench(world, seconds=1)
    (ppo, _), steps = built[0], report["ppo_256"].value
    assert steps == 256 * ppo.n_steps
    assert Counter(step=int(steps)) in work.calls
    assert ppo.num_timesteps == steps
    assert ppo._n_updates > 0
    assert report["ppo_256"].target is not None
    assert report["true_features"].value == 1


def test_time_is_shared_and_the_least_is_found():
    now, calls = [0.0], []

    def short() -> None:
        calls.append("short")
        now[0] += 0.002

    def uneven() -> None:
        calls.append("uneven")
        now[0] += 0.002 if len(calls) % 2 else 0.004

    first, second = time_calls([short, uneven], seconds=0.1, clock=lambda: now[0])
    assert first.best == pytest.approx(0.002)
    assert first.median == pytest.approx(0.002)
    assert 0.002 <= second.best <= second.median <= 0.004
    assert "short" in calls[-len(calls) // 2 :], "calls take turns, rather than one after the other"
    assert calls.count("short") == pytest.approx(2 + 0.1 / 0.002, rel=0.1)


def test_a_world_that_cannot_begin_is_refused(tiny_world):
    opened = open_world(tiny_world)
    with pytest.raises(ValueError, match=r"no starts\.npz"):
        run_bench(World(opened.model))
    with pytest.raises(ValueError, match="seconds"):
        run_bench(opened, seconds=0)
