"""The episode store: what goes in comes out, whole shards or none, and every window is aligned."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import coded_store
import numpy as np
import pytest
from coded_store import SPEC, STATE_NAMES, assert_same, coded_episode, filled_store
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralsim.data.episode import HELD_OUT_EVERY, Episode
from neuralsim.data.store import EpisodeStore, JoinedStore
from neuralsim.data.windows import WindowSampler
from neuralsim.spec import WorldSpec


@pytest.mark.parametrize("states", [True, False])
def test_what_goes_in_comes_out(tmp_path: Path, states: bool) -> None:
    lengths = [4, 1, 7, 2, 9]
    filled_store(tmp_path / "store", lengths, states=states)
    store = EpisodeStore(tmp_path / "store")
    assert store.lengths.tolist() == lengths
    assert store.spec == SPEC
    for number, episode in enumerate(store):
        assert_same(episode, coded_episode(number, lengths[number], states))


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 9])
def test_a_limited_store_is_its_first_episodes(tmp_path: Path, limit: int) -> None:
    lengths = [4, 1, 7, 2, 9]
    filled_store(tmp_path / "store", lengths)
    store = EpisodeStore(tmp_path / "store", limit)
    assert store.lengths.tolist() == lengths[:limit]
    for number, episode in enumerate(store):
        assert_same(episode, coded_episode(number, lengths[number], True))


def test_an_episode_must_have_one_frame_more_than_actions() -> None:
    good = coded_episode(1, 5)
    with pytest.raises(ValueError, match="frames has length 5, expected 6"):
        Episode(good.frames[:-1], good.actions, good.rewards, good.terminated, good.truncated)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": np.zeros((6, 8, 8, 3), np.float32)}, "expected uint8"),
        ({"frames": np.zeros((6, 16, 16, 3), np.uint8)}, r"expected shape \(..., 8, 8, 3\)"),
        ({"actions": np.full((5, 2), 1.5)}, r"expected values in \[-1, 1\]"),
        ({"actions": np.full((5, 2), np.nan)}, "NaN"),
        ({"actions": np.zeros((5, 3))}, r"expected shape \(..., 2\)"),
    ],
)
def test_a_bad_episode_is_refused_and_leaves_nothing(
    tmp_path: Path, change: dict[str, np.ndarray], message: str
) -> None:
    store = EpisodeStore.create(tmp_path, SPEC)
    good = coded_episode(1, 5)
    fields = {name: getattr(good, name) for name in ("frames", "actions", "rewards", "terminated", "truncated")}
    with pytest.raises(ValueError, match=message):
        store.add([Episode(**(fields | change))])
    assert [p.name for p in tmp_path.iterdir()] == ["store.json"]


def test_a_shard_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    store = filled_store(tmp_path, [3])
    unwritable = coded_episode(2, 3)
    unwritable.provenance["origin"] = object()
    with pytest.raises(TypeError):
        store.add([unwritable])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shard-00000", "store.json"]


def test_replace_exchanges_one_shard_and_no_other(tmp_path: Path) -> None:
    store = filled_store(tmp_path, [3, 3, 3, 3], shard_size=2)
    old = store[2].frames  # a reader may still look at the old one
    store.replace(1, [coded_episode(7, 4), coded_episode(8, 2)])
    assert [p["seed"] for p in map(EpisodeStore(tmp_path).provenance, range(4))] == [0, 1, 7, 8]
    assert (old[..., 0] == 2).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shard-00000", "shard-00001", "store.json"]


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from coded_store import coded_episode
from neuralsim.data.store import EpisodeStore
store = EpisodeStore({folder!r})
big = [coded_episode(n, 99) for n in range(100)] * 4
print("writing", flush=True)
while True:
    store.add(big)
"""


def test_kill_9_in_the_middle_of_writing_leaves_whole_shards_only(tmp_path: Path) -> None:
    EpisodeStore.create(tmp_path, SPEC, STATE_NAMES)
    program = WRITER.format(tests=str(Path(coded_store.__file__).parent), folder=str(tmp_path))
    rng = np.random.default_rng(0)
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            deadline = time.monotonic() + 20
            while not list(tmp_path.glob(".writing-*/new/*")):
                assert writer.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.01))
            writer.send_signal(signal.SIGKILL)
        store = EpisodeStore(tmp_path)
        assert len(store) == 400 * len(store.shards)
        for i in range(0, len(store), 400):
            assert_same(store[i], coded_episode(0, 99))
        for shard in tmp_path.glob("shard-*"):
            shutil.rmtree(shard)


def test_opening_what_is_no_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neuralsim collect"):
        EpisodeStore(tmp_path / "nothing")


def test_a_store_of_another_version_or_world_is_refused(tmp_path: Path) -> None:
    filled_store(tmp_path, [3])
    with pytest.raises(ValueError, match="choose another folder"):
        EpisodeStore.create(tmp_path, WorldSpec("other", 8, 8, ("x",), ("m",), (1.0,), 10.0, 2))
    body = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps(body | {"version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        EpisodeStore(tmp_path)


def _truncate(shard: Path) -> None:
    whole = (shard / "frames.npy").read_bytes()
    (shard / "frames.npy").write_bytes(whole[: len(whole) // 2])


def _drop_rows(shard: Path) -> None:
    np.save(shard / "rewards.npy", np.load(shard / "rewards.npy")[:-1])


def _pickle(shard: Path) -> None:
    np.save(shard / "rewards.npy", np.array([{"an": "object"}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _drop_rows,
        _pickle,
        lambda shard: (shard / "actions.npy").unlink(),
        lambda shard: (shard / "actions.npy").write_bytes(b""),
        lambda shard: (shard / "episodes.json").unlink(),
        lambda shard: (shard / "episodes.json").write_text('[{"length": 3'),
        lambda shard: (shard / "episodes.json").write_text('[{"steps": 3}]'),
    ],
)
def test_a_damaged_shard_is_named(tmp_path: Path, damage: object) -> None:
    filled_store(tmp_path, [3, 4, 5, 6], shard_size=2)
    damage(tmp_path / "shard-00001")  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"shard-00001: damaged shard .* delete this folder"):
        EpisodeStore(tmp_path)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=45),
    shard_size=st.integers(1, 7),
    window=st.integers(1, 9),
    held_out=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_window_is_aligned_and_on_its_side_of_the_split(
    lengths: list[int], shard_size: int, window: int, held_out: bool, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = filled_store(Path(folder), lengths, shard_size)
        mine = [n for n in range(len(lengths)) if (n % HELD_OUT_EVERY == 0) == held_out]
        expected = {(n, s) for n in mine for s in range(lengths[n] + 2 - window)}
        if not expected:
            with pytest.raises(
                ValueError, match=f"{'held-out' if held_out else 'training'} episode has {window} frames"
            ):
                WindowSampler(store, window, held_out)
            return
        sampler = WindowSampler(store, window, held_out)
        numbers, starts = sampler.locate(np.arange(len(sampler)))
        assert sorted(zip(numbers.tolist(), starts.tolist(), strict=True)) == sorted(expected)  # each window once

        clip = sampler.sample(16, np.random.default_rng(seed))
        assert clip.frames.shape == (16, window, *SPEC.frame_shape)
        assert clip.actions.shape == (16, window - 1, 2)
        number, first = clip.frames[:, 0, 0, 0, 0].astype(int), clip.frames[:, 0, 0, 0, 1].astype(int)
        steps = first[:, None] + np.arange(window)
        assert {(n, s) for n, s in zip(number.tolist(), first.tolist(), strict=True)} <= expected
        assert (clip.frames[..., 0] == number[:, None, None, None]).all()
        assert (clip.frames[..., 1] == steps[:, :, None, None]).all()
        np.testing.assert_allclose(clip.actions[..., 0] * 100, np.repeat(number[:, None], window - 1, 1), atol=1e-3)
        np.testing.assert_allclose(clip.actions[..., 1] * 100, steps[:, :-1], atol=1e-3)
        np.testing.assert_allclose(clip.rewards, number[:, None] + steps[:, :-1] / 100, atol=1e-4)
        np.testing.assert_array_equal(clip.terminated, steps[:, :-1] % 3 == 0)
        assert clip.states is not None
        np.testing.assert_array_equal(clip.states[..., 1], steps)


def test_the_split_goes_by_seed_and_shares_no_episode(tmp_path: Path) -> None:
    store = filled_store(tmp_path, [3] * 45)
    train, held_out = set(store.split(False).tolist()), set(store.split(True).tolist())
    assert held_out == {0, HELD_OUT_EVERY, 2 * HELD_OUT_EVERY}
    assert train | held_out == set(range(45))
    assert not train & held_out
    assert store[HELD_OUT_EVERY].held_out
    assert not store[1].held_out


def test_windows_from_shards_with_and_without_states_have_none(tmp_path: Path) -> None:
    store = filled_store(tmp_path, [5, 5])
    store.add([coded_episode(2, 5, states=False)])
    sampler = WindowSampler(store, 3)
    both = sampler.read(np.array([1, 2]), np.array([0, 1]))
    assert both.states is None
    assert both.frames[:, 0, 0, 0, 1].tolist() == [0, 1]
    assert sampler.read(np.array([1, 1]), np.array([0, 1])).states is not None


def test_stores_of_one_world_are_read_as_one_and_others_are_refused(tmp_path: Path) -> None:
    stores = []
    for number, count in enumerate((2, 3)):
        one = EpisodeStore.create(tmp_path / str(number), SPEC, STATE_NAMES)
        one.add([coded_episode(10 * number + i, 4 + i) for i in range(count)])
        stores.append(one)
    joined = JoinedStore(stores)
    assert len(joined) == 5
    for i, (store, index) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]):
        np.testing.assert_array_equal(joined[i].frames, stores[store][index].frames)
        np.testing.assert_array_equal(joined[i].actions, stores[store][index].actions)
        assert joined.provenance(i) == stores[store].provenance(index)
    with pytest.raises(TypeError, match="write to one of them"):
        joined.add([coded_episode(9, 3)])
    other = EpisodeStore.create(tmp_path / "other", replace(SPEC, action_scale=(1.0, 2.0)), STATE_NAMES)
    with pytest.raises(ValueError, match="are of different worlds"):
        JoinedStore([stores[0], other])
    shifted = EpisodeStore.create(tmp_path / "shifted", SPEC, STATE_NAMES)
    shifted.set_source({"action_offset": [0.5, 0.0]})
    with pytest.raises(ValueError, match="are of different worlds"):
        JoinedStore([stores[0], shifted])


# -- the rules of reading hold when writing -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "plain"),
    [("ALE/Pong-v5", "ALE-Pong-v5"), ("a\\b", "a-b"), ("up/../down", "up-.-down"), ("tab\there", "tab-here")],
)
def test_a_store_gives_its_world_a_plain_name(tmp_path: Path, name: str, plain: str) -> None:
    spec = replace(SPEC, name=name)
    store = EpisodeStore.create(tmp_path, spec, STATE_NAMES)
    store.add([coded_episode(1, 3)])
    assert store.spec.name == plain
    assert EpisodeStore.create(tmp_path, spec, STATE_NAMES).spec == replace(SPEC, name=plain)
    body = json.loads((tmp_path / "store.json").read_text())
    assert body["spec"]["name"] == plain
    body["spec"]["name"] = name  # as earlier versions wrote it
    (tmp_path / "store.json").write_text(json.dumps(body))
    assert EpisodeStore(tmp_path).spec.name == plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"provenance": {"seed": "seven"}}, "'seed' is a whole number"),
        ({"provenance": {"seed": None}}, "'seed' is a whole number"),
        ({"provenance": {"seed": 1.5}}, "'seed' is a whole number"),
        ({"states": np.zeros((6, 3), np.float32)}, r"expected shape \(T\+1, 2\)"),
        ({"states": np.zeros(6, np.float32)}, r"expected shape \(T\+1, 2\)"),
    ],
)
def test_an_episode_that_could_not_be_read_back_is_not_written(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    store = EpisodeStore.create(tmp_path, SPEC, STATE_NAMES)
    episode = replace(coded_episode(1, 5), **change)  # type: ignore[arg-type]
    for write in (lambda: store.add([episode]), lambda: store.open_shard(0).add(episode)):
        with pytest.raises(ValueError, match=message):
            write()
    assert len(EpisodeStore(tmp_path)) == 0


def test_state_names_that_could_not_be_read_back_make_no_store(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="state_names: expected different names"):
        EpisodeStore.create(tmp_path / "store", SPEC, ("x", "x"))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rate_hz", 1e-300),
        ("rate_hz", float("inf")),
        ("action_scale", [-1.0, 1.0]),
        ("action_scale", [float("nan"), 1.0]),
        ("context", 10**9),
        ("context", 2.5),
        ("height", True),
        ("action_names", ["x", "x"]),
        ("action_names", "xy"),
        ("colour", "red"),
    ],
)
def test_a_spec_out_of_range_is_refused_by_file_and_field(tmp_path: Path, field: str, value: object) -> None:
    filled_store(tmp_path, [3])
    path = tmp_path / "store.json"
    body = json.loads(path.read_text())
    body["spec"][field] = value
    path.write_text(json.dumps(body))
    with pytest.raises(ValueError, match=rf"store\.json: .*{field}"):
        EpisodeStore(tmp_path)


def test_a_state_of_another_width_or_a_frame_of_another_size_is_a_damaged_shard(tmp_path: Path) -> None:
    filled_store(tmp_path, [3, 3])
    for name, array in (("states", np.zeros((8, 3), np.float32)), ("frames", np.zeros((8, 8, 16, 3), np.uint8))):
        path = tmp_path / "shard-00000" / f"{name}.npy"
        good = path.read_bytes()
        np.save(path, array)
        with pytest.raises(ValueError, match=f"shard-00000: damaged shard .its {name} are"):
            EpisodeStore(tmp_path)
        path.write_bytes(good)
