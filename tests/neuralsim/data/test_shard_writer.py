"""A shard written episode by episode: no finished episode is lost, whenever the writer dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import coded_store
import numpy as np
import pytest
from coded_store import SPEC, STATE_NAMES, assert_same, coded_episode

from neuralsim.data import shards
from neuralsim.data.store import EpisodeStore
from neuralsim.runtime.files import DiskFullError


def number_of(provenance: dict[str, Any]) -> int:
    return int(provenance["seed"])


def seeds(folder: Path) -> list[int]:
    store = EpisodeStore(folder)
    for episode, provenance in zip(store, map(store.provenance, range(len(store))), strict=True):
        assert_same(episode, coded_episode(provenance["seed"], 3))
    return [number_of(store.provenance(i)) for i in range(len(store))]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_each_episode_can_be_read_at_once_and_the_shard_is_as_if_written_at_once(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "one", SPEC, STATE_NAMES)
    with store.open_shard(0, number_of) as writer:
        for n, number in enumerate((3, 1, 2)):
            writer.add(coded_episode(number, 3))
            assert seeds(store.folder) == [3, 1, 2][: n + 1]
            assert [number_of(p) for p in writer.provenance] == [3, 1, 2][: n + 1]
    whole = EpisodeStore.create(tmp_path / "whole", SPEC, STATE_NAMES)
    whole.add([coded_episode(number, 3) for number in (1, 2, 3)])
    assert content(store.folder) == content(whole.folder)
    assert len(store) == 3


def test_an_interrupt_keeps_what_is_finished(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path, SPEC, STATE_NAMES)
    writer = store.open_shard(2)
    writer.add(coded_episode(5, 3))
    with pytest.raises(KeyboardInterrupt), writer:
        raise KeyboardInterrupt
    assert seeds(tmp_path) == [5]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shard-00002", "store.json"]


def test_an_existing_shard_is_filled_up(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path, SPEC, STATE_NAMES)
    store.add([coded_episode(2, 3), coded_episode(4, 3)])
    with store.open_shard(0, number_of) as writer:
        assert [number_of(p) for p in writer.provenance] == [2, 4]
        writer.add(coded_episode(3, 3))
    assert seeds(tmp_path) == [2, 3, 4]
    with store.open_shard(0, number_of):
        pass
    assert seeds(tmp_path) == [2, 3, 4]


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from coded_store import coded_episode
from neuralsim.data.store import EpisodeStore
store = EpisodeStore({folder!r})
with store.open_shard(0, lambda p: p["seed"]) as writer:
    for number in range(len(writer.provenance), 200):
        writer.add(coded_episode(number, 3))
        print(number, flush=True)
"""


def test_kill_9_loses_no_finished_episode(tmp_path: Path) -> None:
    EpisodeStore.create(tmp_path, SPEC, STATE_NAMES)
    program = WRITER.format(tests=str(Path(coded_store.__file__).parent), folder=str(tmp_path))
    finished = 0
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(9):
                finished = int(writer.stdout.readline()) + 1
            writer.send_signal(signal.SIGKILL)
        there = seeds(tmp_path)
        assert there == list(range(len(there)))
        assert len(there) >= finished
    store = EpisodeStore(tmp_path)
    store.finish_shards(number_of)
    assert seeds(tmp_path) == list(range(len(store)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shard-00000", "store.json"]


@pytest.mark.parametrize("existing", [False, True])
def test_death_at_each_step_of_closing_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    """Every rename and deletion of closing is made to fail once, as if the process ended there."""
    real = {"rename": os.rename, "replace": os.replace, "rmtree": shutil.rmtree}
    for step in range(12):
        folder = tmp_path / str(step)
        store = EpisodeStore.create(folder, SPEC, STATE_NAMES)
        if existing:
            store.add([coded_episode(0, 3)])
        writer = store.open_shard(0, number_of)
        for number in (1, 2):
            writer.add(coded_episode(number, 3))
        expected = [0, 1, 2] if existing else [1, 2]
        left = step

        def die(name: str) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise SystemExit
                return real[name](*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", die("rename"))
            patch.setattr(os, "replace", die("replace"))
            patch.setattr(shutil, "rmtree", die("rmtree"))
            try:
                writer.close()
            except SystemExit:
                pass
            else:
                assert step > 1
        assert seeds(folder) == expected, step
        EpisodeStore(folder).finish_shards(number_of)
        assert seeds(folder) == expected, step
        assert [p.name for p in folder.glob("[!.]*")] in (["shard-00000", "store.json"], ["store.json", "shard-00000"])
        assert not [p for p in folder.iterdir() if p.name.startswith((".open", ".next"))]
        with EpisodeStore(folder).open_shard(0, number_of) as again:
            again.add(coded_episode(9, 3))
        assert seeds(folder) == [*expected, 9]


@pytest.mark.parametrize("damage", ["cut short", "zeros", "no entries"])
def test_a_piece_that_a_power_cut_damaged_is_made_again(tmp_path: Path, damage: str) -> None:
    store = EpisodeStore.create(tmp_path, SPEC, STATE_NAMES)
    writer = store.open_shard(0, number_of)
    writer.add(coded_episode(1, 3))
    writer.add(coded_episode(2, 3))
    frames = tmp_path / ".open-00000" / "000001" / "frames.npy"
    whole = frames.read_bytes()
    if damage == "cut short":
        frames.write_bytes(b"")
    elif damage == "zeros":
        frames.write_bytes(whole[:128] + bytes(len(whole) - 128))
    else:
        (frames.parent / shards.EPISODES).unlink()
    with EpisodeStore(tmp_path).open_shard(0, number_of) as again:
        assert [number_of(p) for p in again.provenance] == [1]
        again.add(coded_episode(2, 3))
    assert seeds(tmp_path) == [1, 2]


def test_a_full_disk_keeps_the_pieces_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EpisodeStore.create(tmp_path, SPEC, STATE_NAMES)
    writer = store.open_shard(0, number_of)
    writer.add(coded_episode(1, 3))

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("12345 requested and 0 written")  # numpy's: it has no errno

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(DiskFullError, match=r"shard-00000: the disk is full .* kept; make room"):
            writer.close()
        with pytest.raises(DiskFullError, match="the disk is full"):
            writer.add(coded_episode(2, 3))
    assert seeds(tmp_path) == [1]
    assert writer.close() is not None
    assert seeds(tmp_path) == [1]
    assert not list(tmp_path.glob(".*"))


def test_a_replacement_that_waits_is_read_instead_of_the_old(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path, SPEC, STATE_NAMES)
    store.add([coded_episode(1, 3)])
    store.add([coded_episode(2, 3)])
    shards.write_shard(tmp_path, tmp_path / ".next-00000", [coded_episode(7, 3)], SPEC)
    assert seeds(tmp_path) == [7, 2]
    store.finish_shards()
    assert seeds(tmp_path) == [7, 2]
    assert json.loads((tmp_path / "shard-00000" / "episodes.json").read_text())[0]["provenance"]["seed"] == 7
