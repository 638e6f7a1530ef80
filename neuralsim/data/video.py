"""Reading of video files, one frame at a time, with the times and the orientation that the file states.

Counts in headers are not trusted: encoders miscount, and a trimmed file (an edit list) keeps the count of the whole one. Frame
times come from the packets, and a file is cut off if its container ends before its own structure says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from neuralsim.data.errors import CorruptDataError, blaming

STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}
"""Decoder options: report a damaged stream instead of painting over it."""
LONGEST = 50_000_000
"""Packets that are looked at in one file at most (days of video)."""
UPRIGHT = np.eye(2)
TILT = 0.02
"""A display matrix may be off from a multiple of 90 degrees by this much (of 1)."""


@dataclass(frozen=True)
class VideoInfo:
    """Contents of a video file.

    Attributes:
        rate_hz: Frames per second, by the usual interval between frames.
        times: Presentation times of the frames in seconds, float64 ``(n,)``, rising.
    """

    rate_hz: float
    times: np.ndarray

    @property
    def frames(self) -> int:
        """Number of frames that are shown; frames outside an edit list are not counted."""
        return len(self.times)


def read_video_info(path: Path) -> VideoInfo:
    """Read the frame times of ``path`` without decoding; CorruptDataError where it is no video, is cut off, or has no frames."""
    import av  # heavy

    with blaming(str(path)), av.open(str(path)) as container:
        stream = _stream(container, path)
        stated = stream.average_rate or stream.guessed_rate
        times = _packet_times(container, stream, path)
        if len(times) > 1:
            gaps = np.diff(times)
            rate = 1 / float(gaps[gaps <= 1.5 * np.median(gaps)].mean())
            # Rounded time stamps (milliseconds in webm) state the rate less exactly than the header does.
            if stated and abs(rate / float(stated) - 1) < 0.01:
                rate = float(stated)
        elif stated:
            rate = float(stated)
        else:
            raise CorruptDataError(f"{path}: does not say how many frames it shows per second")
    if missing := missing_bytes(path):
        raise CorruptDataError(
            f"{path}: is cut off: its container goes on for {missing} bytes after the end of the file"
        )
    return VideoInfo(rate, times)


def read_video(path: Path, start: float = 0.0) -> Iterator[tuple[float, np.ndarray]]:
    """Decode ``path`` from ``start`` seconds on: (seconds, image uint8 ``(h, w, 3)``), turned and mirrored as the file states.

    Raises CorruptDataError at the first frame that is damaged, as far as the codec can tell.
    """
    import av  # heavy

    with blaming(str(path)), av.open(str(path)) as container:
        stream = _stream(container, path)
        stream.codec_context.options = STRICT
        rate, colours = float(stream.average_rate or 1), av.video.reformatter.VideoReformatter()
        if start > 0:
            container.seek(int(start / stream.time_base), stream=stream)
        for number, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise CorruptDataError(f"{path}: frame {number} is damaged")
            seconds = number / rate if frame.time is None else frame.time
            if seconds < start - 0.5 / rate:  # decoding begins at a key frame before
                continue
            image = colours.reformat(frame, format="rgb24").to_ndarray()
            yield seconds, oriented(image, _display_matrix(frame, path))


def oriented(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Show ``image`` ``(h, w, c)`` as a display matrix ``(2, 2)`` says: position (x, y) goes to (x, y) @ matrix.

    The matrix is one of the eight turns and mirrorings, with entries -1, 0, 1 (ISO 14496-12, section 6.2.2).
    """
    if matrix[0, 0] == 0:  # x goes along y: transposed, then mirrored along the new axes
        image, across, down = image.swapaxes(0, 1), matrix[1, 0], matrix[0, 1]
    else:
        across, down = matrix[0, 0], matrix[1, 1]
    if across < 0:
        image = image[:, ::-1]
    if down < 0:
        image = image[::-1]
    return np.ascontiguousarray(image)


def _display_matrix(frame: Any, path: Path) -> np.ndarray:
    """Turns and mirrorings of a frame; CorruptDataError for an angle that is no multiple of 90 degrees."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return UPRIGHT
    raw = np.frombuffer(bytes(data), "<i4" if np.little_endian else ">i4").reshape(3, 3)[:2, :2].astype(np.float64)
    size = np.abs(raw).max()
    if not size:
        return UPRIGHT
    matrix = np.rint(raw / size)
    if np.abs(raw / size - matrix).max() > TILT or np.abs(matrix).sum() != 2 or not abs(np.linalg.det(matrix)):
        raise CorruptDataError(
            f"{path}: is shown at an angle of {frame.rotation:g} degrees; expected a multiple of 90; turn it with ffmpeg first"
        )
    return matrix


def _packet_times(container: Any, stream: Any, path: Path) -> np.ndarray:
    """Times of the frames that are shown, in seconds, rising; by order and rate where packets carry none."""
    times: list[float | None] = []
    for packet in container.demux(stream):
        if packet.size and not packet.is_discard:
            stamp = packet.pts if packet.pts is not None else packet.dts
            times.append(None if stamp is None else float(stamp * packet.time_base))
        if len(times) > LONGEST:
            raise CorruptDataError(f"{path}: has more than {LONGEST} frames")
    if not times:
        raise CorruptDataError(f"{path}: has no frames")
    known = np.array([t for t in times if t is not None])
    if len(known) < len(times) or len(np.unique(known)) < len(known):
        return np.arange(len(times)) / float(stream.average_rate or stream.guessed_rate or 1)
    return np.sort(known)


def missing_bytes(path: Path) -> int:
    """Bytes by which the structure of a video container exceeds the file; 0 where it does not state its size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
            return max(0, _end_of_boxes(file, size) - size)
        if head[:4] == b"RIFF":
            return max(0, 8 + int.from_bytes(head[4:8], "little") - size)
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return max(0, _end_of_segment(file) - size)
        if head[:3] == b"GIF":
            file.seek(max(0, size - 64))
            return 0 if file.read().rstrip(b"\0\r\n").endswith(b";") else 1
    return 0


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    """End of the last top-level box of an mp4 or mov file (ISO 14496-12, section 4.2)."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        if length < 8:  # 0: to the end of the file
            return size
        place += length
    return place


def _end_of_segment(file: BinaryIO) -> int:
    """End of the segment of a Matroska or WebM file (RFC 9559); 0 where it was written with unknown size."""
    file.seek(4)
    length, width = _ebml_number(file)
    file.seek(4 + width + length)
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    length, width = _ebml_number(file)
    return 0 if length == (1 << 7 * width) - 1 else file.tell() + length


def _ebml_number(file: BinaryIO) -> tuple[int, int]:
    """A variable-length number and its width in bytes."""
    first = file.read(1)
    if not first or not first[0]:
        return 0, 1
    width = 9 - first[0].bit_length()
    rest = file.read(width - 1)
    return int.from_bytes(bytes([first[0] & ((1 << 8 - width) - 1)]) + rest, "big"), width


def _stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise CorruptDataError(f"{path}: has no video stream")
    return container.streams.video[0]
