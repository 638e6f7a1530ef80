"""Datasets as other projects write them, by the libraries they use, small and with every number known.

The frames of demonstration d at step s are of one colour, which says d and s and survives any codec; actions, states, rewards
and ends say so too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SIDE, RATE = 16, 10
ACTION_NAMES = ["reach", "turn", "grip"]
STATE_NAMES = ["place", "clock"]


@dataclass(frozen=True)
class Demo:
    """N rows, as most formats have them: an observation and the action taken there."""

    frames: np.ndarray
    actions: np.ndarray
    states: np.ndarray
    rewards: np.ndarray
    done: np.ndarray

    def __len__(self) -> int:
        return len(self.actions)


def colour(demo: int, step: int) -> tuple[int, int, int]:
    return 20 + 40 * demo, 20 + 20 * step, 128


def demos(count: int = 4, rows: int = 6, height: int = SIDE, width: int = SIDE) -> list[Demo]:
    """Actions: "reach" goes from 0 to 4, "turn" from -3 to 1, "grip" is always 5."""
    made = []
    for d in range(count):
        n, step = rows + d % 2, np.arange(rows + d % 2)
        frames = np.zeros((n, height, width, 3), np.uint8)
        frames[:] = np.array([colour(d, s) for s in step])[:, None, None]
        reach, turn = step * 4 / (n - 1), 1 - step * 4 / (n - 1)
        made.append(
            Demo(
                frames,
                np.stack([reach, turn, np.full(n, 5.0)], 1).astype(np.float32),
                np.stack([np.full(n, 7.0 + d), step], 1).astype(np.float32),
                (d + step / 10).astype(np.float32),
                step == n - 2,
            )
        )
    return made


def write_film(path: Path, frames: np.ndarray, codec: str = "libx264", rate: int = RATE, **how: Any) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = {"gif": "rgb8"}.get(codec, "yuv420p")
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, options={"g": "2"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
            frame.pts = number
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def _info(version: str, demos: list[Demo], cameras: list[str], kind: str, paths: tuple[str, str]) -> dict[str, Any]:
    height, width = demos[0].frames.shape[1:3]
    number = {"dtype": "int64", "shape": [1], "names": None}
    return {
        "codebase_version": version,
        "robot_type": "arm",
        "total_episodes": len(demos),
        "total_frames": sum(map(len, demos)),
        "chunks_size": 1000,
        "fps": RATE,
        "data_path": paths[0],
        "video_path": paths[1],
        "features": {
            **{
                c: {"dtype": kind, "shape": [height, width, 3], "names": ["height", "width", "channel"]}
                for c in cameras
            },
            "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": STATE_NAMES}},
            "action": {"dtype": "float32", "shape": [3], "names": ACTION_NAMES},
            "next.reward": {"dtype": "float32", "shape": [1], "names": None},
            "next.done": {"dtype": "bool", "shape": [1], "names": None},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), number),
        },
    }


def _rows(index: int, demo: Demo, cameras: list[str]) -> dict[str, Any]:
    import pyarrow as pa

    n = len(demo)
    rows = {
        "observation.state": pa.array(demo.states.tolist(), pa.list_(pa.float32(), 2)),
        "action": pa.array(demo.actions.tolist(), pa.list_(pa.float32())),  # v2 files have both kinds of list
        "next.reward": pa.array(demo.rewards),
        "next.done": pa.array(demo.done),
        "timestamp": pa.array((np.arange(n) / RATE).astype(np.float32)),
        "frame_index": pa.array(np.arange(n)),
        "episode_index": pa.array(np.full(n, index)),
        "index": pa.array(np.arange(n)),
        "task_index": pa.array(np.zeros(n, int)),
    }
    return rows | {c: pa.array([{"bytes": _png(f), "path": None} for f in demo.frames]) for c in cameras}


def _png(image: np.ndarray) -> bytes:
    import imageio.v3 as iio

    return iio.imwrite("<bytes>", image, extension=".png")


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables([pa.table(r) for r in rows]), path, write_page_checksum=True)


def write_lerobot_v21(
    folder: Path,
    demos: list[Demo],
    cameras: tuple[str, ...] = ("observation.images.top",),
    kind: str = "video",
    stats: str = "",
) -> Path:
    """A file per episode. ``stats``: which of the two files of statistics there is, if any."""
    data = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    film = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    (folder / "meta").mkdir(parents=True)
    info = _info("v2.1", demos, list(cameras), kind, (data, film))
    (folder / "meta/info.json").write_text(json.dumps(info))
    lines = [json.dumps({"episode_index": i, "tasks": ["tidy up"], "length": len(d)}) for i, d in enumerate(demos)]
    (folder / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    bounds = [{"action": {"min": d.actions.min(0).tolist(), "max": d.actions.max(0).tolist()}} for d in demos]
    if stats == "episodes_stats.jsonl":
        lines = [json.dumps({"episode_index": i, "stats": b}) for i, b in enumerate(bounds)]
        (folder / "meta" / stats).write_text("\n".join(lines))
    elif stats:
        (folder / "meta" / stats).write_text(json.dumps({"action": {"min": [-8.0, -8.0, 5.0], "max": [8.0, 8.0, 5.0]}}))
    for i, demo in enumerate(demos):
        names = {"episode_chunk": 0, "episode_index": i}
        _write_table(folder / data.format(**names), [_rows(i, demo, list(cameras) if kind == "image" else [])])
        for camera in cameras if kind == "video" else ():
            write_film(folder / film.format(video_key=camera, **names), demo.frames)
    return folder


def write_lerobot_v30(folder: Path, demos: list[Demo], cameras: tuple[str, ...] = ("observation.images.top",)) -> Path:
    """Many episodes in a file: the first half in one, the rest in another."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    film = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(_info("v3.0", demos, list(cameras), "video", (data, film))))
    half, episodes = len(demos) // 2, []
    for number, part in enumerate((range(half), range(half, len(demos)))):
        place = {"chunk_index": 0, "file_index": number}
        _write_table(folder / data.format(**place), [_rows(i, demos[i], []) for i in part])
        for camera in cameras:
            frames = np.concatenate([demos[i].frames for i in part])
            write_film(folder / film.format(video_key=camera, **place), frames)
        begin = 0
        for i in part:
            row = {"episode_index": i, "tasks": ["tidy up"], "length": len(demos[i])}
            row |= {f"data/{k}": v for k, v in place.items()}
            for camera in cameras:
                row |= {f"videos/{camera}/{k}": v for k, v in place.items()}
                row |= {f"videos/{camera}/from_timestamp": begin / RATE}
            begin += len(demos[i])
            episodes.append(row)
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pa.Table.from_pylist(episodes), path, write_page_checksum=True)
    return folder


def write_robomimic(
    path: Path, demos: list[Demo], after: bool = False, cameras: tuple[str, ...] = ("agentview_image",)
) -> Path:
    """``after``: with the group next_obs. With all checksums that HDF5 has."""
    import h5py

    with h5py.File(path, "w", libver="latest") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(map(len, demos))
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"control_freq": 20}})
        for i, demo in enumerate(demos):
            n = len(demo) - after
            group = data.create_group(f"demo_{i}")
            group.attrs["num_samples"] = n
            obs = {"robot0_eef_pos": demo.states, **dict.fromkeys(cameras, demo.frames)}
            fields = {
                "actions": demo.actions.astype(np.float64),
                "rewards": demo.rewards,
                "dones": demo.done.astype(int),
            }
            fields = {key: values[:n] for key, values in fields.items()}
            fields |= {f"obs/{key}": values[:n] for key, values in obs.items()}
            fields |= {f"next_obs/{key}": values[1:] for key, values in obs.items()} if after else {}
            for key, values in fields.items():
                group.create_dataset(key, data=values, chunks=values.shape, fletcher32=True)
    return path


def write_replay_buffer(
    path: Path, demos: list[Demo], zarr_format: int = 2, floats: bool = False, zipped: bool = False, umi: bool = False
) -> Path:
    """As diffusion-policy writes it; ``floats``: images as its Push-T has them; ``umi``: no actions, but a hand's poses."""
    import numcodecs
    import zarr

    rows = {
        "img": np.concatenate([d.frames for d in demos]),
        "state": np.concatenate([d.states for d in demos]),
        "action": np.concatenate([d.actions for d in demos]),
    }
    if umi:
        rows = {"camera0_rgb": rows["img"]} | hand(demos)
    if floats:
        rows["img"] = rows["img"].astype(np.float32)
    store = zarr.storage.ZipStore(path, mode="w") if zipped else zarr.storage.LocalStore(path)
    root = zarr.open_group(store, mode="w", zarr_format=zarr_format)
    how: dict[str, Any] = {"compressors": numcodecs.Zstd(level=1, checksum=True)}
    if zarr_format == 3:
        how = {"compressors": zarr.codecs.ZstdCodec(level=1, checksum=True)}
    for key, values in rows.items():
        chunks = (4, *values.shape[1:])
        root.create_array(f"data/{key}", shape=values.shape, dtype=values.dtype, chunks=chunks, **how)[:] = values
    ends = np.cumsum([len(d) for d in demos])
    root.create_array("meta/episode_ends", shape=ends.shape, dtype=np.int64, chunks=ends.shape, **how)[:] = ends
    store.close()
    return path


def hand(demos: list[Demo]) -> dict[str, np.ndarray]:
    """A hand that turns about the vertical and steps ahead, wherever it faces; the grip closes."""
    steps = np.concatenate([np.arange(len(d)) for d in demos])
    angle = 0.1 * steps
    ahead = np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1) * 0.02
    place = np.zeros_like(ahead)
    for i in np.flatnonzero(steps):
        place[i] = place[i - 1] + ahead[i - 1]
    return {
        "robot0_eef_pos": place.astype(np.float32),
        "robot0_eef_rot_axis_angle": np.stack([0 * angle, 0 * angle, angle], 1).astype(np.float32),
        "robot0_gripper_width": (0.08 - 0.01 * steps)[:, None].astype(np.float32),
        "robot0_demo_end_pose": np.zeros((len(steps), 6)),
    }
