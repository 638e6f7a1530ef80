"""Measuring any world: a world that replays the truth is perfect, each falseness is seen, whatever the frames' shape, the actions' kind
and the episodes' lengths; with metrics of CarRacing, and with none for an unknown world."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from neuralsim import cli
from neuralsim.agents import bench
from neuralsim.agents.collection.collect import CollectConfig, collect_episode
from neuralsim.agents.evaluation.world import MeasureConfig, measure_world
from neuralsim.data.episode import Episode
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.carracing.env import STATE_NAMES, car_racing_spec
from neuralsim.envs.carracing.metrics import CarRacingMetrics
from neuralsim.envs.carracing.state_estimator import CarRacingStateEstimator
from neuralsim.envs.registry import find_frame_policies, find_metrics
from neuralsim.evaluation.config import EvalConfig
from neuralsim.evaluation.evaluate import evaluate_world_model
from neuralsim.evaluation.long_horizon import LongHorizonConfig, evaluate_long_horizon, played_keys
from neuralsim.evaluation.report import Metric, Target
from neuralsim.models.video_wam import CodecConfig, StreamConfig, VideoWAM
from neuralsim.noise import Noise
from neuralsim.pretrained.starts import Starts
from neuralsim.pretrained.world import World
from neuralsim.spec import WorldSpec
from neuralsim.world_model import State, WorldModel

CHOICES = WorldSpec("belt", 16, 24, ("way",), ("choice",), (1.0,), 10.0, 2, action_choices=(3,))
"""A stranger's world: a square on a belt, not square frames, one of three choices."""


@dataclass(frozen=True)
class TapeState(State):
    """Where on the tape each dream is ``(b,)``, and how often it was misled ``(b,)``."""

    at: torch.Tensor
    misled: torch.Tensor


class Tape(WorldModel):
    """Replays the episodes of a store by heart: a perfect world as long as it is given their actions; others hold it up."""

    head_names: ClassVar[tuple[str, ...]] = ("reward", "terminated")

    def __init__(self, store: EpisodeStore) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.spec = store.spec
        episodes = list(store)
        self.frames = np.concatenate([e.frames for e in episodes])
        pad = [(e.actions[:1] * 0, e.rewards[:1] * 0, e.terminated[:1] & False) for e in episodes]
        self.actions, self.rewards, self.ended = (
            np.concatenate([x for e, p in zip(episodes, pad, strict=True) for x in (getattr(e, name), p[i])])
            for i, name in enumerate(("actions", "rewards", "terminated"))
        )
        self.states = np.concatenate([e.states for e in episodes])
        self.book = {frame.tobytes(): i for i, frame in enumerate(self.frames)}

    @property
    def feature_size(self) -> int:
        return 1

    def encode(self, frames: torch.Tensor, actions: torch.Tensor) -> TapeState:
        at = torch.tensor([self.book.get(frame.cpu().numpy().tobytes(), 0) for frame in frames[:, -1]])
        return TapeState(at, torch.zeros(len(at)))

    def step(self, state: TapeState, action: torch.Tensor, rng: Noise) -> TapeState:  # type: ignore[override]
        right = torch.tensor((self.actions[state.at] == action.numpy()).all(-1))
        at = torch.where(right, state.at + 1, state.at).clamp(max=len(self.frames) - 1)
        return TapeState(at, state.misled + ~right)

    def features(self, state: TapeState) -> torch.Tensor:  # type: ignore[override]
        return state.at[:, None].float()

    def decode(self, state: TapeState) -> torch.Tensor:  # type: ignore[override]
        return torch.from_numpy(self.frames[state.at])

    def uncertainty(self, state: TapeState) -> torch.Tensor:  # type: ignore[override]
        return state.misled

    def read(self, state: TapeState) -> dict[str, torch.Tensor]:  # type: ignore[override]
        before = state.at - 1
        return {"reward": torch.tensor(self.rewards[before]), "terminated": torch.tensor(self.ended[before]).float()}

    def read_state(self, state: TapeState) -> torch.Tensor:  # type: ignore[override]
        return torch.tensor(self.states[state.at])


class DeafTape(Tape):
    """Goes on, whatever is done."""

    def step(self, state: TapeState, action: torch.Tensor, rng: Noise) -> TapeState:  # type: ignore[override]
        return replace(state, at=(state.at + 1).clamp(max=len(self.frames) - 1))


class StillTape(Tape):
    """Copy-last-frame as a model."""

    def step(self, state: TapeState, action: torch.Tensor, rng: Noise) -> TapeState:  # type: ignore[override]
        return state


class FadingTape(DeafTape):
    """After some steps its frames turn to noise."""

    def step(self, state: TapeState, action: torch.Tensor, rng: Noise) -> TapeState:  # type: ignore[override]
        return replace(super().step(state, action, rng), misled=state.misled + 1)

    def decode(self, state: TapeState) -> torch.Tensor:  # type: ignore[override]
        noise = np.random.default_rng(0).integers(0, 256, (len(state), *self.spec.frame_shape), np.uint8)
        return torch.where(state.misled[:, None, None, None] > 5, torch.from_numpy(noise), super().decode(state))

    def features(self, state: TapeState) -> torch.Tensor:  # type: ignore[override]
        return super().features(state) / 0


def belt(seed: int, steps: int) -> Episode:
    """A square goes left, stays or goes right; the episode ends where it meets an end of the belt."""
    rng = np.random.default_rng(seed)
    actions = np.repeat(rng.integers(0, 3, (steps // 3 + 1, 1)), 3, 0)[:steps]
    place, frames, states, ended = 12, [], [], []
    for i in range(steps + 1):
        frame = np.full((16, 24, 3), 30, np.uint8)
        frame[5:11, max(0, place - 3) : place + 3] = 220
        frame[0, :, 0] = (seed, *divmod(i, 200), *([7] * 21))  # no two frames are equal
        frames.append(frame)
        states.append((place, np.cos(place)))
        if i < steps:
            place = int(np.clip(place + actions[i, 0] - 1, 3, 21))
            ended.append(place in (3, 21))
    last = ended.index(True) + 1 if True in ended else steps
    rewards = np.array([s[0] for s in states[1:]], np.float32)
    return Episode(
        np.stack(frames)[: last + 1],
        actions[:last],
        rewards[:last],
        np.array(ended)[:last],
        np.arange(last) == steps - 1,
        np.array(states, np.float32)[: last + 1],
        {"seed": 20 * seed},
    )


@pytest.fixture(scope="module")
def belts(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """Thirty held-out episodes of all lengths, most of which end by themselves."""
    store = EpisodeStore.create(tmp_path_factory.mktemp("belt"), CHOICES, ("place", "angle"))
    store.add([belt(i, 70) for i in range(30)])
    assert len(set(store.lengths)) > 8
    return store


@pytest.fixture(scope="module")
def roads(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """Two held-out drives."""
    store = EpisodeStore.create(tmp_path_factory.mktemp("car"), car_racing_spec(), STATE_NAMES)
    config = CollectConfig("carracing", steps=75)
    store.add([replace(collect_episode(config, i), provenance={"seed": 20 * i}) for i in range(2)])
    return store


SHORT = EvalConfig(rollouts=20, horizons=(1, 10, 30, 64), chunk=1, precision="float32")


# -- a stranger's world ------------------------------------------------------------------------------------------------------------------


def test_a_world_without_metrics_is_measured_by_what_any_world_has(belts: EpisodeStore) -> None:
    assert find_metrics(belts.spec) is None
    found = evaluate_world_model(Tape(belts), belts, find_metrics(belts.spec), replace(SHORT, horizons=(1, 10, 20)))
    last = max(r.step for r in found.rows if r.key == "psnr" and r.step)
    for step in (1, last):
        assert found["psnr", step].value > 58
        assert found["ssim", step].value == pytest.approx(1)
        assert found["reward", step].value == found["state/place", step].value == 0
        assert found["state_share/place", step].baseline > 0
    assert found["codec_psnr"].value > 58
    assert found["termination_precision", 10].value == found["termination_recall", 10].value == 1
    assert found["heed/psnr", 10].value > 3, "another's actions make another dream"
    assert found["psnr", 10].beats_copying


def test_returns_are_compared_where_episodes_are_long_enough(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path, CHOICES, ("place", "angle"))
    store.add([replace(e, provenance={"seed": 0}) for e in (belt(i, 45) for i in range(60)) if len(e) > 40][:6])
    assert evaluate_world_model(Tape(store), store, None, replace(SHORT, horizons=(30,)))[
        "return", 30
    ].value == pytest.approx(1)


def test_horizons_that_few_episodes_reach_are_left_out_with_a_word(belts: EpisodeStore) -> None:
    found = evaluate_world_model(Tape(belts), belts, None, SHORT)
    reach = belts.lengths + 1 - belts.spec.context
    kept = {h for h in SHORT.horizons if (reach >= h).mean() >= 0.5}
    assert {r.step for r in found.rows if r.key == "psnr"} == kept
    assert 64 not in kept
    assert "64" in found.circumstances["left_out"]


def test_a_deaf_world_loses_nothing_under_anothers_actions(belts: EpisodeStore) -> None:
    deaf = evaluate_world_model(DeafTape(belts), belts, None, replace(SHORT, horizons=(1, 10)))
    assert deaf["heed/psnr", 10].value == 0
    assert deaf["psnr", 10].value > 58, "under its own actions it is perfect all the same"


def test_a_still_world_is_copying_and_does_not_beat_it(belts: EpisodeStore) -> None:
    still = evaluate_world_model(StillTape(belts), belts, None, replace(SHORT, horizons=(1, 10)))
    for key in ("psnr", "ssim", "state/place", "state/angle"):
        assert still[key, 10].value == pytest.approx(still[key, 10].baseline)
        assert not still[key, 10].beats_copying


def test_to_beat_copying_the_intervals_must_be_apart() -> None:
    bar = Target(beats=True)
    row = Metric(
        "a", "A", 2.0, low=1.5, high=2.5, baseline=1.0, baseline_low=0.5, baseline_high=1.4, better="high", target=bar
    )
    assert row.passed
    assert not replace(row, low=1.3).passed
    assert not replace(row, better="low").passed
    assert replace(row, value=0.2, low=0.1, high=0.4, better="low").passed
    assert not replace(row, value=float("nan")).passed
    assert str(bar) == "beats copy-last"


def test_long_play_of_a_strangers_world_asks_for_change_and_frames_that_are_known(belts: EpisodeStore) -> None:
    starts = Starts(
        *(np.stack([getattr(belts[i], k)[:n] for i in range(4)]) for k, n in (("frames", 2), ("actions", 1)))
    )
    config = LongHorizonConfig(steps=60, look_every=2, precision="float32")
    known = np.concatenate([e.frames for e in belts])
    whole = evaluate_long_horizon(DeafTape(belts), starts, config=config, known=known)
    assert whole["changing"].value > 0.5
    assert whole["redrawn"].value == 1
    assert whole["not_finite"].value == 0
    fading = evaluate_long_horizon(FadingTape(belts), starts, config=config, known=known)
    assert fading["redrawn"].passed is False
    assert fading["not_finite"].value > 0
    frozen = evaluate_long_horizon(StillTape(belts), starts, config=config, known=known)
    assert frozen["changing"].value == 0


def test_keys_that_rest_at_an_end_are_let_go_or_held() -> None:
    rng = np.random.default_rng(0)
    keys = played_keys(car_racing_spec(), rng, 500)
    assert set(np.unique(keys[:, 0])) == {-1, 0, 1}
    assert set(np.unique(keys[:, 1:])) == {-1, 1}
    assert 0.2 < (keys[:, 1] == 1).mean() < 0.5
    choices = played_keys(CHOICES, rng, 500)
    assert choices.dtype == np.int64
    assert set(np.unique(choices)) == {0, 1, 2}


# -- CarRacing ---------------------------------------------------------------------------------------------------------------------------


def test_carracings_truth_against_itself_is_perfect(roads: EpisodeStore, tmp_path: Path) -> None:
    found = evaluate_world_model(Tape(roads), roads, find_metrics(roads.spec), replace(SHORT, rollouts=8))
    assert found.missed == ()
    assert found["codec_iou"].value == 1
    for step in (10, 30, 64):
        assert found["road_iou", step].value == 1
        assert found["road_iou", step].baseline < 0.9
        assert found["heading", step].value == found["offset", step].value == 0
        assert found["speed", step].value == found["speed", step].floor < 3
        assert found["state/speed", step].value < 1e-5
    assert 0 < found["road_iou_changed", 30].n <= found["road_iou", 30].n
    assert found["road_iou_changed", 30].baseline < 0.5
    assert found["heed/road_iou", 30].value > 0
    curves, strip = found.draw(tmp_path / "car.png")
    assert curves.stat().st_size > 10_000
    assert strip is not None


def test_a_still_road_fails_where_it_should(roads: EpisodeStore) -> None:
    still = evaluate_world_model(
        StillTape(roads),
        roads,
        CarRacingMetrics(CarRacingStateEstimator()),
        replace(SHORT, rollouts=8, horizons=(1, 30)),
    )
    assert {(r.key, r.step) for r in still.missed} == {("psnr", 30), ("road_iou", 30), ("road_iou_changed", 30)}
    assert still["road_iou", 30].value == pytest.approx(still["road_iou", 30].baseline)


def test_long_play_of_carracing_by_keys_and_by_a_driver(roads: EpisodeStore) -> None:
    starts, metrics = Starts.cut(roads, 3, 4, 0), CarRacingMetrics(CarRacingStateEstimator())
    config = LongHorizonConfig(steps=20, precision="float32")
    ((name, driver),) = find_frame_policies(roads.spec).items()
    for model, whole in ((DeafTape(roads), 1), (FadingTape(roads), 0)):
        keys = evaluate_long_horizon(model, starts, metrics, config)
        driven = evaluate_long_horizon(model, starts, metrics, replace(config, name=name), driver.predict)
        assert keys["whole"].value == driven["driver/whole"].value == whole
        assert keys["whole"].baseline == driven["driver/whole"].baseline == 1
        assert keys["whole"].passed is bool(whole)
        assert driven["driver/not_finite"].passed is bool(whole)


@pytest.fixture(scope="module")
def tiny_car(tmp_path_factory: pytest.TempPathFactory, roads: EpisodeStore) -> Path:
    """The folder of a random VideoWAM of CarRacing, as training leaves one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes, shape = CodecConfig(2, 8, 4, "conv"), StreamConfig(width=32, layers=1, heads=2, window=3)
        model = VideoWAM.build(car_racing_spec(), sizes, shape, STATE_NAMES)
    folder = tmp_path_factory.mktemp("worlds") / "car"
    World(model.eval(), Starts.cut(roads, 6, 4, 0)).save(folder)
    return folder


@pytest.fixture
def light_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it costs to import neuralsim takes two more processes, and is no world's business."""
    monkeypatch.setattr(bench, "_import", lambda: iter(()))


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = cli.main([str(w) for w in words])
    said = capsys.readouterr()
    return code, said.out + said.err


@pytest.mark.usefixtures("light_bench")
def test_every_command_takes_a_carracing_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_car: Path, roads: EpisodeStore
) -> None:
    data = ("--data", roads.folder)
    words = (
        "--rollouts",
        4,
        "--horizons",
        1,
        10,
        "--minutes",
        0.02,
        "--dreams",
        2,
        "--out",
        tmp_path / "measure",
    )
    code, out = run(capsys, "measure", tiny_car, *data, *words)
    assert code == 0, out
    keys = {r["key"] for r in json.loads((tmp_path / "measure" / "measure.json").read_text())["rows"]}
    assert keys >= {
        "psnr",
        "road_iou",
        "speed",
        "state/speed",
        "reward",
        "heed/psnr",
        "whole",
        "driver/whole",
        "growth",
    }
    assert not any(key.startswith("termination") for key in keys), "nothing ended in the data"
    code, out = run(capsys, "demo", tiny_car, *data, "--steps", 12, "--out", tmp_path / "demo")
    assert code == 0, out
    assert "road IoU" in out
    assert (tmp_path / "demo" / "demo.mp4").stat().st_size > 1000
    code, out = run(capsys, "bench", tiny_car, *data, "--seconds", 0.02, "--json", tmp_path / "bench.json")
    assert code == 0, out
    rows = {r["key"]: r for r in json.loads((tmp_path / "bench.json").read_text())["rows"]}
    assert rows["env_1"]["bar"]["least"] == 30
    assert rows["windows"]["bar"]["least"] == 1500
    assert {"true", "reader", "model_32"} <= set(rows)
    assert "bare" not in rows, "that is Push-T's"


@pytest.mark.usefixtures("light_bench")
def test_a_strangers_folder_is_measured_benched_and_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, belts: EpisodeStore
) -> None:
    model = VideoWAM(
        spec=asdict(belts.spec),
        codec_config=asdict(CodecConfig(2, 8, 4, "conv")),
        stream_config=asdict(StreamConfig(width=32, layers=1, heads=2, window=3)),
    )
    folder = World(model.eval(), Starts.cut(belts, 4, 2, 0)).save(tmp_path / "world")
    refused = run(capsys, "measure", folder, "--out", tmp_path / "out")
    assert refused[0] == 2
    assert "--data" in refused[1]
    assert run(capsys, "demo", folder)[0] == 2
    (tmp_path / "world" / "world.json").unlink()
    (tmp_path / "world" / "training.json").write_text(json.dumps({"store": str(belts.folder)}))
    config = MeasureConfig(
        world=str(folder),
        rollouts=6,
        horizons=(1, 10),
        minutes=0.05,
        dreams=2,
        out=tmp_path / "out",
        precision="float32",
    )
    report, files = measure_world(config)
    assert {r.key for r in report.rows} >= {"psnr", "heed/psnr", "termination_recall", "changing", "redrawn"}
    assert all(path.is_file() for path in files)
    code, out = run(capsys, "demo", folder, "--steps", 60, "--out", tmp_path / "demo")
    assert code == 0, out
    assert "PSNR" in out
    code, out = run(capsys, "bench", folder, "--seconds", 0.02)
    assert code == 0, out
    assert "training windows" in out


def test_figures_beside_another_worlds_episodes_are_refused(
    tiny_car: Path, belts: EpisodeStore, tmp_path: Path
) -> None:
    for words in (("demo", tiny_car), ("bench", tiny_car), ("measure", tiny_car)):
        assert cli.main([*map(str, words), "--data", str(belts.folder)]) == 2


def test_fresh_episodes_are_collected_of_a_world_learned_from_gymnasium(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    from neuralsim.agents.collection.held_out import held_out_again
    from neuralsim.envs.gym_adapter.env import GymEnvConfig

    world = GymEnvConfig("CartPole-v1")
    spec = CollectConfig(env="CartPole-v1", size=16, out=tmp_path / "own").real_world.make_spec(16)
    store = held_out_again(spec, world.source | {"steps": 20}, 2, workers=1)
    assert store.spec == spec
    assert len(store) == 2
    assert store.lengths.max() <= 20
    assert store.folder == Path("data/CartPole-v1-held-out-16x16")
