"""Write an episode store as a LeRobotDataset v3.0: rows in parquet, frames in mp4, statistics and episodes in ``meta``.

An episode of T steps becomes T + 1 rows, for each of its T + 1 frames; the last row repeats the last step's action and flags,
because a row must have some. Actions are written in native units. ``meta/neuralsim.json`` keeps what LeRobot has no place for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from neuralsim.data.episode import Episode, knows_actions
from neuralsim.data.store import EpisodeStore
from neuralsim.data.video import read_video
from neuralsim.data.video_writer import VideoFileWriter
from neuralsim.formats.action_mapping import meaning_of
from neuralsim.formats.lerobot_metadata import (
    ACTION,
    DATA_PATH,
    DONE,
    EPISODES_PATH,
    RECORD,
    REWARD,
    TERMINATED,
    TRUNCATED,
    VIDEO_PATH,
    sha256_of,
    sha256_of_record,
)
from neuralsim.formats.lerobot_stats import FeatureStats
from neuralsim.runtime.files import disk_errors, move_into_place, sweep_leftovers, temporary_folder
from neuralsim.runtime.imports import require_extra

CAMERA, STATE = "observation.image", "observation.state"
FILE_BYTES = 200 * 2**20
"""A film or a table that has grown to this size is followed by the next file; LeRobot's own limits are 500 and 100 MB."""
FILES_PER_CHUNK = 1000


@dataclass(frozen=True)
class Written:
    """Result of an export: the folder, and the peak signal-to-noise ratio of the first episode's frames in dB (None: no pixel
    differs)."""

    folder: Path
    psnr_db: float | None


def write_lerobot(
    store: EpisodeStore, folder: Path, pixels: str = "yuv444p", watch: Callable[[int], None] = lambda done: None
) -> Written:
    """Write every episode of ``store`` into ``folder``, which appears whole or not at all, however the process ends.

    ``pixels`` is that of VideoFileWriter; ``watch`` is called with the number of episodes written. Raises DiskFullError,
    FileExistsError where the folder exists, ValueError for a store that is empty or knows the actions of only some episodes.
    """
    with require_extra("LeRobot's format", "data"):
        import pyarrow  # noqa: F401 (said before anything is written)
    if folder.exists():
        raise FileExistsError(f"{folder}: exists already; choose a folder that does not")
    if not len(store):
        raise ValueError(f"{store.folder}: has no episodes to write")
    if len({knows_actions(store.provenance(i)) for i in range(len(store))}) > 1:
        raise ValueError(
            f"{store.folder}: holds episodes with and without actions; a LeRobotDataset is one or the other"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep_leftovers(folder.parent)
    with disk_errors(folder), temporary_folder(folder.parent) as holder:
        work = holder / "dataset"
        with ExitStack() as open_files:
            writing = _Writing(store, work, pixels, open_files)
            for number, episode in enumerate(store):
                writing.add(episode)
                watch(number + 1)
        writing.write_meta()
        psnr = _psnr(store[0].frames, work / VIDEO_PATH.format(video_key=CAMERA, chunk_index=0, file_index=0))
        move_into_place(work, folder)
    return Written(folder, psnr)


class _Writing:
    """A dataset under way: the files that are open, the rows of meta/episodes, and the tally so far."""

    def __init__(self, store: EpisodeStore, root: Path, pixels: str, open_files: ExitStack) -> None:
        self.store, self.root, self._pixels, self._open_files = store, root, pixels, open_files
        self._acted = knows_actions(store.provenance(0))
        self._with_states = all("states" in shard for shard in store.shards)
        self._meaning = meaning_of(store.spec)
        self._kind = "int64" if store.spec.discrete else "float32"
        self._file, self._index = -1, 0
        self._film: Any = None
        self._table: Any = None
        self._rows: list[dict[str, Any]] = []
        self._tasks: dict[str, int] = {}
        self._tally: dict[str, FeatureStats] = {}

    def add(self, episode: Episode) -> None:
        """Write one episode."""
        if self._film is None or max(self._path(p).stat().st_size for p in (VIDEO_PATH, DATA_PATH)) > FILE_BYTES:
            self._next_file()
        columns = self._columns(episode)
        begin = self._film.seconds
        for frame in episode.frames:
            self._film.add(frame)
        self._table.write_table(self._arrow(columns))
        tally = {k: FeatureStats.of(v) for k, v in columns.items()} | {CAMERA: FeatureStats.of_pixels(episode.frames)}
        for key, counted in tally.items():
            self._tally[key] = self._tally[key] + counted if key in self._tally else counted
        chunk, number = divmod(self._file, FILES_PER_CHUNK)
        place = {"chunk_index": chunk, "file_index": number}
        self._rows.append(
            {
                "episode_index": len(self._rows),
                "tasks": [self._task(episode)],
                "length": len(episode.frames),
                "dataset_from_index": self._index,
                "dataset_to_index": self._index + len(episode.frames),
                **{f"data/{k}": v for k, v in place.items()},
                **{f"videos/{CAMERA}/{k}": v for k, v in place.items()},
                f"videos/{CAMERA}/from_timestamp": begin,
                f"videos/{CAMERA}/to_timestamp": self._film.seconds,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                "provenance": json.dumps(episode.provenance),
                **{f"stats/{k}/{s}": v for k, t in tally.items() for s, v in t.as_stats(k == CAMERA).items()},
            }
        )
        self._index += len(episode.frames)

    def write_meta(self) -> None:
        """Write what is known when all episodes are there."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.root / EPISODES_PATH.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._rows), path, write_page_checksum=True)
        tasks = pa.table({"task_index": list(self._tasks.values()), "task": list(self._tasks)})
        pq.write_table(tasks.replace_schema_metadata({b"pandas": _PANDAS}), self.root / "meta/tasks.parquet")
        self._json("meta/info.json", self._info())
        stats = {key: tally.as_stats(key == CAMERA) for key, tally in self._tally.items()}
        self._json("meta/stats.json", stats)
        record = {
            "spec": asdict(self.store.spec),
            "state_names": list(self.store.info.state_names),
            "source": self.store.info.source,
            "files": {p.relative_to(self.root).as_posix(): sha256_of(p) for p in self.root.rglob("*") if p.is_file()},
        }
        record = json.loads(json.dumps(record))  # as it is read back, so that the checksum is of the same
        self._json(RECORD, {"sha256": sha256_of_record(record), "record": record})

    def _next_file(self) -> None:
        import pyarrow.parquet as pq

        self._open_files.pop_all().close()
        self._file += 1
        spec = self.store.spec
        film = VideoFileWriter(self._path(VIDEO_PATH), spec.rate_hz, (spec.height, spec.width), self._pixels)
        self._film = self._open_files.enter_context(film)
        path = self._path(DATA_PATH)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._table = self._open_files.enter_context(pq.ParquetWriter(path, self._schema(), write_page_checksum=True))

    def _path(self, template: str) -> Path:
        chunk, number = divmod(self._file, FILES_PER_CHUNK)
        return self.root / template.format(video_key=CAMERA, chunk_index=chunk, file_index=number)

    def _columns(self, episode: Episode) -> dict[str, np.ndarray]:
        """The rows of an episode, one for each frame."""
        rows = len(episode.frames)
        columns: dict[str, np.ndarray] = {}
        if self._with_states and episode.states is not None:
            columns[STATE] = episode.states.astype(np.float32)
        if self._acted:
            last = np.minimum(np.arange(rows), rows - 2)
            columns[ACTION] = self._meaning.native(episode.actions)[last].astype(self._kind)
            columns[REWARD] = episode.rewards[last]
            columns[DONE] = (episode.terminated | episode.truncated)[last]
            columns[TERMINATED], columns[TRUNCATED] = episode.terminated[last], episode.truncated[last]
        number = np.arange(rows)
        return columns | {
            "timestamp": (number / self.store.spec.rate_hz).astype(np.float32),
            "frame_index": number,
            "episode_index": np.full(rows, len(self._rows)),
            "index": number + self._index,
            "task_index": np.full(rows, self._tasks.setdefault(self._task(episode), len(self._tasks))),
        }

    def _task(self, episode: Episode) -> str:
        return str(episode.provenance.get("task", self.store.spec.name))

    def _features(self) -> dict[str, dict[str, Any]]:
        spec, names = self.store.spec, self.store.info.state_names
        flag = {"dtype": "bool", "shape": [1], "names": None}
        features: dict[str, dict[str, Any]] = {
            CAMERA: {"dtype": "video", "shape": [*spec.frame_shape], "names": ["height", "width", "channels"]}
        }
        if self._with_states:
            features[STATE] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
        if self._acted:
            features[ACTION] = {"dtype": self._kind, "shape": [spec.action_size], "names": list(spec.action_names)}
            features[REWARD] = {"dtype": "float32", "shape": [1], "names": None}
            features |= {DONE: flag, TERMINATED: flag, TRUNCATED: flag}
        features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
        for name in ("frame_index", "episode_index", "index", "task_index"):
            features[name] = {"dtype": "int64", "shape": [1], "names": None}
        return features

    def _info(self) -> dict[str, Any]:
        spec, features = self.store.spec, self._features()
        rate = int(spec.rate_hz) if spec.rate_hz.is_integer() else spec.rate_hz
        features[CAMERA]["info"] = {
            "video.height": spec.height,
            "video.width": spec.width,
            "video.codec": "h264",
            "video.pix_fmt": self._pixels,
            "video.is_depth_map": False,
            "video.fps": rate,
            "video.channels": 3,
            "has_audio": False,
        }
        return {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": len(self._rows),
            "total_frames": self._index,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": FILE_BYTES // 2**20,
            "video_files_size_in_mb": FILE_BYTES // 2**20,
            "fps": rate,
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": features,
        }

    def _schema(self) -> Any:
        import pyarrow as pa

        kinds = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}
        return pa.schema(
            [
                (key, kind if feature["shape"] == [1] else pa.list_(kind, feature["shape"][0]))
                for key, feature in self._features().items()
                if (kind := kinds.get(feature["dtype"])) is not None
            ]
        )

    def _arrow(self, columns: dict[str, np.ndarray]) -> Any:
        import pyarrow as pa

        schema = self._schema()
        arrays = []
        for key, kind in zip(schema.names, schema.types, strict=True):
            flat = pa.array(columns[key].reshape(-1))
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=kind) if hasattr(kind, "list_size") else flat)
        return pa.Table.from_arrays(arrays, schema=schema)

    def _json(self, name: str, body: Any) -> None:
        (self.root / name).write_text(json.dumps(body, indent=1))


def _psnr(frames: np.ndarray, film: Path) -> float | None:
    """Of the film's first frames against ``frames``."""
    seen = np.stack([image for _, image in islice(read_video(film), len(frames))])
    error = np.mean((frames.astype(np.float64) - seen) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else None


_PANDAS = json.dumps(
    {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": stored, "metadata": None}
            for name, kind, stored in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
        ],
        "pandas_version": "2.2.0",
    }
).encode()
"""LeRobot reads tasks with pandas, and wants the sentences as its index."""
