"""Promises of the formats: what other people's datasets hold comes in as it was, and what goes out comes back."""

from __future__ import annotations

import errno
import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_datasets import (
    SIDE,
    Demo,
    demos,
    write_film,
    write_lerobot_v21,
    write_lerobot_v30,
    write_replay_buffer,
    write_robomimic,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from neuralsim import cli
from neuralsim.data.episode import ActionsAbsent, Episode
from neuralsim.data.images import CameraLayout
from neuralsim.data.inspect import describe_data, draw_strips
from neuralsim.data.store import EpisodeStore, JoinedStore
from neuralsim.data.windows import WindowSampler
from neuralsim.formats import importer as importing
from neuralsim.formats.action_mapping import ActionScale, meaning_of
from neuralsim.formats.dataset_uri import DatasetURI
from neuralsim.formats.importer import ImportConfig, Importer, ImportReport
from neuralsim.formats.lerobot_stats import FeatureStats
from neuralsim.formats.lerobot_writer import write_lerobot
from neuralsim.formats.minari import write_minari
from neuralsim.formats.zarr_replay_buffer import hand_moves
from neuralsim.runtime.files import DiskFullError
from neuralsim.spec import WorldSpec

THROUGH_MP4 = 4
"""Grey levels by which a frame of one colour may differ after a film of somebody else's."""


def read(source: str, out: Path, size: int | None = SIDE, **how: Any) -> tuple[EpisodeStore, ImportReport]:
    """``neuralsim import SOURCE --out OUT``."""
    importer = Importer(ImportConfig(source=source, out=out, size=size, **how))
    for _ in importer.run():
        pass
    return EpisodeStore(out), importer.report


def native(store: EpisodeStore, episode: Episode) -> np.ndarray:
    return meaning_of(store.spec).native(episode.actions)


def assert_as_recorded(store: EpisodeStore, truth: list[Demo], off: int = 0) -> None:
    """Every episode of ``store`` is the demonstration that its provenance names, its frames ``off`` grey levels
    away at most."""
    for episode in store:
        demo = truth[episode.provenance["index"]]
        steps = len(demo) - 1
        assert len(episode) == steps
        wrong = np.abs(episode.frames.astype(int) - demo.frames).max()
        assert wrong <= off, wrong
        np.testing.assert_allclose(native(store, episode), demo.actions[:steps], atol=1e-6)
        np.testing.assert_array_equal(episode.states, demo.states)


def assert_same(ours: EpisodeStore, theirs: EpisodeStore, exactly: bool) -> None:
    """Frames apart; actions, unless ``exactly``, to the rounding of native float32 numbers."""
    assert ours.info == theirs.info
    scale = meaning_of(ours.spec)
    rounding = 1.2e-7 * (1 + max(abs(o) / s for o, s in zip(scale.offset, scale.scale, strict=True) if s))
    for a, b in zip(ours, theirs, strict=True):
        assert a.provenance == b.provenance
        np.testing.assert_allclose(a.actions, b.actions, rtol=0, atol=0 if exactly else rounding)
        for name in ("rewards", "terminated", "truncated", "states"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
            assert getattr(a, name).dtype == getattr(b, name).dtype


def noise_store(folder: Path, source: dict[str, Any] | None = None, count: int = 5) -> EpisodeStore:
    """Episodes of noise, in a world that is not square, is not symmetric, and has an action that never changes."""
    spec = WorldSpec("noise", 32, 40, ("x", "y", "grip"), ("m", "m", "unknown"), (2.0, 0.3, 0.0), 12.5, 3)
    rng = np.random.default_rng(0)
    store = EpisodeStore.create(folder, spec, ("x", "y"))
    store.set_source(source or {})
    for seed in range(count):
        t = 3 + seed
        actions = rng.uniform(-1, 1, (t, 3)).astype(np.float32)
        actions[:, 2] = 0
        store.add(
            [
                Episode(
                    rng.integers(0, 256, (t + 1, 32, 40, 3), np.uint8),
                    actions,
                    rng.normal(size=t).astype(np.float32),
                    rng.random(t) < 0.5,
                    rng.random(t) < 0.5,
                    rng.normal(size=(t + 1, 2)).astype(np.float32),
                    {"seed": 2**40 + seed, "policy": "noise", "human": [1, 0], "nested": {"a": None}},
                )
            ]
        )
    return store


# -- LeRobot -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["video", "image"])
@pytest.mark.parametrize("stats", ["", "stats.json", "episodes_stats.jsonl"])
def test_lerobot_v21_comes_in(tmp_path: Path, kind: str, stats: str) -> None:
    truth = demos()
    folder = write_lerobot_v21(tmp_path / "arm", truth, kind=kind, stats=stats)
    store, report = read(f"lerobot:{folder}", tmp_path / "store", name="arm")
    assert_as_recorded(store, truth, THROUGH_MP4 if kind == "video" else 0)
    assert report.left_out == []
    spec, source = store.spec, store.info.source
    assert (spec.name, spec.rate_hz, spec.action_names) == ("arm", 10.0, ("reach", "turn", "grip"))
    assert spec.action_units == ("unknown",) * 3
    assert spec.action_scale == ((8.0, 8.0, 0.0) if stats == "stats.json" else (2.0, 2.0, 0.0))
    assert spec.action_offset == ((0.0, 0.0, 5.0) if stats == "stats.json" else (2.0, -1.0, 5.0))
    assert source["action_bounds_from"] == (f"meta/{stats}" if stats else "the actions of 4 recordings")
    assert source["constant"] == {"grip": 5.0}
    assert "actions that never change: grip (always 5)" in report.remarks
    assert "not given, and zero in the store: truncated" in report.remarks
    assert store.info.state_names == ("place", "clock")
    for episode in store:
        demo = truth[episode.provenance["index"]]
        np.testing.assert_array_equal(episode.rewards, demo.rewards[:-1])
        np.testing.assert_array_equal(episode.terminated, demo.done[:-1])
        assert episode.provenance["task"] == "tidy up"
        assert episode.provenance["unseen"]["actions"] == [4.0, -3.0, 5.0]


def test_lerobot_v30_of_others_comes_in_from_many_files_and_cameras(tmp_path: Path) -> None:
    truth = demos(5)
    cameras = ("observation.images.left", "observation.images.right")
    folder = write_lerobot_v30(tmp_path / "arm", truth, cameras)
    store, report = read(f"lerobot:{folder}", tmp_path / "both")
    assert store.spec.frame_shape == (SIDE, 2 * SIDE, 3)
    assert f"cameras {cameras[0]}, {cameras[1]}: side by side in one frame; --camera takes one" in report.remarks
    assert len(store) == 5
    for episode in store:
        np.testing.assert_array_equal(episode.frames[:, :, :SIDE], episode.frames[:, :, SIDE:])
    one, report = read(f"lerobot:{folder}", tmp_path / "one", camera=(cameras[1],))
    assert_as_recorded(one, truth, THROUGH_MP4)
    assert not [remark for remark in report.remarks if "side by side" in remark]
    with pytest.raises(
        ValueError, match=r"no such camera in .*; there: observation.images.left, observation.images.right"
    ):
        read(f"lerobot:{folder}", tmp_path / "none", camera=("front",))


@pytest.mark.parametrize("source", [{}, {"action_offset": [1.0, -20.0, 5.0], "constant": {"grip": 5.0}}])
def test_a_store_goes_to_lerobot_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: dict[str, Any]
) -> None:
    monkeypatch.setattr("neuralsim.formats.lerobot_writer.FILE_BYTES", 4_000)  # several files
    store = noise_store(tmp_path / "store", source)
    written = write_lerobot(store, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("videos/*/*/*.mp4"))) > 1
    back, report = read(f"lerobot:{tmp_path / 'out'}", tmp_path / "back", size=None)
    assert_same(store, back, exactly=False)
    assert report.left_out == []
    assert {**back.info.source, **source} == back.info.source
    assert written.psnr_db is not None
    assert written.psnr_db > 35  # noise is the hardest there is
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "out", "store"]
    small, _ = read(f"lerobot:{tmp_path / 'out'}", tmp_path / "small", size=16)
    assert small.spec.frame_shape == (16, 16, 3)
    assert small.spec.action_scale == store.spec.action_scale


def test_rendered_frames_lose_little_in_mp4(tmp_path: Path) -> None:
    assert (
        cli.main(["collect", "--episodes", "2", "--steps", "20", "--workers", "1", "--out", str(tmp_path / "s")]) == 0
    )
    store = EpisodeStore(tmp_path / "s")
    for pixels, least in (("yuv444p", 50), ("yuv420p", 35)):
        psnr = write_lerobot(store, tmp_path / pixels, pixels).psnr_db
        assert psnr is not None
        assert psnr > least
        back, _ = read(f"lerobot:{tmp_path / pixels}", tmp_path / f"back-{pixels}", size=None)
        for ours, theirs in zip(store, back, strict=True):  # what was told of one episode holds for all
            error = np.mean((ours.frames.astype(float) - theirs.frames) ** 2)
            assert 10 * np.log10(255**2 / error) > least


def test_the_statistics_that_lerobot_wants_are_those_of_all_rows(tmp_path: Path) -> None:
    store = noise_store(tmp_path / "store", {"action_offset": [1.0, -20.0, 5.0]})
    write_lerobot(store, tmp_path / "out")
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    frames = np.concatenate([e.frames for e in store]) / 255
    np.testing.assert_allclose(np.ravel(stats["observation.image"]["mean"]), frames.mean((0, 1, 2)), atol=1e-9)
    np.testing.assert_allclose(np.ravel(stats["observation.image"]["std"]), frames.std((0, 1, 2)), atol=1e-9)
    states = np.concatenate([e.states for e in store if e.states is not None])
    np.testing.assert_allclose(stats["observation.state"]["std"], states.std(0), atol=1e-6)
    np.testing.assert_allclose(stats["observation.state"]["min"], states.min(0))
    assert stats["action"]["max"][2] == 5.0
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"]) == (5, len(frames))


@settings(max_examples=50)
@given(
    rows=arrays.arrays(np.float64, st.tuples(st.integers(2, 20), st.integers(1, 3)), elements=st.floats(-1e3, 1e3)),
    at=st.floats(0, 1),
)
def test_tallies_add_up(rows: np.ndarray, at: float) -> None:
    cut = 1 + int(at * (len(rows) - 2))
    tally = FeatureStats.of(rows[:cut]) + FeatureStats.of(rows[cut:])
    told = tally.as_stats()
    np.testing.assert_allclose(told["mean"], rows.mean(0), atol=1e-9)
    np.testing.assert_allclose(told["std"], rows.std(0), atol=1e-6)
    np.testing.assert_array_equal(told["min"], rows.min(0))
    np.testing.assert_array_equal(told["max"], rows.max(0))
    assert told["count"] == [len(rows)]


# -- robomimic and zarr ------------------------------------------------------------------------------------------------------------


def test_robomimic_comes_in(tmp_path: Path) -> None:
    truth = demos(12)  # demo_10 comes after demo_9
    path = write_robomimic(tmp_path / "lift.hdf5", truth, cameras=("agentview_image", "wrist_image"))
    store, report = read(f"robomimic:{path}", tmp_path / "store", camera=("agentview_image",))
    assert_as_recorded(store, truth)
    assert [store.provenance(i)["demo"] for i in range(12)] == [f"demo_{i}" for i in range(12)]
    assert store.spec.rate_hz == 20.0
    assert store.info.state_names == ("robot0_eef_pos_0", "robot0_eef_pos_1")
    assert store[3].rewards.tolist() == truth[3].rewards[:-1].tolist()
    assert store[3].terminated.tolist() == truth[3].done[:-1].tolist()
    assert report.left_out == []


def test_robomimic_with_next_obs_loses_no_action(tmp_path: Path) -> None:
    truth = demos()
    store, report = read(f"robomimic:{write_robomimic(tmp_path / 'lift.hdf5', truth, after=True)}", tmp_path / "store")
    assert_as_recorded(store, truth)  # N - 1 actions were written, with N - 1 observations before and after
    assert "unseen" not in store.provenance(0)
    assert not [remark for remark in report.remarks if "unseen" in remark]


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(("floats", "zipped"), [(False, False), (True, False), (False, True)])
def test_a_replay_buffer_comes_in(tmp_path: Path, zarr_format: int, floats: bool, zipped: bool) -> None:
    truth = demos()
    path = write_replay_buffer(tmp_path / ("b.zarr.zip" if zipped else "b.zarr"), truth, zarr_format, floats, zipped)
    store, report = read(f"zarr:{path}", tmp_path / "store", rate=50.0)
    assert_as_recorded(store, truth)
    assert store.spec.rate_hz == 50.0
    assert not store[0].rewards.any()
    assert "not given, and zero in the store: rewards, terminated, truncated" in report.remarks
    assert ("data/img has floats in 0..255: rounded to 0..255" in report.remarks) == floats


def test_zarr_3_leaves_out_zeros_and_that_is_said(tmp_path: Path) -> None:
    path = write_replay_buffer(tmp_path / "b.zarr", demos(), zarr_format=3)
    assert not [r for r in read(f"zarr:{path}", tmp_path / "whole")[1].remarks if "not there" in r]
    (path / "data/action/c/1/0").unlink()
    store, report = read(f"zarr:{path}", tmp_path / "store")
    assert "1 chunks of data/action are not there, as zarr leaves out what is all 0.0: read as that" in report.remarks
    np.testing.assert_allclose(native(store, store[0])[4], 0, atol=1e-6)


def test_umi_has_no_actions_but_a_hand_that_moves(tmp_path: Path) -> None:
    truth = demos()
    store, report = read(f"zarr:{write_replay_buffer(tmp_path / 'u.zarr', truth, umi=True)}", tmp_path / "store")
    assert store.spec.action_names[:2] == ("robot0_x", "robot0_y")
    assert store.spec.action_units[5:] == ("rad", "m")
    assert "data/robot0_demo_end_pose" in " ".join(report.remarks)  # it tells of the future
    for episode in store:
        assert len(episode) == len(truth[episode.provenance["index"]]) - 1
        moves = native(store, episode)
        np.testing.assert_allclose(moves, np.tile([0.02, 0, 0, 0, 0, 0.1, -0.01], (len(moves), 1)), atol=1e-6)


@settings(max_examples=50)
@given(turn=arrays.arrays(np.float64, (4, 3), elements=st.floats(-1.5, 1.5)), seed=st.integers(0, 2**32 - 1))
def test_a_hands_moves_lead_from_pose_to_pose_wherever_the_frame_stands(turn: np.ndarray, seed: int) -> None:
    import cv2

    rng = np.random.default_rng(seed)
    place, width = rng.normal(size=(4, 3)), rng.normal(size=(4, 1))
    moves = hand_moves(place, turn, width)
    at, facing = place[0], cv2.Rodrigues(turn[0])[0]
    for step, move in enumerate(moves, 1):
        at, facing = at + facing @ move[:3], facing @ cv2.Rodrigues(move[3:6])[0]
        np.testing.assert_allclose(at, place[step], atol=2e-4)  # OpenCV takes 1e-5 rad for none
        np.testing.assert_allclose(facing, cv2.Rodrigues(turn[step])[0], atol=5e-5)
    other, shift = cv2.Rodrigues(rng.normal(size=3))[0], rng.normal(size=3)
    turned = np.stack([cv2.Rodrigues(other @ cv2.Rodrigues(t)[0])[0][:, 0] for t in turn])
    np.testing.assert_allclose(hand_moves(place @ other.T + shift, turned, width), moves, atol=5e-5)


# -- Minari ------------------------------------------------------------------------------------------------------------------------


def test_a_store_goes_to_minari_and_back_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    monkeypatch.setattr("neuralsim.formats.minari.EPISODES_AT_ONCE", 2)
    store = noise_store(tmp_path / "store", {"action_offset": [1.0, -20.0, 5.0]})
    write_minari(store, "tests/noise-v0", tmp_path / "minari")
    back, _ = read("minari:tests/noise-v0", tmp_path / "back", size=None, root=tmp_path / "minari")
    assert_same(store, back, exactly=True)
    assert all((a.frames == b.frames).all() for a, b in zip(store, back, strict=True))
    assert back.spec.action_offset == (1.0, -20.0, 5.0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "minari", "store"]


def test_what_minari_itself_reads_of_our_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import minari

    store = noise_store(tmp_path / "store")
    write_minari(store, "noise-v1", tmp_path / "minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    dataset = minari.load_dataset("noise-v1")
    assert dataset.total_episodes == 5
    assert dataset.total_steps == sum(map(len, store))
    episode = dataset[1]
    assert dataset.observation_space.contains(episode.observations[0])
    assert dataset.action_space.contains(episode.actions[0])
    np.testing.assert_array_equal(episode.observations, store[1].frames)
    np.testing.assert_array_equal(episode.infos["state"], store[1].states)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Minari's, about metadata that this test leaves out
@pytest.mark.parametrize("bounded", [True, False])
def test_a_minari_dataset_of_others_comes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bounded: bool) -> None:
    import minari
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    rng = np.random.default_rng(0)
    image, vector = spaces.Box(0, 255, (16, 24, 3), np.uint8), spaces.Box(-9, 9, (2,))
    frames = rng.integers(0, 256, (2, 5, 16, 24, 3), np.uint8)
    buffers = [
        EpisodeBuffer(
            observations={"camera": frames[i], "robot": {"joints": np.full((5, 2), i, np.float32)}},
            actions=np.array([[0.0], [4.0], [2.0], [1.0]], np.float32),
            rewards=np.ones(4),
            terminations=np.zeros(4, bool),
            truncations=np.arange(4) == 3,
        )
        for i in range(2)
    ]
    minari.create_dataset_from_buffers(
        "robot-v0",
        buffers,
        observation_space=spaces.Dict({"camera": image, "robot": spaces.Dict({"joints": vector})}),
        action_space=spaces.Box(-4.0, 4.0, (1,), np.float32)
        if bounded
        else spaces.Box(-np.inf, np.inf, (1,), np.float32),
        jpeg_encoding=False,
    )
    store, report = read("minari:robot-v0", tmp_path / "store", size=24, name="arm")
    assert (store.spec.name, store.spec.frame_shape) == ("arm", (24, 24, 3))
    assert store.spec.action_scale == ((4.0,) if bounded else (2.0,))
    assert "camera camera: frames of 16 x 24 are resized to 16 x 24, the rest of 24 x 24 left black" in report.remarks
    np.testing.assert_array_equal(store[1].frames[:, 4:20], frames[1])
    assert not store[1].frames[:, :4].any()
    np.testing.assert_allclose(native(store, store[0])[:, 0], [0, 4, 2, 1], atol=1e-6)
    assert [store.provenance(i)["seed"] for i in range(2)] == [0, 1]  # not one seed for all: the split goes by it
    assert store.info.state_names == ("robot/joints_0", "robot/joints_1")
    assert (store[1].states == 1).all()
    assert store[0].truncated.tolist() == [False, False, False, True]


def test_writing_minari_says_what_it_cannot(tmp_path: Path) -> None:
    store = noise_store(tmp_path / "store")
    with pytest.raises(ValueError, match="name-v0"):
        write_minari(store, "no version", tmp_path / "minari")
    write_minari(store, "noise-v0", tmp_path / "minari")
    with pytest.raises(FileExistsError, match="another id or version"):
        write_minari(store, "noise-v0", tmp_path / "minari")
    with pytest.raises(FileNotFoundError, match="there: noise-v0"):
        read("minari:nose-v0", tmp_path / "back", root=tmp_path / "minari")


# -- video -------------------------------------------------------------------------------------------------------------------------


def film_folder(folder: Path) -> list[np.ndarray]:
    films = [demo.frames for demo in demos(3, height=24, width=48)]
    write_film(folder / "a/first.mp4", films[0])
    write_film(folder / "b.webm", films[1], "libvpx-vp9")
    write_film(folder / "c.GIF".replace("GIF", "gif"), films[2], "gif")
    (folder / "notes.txt").write_text("no film")
    return films


@pytest.mark.parametrize("write", [write_lerobot, lambda store, place: write_minari(store, "my/x-v0", place)])
def test_an_export_that_meets_a_full_disk_leaves_nothing_and_names_its_place(
    tmp_path: Path, write: Callable[[EpisodeStore, Path], object]
) -> None:
    store, _ = read(f"zarr:{write_replay_buffer(tmp_path / 'demos.zarr', demos(4))}", tmp_path / "store")
    place = tmp_path / "out"
    killed = tmp_path / ".writing-999999999-x", place / ".writing-999999999-x"
    for left in killed:
        left.mkdir(parents=True)
    if write is write_lerobot:
        place = place / "set"

    class Full(EpisodeStore):
        def __getitem__(self, index: int) -> Episode:
            if index == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().__getitem__(index)

    with pytest.raises(DiskFullError, match=rf"{place}.*the disk is full"):
        write(Full(store.folder), place)
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert not killed[1].exists()
    write(store, place)


def test_a_folder_of_video_has_frames_and_no_actions(tmp_path: Path) -> None:
    films = film_folder(tmp_path / "films")
    store, report = read(f"video:{tmp_path / 'films'}", tmp_path / "store", name="cats")
    assert [store.provenance(i)["file"] for i in range(3)] == ["a/first.mp4", "b.webm", "c.gif"]
    assert "camera video: frames of 24 x 48 are resized to 8 x 16, the rest of 16 x 16 left black" in report.remarks
    assert store.spec.action_size == 0
    for episode, film in zip(store, films, strict=True):
        assert len(episode) == len(film) - 1
        seen = episode.frames[:, 6:10, 4:12].mean((1, 2))
        palette = 45 if episode.provenance["file"].endswith("gif") else THROUGH_MP4
        assert np.abs(seen - film[:, 0, 0]).max() <= palette
        assert not episode.frames[:, :4].any()
        assert episode.provenance["actions"] == "absent"
        with pytest.raises(ActionsAbsent, match="video without actions"):
            _ = episode.actions
        assert not episode.has_actions
    assert [p.name for p in (tmp_path / "store").glob("shard-*/actions.npy")] == []
    with pytest.raises(ActionsAbsent):
        _ = store.shards[0]["actions"]
    assert describe_data(store)["actions"] == ["absent: 3 of 3 episodes are video alone"]


def test_windows_with_actions_are_never_of_video(tmp_path: Path) -> None:
    film_folder(tmp_path / "films")
    store, _ = read(f"video:{tmp_path / 'films'}", tmp_path / "store")
    rng = np.random.default_rng(0)
    assert WindowSampler(store, 3).sample(8, rng).actions.shape == (
        8,
        2,
        0,
    )  # what a world has none of, everybody knows
    acted = noise_store(tmp_path / "acted", count=2)
    silent = EpisodeStore.create(tmp_path / "silent", acted.spec)
    silent.add([Episode.of_video(e.frames, {"seed": 1 + i}) for i, e in enumerate(acted)])
    with pytest.raises(ValueError, match="all 2 training episodes are video without actions"):
        WindowSampler(silent, 3)
    clip = WindowSampler(store, 3, actions=False).sample(8, rng)
    assert clip.frames.shape == (8, 3, 16, 16, 3)
    with pytest.raises(ActionsAbsent):
        _ = clip.actions
    assert WindowSampler(store, 1).sample(8, rng).actions.shape == (8, 0, 0)  # a single frame needs none


def test_windows_pass_over_video_beside_episodes_with_actions(tmp_path: Path) -> None:
    acted = noise_store(tmp_path / "store")
    silent = EpisodeStore.create(tmp_path / "silent", acted.spec, acted.info.state_names)
    silent.add([Episode.of_video(e.frames, {"seed": e.provenance["seed"] + 100}) for e in acted])
    both = JoinedStore([acted, silent])
    sampler = WindowSampler(both, 3)
    assert len(sampler) == len(WindowSampler(acted, 3))
    assert sampler.locate(np.arange(len(sampler)))[0].max() < len(acted)
    assert len(WindowSampler(both, 3, actions=False)) == 2 * len(sampler)
    clip = WindowSampler(both, 1).sample(64, np.random.default_rng(0))
    assert clip.actions.shape == (64, 0, 3)
    with pytest.raises(ValueError, match="with and without actions for one shard"):
        silent.add([acted[0], silent[0]])
    with pytest.raises(ValueError, match="provenance calls absent"):
        Episode(*(getattr(acted[0], n) for n in EpisodeStore.ARRAYS), provenance={"actions": "absent"})


def test_a_store_that_gives_video_actions_is_damaged(tmp_path: Path) -> None:
    store = noise_store(tmp_path)
    np.save(tmp_path / "shard-00000/actions.npy", store[0].actions)
    entries = json.loads((tmp_path / "shard-00000/episodes.json").read_text())
    entries[0]["provenance"]["actions"] = "absent"
    (tmp_path / "shard-00000/episodes.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"shard-00000: damaged shard .*have no actions"):
        EpisodeStore(tmp_path)


def test_video_goes_to_lerobot_and_back_and_minari_refuses_it(tmp_path: Path) -> None:
    film_folder(tmp_path / "films")
    store, _ = read(f"video:{tmp_path / 'films'}", tmp_path / "store")
    write_lerobot(store, tmp_path / "out")
    back, _ = read(f"lerobot:{tmp_path / 'out'}", tmp_path / "back", size=None)
    assert back.info == store.info
    assert [back.provenance(i) for i in range(3)] == [store.provenance(i) for i in range(3)]
    assert not any(episode.has_actions for episode in back)
    with pytest.raises(ValueError, match="video without actions, which Minari cannot"):
        write_minari(store, "video-v0", tmp_path / "minari")


@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
def test_a_film_held_upright_comes_in_upright(tmp_path: Path, quarter: int) -> None:
    """Telephones write how they were held into the matrix of the track header."""
    from neuralsim.data.video import read_video

    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[:, :16, :16] = 200  # what is seen upright is bright in this quarter turned so far
    write_film(tmp_path / "a.mp4", np.repeat(image, 3, axis=0))
    raw = bytearray((tmp_path / "a.mp4").read_bytes())
    at = raw.index(b"tkhd") + 4 + 40  # version 0: times, id, duration, layer and volume come before
    turn = {0: (1, 0, 0, 1), 1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}[quarter]  # clockwise
    for place, value in zip((0, 4, 12, 16), turn, strict=True):
        raw[at + place : at + place + 4] = (value * 65536 % 2**32).to_bytes(4, "big")
    (tmp_path / "a.mp4").write_bytes(raw)
    _, seen = next(read_video(tmp_path / "a.mp4"))
    bright = [seen[:16, :16].mean(), seen[:16, 16:].mean(), seen[16:, 16:].mean(), seen[16:, :16].mean()]
    assert int(np.argmax(bright)) == quarter  # clockwise from the top left


# -- the import itself ---------------------------------------------------------------------------------------------------------


def test_an_interrupted_import_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "EPISODES_PER_SHARD", 2)
    source = f"zarr:{write_replay_buffer(tmp_path / 'b.zarr', demos(7))}"
    whole, _ = read(source, tmp_path / "whole", name="b")
    for stop in range(1, 7):
        out = tmp_path / f"stopped-{stop}"
        importer = Importer(ImportConfig(source=source, out=out, size=SIDE, name="b"))
        running = importer.run()
        for _ in range(stop):
            next(running)
        with pytest.raises(KeyboardInterrupt):
            running.throw(KeyboardInterrupt)
        written = len(EpisodeStore(out))
        assert written == stop
        store, report = read(source, out, name="b")
        assert (report.read, report.now) == (7, 7 - written)
        assert_same(whole, store, exactly=True)
    again, report = read(source, out, name="b")
    assert (len(again), report.now) == (7, 0)


def test_a_limit_can_be_raised(tmp_path: Path) -> None:
    source = f"zarr:{write_replay_buffer(tmp_path / 'b.zarr', demos(5))}"
    assert len(read(source, tmp_path / "store", limit=2)[0]) == 2
    store, report = read(source, tmp_path / "store", limit=4)
    assert (len(store), report.now) == (4, 2)
    assert [store.provenance(i)["index"] for i in range(4)] == [0, 1, 2, 3]


def test_a_long_recording_becomes_several_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "EPISODE_BYTES", 4 * SIDE * SIDE * 3)
    monkeypatch.setattr(importing, "SHARD_BYTES", 8 * SIDE * SIDE * 3)
    truth = demos(2, rows=10)
    path = write_robomimic(tmp_path / "lift.hdf5", truth)
    store, report = read(f"robomimic:{path}", tmp_path / "store")
    assert store.lengths.tolist() == [3, 3, 3, 3, 3, 3, 1]
    assert report.read == 2
    parts = [store.provenance(i) for i in range(7)]
    assert [(p["part"], p["last_part"]) for p in parts[:3]] == [(0, False), (1, False), (2, True)]
    assert [p["seed"] for p in parts] == [0, 0, 0, 1, 1, 1, 1]  # all on one side of the split
    for number, demo in enumerate(truth):
        mine = [episode for episode in store if episode.provenance["index"] == number]
        np.testing.assert_array_equal(np.concatenate([e.frames[:-1] for e in mine]), demo.frames[:-1])
        np.testing.assert_array_equal(mine[-1].frames[-1], demo.frames[-1])
        np.testing.assert_allclose(np.concatenate([native(store, e) for e in mine]), demo.actions[:-1], atol=1e-6)
        np.testing.assert_array_equal(np.concatenate([e.rewards for e in mine]), demo.rewards[:-1])
    assert read(f"robomimic:{path}", tmp_path / "store")[1].now == 0
    for shard in sorted((tmp_path / "store").glob("shard-*"))[-1:]:
        for file in shard.iterdir():
            file.unlink()
        shard.rmdir()
    again, report = read(f"robomimic:{path}", tmp_path / "store")
    assert report.now == 1
    assert sorted(again.lengths.tolist()) == sorted(store.lengths.tolist())


def test_memory_does_not_grow_with_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "SHARD_BYTES", 40 * 128 * 128 * 3)
    peaks = []
    for count in (10, 40):
        path = write_replay_buffer(tmp_path / f"{count}.zarr", demos(5, rows=10) * (count // 5))
        read(f"zarr:{path}", tmp_path / f"warm-{count}", limit=1)
        tracemalloc.start()
        store, _ = read(f"zarr:{path}", tmp_path / f"store-{count}", size=128)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(store) == count
    assert peaks[1] < 1.2 * peaks[0]


def test_a_store_is_of_one_source(tmp_path: Path) -> None:
    first = write_replay_buffer(tmp_path / "a.zarr", demos())
    second = write_replay_buffer(tmp_path / "b.zarr", demos())
    read(f"zarr:{first}", tmp_path / "store", name="x")
    with pytest.raises(
        ValueError, match=r"holds episodes from zarr:.*a\.zarr, not zarr:.*b\.zarr; .* choose another --as"
    ):
        read(f"zarr:{second}", tmp_path / "store", name="x")
    with pytest.raises(ValueError, match="choose another folder"):
        read(f"zarr:{first}", tmp_path / "store", size=24, name="x")
    noise_store(tmp_path / "collected")
    with pytest.raises(ValueError, match="choose another"):
        read(f"zarr:{second}", tmp_path / "collected")


def test_two_imports_into_one_store_do_not_mix(tmp_path: Path) -> None:
    source = f"zarr:{write_replay_buffer(tmp_path / 'b.zarr', demos())}"
    running = Importer(ImportConfig(source=source, out=tmp_path / "store", size=SIDE)).run()
    next(running)
    with pytest.raises(BlockingIOError, match=r"another process \(\d+\) is importing here"):
        read(source, tmp_path / "store")
    assert list(running) == [2, 3, 4]


def test_a_disk_too_small_is_told_before_the_first_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    source = f"zarr:{write_replay_buffer(tmp_path / 'b.zarr', demos())}"
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 10**8, 10**8))
    with pytest.raises(OSError, match=r"26 frames need 128 MB .* the disk has 100 MB left"):
        read(source, tmp_path / "store", size=1280)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("kind", "module"), [("lerobot", "pyarrow"), ("robomimic", "h5py"), ("zarr", "zarr"), ("minari", "h5py")]
)
def test_a_missing_library_is_named_with_the_way_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as Python itself marks what cannot be imported
    with pytest.raises(ValueError, match=r"which is not installed: pip install 'neuralsim\[data\]'"):
        read(f"{kind}:{tmp_path}", tmp_path / "store")


def test_stores_without_a_source_open_as_before(tmp_path: Path) -> None:
    noise_store(tmp_path)
    body = json.loads((tmp_path / "store.json").read_text())
    del body["source"]
    (tmp_path / "store.json").write_text(json.dumps(body))
    assert EpisodeStore(tmp_path).info.source == {}


@pytest.mark.parametrize("text", ["", "lerobot", "lerobot:", "parquet:x", "Minari:x-v0"])
def test_a_place_that_cannot_be_read_says_what_can(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected one of minari:my/dataset-v0, lerobot:folder/"):
        DatasetURI.parse(text)


# -- numbers -----------------------------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(
    actions=arrays.arrays(
        np.float64,
        st.tuples(st.integers(1, 12), st.integers(1, 4)),
        elements=st.floats(-1e6, 1e6).map(lambda x: round(x, 9)),  # nobody records what is smaller
    )
)
def test_scaling_goes_there_and_back(actions: np.ndarray) -> None:
    names = [f"a{i}" for i in range(actions.shape[1])]
    scale = ActionScale.of_actions([actions])
    inside = scale.normalise(actions, names)
    assert inside.dtype == np.float32
    assert np.abs(inside).max() <= 1
    reach = np.array(scale.scale) + np.abs(scale.offset)
    assert (np.abs(scale.native(inside) - actions) <= 1.1e-6 * reach).all()
    assert set(scale.constant(names)) == {n for n, s in zip(names, scale.scale, strict=True) if s == 0}


def test_an_action_out_of_bounds_is_named() -> None:
    scale = ActionScale.of_bounds([0, 2], [1, 2], "stats.json")
    with pytest.raises(ValueError, match=r"action 'b' is 3 in step 1, outside \[2, 2\], the bounds by stats.json"):
        scale.normalise(np.array([[0.5, 2.0], [0.5, 3.0]]), ["a", "b"])
    for low, high in (([np.nan], [1.0]), ([2.0], [1.0]), ([0.0], [np.inf])):
        with pytest.raises(ValueError, match="expected finite bounds"):
            ActionScale.of_bounds(low, high, "stats.json")


def test_one_damaged_recording_does_not_set_the_scale() -> None:
    rng = np.random.default_rng(0)
    good = [rng.uniform(-1, 1, (20, 2)) for _ in range(5)]
    far = good[0] * [1, 1e20]
    scale = ActionScale.of_actions([*good, far, np.full((3, 2), np.nan)])
    assert max(scale.scale) <= 1
    with pytest.raises(ValueError, match="action 'b' is"):
        scale.normalise(far, ["a", "b"])


@settings(max_examples=60)
@given(
    height=st.integers(1, 90), width=st.integers(1, 90), size=st.sampled_from([8, 16, 64]), count=st.integers(1, 3),
)  # fmt: skip
def test_frames_keep_their_aspect_and_their_light(height: int, width: int, size: int, count: int) -> None:
    image = np.full((height, width, 3), 200, np.uint8)
    framing = CameraLayout(size)
    frame = framing((image,) * count)
    assert frame.shape == (*framing.shape(count), 3) == (size, size * count, 3)
    part = frame[:, :size]
    assert (frame == np.tile(part, (1, count, 1))).all()
    assert set(np.unique(part)) <= {0, 200}
    lit = part[..., 0] == 200
    rows, columns = int(lit.any(1).sum()), int(lit.any(0).sum())
    assert lit.sum() == rows * columns
    assert max(rows, columns) == size
    longest = max(height, width)
    assert abs(rows - max(1, size * height / longest)) <= 0.5
    assert abs(columns - max(1, size * width / longest)) <= 0.5


# -- the commands ------------------------------------------------------------------------------------------------------------------


def test_import_data_and_export_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_lerobot_v21(Path("arm"), demos())
    (folder / "data/chunk-000/episode_000002.parquet").write_bytes(b"nothing")
    words = ["import", "lerobot:arm/", "--as", "mine", "--size", "16", "--json", "import.json"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "left out: arm: episode 2: arm/data/chunk-000/episode_000002.parquet:" in out
    assert "data/mine: 3 episodes, 20 frames; 3 recordings read now" in out
    figures = json.loads(Path("import.json").read_text())
    assert (figures["episodes"], figures["read"], len(figures["left_out"])) == (3, 3, 1)

    assert cli.main(["data", "mine", "--json", "data.json"]) == 0
    out = capsys.readouterr().out
    assert "reach: 0 to 3.33333 unknown, covers" in out
    assert "grip: always 5 unknown" in out
    facts = json.loads(Path("data.json").read_text())
    assert facts["episodes"] == 3
    assert facts["from"] == "lerobot:arm/ (LeRobotDataset v2.1)"
    assert "episode_000002" in facts["left_out"][0]
    assert Path("data/mine/strips.png").stat().st_size > 100

    assert cli.main(["export", "mine", "--to", "lerobot:out", "--json", "export.json"]) == 0
    assert "dB peak signal-to-noise ratio" in capsys.readouterr().out
    assert json.loads(Path("export.json").read_text())["episodes"] == 3
    assert cli.main(["export", "mine", "--to", "lerobot:out"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["export", "data/mine", "--to", "minari:test/mine-v0", "--root", "minari"]) == 0
    assert Path("minari/test/mine-v0/data").is_dir()


def test_odd_episodes_are_named(tmp_path: Path) -> None:
    store = noise_store(tmp_path, count=2)
    good = store[1]
    still, dark = np.repeat(good.frames[:1], len(good.frames), axis=0), np.zeros_like(good.frames)
    rest = (good.rewards, good.terminated, good.truncated, good.states)
    store.add([Episode(still, good.actions, *rest, {"seed": 7}), Episode(dark, 0 * good.actions, *rest, {"seed": 8})])
    uneven = {"seed": 9, "resampled_to_hz": 20.0, "stretch": 1, "from_s": 3.25}
    store.add([Episode(good.frames, good.actions, *rest, uneven)])
    assert describe_data(store)["odd_episodes"] == [
        "episode 2: frames that never change",
        "episode 3: frames of one colour, actions that never change",
        "episode 4: times were uneven or at another rate, resampled to 20 Hz, begins after a pause in its file, at 3.25 s",
    ]
    import imageio.v3 as iio

    assert iio.imread(draw_strips(store, tmp_path / "strips.png")).shape == (5 * 32, 8 * 40, 3)
