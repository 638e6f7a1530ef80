"""Episodes on disk, read back through memory maps.

A store is a folder: ``store.json`` (format version, world spec, names of the state) and numbered shards (see
``neuralsim.data.shards``). Shards appear by rename, so a killed writer leaves nothing half-written, and nothing is ever
unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from neuralsim.data.episode import Episode, is_held_out, knows_actions
from neuralsim.data.shard_writer import ShardWriter
from neuralsim.data.shards import (
    ARRAYS,
    Shard,
    check_episodes,
    next_folder,
    pieces_folder,
    read_shard,
    readable_folders,
    replace_shard,
    shard_folder,
    shard_numbers,
    slice_episode,
    write_shard,
)
from neuralsim.runtime.files import write_atomically
from neuralsim.runtime.json_files import check_types, read_object, type_hints
from neuralsim.spec import WorldSpec, plain_name

FORMAT_VERSION = 1
INFO = "store.json"
LARGEST_INFO = 64_000_000
"""Bytes of ``store.json``; the list of recordings that an import skipped may be long."""


@dataclass(frozen=True)
class StoreInfo:
    """The content of ``store.json``.

    ``source`` is empty for collected episodes; imported ones record there where they come from, which dimensions were
    constant, and which recordings were skipped. Stores that were imported before a spec had an offset have their
    ``action_offset`` there.
    """

    spec: WorldSpec
    state_names: tuple[str, ...]
    version: int = FORMAT_VERSION
    source: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        offset = self.source.get("action_offset")
        if offset and not any(self.spec.action_offset):
            object.__setattr__(self, "spec", replace(self.spec, action_offset=tuple(offset)))
        names = self.state_names
        if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            raise ValueError(f"state_names: expected different names, got {list(names)}")

    @classmethod
    def read(cls, path: Path) -> StoreInfo:
        """Read ``store.json``; a ValueError names the file, the field and its fault."""
        raw = read_object(path, LARGEST_INFO)
        if raw.get("version") != FORMAT_VERSION:
            raise ValueError(
                f"{path}: store version {raw.get('version')!r}, this NeuralSim reads version {FORMAT_VERSION}"
            )
        check_types(f"{path}: ", raw, {"spec": dict, "state_names": list[str], "source": dict})
        spec = raw.get("spec", {})
        known = [f.name for f in fields(WorldSpec)]
        if strange := sorted(spec.keys() - set(known)):
            raise ValueError(f"{path}: spec.{strange[0]}: unknown; a spec has {', '.join(known)}")
        check_types(f"{path}: spec.", spec, type_hints(WorldSpec))
        try:
            # Earlier versions wrote names with a slash.
            return cls(
                WorldSpec(**{**spec, "name": plain_name(spec["name"])}),
                tuple(raw["state_names"]),
                source=raw.get("source", {}),
            )
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}: {reason}") from error


class EpisodeStore:
    """A folder of episodes.

    ``EpisodeStore(folder)`` opens an existing one (its first ``limit`` episodes where that is given);
    ``EpisodeStore.create(folder, spec, names)`` makes one. ``entries`` holds, for each episode, the index of its shard in
    ``shards``, its first row in the frames and in the actions there, and its provenance; ``lengths`` its steps.
    """

    ARRAYS = ARRAYS

    def __init__(self, folder: str | os.PathLike[str], limit: int | None = None) -> None:
        self.folder, self._limit = Path(folder), limit
        path = self.folder / INFO
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.folder}: no episode store here ({INFO} is missing); "
                f"make one with 'neuralsim collect pusht --out {self.folder}'"
            )
        self.info = StoreInfo.read(path)
        self.refresh()

    @property
    def spec(self) -> WorldSpec:
        """The world these episodes come from."""
        return self.info.spec

    @classmethod
    def create(cls, folder: str | os.PathLike[str], spec: WorldSpec, state_names: Sequence[str] = ()) -> EpisodeStore:
        """Open the store at ``folder``, made first where there is none; an existing one must have the same spec.

        The store's world has a plain name, whatever ``spec`` calls it (see ``neuralsim.spec.plain_name``).
        """
        root = Path(folder)
        spec = replace(spec, name=plain_name(spec.name))
        if not (root / INFO).is_file():
            StoreInfo(spec, tuple(state_names))  # raises for what could not be read back
            root.mkdir(parents=True, exist_ok=True)
            body = {"version": FORMAT_VERSION, "spec": json.loads(spec.to_json()), "state_names": list(state_names)}
            write_atomically(root / INFO, json.dumps(body, indent=1))
        store = cls(root)
        if store.spec != spec:
            raise ValueError(f"{root}: holds episodes of {store.spec}, asked for {spec}; choose another folder")
        return store

    def set_source(self, source: dict[str, Any]) -> None:
        """Record where the episodes come from, as plain JSON; see ``StoreInfo.source``."""
        path = self.folder / INFO
        info = replace(self.info, source=source)
        body = json.loads(path.read_text()) | {"spec": json.loads(self.spec.to_json()), "source": source}
        write_atomically(path, json.dumps(body, indent=1))
        self.info = info

    def refresh(self) -> None:
        """Read the list of shards again (another process may have added some)."""
        while True:
            numbers = shard_numbers(self.folder)
            folders = [folder for number in numbers for folder in readable_folders(self.folder, number)]
            try:
                return self._open(folders)
            except ValueError:  # a writer may have replaced a shard meanwhile
                now = [folder for n in shard_numbers(self.folder) for folder in readable_folders(self.folder, n)]
                if now == folders:
                    raise

    def _open(self, folders: Sequence[Path]) -> None:
        shards: list[Shard] = []
        found: list[tuple[int, int, int, dict[str, Any]]] = []
        lengths: list[int] = []
        for folder in folders:
            room = None if self._limit is None else self._limit - len(lengths)
            if room == 0:
                break
            try:
                arrays, entries = read_shard(folder, self.spec, self.info.state_names)
            except ValueError:
                if folder.name.isdigit():  # a piece that a power cut left; its episodes are made again
                    continue
                raise
            frame = action = 0
            for entry in entries[:room]:
                found.append((len(shards), frame, action, entry["provenance"]))
                lengths.append(entry["length"])
                frame += entry["length"] + 1
                action += entry["length"]
            shards.append(arrays)
        self.shards, self.entries, self.lengths = shards, found, np.array(lengths, dtype=np.int64)

    def shard_numbers(self) -> list[int]:
        """Numbers of the shards on disk, unfinished ones included, in order."""
        return shard_numbers(self.folder)

    @property
    def frames(self) -> int:
        """Number of frames of all episodes."""
        return int((self.lengths + 1).sum())

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Episode:
        shard, frame, action, provenance = self.entries[index]
        return slice_episode(self.shards[shard], frame, action, int(self.lengths[index]), provenance)

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))

    def provenance(self, index: int) -> dict[str, Any]:
        """The origin of episode ``index``, without reading its arrays."""
        return self.entries[index][3]

    def offsets(self) -> tuple[np.ndarray, np.ndarray]:
        """First row of each episode in the frames and in the actions of all shards laid end to end, ``(n,)`` each."""
        sizes = np.array([(len(s["frames"]), len(s["rewards"])) for s in self.shards]).reshape(-1, 2)
        before = np.concatenate([np.zeros((1, 2), np.int64), sizes.cumsum(0)])
        shard, frame, action = (np.array([e[k] for e in self.entries], np.int64) for k in range(3))
        return before[shard, 0] + frame, before[shard, 1] + action

    def first_frames(self, shard: int) -> np.ndarray:
        """First row of each episode of ``self.shards[shard]`` in its array of frames, in order."""
        return np.array([frame for there, frame, _, _ in self.entries if there == shard], np.int64)

    def split(self, held_out: bool) -> np.ndarray:
        """Indices of the held-out episodes, or of the training ones."""
        return np.array([i for i, e in enumerate(self.entries) if is_held_out(e[3]) == held_out], dtype=np.int64)

    def acted(self, episodes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Mask of the ``episodes`` (indices ``(n,)``) whose actions are known, bool ``(n,)``."""
        return np.array([knows_actions(self.provenance(int(i))) for i in episodes], bool)

    def add(self, episodes: Sequence[Episode], shard: int | None = None) -> Path:
        """Write ``episodes`` as one new shard; it appears whole or not at all. Returns its folder.

        Raises ValueError for episodes that could not be read back, DiskFullError where the disk is full.
        """
        numbers = self.shard_numbers()
        number = max(numbers, default=-1) + 1 if shard is None else shard
        if number in numbers:
            raise FileExistsError(f"{shard_folder(self.folder, number)}: this shard exists already")
        self._check(episodes)
        write_shard(self.folder, target := shard_folder(self.folder, number), episodes, self.spec)
        self.refresh()
        return target

    def replace(self, shard: int, episodes: Sequence[Episode]) -> Path:
        """Write ``episodes`` in place of shard ``shard``; a kill leaves the old ones or the new. Returns its folder."""
        self._check(episodes)
        target = replace_shard(self.folder, shard, episodes, self.spec)
        self.refresh()
        return target

    def open_shard(self, shard: int, order: Callable[[dict[str, Any]], Any] | None = None) -> ShardWriter:
        """Write shard ``shard`` episode by episode, each of which survives a kill; see ShardWriter."""
        return ShardWriter(self.folder, shard, self.spec, self.info.state_names, order, self.refresh)

    def finish_shards(self, order: Callable[[dict[str, Any]], Any] | None = None) -> None:
        """Finish the shards that killed writers left open. Call it while no other process writes here."""
        for number in self.shard_numbers():
            if pieces_folder(self.folder, number).is_dir() or next_folder(self.folder, number).is_dir():
                self.open_shard(number, order).close()
        self.refresh()

    def _check(self, episodes: Sequence[Episode]) -> None:
        check_episodes(episodes, self.spec, self.info.state_names)


class JoinedStore(EpisodeStore):
    """Several stores of one world, read as one; not for writing. A ValueError where they are not of one world."""

    def __init__(self, stores: Sequence[EpisodeStore]) -> None:
        first = stores[0]
        for store in stores[1:]:
            if store.info != first.info:
                raise ValueError(
                    f"{store.folder} and {first.folder} are of different worlds ({store.info} and {first.info}): "
                    "only stores of one world can be learned from together"
                )
        self.folder, self.info, self._stores = first.folder, first.info, tuple(stores)
        self.refresh()

    def refresh(self) -> None:
        self.shards, self.entries = [], []
        for store in self._stores:
            store.refresh()
            self.entries += [(len(self.shards) + shard, f, a, origin) for shard, f, a, origin in store.entries]
            self.shards += store.shards
        self.lengths = np.concatenate([store.lengths for store in self._stores])

    def _check(self, episodes: Sequence[Episode]) -> None:
        raise TypeError(f"{[str(s.folder) for s in self._stores]} are read as one; write to one of them")


def find_store(name: str) -> Path:
    """Find the folder of the store ``name``: that folder, or the one of that name in data/. Else FileNotFoundError."""
    for folder in (Path(name).expanduser(), Path("data") / name):
        if (folder / INFO).is_file():
            return folder
    there = sorted(p.parent.name for p in Path("data").glob(f"*/{INFO}"))
    raise FileNotFoundError(
        f"{name}: no episode store here ({INFO} is missing), and none of that name in data/; there: "
        f"{', '.join(there) or 'none'}; 'neuralsim import' and 'neuralsim collect' make one"
    )
