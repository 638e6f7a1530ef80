"""EpisodeRecorder: what was driven, written to an episode store by a thread of its own, so that no tick waits for a disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from neuralsim.data.episode import Episode, EpisodeStore
from neuralsim.spec import WorldSpec

BOUND = 512 << 20
"""Bytes of frames that are held in memory while the disk takes none."""
RETRY_SECONDS = 5.0


class EpisodeRecorder:
    """Episodes appear whole in the store at ``folder``. A disk that takes none is asked again: every few seconds, with each new
    episode, and at the end; until then they are kept in memory. ``full`` says that more than ``bound`` bytes wait."""

    def __init__(self, folder: Path, spec: WorldSpec, names: Sequence[str] = (), bound: int = BOUND) -> None:
        self.store = EpisodeStore.create(folder, spec, names)
        self.first = len(self.store)
        """Episodes that were in the store before."""
        self.kept = 0
        """Episodes handed over."""
        self.written = 0
        self.trouble = ""
        """What the disk said, while it takes none."""
        self._bound, self._waiting, self._asked = bound, list[Episode](), 0
        self._wake, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="neuralsim-black-box", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether more waits than may."""
        with self._wake:
            return sum(e.frames.nbytes for e in self._waiting) > self._bound

    def keep(self, episodes: Sequence[Episode]) -> None:
        """Hand over episodes; returns at once."""
        with self._wake:
            self._waiting += episodes
            self.kept += len(episodes)
            self._asked += 1
            self._wake.notify()

    def close(self, seconds: float = 60.0) -> None:
        """Write what waits, in ``seconds`` at most. An OSError says what could not be written."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(seconds)
        with self._wake:
            lost = len(self._waiting)
        if lost:
            why = self.trouble or f"the disk took longer than {seconds:g} s"
            raise OSError(f"{self.store.folder}: {lost} of {self.kept} episodes could not be written: {why}")

    def _run(self) -> None:
        done = 0
        while True:
            with self._wake:
                patience = RETRY_SECONDS if self._waiting else None
                if self._asked == done and not self._closing:
                    self._wake.wait(patience)
                done, closing, batch = self._asked, self._closing, list(self._waiting)
            if batch:
                self._write(batch)
            with self._wake:
                if closing and (self._asked == done or self.trouble):
                    return

    def _write(self, batch: Sequence[Episode]) -> None:
        """Those with actions and those without, a shard each; what was written waits no longer."""
        for kind in (True, False):
            episodes = [e for e in batch if e.has_actions == kind]
            if not episodes:
                continue
            try:
                self.store.add(episodes)
            except OSError as error:
                self.trouble = error.strerror or str(error)
                continue
            except ValueError as error:  # no episode of this world: said at the end, and not tried again before
                self.trouble = str(error)
                continue
            written = set(map(id, episodes))
            with self._wake:
                self._waiting = [e for e in self._waiting if id(e) not in written]
                self.written += len(episodes)
            self.trouble = ""


def run_folder(root: Path = Path("runs/drive")) -> Path:
    """A folder for a run that begins now; none that is there already."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder, number = root / stamp, 1
    while folder.exists():
        folder, number = root / f"{stamp}-{number}", number + 1
    return folder
