"""Recorder: what was played, as a video of the panels and as episodes of both worlds.

The video shows all that the screen showed. The episodes hold the timeline that was kept: a rewind takes steps back out, a reset begins
the next episode. Each is written as the model dreamt it (store ``imagined``), and where a truth is beside it as the simulator made it
(store ``true``, with states), apart so that nobody trains on dreams by accident; ``provenance["human"]`` says of each action whether a
hand chose it.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import imageio.v3 as iio
import numpy as np

import neuralsim
from neuralsim.agents.teleop.session import SessionFrame
from neuralsim.data.episode import Episode, EpisodeStore
from neuralsim.spec import WorldSpec

LONGEST = 1000
"""Steps after which an episode is written and the next one begins, so that an hour of play does not pile up in memory."""


class VideoWriter:
    """An mp4 encoded in a thread of its own; it appears under its name when it is closed, whole."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps, self.frames = path, fps, 0
        self.error: Exception | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._work = path.with_name(f".writing-{path.name}")
        self._queue: queue.Queue[np.ndarray | None] = queue.Queue(maxsize=64)
        self._thread = threading.Thread(target=self._encode, name="neuralsim-video", daemon=True)
        self._thread.start()

    def add(self, image: np.ndarray) -> None:
        """One frame, uint8 ``(h, w, 3)`` with even h and w; the same size each time."""
        self.frames += 1
        self._queue.put(image)

    def close(self) -> None:
        """Encode what waits, finish the file and put it in place; raises what the encoder raised."""
        self._queue.put(None)
        self._thread.join()
        if self.error is not None:
            self._work.unlink(missing_ok=True)
            raise self.error
        os.replace(self._work, self.path)

    def _encode(self) -> None:
        image: np.ndarray | None = np.empty(0)
        try:
            with iio.imopen(self._work, "w", plugin="pyav") as file:
                file.init_video_stream("libx264", fps=self.fps, pixel_format="yuv420p")
                while (image := self._queue.get()) is not None:
                    file.write_frame(image)
        except Exception as error:
            self.error = error
            while image is not None:  # whoever adds frames must not wait for ever
                image = self._queue.get()


@dataclass(frozen=True)
class SavedRecording:
    """A finished recording: the video, its number of frames, and the folders of the episodes' shards (true, if any, and imagined in
    turn)."""

    video: Path
    frames: int
    episodes: tuple[Path, ...]


class Recorder:
    """Writes under ``folder``: ``*.mp4``, and the episode stores ``imagined`` and, with the true states' names ``states``, ``true``."""

    def __init__(self, folder: Path, spec: WorldSpec, seed: int = 0, states: Sequence[str] | None = None) -> None:
        self.folder, self.spec, self.seed = folder, spec, seed
        self.stores: dict[str, tuple[str, ...]] = {} if states is None else {"true": tuple(states)}
        self.stores["imagined"] = ()
        self.finished: list[SavedRecording] = []
        self._video: VideoWriter | None = None
        self._kept: list[SessionFrame] = []
        self._written: list[Path] = []

    @property
    def recording(self) -> bool:
        """Whether a recording is under way."""
        return self._video is not None

    @property
    def frames(self) -> int:
        """Video frames of the recording under way."""
        return self._video.frames if self._video else 0

    def start(self, moment: SessionFrame, image: np.ndarray) -> None:
        """Begin at ``moment``, shown as ``image``."""
        if self._video is not None:
            raise RuntimeError("Recorder.start: already recording; stop it first")
        for kind, names in self.stores.items():  # a folder of another world is found out now, not when all is played
            EpisodeStore.create(self.folder / kind, self.spec, names)
        stamp = time.strftime("play-%Y%m%d-%H%M%S")
        name, number = f"{stamp}.mp4", 1
        while (self.folder / name).exists():
            name, number = f"{stamp}-{number}.mp4", number + 1
        self._video = VideoWriter(self.folder / name, self.spec.rate_hz)
        self._kept, self._written = [], []
        self.add(moment, image)

    def add(self, moment: SessionFrame, image: np.ndarray) -> None:
        """The next Moment, whatever led to it."""
        if self._video is None:
            return
        self._video.add(image)
        last = self._kept[-1] if self._kept else None
        if last is not None and moment.take != last.take:
            self._write_episode()
        elif last is not None and moment.step <= last.step:
            self._kept = [m for m in self._kept if m.step < moment.step]
        self._kept.append(moment)
        if len(self._kept) > LONGEST:
            self._write_episode()
            self._kept = [moment]

    def stop(self) -> SavedRecording | None:
        """Finish the recording under way, if there is one: episodes first, then the video."""
        if self._video is None:
            return None
        video, self._video = self._video, None
        try:
            self._write_episode(video.path)
        finally:
            video.close()
        recording = SavedRecording(video.path, video.frames, tuple(self._written))
        self.finished.append(recording)
        return recording

    def _write_episode(self, video: Path | None = None) -> None:
        """Write what was kept as an episode of each kind; a start without a step is nothing."""
        kept, self._kept = self._kept, []
        if len(kept) < 2:
            return
        path = video or (self._video.path if self._video else None)
        steps = kept[1:]
        hands = [m.human for m in steps]
        truncated = np.zeros(len(steps), bool)
        truncated[-1] = True
        provenance = {
            "seed": self.seed * 1_000_003 + kept[0].start,
            "policy": "+".join(sorted({m.driver for m in steps})),
            "human": hands,
            "start": kept[0].start,
            "first_step": kept[0].step,
            "denoise_steps": [m.denoise_steps for m in steps],
            "video": path.name if path else "",
            "version": neuralsim.__version__,
        }
        actions = np.stack([m.action for m in steps if m.action is not None]).astype(self.spec.action_dtype)
        for kind, names in self.stores.items():
            true = kind == "true"
            sides = [m.true if true else m for m in steps]
            rewards = [np.nan_to_num(side.reward) for side in sides if side is not None]
            ends = [side.end > 0.5 for side in sides if side is not None]
            episode = Episode(
                frames=np.stack([m.truth if true else m.dream for m in kept]),
                actions=actions,
                rewards=np.array(rewards, np.float32),
                terminated=np.array(ends, bool),
                truncated=truncated,
                states=np.stack([m.state for m in kept]).astype(np.float32) if true else None,
                provenance={"kind": kind, **provenance},
            )
            store = EpisodeStore.create(self.folder / kind, self.spec, names)
            self._written.append(store.add([episode]))
