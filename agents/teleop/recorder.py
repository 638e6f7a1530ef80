"""Recorder: a session as a video of the panels and as episodes of both worlds.

The video shows all that the screen showed. The episodes hold the timeline that was kept: a rewind takes steps back out, a reset begins
the next episode. Imagined episodes go to the store ``imagined``, those of a real environment beside it, with states, to ``true``, so
that they are not mixed up in training; ``provenance["human"]`` marks the actions that the keys chose.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuralsim.agents.teleop.session import SessionFrame
from neuralsim.data.episode import Episode
from neuralsim.data.store import EpisodeStore
from neuralsim.data.video_writer import VideoWriter
from neuralsim.runtime.files import disk_errors, folder_lock, sweep_leftovers
from neuralsim.spec import WorldSpec
from neuralsim.version import __version__

LONGEST = 1000
"""Steps after which an episode is written and the next one begins, so that an hour of play does not pile up in memory."""
GO_ON = "make room and record again"


@dataclass(frozen=True)
class SavedRecording:
    """A finished recording."""

    video: Path
    frames: int
    """Frames of the video."""
    episodes: tuple[Path, ...]
    """Folders of the episodes' shards: in turn real, if any, and imagined."""


class Recorder:
    """Writes ``*.mp4`` and the episode stores ``imagined`` and, with names of the real ``states``, ``true`` under ``folder``.

    The folder is held for this process alone while a recording is under way.
    """

    def __init__(self, folder: Path, spec: WorldSpec, seed: int = 0, states: Sequence[str] | None = None) -> None:
        self.folder, self.spec, self.seed = folder, spec, seed
        self.stores: dict[str, tuple[str, ...]] = {} if states is None else {"true": tuple(states)}
        self.stores["imagined"] = ()
        self.finished: list[SavedRecording] = []
        self._video: VideoWriter | None = None
        self._lock = contextlib.ExitStack()
        self._kept: list[SessionFrame] = []
        self._written: list[Path] = []

    @property
    def recording(self) -> bool:
        """True while a recording is under way."""
        return self._video is not None

    @property
    def frames(self) -> int:
        """Video frames of the recording under way."""
        return self._video.frames if self._video else 0

    def start(self, frame: SessionFrame, image: np.ndarray) -> None:
        """Begin with ``frame``, drawn as ``image``; a ValueError where the folder holds another world's episodes."""
        if self._video is not None:
            raise RuntimeError("Recorder.start: already recording; stop it first")
        with contextlib.ExitStack() as opened:
            opened.enter_context(folder_lock(self.folder, "recording"))
            for kind, names in self.stores.items():  # another world's folder is found out now, not at the end
                EpisodeStore.create(self.folder / kind, self.spec, names)
                sweep_leftovers(self.folder / kind)
            stamp = time.strftime("play-%Y%m%d-%H%M%S")
            name, number = f"{stamp}.mp4", 1
            while (self.folder / name).exists():
                name, number = f"{stamp}-{number}.mp4", number + 1
            self._video = VideoWriter(
                self.folder / name, self.spec.rate_hz, "the episodes recorded with it are kept", GO_ON
            )
            self._lock = opened.pop_all()
        self._kept, self._written = [], []
        self.add(frame, image)

    def add(self, frame: SessionFrame, image: np.ndarray) -> None:
        """Add the next SessionFrame. An error of the disk ends the recording; what was written before is kept."""
        if self._video is None:
            return
        if self._video.error is not None:
            self.stop()  # raises it
            return
        self._video.add(image)
        last = self._kept[-1] if self._kept else None
        try:
            if last is not None and frame.episode != last.episode:
                self._write_episode()
            elif last is not None and frame.step <= last.step:
                self._kept = [m for m in self._kept if m.step < frame.step]
            self._kept.append(frame)
            if len(self._kept) > LONGEST:
                self._write_episode()
                self._kept = [frame]
        except OSError:
            with contextlib.suppress(OSError):  # the first error says it all
                self.stop()
            raise

    def stop(self) -> SavedRecording | None:
        """Finish the recording under way, if there is one: episodes first, then the video."""
        if self._video is None:
            return None
        video, self._video = self._video, None
        with self._lock:
            try:
                self._write_episode(video.path)
            finally:
                video.close()
        recording = SavedRecording(video.path, video.frames, tuple(self._written))
        self.finished.append(recording)
        return recording

    def _write_episode(self, video: Path | None = None) -> None:
        """Write the kept timeline as an episode of each kind; a start without a step is none."""
        kept, self._kept = self._kept, []
        if len(kept) < 2:
            return
        path = video or (self._video.path if self._video else None)
        steps = kept[1:]
        truncated = np.zeros(len(steps), bool)
        truncated[-1] = True
        provenance = {
            "seed": self.seed * 1_000_003 + kept[0].start,
            "policy": "+".join(sorted({step.driver for step in steps})),
            "human": [step.human for step in steps],
            "start": kept[0].start,
            "first_step": kept[0].step,
            "denoise_steps": [step.denoise_steps for step in steps],
            "video": path.name if path else "",
            "version": __version__,
        }
        actions = np.stack([step.action for step in steps if step.action is not None]).astype(self.spec.action_dtype)
        for kind, names in self.stores.items():
            real = kind == "true"
            sides = [side for side in (step.real if real else step for step in steps) if side is not None]
            rewards = [np.nan_to_num(side.reward) for side in sides]
            ends = [side.end > 0.5 for side in sides]
            episode = Episode(
                frames=np.stack([frame.real_image if real else frame.imagined for frame in kept]),
                actions=actions,
                rewards=np.array(rewards, np.float32),
                terminated=np.array(ends, bool),
                truncated=truncated,
                states=np.stack([frame.state for frame in kept]).astype(np.float32) if real else None,
                provenance={"kind": kind, **provenance},
            )
            store = EpisodeStore.create(self.folder / kind, self.spec, names)
            with disk_errors(
                store.folder, episode.frames.nbytes, f"{len(self._written)} episodes before it are kept", GO_ON
            ):
                self._written.append(store.add([episode]))
