"""EpisodeRecorder: writes the episodes of a robot to a store from a thread of its own, so that no tick waits for a disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from neuralsim.data.episode import Episode
from neuralsim.data.store import EpisodeStore
from neuralsim.runtime.files import disk_errors
from neuralsim.spec import WorldSpec

MOST_BYTES = 512 << 20
"""Frames that are kept in memory while the disk is full."""
RETRY_SECONDS = 5.0


class EpisodeRecorder:
    """Store at ``folder`` in which episodes appear whole.

    A failed write is tried again every few seconds, with each new episode, and at the end; until then episodes are kept in
    memory. ``full`` is True once their frames exceed ``most_bytes``.
    """

    def __init__(self, folder: Path, spec: WorldSpec, names: Sequence[str] = (), most_bytes: int = MOST_BYTES) -> None:
        self.store = EpisodeStore.create(folder, spec, names)
        self.first = len(self.store)
        """Episodes that were in the store before."""
        self.kept = 0
        """Episodes handed over."""
        self.written = 0
        self.trouble = ""
        """Reason of the last failed write; empty after a success."""
        self._most_bytes, self._waiting, self._requests = most_bytes, list[Episode](), 0
        self._changed, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="neuralsim-recorder", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """True while more frames wait than memory is meant to hold."""
        with self._changed:
            return sum(e.frames.nbytes for e in self._waiting) > self._most_bytes

    def keep(self, episodes: Sequence[Episode]) -> None:
        """Hand over episodes; returns at once."""
        with self._changed:
            self._waiting += episodes
            self.kept += len(episodes)
            self._requests += 1
            self._changed.notify()

    def close(self, seconds: float = 60.0) -> None:
        """Write what waits, in ``seconds`` at most. Raises OSError for episodes that could not be written."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        with self._changed:
            lost = len(self._waiting)
        if lost:
            reason = self.trouble or f"the disk took longer than {seconds:g} s"
            raise OSError(f"{self.store.folder}: {lost} of {self.kept} episodes could not be written: {reason}")

    def _run(self) -> None:
        done = 0
        while True:
            with self._changed:
                timeout = RETRY_SECONDS if self._waiting else None
                if self._requests == done and not self._closing:
                    self._changed.wait(timeout)
                done, closing, batch = self._requests, self._closing, list(self._waiting)
            if batch:
                self._write(batch)
            with self._changed:
                if closing and (self._requests == done or self.trouble):
                    return

    def _write(self, batch: Sequence[Episode]) -> None:
        """Write episodes with actions and those without, a shard each; written ones wait no longer."""
        kinds = [[e for e in batch if e.has_actions == has_actions] for has_actions in (True, False)]
        troubles = [self._add(episodes) for episodes in kinds if episodes]
        self.trouble = next(filter(None, troubles), "")

    def _add(self, episodes: Sequence[Episode]) -> str:
        """Write one shard and return the reason of a failure; an episode that cannot be written leaves the others alone."""
        try:
            with disk_errors(self.store.folder, sum(e.frames.nbytes for e in episodes), go_on="make room"):
                self.store.add(episodes)
        except Exception as error:  # any error: this thread must live on, for the other episodes
            if not isinstance(error, OSError) and len(episodes) > 1:
                return next(filter(None, [self._add([episode]) for episode in episodes]), "")
            text = error.strerror if isinstance(error, OSError) else None
            return text or str(error) or type(error).__name__
        written = set(map(id, episodes))
        with self._changed:
            self._waiting = [e for e in self._waiting if id(e) not in written]
            self.written += len(episodes)
        return ""


def run_folder(root: Path = Path("runs/drive")) -> Path:
    """Return a new folder for a run that begins now."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder, number = root / stamp, 1
    while folder.exists():
        folder, number = root / f"{stamp}-{number}", number + 1
    return folder
