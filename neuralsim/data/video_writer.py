"""Writing of mp4 files: frame by frame in the caller's thread, or in a thread of its own behind a queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from neuralsim.runtime.files import TRY_AGAIN, disk_errors, move_into_place, sweep_leftovers, temporary_path

SHARP = {"crf": "5", "g": "2", "bf": "0"}
"""Options of x264 for data: little loss, and every second frame a key frame, so that any place is near one."""
WAITING = 64
"""Frames that may wait for the encoder."""


class VideoFileWriter:
    """Writes an mp4 (H.264) frame by frame; a context manager.

    ``pixels`` is yuv444p (colour as sharp as brightness; 50 dB and more on rendered scenes) or yuv420p (every player shows
    it; small coloured things blur). ``options`` are x264's.
    """

    def __init__(
        self,
        path: Path,
        rate: float,
        size: tuple[int, int],
        pixels: str = "yuv420p",
        options: Mapping[str, str] = SHARP,
    ) -> None:
        import av  # heavy

        self.path, self.frames, self._av = path, 0, av
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rate = Fraction(rate).limit_denominator(1001)
        self._container: Any = av.open(str(path), "w")
        self._stream = self._container.add_stream("libx264", rate=self._rate, options=dict(options))
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt, self._stream.time_base = pixels, 1 / self._rate

    def add(self, image: np.ndarray) -> None:
        """Add one frame, uint8 ``(h, w, 3)`` of ``size``."""
        frame = self._av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = self.frames, 1 / self._rate
        self._container.mux(self._stream.encode(frame))
        self.frames += 1

    @property
    def seconds(self) -> float:
        """Length of the film so far."""
        return float(self.frames / self._rate)

    def __enter__(self) -> VideoFileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._container.mux(self._stream.encode())
        self._container.close()


class VideoWriter:
    """An mp4 encoded in a thread of its own; it appears under its name when it is closed, whole.

    ``kept`` and ``go_on`` stand in the error of a full disk: what survives, and what to do.
    """

    def __init__(self, path: Path, fps: float, kept: str = "", go_on: str = TRY_AGAIN) -> None:
        self.path, self.fps, self.frames = path, fps, 0
        self.error: Exception | None = None
        self._kept, self._go_on = kept, go_on
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(path.parent)  # half videos of killed writers
        self._work = temporary_path(path)
        self._queue: queue.Queue[np.ndarray | None] = queue.Queue(maxsize=WAITING)
        self._thread = threading.Thread(target=self._encode, name="neuralsim-video", daemon=True)
        self._thread.start()

    def add(self, image: np.ndarray) -> None:
        """Add one frame, uint8 ``(h, w, 3)`` with even h and w; the same size each time."""
        self.frames += 1
        self._queue.put(image)

    def close(self) -> None:
        """Encode the waiting frames and put the file in place; raises the encoder's error, a full disk's as a DiskFullError."""
        self._queue.put(None)
        self._thread.join()
        try:
            with disk_errors(self.path, kept=self._kept, go_on=self._go_on):
                if self.error is not None:
                    raise self.error
                move_into_place(self._work, self.path)
        except BaseException:
            self._work.unlink(missing_ok=True)
            raise

    def _encode(self) -> None:
        image = self._queue.get()
        try:
            if image is None:
                raise ValueError(f"{self.path}: a video needs at least one frame")
            with VideoFileWriter(self._work, self.fps, image.shape[:2], options={}) as file:
                while image is not None:
                    file.add(image)
                    image = self._queue.get()
        except Exception as error:
            self.error = error
            while image is not None:  # the other thread must not wait for a full queue for ever
                image = self._queue.get()
