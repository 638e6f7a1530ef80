"""Files that contradict themselves, or state what a reader may overlook: the right frames come in, or a name is given."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_datasets import (
    RATE,
    SIDE,
    Demo,
    demos,
    write_film,
    write_lerobot_v21,
    write_lerobot_v30,
    write_replay_buffer,
    write_robomimic,
)

from neuralsim.data.store import EpisodeStore
from neuralsim.formats.importer import ImportConfig, Importer, ImportReport


def read(source: str, out: Path, **how: Any) -> tuple[EpisodeStore, ImportReport]:
    importer = Importer(ImportConfig(source=source, out=out, size=how.pop("size", SIDE), **how))
    for _ in importer.run():
        pass
    return EpisodeStore(out), importer.report


def assert_frames(store: EpisodeStore, truth: list[Demo], within: float = 6) -> None:
    assert len(store) == len(truth)
    for episode in store:
        demo = truth[episode.provenance["index"]]
        assert np.abs(episode.frames.astype(int) - demo.frames).max() <= within


# -- LeRobot: three records of where an episode's frames are ------------------------------------------------------------------------


def edit_episodes(folder: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows), path)


BEGIN = "videos/observation.images.top/from_timestamp"
END = "videos/observation.images.top/to_timestamp"


@pytest.mark.parametrize("drift", [0.5, 0.8, 1.0, -0.7, 3.0])
def test_stated_times_that_drift_are_outvoted_by_the_count_of_frames(tmp_path: Path, drift: float) -> None:
    truth = demos(6)
    folder = write_lerobot_v30(tmp_path / "d", truth)
    edit_episodes(
        folder,
        lambda rows: [row.update({BEGIN: max(0.0, row[BEGIN] + drift / RATE)}) for row in rows if row[BEGIN] > 0],
    )
    store, report = read(f"lerobot:{folder}", tmp_path / "store")
    assert_frames(store, truth)
    assert "frames are counted" in " ".join(report.remarks)


def test_a_film_with_frames_of_a_deleted_episode_is_read_by_its_stated_times(tmp_path: Path) -> None:
    truth = demos(6)
    folder = write_lerobot_v30(tmp_path / "d", truth)
    edit_episodes(folder, lambda rows: rows.pop(1))
    info = json.loads((folder / "meta/info.json").read_text()) | {"total_episodes": 5}
    (folder / "meta/info.json").write_text(json.dumps(info))
    store, _ = read(f"lerobot:{folder}", tmp_path / "store")
    assert [e.provenance["index"] for e in store] == [0, 2, 3, 4, 5]
    for episode in store:
        wanted = truth[episode.provenance["index"]].frames
        assert np.abs(episode.frames.astype(int) - wanted).max() <= 6


def test_an_episode_that_no_record_places_is_left_out_by_name(tmp_path: Path) -> None:
    truth = demos(6)
    folder = write_lerobot_v30(tmp_path / "d", truth)

    def spoil(rows: list[dict[str, Any]]) -> None:
        del rows[1]  # the film has more frames than are accounted for
        rows[1][BEGIN] += 0.5 / RATE  # between two frames

    edit_episodes(folder, spoil)
    store, report = read(f"lerobot:{folder}", tmp_path / "store")
    assert 2 not in [e.provenance["index"] for e in store]
    assert any("episode 2" in item.where and "should begin" in item.why for item in report.left_out)


def test_frames_of_one_camera_that_are_said_to_be_in_another_film_are_not_another_episodes(tmp_path: Path) -> None:
    truth, cameras = demos(6), ("observation.images.top", "observation.images.wrist")
    folder = write_lerobot_v30(tmp_path / "d", truth, cameras)
    edit_episodes(folder, lambda rows: [row.update({f"videos/{cameras[1]}/file_index": 0}) for row in rows])
    store, report = read(f"lerobot:{folder}", tmp_path / "store")
    kept = [e.provenance["index"] for e in store]
    assert not {3, 4} & set(kept)
    for episode in store:
        colours = truth[episode.provenance["index"]].frames.mean((1, 2))
        for half in np.split(episode.frames, 2, axis=2):
            assert np.abs(half.mean((1, 2)) - colours).max() <= 6
    assert sorted(kept + [int(item.where[-1]) for item in report.left_out]) == list(range(6))


def test_a_stated_end_that_contradicts_the_length_is_noticed(tmp_path: Path) -> None:
    truth = demos(6)
    folder = write_lerobot_v30(tmp_path / "d", truth)

    def spoil(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row[END] = row[BEGIN] + (row["length"] + (2 if row["episode_index"] == 2 else 0)) / RATE
        del rows[1]

    edit_episodes(folder, spoil)
    _, report = read(f"lerobot:{folder}", tmp_path / "store")
    assert any("episode 2" in item.where for item in report.left_out)


def test_a_stale_file_index_is_corrected_by_looking_for_the_episode(tmp_path: Path) -> None:
    truth = demos(6)
    folder = write_lerobot_v30(tmp_path / "d", truth)
    edit_episodes(folder, lambda rows: rows[3].update({"data/file_index": 0}))
    store, report = read(f"lerobot:{folder}", tmp_path / "store")
    assert_frames(store, truth)
    assert "does not hold episode 3, as meta/ says; it is in" in " ".join(report.remarks)


def test_images_beside_the_rows_are_read_and_never_from_outside(tmp_path: Path) -> None:
    import imageio.v3 as iio
    import pyarrow as pa
    import pyarrow.parquet as pq

    truth = demos(3)
    folder = write_lerobot_v21(tmp_path / "d", truth, kind="image")
    camera = "observation.images.top"
    iio.imwrite(tmp_path / "outside.png", truth[0].frames[0])
    for index, path in enumerate(sorted(folder.glob("data/*/*.parquet"))):
        table, pictures = pq.read_table(path), []
        for row, image in enumerate(truth[index].frames):
            name = f"images/{camera}/episode_{index:06d}/frame_{row:06d}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            iio.imwrite(folder / name, image)
            pictures.append({"bytes": None, "path": "../outside.png" if index == 2 and row == 1 else name})
        place = table.schema.names.index(camera)
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pq.write_table(table.set_column(place, camera, pa.array(pictures, kind)), path)
    store, report = read(f"lerobot:{folder}", tmp_path / "store")
    assert_frames(store, truth[:2], within=0)
    assert ["outside.png" in item.why for item in report.left_out] == [True]


def test_a_gap_in_the_times_of_an_episode_leaves_it_out_by_name(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    truth = demos(3, rows=200)
    folder = write_lerobot_v21(tmp_path / "d", truth)
    path = folder / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(path)
    times = table.column("timestamp").to_numpy() + np.where(np.arange(len(truth[1])) > 90, 0.3, 0)
    table = table.set_column(table.schema.names.index("timestamp"), "timestamp", [times.astype(np.float32)])
    pq.write_table(table, path)
    store, report = read(f"lerobot:{folder}", tmp_path / "store")
    assert len(store) == 2
    assert "row 91 comes 0.400 s after the one before; expected 0.100" in report.left_out[0].why


# -- times of films ------------------------------------------------------------------------------------------------------------------


def bar(place: float) -> np.ndarray:
    """A frame with a bar whose left edge is at ``place`` pixels of 64."""
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[:, round(place) : round(place) + 4] = 255
    return frame


def write_timed(path: Path, times_ms: np.ndarray, speed: float = 20.0) -> Path:
    """A film of a bar that moves at ``speed`` pixels a second, with frames at these times."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=1000, options={"g": "2", "bf": "0"})
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        for time in times_ms:
            frame = av.VideoFrame.from_ndarray(bar(speed * time / 1000), format="rgb24")
            frame.pts, frame.time_base = int(time), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def places(frames: np.ndarray) -> np.ndarray:
    bright = frames[..., 0].mean(1) > 128
    return np.array([np.flatnonzero(row)[0] for row in bright], float)


def test_a_variable_frame_rate_is_resampled_onto_an_even_clock(tmp_path: Path) -> None:
    slow, fast = np.arange(0, 1000, 100), 1000 + np.arange(0, 1000, 33)
    (tmp_path / "f").mkdir()
    write_timed(tmp_path / "f/phone.mp4", np.concatenate([slow, fast]))
    store, report = read(f"video:{tmp_path / 'f'}", tmp_path / "store", size=64)
    shown = places(store[0].frames)
    speed = np.diff(shown) * store.spec.rate_hz
    assert store.spec.rate_hz == pytest.approx(10, abs=0.5)
    assert np.abs(shown - 20 * np.arange(len(shown)) / store.spec.rate_hz).max() < 1.5
    assert speed.mean() == pytest.approx(20, rel=0.05)
    assert "phone.mp4" in " ".join(r for r in report.remarks if "resampled to" in r)
    assert store.provenance(0)["resampled_to_hz"] == store.spec.rate_hz


def test_a_few_late_frames_keep_the_clock(tmp_path: Path) -> None:
    times = np.delete(np.arange(0, 2000, 33), [20, 41])
    (tmp_path / "f").mkdir()
    write_timed(tmp_path / "f/a.mp4", times)
    store, _ = read(f"video:{tmp_path / 'f'}", tmp_path / "store", size=64)
    shown = places(store[0].frames)
    assert store.spec.rate_hz == pytest.approx(30, rel=0.02)
    assert np.abs(shown - 20 * np.arange(len(shown)) / store.spec.rate_hz).max() < 2


def test_a_pause_parts_a_film_and_is_named(tmp_path: Path) -> None:
    times = np.concatenate([np.arange(0, 1000, 33), 1300 + np.arange(0, 1000, 33)])
    (tmp_path / "f").mkdir()
    write_timed(tmp_path / "f/a.mp4", times)
    store, report = read(f"video:{tmp_path / 'f'}", tmp_path / "store", size=64)
    assert len(store) == 2
    assert (np.diff(places(store[0].frames)) <= 2).all()
    assert "a.mp4 at 0.99 s (for 0.31 s)" in " ".join(report.remarks)
    again, second = read(f"video:{tmp_path / 'f'}", tmp_path / "store", size=64)
    assert (len(again), second.now) == (2, 0)


def test_films_of_other_rates_come_to_one_clock(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    for name, step in (("a", 100), ("b", 100), ("c", 50)):
        write_timed(tmp_path / f"f/{name}.mp4", np.arange(0, 2000, step))
    store, report = read(f"video:{tmp_path / 'f'}", tmp_path / "store", size=64)
    assert store.lengths.tolist() == [19, 19, 19]
    assert np.abs(store[2].frames.astype(int) - store[0].frames).max() < 12
    assert "c.mp4" in " ".join(report.remarks)


def test_an_even_film_is_not_called_uneven(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    for name, rate in (("a.mp4", 15), ("b.mp4", 15), ("c.webm", 15)):
        write_film(
            tmp_path / "f" / name,
            np.stack([bar(i) for i in range(40)]),
            rate=rate,
            codec="libx264" if "mp4" in name else "libvpx",
        )
    store, report = read(f"video:{tmp_path / 'f'}", tmp_path / "store", size=64)
    assert store.lengths.tolist() == [39, 39, 39]
    assert "resampled" not in " ".join(report.remarks)


# -- what a film states ---------------------------------------------------------------------------------------------------------------


def corner_film(path: Path) -> tuple[np.ndarray, int]:
    """A film whose corners differ, and where its display matrix lies in the file."""
    image = np.zeros((8, 32, 48, 3), np.uint8)
    image[:, :10, :16, 0] = image[:, :10, 32:, 1] = image[:, 22:, :16, 2] = 250
    write_film(path, image)
    raw = path.read_bytes()
    head = raw.find(b"tkhd")
    return image[0], head + 8 + (20 if raw[head + 4] == 0 else 32) + 16


TURNS: dict[str, tuple[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]]] = {
    "upright": ((1, 0, 0, 1), lambda x: x),
    "hflip": ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
    "vflip": ((1, 0, 0, -1), lambda x: x[::-1]),
    "half": ((-1, 0, 0, -1), lambda x: x[::-1, ::-1]),
    "clockwise": ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    "counter": ((0, -1, 1, 0), lambda x: np.rot90(x, 1)),
    "transpose": ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1)),
    "transverse": ((0, -1, -1, 0), lambda x: x.swapaxes(0, 1)[::-1, ::-1]),
}


def test_the_display_matrix_turns_and_mirrors(tmp_path: Path) -> None:
    from neuralsim.data.video import read_video

    image, place = corner_film(tmp_path / "film.mp4")
    raw = bytearray((tmp_path / "film.mp4").read_bytes())
    for name, ((a, b, c, d), turned) in TURNS.items():
        raw[place : place + 36] = struct.pack(">9i", *(65536 * v for v in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
        (tmp_path / f"{name}.mp4").write_bytes(raw)
        _, shown = next(read_video(tmp_path / f"{name}.mp4"))
        wanted = turned(image)
        assert shown.shape == wanted.shape, name
        assert np.abs(shown.astype(int) - wanted).mean() < 8, name


def test_a_slanted_film_is_left_out_by_name(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    _, place = corner_film(tmp_path / "f/a.mp4")
    shutil.copy(tmp_path / "f/a.mp4", tmp_path / "f/b.mp4")
    raw = bytearray((tmp_path / "f/a.mp4").read_bytes())
    raw[place : place + 36] = struct.pack(">9i", 56756, 32768, 0, -32768, 56756, 0, 0, 0, 1 << 30)
    (tmp_path / "f/a.mp4").write_bytes(raw)
    store, report = read(f"video:{tmp_path / 'f'}", tmp_path / "store")
    assert len(store) == 1
    assert "at an angle" in report.left_out[0].why


def test_a_trimmed_film_with_an_edit_list_is_whole(tmp_path: Path) -> None:
    """As ``ffmpeg -ss ... -c copy`` writes it: packets before the start are there and discarded."""
    import av

    (tmp_path / "f").mkdir()
    whole = tmp_path / "whole.mp4"
    with av.open(str(whole), "w") as file:
        stream = file.add_stream("libx264", rate=10, options={"g": "12", "bf": "2"})
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        for i in range(40):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(bar(i), format="rgb24")))
        file.mux(stream.encode())
    raw = bytearray(whole.read_bytes())
    place = raw.find(b"elst")
    count, duration, start = struct.unpack(">Iii", raw[place + 8 : place + 20])
    assert count == 1
    scale = struct.unpack(">I", raw[(m := raw.find(b"mdhd")) + 16 : m + 20])[0]
    raw[place + 12 : place + 20] = struct.pack(">ii", duration // 2, start + 5 * scale // 10)
    (tmp_path / "f/trimmed.mp4").write_bytes(raw)
    store, report = read(f"video:{tmp_path / 'f'}", tmp_path / "store", size=64)
    assert report.left_out == []
    shown = places(store[0].frames)
    assert shown[0] == 5
    assert (np.diff(shown) == 1).all()


def test_an_avi_whose_header_counts_a_frame_too_many_is_whole(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    path = tmp_path / "f/a.avi"
    write_film(path, np.stack([bar(i) for i in range(20)]), codec="mpeg4")
    raw = bytearray(path.read_bytes())
    for key, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        place = raw.find(key) + offset
        raw[place : place + 4] = struct.pack("<I", struct.unpack("<I", raw[place : place + 4])[0] + 1)
    path.write_bytes(raw)
    store, report = read(f"video:{tmp_path / 'f'}", tmp_path / "store", size=64)
    assert report.left_out == []
    assert store.lengths.tolist() == [19]


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv", "webm", "gif"])
def test_a_film_that_is_cut_off_is_named(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "f").mkdir()
    codec = {"avi": "mpeg4", "webm": "libvpx", "gif": "gif"}.get(suffix, "libx264")
    path = tmp_path / f"f/a.{suffix}"
    write_film(path, np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), np.uint8), codec=codec)
    write_film(tmp_path / f"f/b.{suffix}", np.stack([bar(i) for i in range(20)]), codec=codec)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    store, report = read(f"video:{tmp_path / 'f'}", tmp_path / "store", size=64)
    assert [e.provenance["file"] for e in store] == [f"b.{suffix}"]
    assert "a." in report.left_out[0].where


# -- robomimic ------------------------------------------------------------------------------------------------------------------------


def edit_hdf5(path: Path, change: Callable[[Any], object]) -> None:
    import h5py

    with h5py.File(path, "r+") as file:
        change(file)


def replace_images(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    def edit(file: Any) -> None:
        for demo in file["data"].values():
            images = demo["obs/agentview_image"][()]
            del demo["obs/agentview_image"]
            demo["obs/agentview_image"] = change(images)

    edit_hdf5(path, edit)


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "floats to 1": lambda v: (v / 255).astype(np.float32),
    "floats to 255": lambda v: v.astype(np.float64),
    "channels first": lambda v: v.transpose(0, 3, 1, 2),
    "channels first, floats": lambda v: (v / 255).astype(np.float32).transpose(0, 3, 1, 2),
    "transparent": lambda v: np.concatenate([v, np.full_like(v[..., :1], 255)], -1),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_images_of_every_layout_come_in_as_they_look(tmp_path: Path, name: str) -> None:
    truth = demos(3)
    path = write_robomimic(tmp_path / "a.hdf5", truth)
    replace_images(path, LAYOUTS[name])
    store, _ = read(f"robomimic:{path}", tmp_path / "store")
    assert_frames(store, truth, within=0)


def test_images_that_begin_at_the_bottom_row_are_turned_up(tmp_path: Path) -> None:
    truth = demos(3)
    for demo in truth:
        demo.frames[:, :4] = 255  # a bright top
    path = write_robomimic(tmp_path / "a.hdf5", truth)
    replace_images(path, lambda v: v[:, ::-1])
    edit_hdf5(path, lambda file: file["data"].attrs.update({"macros_image_convention": "opengl"}))
    store, report = read(f"robomimic:{path}", tmp_path / "store")
    assert_frames(store, truth, within=0)
    assert "turned up" in " ".join(report.remarks)


def test_a_total_that_is_no_number_is_no_reason_to_refuse(tmp_path: Path) -> None:
    truth = demos(3)
    path = write_robomimic(tmp_path / "a.hdf5", truth)
    edit_hdf5(path, lambda file: file["data"].attrs.update({"total": "many"}))
    assert_frames(read(f"robomimic:{path}", tmp_path / "store")[0], truth, within=0)


def test_a_file_without_images_lists_what_it_has(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", demos(3))
    replace_images(path, lambda v: v[..., :1])
    with pytest.raises(ValueError, match=r"there: obs/robot0_eef_pos \(2\), obs/agentview_image uint8 \(16, 16, 1\)"):
        read(f"robomimic:{path}", tmp_path / "store")


# -- zarr -----------------------------------------------------------------------------------------------------------------------------


def add_array(path: Path, key: str, values: np.ndarray, rows: int = 4) -> None:
    import zarr

    root = zarr.open_group(zarr.storage.LocalStore(path), mode="r+", zarr_format=2)
    array = root.create_array(key, shape=values.shape, dtype=values.dtype, chunks=(rows, *values.shape[1:]))
    array[:] = values


@pytest.mark.parametrize("kind", ["all zero", "mostly zero"])
def test_chunks_of_nothing_but_zeros_are_not_lost_ones(tmp_path: Path, kind: str) -> None:
    truth = demos()
    path = write_replay_buffer(tmp_path / "a.zarr", truth)
    reward = np.zeros(sum(map(len, truth)), np.float32)
    reward[-3] = 0 if kind == "all zero" else 1
    add_array(path, "data/reward", reward)
    store, report = read(f"zarr:{path}", tmp_path / "store")
    assert_frames(store, truth, within=0)
    np.testing.assert_array_equal(np.concatenate([e.rewards for e in store])[-2:], reward[-3:-1])
    assert "data/reward are not there" in " ".join(report.remarks)


def test_a_lost_chunk_of_images_is_named(tmp_path: Path) -> None:
    path = write_replay_buffer(tmp_path / "a.zarr", demos())
    next(iter((path / "data/img").glob("1.*"))).unlink()
    _, report = read(f"zarr:{path}", tmp_path / "store")
    assert "is missing" in report.left_out[0].why


def test_keys_with_dots_are_read(tmp_path: Path) -> None:
    truth = demos()
    path = write_replay_buffer(tmp_path / "a.zarr", truth)
    (path / "data/state").rename(path / "data/observation.state")
    store, _ = read(f"zarr:{path}", tmp_path / "store")
    assert store.info.state_names == ("observation.state_0", "observation.state_1")
    np.testing.assert_array_equal(store[0].states, truth[0].states)


def test_a_folder_or_a_zip_around_it_is_looked_into(tmp_path: Path) -> None:
    truth = demos()
    path = write_replay_buffer(tmp_path / "out/a.zarr", truth)
    assert_frames(read(f"zarr:{path.parent}", tmp_path / "one")[0], truth, within=0)
    with zipfile.ZipFile(tmp_path / "b.zarr.zip", "w") as file:
        for part in sorted(path.rglob("*")):
            if part.is_file():
                file.write(part, f"a.zarr/{part.relative_to(path)}")
    assert_frames(read(f"zarr:{tmp_path / 'b.zarr.zip'}", tmp_path / "two")[0], truth, within=0)


def test_images_with_channels_first_are_read(tmp_path: Path) -> None:
    truth = demos()
    path = write_replay_buffer(tmp_path / "a.zarr", truth)
    shutil.rmtree(path / "data/img")
    add_array(path, "data/img", np.concatenate([d.frames for d in truth]).transpose(0, 3, 1, 2))
    assert_frames(read(f"zarr:{path}", tmp_path / "store")[0], truth, within=0)
