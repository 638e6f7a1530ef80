"""The planning protocol: honest pairs, exact rules, baselines, resumption, regret, a video."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuralsim import cli
from neuralsim.agents.collection.collect import CollectConfig, collect
from neuralsim.agents.planning.actors import N_FIRST, OraclePolicy, PlanRecorder, imagine_paths
from neuralsim.agents.planning.baselines import BASELINES
from neuralsim.agents.planning.config import PlanConfig
from neuralsim.agents.planning.diagnostics import FIELD, goal_distance, goal_state, oracle_regret, solver_efficiency
from neuralsim.agents.planning.evaluate import plan
from neuralsim.agents.planning.goal_trial import GoalTrial, run_to_goal, run_trial, share_solved
from neuralsim.agents.planning.goals import HeldOutStartGoals, ImageStartGoals, RandomStartGoals, StartGoal
from neuralsim.agents.planning.overlay import GOAL, PANEL, PlanPainter, PlanScene
from neuralsim.agents.planning.planner import Planner, PlannerConfig, goal_image
from neuralsim.agents.planning.setup import open_setup, read_goal
from neuralsim.agents.planning.solvers import CEM, ICEM
from neuralsim.agents.planning.video import HOLD
from neuralsim.agents.policies.policy import NamedPolicy
from neuralsim.agents.policies.pusht_expert import PushTExpert
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.oracle import Oracle, OracleState
from neuralsim.envs.pusht.env import GOAL_POSE, PushTRealEnv, random_state
from neuralsim.envs.pusht.tasks import NEAR, NEAR_ANGLE
from neuralsim.envs.real_env import RealEnv
from neuralsim.envs.tasks.goal_task import GoalTask, goal_task_of
from neuralsim.evaluation.statistics import wilson
from neuralsim.noise import Noise
from neuralsim.pretrained.world import World
from neuralsim.runtime.results_log import ResultsLog

PUSHT, TWOROOM = goal_task_of("pusht"), goal_task_of("tworoom")
AHEAD = 12
TINY = ICEM(candidates=16, rounds=2, elites=4)


@pytest.fixture(scope="module", params=["pusht", "tworoom"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HeldOutStartGoals:
    """Pairs from a few fresh episodes."""
    return held_out(request.param, tmp_path_factory.mktemp("episodes"))


def held_out(world: str, folder: Path) -> HeldOutStartGoals:
    for _ in collect(CollectConfig(world, out=folder, episodes=6, steps=40, seed=7, workers=1)):
        pass
    return HeldOutStartGoals(EpisodeStore(folder), tuple(range(6)), goal_task_of(world), AHEAD, seed=3)


def same(one: StartGoal, other: StartGoal) -> bool:
    arrays = ("start", "goal", "frame", "demonstration")
    return all(np.array_equal(getattr(one, a), getattr(other, a)) for a in arrays)


def tworoom_pair(index: int = 0) -> StartGoal:
    return RandomStartGoals(TWOROOM, 64, 25, 0)(index)


def baseline(env: RealEnv, pair: StartGoal, name: str) -> NamedPolicy:
    return NamedPolicy(name, BASELINES[name](env, pair, 0), "nothing")


def trial(env: RealEnv, goal_task: GoalTask, pair: StartGoal, name: str, budget: int) -> GoalTrial:
    """One trial of a baseline."""
    return run_trial(env, goal_task, pair, baseline(env, pair, name), budget)


# -- pairs -------------------------------------------------------------------------------------------------------------


def test_pairs_are_functions_of_seed_and_number_and_none_is_solved_at_the_start(source: HeldOutStartGoals) -> None:
    fresh = RandomStartGoals(source.goal_task, 32, AHEAD, seed=3)
    for pairs in (source, fresh):
        many = [pairs(i) for i in range(12)]
        assert all(same(pairs(i), many[i]) for i in (11, 3, 0))
        assert not any(same(many[0], other) for other in many[1:])
        assert not same(replace(pairs, seed=4)(0), many[0])
        assert not any(pairs.goal_task.solved(p.start, p.goal) for p in many)
        assert all(p.demonstration is not None and len(p.demonstration) == AHEAD for p in many)


def test_a_goal_is_what_the_same_episode_showed_later(source: HeldOutStartGoals) -> None:
    env = source.goal_task.make_env(64)
    for i in range(4):
        pair = source(i)
        episode, step = (int(w) for w in pair.origin.split() if w.isdigit())
        states = source.store[episode].states
        assert states is not None
        np.testing.assert_array_equal(pair.start, states[step])
        np.testing.assert_array_equal(pair.goal, states[step + AHEAD])
        env.set_state(pair.goal)
        assert np.abs(env.frame(64).astype(int) - pair.frame).mean() < 0.1


def test_pairs_left_out_are_counted(source: HeldOutStartGoals) -> None:
    """Draw again what the source draws, and count what it threw away."""
    left_out = 0
    lengths = np.cumsum([41 - AHEAD] * 6)
    for i in range(12):
        rng, pair = np.random.default_rng([3, i]), source(i)
        for _ in range(pair.left_out):
            window = int(rng.integers(lengths[-1]))
            episode, step = divmod(window, 41 - AHEAD)
            states = np.asarray(source.store[episode].states, np.float64)
            assert source.goal_task.solved(states[step], states[step + AHEAD])
        left_out += pair.left_out
    assert left_out or source.goal_task is TWOROOM


def test_episodes_too_short_or_of_another_world_are_named(source: HeldOutStartGoals) -> None:
    with pytest.raises(ValueError, match="has 99 steps; ask for a shorter --goal-distance"):
        replace(source, distance=99)
    other = TWOROOM if source.goal_task is PUSHT else PUSHT
    with pytest.raises(ValueError, match="holds states"):
        replace(source, goal_task=other)


# -- rules -------------------------------------------------------------------------------------------------------------

HERE = np.array([100.0, 120.0, 300.0, 260.0, 0.5])


def moved(*change: float) -> np.ndarray:
    return HERE + np.array(change)


@pytest.mark.parametrize("near", [np.nextafter(NEAR, 0), NEAR])
def test_push_t_wants_the_block_within_20_units_and_20_degrees(near: float) -> None:
    zero = np.zeros(5)
    assert PUSHT.solved(np.array([0, 0, near, 0, 0]), zero) == (near < NEAR)
    assert PUSHT.solved(np.array([500, 500, 12, 15.9, 0]), zero)
    assert not PUSHT.solved(np.array([500, 500, 12, 16.1, 0]), zero)


@given(turns=st.integers(-2, 2), sign=st.sampled_from([-1, 1]), excess=st.floats(-5, 5))
def test_angles_count_around_the_circle(turns: int, sign: int, excess: float) -> None:
    angle = sign * np.radians(NEAR_ANGLE + excess) + 2 * np.pi * turns
    if abs(excess) > 1e-6:
        assert PUSHT.solved(moved(0, 0, 0, 0, angle), HERE) == (excess < 0)


def test_with_the_pusher_four_numbers_must_be_near_together() -> None:
    both = "block and pusher"
    assert PUSHT.reached(moved(15, 0, 13, 0, 0), HERE)[both]  # 19.8
    assert PUSHT.reached(moved(15, 0, 14, 0, 0), HERE) == {"block": True, both: False}  # 20.5
    assert PUSHT.reached(moved(0, 0, 0, 0, np.radians(21)), HERE) == {"block": False, both: False}
    assert PUSHT.measure(moved(3, 4, 6, 8, np.radians(10)), HERE) == pytest.approx(
        {"block": 10, "block's angle": 10, "pusher": 5}
    )


def test_tworoom_wants_the_agent_within_16_units() -> None:
    assert TWOROOM.solved(np.array([np.nextafter(16, 0), 0.0]), np.zeros(2))
    assert not TWOROOM.solved(np.array([16.0, 0.0]), np.zeros(2))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1),
    ],
)
def test_wilson_intervals_are_those_of_the_literature(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I; the last by symmetry."""
    found = wilson(successes, n)
    assert found.value == successes / n
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)
    assert np.isnan(wilson(0, 0).value)


# -- trials and baselines ---------------------------------------------------------------------------------------------


def test_replaying_the_demonstration_reaches_the_goal(source: HeldOutStartGoals) -> None:
    env = source.goal_task.make_env(8)
    tries = [trial(env, source.goal_task, p, "replay", 2 * AHEAD) for p in map(source, range(12))]
    first = next(iter(source.goal_task.rules))
    assert share_solved(tries, first).value == 1
    assert all((step := t.solved_at[first]) is not None and 1 <= step <= AHEAD for t in tries)


def test_doing_nothing_goes_nowhere_and_straight_goes_to_the_goals_place() -> None:
    pairs = [RandomStartGoals(PUSHT, 8, 25, 0)(i) for i in range(8)]
    env = PUSHT.make_env(8)
    for pair in pairs:
        still = trial(env, PUSHT, pair, "do nothing", 50)
        assert still.distances["block"] == pytest.approx(PUSHT.measure(pair.start, pair.goal)["block"], abs=3)
    straight = [trial(env, PUSHT, p, "straight to goal", 50).distances["pusher"] for p in pairs]
    assert np.median(straight) < 1


def test_random_actions_are_new_at_each_step_and_settled_by_the_seed() -> None:
    env = TWOROOM.make_env(8)

    def some(seed: int, index: int) -> np.ndarray:
        policy = BASELINES["random"](env, replace(tworoom_pair(), index=index), seed)
        return np.stack([policy.predict(None)[0] for _ in range(5)])

    assert np.array_equal(some(0, 1), some(0, 1))
    assert len({some(s, i).tobytes() for s in (0, 1) for i in (0, 1)}) == 4
    assert len(np.unique(some(0, 0), axis=0)) == 5


def test_a_goal_reached_once_counts_and_all_reached_ends_the_trial() -> None:
    """Through the goal and away again: the block rule has held, the other never did, so the whole budget is played."""
    env = PUSHT.make_env(8)
    start = np.array([60.0, 60.0, 400.0, 300.0, 0.0])
    goal = np.concatenate([[200.0, 60.0], start[2:]])
    pair = StartGoal(0, start, goal, np.zeros((8, 8, 3), np.uint8), None, 0, "made up")
    steps, solved = run_to_goal(env, PUSHT, pair, baseline(env, pair, "do nothing"), 7)
    assert steps == 7
    assert solved == {"block": 1, "block and pusher": None}
    steps, solved = run_to_goal(env, PUSHT, pair, baseline(env, pair, "straight to goal"), 20)
    assert steps == 6
    assert solved["block and pusher"] == 6  # 140 units at 24 a step


# -- the journal -------------------------------------------------------------------------------------------------------


def test_a_journal_goes_on_where_it_stopped_even_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.jsonl"
    settings = {"world": "x", "search": {"rounds": 3}, "tuple": (1, 2)}
    with ResultsLog(path, settings) as journal:
        journal.add({"a": 1})
        journal.add({"b": [2.5, None]})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"c": 3')
    with ResultsLog(path, settings) as journal:
        assert journal.lines == [{"a": 1}, {"b": [2.5, None]}]
        with pytest.raises(BlockingIOError, match="another process"):
            ResultsLog(path, settings)
        journal.add({"d": 4})
    assert path.read_bytes() == whole + b'{"d": 4}\n'
    with pytest.raises(ValueError, match=r"search .*3.*asked for .*4.*--fresh"):
        ResultsLog(path, {**settings, "search": {"rounds": 4}})
    with ResultsLog(path, {"world": "y"}, fresh=True) as journal:
        assert journal.lines == []
    path.write_text("[1, 2]\n")
    with pytest.raises(ValueError, match="not a results log"):
        ResultsLog(path, settings)


# -- the command -------------------------------------------------------------------------------------------------------


def tiny(out: Path, **changes: Any) -> PlanConfig:
    """TwoRoom planned in the real simulator: everything runs, in a moment."""
    config = PlanConfig(
        "tworoom", goal="random", model="oracle", episodes=3, goal_distance=10, lookahead=10, candidates=16, rounds=2, elites=4,
        video=0, out=out,
    )  # fmt: skip
    return replace(config, **changes)


def attempts(folder: Path) -> list[dict[str, Any]]:
    """What the journal holds, without what is never twice the same."""
    lines = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()[1:]]
    for line in lines:
        if "attempt" in line:
            del line["attempt"]["load"]
            for decision in line["attempt"]["decisions"]:
                del decision["ms"]
    return sorted(lines, key=json.dumps)


def test_interrupted_and_enlarged_runs_equal_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight, _ = plan(tiny(tmp_path / "one", episodes=4))
    add, added = ResultsLog.add, []

    def interrupted(self: ResultsLog, line: dict[str, Any]) -> None:
        if len(added) == 7:
            raise KeyboardInterrupt
        added.append(line)
        add(self, line)

    monkeypatch.setattr(ResultsLog, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plan(tiny(tmp_path / "two", episodes=3))
    monkeypatch.undo()
    assert len(attempts(tmp_path / "two")) == 7
    plan(tiny(tmp_path / "two", episodes=2))
    again, _ = plan(tiny(tmp_path / "two", episodes=4))
    assert attempts(tmp_path / "two") == attempts(tmp_path / "one")
    assert len(attempts(tmp_path / "one")) == 4 * (1 + len(BASELINES))
    timeless = [r for r in straight.rows if not r.key.startswith("ms_")]
    assert [again[r.key] for r in timeless] == timeless
    fewer, _ = plan(tiny(tmp_path / "two", episodes=2))
    assert fewer["planner_success"].n == 2


def test_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    plan(tiny(tmp_path, episodes=1, controls=False))
    before = (tmp_path / "attempts.jsonl").read_bytes()
    for change in ({"seed": 1}, {"goal_distance": 9}, {"rounds": 3}, {"n_action_steps": 2}, {"budget_ms": 50.0}):
        with pytest.raises(ValueError, match="begun with other settings"):
            plan(tiny(tmp_path, episodes=1, controls=False, **change))
    assert (tmp_path / "attempts.jsonl").read_bytes() == before
    report, _ = plan(tiny(tmp_path, episodes=2, controls=False, seed=1, fresh=True))
    assert report["planner_success"].n == 2


def test_the_report_tells_what_the_journal_holds(tmp_path: Path) -> None:
    report, files = plan(tiny(tmp_path, episodes=4, json=tmp_path / "also.json"))
    mine = [a["attempt"] for a in attempts(tmp_path) if a["attempt"]["actor"] == "planner"]
    solved = [a["solved_at"]["agent"] is not None for a in mine]
    assert report["planner_success"].value == np.mean(solved)
    assert (report["planner_success"].low, report["planner_success"].high) == (
        wilson(sum(solved), 4).low, wilson(sum(solved), 4).high,
    )  # fmt: skip
    assert report["replay_success"].value == 1
    assert report["do_nothing_success"].value == 0
    assert report["planner_agent"].value == np.median([a["distances"]["agent"] for a in mine])
    assert report["evaluations"].n == sum(len(a["decisions"]) for a in mine)
    assert report.circumstances["seed"] == 0
    assert files == [tmp_path / "plan.json", tmp_path / "also.json"]
    rows = json.loads((tmp_path / "also.json").read_text())["rows"]
    assert [r["key"] for r in rows] == [r.key for r in report.rows]


def test_plan_on_the_shipped_world_writes_figures_and_a_film(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The command as a user types it, with the smallest search there is."""
    words = (
        "plan pusht --model pusht-video --goal random --episodes 2 --ahead 8 --lookahead 5 --candidates 3 --rounds 1"
        f" --budget-ms 1 --out {tmp_path / 'out'} --json {tmp_path / 'plan.json'} --report --oracle-episodes 1"
    )
    assert cli.main(words.split()) == 0
    said = capsys.readouterr().out
    for file in ("plan.json", "plan.mp4", "plan.png"):
        assert file in said
        assert (tmp_path / "out" / file).is_file()
    rows = {r["key"]: r for r in json.loads((tmp_path / "plan.json").read_text())["rows"]}
    assert rows["planner_success"]["n"] == rows["planner_success_block_and_pusher"]["n"] == 2
    assert rows["oracle_success"]["n"] == rows["regret"]["n"] == 1
    assert rows["ms_p50"]["bar"]["most"] == 100
    steps = [
        a["attempt"]["steps"] for a in attempts(tmp_path / "out") if a.get("attempt", {}).get("actor") == "planner"
    ]
    film = iio.imread(tmp_path / "out" / "plan.mp4", plugin="pyav")
    assert len(film) in [s + HOLD for s in steps]
    assert film.std() > 10
    assert iio.imread(tmp_path / "out" / "plan.png").shape == film.shape[1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world": "puhst"}, "did you mean 'pusht'"),
        ({"model": "nowhere"}, "world 'nowhere'"),
        ({"model": "pusht-video"}, "predicts world 'pusht'.*asked to plan in 'tworoom'"),
        ({"goal": "nowhere.png"}, "expected held-out, random or the path of a PNG, got 'nowhere.png'"),
        ({"lookahead": 3}, "block: expected at most the lookahead of 3"),
        ({"budget_ms": 0.0}, "budget_ms"),
        ({"episodes": 0}, "--episodes: expected 1 or more, got 0"),
        ({"oracle_episodes": 0}, "--oracle-episodes: expected 1 or more"),
        ({"video": -1}, "--video"),
        ({"candidates": 0}, "candidates must be"),
        ({"elites": 17}, "elites are the best of the candidates"),
    ],
)
def test_what_does_not_do_is_named_before_anything_runs(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        plan(tiny(tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def test_every_option_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["plan", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in (f.name.replace("_", "-") for f in fields(PlanConfig)):
        said = re.findall(rf"--{name}(?=[ ,])(?:, --no-{name})?(.*?\(default: .*?\))", text)
        assert any(len(words.split()) > 5 for words in said), name


def test_pairs_come_from_the_held_out_episodes_of_a_store(tmp_path: Path) -> None:
    data = tmp_path / "episodes"
    for _ in collect(CollectConfig("tworoom", out=data, episodes=41, steps=15, size=64, workers=1)):
        pass
    config = tiny(tmp_path / "out", goal="held-out", data=data, episodes=12)
    setup = open_setup(config)
    held = EpisodeStore(data).split(True).tolist()
    assert 1 <= len(held) < 10
    assert {int(setup.pair(i).origin.split()[1]) for i in range(12)} <= set(held)
    assert open_setup(replace(config, seed=1)).pair(0).origin != setup.pair(0).origin
    with pytest.raises(ValueError, match="planning needs"):
        open_setup(replace(config, world="pusht"))
    assert plan(replace(config, episodes=3))[0]["replay_success"].value == 1


def test_results_of_other_held_out_episodes_are_not_mixed_in(tmp_path: Path) -> None:
    """The content of the store decides, not its place; logs of earlier versions, which did not record it, are resumed."""
    data, out = tmp_path / "episodes", tmp_path / "out"

    def collected() -> None:
        shutil.rmtree(data, ignore_errors=True)
        for _ in collect(CollectConfig("tworoom", out=data, episodes=41, steps=15, size=64, workers=1)):
            pass

    collected()
    config = tiny(out, goal="held-out", data=data, episodes=1, controls=False)
    plan(config)
    collected()
    plan(replace(config, episodes=2))
    log = out / "attempts.jsonl"
    before = log.read_text()
    path = min(data.glob("shard-*")) / "states.npy"
    np.save(path, np.load(path)[::-1])
    with pytest.raises(ValueError, match=r"begun with other settings \(data_fingerprint"):
        plan(config)
    assert log.read_text() == before
    first, rest = before.split("\n", 1)
    settings = json.loads(first)["settings"]
    assert settings.pop("data_fingerprint")
    log.write_text(json.dumps({"settings": settings}) + "\n" + rest)
    plan(config)


# -- goals from pictures -----------------------------------------------------------------------------------------------


def test_a_goal_picture_is_read(tmp_path: Path) -> None:
    for goal_task in (PUSHT, TWOROOM):
        oracle = Oracle(goal_task.world)
        goal = goal_task.real_world.draw_state(np.random.default_rng(5), False)
        env = goal_task.make_env(64)
        env.reset(options={"state": goal})
        path = tmp_path / f"{goal_task.world}.png"
        iio.imwrite(path, env.frame(64))
        frame, read = read_goal(path, oracle)
        np.testing.assert_array_equal(frame, env.frame(64))
        assert goal_task.solved(read, goal)
        assert max(goal_task.measure(read, goal).values()) < 2
        pairs = [ImageStartGoals(goal_task, frame, read, path, 0)(i) for i in range(3)]
        assert not any(goal_task.solved(p.start, p.goal) for p in pairs)
        assert len({p.start.tobytes() for p in pairs}) == 3
    report, _ = plan(
        tiny(tmp_path / "out", goal=str(tmp_path / "tworoom.png"), goal_distance=30, lookahead=25, episodes=2)
    )
    assert report["planner_success"].n == 2
    with pytest.raises(KeyError):
        report["replay_success"]


def test_bad_goal_pictures_are_named(tmp_path: Path) -> None:
    env = PUSHT.make_env(64)
    env.reset(seed=0)
    pictures = {
        "size": (env.frame(96), r"expected shape \(\.\.\., 64, 64, 3\)"),
        "grey": (env.frame(64)[..., 0], "expected shape"),
        "other": (env.frame(64), "Is it from another world"),
        "noise": (np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), "Is it from another world"),
    }
    for name, (picture, message) in pictures.items():
        path = tmp_path / f"{name}.png"
        iio.imwrite(path, picture)
        with pytest.raises(ValueError, match=message):
            read_goal(path, Oracle("tworoom"))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="not a picture"):
        read_goal(tmp_path / "text.png", Oracle("tworoom"))
    with pytest.raises(ValueError, match="NaN"):
        goal_image(np.full((64, 64, 3), np.nan))


# -- the gap to the truth ----------------------------------------------------------------------------------------------


class MirrorWorld(Oracle):
    """Predicts that every action does the opposite."""

    def unroll_last(self, state: OracleState, actions: torch.Tensor, rng: Noise) -> OracleState:  # type: ignore[override]
        return super().unroll_last(state, -actions, rng)


def test_the_truth_has_no_gap_to_itself_and_a_mirrored_world_has_one() -> None:
    truth = Oracle("tworoom").eval()
    gaps = {}
    for model in (truth, MirrorWorld("tworoom").eval()):
        found = []
        for i in range(4):
            pair = tworoom_pair(i)
            settings: dict[str, Any] = {
                "solver": CEM(candidates=32, rounds=4, elites=4),
                "config": PlannerConfig(seed=i),
            }
            ours = Planner(World(model), goal_image(pair.frame), **settings)
            found.append(
                oracle_regret(pair, ours, Planner(World(truth), goal_state(truth, pair.goal), **settings), truth)
            )
        gaps[type(model)] = found
    for gap in gaps[Oracle]:
        assert abs(gap.regret) < 10
        assert gap.oracle < gap.begun
        assert all(rank is not None and rank > 0.99 for rank in gap.ranks.values())
    assert np.mean([g.regret for g in gaps[MirrorWorld]]) > 50
    assert np.mean([g.ranks["10"] for g in gaps[MirrorWorld]]) < 0
    assert type(gap).from_dict(json.loads(json.dumps(gap.to_dict()))) == gap


def test_candidates_that_do_not_differ_in_truth_do_not_count() -> None:
    """The goal is so far away that where candidates end makes no difference worth ranking."""
    truth = Oracle("tworoom").eval()
    pair = replace(tworoom_pair(), start=np.array([60.0, 60.0]))
    env = TWOROOM.make_env(64)
    env.reset(options={"state": [460.0, 460.0]})
    pair = replace(pair, goal=env.state(), frame=env.frame(64))
    weak = replace(CEM(candidates=16, rounds=1, elites=4), sigma0=0.01)
    planner = Planner(World(truth), goal_image(pair.frame), weak)
    gap = oracle_regret(pair, planner, Planner(World(truth), goal_state(truth, pair.goal), weak), truth)
    assert gap.ranks["10"] is None


def test_goal_distance_is_in_units() -> None:
    oracle = Oracle("tworoom")
    assert goal_distance(oracle, oracle.at([100, 100]), np.array([130, 140])) == pytest.approx(50, rel=1e-5)
    oracle = Oracle("pusht")
    state = random_state(np.random.default_rng(0))
    assert goal_distance(oracle, oracle.at(state), state) == 0
    off = state + np.array([0, 0, 30, 40, 0])
    assert goal_distance(oracle, oracle.at(off), state) == pytest.approx(50 * np.sqrt(3 / 4), rel=1e-5)


def test_solver_efficiency_compares_with_the_fields_solver(tmp_path: Path) -> None:
    truth, pair = Oracle("tworoom").eval(), tworoom_pair(1)
    made: list[Any] = []

    def make(search: Any) -> Planner:
        made.append(search)
        return Planner(World(truth), goal_state(truth, pair.goal), search, PlannerConfig(lookahead=10))

    efficiency = solver_efficiency(pair, make, TINY, truth)
    assert made == [TINY, FIELD]
    assert efficiency.field_evaluations == 9000
    assert efficiency.evaluations < 40
    assert 0 <= efficiency.field_cost <= efficiency.cost < efficiency.rest_cost
    assert type(efficiency).from_dict(json.loads(json.dumps(efficiency.to_dict()))) == efficiency


# -- the video ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("goal_task", [PUSHT, TWOROOM], ids=("pusht", "tworoom"))
def test_the_paths_shown_are_those_the_plans_lead_along(goal_task: GoalTask) -> None:
    oracle = Oracle(goal_task.world).eval()
    pair = RandomStartGoals(goal_task, 64, 10, 0)(0)
    recorder = PlanRecorder()
    planner = Planner(
        World(oracle),
        goal_state(oracle, pair.goal),
        TINY,
        PlannerConfig(lookahead=10),
        on_iteration=recorder.on_iteration,
    )
    env = goal_task.make_env(64)
    env.reset(options={"state": pair.start})
    _, memory = OraclePolicy(planner, env).predict(None)
    plan = memory[0].plan
    assert plan is not None
    candidates = recorder.candidates(plan)
    imagined = imagine_paths(oracle, oracle, oracle.at(env.state()), candidates)
    assert imagined.paths.shape == (1 + 4 + N_FIRST, 11, 2)
    assert torch.equal(candidates[0], plan.actions)
    for step, action in enumerate(plan.actions.numpy()):
        np.testing.assert_array_equal(imagined.paths[0, step], env.state()[:2])
        env.step(action)
    np.testing.assert_array_equal(imagined.end, env.state())
    assert np.abs(imagined.frame.astype(int) - env.frame(64)).mean() < 0.1  # drawn in whole pixels, so last bits show

    scene = PlanScene(env.frame(PANEL), pair.frame, pair.goal, imagined, True, ("a", "b", "c", "d"))
    picture = PlanPainter(goal_task).draw(scene)
    assert picture.dtype == np.uint8
    assert not any(side % 2 for side in picture.shape[:2])
    assert (np.abs(picture.astype(int) - GOAL).sum(2) < 30).sum() > 50


# -- experts -----------------------------------------------------------------------------------------------------------


def test_the_expert_brings_the_block_to_its_goal_and_then_stands_still() -> None:
    env = PushTRealEnv(size=8, observation="state")
    for seed in (4, 9):
        observation, _ = env.reset(options={"state": random_state(np.random.default_rng(seed))})
        expert, memory, done, steps = PushTExpert(seed), None, False, 0
        while not done and steps < 150:
            action, memory = expert.predict(observation, memory)
            assert env.action_space.contains(action)
            observation, _, done, *_ = env.step(action)
            steps += 1
        assert done
        action, _ = expert.predict(env.state())
        assert not action.any()


def test_the_expert_takes_other_goals_and_the_same_seed_does_the_same() -> None:
    goal = (GOAL_POSE[0] + 60, GOAL_POSE[1] - 40, GOAL_POSE[2] + 1.0)
    start = np.array([80.0, 400.0, *GOAL_POSE])

    def end(seed: int) -> tuple[np.ndarray, float]:
        env, expert, memory = PushTRealEnv(size=8, observation="state"), PushTExpert(seed, goal), None
        env.reset(options={"state": start})
        for _ in range(90):
            action, memory = expert.predict(env.state(), memory)
            env.step(action)
        return env.state(), float(expert.distance(env.state()[None])[0])

    (one, off), (again, _) = end(1), end(1)
    assert off < 5
    np.testing.assert_array_equal(one, again)


def test_demonstrations_are_collected_with_their_provenance(tmp_path: Path) -> None:
    config = CollectConfig(
        "pusht", out=tmp_path, episodes=2, steps=90, size=8, workers=1, policy="oracle", near_goal=1.0
    )
    for _ in collect(config):
        pass
    store = EpisodeStore(tmp_path)
    assert [store.provenance(i)["policy"] for i in range(2)] == ["oracle-near-goal"] * 2
    for episode in store:
        first = int(episode.terminated.argmax())
        assert episode.terminated.any()
        assert not episode.actions[first + 2 :].any()
    with pytest.raises(ValueError, match="policy oracle-near-goal, asked for explorer-near-goal"):
        list(collect(replace(config, policy="explorer")))
    with pytest.raises(ValueError, match="world 'tworoom' has no expert"):
        CollectConfig("tworoom", policy="oracle")


def test_unknown_worlds_have_no_goal_task() -> None:
    with pytest.raises(ValueError, match=r"no real world 'maze' to plan in; there are pusht, tworoom"):
        goal_task_of("maze")


def test_a_setup_makes_each_pair_once(tmp_path: Path) -> None:
    setup = open_setup(tiny(tmp_path))
    assert setup.pair(2) is setup.pair(2)
    assert setup.pair(2).index == 2
