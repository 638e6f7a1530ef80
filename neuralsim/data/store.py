"""Episodes on disk, read back through memory maps.

A store is a folder: ``store.json`` (format version, world spec, names of the state) and numbered shards, each a folder of
plain ``.npy`` arrays with the episodes laid end to end plus ``episodes.json`` (length and provenance of each). A shard of
video without actions has no ``actions.npy``. Shards appear by rename, so a killed writer leaves nothing half-written, and
nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from neuralsim.data.episode import ActionsAbsent, Episode, is_held_out, knows_actions
from neuralsim.runtime.files import write_atomically
from neuralsim.spec import WorldSpec

FORMAT_VERSION = 1
DTYPES: dict[str, Any] = {
    "frames": np.uint8,
    "rewards": np.float32,
    "terminated": np.bool_,
    "truncated": np.bool_,
    "states": np.float32,
}


@dataclass(frozen=True)
class StoreInfo:
    """What a store says of itself in ``store.json``.

    ``source`` is empty for collected episodes; imported ones say there where they come from, which dimensions were constant,
    and what was left out. Stores that were imported before a spec knew of an offset have their ``action_offset`` there.
    """

    spec: WorldSpec
    state_names: tuple[str, ...]
    version: int = FORMAT_VERSION
    source: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        offset = self.source.get("action_offset")
        if offset and not any(self.spec.action_offset):
            object.__setattr__(self, "spec", replace(self.spec, action_offset=tuple(offset)))


class EpisodeStore:
    """A folder of episodes; see the module's text for the layout.

    Open an existing one with ``EpisodeStore(folder)`` (its first ``limit`` episodes where that is given), make one with
    ``EpisodeStore.create(folder, spec, names)``.
    """

    ARRAYS = ("frames", "actions", "rewards", "terminated", "truncated")

    def __init__(self, folder: str | os.PathLike[str], limit: int | None = None) -> None:
        self.folder, self._limit = Path(folder), limit
        path = self.folder / "store.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.folder}: no episode store here (store.json is missing); "
                f"make one with 'neuralsim collect pusht --out {self.folder}'"
            )
        raw = json.loads(path.read_text())
        if raw.get("version") != FORMAT_VERSION:
            raise ValueError(
                f"{path}: store version {raw.get('version')!r}, this NeuralSim reads version {FORMAT_VERSION}"
            )
        self.info = StoreInfo(WorldSpec(**raw["spec"]), tuple(raw["state_names"]), source=raw.get("source", {}))
        self.refresh()

    @property
    def spec(self) -> WorldSpec:
        """The world these episodes come from."""
        return self.info.spec

    @classmethod
    def create(cls, folder: str | os.PathLike[str], spec: WorldSpec, state_names: Sequence[str] = ()) -> EpisodeStore:
        """Open the store at ``folder``, made first where there is none; an existing one must have the same spec."""
        root = Path(folder)
        if not (root / "store.json").is_file():
            root.mkdir(parents=True, exist_ok=True)
            body = {"version": FORMAT_VERSION, "spec": asdict(spec), "state_names": list(state_names)}
            write_atomically(root / "store.json", json.dumps(body, indent=1))
        store = cls(root)
        if store.spec != spec:
            raise ValueError(f"{root}: holds episodes of {store.spec}, asked for {spec}; choose another folder")
        return store

    def set_source(self, source: dict[str, Any]) -> None:
        """Put on record where the episodes come from, as plain JSON; see ``StoreInfo.source``."""
        path = self.folder / "store.json"
        body = json.loads(path.read_text()) | {"spec": asdict(self.spec), "source": source}
        write_atomically(path, json.dumps(body, indent=1))
        self.info = replace(self.info, source=source)

    def refresh(self) -> None:
        """Read the list of shards again (another process may have added some)."""
        self.shards: list[dict[str, np.ndarray]] = []
        self._entries: list[tuple[int, int, int, dict[str, Any]]] = []  # shard, first frame, first action, provenance
        lengths: list[int] = []
        for folder in sorted(self.folder.glob("shard-*")):
            room = None if self._limit is None else self._limit - len(lengths)
            if room == 0:
                break
            arrays, entries = _open_shard(folder, self.spec)
            frame = action = 0
            for entry in entries[:room]:
                self._entries.append((len(self.shards), frame, action, entry["provenance"]))
                lengths.append(entry["length"])
                frame += entry["length"] + 1
                action += entry["length"]
            self.shards.append(arrays)
        self.lengths = np.array(lengths, dtype=np.int64)

    def shard_numbers(self) -> list[int]:
        """Numbers of the shards on disk, in order."""
        return sorted(int(path.name.split("-")[1]) for path in self.folder.glob("shard-*"))

    @property
    def frames(self) -> int:
        """Number of frames of all episodes."""
        return int((self.lengths + 1).sum())

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Episode:
        shard, frame, action, provenance = self._entries[index]
        t = int(self.lengths[index])
        arrays = self.shards[shard]
        per_step: dict[str, Any] = {
            name: np.asarray(arrays[name][action : action + t]) if name in arrays else None
            for name in self.ARRAYS
            if name != "frames"
        }
        return Episode(
            frames=np.asarray(arrays["frames"][frame : frame + t + 1]),
            states=np.asarray(arrays["states"][frame : frame + t + 1]) if "states" in arrays else None,
            provenance=provenance,
            **per_step,
        )

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))

    def provenance(self, index: int) -> dict[str, Any]:
        """Where episode ``index`` comes from, without reading its arrays."""
        return self._entries[index][3]

    def offsets(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each episode begins in the frames and in the actions of all shards laid end to end, ``(n,)`` each."""
        sizes = np.array([(len(s["frames"]), len(s["rewards"])) for s in self.shards]).reshape(-1, 2)
        before = np.concatenate([np.zeros((1, 2), np.int64), sizes.cumsum(0)])
        shard, frame, action = (np.array([e[k] for e in self._entries], np.int64) for k in range(3))
        return before[shard, 0] + frame, before[shard, 1] + action

    def first_frames(self, shard: int) -> np.ndarray:
        """Where each episode of ``self.shards[shard]`` begins in its array of frames, in order."""
        return np.array([frame for there, frame, _, _ in self._entries if there == shard], np.int64)

    def split(self, held_out: bool) -> np.ndarray:
        """Indices of the held-out episodes, or of the training ones."""
        return np.array([i for i, e in enumerate(self._entries) if is_held_out(e[3]) == held_out], dtype=np.int64)

    def acted(self, episodes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Which of ``episodes`` (indices ``(n,)``) tell their actions, bool ``(n,)``."""
        return np.array([knows_actions(self.provenance(int(i))) for i in episodes], bool)

    def add(self, episodes: Sequence[Episode], shard: int | None = None) -> Path:
        """Write ``episodes`` as one new shard; it appears whole or not at all. Returns its folder."""
        target = self.folder / f"shard-{max(self.shard_numbers(), default=-1) + 1 if shard is None else shard:05d}"
        if target.exists():
            raise FileExistsError(f"{target}: this shard exists already")
        return self._write(episodes, target)

    def replace(self, shard: int, episodes: Sequence[Episode]) -> Path:
        """Write ``episodes`` in place of shard ``shard``; killed between two renames, it leaves none. Returns its folder."""
        return self._write(episodes, self.folder / f"shard-{shard:05d}")

    def _write(self, episodes: Sequence[Episode], target: Path) -> Path:
        if not episodes:
            raise ValueError("EpisodeStore: got no episodes to write")
        for i, episode in enumerate(episodes):
            self.spec.check_frames(episode.frames, f"episode {i}: frames")
            if episode.has_actions:
                self.spec.check_actions(episode.actions, f"episode {i}: actions")
        acted = {episode.has_actions for episode in episodes}
        if len(acted) > 1:
            raise ValueError("EpisodeStore: got episodes with and without actions for one shard; write them apart")
        work = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.folder))
        try:
            shard = work / "new"
            shard.mkdir()
            names = [name for name in self.ARRAYS if name != "actions" or acted == {True}]
            names += ["states"] if all(e.states is not None for e in episodes) else []
            for name in names:
                dtype = self.spec.action_dtype if name == "actions" else DTYPES[name]
                whole: np.ndarray = np.concatenate([getattr(e, name) for e in episodes]).astype(dtype, copy=False)
                np.save(shard / f"{name}.npy", whole, allow_pickle=False)
            entries = [{"length": len(e), "provenance": e.provenance} for e in episodes]
            (shard / "episodes.json").write_text(json.dumps(entries))
            if target.exists():
                os.rename(target, work / "old")
            os.rename(shard, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        self.refresh()
        return target


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
        """See EpisodeStore."""
        self.shards, self._entries = [], []
        for store in self._stores:
            store.refresh()
            self._entries += [(len(self.shards) + shard, f, a, origin) for shard, f, a, origin in store._entries]
            self.shards += store.shards
        self.lengths = np.concatenate([store.lengths for store in self._stores])

    def _write(self, episodes: Sequence[Episode], target: Path) -> Path:
        raise TypeError(f"{[str(s.folder) for s in self._stores]} are read as one; write to one of them")


class Shard(dict[str, np.ndarray]):
    """The arrays of one shard by name; to ask video for its actions is an error that says so."""

    def __missing__(self, name: str) -> np.ndarray:
        raise ActionsAbsent if name == "actions" else KeyError(name)


def _open_shard(folder: Path, spec: WorldSpec) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """The arrays (memory-mapped) and the entries of one shard; a ValueError names a damaged one and its damage."""
    try:
        files = sorted(folder.glob("*.npy"))
        arrays = Shard((path.stem, np.load(path, mmap_mode="r", allow_pickle=False)) for path in files)
        entries = json.loads((folder / "episodes.json").read_text())
        acted = {knows_actions(entry["provenance"]) for entry in entries} or {True}
        missing = sorted(set(EpisodeStore.ARRAYS) - set(arrays) - ({"actions"} if acted == {False} else set()))
        if missing:
            raise ValueError(f"it lacks {', '.join(f'{name}.npy' for name in missing)}")
        if "actions" in arrays and acted != {True}:
            raise ValueError("it has actions.npy for episodes that episodes.json says have no actions")
        row = (spec.action_dtype, (spec.action_size,))
        if "actions" in arrays and (found := (arrays["actions"].dtype, arrays["actions"].shape[1:])) != row:
            raise ValueError(f"its actions are {found[0]} {found[1]}, the world's {row[0]} {row[1]}")
        actions = sum(entry["length"] for entry in entries)
        wanted = {name: actions + (len(entries) if name in ("frames", "states") else 0) for name in arrays}
        wrong = [f"{k}.npy has {len(v)} rows, not {wanted[k]}" for k, v in arrays.items() if len(v) != wanted[k]]
        if wrong:
            raise ValueError(f"by episodes.json {'; '.join(wrong)}")
    except (ValueError, KeyError, TypeError, OSError, EOFError) as error:
        raise ValueError(f"{folder}: damaged shard ({error}); delete this folder and collect it again") from error
    return arrays, entries


def find_store(what: str) -> Path:
    """The folder of the store that is called ``what``, or lies there. Raises FileNotFoundError where there is none."""
    for folder in (Path(what).expanduser(), Path("data") / what):
        if (folder / "store.json").is_file():
            return folder
    there = sorted(p.parent.name for p in Path("data").glob("*/store.json"))
    raise FileNotFoundError(
        f"{what}: no episode store here (store.json is missing), and none of that name in data/; there: "
        f"{', '.join(there) or 'none'}; 'neuralsim import' and 'neuralsim collect' make one"
    )
