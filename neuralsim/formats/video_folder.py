"""Folders of video without actions: every file is a recording of which only the frames are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from neuralsim.data.errors import CorruptDataError, SkippedRecording
from neuralsim.data.video import VideoInfo, read_video, read_video_info
from neuralsim.formats.dataset_reader import DatasetInfo, Images, Recording

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".gif"})
CAMERA = "video"
SAME_RATE = 0.01
"""Two rates are one if they differ by no more than this share."""


class VideoFolderReader:
    """The video files below a folder, in the order of their names, or a single file.

    Raises FileNotFoundError where there are none, ValueError where none can be read.
    """

    def __init__(self, path: Path) -> None:
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        self._root = path.parent if path.is_file() else path
        self._broken: dict[Path, str] = {}
        self._films: dict[Path, VideoInfo] = {}
        for file in files:
            if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
                try:
                    self._films[file] = read_video_info(file)
                except CorruptDataError as error:
                    self._broken[file] = str(error)
        if not self._films and not self._broken:
            raise FileNotFoundError(
                f"{path}: no video here; expected files that end with {', '.join(sorted(SUFFIXES))}"
            )
        if not self._films:
            raise ValueError(
                f"{path}: none of its {len(self._broken)} videos can be read: {next(iter(self._broken.values()))}"
            )
        counts = [film.frames for film in self._films.values()]
        rate = Counter(round(film.rate_hz, 2) for film in self._films.values()).most_common(1)[0][0]
        others = {f"{f.rate_hz:g}" for f in self._films.values() if abs(f.rate_hz / rate - 1) > SAME_RATE}
        self.about = DatasetInfo(
            format="video files",
            cameras=(CAMERA,),
            action_names=(),
            state_names=(),
            given=frozenset(),
            recordings=len(self._films) + len(self._broken),
            frames=None if None in counts else sum(c for c in counts if c is not None),
            rate_hz=rate,
            remarks=(f"most files show {rate:g} frames/s, some {', '.join(sorted(others))}; see rate_hz in provenance",)
            if others
            else (),
        )

    def actions(self) -> Iterator[np.ndarray | SkippedRecording]:
        """See Source: there are none."""
        return iter(())

    def recordings(self, cameras: Sequence[str]) -> Iterator[Recording | SkippedRecording]:
        """See Source."""
        for index, file in enumerate(sorted({*self._films, *self._broken})):
            where = str(file)
            if file in self._broken:
                yield SkippedRecording(where, self._broken[file].removeprefix(f"{where}: "))
                continue
            film = self._films[file]
            provenance = {
                "seed": index,
                "policy": "unknown",
                "version": "video file",
                "index": index,
                "file": str(file.relative_to(self._root)),
                "rate_hz": film.rate_hz,
            }
            yield Recording(where, _frames(file, film), provenance)


def _frames(file: Path, film: VideoInfo) -> Iterator[Images]:
    """Every frame; Broken where the file ends before its header says, which decoders do not mind."""
    if file.suffix.lower() == ".gif" and not _tail(file).endswith(b";"):  # its header does not count
        raise CorruptDataError(f"{file}: does not end as a GIF does; it is cut off")
    count, begin, end = 0, 0.0, 0.0
    for end, image in read_video(file):
        begin = begin if count else end
        count += 1
        yield (image,)
    expected = film.frames
    if expected is None and film.seconds is not None and (end - begin) < film.seconds - 1.5 / film.rate_hz:
        expected = round(film.seconds * film.rate_hz)
    if expected is not None and count < expected:
        raise CorruptDataError(f"{file}: ends after {count} frames; its header tells of {expected}, so it is cut off")


def _tail(file: Path) -> bytes:
    with file.open("rb") as raw:
        raw.seek(max(0, file.stat().st_size - 64))
        return raw.read().rstrip(b"\0\r\n")
