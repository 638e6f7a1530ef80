"""A shard that grows by one episode at a time, so that a kill or an interrupt loses none that is finished."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from neuralsim.data.episode import Episode
from neuralsim.data.shards import (
    check_episodes,
    finish_replacement,
    is_intact,
    pieces,
    pieces_folder,
    read_shard,
    replace_shard,
    shard_folder,
    slice_episode,
    write_shard,
)
from neuralsim.spec import WorldSpec

Order = Callable[[dict[str, Any]], Any]
"""A sort key of provenance."""


class ShardWriter:
    """Writes shard ``number`` of a store, a new or an existing one; a context manager.

    Each added episode is a piece on the disk at once and can be read through the store; closing the writer, also after an
    error, joins the pieces to one shard, in the order of ``order`` (by default as they were added). After a kill, a new
    writer of the same number finds them in ``provenance`` and goes on. One process writes a shard at a time.
    """

    def __init__(
        self,
        root: Path,
        number: int,
        spec: WorldSpec,
        state_names: Sequence[str] = (),
        order: Order | None = None,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """``root`` is the folder of the store, ``after`` is called when a shard was written."""
        self.root, self.number, self.spec, self.state_names = root, number, spec, state_names
        self._order, self._after = order, after
        finish_replacement(root, number)
        self._remove_torn_pieces()
        self.provenance = [provenance for folder in self._folders() for provenance in self._entries(folder)]
        """Provenance of the episodes that the shard has."""
        found = pieces(root, number)
        self._next = int(found[-1].name) + 1 if found else 0

    def add(self, episode: Episode) -> None:
        """Write one episode. Raises ValueError for one that could not be read back, DiskFullError on a full disk."""
        check_episodes([episode], self.spec, self.state_names)
        folder = pieces_folder(self.root, self.number)
        folder.mkdir(exist_ok=True)
        write_shard(folder, folder / f"{self._next:06d}", [episode], self.spec, checked=True)
        self._next += 1
        self.provenance.append(episode.provenance)

    def close(self) -> Path | None:
        """Join the pieces to the shard; returns its folder, None where there is no episode.

        Raises DiskFullError where there is no room to join them; they stay readable then.
        """
        root = self.root
        if not pieces(root, self.number):
            shutil.rmtree(pieces_folder(root, self.number), ignore_errors=True)
            return shard_folder(root, self.number) if self.provenance else None
        episodes = [episode for folder in self._folders() for episode in self._episodes(folder)]
        if self._order is not None:
            order = self._order
            episodes.sort(key=lambda episode: order(episode.provenance))
        check_episodes(episodes, self.spec, self.state_names)
        target = replace_shard(root, self.number, episodes, self.spec)
        self._after()
        return target

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _folders(self) -> list[Path]:
        whole = shard_folder(self.root, self.number)
        return [*([whole] if whole.is_dir() else []), *pieces(self.root, self.number)]

    def _entries(self, folder: Path) -> list[dict[str, Any]]:
        _, entries = read_shard(folder, self.spec, self.state_names)
        return [entry["provenance"] for entry in entries]

    def _episodes(self, folder: Path) -> list[Episode]:
        arrays, entries = read_shard(folder, self.spec, self.state_names)
        episodes, frame, action = [], 0, 0
        for entry in entries:
            length = entry["length"]
            episodes.append(slice_episode(arrays, frame, action, length, entry["provenance"]))
            frame, action = frame + length + 1, action + length
        return episodes

    def _remove_torn_pieces(self) -> None:
        """Delete pieces that a power cut damaged: they are not flushed before their shard is."""
        for piece in pieces(self.root, self.number):
            try:
                arrays, _ = read_shard(piece, self.spec, self.state_names)
                intact = is_intact(piece, arrays)
            except ValueError:
                intact = False
            if not intact:
                shutil.rmtree(piece)
