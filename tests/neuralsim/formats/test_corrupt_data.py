"""Promises of the formats about damage: what is broken is refused by name, the rest comes in, and nothing comes in wrong.

Damage is only to be seen where a format has something to see it by, so the files here have the checksums that their formats
offer: parquet's pages, HDF5's fletcher32, zstd's, and those that NeuralSim writes beside a LeRobotDataset.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

from neuralsim.data.episode import Episode
from neuralsim.data.store import EpisodeStore
from neuralsim.formats.action_mapping import ActionScale, meaning_of
from neuralsim.formats.importer import ImportConfig, Importer
from neuralsim.formats.lerobot_writer import write_lerobot
from neuralsim.formats.minari import write_minari
from neuralsim.spec import WorldSpec

TRUTH = demos(4)
SPEC = WorldSpec("coded", SIDE, SIDE, ("reach", "turn", "grip"), ("m",) * 3, (2.0, 2.0, 0.0), 10.0, 3)
Damage = Callable[[Path, np.random.Generator], None]


def own_store(folder: Path) -> EpisodeStore:
    """The demonstrations as NeuralSim keeps them."""
    store = EpisodeStore.create(folder, SPEC, ("place", "clock"))
    scale = ActionScale((2.0, -1.0, 5.0), SPEC.action_scale, "here")
    store.set_source({"action_offset": list(scale.offset)})
    store.add(
        [
            Episode(
                demo.frames,
                scale.normalise(demo.actions[:-1].astype(float), SPEC.action_names),
                demo.rewards[:-1],
                demo.done[:-1],
                np.zeros(len(demo) - 1, bool),
                demo.states,
                {"seed": i, "index": i},
            )
            for i, demo in enumerate(TRUTH)
        ]
    )
    return store


def write_own(folder: Path) -> Path:
    write_lerobot(own_store(folder.parent / "own-store"), folder)
    return folder


def write_own_minari(folder: Path) -> Path:
    write_minari(own_store(folder.parent / "minari-store"), "coded-v0", folder)
    return folder


def write_films(folder: Path) -> Path:
    for i, (demo, end) in enumerate(zip(TRUTH, ("mp4", "webm", "mkv", "mov"), strict=True)):
        write_film(folder / f"{i}.{end}", demo.frames, "libvpx-vp9" if end == "webm" else "libx264")
    return folder


WRITERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "own lerobot": ("lerobot:", write_own),
    "lerobot v2.1": ("lerobot:", lambda path: write_lerobot_v21(path, TRUTH, stats="stats.json")),
    "lerobot v2.1 with images": ("lerobot:", lambda path: write_lerobot_v21(path, TRUTH, kind="image")),
    "lerobot v3.0": ("lerobot:", lambda path: write_lerobot_v30(path, TRUTH)),
    "robomimic": ("robomimic:", lambda path: write_robomimic(path.with_suffix(".hdf5"), TRUTH)),
    "zarr": ("zarr:", lambda path: write_replay_buffer(path, TRUTH)),
    "minari": ("minari:", write_own_minari),
    "video": ("video:", write_films),
}


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every dataset, whole."""
    root = tmp_path_factory.mktemp("whole")
    return {name: write(root / name.replace(" ", "-")) for name, (_, write) in WRITERS.items()}


def judge(name: str, place: Path, out: Path, said: list[str] | None = None) -> str:
    """Import what may be damaged: "refused", "partly" or "whole"; an AssertionError where something came in wrong. What it said
    goes to ``said``."""
    said = [] if said is None else said
    kind, where = WRITERS[name][0], str(place)
    root = place if kind == "minari:" else None
    try:
        importer = Importer(ImportConfig(kind + ("coded-v0" if root else where), out=out, size=SIDE, root=root))
        for _ in importer.run():
            pass
    except (ValueError, OSError) as error:
        said.append(str(error))
        return "refused" if where in str(error) or "coded-v0" in str(error) else f"refused without a name: {error}"
    store, report, given = EpisodeStore(out), importer.report, importer.about.given
    remarks = " ".join(report.remarks)
    said += [remarks, *(f"{item.where}: {item.why}" for item in report.left_out)]
    there = [e.provenance["index"] for e in store]
    assert len(set(there)) == len(there) == report.read
    assert report.left_out or len(there) == len(TRUTH)
    assert all(item.why and where in item.where for item in report.left_out), report.left_out
    for episode in store:
        demo = TRUTH[int(episode.provenance.get("file", f"{episode.provenance['index']}.")[0])]
        assert len(episode) == len(demo) - 1
        away = np.abs(episode.frames.astype(int) - demo.frames).max()
        assert away <= (0 if kind in ("zarr:", "robomimic:") or "images" in name else 6)
        if kind == "video:":
            continue
        moves = meaning_of(store.spec).native(episode.actions)
        np.testing.assert_allclose(moves, demo.actions[:-1], atol=1e-5)
        for field, values in (("rewards", demo.rewards[:-1]), ("terminated", demo.done[:-1])):
            assert (field in given) or field in remarks
            np.testing.assert_array_equal(getattr(episode, field), values if field in given else 0 * values)
        if episode.states is None:
            assert "left aside" in remarks
        else:
            np.testing.assert_array_equal(episode.states, demo.states)
    return "whole" if len(there) == len(TRUTH) else "partly"


def damaged(whole: Path, to: Path, damage: Damage, rng: np.random.Generator) -> Path:
    """A copy of a dataset, damaged."""
    place = to / whole.name
    to.mkdir(parents=True)
    shutil.copytree(whole, place) if whole.is_dir() else shutil.copy(whole, place)
    damage(place, rng)
    return place


# -- damage to any file ------------------------------------------------------------------------------------------------------------


FILMS = (".mp4", ".webm", ".mkv", ".mov")


def some_file(place: Path, rng: np.random.Generator, films: bool = True) -> Path:
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    files = [file for file in files if films or file.suffix not in FILMS]
    return files[rng.integers(len(files))]


def cut(place: Path, rng: np.random.Generator) -> None:
    file = some_file(place, rng)
    file.write_bytes(file.read_bytes()[: rng.integers(file.stat().st_size)])


def lose(place: Path, rng: np.random.Generator) -> None:
    some_file(place, rng).unlink()


def empty(place: Path, rng: np.random.Generator) -> None:
    some_file(place, rng).write_bytes(b"")


def flip(place: Path, rng: np.random.Generator, films: bool = False) -> None:
    """One to four bits. Films of others carry no checksum: a decoder sees most of this, and nobody can see all."""
    file = some_file(place, rng, films)
    raw = bytearray(file.read_bytes())
    for _ in range(rng.integers(1, 5)):
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
    file.write_bytes(raw)


def scramble(place: Path, rng: np.random.Generator, films: bool = False) -> None:
    """A kilobyte, or what there is, becomes noise."""
    file = some_file(place, rng, films)
    raw = bytearray(file.read_bytes())
    begin = int(rng.integers(len(raw)))
    raw[begin : begin + 1024] = rng.bytes(len(raw[begin : begin + 1024]))
    file.write_bytes(raw)


def flip_anywhere(place: Path, rng: np.random.Generator) -> None:
    flip(place, rng, films=True)


def scramble_anywhere(place: Path, rng: np.random.Generator) -> None:
    scramble(place, rng, films=True)


LOSSES: tuple[Damage, ...] = (cut, lose, empty)
ANYWHERE: dict[str, tuple[int, tuple[Damage, ...]]] = {
    "own lerobot": (8, (*LOSSES, flip_anywhere, scramble_anywhere)),
    "lerobot v2.1": (6, (*LOSSES, flip, scramble)),
    "lerobot v2.1 with images": (3, (*LOSSES, flip, scramble)),
    "lerobot v3.0": (5, (*LOSSES, flip, scramble)),
    "robomimic": (5, (cut, flip, scramble)),
    "zarr": (6, (*LOSSES, flip, scramble)),
    "minari": (3, LOSSES),  # Minari's files have no checksums
    "video": (5, (cut, empty)),  # nobody knows of a film that is gone
}
"""How often each kind of damage is done to each kind of dataset."""


@pytest.mark.parametrize(("name", "damage"), [(n, d) for n, (_, kinds) in ANYWHERE.items() for d in kinds])
def test_damage_anywhere_is_seen(wholes: dict[str, Path], tmp_path: Path, name: str, damage: Damage) -> None:
    for seed in range(ANYWHERE[name][0]):
        rng = np.random.default_rng([seed, *damage.__name__.encode()])
        place = damaged(wholes[name], tmp_path / str(seed), damage, rng)
        assert judge(name, place, tmp_path / f"store-{seed}") in ("refused", "partly", "whole")


@pytest.mark.parametrize("name", WRITERS)
def test_the_undamaged_comes_in_whole(wholes: dict[str, Path], tmp_path: Path, name: str) -> None:
    assert judge(name, wholes[name], tmp_path / "store") == "whole"


# -- damage to a field -------------------------------------------------------------------------------------------------------------


def edit_json(name: str, change: Callable[[dict[str, Any]], None]) -> Damage:
    def damage(place: Path, rng: np.random.Generator) -> None:
        body = json.loads((place / name).read_text())
        change(body)
        (place / name).write_text(json.dumps(body))

    return damage


def edit_table(change: Callable[[Any], Any], name: str = "data/chunk-000/episode_000002.parquet") -> Damage:
    """``change`` takes the table of one file, of episode 2 by default, and gives it back."""

    def damage(place: Path, rng: np.random.Generator) -> None:
        import pyarrow.parquet as pq

        pq.write_table(change(pq.read_table(place / name)), place / name)

    return damage


def set_column(key: str, values: Callable[[np.ndarray], Any]) -> Callable[[Any], Any]:
    """``values`` takes the column as an array and gives what to write instead."""

    def change(table: Any) -> Any:
        import pyarrow as pa

        found = np.array(table.column(key).to_pylist())
        return table.set_column(table.schema.names.index(key), key, pa.array(values(found)))

    return change


def holed(values: np.ndarray) -> list[Any]:
    """The third row has no value."""
    return [None if i == 2 else v for i, v in enumerate(values.tolist())]


def spoiled(values: np.ndarray, value: float = np.nan) -> list[Any]:
    """The third row has NaN, or ``value``."""
    values = values.astype(np.float64)
    values[2] = value
    return values.astype(np.float32).tolist()


def edit_hdf5(change: Callable[[Any], None], name: str = "") -> Damage:
    def damage(place: Path, rng: np.random.Generator) -> None:
        import h5py

        with h5py.File(place / name if name else place, "r+") as file:
            change(file)

    return damage


def instead(group: str, key: str, values: Callable[[np.ndarray], Any]) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        found = file[group][key][()]
        del file[group][key]
        file[group][key] = values(found)

    return change


def edit_zarr(key: str, values: Callable[[np.ndarray], np.ndarray]) -> Damage:
    def damage(place: Path, rng: np.random.Generator) -> None:
        import zarr

        root = zarr.open_group(place, mode="r+")
        found = values(root[key][:])
        del root[key]
        root.create_array(key, shape=found.shape, dtype=found.dtype, chunks=(4, *found.shape[1:]))[:] = found

    return damage


def in_row_nine(values: np.ndarray, value: float = np.nan) -> np.ndarray:
    """Row 9 of a replay buffer is in episode 1."""
    values = values.copy()
    values[9] = value
    return values


DEMO, MINARI = "data/demo_2", "coded-v0/data/main_data.hdf5"
FIELDS: list[tuple[str, Damage, str, str]] = [
    ("lerobot v2.1", edit_table(lambda t: t.drop_columns(["action"])), "partly", "'action' is missing"),
    ("lerobot v2.1", edit_table(lambda t: t.drop_columns(["episode_index"])), "partly", "'episode_index' is missing"),
    ("lerobot v2.1", edit_table(lambda t: t.drop_columns(["timestamp"])), "partly", "'timestamp' is missing"),
    ("lerobot v2.1", edit_table(lambda t: t.drop_columns(["next.reward"])), "partly", "'next.reward' is missing"),
    ("lerobot v2.1", edit_table(lambda t: t.slice(1)), "partly", "has 5 rows of episode 2, meta/ says 6"),
    ("lerobot v2.1", edit_table(lambda t: t.take([1, 0, 2, 3, 4, 5])), "partly", "frame_index"),
    ("lerobot v2.1", edit_table(set_column("action", spoiled)), "partly", "'action': expected finite numbers"),
    ("lerobot v2.1", edit_table(set_column("action", holed)), "partly", "'action': expected float32, got object"),
    ("lerobot v2.1", edit_table(set_column("action", lambda a: a.astype(int).tolist())), "partly", "got int64"),
    (
        "lerobot v2.1",
        edit_table(set_column("action", lambda a: a[:, :2].tolist())),
        "partly",
        "expected shape (6, 3), got (6, 2)",
    ),
    (
        "lerobot v2.1",
        edit_table(set_column("action", lambda a: [str(x) for x in a])),
        "partly",
        "'action': expected float32",
    ),
    ("lerobot v2.1", edit_table(set_column("action", lambda a: spoiled(a, 99))), "partly", "bounds by meta/stats.json"),
    (
        "lerobot v2.1",
        edit_table(set_column("observation.state", spoiled)),
        "partly",
        "'observation.state': expected finite",
    ),
    ("lerobot v2.1", edit_table(set_column("next.reward", spoiled)), "partly", "'next.reward': expected finite"),
    ("lerobot v2.1", edit_table(set_column("next.done", holed)), "partly", "'next.done': expected bool"),
    (
        "lerobot v2.1",
        edit_table(set_column("timestamp", lambda t: 2 * t)),
        "partly",
        "rows take 1.000 s; expected 10 a second",
    ),
    ("lerobot v2.1", edit_table(set_column("timestamp", lambda t: t + 9)), "whole", "begin at 9.000 s, not at 0"),
    ("lerobot v2.1", edit_json("meta/info.json", lambda i: i.update(fps=15)), "refused", "expected 15 a second"),
    ("lerobot v2.1", edit_json("meta/info.json", lambda i: i.update(fps="fast")), "refused", "info.json"),
    ("lerobot v2.1", edit_json("meta/info.json", lambda i: i.pop("features")), "refused", "info.json: 'features'"),
    (
        "lerobot v2.1",
        edit_json("meta/info.json", lambda i: i.update(codebase_version="v1.6")),
        "refused",
        "v1.6, this reads v2.0",
    ),
    (
        "lerobot v2.1",
        edit_json("meta/info.json", lambda i: i.update(data_path="../{episode_index}")),
        "refused",
        "leads out of the",
    ),
    (
        "lerobot v2.1",
        edit_json("meta/info.json", lambda i: i["features"].pop("observation.images.top")),
        "refused",
        "has no camera",
    ),
    (
        "lerobot v2.1",
        edit_json("meta/stats.json", lambda s: s["action"].update(min=[9, 9, 9])),
        "whole",
        "bounds on record are of no",
    ),
    (
        "lerobot v2.1 with images",
        edit_table(lambda t: t.drop_columns(["observation.images.top"])),
        "partly",
        "images.top",
    ),
    ("robomimic", edit_hdf5(lambda f: f[DEMO].pop("actions")), "partly", "actions"),
    ("robomimic", edit_hdf5(lambda f: f[f"{DEMO}/obs"].pop("agentview_image")), "partly", "agentview_image"),
    ("robomimic", edit_hdf5(lambda f: f[DEMO].pop("dones")), "partly", "dones"),
    ("robomimic", edit_hdf5(lambda f: f.pop("data")), "refused", "expected a group 'data'"),
    ("robomimic", edit_hdf5(instead(DEMO, "actions", spoiled)), "partly", "actions: expected finite numbers"),
    ("robomimic", edit_hdf5(instead(DEMO, "actions", lambda a: a[:-1])), "partly", "expected shape (5,)"),
    ("robomimic", edit_hdf5(instead(DEMO, "actions", lambda a: a.astype("S8"))), "partly", "actions: expected numbers"),
    ("robomimic", edit_hdf5(instead(DEMO, "rewards", spoiled)), "partly", "rewards: expected finite numbers"),
    ("robomimic", edit_hdf5(instead(DEMO, "dones", lambda d: d * 3)), "partly", "dones: expected 0 or 1, got 3"),
    (
        "robomimic",
        edit_hdf5(instead(f"{DEMO}/obs", "agentview_image", lambda v: v / -255.0)),
        "partly",
        "expected pixels in 0..1",
    ),
    (
        "robomimic",
        edit_hdf5(instead(f"{DEMO}/obs", "robot0_eef_pos", spoiled)),
        "partly",
        "obs/robot0_eef_pos: expected finite",
    ),
    ("zarr", edit_zarr("data/action", in_row_nine), "partly", "data/action: expected finite numbers"),
    ("zarr", edit_zarr("data/action", lambda a: in_row_nine(a, 1e30)), "partly", "action 'action_0' is 1e+30"),
    ("zarr", edit_zarr("data/action", lambda a: a.astype("S8")), "refused", "data/action: expected numbers"),
    (
        "zarr",
        edit_zarr("data/action", lambda a: a[:-2]),
        "partly",
        "data/action: has 24 rows, meta/episode_ends says 26",
    ),
    ("zarr", edit_zarr("data/state", in_row_nine), "partly", "data/state: expected finite numbers"),
    ("zarr", edit_zarr("data/img", lambda v: v[..., :2]), "refused", "expected images"),
    ("zarr", edit_zarr("meta/episode_ends", lambda e: e[::-1]), "refused", "expected rising row numbers"),
    ("zarr", edit_zarr("meta/episode_ends", lambda e: e + 5), "refused", "says that there are 31 rows"),
    (
        "minari",
        edit_hdf5(instead("episode_2", "actions", spoiled), MINARI),
        "partly",
        "actions: expected finite numbers",
    ),
    (
        "minari",
        edit_hdf5(instead("episode_2", "rewards", lambda r: r[:-1]), MINARI),
        "partly",
        "rewards: expected shape (5,), got (4,)",
    ),
    ("minari", edit_hdf5(lambda f: f["episode_2"].pop("actions"), MINARI), "partly", "actions"),
    ("minari", edit_hdf5(lambda f: f["episode_2"].pop("observations"), MINARI), "partly", "observations"),
    ("minari", edit_hdf5(instead("episode_2", "observations", lambda v: v[:-1]), MINARI), "partly", "has 5 frames for"),
    (
        "minari",
        edit_hdf5(instead("episode_2", "observations", lambda v: v / 255), MINARI),
        "partly",
        "expected uint8 images",
    ),
]
"""What is done to which field of which dataset, what becomes of it, and what is said."""


@pytest.mark.parametrize(("name", "damage", "outcome", "words"), FIELDS, ids=[f"{n}: {w}" for n, _, _, w in FIELDS])
def test_a_damaged_field_is_named(
    wholes: dict[str, Path], tmp_path: Path, name: str, damage: Damage, outcome: str, words: str
) -> None:
    place = damaged(wholes[name], tmp_path / "place", damage, np.random.default_rng(0))
    said: list[str] = []
    assert judge(name, place, tmp_path / "store", said) == outcome
    assert words in " ".join(said)


def test_there_are_two_hundred_ways_to_be_broken() -> None:
    assert sum(count * len(kinds) for count, kinds in ANYWHERE.values()) + len(FIELDS) >= 200
