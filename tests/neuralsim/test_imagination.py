"""Imagination: many imagined rollouts on one model, each settled by its own seed and independent of the others; snapshots and forks."""

import copy
import io
import pickle
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from neuralsim.imagination import Imagination
from neuralsim.models.video_wam import CodecConfig, StreamConfig, VideoWAM
from neuralsim.pretrained.starts import Starts
from neuralsim.pretrained.world import World, open_world
from neuralsim.storage.resolve import list_worlds
from neuralsim.task import FunctionTask

PRECISIONS = ("float32", "bfloat16")


@pytest.fixture(scope="module")
def world(tiny_world) -> World:
    return open_world(tiny_world, "cpu")


@pytest.fixture
def dream(world, endless):
    """``dream(num_envs)``: an Imagination on the tiny world."""

    def make(num_envs=1, **settings) -> Imagination:
        return Imagination(world.model, endless, num_envs=num_envs, starts=world.starts, **settings)

    return make


@pytest.fixture
def dots(dot_world):
    """``dots(num_envs)``: an Imagination on the exact world."""

    def make(num_envs=1, **settings) -> Imagination:
        return Imagination(dot_world.model, num_envs=num_envs, starts=dot_world.starts, **settings)

    return make


def same(one, other) -> bool:
    """Whether two snapshots are equal to the bit."""
    states = [s.state for s in (one, other)]
    pairs = [(getattr(states[0], f.name), getattr(states[1], f.name)) for f in fields(states[0])]
    pairs += [(one.noise.seed, other.noise.seed), (one.noise.count, other.noise.count)]
    pairs += [(getattr(one, n), getattr(other, n)) for n in ("elapsed", "ended", "start")]
    return all(torch.equal(x, y) for x, y in pairs)


def film(imagination, moves) -> np.ndarray:
    """Frames ``(k, b, h, w, 3)`` under ``moves`` ``(k, b, a)``."""
    frames = []
    for action in moves:
        imagination.step(action)
        frames.append(imagination.frames())
    return np.stack(frames)


# -- seeds -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_seeds_in_the_same_batch_are_equal_to_the_bit(dream, pushes, precision):
    runs = []
    for _ in range(2):
        d = dream(5, precision=precision)
        d.reset(seeds=7)
        runs.append((d.frames(), film(d, pushes(8, 5)), d.features(), d.uncertainty()))
        torch.rand(3)  # the world's luck is not torch's
    assert all(np.array_equal(a, b) for a, b in zip(*runs, strict=True))
    assert (runs[0][1][0] != runs[0][1][-1]).any()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_of_32_dreams_what_its_seed_dreams_alone(dream, pushes, precision):
    moves = pushes(20, 32)
    together = dream(32, precision=precision)
    together.reset(seeds=100)
    frames = np.concatenate([together.frames()[None], film(together, moves)])
    for i in (0, 13, 31):
        alone = dream(1, precision=precision)
        alone.reset(seeds=100 + i)
        assert alone.start[0] == together.start[i]
        own = np.concatenate([alone.frames()[None], film(alone, moves[:, i : i + 1])])[:, 0]
        assert np.abs(own.astype(int) - frames[:, i]).mean() < 1
        assert torch.equal(alone.snapshot().noise.normal(9)[0], together.snapshot().noise.normal(9)[i])
    other = np.abs(frames[:, 0].astype(int) - frames[:, 13]).mean()
    assert other > 1  # the bound above can fail


@pytest.mark.skipif("pusht" not in list_worlds(), reason="no weights in assets yet")
def test_the_shipped_world_keeps_the_promise_in_its_default_precision(pushes):
    world = open_world("pusht", "cpu")
    moves = pushes(20, 32)
    runs = []
    for seeds, rows in ((range(32), slice(None)), (range(32), slice(None)), ([13], slice(13, 14))):
        d = Imagination(world.model, num_envs=len(seeds), starts=world.starts)
        d.reset(seeds=list(seeds))
        runs.append(film(d, moves[:, rows]))
    assert np.array_equal(runs[0], runs[1])
    assert np.abs(runs[0][:, 13].astype(int) - runs[2][:, 0]).mean() < 1


def test_other_seeds_are_other_dreams_and_cover_the_starts(dots, pushes):
    d = dots(200)
    d.reset(seeds=0)
    counts = np.bincount(d.start, minlength=8)
    assert counts.min() >= 10  # 25 expected of each
    one, two = dots(1), dots(1)
    one.reset(seeds=1, options={"start": 2})
    two.reset(seeds=2, options={"start": 2})
    assert np.array_equal(one.features(), two.features())
    move = pushes(1)
    one.step(move)
    two.step(move)
    assert not np.array_equal(one.features(), two.features())


def test_without_luck_seeds_do_not_matter(dots, pushes):
    ends = []
    for seed in (1, 2):
        d = dots(1, temperature=0.0)
        d.reset(seeds=seed, options={"start": 2})
        d.step(pushes(1))
        ends.append(d.features())
    assert np.array_equal(*ends)


def test_reset_without_a_seed_goes_on_in_the_rows_own_stream(dots, pushes):
    sequences = []
    for _ in range(2):
        d = dots(3)
        d.reset(seeds=5)
        starts = []
        for k in range(12):
            d.step(pushes(3, seed=k))
            d.reset()
            starts.append(d.start)
        sequences.append(np.array(starts))
    assert np.array_equal(*sequences)
    assert all(len(set(column)) > 1 for column in sequences[0].T)  # not the same start for ever
    d.reset(seeds=5)
    first = d.start
    d.reset()
    d.reset()
    assert d.elapsed.tolist() == [0, 0, 0]
    again = dots(3)
    again.reset(seeds=[5, None, 7])
    assert again.start[[0, 2]].tolist() == first[[0, 2]].tolist()


def test_a_reset_right_after_a_reset_draws_anew(dots):
    d = dots(4)
    d.reset(seeds=5)
    starts = [d.start]
    for _ in range(12):
        d.reset()
        starts.append(d.start)
    assert all(len(set(column)) > 2 for column in np.array(starts).T)


def test_unseeded_imaginations_differ(dots):
    starts = []
    for _ in range(2):
        d = dots(64)
        d.reset()
        starts.append(d.start)
    assert not np.array_equal(*starts)


def test_the_precision_is_what_was_asked_for_whatever_the_caller_is_in(dream, pushes):
    ends = {}
    for precision in PRECISIONS:
        for inside in (False, True):
            d = dream(2, precision=precision)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
                d.reset(seeds=0)
                d.step(pushes(2))
                ends[precision, inside] = d.features()
    assert np.array_equal(ends["float32", False], ends["float32", True])
    assert np.array_equal(ends["bfloat16", False], ends["bfloat16", True])
    apart = np.abs(ends["float32", False] - ends["bfloat16", False]).max()
    assert 0 < apart < 0.3
    assert dream(1).dtype in (torch.float32, torch.bfloat16)


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_resetting_some_rows_changes_no_other_to_the_bit(dream, pushes, precision):
    moves = pushes(6, 4)
    plain, disturbed = dream(4, precision=precision), dream(4, precision=precision)
    for d in (plain, disturbed):
        d.reset(seeds=0)
        film(d, moves[:3])
    disturbed.reset(np.array([False, True, False, True]), seeds=[None, 50, None, 51])
    assert np.array_equal(plain.frames()[[0, 2]], disturbed.frames()[[0, 2]])
    assert disturbed.elapsed.tolist() == [3, 0, 3, 0]
    a, b = film(plain, moves[3:]), film(disturbed, moves[3:])
    assert np.array_equal(a[:, [0, 2]], b[:, [0, 2]])
    assert (a[:, [1, 3]] != b[:, [1, 3]]).any()
    fresh = dream(4, precision=precision)
    fresh.reset(seeds=[0, 50, 0, 51])
    assert np.abs(film(fresh, moves[3:])[:, [1, 3]].astype(int) - b[:, [1, 3]]).mean() < 1


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=8))
def test_no_sequence_of_resets_reaches_another_row(dots, pushes, masks):
    # Row 3 is never reset; whatever happens to rows 0 to 2, it dreams what it dreams in peace.
    troubled, peaceful = dots(4), dots(4)
    for d in (troubled, peaceful):
        d.reset(seeds=9)
    for k, mask in enumerate(masks):
        action = pushes(4, seed=k)
        troubled.step(action)
        peaceful.step(action)
        troubled.reset(np.array([*mask, False]))
        assert np.array_equal(troubled.features()[3], peaceful.features()[3])
        assert np.array_equal(troubled.frames()[3], peaceful.frames()[3])
        assert troubled.elapsed[3] == peaceful.elapsed[3] == k + 1


def test_held_rows_stand_still(dots, pushes):
    d, free = dots(3), dots(3)
    for x in (d, free):
        x.reset(seeds=0)
    before = d.features()
    held = np.array([False, True, False])
    transition = d.step(pushes(3), ~held)
    free.step(pushes(3))
    assert np.array_equal(d.features()[held], before[held])
    assert np.array_equal(d.features()[~held], free.features()[~held])
    assert transition.played.tolist() == [1, 0, 1]
    assert transition.reward[1] == 0
    assert d.elapsed.tolist() == [1, 0, 1]
    assert d.snapshot().noise.count.tolist() == [1, 0, 1]
    whole = d.step(pushes(3), np.zeros(3, bool))
    assert whole.played.sum() == 0
    assert d.elapsed.tolist() == [1, 0, 1]


# -- ends --------------------------------------------------------------------------------------------------------------


def towards_the_middle(d) -> np.ndarray:
    place = d.features()
    return (-place / np.maximum(np.linalg.norm(place, axis=1, keepdims=True), 1e-6)).astype(np.float32)


def test_it_terminates_where_the_task_says_and_never_resets_by_itself(dots):
    d = dots(2, horizon=None)
    d.reset(seeds=0)
    for step in range(1, 8):
        action = towards_the_middle(d)
        action[1] = 0
        transition = d.step(action)
        done = np.linalg.norm(d.features(), axis=1) < 0.15
        assert transition.terminated.tolist() == done.tolist() == d.ended.tolist()
        assert not transition.truncated.any()
        assert d.elapsed.tolist() == [step, step]
    assert done.tolist() == [True, False]


def test_it_is_truncated_at_the_horizon_with_the_reason(dots):
    d = dots(2, horizon=3)
    d.reset(seeds=0)
    still = np.zeros((2, 2), np.float32)
    d.step(still)
    d.reset(np.array([False, True]))
    assert [d.step(still).truncated.tolist() for _ in range(3)] == [[False, False], [True, False], [True, True]]
    assert d.step(still).truncated_by.tolist() == ["horizon", "horizon"]
    endless = dots(1, horizon=None)
    endless.reset(seeds=0)
    assert not any(endless.step(still[:1]).truncated[0] for _ in range(400))


def test_it_is_truncated_where_the_model_no_longer_knows(dots):
    d = dots(2, uncertainty_limit=0.25, temperature=0.0)
    d.reset(seeds=0, options={"start": 0})
    far = np.array([[0.0, 1.0], [0.0, 0.1]], np.float32)
    seen = [d.step(far) for _ in range(3)]
    assert [t.truncated.tolist() for t in seen] == [[False, False], [False, False], [True, False]]
    assert seen[2].truncated_by.tolist() == ["uncertainty", None]
    assert seen[2].uncertainty == pytest.approx([0.3, 0.03], abs=1e-5)
    both = dots(1, uncertainty_limit=0.05, horizon=1, temperature=0.0)
    both.reset(seeds=0)
    assert both.step(far[:1]).truncated_by.tolist() == ["uncertainty"]


def test_the_models_own_threshold_is_the_default_limit(tiny_model, world):
    tiny_model.uncertainty_threshold.fill_(0.5)
    assert Imagination(tiny_model, starts=world.starts).uncertainty_limit == 0.5
    assert Imagination(tiny_model, starts=world.starts, uncertainty_limit=2.0).uncertainty_limit == 2.0


def test_a_model_gone_to_nan_is_truncated_not_trusted(dots):
    d = dots(2)
    d.reset(seeds=0)
    d.model.uncertainty = lambda state: torch.tensor([float("nan"), 0.0])  # type: ignore[method-assign]
    assert d.step(np.zeros((2, 2), np.float32)).truncated_by.tolist() == ["uncertainty", None]


# -- chunks ------------------------------------------------------------------------------------------------------------


def test_a_chunk_plays_what_its_steps_play(dots, pushes):
    moves = pushes(2, 5)
    stepped, chunked = dots(2), dots(2)
    for d in (stepped, chunked):
        d.reset(seeds=3)
    frames, rewards = [], []
    for i in range(5):
        rewards.append(stepped.step(moves[:, i]).reward)
        frames.append(stepped.frames())
    chunk = chunked.step_chunk(moves)
    assert np.array_equal(chunk.frames(), np.stack(frames, 1))
    assert np.allclose(chunk.reward, np.sum(rewards, 0))
    assert chunk.played.tolist() == [5, 5]
    assert chunk.features().shape == (2, 5, 2)
    assert np.array_equal(chunked.frames(), frames[-1])
    assert same(stepped.snapshot(), chunked.snapshot())


def test_the_video_models_chunk_is_its_own_unroll(dream, pushes):
    moves = pushes(3, 4)
    d, again = dream(3), dream(3)
    for x in (d, again):
        x.reset(seeds=0)
    state = d.view.state
    chunk = d.step_chunk(moves)
    with d.view.inference():
        whole = d.model.unroll(state, torch.as_tensor(moves), again.snapshot().noise)
        last = d.model.features(whole.map(lambda x: x[:, -1]))
    assert np.array_equal(d.features(), last.numpy())
    assert chunk.frames().shape == (3, 4, 64, 64, 3)
    assert np.array_equal(d.frames(), chunk.frames()[:, -1])
    assert np.array_equal(again.step_chunk(moves).frames(), chunk.frames())


def test_a_chunk_stops_each_row_at_its_own_end(dots):
    d, alone = dots(2, temperature=0.0), dots(2, temperature=0.0)
    for x in (d, alone):
        x.reset(seeds=0, options={"start": 0})  # at (0.6, 0)
    plan = np.zeros((2, 8, 2), np.float32)
    plan[0, :, 0] = -1  # within 0.15 of the middle after 5 steps
    chunk = d.step_chunk(plan)
    assert chunk.played.tolist() == [5, 8]
    assert chunk.terminated.tolist() == [True, False]
    assert d.elapsed.tolist() == [5, 8]
    assert d.features()[0] == pytest.approx([0.1, 0], abs=0.02)
    assert chunk.reward[0] == pytest.approx(-(0.5 + 0.4 + 0.3 + 0.2 + 0.1), abs=0.05)
    assert np.array_equal(d.frames()[0], chunk.frames()[0, 4])
    for i in range(5):
        alone.step(plan[:, i])
    assert np.allclose(alone.features()[0], d.features()[0])
    assert d.snapshot().noise.count.tolist() == [5, 8]


def test_each_step_of_a_chunk_is_judged_from_where_it_began(dots, pushes):
    # A task that rewards the way gone: the sum over a chunk is the whole way, whichever way it was played.
    way = FunctionTask(lambda before, action, after: (after.features - before.features)[:, 0])
    d = Imagination(dots(1).model, way, num_envs=2, starts=dots(1).starts)
    d.reset(seeds=0)
    began = d.features()
    reward = d.step_chunk(pushes(2, 5)).reward + d.step(pushes(2)).reward
    assert reward == pytest.approx((d.features() - began)[:, 0], abs=1e-5)


def test_a_chunk_ends_at_the_horizon(dots):
    d = dots(2, horizon=4)
    d.reset(seeds=0)
    d.step(np.zeros((2, 2), np.float32))
    d.reset(np.array([False, True]))
    chunk = d.step_chunk(np.zeros((2, 6, 2), np.float32))
    assert chunk.played.tolist() == [3, 4]
    assert chunk.truncated_by.tolist() == ["horizon", "horizon"]
    held = d.step_chunk(np.ones((2, 2, 2), np.float32), np.array([False, True]))
    assert held.played.tolist() == [0, 1]
    assert d.elapsed.tolist() == [4, 5]


# -- snapshots and forks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_restore_then_replay_is_equal_to_the_bit(dream, pushes, precision):
    d = dream(3, precision=precision)
    d.reset(seeds=0)
    film(d, pushes(3, 3))
    snap = d.snapshot()
    now = d.frames()

    def future():
        frames = [film(d, pushes(4, 3, seed=1))]
        d.reset(np.array([True, False, True]))  # luck beyond the episode's end comes back too
        return np.concatenate([*frames, d.frames()[None], film(d, pushes(3, 3, seed=2))])

    first = future()
    for _ in range(2):
        d.restore(snap)
        assert np.array_equal(d.frames(), now)
        assert d.elapsed.tolist() == [3, 3, 3]
        assert np.array_equal(future(), first)


def test_a_snapshot_is_a_value(dots, pushes):
    d = dots(2)
    d.reset(seeds=0)
    snap, kept = d.snapshot(), copy.deepcopy(d.snapshot())
    for k in range(4):
        d.step(pushes(2, seed=k))
    d.reset()
    frames = d.frames()
    frames[:] = 0  # what callers are given is theirs
    assert d.frames().any()
    assert same(snap, kept)


def test_a_snapshot_may_go_to_another_imagination_on_the_same_weights(dream, pushes):
    one, two = dream(2), dream(2)
    one.reset(seeds=0)
    one.step(pushes(2))
    two.restore(one.snapshot())
    assert np.array_equal(film(one, pushes(3, 2)), film(two, pushes(3, 2)))


def test_a_snapshot_takes_on_the_temperature_of_where_it_goes(dots, pushes):
    warm, cold = dots(1), dots(1, temperature=0.0)
    warm.reset(seeds=0)
    began = warm.features()
    cold.restore(warm.snapshot())
    cold.step(pushes(1))
    warm.step(pushes(1))
    assert cold.features() == pytest.approx(began + 0.1 * pushes(1), abs=1e-5)
    assert not np.array_equal(cold.features(), warm.features())


def test_a_snapshot_from_elsewhere_is_refused(dream, dots, tiny_model, world):
    d = dream(2, precision="float32")
    d.reset(seeds=0)
    before = d.snapshot()
    strangers = []
    with torch.no_grad():
        tiny_model.stream.token_out.bias.add_(1e-3)
    for other in (
        dream(3),
        dots(2),
        Imagination(tiny_model, num_envs=2, starts=world.starts, precision="float32"),
        dream(2, precision="bfloat16"),
    ):
        other.reset(seeds=0)
        strangers.append(other.snapshot())
    for snap, message in zip(
        strangers, ("2 rows, got one of 3", "got one of DotWorld on world", "other weights", "bfloat16"), strict=True
    ):
        with pytest.raises(ValueError, match=message):
            d.restore(snap)
    with pytest.raises(TypeError, match="got dict"):
        d.restore({})  # type: ignore[arg-type]
    assert d.snapshot() is before


COPIES = {
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),  # noqa: S301 (our own bytes)
    "deepcopy": copy.deepcopy,
    "torch.save": lambda x: _through_a_file(x),
}


def _through_a_file(value: object) -> object:
    file = io.BytesIO()
    torch.save(value, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("looked", [False, True])
def test_a_copied_snapshot_restores_to_the_bit(dream, pushes, way, looked):
    d = dream(3)
    d.reset(seeds=0)
    d.step(pushes(3))
    d.step_chunk(pushes(3, 2))
    if looked:
        d.frames()
        d.reset(np.array([False, True, False]))
    snap, copied = d.snapshot(), COPIES[way](d.snapshot())
    frames = d.frames()
    ahead = [(d.step(pushes(3, seed=k)).reward, d.frames()) for k in range(3)]
    for kept in (copied, snap):
        d.restore(kept)
        assert d.snapshot() is kept
        assert np.array_equal(d.frames(), frames)
        for k, (reward, frame) in enumerate(ahead):
            assert np.array_equal(d.step(pushes(3, seed=k)).reward, reward)
            assert np.array_equal(d.frames(), frame)


def test_a_pickled_snapshot_is_as_small_as_its_state(dream, pushes):
    d = dream(1)
    d.reset(seeds=0)
    for k in range(3):
        d.step_chunk(pushes(1, 4, seed=k))
    snap = d.snapshot()
    tensors = [*vars(snap.state).values(), snap.elapsed, snap.ended, snap.start, snap.noise.seed, snap.noise.count]
    size = sum(x.numel() * x.element_size() for x in tensors) + snap.frame.numel()
    assert len(pickle.dumps(snap)) < size + 6000
    assert not any(isinstance(x, torch.nn.Module) for x in vars(snap).values())


SAVED = """
import pickle, sys
import numpy as np
import torch
from neuralsim.imagination import Imagination
from neuralsim.pretrained.world import open_world
from neuralsim.task import FunctionTask

torch.set_num_threads(1)
world, folder = open_world(sys.argv[1]), sys.argv[2]
d = Imagination(world.model, FunctionTask(lambda a, b, c: 0 * c.features[:, 0]), num_envs=2, starts=world.starts)
d.restore(pickle.load(open(f"{folder}/snapshot", "rb")))
d.step(np.load(f"{folder}/moves.npy"))
np.save(f"{folder}/frames.npy", d.frames())
"""


def test_a_snapshot_restores_in_another_process(dream, pushes, tiny_world, tmp_path):
    d = dream(2)
    d.reset(seeds=0)
    d.step(pushes(2))
    (tmp_path / "snapshot").write_bytes(pickle.dumps(d.snapshot()))
    np.save(tmp_path / "moves.npy", pushes(2, seed=5))
    subprocess.run([sys.executable, "-c", SAVED, str(tiny_world), str(tmp_path)], check=True)
    d.step(pushes(2, seed=5))
    assert np.abs(np.load(tmp_path / "frames.npy").astype(int) - d.frames()).max() <= 1  # another number of threads


def test_an_imagination_can_be_copied_and_pickled(dream, pushes):
    d = dream(2)
    d.reset(seeds=0)
    d.step(pushes(2))
    d.frames()
    d.reset(np.array([True, False]))
    snap = d.snapshot()
    other = copy.deepcopy(d)
    other.restore(snap)
    for x in (d, other):
        x.step(pushes(2, seed=3))
    assert np.array_equal(d.frames(), other.frames())
    d.restore(other.snapshot())


def test_weights_that_were_written_to_are_other_weights(dream, tiny_model, world, endless):
    d = Imagination(tiny_model, endless, starts=world.starts)
    d.reset(seeds=0)
    snap = d.snapshot()
    d.restore(snap)
    with torch.no_grad():
        tiny_model.stream.token_out.bias.add_(1e-3)
    with pytest.raises(ValueError, match="other weights"):
        d.restore(snap)


def test_a_fork_holds_each_row_n_times_and_leaves_the_first_alone(dream, pushes):
    d = dream(2)
    d.reset(seeds=0)
    d.step(pushes(2))
    before = d.snapshot()
    branches = d.fork(3)
    assert branches.num_envs == 6
    assert np.array_equal(branches.frames(), d.frames().repeat(3, 0))
    assert np.array_equal(branches.features(), d.features().repeat(3, 0))
    moves = pushes(4, 6)
    moves[:, 1] = moves[:, 0]  # copies 0 and 1 of row 0 do the same
    frames = film(branches, moves)
    assert np.array_equal(frames[:, 0], frames[:, 1])
    assert (frames[:, 0] != frames[:, 2]).any()
    assert d.snapshot() is before
    film(d, moves[:, [0, 3]])
    assert np.abs(d.frames().astype(int) - frames[-1][[0, 3]]).mean() < 1  # the fork went where the row itself goes
    assert branches.elapsed.tolist() == [5] * 6


def test_a_fork_may_have_luck_of_its_own(dots):
    d = dots(1)
    d.reset(seeds=0)
    still = np.zeros((4, 2), np.float32)
    same_luck, own_luck = d.fork(4), d.fork(4, seeds=range(4))
    same_luck.step(still)
    own_luck.step(still)
    assert len(np.unique(same_luck.features(), axis=0)) == 1
    assert len(np.unique(own_luck.features(), axis=0)) == 4
    with pytest.raises(ValueError, match="one seed for each of the 4"):
        d.fork(4, seeds=[1])


def test_a_fork_into_32_copies_each_tensor_once_and_runs_no_model(world):
    # At the shipped model's size, or larger; 'neuralsim bench' measures its time, with a target of 5 ms.
    from neuralsim.envs.pusht.env import pusht_spec

    model = VideoWAM.build(pusht_spec(), CodecConfig(), StreamConfig()).eval()
    d = Imagination(model, starts=world.starts)
    d.reset(seeds=0)
    operations: list[str] = []

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            operations.append(str(function))
            return function(*args, **(kwargs or {}))

    with Recorded():
        branches = d.fork(32)
    assert len(branches.features()) == 32
    assert len(operations) < 30, operations
    assert not [name for name in operations if any(word in name for word in ("mm", "conv", "linear", "attention"))]


# -- looking -----------------------------------------------------------------------------------------------------------


def test_pixels_are_decoded_once_per_step_and_only_if_looked_at(dots, pushes):
    d = dots(4)
    model = d.model  # the Imagination's own view of the weights counts its own calls
    d.reset(seeds=0)
    for k in range(3):
        d.step(pushes(4, seed=k))
        d.step_chunk(pushes(4, 2, seed=k))
        d.features()
    d.reset(np.array([True, False, False, False]))
    d.fork(8).features()
    assert model.decoded == 0
    d.frames()
    d.frames()
    assert model.decoded == 1
    d.fork(8).frames()
    assert model.decoded == 1  # copies of what has been seen
    chunk = d.step_chunk(pushes(4, 3))
    chunk.frames()
    chunk.frames()
    d.frames()
    assert model.decoded == 2


def test_a_masked_reset_decodes_only_the_new_rows(dots, pushes, monkeypatch):
    d = dots(6)
    d.reset(seeds=0)
    d.step(pushes(6))
    sizes = []
    decode = type(d.model).decode
    monkeypatch.setattr(type(d.model), "decode", lambda self, state: (sizes.append(len(state)), decode(self, state))[1])
    before = d.frames()
    d.reset(np.array([False, True, False, False, True, False]))
    after = d.frames()
    assert sizes == [6, 2]
    assert np.array_equal(before[[0, 2, 3, 5]], after[[0, 2, 3, 5]])
    with d.view.inference():
        assert np.array_equal(after, decode(d.model, d.view.state).numpy())


def test_denoising_steps_change_live_and_are_nobody_elses(dream, world, dots, pushes):
    one, two = dream(1, denoise_steps=1), dream(1, denoise_steps=3)
    assert (one.denoise_steps, two.denoise_steps, world.model.denoise_steps) == (1, 3, 1)
    for d in (one, two):
        d.reset(seeds=0)
        d.step(pushes(1))
    assert not np.array_equal(one.features(), two.features())
    snap = one.snapshot()
    one.denoise_steps = 3
    one.restore(snap)
    branch = one.fork(2)
    one.denoise_steps = 2
    assert (one.denoise_steps, branch.denoise_steps) == (2, 3)
    branch.step(pushes(2))
    with pytest.raises(ValueError, match="denoise_steps: expected a whole number of at least 1 and at most 64, got 0"):
        one.denoise_steps = 0
    with pytest.raises(ValueError, match="DotWorld does not denoise"):
        dots(1, denoise_steps=2)


# -- histories and the border ------------------------------------------------------------------------------------------


def test_it_begins_from_any_history(dream, world):
    starts = world.starts
    shipped, own = dream(2), dream(2)
    shipped.reset(seeds=0, options={"start": [1, 4]})
    own.reset(seeds=0, options={"frames": starts.frames[[1, 4]], "actions": starts.actions[[1, 4]]})
    assert np.array_equal(shipped.frames(), own.frames())
    assert np.array_equal(shipped.features(), own.features())
    assert shipped.start.tolist() == [1, 4]
    assert own.start.tolist() == [-1, -1]
    own.reset(seeds=0, options={"frames": starts.frames[2], "actions": starts.actions[2]})
    shipped.reset(seeds=0, options={"start": 2})
    assert np.array_equal(shipped.features(), own.features())


@pytest.mark.parametrize("t", [1, 2, 3, 4, 9])
def test_a_history_may_be_short_or_long(dream, world, pushes, t):
    frames = np.concatenate([world.starts.frames[i] for i in range(3)])[:t]
    d = dream(1)
    d.reset(seeds=0, options={"frames": frames, "actions": pushes(t - 1)} if t > 1 else {"frames": frames})
    d.step(pushes(1))
    assert d.frames().shape == (1, 64, 64, 3)


def test_where_it_begins_is_where_the_true_simulator_was(tiny_world):
    from neuralsim.envs.pusht.env import PushTRealEnv

    starts = open_world(tiny_world, "cpu").starts
    assert starts is not None
    assert starts.states is not None
    true = PushTRealEnv()
    frame, _ = true.reset(options={"state": starts.states[3, -1]})
    assert np.array_equal(frame, starts.frames[3, -1])
    true.close()


GREY = np.zeros((4, 64, 64, 3), np.uint8)
BAD_OPTIONS = [
    ({"frames": GREY.astype(np.float32), "actions": np.zeros((3, 2))}, "frames'.*expected uint8.*float32"),
    (
        {"frames": np.zeros((4, 32, 32, 3), np.uint8), "actions": np.zeros((3, 2))},
        r"frames'.*64, 64, 3.*\(4, 32, 32, 3\)",
    ),
    ({"frames": GREY[0]}, r"frames'.*expected a history.*got \(64, 64, 3\)"),
    ({"frames": GREY[:0], "actions": np.zeros((0, 2))}, "too short a history; expected at least 1 frame"),
    ({"frames": GREY}, r"4 frames need the 3 actions between them, shape \(3, 2\); got none"),
    ({"frames": GREY, "actions": np.zeros((4, 2))}, r"4 frames need 3 actions.*got \(4, 2\)"),
    (
        {"frames": GREY, "actions": np.zeros((3, 3))},
        r"actions'.*expected shape \(\.\.\., 2\) \(right, down\), got \(3, 3\)",
    ),
    ({"frames": GREY, "actions": np.full((3, 2), np.nan)}, "actions'.*expected finite numbers, got NaN"),
    ({"frames": GREY, "actions": np.full((3, 2), 7.0)}, r"actions'.*expected values in \[-1, 1\]"),
    ({"frames": np.stack([GREY] * 5), "actions": np.zeros((3, 2))}, r"one per row \(2, t, 64, 64, 3\), got \(5, 4,"),
    ({"actions": np.zeros((3, 2))}, "'actions' came without 'frames'"),
    ({"start": 0, "frames": GREY, "actions": np.zeros((3, 2))}, "exclude each other"),
    ({"start": 6}, r"starts 0\.\.5, got 6"),
    ({"start": -1}, r"starts 0\.\.5, got -1"),
    ({"start": 1.5}, "expected an int"),
    ({"start": [1, 2, 3]}, r"ints of shape \(2,\)"),
    ({"state": 3, "seed": 1}, r"unknown \['seed', 'state'\]"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_a_bad_beginning_is_named_and_nothing_changes(dream, pushes, options, message):
    d = dream(2)
    d.reset(seeds=0)
    d.step(pushes(2))
    before, kept = d.snapshot(), copy.deepcopy(d.snapshot())
    with pytest.raises(ValueError, match=message):
        d.reset(seeds=1, options=options)
    assert d.snapshot() is before
    assert same(before, kept)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros((3, 2)), r"expected shape \(2, 2\) for 2 rows, got \(3, 2\)"),
        (np.zeros(2), r"expected shape \(2, 2\) for 2 rows, got \(2,\)"),
        (np.zeros((2, 3)), r"expected shape \(\.\.\., 2\) \(right, down\), got \(2, 3\)"),
        (np.array([[0, np.nan], [0, 0]]), r"NaN or infinity at \[0, 1\]"),
        (np.array([[0, 1.5], [0, 0]]), r"expected values in \[-1, 1\], got a value of magnitude 1.5"),
        ("right", "expected numbers"),
        (None, r"expected .*shape"),
    ],
)
def test_a_bad_action_is_named_and_nothing_changes(dream, action, message):
    d = dream(2)
    d.reset(seeds=0)
    before = d.snapshot()
    with pytest.raises(ValueError, match=message):
        d.step(action)
    assert d.snapshot() is before


@pytest.mark.parametrize("shape", [(2, 2), (2, 0, 2), (3, 4, 2), (2, 4, 3)])
def test_a_bad_chunk_is_named_and_nothing_changes(dream, shape):
    d = dream(2)
    d.reset(seeds=0)
    before = d.snapshot()
    with pytest.raises(ValueError, match=r"action: expected shape \((2, 'k', 2\) for 2 rows|\.\.\., 2\))"):
        d.step_chunk(np.zeros(shape, np.float32))
    assert d.snapshot() is before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask": np.ones(3, bool)}, ValueError, r"mask: expected bool \(2,\), got bool \(3,\)"),
        ({"mask": np.ones(2)}, ValueError, "mask: expected bool"),
        ({"seeds": [1]}, ValueError, "seeds: expected one for each of the 2 rows, got 1"),
        ({"seeds": [1, "two"]}, TypeError, "seed: expected a whole number, got 'two'"),
        ({"options": [1]}, TypeError, "options: expected a dict, got list"),
    ],
)
def test_other_bad_arguments_of_reset_are_named(dream, arguments, error, message):
    d = dream(2)
    d.reset(seeds=0)
    before = d.snapshot()
    with pytest.raises(error, match=message):
        d.reset(**arguments)
    assert d.snapshot() is before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_envs": 0}, "num_envs: expected a whole number of at least 1, got 0"),
        ({"horizon": 0}, "horizon"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"uncertainty_limit": 0.0}, "uncertainty_limit"),
        ({"precision": "float8"}, "precision: expected 'auto', 'float32' or 'bfloat16', got 'float8'"),
    ],
)
def test_bad_settings_are_named(world, settings, message):
    with pytest.raises(ValueError, match=message):
        Imagination(world.model, starts=world.starts, **settings)


def test_nothing_works_before_the_first_reset(dream, pushes):
    d = dream(2)
    for call in (lambda: d.step(pushes(2)), d.frames, d.features, d.snapshot, lambda: d.fork(2)):
        with pytest.raises(ResetNeeded, match="call reset first"):
            call()
    with pytest.raises(ResetNeeded, match="all 2 rows"):
        d.reset(np.array([True, False]))


def test_a_model_without_heads_or_starts_says_what_to_pass(dot_model, dot_world):
    type(dot_model).head_names, heads = (), type(dot_model).head_names
    try:
        with pytest.raises(ValueError, match=r"no learned \['reward', 'terminated'\]: pass a task"):
            Imagination(dot_model)
        d = Imagination(dot_model, FunctionTask(lambda b, a, after: after.features[:, 0]))
    finally:
        type(dot_model).head_names = heads
    with pytest.raises(ValueError, match="no start states"):
        d.reset(seeds=0)
    assert dot_world.starts is not None
    d.reset(seeds=0, options={"frames": dot_world.starts.frames[0], "actions": dot_world.starts.actions[0]})
    assert d.step(np.zeros((1, 2), np.float32)).reward[0] == d.features()[0, 0]


def test_what_raises_half_way_is_undone(dots, pushes):
    d = dots(2)
    d.reset(seeds=0)
    before = d.snapshot()

    def interrupted():
        with d.all_or_nothing():
            d.step(pushes(2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert d.snapshot() is before


# -- the catalog -------------------------------------------------------------------------------------------------------


def test_a_world_opens_as_it_was_saved(tiny_world, tiny_model):
    luck = torch.get_rng_state()
    world = open_world(tiny_world, "cpu")
    assert torch.equal(luck, torch.get_rng_state())
    assert world.folder == tiny_world.resolve()
    assert world.card.startswith("# tiny")
    assert world.spec == tiny_model.spec
    assert not world.model.training
    for name, weight in tiny_model.state_dict().items():
        assert torch.equal(weight, world.model.state_dict()[name])
    assert open_world(str(tiny_world), "cpu").model.stream is world.model.stream  # read once
    assert open_world(world) is world
    assert copy.deepcopy(world) is world


def test_an_unknown_world_is_answered_with_what_there_is(tmp_path, monkeypatch):
    shipped = tmp_path / "assets" / "pusht-wam"
    shipped.mkdir(parents=True)
    (shipped / "config.json").write_text("{}")
    monkeypatch.setattr("neuralsim.storage.resolve.assets", lambda: tmp_path / "assets")
    assert list_worlds() == ["pusht", "pusht-video", "pusht-wam"]
    with pytest.raises(FileNotFoundError, match=r"pusht, pusht-video, pusht-wam.*did you mean 'pusht'"):
        open_world("psht")
    with pytest.raises(FileNotFoundError, match="neither a shipped world"):
        open_world(tmp_path / "nowhere")


def test_a_folder_that_is_no_world_says_what_is_missing(tmp_path, tiny_world):
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        open_world(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "os.system"}')
    with pytest.raises(ValueError, match=r"unknown model class 'os\.system'; this NeuralSim knows VideoWAM"):
        open_world(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="not a JSON object"):
        open_world(tmp_path)
    (tmp_path / "config.json").write_text((tiny_world / "config.json").read_text())
    with pytest.raises(ValueError, match="safetensors is missing"):
        open_world(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"\x80\x04nonsense")
    with pytest.raises(ValueError, match="do not make a VideoWAM"):
        open_world(tmp_path)


def test_starts_are_never_unpickled_and_checked_against_the_spec(tmp_path, tiny_model, world):
    path = tmp_path / "starts.npz"
    np.savez(path, frames=np.array([object()]), actions=np.zeros((1, 3, 2)))
    with pytest.raises(ValueError, match="not a starts file of plain arrays"):
        Starts.load(path, tiny_model.spec)
    np.savez(path, frames=np.zeros((1, 4, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"\['actions'\] missing"):
        Starts.load(path, tiny_model.spec)
    np.savez(path, frames=np.zeros((1, 4, 64, 64, 3), np.uint8), actions=np.zeros((1, 4, 2), np.float32))
    with pytest.raises(ValueError, match=r"expected actions of shape \(1, 3, 'a'\)"):
        Starts.load(path, tiny_model.spec)
    world.starts.save(path)
    again = Starts.load(path, tiny_model.spec)
    assert all(
        np.array_equal(getattr(again, k), getattr(world.starts, k)) for k in ("frames", "actions", "states", "seeds")
    )
