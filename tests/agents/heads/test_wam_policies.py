"""Policy heads: chunks of actions in range, functions of seeds and histories alone, that continue the actions under way."""

import copy
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuralsim.agents.heads import evaluate
from neuralsim.agents.heads.chunk_policy import ActionChunkBroker, ObservationHistory
from neuralsim.agents.heads.evaluate import HeadsConfig, evaluate_heads
from neuralsim.agents.heads.training import ORIGIN, HeadBudget, train_head
from neuralsim.agents.heads.wam_policies import METHODS, WAMPolicy, find_head
from neuralsim.data.store import EpisodeStore
from neuralsim.models.action_encoding import EncodedActions
from neuralsim.models.flow_head import FlowHead
from neuralsim.models.roles import DISCOUNT, predict_actions, predict_value
from neuralsim.noise import Noise
from neuralsim.pretrained.world import World, open_world
from neuralsim.runtime.device import inference
from neuralsim.storage.weights import save_world

SMALL = HeadBudget(chunks=640, batch=64)
NAMES = (*METHODS, "post", "bc")


@pytest.fixture(scope="module")
def world(wam: Path) -> World:
    return open_world(wam, "cpu")


@pytest.fixture(scope="module")
def trained(world: World, demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    for name in ("post", "bc"):
        train_head(name, world.model, EpisodeStore(demonstrations), folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def seen(world: World) -> ObservationHistory:
    assert world.starts is not None
    return ObservationHistory(world.starts.frames[:3], world.starts.actions[:3])


@pytest.mark.parametrize("name", NAMES)
def test_a_head_predicts_whole_chunks_within_range(name, world, trained, seen):
    head = find_head(name, world, passes=2, folder=trained)
    chunk = head.predict_action_chunk(seen, [1, 2, 3])
    assert chunk.shape == (3, head.chunk, 2)
    assert chunk.dtype == np.float32
    assert np.abs(chunk).max() <= 1
    assert len(np.unique(chunk.reshape(3, -1), axis=0)) == 3


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_and_history_give_the_same_chunk_alone_and_among_others(name, world, trained, seen):
    head = find_head(name, world, passes=2, folder=trained)
    together = head.predict_action_chunk(seen, [1, 2, 3])
    assert np.array_equal(together, head.predict_action_chunk(seen, [1, 2, 3]))
    alone = head.predict_action_chunk(ObservationHistory(seen.frames[1:2], seen.actions[1:2]), [2])
    assert np.allclose(alone[0], together[1], atol=2e-2)
    assert not np.array_equal(head.predict_action_chunk(seen, [7, 8, 9]), together)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(0, 5), name=st.sampled_from(NAMES), seed=st.integers(0, 2**40))
def test_a_prefix_comes_back_bit_equal(length, name, seed, world, trained, seen):
    head = find_head(name, world, passes=2, folder=trained)
    prefix = np.random.default_rng(seed).uniform(-1, 1, (3, length, 2)).astype(np.float32)
    chunk = head.predict_action_chunk(seen, [seed, seed + 1, seed + 2], prefix)
    assert np.array_equal(chunk[:, :length], prefix)
    assert np.isfinite(chunk).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_copied_head_and_one_in_a_forked_child_predict_alike(name, world, trained, seen):
    head = find_head(name, world, passes=2, folder=trained)
    expected = head.predict_action_chunk(seen, [1, 2, 3])
    for copied in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):  # noqa: S301 (our own)
        assert np.array_equal(copied.predict_action_chunk(seen, [1, 2, 3]), expected)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply_async(head.predict_action_chunk, (seen, [1, 2, 3])).get(timeout=300)
    assert np.allclose(found, expected, atol=2e-2)


@pytest.mark.parametrize("name", NAMES)
def test_torchs_default_dtype_changes_nothing(name, world, trained, seen):
    expected = find_head(name, world, passes=2, folder=trained).predict_action_chunk(seen, [1, 2, 3])
    torch.set_default_dtype(torch.float64)
    try:
        found = find_head(name, world, passes=2, folder=trained).predict_action_chunk(seen, [1, 2, 3])
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)


def test_a_prefix_as_long_as_the_chunk_is_refused(world, seen):
    head = find_head("joint", world)
    with pytest.raises(ValueError, match="prefix: expected fewer than"):
        head.predict_action_chunk(seen, [1, 2, 3], np.zeros((3, head.chunk, 2), np.float32))


def test_a_trained_head_is_read_back_to_the_bit(world, demonstrations, tmp_path):
    made = train_head("bc", world.model, EpisodeStore(demonstrations), tmp_path, SMALL, seed=4)
    read = FlowHead.from_pretrained(tmp_path / "bc", low_cpu_mem_usage=False)
    for name, tensor in made.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    again = train_head("bc", world.model, EpisodeStore(demonstrations), tmp_path, SMALL, seed=4)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in made.state_dict().items())
    assert not list(tmp_path.glob(".*"))


def test_training_brings_the_error_down(world, demonstrations, tmp_path):
    store = EpisodeStore(demonstrations)
    errors = []
    for chunks in (64, 6400):
        head = train_head("bc", world.model, store, tmp_path, HeadBudget(chunks=chunks, batch=64, ema=0.9))
        runner = find_head("bc", world, folder=tmp_path)
        assert head.sees == "now"
        found = []
        for i in range(len(store)):
            episode = store[i]
            chunk = runner.predict_action_chunk(
                ObservationHistory(episode.frames[None, :1], episode.actions[None, :0]), [i]
            )
            found.append(np.square(chunk[0] - episode.actions[: runner.chunk]).mean())
        errors.append(np.mean(found))
    assert errors[1] < errors[0]


def test_only_the_post_prediction_head_reads_the_future(world, trained, seen):
    model = world.model
    tokens = model.codec.encode(torch.as_tensor(seen.frames[:, -1]))[:, None]
    state = model.start(tokens, EncodedActions(torch.zeros(3, 0, 2)))
    rng = Noise.from_seeds([1, 2, 3])
    trained_heads = {name: FlowHead.from_pretrained(trained / name, low_cpu_mem_usage=False) for name in ("post", "bc")}
    with torch.no_grad():
        reads = {name: head.context(model, tokens, state, rng) for name, head in trained_heads.items()}
        now = trained_heads["bc"].now_in.in_features
        assert reads["bc"].shape[1] == now
        assert torch.equal(reads["post"][:, :now], reads["bc"])
        blank = torch.cat([reads["post"][:, :now], torch.zeros_like(reads["post"][:, now:])], 1)
        kept, lost = (trained_heads["post"].predict_action_chunk(read, rng, 2) for read in (reads["post"], blank))
    assert not torch.allclose(kept, lost, atol=1e-4)


def test_wrong_names_worlds_and_folders_are_named(world, tmp_path):
    with pytest.raises(ValueError, match=r"no head 'joit'.*did you mean 'joint'"):
        find_head("joit", world)
    with pytest.raises(FileNotFoundError, match="neuralsim heads pusht"):
        find_head("post", world, folder=tmp_path)
    with pytest.raises(ValueError, match="simulates only"):
        find_head("joint", open_world("tworoom", "cpu"))
    with pytest.raises(ValueError, match="simulates only"):
        evaluate_heads(HeadsConfig(world="tworoom", out=tmp_path))
    with pytest.raises(ValueError, match="n_action_steps: expected 1 to"):
        ActionChunkBroker(find_head("joint", world), n_action_steps=99)


def changed(world: World) -> World:
    """The same world with one weight changed."""
    copied = copy.deepcopy(world.model)
    next(iter(copied.parameters())).data.add_(0.5)
    return World(copied, world.starts)


def test_a_head_trained_beside_other_weights_is_not_used(world, trained, tmp_path):
    assert find_head("bc", world, folder=trained).chunk
    with pytest.raises(
        ValueError, match=r"bc: was trained beside a world with weights of fingerprint \w{16}, this one's"
    ):
        find_head("bc", changed(world), folder=trained)
    shutil.copytree(trained / "bc", tmp_path / "bc")
    (tmp_path / "bc" / ORIGIN).unlink()  # as earlier versions wrote it
    with pytest.raises(ValueError, match=r"of fingerprint unknown, this one's .* train it again"):
        find_head("bc", world, folder=tmp_path)


@pytest.mark.parametrize("change", ["world", "data", "seed", "nothing"])
def test_heads_are_trained_again_where_world_data_or_seed_changed(
    change, wam, demonstrations, trained, tmp_path, monkeypatch
):
    """Only what a head was trained with decides whether it is used again, and its trials with it; not where it lies."""
    out, place, demos = tmp_path / "out", tmp_path / "world", tmp_path / "demos"
    shutil.copytree(trained / "bc", out / "bc")
    shutil.copytree(wam, place)
    shutil.copytree(demonstrations, demos)  # another place, the same content
    asked = {
        "world": str(place),
        "heads": ("bc",),
        "passes": (1,),
        "episodes": 2,
        "steps": 3,
        "demos": demos,
        "out": out,
    }
    monkeypatch.setattr(evaluate, "HeadBudget", lambda: SMALL)
    evaluate_heads(HeadsConfig(**asked, oracle=False))
    before = (out / "bc" / ORIGIN).read_text()
    assert before == (trained / "bc" / ORIGIN).read_text()
    if change == "world":
        save_world(changed(open_world(place, "cpu")).model, place)
        (place / "world.json").unlink(missing_ok=True)
    if change == "data":
        path = max(demos.glob("shard-*")) / "actions.npy"
        actions = np.load(path)
        actions[0] = -actions[0] / 2
        np.save(path, actions)
    config = HeadsConfig(**asked, oracle=False, seed=int(change == "seed"), fresh=change in ("world", "seed"))
    evaluate_heads(config)
    assert ((out / "bc" / ORIGIN).read_text() == before) == (change == "nothing")
    lines = (out / "trials.jsonl").read_text().splitlines()
    assert len(lines) == 1 + (2 if change == "data" else 1)  # settings, and a trial of the old head and of the new one


def test_best_processes_the_history_once_per_row(world, seen):
    """Not once per proposal: the simulating stream sees a row's keys and values once, and each proposal's imagined frames."""
    head = find_head("best", world)
    rows: list[int] = []
    memory = type(world.model).memory

    class Counted(type(world.model)):
        def memory(self, state):
            rows.append(len(state))
            return memory(self, state)

    world.model.__class__, kept = Counted, world.model.__class__
    try:
        together = head.predict_action_chunk(seen, [1, 2, 3])
    finally:
        world.model.__class__ = kept
    assert rows == [3]
    assert np.isfinite(together).all()


def test_best_takes_the_proposal_of_highest_value(world, seen):
    """Each proposal as ``joint`` predicts it, rolled out one after the other, gives the same choice."""
    model, n = world.model, 5
    head = WAMPolicy(model, "best", passes=2, n_proposals=n, precision="float32")
    chosen = head.predict_action_chunk(seen, [4, 5, 6])
    with inference(model.device, torch.float32):
        state = model.encode(torch.tensor(seen.frames), torch.tensor(seen.actions))
        for row in range(3):
            one, found = state.index(torch.tensor([row])), []
            for i in range(n):
                noise = Noise.from_seeds([4 + row]).advance(i)
                chunk = predict_actions(model, one, noise, 2)
                here, value = one, torch.zeros(1)
                for step in range(chunk.shape[1]):
                    action = EncodedActions(chunk[:, step : step + 1])
                    here = model.step_without_history(here, action, noise.advance(n + step))
                    value = torch.maximum(value, DISCOUNT ** (step + 1) * predict_value(model, here))
                found.append((float(value), chunk[0].numpy()))
            best = max(found, key=lambda pair: pair[0])[1]
            assert np.allclose(chosen[row], best, atol=1e-3)


def test_the_table_of_heads_continues_where_it_stopped(wam, demonstrations, trained, tmp_path):
    asked = {
        "world": str(wam),
        "heads": ("joint", "bc"),
        "passes": (1,),
        "episodes": 3,
        "steps": 6,
        "demos": demonstrations,
        "out": trained,
    }
    report, files = evaluate_heads(HeadsConfig(**asked, json=tmp_path / "figures.json"))
    assert all(path.is_file() for path in files)
    keys = {row.key for row in report.rows}
    assert {"success/joint, 1 pass, 4 of a chunk", "success/bc, 1 pass, 4 of a chunk", "success/oracle"} <= keys
    assert "share_of_oracle" in keys
    lines = (trained / "trials.jsonl").read_text()
    again, _ = evaluate_heads(HeadsConfig(**asked))
    assert (trained / "trials.jsonl").read_text() == lines
    assert [row.value for row in again.rows] == pytest.approx([row.value for row in report.rows], nan_ok=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": ("pots",)}, "--heads: there is no pots"),
        ({"episodes": 0}, "--episodes: expected 1 or more"),
        ({"passes": ()}, "--passes: expected numbers of 1 or more"),
        ({"n_action_steps": (0,)}, "--n-action-steps: expected numbers of 1 or more"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        HeadsConfig(**wrong)
