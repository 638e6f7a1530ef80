"""Folders of video without actions: every file is a recording of which only the frames are known.

All recordings of a store share one control rate. A file that runs at another one, or unevenly (phones record at a variable
frame rate), is resampled onto that clock by its frame times; a pause inside a file parts it into several recordings.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuralsim.data.errors import CorruptDataError, SkippedRecording
from neuralsim.data.images import Images
from neuralsim.data.video import read_video, read_video_info
from neuralsim.formats.dataset_reader import DatasetInfo, Recording

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".gif"})
CAMERA = "video"
SAME_RATE = 0.01
"""Two rates are one if they differ by no more than this share."""
JITTER = 0.25
"""A frame may be off an even clock by this share of a step; time stamps are often rounded."""
PAUSE = 4.0
"""An interval of this many usual ones is a pause in the recording, not a late frame."""
LATE = 0.1
"""Share of long intervals up to which the usual interval is the clock; with more, the clock is slower."""
NAMED = 5
"""Files that a remark names."""


@dataclass(frozen=True)
class Stretch:
    """Frames ``first`` to ``stop`` of a file, without a pause; ``times`` ``(n,)`` in seconds of all its frames."""

    times: np.ndarray
    first: int
    stop: int

    def picks(self, rate_hz: float) -> np.ndarray:
        """Numbers of the frames that are nearest in time to the ticks of a clock, rising; some twice, some never."""
        times = self.times[self.first : self.stop]
        if self.is_even(rate_hz):
            return np.arange(self.first, self.stop)
        ticks = times[0] + np.arange(int((times[-1] - times[0]) * rate_hz + JITTER) + 1) / rate_hz
        after = np.clip(np.searchsorted(times, ticks), 1, max(len(times) - 1, 1))
        if len(times) == 1:
            return np.array([self.first])
        nearest = np.where(ticks - times[after - 1] <= times[after] - ticks, after - 1, after)
        return self.first + nearest

    def is_even(self, rate_hz: float) -> bool:
        """True where the frames follow the clock of ``rate_hz``."""
        times = self.times[self.first : self.stop]
        own = times[0] + np.arange(len(times)) / rate_hz
        drift = 1 / rate_hz * max(JITTER, SAME_RATE * len(times))
        steps = np.diff(times) * rate_hz
        return bool((np.abs(times - own) <= drift).all() and (np.abs(steps - 1) <= 2 * JITTER).all())


class VideoFolderReader:
    """The video files below a folder, in the order of their names, or a single file.

    ``rate_hz`` asks for a control rate; by default it is the rate of most files. Raises FileNotFoundError where there are
    no files, ValueError where none can be read.
    """

    def __init__(self, path: Path, rate_hz: float | None = None) -> None:
        self.notes: dict[Path, str] = {}
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        self._root = path.parent if path.is_file() else path
        self._broken: dict[Path, str] = {}
        self._stretches: dict[Path, tuple[Stretch, ...]] = {}
        rates: dict[Path, float] = {}
        for file in files:
            if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
                try:
                    info = read_video_info(file)
                except CorruptDataError as error:
                    self._broken[file] = str(error)
                else:
                    self._stretches[file] = _stretches(info.times)
                    rates[file] = info.rate_hz if _is_steady(info.times) else _slower_rate(info.times)
        if not rates and not self._broken:
            raise FileNotFoundError(
                f"{path}: no video here; expected files that end with {', '.join(sorted(SUFFIXES))}"
            )
        if not rates:
            raise ValueError(
                f"{path}: none of its {len(self._broken)} videos can be read: {next(iter(self._broken.values()))}"
            )
        self._rates = rates
        self._rate = rate_hz or Counter(round(rate, 2) for rate in rates.values()).most_common(1)[0][0]
        self.about = DatasetInfo(
            format="video files",
            cameras=(CAMERA,),
            action_names=(),
            state_names=(),
            given=frozenset(),
            recordings=sum(map(len, self._stretches.values())) + len(self._broken),
            frames=sum(len(s.picks(self._rate)) for stretches in self._stretches.values() for s in stretches),
            rate_hz=self._rate,
            remarks=tuple(self._remarks()),
        )

    def actions(self) -> Iterator[np.ndarray | SkippedRecording]:
        return iter(())

    def recordings(self, cameras: Sequence[str]) -> Iterator[Recording | SkippedRecording]:
        for index, file in enumerate(sorted({*self._stretches, *self._broken})):
            where = str(file)
            if file in self._broken:
                yield SkippedRecording(where, self._broken[file].removeprefix(f"{where}: "))
                continue
            stretches = self._stretches[file]
            for number, stretch in enumerate(stretches):
                provenance = {
                    "seed": index,
                    "policy": "unknown",
                    "version": "video file",
                    "index": index,
                    "file": str(file.relative_to(self._root)),
                    "rate_hz": self._rates[file],
                }
                if len(stretches) > 1:
                    provenance |= {"stretch": number, "from_s": round(float(stretch.times[stretch.first]), 3)}
                if not stretch.is_even(self._rate):
                    provenance |= {"resampled_to_hz": self._rate}
                yield Recording(where, _frames(file, stretch, self._rate), provenance)

    def _remarks(self) -> Iterator[str]:
        uneven = [
            file
            for file, stretches in self._stretches.items()
            if not all(stretch.is_even(self._rate) for stretch in stretches)
        ]
        others = {f"{r:g}" for r in self._rates.values() if abs(r / self._rate - 1) > SAME_RATE}
        if uneven:
            own = f" (own rates: {', '.join(sorted(others)[:NAMED])})" if others else ""
            yield f"frames come unevenly or at another rate, resampled to {self._rate:g} frames/s: {_list(uneven)}{own}"
        paused = [f"{file.name} at {_pauses(parts)}" for file, parts in self._stretches.items() if len(parts) > 1]
        if paused:
            more = f" and {len(paused) - NAMED} more files" if len(paused) > NAMED else ""
            yield f"pauses inside files, which part them into several recordings: {'; '.join(paused[:NAMED])}{more}"


def _list(files: Sequence[Path]) -> str:
    more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
    return ", ".join(file.name for file in files[:NAMED]) + more


def _pauses(stretches: Sequence[Stretch]) -> str:
    ends = [(s.times[s.first - 1], s.times[s.first]) for s in stretches if s.first][:NAMED]
    return ", ".join(f"{before:.2f} s (for {after - before:.2f} s)" for before, after in ends)


def _stretches(times: np.ndarray) -> tuple[Stretch, ...]:
    """Part a file where it pauses; a single frame between two pauses is no recording."""
    gaps = np.diff(times)
    usual = float(np.median(gaps)) if len(gaps) else 0.0
    slow = max(usual, float(np.quantile(gaps, 1 - LATE))) if len(gaps) else 0.0
    cuts = [0, *(np.flatnonzero(gaps > PAUSE * slow) + 1).tolist(), len(times)]
    parts = [Stretch(times, first, stop) for first, stop in itertools.pairwise(cuts)]
    return tuple(p for p in parts if p.stop - p.first > 1 or len(parts) == 1)


def _is_steady(times: np.ndarray) -> bool:
    gaps = np.diff(times)
    return not len(gaps) or bool(np.mean(np.abs(gaps / np.median(gaps) - 1) > 2 * JITTER) <= LATE)


def _slower_rate(times: np.ndarray) -> float:
    """A rate at which nearly every tick has a frame of its own: repeated frames would look like standing still."""
    return round(1 / float(np.quantile(np.diff(times), 1 - LATE)), 2)


def _frames(file: Path, stretch: Stretch, rate_hz: float) -> Iterator[Images]:
    """The frames of a stretch on the clock; CorruptDataError where the file ends before its packets say."""
    picks = stretch.picks(rate_hz)
    counts = np.bincount(picks - stretch.first)
    shown = 0
    for number, (_, image) in enumerate(read_video(file)):
        if number < stretch.first:
            continue
        if number >= stretch.first + len(counts):
            return
        shown += 1
        for _ in range(counts[number - stretch.first]):
            yield (image,)
    # Some codecs swallow the last frames of a file that is cut inside a packet; one may be missing at the end of a whole one.
    if shown < len(counts) - 1:
        raise CorruptDataError(
            f"{file}: ends after {stretch.first + shown} frames of {stretch.first + len(counts)}; it is cut off"
        )
