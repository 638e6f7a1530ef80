"""Arrays of a zarr replay buffer on disk, in a folder or a zip file, and the ends of its episodes.

A writer may leave out chunks that hold nothing but the fill value: zarr-python 3 does, in both formats. Where a writer stores
every chunk (zarr-python 2), a chunk that is not there is lost.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from neuralsim.data.errors import CorruptDataError, SkippedRecording, blaming
from neuralsim.formats.dataset_reader import each, numbers
from neuralsim.runtime.imports import require_extra

ENDS = "meta/episode_ends"


class ZarrArrays:
    """The arrays below ``data/`` by name, and ``ends``: after which row each episode ends.

    Raises FileNotFoundError where ``path`` is nothing, ValueError where it is no replay buffer.
    """

    def __init__(self, path: Path) -> None:
        with require_extra("zarr replay buffers", "data"):
            import zarr

        if not path.exists():
            raise FileNotFoundError(f"{path}: nothing here; expected a zarr folder (or .zip) with data/ and meta/")
        self.path, self._zarr = path, zarr
        _know_jpeg_xl()
        with blaming(f"{path}"):
            zipped = path.is_file()
            self._store: Any = zarr.storage.ZipStore(path) if zipped else zarr.storage.LocalStore(path, read_only=True)
            names = _names(path)
            self._root = _root_of(names)
            self._files = frozenset(name.removeprefix(self._root) for name in names if name.startswith(self._root))
            keys = sorted({name.split("/")[1] for name in self._files if re.match(r"data/[^/.][^/]*/", name)})
            if not keys or not any(name.startswith(f"{ENDS}/") for name in self._files):
                there = sorted({"/".join(name.split("/")[:2]) for name in self._files})
                raise CorruptDataError(
                    f"{path}: expected arrays data/<key> and {ENDS}, here or in one folder inside, got "
                    f"{', '.join(there[:12]) or 'nothing'}"
                )
        self.ends = self._read_ends()
        opened = {key: next(each([f"data/{key}"], str, self._open)) for key in keys}
        self.arrays = {key: array for key, array in opened.items() if not isinstance(array, SkippedRecording)}
        self.left_out = [item for item in opened.values() if isinstance(item, SkippedRecording)]
        rows = Counter(array.shape[0] for array in self.arrays.values()).most_common(1)
        if rows and self.ends[-1] > rows[0][0]:
            raise ValueError(f"{path}: {ENDS}: says that there are {self.ends[-1]} rows, data/ has {rows[0][0]}")

    @property
    def remarks(self) -> Iterator[str]:
        """Remarks on these arrays for the user."""
        for item in self.left_out:
            hint = "; pip install imagecodecs" if "imagecodecs" in item.why else ""
            yield f"left aside: {item.where} ({item.why}{hint})"
        for key, array in self.arrays.items():
            if self._may_leave_out(f"data/{key}", array) and (
                gone := list(self._gone(f"data/{key}", array, 0, array.shape[0]))
            ):
                value = array.metadata.fill_value
                yield f"{len(gone)} chunks of data/{key} are not there, as zarr leaves out what is all {value}: read as that"
            if array.shape[0] > self.ends[-1]:
                yield f"data/{key} has {array.shape[0] - self.ends[-1]} rows that belong to no episode"

    def shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape of a row and dtype of each array."""
        return {key: (tuple(array.shape[1:]), np.dtype(array.dtype)) for key, array in self.arrays.items()}

    def rows(self, episode: int) -> tuple[int, int]:
        """The first row of an episode, and the one after its last."""
        return (int(self.ends[episode - 1]) if episode else 0), int(self.ends[episode])

    def read(self, key: str, first: int, stop: int) -> np.ndarray:
        """Rows ``first`` to ``stop`` of ``data/<key>``; CorruptDataError where they are not there."""
        with blaming(f"data/{key}"):
            array = self.arrays[key]
            if array.shape[0] < stop:
                raise CorruptDataError(f"data/{key}: has {array.shape[0]} rows, {ENDS} says {stop}")
            self._require(f"data/{key}", array, first, stop)
            return array[first:stop]

    def _open(self, key: str) -> Any:
        return self._zarr.open_array(self._store, path=self._root + key, mode="r")

    def _read_ends(self) -> np.ndarray:
        with blaming(f"{self.path}: {ENDS}"):
            array = self._open(ENDS)
            self._require(ENDS, array, 0, array.shape[0])
            ends = numbers(array[:], f"{self.path}: {ENDS}").astype(np.int64)
        if not len(ends) or ends[0] < 1 or (np.diff(ends) < 1).any():
            raise ValueError(f"{self.path}: {ENDS}: expected rising row numbers, got {ends[:8].tolist()}...")
        return ends

    def _require(self, key: str, array: Any, first: int, stop: int) -> None:
        """Raise FileNotFoundError where a chunk is lost: zarr would make zeros of it."""
        if not self._may_leave_out(key, array) and (gone := next(self._gone(key, array, first, stop), None)):
            raise FileNotFoundError(f"the chunk {gone} is missing; copy it again")

    def _may_leave_out(self, key: str, array: Any) -> bool:
        """True where a chunk that is not there stands for the fill value.

        Always so in format 3. In format 2 only zarr-python 3 (it records a separator) leaves chunks out; there, a vector or an
        image of which some chunks are stored has more likely lost the others.
        """
        if array.metadata.zarr_format != 2:
            return True
        if array.metadata.fill_value is None or "dimension_separator" not in self._record(f"{key}/.zarray"):
            return False
        return len(array.shape) == 1 or not any(re.match(rf"{re.escape(key)}/[\d./]+$", name) for name in self._files)

    def _record(self, name: str) -> dict[str, Any]:
        with blaming(f"{self.path}: {name}"):
            place = self._root + name
            if self.path.is_file():
                with zipfile.ZipFile(self.path) as file:
                    found = json.loads(file.read(place))
            else:
                found = json.loads((self.path / place).read_bytes())
            return dict(found)

    def _gone(self, key: str, array: Any, first: int, stop: int) -> Iterator[str]:
        """The files of rows ``first`` to ``stop`` that are not there."""
        sizes = array.shards or array.chunks
        if not array.shape[0] or 0 in sizes:
            return
        others = [range(-(-length // size)) for length, size in zip(array.shape[1:], sizes[1:], strict=True)]
        for place in itertools.product(range(first // sizes[0], -(-stop // sizes[0])), *others):
            name = f"{key}/{array.metadata.encode_chunk_key(place)}"
            if name not in self._files:
                yield name


def _root_of(names: frozenset[str]) -> str:
    """The folder inside, with "/" at its end, that holds ``data/`` and the ends; empty where they are at the top."""
    roots = {name[: name.index(f"{ENDS}/")] for name in names if f"{ENDS}/" in name}
    return "" if "" in roots or len(roots) != 1 else roots.pop()


def _know_jpeg_xl() -> None:
    """Let zarr read UMI's images where the imagecodecs library, which is large, is installed."""
    if importlib.util.find_spec("imagecodecs"):
        importlib.import_module("imagecodecs.numcodecs").register_codecs(verbose=False)


def _names(path: Path) -> frozenset[str]:
    """Every file below ``path``, or in the zip file, with "/" between the parts."""
    if path.is_file():
        with zipfile.ZipFile(path) as file:
            return frozenset(file.namelist())
    return frozenset(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
