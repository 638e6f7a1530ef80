"""LeRobotDataset v3.0 and v2.x: rows in parquet, frames in mp4, read with pyarrow and av.

A row is an observation and the action taken there; ``next.reward`` and ``next.done`` are the results of that action. Checksums of
pages are verified where a file has them, and those of files where NeuralSim wrote the dataset.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuralsim.data.errors import CorruptDataError, SkippedRecording, blaming
from neuralsim.data.images import Images
from neuralsim.data.store import StoreInfo
from neuralsim.data.video import read_video, read_video_info
from neuralsim.formats.action_mapping import ActionChoices, ActionScale, Meaning, meaning_of
from neuralsim.formats.dataset_reader import LAST_ROW, DatasetInfo, Recording, RowSpan, each, flags, numbers
from neuralsim.formats.lerobot_metadata import (
    ACTION,
    DONE,
    REWARD,
    TERMINATED,
    TRUNCATED,
    EpisodeEntry,
    FilmSpan,
    LeRobotMetadata,
)
from neuralsim.spec import WorldSpec

INDEX = ("episode_index", "frame_index", "timestamp")
GAP = 0.5
"""An interval between two rows may be off by this share of a step."""
LOOSE = 0.02
"""The mean time between rows may be off the frame rate by this share."""


class LeRobotReader:
    """The LeRobotDataset in ``folder``.

    Cameras are the features of dtype video or image, actions the feature "action", states all vectors of numbers below
    "observation". Raises FileNotFoundError where there is none, ValueError where it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.layout = LeRobotMetadata(folder)
        layout, kinds, ours = self.layout, self.layout.kinds, self.layout.record
        self._rows: tuple[Path, dict[str, np.ndarray]] | None = None
        self._shown: dict[Path, np.ndarray] = {}
        self._homes: dict[int, Path] | None = None
        self.notes: dict[Path, str] = {}
        self._acted, self._vectors = ACTION in kinds, layout.vectors
        self._flags = [key for key in (DONE, TERMINATED, TRUNCATED) if key in kinds]
        self._columns = {*INDEX, *self._vectors, *self._flags, ACTION, REWARD}
        if not layout.cameras:
            raise ValueError(f"{folder}: has no camera; expected a feature of dtype video or image, got {kinds}")
        aside = sorted(set(kinds) - self._columns - {*layout.cameras, "index", "task_index"})
        remarks = [f"left aside: {', '.join(aside)}"] if aside else []
        spec = StoreInfo(WorldSpec(**ours["spec"]), (), source=ours["source"]).spec if ours else None
        scale: Meaning | None = None
        if spec is not None:
            scale = meaning_of(spec)
        elif self._acted:
            bounds: ActionScale | None = None
            try:
                bounds = layout.scale()
            except ValueError as error:
                remarks.append(f"the bounds on record are of no use ({error}); they are taken from the actions")
            scale = self._choices(bounds) or bounds if "int" in kinds[ACTION] else bounds
        if DONE in kinds and not {TERMINATED, TRUNCATED} & set(kinds):
            remarks.append("next.done does not tell an end from a time limit: all are taken for ends")
        if self._acted and not ours:
            remarks.append(LAST_ROW)
        given = {
            "actions": self._acted,
            "rewards": REWARD in kinds,
            "terminated": bool({TERMINATED, DONE} & set(kinds)),
            "truncated": TRUNCATED in kinds,
        }
        self.about = DatasetInfo(
            format=f"LeRobotDataset v{layout.version}",
            cameras=layout.cameras,
            action_names=layout.names(ACTION) if self._acted else (),
            state_names=tuple(ours["state_names"]) if ours else self._state_names(),
            given=frozenset(name for name, yes in given.items() if yes),
            recordings=len(layout.entries) + len(layout.broken),
            frames=sum(entry.length for entry in layout.entries),
            rate_hz=layout.rate_hz,
            scale=scale,
            spec=spec,
            source=ours["source"] if ours else None,
            action_units=("choice",) * len(scale.counts) if isinstance(scale, ActionChoices) else (),
            remarks=tuple(remarks),
        )

    def actions(self) -> Iterator[np.ndarray | SkippedRecording]:
        return each(self.layout.entries, self._where, lambda entry: self._column(entry, ACTION))

    def recordings(self, cameras: Sequence[str]) -> Iterator[Recording | SkippedRecording]:
        yield from self.layout.broken
        yield from each(self.layout.entries, self._where, lambda entry: self._recording(entry, cameras))

    def _choices(self, bounds: ActionScale | None) -> ActionChoices | None:
        """Choices of actions that are stored with an integer dtype, which declares them to be choices."""
        try:
            return ActionChoices.within(
                bounds or ActionScale.of_actions(a for a in self.actions() if not isinstance(a, SkippedRecording))
            )
        except ValueError:  # none can be read; the import reports why
            return None

    def _where(self, entry: EpisodeEntry) -> str:
        return f"{self.layout.folder}: episode {entry.index}"

    def _state_names(self) -> tuple[str, ...]:
        """Names of all states, each with its vector's name before it where there are several."""
        alone = len(self._vectors) == 1
        return tuple(
            name if alone else f"{key.removeprefix('observation.')}.{name}"
            for key in self._vectors
            for name in self.layout.names(key)
        )

    def _recording(self, entry: EpisodeEntry, cameras: Sequence[str]) -> Recording:
        where = self._where(entry)
        rows: dict[str, np.ndarray] = {}
        if self._acted:
            rows["actions"] = self._column(entry, ACTION)
        if REWARD in self.layout.kinds:
            rows["rewards"] = self._column(entry, REWARD)[:, 0]
        said = {key: flags(self._column(entry, key), f"{where}: {key}") for key in self._flags}
        if TRUNCATED in said:
            rows["truncated"] = said[TRUNCATED]
        if TERMINATED in said:
            rows["terminated"] = said[TERMINATED]
        elif DONE in said:
            rows["terminated"] = said[DONE] & ~said.get(TRUNCATED, np.zeros_like(said[DONE]))
        states = [self._column(entry, key) for key in self._vectors]
        times = self._times(entry)
        steps = RowSpan.of_rows(rows)
        provenance = entry.provenance or {
            "seed": entry.index,
            "policy": "unknown",
            "version": self.about.format,
            "index": entry.index,
            **({"task": entry.task} if entry.task else {}),
            **({"unseen": steps.unseen} if steps.unseen else {}),
        }
        return Recording(
            where,
            self._frames(entry, cameras, times),
            provenance,
            states=np.concatenate(states, axis=1) if states else None,
            **steps.arrays,
        )

    def _times(self, entry: EpisodeEntry) -> np.ndarray:
        """Seconds of each row since the episode began; CorruptDataError where they and the frame rate do not agree."""
        times, number = self._column(entry, "timestamp")[:, 0], self._column(entry, "frame_index")[:, 0]
        where, rate = f"{entry.data}: episode {entry.index}", self.layout.rate_hz
        if not np.array_equal(number, np.arange(len(number))):
            raise CorruptDataError(
                f"{where}: frame_index: expected 0 to {len(number) - 1} in order, got {number[:5].tolist()}..."
            )
        seconds, gaps = times[-1] - times[0], np.diff(times) * rate
        if (np.diff(times) <= 0).any() or abs(seconds * rate / (len(times) - 1) - 1) > LOOSE:
            raise CorruptDataError(
                f"{where}: timestamp: {len(times)} rows take {seconds:.3f} s; expected {rate:g} a second, rising"
            )
        if len(late := np.flatnonzero((gaps > 1 + GAP) | (gaps < 1 - GAP))):
            row = int(late[0])
            raise CorruptDataError(
                f"{where}: timestamp: row {row + 1} comes {gaps[row] / rate:.3f} s after the one before; expected {1 / rate:.3f}"
            )
        return times

    def _column(self, entry: EpisodeEntry, key: str) -> np.ndarray:
        """The rows of ``entry`` in one column, float64 ``(N, width)``."""
        data = self._home(entry)
        table = self._table(data)
        for name in ("episode_index", key):
            if name not in table:
                raise CorruptDataError(f"{data}: the column {name!r} is missing; there: {', '.join(sorted(table))}")
        there = np.flatnonzero(table["episode_index"] == entry.index)
        if len(there) != entry.length:
            raise CorruptDataError(f"{data}: has {len(there)} rows of episode {entry.index}, meta/ says {entry.length}")
        if len(there) < 2:
            raise CorruptDataError(f"{data}: episode {entry.index} has {len(there)} rows; a step needs two")
        told, found = self.layout.kinds.get(key, "numbers"), table[key].dtype
        if found.kind not in "fiub" or told.rstrip("0123456789") not in (found.name.rstrip("0123456789"), "numbers"):
            raise CorruptDataError(f"{data}: column {key!r}: expected {told}, got {found}")
        return numbers(table[key][there], f"{data}: column {key!r}", self.layout.widths.get(key, 1))

    def _home(self, entry: EpisodeEntry) -> Path:
        """The file that holds an episode's rows; stale records name the file before it."""
        if entry.data.is_file() and (self._table(entry.data).get("episode_index", np.zeros(0)) == entry.index).any():
            return entry.data
        if self._homes is None:
            self._homes = {}
            for path in sorted(self.layout.folder.glob("data/**/*.parquet")):
                with contextlib.suppress(CorruptDataError):
                    for index in np.unique(self._episode_indices(path)).tolist():
                        self._homes.setdefault(int(index), path)
        home = self._homes.get(entry.index, entry.data)
        if home != entry.data:
            self.notes[entry.data] = (
                f"{entry.data}: does not hold episode {entry.index}, as meta/ says; it is in {home}"
            )
        return home

    def _episode_indices(self, path: Path) -> np.ndarray:
        import pyarrow.parquet as pq

        with blaming(str(path)):
            return pq.read_table(path, columns=["episode_index"]).column(0).to_numpy()

    def _table(self, path: Path) -> dict[str, np.ndarray]:
        """The columns of numbers in a file; the last file is kept, for episodes that follow each other lie together."""
        import pyarrow.parquet as pq

        if self._rows is None or self._rows[0] != path:
            with blaming(str(path)):
                self.layout.verify(path)
                file = pq.ParquetFile(path, page_checksum_verification=True)
                names = [name for name in file.schema_arrow.names if name in self._columns]
                table = file.read(names)
            self._rows = path, {name: _to_numpy(table.column(name), f"{path}: column {name!r}") for name in names}
        return self._rows[1]

    def _frames(self, entry: EpisodeEntry, cameras: Sequence[str], times: np.ndarray) -> Iterator[Images]:
        views = [self._film(entry, c, times) if c in entry.films else self._pictures(entry, c) for c in cameras]
        return zip(*views, strict=True)

    def _film(self, entry: EpisodeEntry, camera: str, times: np.ndarray) -> Iterator[np.ndarray]:
        """The frame of each row, from the film of many episodes or of one."""
        span = entry.films[camera]
        with blaming(str(span.path)):
            self.layout.verify(span.path)
            shown = self._film_times(span.path)
        first = self._first_frame(entry, span, shown, len(times))
        wanted, reach = shown[first : first + len(times)], 0.5 / self.layout.rate_hz
        if times[0] >= reach:
            self.notes[entry.data] = (
                f"{entry.data}: timestamps of episode {entry.index} begin at {times[0]:.3f} s, not at 0"
            )
        late = np.abs((wanted - wanted[0]) - (times - times[0])) > reach
        if late.any() and not _drifts_evenly(wanted, times):
            row = int(np.flatnonzero(late)[0])
            raise CorruptDataError(
                f"{span.path}: frame {first + row} is shown {wanted[row] - wanted[0]:.3f} s after the first of episode "
                f"{entry.index}, row {row} was recorded after {times[row] - times[0]:.3f} s"
            )
        step = 0.5 * float(np.median(np.diff(shown))) if len(shown) > 1 else reach
        film = read_video(span.path, max(0.0, float(wanted[0])))
        for row, seconds in enumerate(wanted):
            found = next((image for at, image in film if at >= seconds - step), None)
            if found is None:
                raise CorruptDataError(
                    f"{span.path}: has no frame at {seconds:.3f} s, row {row} of episode {entry.index}"
                )
            yield found

    def _film_times(self, path: Path) -> np.ndarray:
        """Frame times of a film; the last film of each camera is kept, for episodes that follow each other lie together."""
        if path not in self._shown:
            while len(self._shown) > 2 * len(self.layout.cameras):
                self._shown.pop(next(iter(self._shown)))
            self._shown[path] = read_video_info(path).times
        return self._shown[path]

    def _first_frame(self, entry: EpisodeEntry, span: FilmSpan, shown: np.ndarray, rows: int) -> int:
        """Number of the episode's first frame in its film, where three records agree or two outvote one.

        The records are the stated seconds, the count of frames in the episodes before, and the film itself. Time stamps of
        joined films drift; a film may keep frames of episodes that were deleted. Raises CorruptDataError where neither the
        count nor the seconds fit the film.
        """
        half = 0.5 / self.layout.rate_hz
        stated = int(np.abs(shown - span.begin_s).argmin())
        fits = abs(shown[stated] - span.begin_s) < half and stated + rows <= len(shown)
        if span.end_s is not None:
            fits = fits and abs((span.end_s - span.begin_s) - rows / self.layout.rate_hz) < half
        counted = span.total == len(shown)
        if counted and (not fits or stated != span.ordinal):
            self.notes[span.path] = (
                f"{span.path}: the stated time of episode {entry.index} ({span.begin_s:.3f} s) is not that of its first frame "
                f"({shown[span.ordinal]:.3f} s, by counting); frames are counted"
            )
        if counted:
            return span.ordinal
        # Frames of deleted episodes move the others back; an earlier place, or one in a film too short, is another episode's.
        if fits and (stated == span.ordinal or (span.total < len(shown) and stated > span.ordinal)):
            return stated
        raise CorruptDataError(
            f"{span.path}: has {len(shown)} frames, meta/ says {span.total}, and none at {span.begin_s:.3f} s where episode "
            f"{entry.index} of {rows} frames should begin, after {span.ordinal} frames of others"
        )

    def _pictures(self, entry: EpisodeEntry, camera: str) -> Iterator[np.ndarray]:
        """Images that lie in the rows themselves, as encoded files."""
        import imageio.v3 as iio
        import pyarrow.parquet as pq

        data = self._home(entry)
        where = f"{data}: column {camera!r}"
        with blaming(where):
            mine = [("episode_index", "=", entry.index)]
            table = pq.read_table(data, columns=[camera], filters=mine, page_checksum_verification=True)
        for row, value in enumerate(table.column(camera)):
            with blaming(f"{where}, row {row}"):
                encoded = value.as_py()
                image = iio.imread(io.BytesIO(self._picture_bytes(encoded, data)), mode="RGB")
            yield image

    def _picture_bytes(self, encoded: dict[str, Any], data: Path) -> bytes:
        """An encoded image that lies in its row, or in a file that the row names, inside the dataset."""
        if encoded.get("bytes"):
            return bytes(encoded["bytes"])
        name = encoded.get("path")
        if not name:
            raise CorruptDataError("expected an encoded image or the path of one, got neither")
        folder = self.layout.folder.resolve()
        for home in (folder, data.parent.resolve()):
            path = (home / name).resolve()
            if path.is_relative_to(folder) and path.is_file():
                return path.read_bytes()
        raise CorruptDataError(f"there is no image file {name} in the dataset")


def _drifts_evenly(shown: np.ndarray, recorded: np.ndarray) -> bool:
    """True where frames come as regularly as rows do, at a slightly other rate: then they belong together in order."""
    own, other = np.diff(shown), np.diff(recorded)
    even = np.abs(own / np.median(own) - 1).max(initial=0) < GAP
    return bool(even and abs(np.median(own) / np.median(other) - 1) < 10 * LOOSE)


def _to_numpy(column: Any, where: str) -> np.ndarray:
    """An arrow column as ``(N,)`` or, for lists of equal length, ``(N, width)``; of objects where it is neither."""
    import pyarrow.compute

    with blaming(where):
        whole = column.combine_chunks()
        empty = np.array([None] * len(whole), object)
        if "list" not in str(whole.type):
            return empty if whole.null_count else whole.to_numpy(zero_copy_only=False)
        lengths = pyarrow.compute.unique(pyarrow.compute.list_value_length(whole)).to_pylist()
        values = whole.flatten()
        if len(lengths) > 1 or None in lengths or values.null_count:
            return empty
        return values.to_numpy(zero_copy_only=False).reshape(len(whole), -1)
