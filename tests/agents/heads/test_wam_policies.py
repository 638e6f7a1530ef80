"""Heads promise: chunks of actions in the world's range, from seeds and histories alone, that go on from what is settled."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuralsim.agents.heads.chunk_policy import ActionChunkBroker, ObservationHistory
from neuralsim.agents.heads.evaluate import HeadsConfig, evaluate_heads
from neuralsim.agents.heads.training import HeadBudget, train_head
from neuralsim.agents.heads.wam_policies import WAYS, find_head
from neuralsim.data.store import EpisodeStore
from neuralsim.models.flow_head import FlowHead
from neuralsim.pretrained.world import World, open_world

SMALL = HeadBudget(chunks=640, batch=64)
NAMES = (*WAYS, "post", "bc")


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
def test_a_head_proposes_whole_chunks_within_range(name, world, trained, seen):
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
def test_what_is_settled_comes_back_bit_equal(length, name, seed, world, trained, seen):
    head = find_head(name, world, passes=2, folder=trained)
    prefix = np.random.default_rng(seed).uniform(-1, 1, (3, length, 2)).astype(np.float32)
    chunk = head.predict_action_chunk(seen, [seed, seed + 1, seed + 2], prefix)
    assert np.array_equal(chunk[:, :length], prefix)
    assert np.isfinite(chunk).all()


def test_a_prefix_as_long_as_the_chunk_leaves_nothing_to_ask(world, seen):
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
    state = model.start(tokens, torch.zeros(3, 0, 2))
    from neuralsim.noise import Noise

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


def test_wrong_names_worlds_and_folders_are_told(world, tmp_path):
    with pytest.raises(ValueError, match=r"no head 'joit'.*did you mean 'joint'"):
        find_head("joit", world)
    with pytest.raises(FileNotFoundError, match="neuralsim heads pusht"):
        find_head("post", world, folder=tmp_path)
    with pytest.raises(ValueError, match="simulates only"):
        find_head("joint", open_world("tworoom", "cpu"))
    with pytest.raises(ValueError, match="simulates only"):
        evaluate_heads(HeadsConfig(world="tworoom", out=tmp_path))
    with pytest.raises(ValueError, match="execute: expected 1 to"):
        ActionChunkBroker(find_head("joint", world), n_action_steps=99)


def test_the_table_of_heads_goes_on_where_it_stopped(wam, demonstrations, trained, tmp_path):
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
    ("wrong", "told"),
    [
        ({"heads": ("pots",)}, "--heads: there is no pots"),
        ({"episodes": 0}, "--episodes: expected 1 or more"),
        ({"passes": ()}, "--passes: expected numbers of 1 or more"),
        ({"n_action_steps": (0,)}, "--n-action-steps: expected numbers of 1 or more"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        HeadsConfig(**wrong)
