"""Measuring: an exact world scores perfectly, a still picture badly, and each kind of falseness is seen by the figure made for it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from rich.console import Console

from neuralsim.agents.collection.held_out import HELD_OUT_SEED, held_out_store
from neuralsim.agents.policies.pusht_explorer import PushTExplorer
from neuralsim.data.episode import HELD_OUT_EVERY, Episode
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.pusht.env import GOAL_POSE, STATE_NAMES, PushTRealEnv, pusht_spec, random_state
from neuralsim.envs.pusht.metrics import PushTMetrics
from neuralsim.envs.pusht.state_estimator import PushTStateEstimator
from neuralsim.evaluation.config import EvalConfig
from neuralsim.evaluation.evaluate import WorldEvaluation, calibrate_uncertainty, evaluate_world_model
from neuralsim.evaluation.image_metrics import mask_iou, psnr, ssim
from neuralsim.evaluation.long_horizon import LongHorizonConfig, evaluate_long_horizon, random_keys
from neuralsim.evaluation.report import Metric, Report, Target
from neuralsim.evaluation.rollouts import ImaginedRolloutConfig, sample_windows
from neuralsim.evaluation.statistics import Bootstrap, auroc, mean, rank_correlation
from neuralsim.noise import Noise
from neuralsim.pretrained.starts import Starts
from neuralsim.world_model import State, WorldModel

STEPS = 75


@dataclass(frozen=True)
class ExactState(State):
    """The simulator's state ``(b, 5)``, how far each dream strays per step ``(b,)``, and how far it has strayed ``(b,)``."""

    state: torch.Tensor
    stray: torch.Tensor
    gone: torch.Tensor


class ExactWorld(WorldModel):
    """Push-T itself as a WorldModel. It knows the states of the frames it was shown in ``book``; subclasses are false in one way each."""

    head_names: ClassVar[tuple[str, ...]] = ("reward", "terminated")

    def __init__(self, book: dict[bytes, np.ndarray]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.spec = pusht_spec()
        self.book = book
        self.env = PushTRealEnv(observation="state")

    @property
    def feature_size(self) -> int:
        return 5

    def encode(self, frames: torch.Tensor, actions: torch.Tensor) -> ExactState:
        state = torch.tensor(np.stack([self.book[frame.numpy().tobytes()] for frame in frames[:, -1]]))
        return ExactState(state, torch.zeros(len(state)), torch.zeros(len(state)))

    def step(self, state: ExactState, action: torch.Tensor, rng: Noise) -> ExactState:
        following = []
        for row, push in zip(state.state.numpy(), action.numpy(), strict=True):
            self.env.set_state(row)
            self.env.step(push)
            following.append(self.env.state())
        return replace(state, state=torch.tensor(np.stack(following)))

    def features(self, state: ExactState) -> torch.Tensor:
        return state.state.float()

    def decode(self, state: ExactState) -> torch.Tensor:
        frames = []
        for row in state.state.numpy():
            self.env.set_state(row)
            frames.append(self.env.frame(64))
        return torch.from_numpy(np.stack(frames))

    def uncertainty(self, state: ExactState) -> torch.Tensor:
        return state.gone

    def read(self, state: ExactState) -> dict[str, torch.Tensor]:
        coverage = []
        for row in state.state.numpy():
            self.env.set_state(row)
            coverage.append(self.env._info(False)["coverage"])
        reward = torch.tensor(coverage)
        return {"reward": reward, "terminated": (reward > 0.95).float()}


class StillWorld(ExactWorld):
    """Nothing ever moves: copy-last-frame as a model."""

    def step(self, state, action, rng):
        return state


class DriftingWorld(ExactWorld):
    """The block slides right by itself, by up to 2 units a step, each dream by its own; its uncertainty is how far."""

    def step(self, state, action, rng):
        following = super().step(state, action, rng)
        stray = torch.where(state.gone == 0, 2 * rng.uniform(1)[:, 0], state.stray)
        moved = following.state.clone()
        moved[:, 2] = (moved[:, 2] + stray).clamp(max=500)
        return ExactState(moved, stray, state.gone + stray)


class FoggyWorld(ExactWorld):
    """Every frame is darker by up to 80 grey levels, each dream by its own, and its uncertainty says by how much."""

    def step(self, state, action, rng):
        return replace(super().step(state, action, rng), gone=rng.uniform(1)[:, 0])

    def decode(self, state):
        return (super().decode(state).float() - 80 * state.gone[:, None, None, None]).clamp(min=0).to(torch.uint8)


class OverconfidentWorld(FoggyWorld):
    """The worse, the surer."""

    def uncertainty(self, state):
        return 1 - state.gone


class DeafWorld(ExactWorld):
    """Hears every action at a third of its size."""

    def step(self, state, action, rng):
        return super().step(state, action / 3, rng)


class MeltingWorld(ExactWorld):
    """Draws the lower half of whatever there is in white, block and pusher alike."""

    def decode(self, state):
        frames = super().decode(state)
        grey = (frames.float().std(-1) < 25) & (frames.float().mean(-1) < 180)
        half = torch.arange(64)[None, :, None] % 2 == 0
        return torch.where((grey & half)[..., None], torch.tensor(255, dtype=torch.uint8), frames)


class LyingWorld(ExactWorld):
    """Foretells success at once and always."""

    def read(self, state):
        return {"reward": torch.ones(len(state)), "terminated": torch.ones(len(state))}


def record(seed: int, state: np.ndarray, still: bool = False) -> Episode:
    """An episode of STEPS steps of the explorer (or of nothing at all) in the true world."""
    env, explorer = PushTRealEnv(observation="state"), PushTExplorer(seed)
    observation, _ = env.reset(options={"state": state})
    segment, frames, states, actions, rewards, ended = None, [env.render()], [env.state()], [], [], []
    for _ in range(STEPS):
        action, segment = explorer.predict(observation, segment)
        if still:
            action = np.zeros(2, np.float32)
        observation, reward, terminated, _, _ = env.step(action)
        frames.append(env.render())
        states.append(env.state())
        actions.append(action)
        rewards.append(reward)
        ended.append(terminated)
    return Episode(
        frames=np.stack(frames),
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float32),
        terminated=np.array(ended),
        truncated=np.zeros(STEPS, bool),
        states=np.stack(states).astype(np.float32),
        provenance={"seed": seed},
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> EpisodeStore:
    """Eight held-out episodes, one of them solved from the start and one nearly, and two that training may see."""
    rng = np.random.default_rng(5)
    solved = np.array([60.0, 60.0, *GOAL_POSE])
    near = solved + np.array([0, 0, 8, 4, 0])
    episodes = [record(HELD_OUT_EVERY * i, random_state(rng)) for i in range(6)]
    episodes += [record(HELD_OUT_EVERY * 6, solved, still=True), record(HELD_OUT_EVERY * 7, near, still=True)]
    episodes += [record(3, random_state(rng)), record(7, random_state(rng))]
    store = EpisodeStore.create(tmp_path_factory.mktemp("episodes"), pusht_spec(), STATE_NAMES)
    store.add(episodes)
    return store


@pytest.fixture(scope="module")
def book(store) -> dict[bytes, np.ndarray]:
    """Frame -> state, of held-out episodes only: a model asked of a training frame fails."""
    held_out = [store[int(i)] for i in store.split(True)]
    return {f.tobytes(): s.astype(np.float64) for e in held_out for f, s in zip(e.frames, e.states, strict=True)}


@pytest.fixture(scope="module")
def reader() -> PushTStateEstimator:
    return PushTStateEstimator()


LONG = EvalConfig(rollouts=12, horizons=(1, 10, 30, 64), chunk=3, batch=12, precision="float32")
SHORT = EvalConfig(rollouts=10, horizons=(1, 10, 30), chunk=1, batch=10, precision="float32")


@pytest.fixture(scope="module")
def exact(store, book, reader) -> WorldEvaluation:
    return evaluate_world_model(ExactWorld(book), store, PushTMetrics(reader, PushTRealEnv(observation="state")), LONG)


def test_an_exact_world_is_perfect(exact):
    """States are stored as float32, so a dream may part from the record by rounding, not by more."""
    assert exact.missed == ()
    for step in (1, 10, 30, 64):
        assert exact["iou", step].value > 0.99
        assert exact["psnr", step].value > 50
        assert exact["ssim", step].value > 0.999
        assert exact["pusher", step].value < 0.7
        assert abs(exact["pusher", step].value - exact["pusher", step].floor) < 0.3
        assert exact["place", step].value < 0.8
        assert exact["angle", step].value < 0.3
        assert exact["reward", step].value < 0.005
        assert exact["shape", step].value == 1
    assert exact["codec_iou"].value > 0.995
    assert exact["ghost"].value == 0
    assert exact["missed"].value == 0
    assert exact["success_precision", 10].value == exact["success_recall", 10].value == 1
    for key in ("control_pusher", "control_block", "control_angle"):
        assert exact[key, 10].value == pytest.approx(1, abs=0.03)
    assert exact["restart/iou_moved", 10].value > 0.99


def test_chunks_of_steps_are_the_same_steps(exact):
    """The exact world has no native chunks, so three at once are three one after the other."""
    for step in (10, 30):
        assert exact["3_frames_at_once/iou_moved", step].value == pytest.approx(
            exact["one_frame_at_a_time/iou_moved", step].value
        )


def test_every_figure_has_an_interval_around_it_and_a_size(exact):
    for row in exact.rows:
        assert row.n is not None, row
        assert row.n > 0, row
        if not np.isnan(row.value):
            assert row.low <= row.value + 1e-9, row
            assert row.value <= row.high + 1e-9, row
    moved = exact["iou_moved", 10]
    assert moved.n < exact["iou", 10].n == 12, "some blocks lie still"
    assert moved.baseline < exact["iou", 10].baseline, "where the block moved, copying is worse"


def test_a_still_picture_is_what_copying_scores(store, book, reader):
    """StillWorld is copy-last-frame, so its figures are the baseline's, and it fails."""
    still = evaluate_world_model(
        StillWorld(book), store, PushTMetrics(reader, PushTRealEnv(observation="state")), SHORT
    )
    for key in ("psnr", "ssim", "iou", "iou_moved", "pusher_mean", "pusher_moved", "place_moved", "angle_moved"):
        for step in (10, 30):
            assert still[key, step].value == pytest.approx(still[key, step].baseline, rel=0.01), key
    assert still["missed"].value == 1
    assert still["ghost"].value == 0
    assert still["control_pusher", 10].value == still["control_block", 10].value == 0
    failed = {(r.key, r.step) for r in still.missed}
    assert failed >= {("iou_moved", 10), ("iou_moved", 30), ("pusher_moved", 10), ("pusher_moved", 30)}
    assert failed >= {("control_pusher", 10), ("control_block", 10)}


def test_drift_is_ghost_motion(store, book, reader):
    drifting = evaluate_world_model(DriftingWorld(book), store, PushTMetrics(reader), SHORT)
    assert drifting["ghost"].value > 0.5
    assert drifting["place_mean", 30].value > 10
    assert drifting["shape", 30].value == 1, "the block slides but stays whole"
    assert not any(r.key.startswith("control") for r in drifting.rows), "no truth, no controllability"


@pytest.mark.parametrize(("world", "sign"), [(FoggyWorld, 1), (OverconfidentWorld, -1)])
def test_uncertainty_is_judged_by_the_errors_it_foretells(store, book, world, sign):
    found = evaluate_world_model(world(book), store, None, SHORT)
    assert sign * found["doubt_rank", 30].value > 0.8
    assert sign * (found["doubt_auroc", 30].value - 0.5) > 0.4


def test_a_deaf_world_is_not_controllable(store, book, reader):
    deaf = evaluate_world_model(DeafWorld(book), store, PushTMetrics(reader, PushTRealEnv(observation="state")), SHORT)
    assert deaf["control_pusher", 10].value < 0.6
    assert deaf["control_pusher", 10].passed is False
    assert deaf["missed"].value > 0.2  # an exact world misses nothing


def test_a_melting_block_loses_its_shape(store, book, reader):
    melting = evaluate_world_model(MeltingWorld(book), store, PushTMetrics(reader), SHORT)
    assert melting["shape", 30].value == 0
    assert melting["codec_iou"].value < 0.7
    assert melting["codec_iou"].passed is False
    assert melting["pusher", 30].value < 2, "the pusher is not grey"


def test_what_is_lost_has_not_moved_and_is_as_far_off_as_can_be(store, book, reader):
    class BlindWorld(ExactWorld):
        def decode(self, state):
            return torch.full((len(state), 64, 64, 3), 255, dtype=torch.uint8)

    config = replace(SHORT, rollouts=6, horizons=(1, 10))
    blind = evaluate_world_model(
        BlindWorld(book), store, PushTMetrics(reader, PushTRealEnv(observation="state")), config
    )
    assert blind["control_pusher", 10].value == blind["control_block", 10].value == 0
    assert blind["pusher", 10].value == blind["place", 10].value == 512
    assert blind["iou", 10].value == blind["shape", 10].value == 0
    assert blind["ghost"].value == 1


def test_a_liar_has_recall_without_precision(store, book):
    """Without a judge, rewards, ends and pixels are measured all the same."""
    lying = evaluate_world_model(LyingWorld(book), store, None, SHORT)
    assert lying["termination_recall", 10].value == 1
    assert lying["termination_precision", 10].value <= 0.6
    assert lying["reward", 10].value > 0.3
    assert lying["reward_near", 10].n == lying["termination_precision", 10].n
    assert {r.key for r in lying.rows} >= {"psnr", "ssim"}
    assert "iou" not in {r.key for r in lying.rows}


def test_the_tiny_model_is_measured_in_all_its_ways(store, reader, tiny_model):
    """Chunk-wise and with other numbers of denoising steps; the model itself is left as it was."""
    config = EvalConfig(rollouts=8, horizons=(1, 10), chunk=3, denoise=(1, 2, 4), precision="float32")
    found = evaluate_world_model(tiny_model, store, PushTMetrics(reader, PushTRealEnv(observation="state")), config)
    assert tiny_model.denoise_steps == 1
    keys = {r.key for r in found.rows}
    assert keys >= {f"{n}_denoising_steps/iou_moved" for n in (2, 4)} | {"3_frames_at_once/iou_moved"}
    assert found["iou_moved", 10].passed is False, "random weights know nothing"


def test_the_same_seed_gives_the_same_figures(store, book, reader, tiny_model):
    config = EvalConfig(rollouts=6, horizons=(1, 10), chunk=1, denoise=(), precision="float32")
    first, again = (evaluate_world_model(tiny_model, store, PushTMetrics(reader), config) for _ in range(2))
    other = evaluate_world_model(tiny_model, store, PushTMetrics(reader), replace(config, seed=1))
    assert first.to_json() == again.to_json() or [r.value for r in first.rows] == pytest.approx(
        [r.value for r in again.rows], nan_ok=True
    )
    assert [r.value for r in first.rows] != pytest.approx([r.value for r in other.rows], nan_ok=True)


def test_report_as_table_json_and_pictures(exact, tmp_path):
    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(exact)
    console.file.close()
    text = console.export_text()
    assert "block IoU where it moved" in text
    assert "✓" in text
    assert "estimator's floor" in text
    path = exact.save(tmp_path / "deep" / "measured.json")
    body = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    row = next(r for r in body["rows"] if (r["key"], r["step"]) == ("iou_moved", 10))
    assert row["bar"]["least"] == 0.8
    assert row["passed"] is True
    assert body["circumstances"]["cores"]
    curves, strip = exact.draw(tmp_path / "drift.png")
    for picture in (curves, strip):
        pixels = iio.imread(picture)
        assert pixels.shape[0] > 200
        assert pixels.shape[1] > 400
        assert pixels[..., :3].std() > 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "drift-strip.png", "drift.png"], (
        "nothing half-written"
    )


def test_only_held_out_episodes_are_measured(store, tmp_path):
    rng = np.random.default_rng(0)
    windows = sample_windows(store, 40, 4, 64, rng)
    assert set(windows.episodes.tolist()) == set(store.split(True).tolist())
    assert set(sample_windows(store, 40, 4, 64, rng, all_held_out=True).episodes.tolist()) == set(range(len(store)))
    training = EpisodeStore.create(tmp_path / "training", pusht_spec(), STATE_NAMES)
    training.add([store[int(i)] for i in store.split(False)])
    with pytest.raises(ValueError, match="no held-out episode has the 68 frames"):
        sample_windows(training, 4, 4, 64, rng)
    assert len(sample_windows(training, 4, 4, 64, rng, all_held_out=True)) == 4


def test_windows_are_cut_where_they_should_be(store):
    """What follows the context in a window is what followed it in the episode."""
    windows = sample_windows(store, 5, 4, 20, np.random.default_rng(1))
    clip = windows.read()
    assert clip.frames.shape == (5, 24, 64, 64, 3)
    assert clip.actions.shape == (5, 23, 2)
    for i in range(5):
        episode, start = store[int(windows.episodes[i])], windows.starts[i]
        assert (clip.frames[i, 4] == episode.frames[start + 4]).all()
        assert (clip.actions[i, 3] == episode.actions[start + 3]).all()
        assert clip.rewards[i, 3] == episode.rewards[start + 3]


def test_another_world_is_refused(store, book, reader, dot_model):
    with pytest.raises(ValueError, match="the model is of"):
        evaluate_world_model(dot_model, store, PushTMetrics(reader))


def test_uncertainty_is_calibrated_on_the_worst_step_of_a_dream(store, book):
    """DriftingWorld's uncertainty after 30 steps is 30 times its stray, uniform in 0..2: the 90th percentile lies near 54."""
    found = calibrate_uncertainty(
        DriftingWorld(book), store, 0.9, 30, 32, ImaginedRolloutConfig(batch=64, precision="float32")
    )
    strays = 2 * Noise.from_seeds(range(32)).uniform(1)[:, 0].numpy()
    assert found == pytest.approx(np.quantile(30 * strays, 0.9), rel=1e-4)
    with pytest.raises(ValueError, match="quantile"):
        calibrate_uncertainty(DriftingWorld(book), store, 99)


# -- long play -----------------------------------------------------------------------------------------------------------------------


def starts_of(store: EpisodeStore) -> Starts:
    episodes = [store[int(i)] for i in store.split(True)[:2]]
    return Starts(
        *(np.stack([getattr(e, n)[:k] for e in episodes]) for n, k in (("frames", 4), ("actions", 3), ("states", 4)))
    )


def test_long_play_of_an_exact_world_is_the_true_one(store, book, reader):
    ticks: list[int] = []
    found = evaluate_long_horizon(
        ExactWorld(book),
        starts_of(store),
        PushTMetrics(reader, PushTRealEnv(observation="state")),
        LongHorizonConfig(steps=60, look_every=3, precision="float32"),
        tick=ticks.append,
    )
    assert found["rigid"].value == found["rigid"].baseline == 1
    assert found["pusher_found"].value == 1
    assert found["misfit"].value == pytest.approx(found["misfit"].baseline, abs=0.01)
    assert found["not_finite"].value == 0
    assert sum(ticks) == 120


def test_long_play_sees_a_world_fall_apart(store, book, reader):
    class Rotting(MeltingWorld):
        def features(self, state):
            return super().features(state) * torch.tensor([float("nan"), 1, 1, 1, 1])

    found = evaluate_long_horizon(
        Rotting(book), starts_of(store), PushTMetrics(reader), LongHorizonConfig(steps=20, precision="float32")
    )
    assert found["rigid"].value == 0
    assert found["not_finite"].value == 40
    assert {r.key for r in found.missed} >= {"rigid", "not_finite"}
    assert found["rigid"].baseline == 1, "true frames are whole"


def test_long_play_sees_memory_grow(store, book, reader):
    class Hoarder(ExactWorld):
        kept: ClassVar[list[torch.Tensor]] = []
        taken = 0

        def step(self, state, action, rng):
            self.taken += 1
            if self.taken % 10 == 0:  # in pieces too large to be served from what earlier tests have freed
                self.kept.append(torch.ones(12_000_000))
            return super().step(state, action, rng)

    config = LongHorizonConfig(steps=60, look_every=30, precision="float32")
    grown = evaluate_long_horizon(Hoarder(book), starts_of(store), PushTMetrics(reader), config)["growth"]
    Hoarder.kept.clear()
    assert grown.value > 150
    assert not grown.passed


def test_keys_are_held_and_use_every_direction():
    keys = random_keys(np.random.default_rng(0), 2000, 2)
    assert keys.shape == (2000, 2)
    assert len(np.unique(keys, axis=0)) == 9
    changes = (np.diff(keys, axis=0) != 0).any(1).mean()
    assert 0.05 < changes < 0.2


# -- numbers -------------------------------------------------------------------------------------------------------------------------


def test_ssim_is_the_textbooks():
    """Against the definition, written out window by window."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (2, 16, 18, 3)).astype(np.uint8)
    b = (a * 0.7 + rng.integers(0, 60, a.shape)).astype(np.uint8)
    line = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    window = np.outer(line, line) / np.outer(line, line).sum()
    for i in range(2):
        values = []
        for c in range(3):
            for y in range(6):
                for x in range(8):
                    p, q = (z[i, y : y + 11, x : x + 11, c].astype(float) for z in (a, b))
                    mp, mq = (window * p).sum(), (window * q).sum()
                    vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                    cov = (window * (p - mp) * (q - mq)).sum()
                    c1, c2 = 2.55**2, 7.65**2
                    values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
        assert ssim(a, b)[i] == pytest.approx(np.mean(values), rel=1e-9)
    assert ssim(a, a) == pytest.approx(1)


def test_psnr_and_iou_by_hand():
    assert psnr(np.array([255.0**2, 100.0])) == pytest.approx([0, 28.13], abs=0.01)
    mask = np.zeros((3, 4, 4), bool)
    mask[0, :2] = mask[1, 1:3] = True
    assert mask_iou(mask[0], mask[1]) == pytest.approx(1 / 3)
    assert mask_iou(mask[0], mask[2]) == 0
    assert np.isnan(mask_iou(mask[2], mask[2])), "nothing is scored for showing nothing"


def test_rank_statistics_by_brute_force():
    rng = np.random.default_rng(1)
    score, positive = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.3
    pairs = [(s > t) + 0.5 * (s == t) for s in score[positive] for t in score[~positive]]
    assert auroc(score, positive) == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc(score, np.zeros(60, bool)))
    x = rng.normal(size=50)
    assert rank_correlation(x, np.exp(x)) == pytest.approx(1)
    assert rank_correlation(x, -(x**3)) == pytest.approx(-1)
    assert np.isnan(rank_correlation(x, np.ones(50)))


def test_intervals_hold_what_they_promise():
    """95 % intervals of the mean of 40 normal numbers hold the true mean in about 95 % of trials."""
    rng = np.random.default_rng(2)
    boot = Bootstrap(np.arange(40), resamples=400)
    held = 0
    for _ in range(200):
        found = boot(mean, rng.normal(3, 1, 40))
        held += found.low <= 3 <= found.high
    assert 0.88 <= held / 200 <= 0.98


def test_rollouts_of_one_episode_are_not_counted_as_many():
    """Ten episodes of ten equal rollouts know no more than ten numbers."""
    values = np.random.default_rng(3).normal(size=10)
    few = Bootstrap(np.arange(10))(mean, values)
    many = Bootstrap(np.repeat(np.arange(10), 10))(mean, np.repeat(values, 10))
    blind = Bootstrap(np.arange(100))(mean, np.repeat(values, 10))
    assert many.high - many.low == pytest.approx(few.high - few.low, rel=0.1)
    assert blind.high - blind.low < 0.5 * (many.high - many.low)
    assert many.n == 100


def test_a_share_of_all_is_not_certain():
    found = Bootstrap(np.arange(100)).share(np.ones(100))
    assert (found.value, found.low, found.high) == (1, 0.97, 1)
    assert Bootstrap(np.arange(4))(mean, np.full(4, np.nan)).n == 0


def test_bars_and_rows():
    assert Target(least=0.8).passed(0.8)
    assert not Target(least=0.8).passed(float("nan"))
    assert not Target(0.8, 1.25).passed(1.3)
    assert [str(b) for b in (Target(least=0.8), Target(most=2), Target(0.8, 1.25))] == ["≥ 0.8", "≤ 2", "0.8 to 1.25"]
    report = Report("r", (Metric("a", "A", 1.0, target=Target(most=0.5)), Metric("b", "B", float("nan"))))
    assert [r.key for r in report.missed] == ["a"]
    assert json.loads(report.to_json())["rows"][1]["value"] is None
    with pytest.raises(KeyError, match="'c'"):
        report["c"]


# -- held-out episodes on a fresh machine ------------------------------------------------------------------------------------------------


def test_held_out_episodes_are_made_on_the_spot_and_only_once(tmp_path):
    told: list[tuple[int, int]] = []
    first = held_out_store(tmp_path / "held", episodes=2, steps=12, workers=1, progress=lambda *x: told.append(x))
    assert len(first) == 2
    assert told[-1] == (2, 2)
    assert first.provenance(0)["collection_seed"] == HELD_OUT_SEED
    stamp = [p.stat().st_mtime_ns for p in sorted(Path(first.folder).glob("shard-*/frames.npy"))]
    again = held_out_store(tmp_path / "held", episodes=2, steps=12, workers=1)
    assert [p.stat().st_mtime_ns for p in sorted(Path(again.folder).glob("shard-*/frames.npy"))] == stamp
    assert (again[1].frames == first[1].frames).all()
    assert len(sample_windows(again, 3, 4, 8, np.random.default_rng(0), all_held_out=True)) == 3
