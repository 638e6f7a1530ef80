"""The ``meta`` folder of a LeRobotDataset, v3.0 and v2.x alike: features, and the places of episodes.

v3.0 keeps many episodes in a file and lists their places in ``meta/episodes``; v2.x has a file per episode. A dataset that
NeuralSim wrote also carries ``meta/neuralsim.json``: its store's spec and source, and a checksum of every file.
Layouts: https://huggingface.co/docs/lerobot/lerobot-dataset-v3
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from neuralsim.data.errors import CorruptDataError, SkippedRecording, blaming
from neuralsim.formats.action_mapping import ActionScale
from neuralsim.formats.dataset_reader import each, numbers
from neuralsim.runtime.imports import require_extra

ACTION, REWARD, DONE, TERMINATED, TRUNCATED = "action", "next.reward", "next.done", "next.terminated", "next.truncated"
RECORD = "meta/neuralsim.json"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


@dataclass(frozen=True)
class FilmSpan:
    """Place of one episode in a film: seconds by the dataset's record, and frames by count.

    Attributes:
        path: The film.
        begin_s: Seconds at which the episode begins, on record.
        end_s: Seconds at which it ends, on record; None where there is no such record.
        ordinal: Frames of the episodes before it in the same film.
        total: Frames of all episodes in the film.
    """

    path: Path
    begin_s: float
    end_s: float | None = None
    ordinal: int = 0
    total: int = 0


@dataclass(frozen=True)
class EpisodeEntry:
    """Place of one episode: its rows, and its span of a film per camera."""

    index: int
    length: int
    task: str
    data: Path
    films: dict[str, FilmSpan]
    provenance: dict[str, Any] | None = None


class LeRobotMetadata:
    """The meta folder below ``folder``. Raises FileNotFoundError where there is none, ValueError where it cannot be read.

    ``entries`` are the episodes in order, ``broken`` those that cannot be found; ``record`` is NeuralSim's own record, if any.
    """

    def __init__(self, folder: Path) -> None:
        with require_extra("LeRobot's format", "data"):
            import pyarrow.parquet as pq

        self.folder, self._parquet = folder, pq
        if not (folder / "meta/info.json").is_file():
            raise FileNotFoundError(f"{folder}: no LeRobotDataset here (meta/info.json is missing)")
        self._checksums: dict[str, str] = {}
        self._checked: set[Path] = set()
        self.record = self._own_record()
        self._info = self._json("meta/info.json")
        with blaming(f"{folder}/meta/info.json"):
            self.version = str(self._info["codebase_version"]).removeprefix("v")
            if self.version not in ("2.0", "2.1", "3.0"):
                raise CorruptDataError(
                    f"{folder}: is a LeRobotDataset v{self.version}, this reads v2.0, v2.1 and v3.0; "
                    "LeRobot's own scripts convert the others"
                )
            self.rate_hz = float(self._info["fps"])
            if not 0 < self.rate_hz < 10_000:
                raise CorruptDataError(
                    f"{folder}/meta/info.json: fps: expected frames per second, got {self._info['fps']!r}"
                )
            self.features: dict[str, dict[str, Any]] = {str(k): dict(v) for k, v in self._info["features"].items()}
            self.kinds = {key: str(feature["dtype"]) for key, feature in self.features.items()}
            self.widths = {key: _width(feature) for key, feature in self.features.items()}
        self._films = [key for key, kind in self.kinds.items() if kind == "video"]
        found = list(self._v3_entries() if self.version == "3.0" else self._v2_entries())
        self.entries = [item for item in found if isinstance(item, EpisodeEntry)]
        self.broken = [item for item in found if isinstance(item, SkippedRecording)]
        self.broken += self._inconsistencies()
        self.entries = list(_counted(self.entries))
        if not self.entries:
            why = f" ({self.broken[0].where}: {self.broken[0].why})" if self.broken else ""
            raise ValueError(f"{folder}: no episode can be found{why}")

    @property
    def cameras(self) -> tuple[str, ...]:
        """Features of dtype video or image that show colours."""
        return tuple(k for k, v in self.features.items() if self.kinds[k] in ("video", "image") and not _is_depth(v))

    @property
    def vectors(self) -> dict[str, int]:
        """Vectors of numbers below "observation", and how long they are."""
        return {
            key: width
            for key, width in self.widths.items()
            if key.split(".")[0] == "observation" and width and self.kinds[key].rstrip("0123456789") in ("float", "int")
        }

    def names(self, key: str) -> tuple[str, ...]:
        """Names of the dimensions of a vector, from a list or from lists below keys; numbered where there are none."""
        width, names = self.widths[key], self.features[key].get("names")
        if width is None:
            raise ValueError(
                f"{self.folder}: {key}: expected a vector of numbers, got shape {self.features[key]['shape']}"
            )
        if isinstance(names, dict):
            lists = list(names.values())
            names = [n for part in lists for n in part] if all(isinstance(x, list) for x in lists) else list(names)
        if isinstance(names, list) and len(names) == width:
            return tuple(map(str, names))
        return tuple(f"{key.split('.')[-1]}_{i}" for i in range(width))

    def scale(self) -> ActionScale | None:
        """The bounds of the actions by the dataset's own statistics, None where it has none; ValueError for useless ones."""
        name, stats, size = "meta/stats.json", [], self.widths[ACTION]
        if (self.folder / name).is_file():
            stats = [self._json(name)]
        elif (self.folder / "meta/episodes_stats.jsonl").is_file():
            name = "meta/episodes_stats.jsonl"
            stats = [line["stats"] for line in self._lines(name) if not isinstance(line, SkippedRecording)]
        if not stats:
            return None
        with blaming(f"{self.folder}/{name}: action"):
            low = np.min([numbers(s[ACTION]["min"], "min", rows=size) for s in stats], axis=0)
            high = np.max([numbers(s[ACTION]["max"], "max", rows=size) for s in stats], axis=0)
            return ActionScale.of_bounds(low, high, name)

    def verify(self, path: Path) -> None:
        """Raise CorruptDataError where a file that NeuralSim wrote has changed since; each file is checked once."""
        if not self._checksums or path in self._checked:
            return
        if not path.is_file():
            raise CorruptDataError(f"{path}: is missing")
        if sha256_of(path) != self._checksums.get(path.relative_to(self.folder).as_posix()):
            raise CorruptDataError(
                f"{path}: has changed since NeuralSim wrote it (its checksum differs); copy it again, or "
                f"remove {RECORD} if it was changed on purpose"
            )
        self._checked.add(path)

    def _own_record(self) -> dict[str, Any] | None:
        path = self.folder / RECORD
        if not path.is_file():
            return None
        with blaming(str(path)):
            told = json.loads(path.read_bytes())
            record: dict[str, Any] = told["record"]
            if told["sha256"] != sha256_of_record(record):
                raise CorruptDataError(f"{path}: is not as NeuralSim wrote it; copy the dataset again")
            self._checksums = dict(record["files"])
        return record

    def _json(self, name: str) -> Any:
        path = self.folder / name
        with blaming(str(path)):
            self.verify(path)
            return json.loads(path.read_bytes())

    def _lines(self, name: str) -> Iterator[Any]:
        """Parse each line of a JSON-lines file; a SkippedRecording stands for one that cannot be read."""
        path = self.folder / name
        with blaming(str(path)):
            lines = list(enumerate(path.read_bytes().splitlines(), 1))
        return each(lines, lambda line: f"{path}: line {line[0]}", lambda line: json.loads(line[1]))

    def _inconsistencies(self) -> Iterator[SkippedRecording]:
        """Report episodes that are listed twice, of which the first is kept, and episodes that are counted but not listed."""
        first = {entry.index: entry for entry in reversed(self.entries)}
        for entry in self.entries:
            if entry is not first[entry.index]:
                yield SkippedRecording(
                    f"{self.folder}/meta", f"lists episode {entry.index} twice, with {entry.length} rows here"
                )
        self.entries = [entry for entry in self.entries if entry is first[entry.index]]
        told, count = self._info.get("total_episodes"), len(self.entries) + len(self.broken)
        if isinstance(told, int) and count < told:
            yield SkippedRecording(
                f"{self.folder}/meta", f"info.json counts {told} episodes, only {count} can be found"
            )

    def _v3_entries(self) -> Iterator[EpisodeEntry | SkippedRecording]:
        files = sorted((self.folder / "meta/episodes").glob("*/*.parquet"))
        if not files:
            raise ValueError(f"{self.folder}/meta/episodes: expected chunk-000/file-000.parquet and so on, got nothing")
        for table in each(files, str, self._v3_rows):
            if isinstance(table, SkippedRecording):
                yield table
                continue
            path, rows = table
            named = [(f"{path}: row {number}", row) for number, row in enumerate(rows)]
            yield from each(named, lambda item: item[0], lambda item: self._v3_entry(item[1]))

    def _v3_rows(self, path: Path) -> tuple[Path, list[dict[str, Any]]]:
        place = [f"videos/{key}/{x}" for key in self._films for x in ("chunk_index", "file_index", "from_timestamp")]
        wanted = ["episode_index", "length", "data/chunk_index", "data/file_index", *place]
        self.verify(path)
        file = self._parquet.ParquetFile(path, page_checksum_verification=True)
        there = file.schema_arrow.names
        if missing := [column for column in wanted if column not in there]:
            raise CorruptDataError(f"{path}: lacks the columns {', '.join(missing)}")
        ends = (f"videos/{key}/to_timestamp" for key in self._films)
        return path, file.read([*wanted, *(c for c in ("tasks", "provenance", *ends) if c in there)]).to_pylist()

    def _v3_entry(self, row: dict[str, Any]) -> EpisodeEntry:
        films = {}
        for key in self._films:
            chunk, number = row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"]
            path = self._path("video_path", video_key=key, chunk_index=chunk, file_index=number)
            end = row.get(f"videos/{key}/to_timestamp")
            films[key] = FilmSpan(path, float(row[f"videos/{key}/from_timestamp"]), None if end is None else float(end))
        return EpisodeEntry(
            int(row["episode_index"]),
            int(row["length"]),
            _joined(row.get("tasks")),
            self._path("data_path", chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]),
            films,
            json.loads(row["provenance"]) if self.record else None,
        )

    def _v2_entries(self) -> Iterator[EpisodeEntry | SkippedRecording]:
        for line in self._lines("meta/episodes.jsonl"):
            if isinstance(line, SkippedRecording):
                yield line
            else:
                yield from each(
                    [line], lambda line: f"{self.folder}/meta/episodes.jsonl: {str(line)[:60]}", self._v2_entry
                )

    def _v2_entry(self, line: dict[str, Any]) -> EpisodeEntry:
        index = int(line["episode_index"])
        names = {"episode_chunk": index // int(self._info["chunks_size"]), "episode_index": index}
        return EpisodeEntry(
            index,
            int(line["length"]),
            _joined(line.get("tasks")),
            self._path("data_path", **names),
            {key: FilmSpan(self._path("video_path", video_key=key, **names), 0.0) for key in self._films},
        )

    def _path(self, template: str, **names: Any) -> Path:
        """A path by the template that meta/info.json gives; CorruptDataError where it would lead out of the dataset."""
        path = self.folder / str(self._info[template]).format(**names)
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise CorruptDataError(f"{self.folder}/meta/info.json: {template} leads out of the dataset, to {path}")
        return path


def _counted(entries: list[EpisodeEntry]) -> Iterator[EpisodeEntry]:
    """Count the frames before each episode in its films, and those of all episodes there."""
    spans: dict[tuple[str, Path], list[EpisodeEntry]] = {}
    for entry in entries:
        for camera, span in entry.films.items():
            spans.setdefault((camera, span.path), []).append(entry)
    before: dict[tuple[str, int], tuple[int, int]] = {}
    for (camera, _), sharing in spans.items():
        total, ordinal = sum(entry.length for entry in sharing), 0
        for entry in sorted(sharing, key=lambda entry: (entry.films[camera].begin_s, entry.index)):
            before[camera, entry.index] = ordinal, total
            ordinal += entry.length
    for entry in entries:
        films = {
            camera: replace(span, ordinal=before[camera, entry.index][0], total=before[camera, entry.index][1])
            for camera, span in entry.films.items()
        }
        yield replace(entry, films=films)


def sha256_of(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_record(record: dict[str, Any]) -> str:
    """The checksum of NeuralSim's own record of a dataset."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _width(feature: dict[str, Any]) -> int | None:
    """Number of values in a row of a feature; None where it is no vector."""
    shape = tuple(feature["shape"])
    return int(shape[0]) if len(shape) == 1 else None


def _is_depth(feature: dict[str, Any]) -> bool:
    told = (feature.get("info") or {}) | (feature.get("video_info") or {})
    return bool(told.get("is_depth_map") or told.get("video.is_depth_map"))


def _joined(tasks: Any) -> str:
    return "; ".join(map(str, tasks)) if isinstance(tasks, list) else str(tasks or "")
