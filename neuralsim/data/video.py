"""Movie: video files in and out, one frame at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from neuralsim.data.errors import CorruptDataError
from neuralsim.formats.dataset_reader import blaming

STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}
"""Decoder options: say that a stream is damaged, instead of painting over it."""


@dataclass(frozen=True)
class VideoInfo:
    """What the header of a video file says: frames per second, how many frames there are, and how many seconds they last
    (None where it does not)."""

    rate_hz: float
    frames: int | None
    seconds: float | None


def read_video_info(path: Path) -> VideoInfo:
    """Read the header of ``path``; Broken where it is no video."""
    import av  # heavy

    with blaming(str(path)), av.open(str(path)) as container:
        stream = _stream(container, path)
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise CorruptDataError(f"{path}: does not say how many frames it shows per second")
        seconds = None if stream.duration is None else float(stream.duration * stream.time_base)
        if seconds is None and container.duration and len(container.streams) == 1:
            seconds = container.duration / av.time_base
        return VideoInfo(float(rate), stream.frames or None, seconds)


def read_video(path: Path, start: float = 0.0) -> Iterator[tuple[float, np.ndarray]]:
    """Decode ``path`` from ``start`` seconds on, one frame at a time: (seconds, image uint8 ``(h, w, 3)``), upright.

    Raises Broken at the first frame that is damaged, as far as the codec can tell.
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
            yield seconds, np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4))


def _stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise CorruptDataError(f"{path}: has no video stream")
    return container.streams.video[0]


class VideoFileWriter:
    """Writes an mp4 frame by frame: H.264, every second frame a key frame, so that any place is near one.

    ``pixels`` is yuv444p (colour as sharp as brightness; 50 dB and more on rendered scenes) or yuv420p (what every player
    shows; small coloured things blur). Use it as a context manager.
    """

    def __init__(self, path: Path, rate: float, height: int, width: int, pixels: str) -> None:
        import av

        self.path, self.frames, self._av = path, 0, av
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rate = Fraction(rate).limit_denominator(1001)
        self._container: Any = av.open(str(path), "w")
        self._stream = self._container.add_stream("libx264", rate=self._rate, options={"crf": "5", "g": "2", "bf": "0"})
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, pixels
        self._stream.time_base = 1 / self._rate

    def add(self, image: np.ndarray) -> None:
        """One frame, uint8 ``(h, w, 3)``."""
        frame = self._av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = self.frames, 1 / self._rate
        self._container.mux(self._stream.encode(frame))
        self.frames += 1

    @property
    def seconds(self) -> float:
        """How long the film is so far."""
        return float(self.frames / self._rate)

    def __enter__(self) -> VideoFileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._container.mux(self._stream.encode())
        self._container.close()
