"""Damaged datasets: refused by the name of the file, or read into a sound store; never a hang, never a gigabyte."""

from __future__ import annotations

import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from foreign_datasets import (
    SIDE,
    demos,
    write_film,
    write_lerobot_v21,
    write_lerobot_v30,
    write_replay_buffer,
    write_robomimic,
)
from mutations import cases, mutate_file

from neuralsim.data.store import EpisodeStore
from neuralsim.formats.importer import ImportConfig, Importer

HANG_S = 120
"""A case that takes this long hangs; sound ones take a tenth of a second."""
GROWTH_KB = 2**20
"""Memory that a case may add at most: a gigabyte."""
TRUTH = demos(4)


def write_films(folder: Path) -> Path:
    for number, (demo, codec) in enumerate(zip(TRUTH, ("libx264", "mpeg4", "libvpx", "gif"), strict=True)):
        suffix = {"libx264": "mp4", "mpeg4": "avi", "libvpx": "webm", "gif": "gif"}[codec]
        write_film(folder / f"{number}.{suffix}", demo.frames, codec)
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "lerobot": lambda path: write_lerobot_v30(path, TRUTH),
    "lerobot_": lambda path: write_lerobot_v21(path, TRUTH, kind="image", stats="stats.json"),
    "robomimic": lambda path: write_robomimic(path.with_suffix(".hdf5"), TRUTH),
    "zarr": lambda path: write_replay_buffer(path, TRUTH),
    "zarr_": lambda path: write_replay_buffer(path.with_suffix(".zip"), TRUTH, zarr_format=3, zipped=True),
    "video": write_films,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sound")
    return {kind: write(root / kind) for kind, write in WRITERS.items()}


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def hang(*_: object) -> None:
        raise AssertionError(f"the import hangs: it took {HANG_S} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(HANG_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("case", cases(40))
def test_a_damaged_dataset_is_refused_by_name_or_read_into_a_sound_store(
    sound: dict[str, Path], tmp_path: Path, case: int
) -> None:
    rng = np.random.default_rng([case, 77])
    kind = list(WRITERS)[case % len(WRITERS)]
    whole, place = sound[kind], tmp_path / sound[kind].name
    shutil.copytree(whole, place) if whole.is_dir() else shutil.copy(whole, place)
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    mutate_file(files[int(rng.integers(len(files)))], rng)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        importer = Importer(ImportConfig(source=f"{kind.strip('_')}:{place}", out=tmp_path / "store", size=SIDE))
        for _ in importer.run():
            pass
    except (ValueError, OSError) as error:
        if str(place) not in str(error):
            raise
    else:
        store = EpisodeStore(tmp_path / "store")
        assert len(store)
        for episode in store:
            assert episode.frames.shape == (len(episode) + 1, *store.spec.frame_shape)
        assert all(str(place) in item.where and item.why for item in importer.report.left_out)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH_KB
