"""The episode recorder: episodes reach the disk whole, off the tick; and a disk that is full loses nothing."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from neuralsim.agents.robot import episode_recorder as module
from neuralsim.agents.robot.episode_recorder import EpisodeRecorder, run_folder
from neuralsim.data.episode import Episode
from neuralsim.data.store import EpisodeStore
from neuralsim.spec import WorldSpec

SPEC = WorldSpec("line", 8, 8, ("x",), ("mm",), (10.0,), 10.0, 3)


def episode(number: int, steps: int = 5, acted: bool = True) -> Episode:
    frames = np.full((steps + 1, 8, 8, 3), number, np.uint8)
    if not acted:
        return Episode.of_video(frames, {"seed": number})
    off = np.zeros(steps, bool)
    return Episode(frames, np.zeros((steps, 1), np.float32), off.astype(np.float32), off, off, None, {"seed": number})


class Disk:
    """A disk that is full until it is ``freed``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full, self.tried, add = True, 0, EpisodeStore.add

        def full(store: EpisodeStore, episodes: Sequence[Episode], shard: int | None = None) -> Path:
            self.tried += 1
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return add(store, episodes, shard)

        monkeypatch.setattr(EpisodeStore, "add", full)
        monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)


def wait_for(promise: object, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not promise() and time.monotonic() < until:  # type: ignore[operator]
        time.sleep(0.005)
    assert promise()  # type: ignore[operator]


def test_episodes_reach_the_store_with_and_without_actions(tmp_path: Path) -> None:
    recorder = EpisodeRecorder(tmp_path, SPEC)
    recorder.keep([episode(1), episode(2, acted=False), episode(3)])
    recorder.keep([])
    recorder.close()
    store = EpisodeStore(tmp_path)
    assert sorted(store.provenance(i)["seed"] for i in range(3)) == [1, 2, 3]
    assert recorder.written == recorder.kept == 3


def test_keeping_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, add = threading.Event(), EpisodeStore.add

    def slow(store: EpisodeStore, episodes: Sequence[Episode], shard: int | None = None) -> Path:
        go.wait(120)
        return add(store, episodes, shard)

    monkeypatch.setattr(EpisodeStore, "add", slow)
    recorder = EpisodeRecorder(tmp_path, SPEC)
    for number in range(10):
        recorder.keep([episode(number)])
    assert recorder.written == 0, "kept while the disk was still at work on the first"
    go.set()
    recorder.close()
    assert len(EpisodeStore(tmp_path)) == 10


def test_a_full_disk_is_tried_again_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    recorder = EpisodeRecorder(tmp_path, SPEC)
    recorder.keep([episode(1)])
    wait_for(lambda: disk.tried >= 3)
    assert "the disk is full" in recorder.trouble
    recorder.keep([episode(2)])
    disk.full = False
    wait_for(lambda: recorder.written == 2)
    assert recorder.trouble == ""
    recorder.close()
    assert len(EpisodeStore(tmp_path)) == 2


def test_a_disk_that_stays_full_is_told_and_nothing_is_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Disk(monkeypatch)
    recorder = EpisodeRecorder(tmp_path, SPEC)
    recorder.keep([episode(1), episode(2)])
    with pytest.raises(OSError, match=r"2 of 2 episodes could not be written: .*the disk is full"):
        recorder.close(5)
    assert [p.name for p in tmp_path.iterdir()] == ["store.json"]


@pytest.mark.parametrize(
    "error",
    [
        OSError("65536 requested and 12288 written"),  # as np.save reports a full disk
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named_with_its_folder_and_what_is_missing_however_it_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(store: EpisodeStore, episodes: Sequence[Episode], shard: int | None = None) -> Path:
        raise error

    monkeypatch.setattr(EpisodeStore, "add", full)
    recorder = EpisodeRecorder(tmp_path, SPEC)
    recorder.keep([episode(1)])
    with pytest.raises(OSError, match=r"1 of 1 episodes could not be written: .*disk is full \(1\.15 kB are needed"):
        recorder.close(5)


def test_an_episode_that_cannot_be_written_does_not_take_the_others_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = EpisodeStore.add

    def picky(store: EpisodeStore, episodes: Sequence[Episode], shard: int | None = None) -> Path:
        if any(e.provenance["seed"] == 1 for e in episodes):
            raise TypeError("no JSON")
        return add(store, episodes, shard)

    monkeypatch.setattr(EpisodeStore, "add", picky)
    recorder = EpisodeRecorder(tmp_path, SPEC)
    recorder.keep([episode(1), episode(2, acted=False), episode(3)])
    with pytest.raises(OSError, match="1 of 3 episodes could not be written: no JSON"):
        recorder.close(5)
    assert sorted(e.provenance["seed"] for e in EpisodeStore(tmp_path)) == [2, 3]


def test_a_disk_that_takes_them_at_the_end_gets_them_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    monkeypatch.setattr(module, "RETRY_SECONDS", 60)
    recorder = EpisodeRecorder(tmp_path, SPEC)
    recorder.keep([episode(1)])
    wait_for(lambda: disk.tried >= 1)
    disk.full = False
    recorder.close()
    assert len(EpisodeStore(tmp_path)) == 1


def test_the_box_says_when_more_waits_than_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    recorder = EpisodeRecorder(tmp_path, SPEC, most_bytes=3 * episode(1).frames.nbytes)
    for number in range(3):
        recorder.keep([episode(number)])
    assert not recorder.full
    recorder.keep([episode(3)])
    assert recorder.full
    disk.full = False
    recorder.close()
    assert not recorder.full


def test_a_store_of_another_world_is_refused_before_driving(tmp_path: Path) -> None:
    EpisodeRecorder(tmp_path, SPEC).close()
    with pytest.raises(ValueError, match="choose another folder"):
        EpisodeRecorder(tmp_path, WorldSpec("other", 8, 8, ("x",), ("mm",), (10.0,), 10.0, 3))


def test_every_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    first = run_folder(tmp_path)
    first.mkdir(parents=True)
    assert run_folder(tmp_path) != first
