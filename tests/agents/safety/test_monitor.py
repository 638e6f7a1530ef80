"""Check before you act: limits hold whatever comes in, a chunk with a bad future is refused, faults are noticed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as some
import numpy as np
import pytest
import torch
from hypothesis import given

from neuralsim.agents.heads.chunk_policy import ObservationHistory
from neuralsim.agents.safety import evaluate
from neuralsim.agents.safety.anomaly_detector import AnomalyDetector, AnomalyScores, NormalizedDistance, ObservedChunks
from neuralsim.agents.safety.calibration import ChunkIndex, calibrate, observe_chunks
from neuralsim.agents.safety.evaluate import SafetyConfig, inject, measure_safety
from neuralsim.agents.safety.fault_injection import Fault, push_block, pusht_faults
from neuralsim.agents.safety.limits import Limits, keep_limits, pusht_limits
from neuralsim.agents.safety.monitor import Rule, SafetyMonitor
from neuralsim.agents.safety.transition_classifier import CLIP, TransitionClassifier, Transitions
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.pusht.env import PushTRealEnv, block_inside, pusht_spec
from neuralsim.models.video_wam import VideoWAM
from neuralsim.pretrained.world import World, open_world
from neuralsim.spec import WorldSpec
from neuralsim.state_view import View
from neuralsim.storage.manifest import seal

SPEC = pusht_spec()
STEP = SPEC.action_scale[0]
anything = some.floats(allow_nan=True, allow_infinity=True, width=32)
actions = some.lists(some.tuples(anything, anything), min_size=1, max_size=40)


def pusher(x: float, y: float) -> dict[str, float]:
    return {"pusher_x": x, "pusher_y": y}


# -- limits ------------------------------------------------------------------------------------------------------------


@given(
    actions,
    some.floats(16, 496),
    some.floats(16, 496),
    some.floats(5, 300),
    some.floats(0.05, 1),
    some.floats(0.02, 2),
)
def test_whatever_comes_in_what_goes_out_keeps_all_limits(
    asked: list[tuple[float, float]], x: float, y: float, speed: float, share: float, change: float
) -> None:
    limits = replace(pusht_limits(), speed=(speed, speed), share=share, change=change)
    place, before = np.array([x, y]), np.zeros(2, np.float32)
    for action in asked:
        sent = keep_limits(SPEC, limits, np.array(action, np.float32), before, pusher(*place))
        assert sent.dtype == np.float32
        assert np.abs(sent).max() <= share + 1e-6
        assert np.abs(sent * STEP).max() * SPEC.rate_hz <= speed * (1 + 1e-6)
        assert np.abs(sent - before).max() <= change + 1e-4
        place = place + sent.astype(np.float64) * STEP
        assert (place >= 16 - 1e-3).all()
        assert (place <= 496 + 1e-3).all()
        before = sent


@given(some.floats(-1, 1), some.floats(-1, 1))
def test_what_keeps_the_limits_goes_through_unchanged(right: float, down: float) -> None:
    asked = np.array([right, down], np.float32)
    assert np.array_equal(keep_limits(SPEC, pusht_limits(), asked, None, pusher(256, 256)), asked)


def test_the_nearest_action_is_sent_dimension_by_dimension() -> None:
    sent = keep_limits(SPEC, pusht_limits(), np.array([1.0, -0.5]), None, pusher(484, 256))
    assert sent == pytest.approx([12 / STEP, -0.5])


@pytest.mark.parametrize("asked", [[np.nan, 0.3], [np.inf, 0], [0.3], "left", None, [[1, 2, 3]]])
def test_what_is_no_action_becomes_rest(asked: object) -> None:
    assert np.array_equal(keep_limits(SPEC, pusht_limits(), asked, None, pusher(256, 256)), [0, 0])
    braking = replace(pusht_limits(), change=0.25)
    assert keep_limits(SPEC, braking, asked, np.array([1, 0]), pusher(256, 256)) == pytest.approx([0.75, 0])


def test_a_robot_outside_may_come_back_and_never_goes_further() -> None:
    unknown = ((x, asked, 0) for x in (np.nan, np.inf, -np.inf) for asked in (1, -1))
    for x, asked, expected in ((510, 1, 0), (510, -1, -1), (3, -1, 0), *unknown):
        assert keep_limits(SPEC, pusht_limits(), np.array([asked, 0]), None, pusher(x, 256))[0] == expected


def test_a_robot_that_does_not_tell_where_it_is_is_not_moved() -> None:
    for place in (None, {}, {"pusher_x": 1.0}):
        with pytest.raises(ValueError, match=r"pusher_[xy]"):
            keep_limits(SPEC, pusht_limits(), np.zeros(2), None, place)


@pytest.mark.parametrize("x", [np.nan, np.inf, -np.inf])
def test_a_monitor_names_the_limited_reading_of_a_robot_at_an_unknown_place(compact: World, x: float) -> None:
    monitor = SafetyMonitor(compact, pusht_limits())
    with pytest.raises(ValueError, match=rf"'pusher_x' is limited, but the robot reports it as {x}"):
        monitor.limit(np.zeros(2, np.float32), None, pusher(x, 256))
    assert SafetyMonitor(compact, Limits()).limit(np.ones(2, np.float32), None, pusher(x, 256)).tolist() == [1, 1]


def test_choices_pass_if_they_are_any_and_become_rest_if_not() -> None:
    spec = WorldSpec("keys", 64, 64, ("key",), ("choice",), (1.0,), 10.0, 1, action_choices=(4,))
    assert keep_limits(spec, Limits(), np.array([3]), None, None) == [3]
    assert keep_limits(spec, Limits(), np.array([4]), None, None) == [0]
    with pytest.raises(ValueError, match="choices"):
        Limits(speed=(1.0,)).check(spec)


@pytest.mark.parametrize(
    "wrong",
    [
        {"position": {"x": (2, 1)}},
        {"moves": {"x": "right"}},
        {"share": 0},
        {"change": 0},
        {"speed": (0.0, 1.0)},
        {"region": {"x": (np.nan, 1)}},
    ],
)
def test_limits_that_cannot_be_meant_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="limits"):
        Limits(**wrong)


# -- imagining ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compact() -> World:
    return open_world("pusht-latent", "cpu")


@pytest.fixture(scope="module")
def begin() -> ObservationHistory:
    """The pusher at (100, 256), the block far to the right."""
    env = PushTRealEnv()
    frame, _ = env.reset(options={"state": [100, 256, 380, 200, 0]})
    env.close()
    return ObservationHistory.first(frame[None], pusht_spec(context=1))


RIGHT = np.tile(np.array([[0.5, 0.0]], np.float32), (8, 1))


def test_a_chunk_that_leaves_the_allowed_region_is_refused_and_told_where(
    compact: World, begin: ObservationHistory
) -> None:
    monitor = SafetyMonitor(compact, replace(pusht_limits(), region={"pusher_x": (40, 150)}))
    verdict = monitor.imagine(begin, RIGHT).verdict
    assert not verdict.allowed
    assert "pusher_x" in verdict.reasons[0]
    assert "after 5 actions" in verdict.reasons[0] or "after 4 actions" in verdict.reasons[0]
    assert monitor.imagine(begin, -RIGHT / 5).verdict.allowed


def test_a_chunk_that_breaks_a_rule_is_refused_by_the_rules_name(compact: World, begin: ObservationHistory) -> None:
    def stays_left(view: View) -> torch.Tensor:
        return view.world_state[:, 0] < 150

    monitor = SafetyMonitor(compact, Limits(), (stays_left, Rule("always", lambda view: [True] * len(view))))
    refused = monitor.imagine(begin, RIGHT).verdict
    assert not refused.allowed
    assert len(refused.reasons) == 1
    assert "stays_left" in refused.reasons[0]
    assert monitor.imagine(begin, -RIGHT / 5).verdict.allowed


def test_a_rule_that_answers_nonsense_is_named(compact: World, begin: ObservationHistory) -> None:
    monitor = SafetyMonitor(compact, Limits(), (Rule("odd", lambda view: True),))
    with pytest.raises(ValueError, match="'odd'"):
        monitor.imagine(begin, RIGHT)


def test_a_chunk_whose_end_the_model_does_not_know_is_refused(compact: World, begin: ObservationHistory) -> None:
    assert SafetyMonitor(compact, Limits()).imagine(begin, RIGHT).verdict.allowed
    noise = np.random.default_rng(0).integers(0, 256, begin.frames.shape).astype(np.uint8)
    verdict = SafetyMonitor(compact, Limits()).imagine(ObservationHistory(noise, begin.actions), RIGHT).verdict
    assert not verdict.allowed
    assert "does not know" in verdict.reasons[0]


def test_what_is_imagined_is_what_the_limits_let_through(compact: World, begin: ObservationHistory) -> None:
    slow = SafetyMonitor(compact, Limits(share=0.25, change=0.1))
    sent = slow.imagine(begin, 2 * RIGHT).actions
    assert np.allclose(sent[:, 0], [0.1, 0.2, *[0.25] * 6])


def test_states_that_the_model_does_not_tell_cannot_be_limited(compact: World) -> None:
    with pytest.raises(ValueError, match="elbow"):
        SafetyMonitor(compact, Limits(region={"elbow": (0, 1)}))


def test_a_video_world_watches_too(tiny_model: VideoWAM) -> None:
    env = PushTRealEnv()
    seen = ObservationHistory.first(env.reset(seed=1)[0][None], tiny_model.spec)
    monitor = SafetyMonitor(World(tiny_model), pusht_limits())
    imagined = monitor.imagine(seen, RIGHT)
    assert imagined.rollout.features.shape == (1, 9, tiny_model.feature_size)
    for step in range(1, 4):
        seen = seen.then(RIGHT[:1], env.step(RIGHT[0])[0][None], tiny_model.spec.context)
        assert monitor.compare(imagined, step, seen).allowed
    frozen = seen.then(RIGHT[:1], seen.frames[:, -1], tiny_model.spec.context)
    assert monitor.compare(imagined, 4, frozen).reasons or np.ptp(imagined.rollout.features[0, 3:5], 0).max() <= 1
    env.close()


# -- comparing ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def usual() -> AnomalyDetector:
    """Thresholds of residuals that are standard normals times the step."""
    rng = np.random.default_rng(0)
    n, k, d = 2000, 8, 4
    nothing = np.zeros((n, k + 1, d))
    seen = nothing + rng.normal(size=(n, k + 1, d)) * np.arange(k + 1)[:, None] * 0.1
    return AnomalyDetector.fit(observed(seen))


def observed(seen: np.ndarray) -> ObservedChunks:
    """Chunks ``(n, k + 1, d)`` in which nothing was imagined to happen, with the same uncertainty everywhere."""
    flat = np.ones(seen.shape[:2])
    return ObservedChunks(seen, 0 * seen, flat, 0 * flat, np.zeros((len(seen), seen.shape[1] - 1), bool))


def found(usual: AnomalyDetector, seen: np.ndarray) -> dict[str, np.ndarray]:
    scores = usual.scores(observed(seen[None]))
    return {n: (getattr(scores, n) > usual.limit(n))[0] for n in AnomalyScores.NAMES}


def test_slow_growth_is_noticed_in_two_frames_in_a_row_and_not_in_one(usual: AnomalyDetector) -> None:
    drift = np.linspace(0, 1, 9)[:, None] * np.full(4, 8.0)
    told = found(usual, drift)["drift"]
    assert not told[0]
    assert told[1:].any()
    once = np.zeros((9, 4))
    once[5] = 3.0
    assert not found(usual, once)["drift"].any()


def test_a_jump_is_noticed_at_once(usual: AnomalyDetector) -> None:
    jump = np.zeros((9, 4))
    jump[4:] = 6.0
    assert np.flatnonzero(found(usual, jump)["jump"])[0] == 3


def test_calibration_lets_through_all_but_the_share_asked_for(usual: AnomalyDetector) -> None:
    rng = np.random.default_rng(1)
    seen = rng.normal(size=(4000, 9, 4)) * np.arange(9)[:, None] * 0.1
    assert 0.0002 < usual.exceeded(usual.scores(observed(seen))).any(1).mean() < 0.01


def test_more_uncertainty_allows_more() -> None:
    rng = np.random.default_rng(2)
    uncertainty = rng.uniform(0.5, 2, (3000, 3))
    distance = NormalizedDistance.fit(rng.normal(size=(3000, 3, 2)) * uncertainty[..., None], uncertainty)
    residual = np.ones((1, 3, 2))
    steps = np.arange(1, 4)
    sure, unsure = (distance.distance(residual, np.full((1, 3), u), steps) for u in (0.6, 1.9))
    assert (sure > 2 * unsure).all()


# -- the classifier ----------------------------------------------------------------------------------------------------


def some_steps(n: int, seed: int) -> Transitions:
    """An arm that goes where it is told, and a box that lies still where the first feature is below 0 and hops about elsewhere; beside
    both the angle of a lid, which turns at will."""
    rng = np.random.default_rng(seed)
    before = rng.normal(size=(n, 2))
    actions = rng.uniform(-1, 1, (n, 1))
    was = np.stack([*rng.uniform(0, 100, (2, n)), rng.uniform(-3.1, 3.1, n)], 1)
    would = was + np.concatenate([10 * actions, np.zeros((n, 2))], 1)
    hops = np.where(before[:, 0] < 0, 0.3, 20.0) * rng.normal(size=n)
    seen = would + np.stack([0.3 * rng.normal(size=n), hops, rng.normal(size=n)], 1)
    seen[:, 2] = (seen[:, 2] + np.pi) % (2 * np.pi) - np.pi
    return Transitions(before, before + 0.1, actions, was, would, seen, np.full(n, 0.1), np.zeros(n, bool))


@pytest.fixture(scope="module")
def classifier() -> TransitionClassifier:
    return TransitionClassifier.fit(("arm_x", "box_x", "lid_angle"), some_steps(4000, 0))


def test_what_is_glaring_where_nothing_moves_is_usual_where_things_hop(classifier: TransitionClassifier) -> None:
    steps = some_steps(2000, 1)
    assert classifier.faults == ("arm", "box", "lid", "all")
    still = steps.features[:, 0] < -0.2
    hopping = steps.features[:, 0] > 0.2
    pushed = replace(steps, next_states=steps.next_states + np.array([0, 8.0, 0]))
    assert np.median(classifier.odds(pushed)[still, 1]) > 2
    assert np.median(classifier.odds(pushed)[hopping, 1]) < 1
    assert np.quantile(classifier.odds(steps)[still, 1], 0.95) < -1
    astray = replace(steps, next_states=steps.next_states + np.array([8.0, 0, 0]))
    assert np.median(classifier.odds(astray)[:, 0]) > 2
    assert np.quantile(classifier.odds(steps)[:, 0], 0.95) < -1


def test_that_nothing_moved_is_told_where_something_should_have(classifier: TransitionClassifier) -> None:
    steps = some_steps(2000, 2)
    frozen = classifier.odds(replace(steps, next_states=steps.states, unchanged=~steps.unchanged))[:, 3]
    assert np.median(frozen[np.abs(steps.actions[:, 0]) > 0.5]) > 2
    assert np.median(classifier.odds(steps)[:, 3]) < -2


def test_a_small_fault_that_stays_adds_up_and_one_outlier_does_not(classifier: TransitionClassifier) -> None:
    steps = some_steps(1200, 3)
    small = replace(steps, next_states=steps.next_states + np.array([4.0, 0, 0])).map(
        lambda x: x.reshape(200, 6, *x.shape[1:])
    )
    sums = classifier.sums(small)
    assert sums.shape == (200, 6, 2, 4)
    assert np.median(sums[:, 2, 1, 0]) > np.median(sums[:, 0, 1, 0])
    first = steps.map(lambda x: x.reshape(200, 6, *x.shape[1:]))
    wild = first.next_states.copy()
    wild[:, 3, 0] += 1000
    assert (classifier.sums(replace(first, next_states=wild))[:, 3, 1, 0] <= CLIP[1]).mean() > 0.9


@pytest.fixture(scope="module")
def watching(compact: World, store: Path) -> tuple[SafetyMonitor, ChunkIndex]:
    """A monitor calibrated on some episodes, and chunks of others."""
    episodes = EpisodeStore(store)
    parts = [[(0, i, b) for i in r for b in (2, 6, 11, 15, 19, 22)] for r in (range(28), range(28, 36))]
    rest = np.array([(0, i, b) for i in range(36, 44) for b in range(2, 14, 2)])
    monitor = SafetyMonitor(compact, pusht_limits(), detector=None)
    learn, judge = (ChunkIndex([episodes], np.array(part)) for part in parts)
    detector = calibrate(monitor, learn, judge, 8, lambda n: None)
    return replace(monitor, detector=detector), ChunkIndex([episodes], rest)


def test_frame_by_frame_and_in_batches_the_answers_are_the_same(watching: tuple[SafetyMonitor, ChunkIndex]) -> None:
    monitor, chunks = watching
    scene = chunks.scene(5, 0, 8)
    frames = scene.frames.copy()
    frames[4:] = frames[4:, :, ::-1]  # mirrored
    frames[7] = frames[6]
    detector = monitor.detector
    assert detector is not None
    expected = detector.exceeded(detector.scores(observe_chunks(monitor, frames[None], scene.actions[None], 8)))[0]
    imagined = monitor.imagine(ObservationHistory.first(frames[:1], pusht_spec()), scene.actions)
    seen = ObservationHistory.first(frames[:1], pusht_spec())
    told = []
    for step in range(1, 9):
        seen = seen.then(scene.actions[step - 1 : step], frames[step : step + 1], 4)
        told.append(not monitor.compare(imagined, step, seen).allowed)
    assert told == expected.tolist()
    assert told[3]


def test_a_frame_without_the_one_before_is_held_against_the_dream_too(
    watching: tuple[SafetyMonitor, ChunkIndex],
) -> None:
    monitor, chunks = watching
    scene = chunks.scene(3, 0, 8)
    imagined = monitor.imagine(ObservationHistory.first(scene.frames[:1], pusht_spec()), scene.actions)
    assert monitor.compare(imagined, 3, ObservationHistory.first(scene.frames[3:4], pusht_spec())).allowed
    mirrored = np.ascontiguousarray(scene.frames[3:4, :, ::-1])
    assert not monitor.compare(imagined, 3, ObservationHistory.first(mirrored, pusht_spec())).allowed
    with pytest.raises(ValueError, match="0 to 8"):
        monitor.compare(imagined, 9, ObservationHistory.first(mirrored, pusht_spec()))


def test_faults_that_nobody_could_miss_are_noticed_in_nearly_every_chunk(
    watching: tuple[SafetyMonitor, ChunkIndex],
) -> None:
    monitor, chunks = watching
    other = np.zeros((1, 64, 64, 3), np.uint8)
    for fault in pusht_faults(other, other):
        if fault.name in ("pushed-40", "mirrored", "other-world"):
            caught = inject(monitor, fault, chunks, SafetyConfig(chunks=12), lambda n: None)
            assert caught.within(8).value >= 0.9, fault.name


# -- faults ------------------------------------------------------------------------------------------------------------


@given(some.integers(0, 1000))
def test_a_pushed_block_moves_so_far_and_stays_inside(seed: int) -> None:
    state = np.array([100.0, 100, 300, 250, 0.4])
    moved = push_block(state, 20, np.random.default_rng(seed))
    assert np.linalg.norm(moved[2:4] - state[2:4]) == pytest.approx(20)
    assert block_inside(moved[2:])
    assert np.array_equal(moved[[0, 1, 4]], state[[0, 1, 4]])


def test_shifted_actions_leave_what_was_before_and_move_the_pusher_elsewhere(
    watching: tuple[SafetyMonitor, ChunkIndex],
) -> None:
    _, chunks = watching
    scene = chunks.scene(0, 0, 8)
    env = PushTRealEnv()
    faults = {f.name: f for f in pusht_faults(scene.frames, scene.frames)}
    still = faults["frozen"].happen(scene, 3, np.random.default_rng(0), env)
    assert len(still) == 6
    assert (still == scene.frames[2]).all()
    wrong = faults["negated"].happen(scene, 3, np.random.default_rng(0), env)
    assert wrong.shape == scene.frames[3:].shape
    assert (wrong != scene.frames[3:]).any()
    env.close()


# -- the calibration's file --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(compact: World, tmp_path: Path) -> Path:
    assert compact.folder is not None
    shutil.copytree(compact.folder, tmp_path / "world")
    (tmp_path / "world" / "safety.json").unlink(missing_ok=True)
    seal(tmp_path / "world")
    return tmp_path / "world"


def test_a_calibration_comes_back_from_its_folder_and_only_for_its_weights(
    watching: tuple[SafetyMonitor, ChunkIndex], folder: Path
) -> None:
    detector = watching[0].detector
    assert detector is not None
    assert SafetyMonitor(open_world(folder, "cpu"), Limits()).detector is None
    detector.save(folder)
    back = SafetyMonitor(open_world(folder, "cpu"), Limits()).detector
    assert back is not None
    assert back.drift.whiten == pytest.approx(detector.drift.whiten, rel=1e-5)
    assert back.limit("jump") == pytest.approx(detector.limit("jump"), rel=1e-5)
    assert back.classifier is not None
    assert detector.classifier is not None
    assert back.classifier.faults == ("pusher", "block", "all")
    assert back.classifier.limits == pytest.approx(detector.classifier.limits, rel=1e-5)
    for (weight, bias), (read_weight, read_bias) in zip(
        detector.classifier.layers, back.classifier.layers, strict=True
    ):
        assert np.array_equal(read_weight, weight)
        assert np.array_equal(read_bias, bias)
    body = json.loads((folder / "safety.json").read_text())
    (folder / "safety.json").write_text(json.dumps(body | {"weights": "0" * 64}))
    assert AnomalyDetector.load(folder, 24) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda body: body | {"strange": float("nan")},
        lambda body: body | {"jumped": body["jumped"] | {"whiten": [[1.0]]}},
        lambda body: body | {"grown": body["grown"] | {"usual": [0.0]}},
        lambda body: {k: v for k, v in body.items() if k != "still"},
        lambda body: body | {"grown": 3},
        lambda body: body | {"witness": 3},
        lambda body: body | {"witness": body["witness"] | {"layers": body["witness"]["layers"][:1]}},
        lambda body: body | {"witness": body["witness"] | {"limits": [[float("nan")] * 3] * 2}},
        lambda body: body | {"witness": body["witness"] | {"scale": [0.0] * len(body["witness"]["scale"])}},
    ],
)
def test_a_damaged_calibration_is_refused_by_name(
    watching: tuple[SafetyMonitor, ChunkIndex], folder: Path, damage: object
) -> None:
    detector = watching[0].detector
    assert detector is not None
    path = detector.save(folder)
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"safety\.json"):
        AnomalyDetector.load(folder, 24)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_trial_tells_a_row_for_every_fault_and_keeps_its_thresholds_where_asked(
    folder: Path, store: Path, tmp_path: Path
) -> None:
    config = SafetyConfig(model=str(folder), chunks=3, data=store, out=tmp_path / "out", calibrate=True)
    report, files = measure_safety(config)
    assert {f.name for f in files} == {"safety.json", "safety.png"}
    assert AnomalyDetector.load(open_world(folder, "cpu").folder or folder, 24) is not None  # its manifest fits
    for name in ("pushed-20", "mirrored", "offset", "frozen"):
        assert report[f"caught-{name}"].n is not None
    assert report["false-alarms"].n == 12
    again, _ = measure_safety(replace(config, calibrate=False))
    assert again["caught"].value == report["caught"].value
    assert report["caught-in-chunk"].value <= report["caught"].value
    assert again.circumstances["calibrated"] == "before"


def test_a_trial_that_was_stopped_goes_on_where_it_stopped(
    folder: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SafetyConfig(model=str(folder), chunks=2, data=store, out=tmp_path / "out", calibrate=True)
    whole, tried = evaluate.inject, []

    def stops(monitor: SafetyMonitor, fault: Fault, *rest: object) -> object:
        tried.append(fault.name)
        if len(tried) == 4:
            raise KeyboardInterrupt
        return whole(monitor, fault, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate, "inject", stops)
    with pytest.raises(KeyboardInterrupt):
        measure_safety(config)
    before = (folder / "safety.json").stat().st_mtime_ns
    report, _ = measure_safety(config)
    assert len(tried) == len(set(tried)) + 1 == 12
    assert (folder / "safety.json").stat().st_mtime_ns == before
    assert not list(config.out.glob("*.jsonl"))
    again, _ = measure_safety(replace(config, calibrate=False))
    assert [row.value for row in again.rows if row.n] == [row.value for row in report.rows if row.n]


def test_a_world_without_known_faults_is_refused() -> None:
    with pytest.raises(ValueError, match="tworoom"):
        SafetyConfig(world="tworoom")
