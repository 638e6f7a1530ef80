"""import_dataset and export_dataset, called from Python."""

from __future__ import annotations

from pathlib import Path

from coded_store import assert_same, filled_store

from neuralsim.data.store import EpisodeStore
from neuralsim.formats import ExportConfig, ImportConfig, export_dataset, import_dataset


def test_a_store_goes_out_and_comes_back(tmp_path: Path) -> None:
    store = filled_store(tmp_path / "store", [4, 2, 5])
    export = ExportConfig(store=str(store.folder), to="minari:coded/store-v0", root=tmp_path / "minari")
    assert export_dataset(export, store)["episodes"] == 3
    report = import_dataset(
        ImportConfig(source="minari:coded/store-v0", out=tmp_path / "back", root=tmp_path / "minari")
    )
    back = EpisodeStore(report.store)
    assert (len(back), report.left_out) == (3, [])
    for ours, theirs in zip(store, back, strict=True):
        assert_same(ours, type(theirs)(**{**vars(theirs), "provenance": ours.provenance}))
