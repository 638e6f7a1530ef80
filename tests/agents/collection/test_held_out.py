"""Held-out episodes are found again by what they are, not by where they lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuralsim.agents.collection.collect import CollectConfig
from neuralsim.agents.collection.held_out import HELD_OUT_SEED, held_out_again, held_out_store


def test_missing_episodes_are_collected_once(tmp_path: Path) -> None:
    folder = tmp_path / "held-out"
    store = held_out_store(folder, 3, 2, 8, 1, world="tworoom")
    before = (folder / "shard-00000" / "frames.npy").stat().st_mtime_ns
    again = held_out_store(folder, 3, 2, 8, 1, world="tworoom")
    assert len(store) == len(again) == 3
    assert {again.provenance(i)["collection_seed"] for i in range(3)} == {HELD_OUT_SEED}
    assert (folder / "shard-00000" / "frames.npy").stat().st_mtime_ns == before


def test_episodes_of_another_world_in_the_same_place_are_left_alone(tmp_path: Path) -> None:
    held_out_store(tmp_path / "held-out", 2, 2, 8, 1, world="tworoom")
    other = held_out_store(tmp_path / "held-out", 2, 2, 8, 1, world="pusht")
    assert other.spec.name == "pusht"
    assert other.folder != tmp_path / "held-out"
    assert held_out_store(tmp_path / "held-out", 2, 2, 8, 1, world="pusht").folder == other.folder
    assert held_out_store(tmp_path / "held-out", 2, 2, 8, 1, world="tworoom").folder == tmp_path / "held-out"


def test_an_id_with_other_arguments_has_a_store_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stores = []
    for gravity in (9.8, 1.6):
        config = CollectConfig(env="Pendulum-v1", env_kwargs=f'{{"g": {gravity}}}', size=8, steps=3, workers=1)
        spec, source = config.real_world.make_spec(8), config.source
        stores.append(held_out_again(spec, source, 2, 1))
        assert held_out_again(spec, source, 2, 1).folder == stores[-1].folder
    assert stores[0].folder != stores[1].folder
    assert stores[0].info.source != stores[1].info.source
    assert (stores[0][0].states != stores[1][0].states).any()
