"""Interface of all dataset readers.

A recording is what the dataset calls an episode, demonstration or file. Its actions and states are in the dataset's own
units, its frames are decoded one by one on demand, and errors name the file and the field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from neuralsim.data.errors import CorruptDataError, SkippedRecording, blaming
from neuralsim.data.images import Images
from neuralsim.formats.action_mapping import Meaning
from neuralsim.spec import WorldSpec

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class DatasetInfo:
    """Facts about a dataset that are known before any frame is read.

    ``given`` names what it records of "actions", "rewards", "terminated" and "truncated"; ``rate_hz`` is None and
    ``action_units`` empty where it does not state them; ``scale`` maps its actions where it states their bounds;
    ``spec`` and ``source`` (see StoreInfo) are those of the store that NeuralSim wrote it from, else None; ``remarks`` are for
    the user.
    """

    format: str
    cameras: tuple[str, ...]
    action_names: tuple[str, ...]
    state_names: tuple[str, ...]
    given: frozenset[str]
    recordings: int | None = None
    frames: int | None = None
    rate_hz: float | None = None
    scale: Meaning | None = None
    spec: WorldSpec | None = None
    source: dict[str, Any] | None = None
    action_units: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recording:
    """One recording of T steps: ``frames`` gives T+1 moments; actions ``(T, a)`` and states ``(T+1, s)`` in native units,
    rewards, terminated and truncated ``(T,)``; None for what is not given. ``provenance`` is that of its episode."""

    where: str
    frames: Iterator[Images]
    provenance: dict[str, Any]
    actions: np.ndarray | None = None
    states: np.ndarray | None = None
    rewards: np.ndarray | None = None
    terminated: np.ndarray | None = None
    truncated: np.ndarray | None = None


class DatasetReader(Protocol):
    """A dataset that can be read recording by recording.

    Attributes:
        about: Facts that are known before any frame is read.
        notes: Contradictions that were found and settled while recordings were read, one sentence each, by file.
    """

    about: DatasetInfo
    notes: dict[Path, str]

    def actions(self) -> Iterator[np.ndarray | SkippedRecording]:
        """The actions ``(T, a)`` of every recording, in native units; no frame is decoded."""

    def recordings(self, cameras: Sequence[str]) -> Iterator[Recording | SkippedRecording]:
        """Every recording as seen by ``cameras``, in the same order each time; a broken one is a SkippedRecording, or raises
        CorruptDataError while its frames are read."""


def each(
    items: Iterable[Item], where: Callable[[Item], str], read: Callable[[Item], Found]
) -> Iterator[Found | SkippedRecording]:
    """``read(item)`` of every item in turn; a SkippedRecording for one that is broken."""
    for item in items:
        place = where(item)
        try:
            with blaming(place):
                found = read(item)
        except CorruptDataError as error:
            yield SkippedRecording(place, str(error).removeprefix(f"{place}: "))
        else:
            yield found


LAST_ROW = (
    "no frame shows what the last action of a recording led to: it is no step, and kept in provenance as 'unseen'"
)


@dataclass(frozen=True)
class RowSpan:
    """T steps of a dataset that records an observation and an action in each of T+1 rows.

    No frame shows what the last row's action led to; ``unseen`` keeps that row for the provenance.
    """

    arrays: dict[str, np.ndarray]
    unseen: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_rows(cls, rows: dict[str, np.ndarray]) -> RowSpan:
        """``rows``: actions ``(N, a)`` and whatever else is known per row, ``(N,)``; N = T + 1."""
        return cls(
            {name: array[:-1] for name, array in rows.items()},
            {name: array[-1].tolist() for name, array in rows.items()},
        )


def numbers(values: Any, where: str, width: int | None = None, rows: int | None = None) -> np.ndarray:
    """``values`` as finite float64 ``(n,)``, or ``(n, width)`` where a width is given; raises CorruptDataError."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise CorruptDataError(f"{where}: expected numbers, got {array.dtype}")
    array = array.astype(np.float64)
    if width is not None and array.ndim == 1:
        array = array[:, None]
    shape = (len(array) if rows is None else rows, *(() if width is None else (width,)))
    if array.shape != shape and not (width is None and array.shape == (*shape, 1)):
        raise CorruptDataError(f"{where}: expected shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise CorruptDataError(
            f"{where}: expected finite numbers, got NaN or infinity in row {np.argwhere(~np.isfinite(array))[0][0]}"
        )
    return array.reshape(shape)


def flags(values: Any, where: str, rows: int | None = None) -> np.ndarray:
    """``values`` as bool ``(n,)``; CorruptDataError for other values than 0 and 1."""
    array = numbers(values, where, rows=rows)
    if not np.isin(array, (0, 1)).all():
        raise CorruptDataError(f"{where}: expected 0 or 1, got {array[~np.isin(array, (0, 1))][0]:g}")
    return array.astype(bool)
