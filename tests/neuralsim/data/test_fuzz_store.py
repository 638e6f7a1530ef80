"""Damaged stores: refused by the name of the file, or read with the meaning they had."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from coded_store import SPEC, STATE_NAMES, coded_episode, filled_store
from mutations import cases, mutate_file

from neuralsim.data.store import EpisodeStore
from neuralsim.data.windows import WindowSampler


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "store"
    store = filled_store(folder, [5, 4, 6, 3], shard_size=2)
    store.open_shard(2).add(coded_episode(4, 3))  # a piece that a kill left
    return folder


@pytest.mark.parametrize("case", cases(60))
def test_a_damaged_store_is_refused_by_name_or_reads_as_a_store(sound: Path, tmp_path: Path, case: int) -> None:
    rng = np.random.default_rng([case, 41])
    folder = tmp_path / "store"
    shutil.copytree(sound, folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    mutate_file(files[int(rng.integers(len(files)))], rng)
    try:
        store = EpisodeStore(folder)
    except ValueError as error:
        if str(folder) not in str(error):
            raise
        return
    # Pixels, numbers and names may have changed; shapes, types and the rules of a spec may not.
    assert len(store) in (4, 5)
    for episode in store:
        assert episode.frames.shape[1:] == store.spec.frame_shape == SPEC.frame_shape
        assert episode.frames.dtype == np.uint8
        assert len(episode.actions) == len(episode) == len(episode.frames) - 1
        assert episode.states is None or episode.states.shape == (len(episode) + 1, len(store.info.state_names))
    assert len(store.info.state_names) == len(STATE_NAMES)
    held_out = not len(store.split(held_out=False))
    clip = WindowSampler(store, 2, held_out).sample(3, np.random.default_rng(0))
    assert clip.frames.shape == (3, 2, *SPEC.frame_shape)
