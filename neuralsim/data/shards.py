"""The folders of a store that hold its episodes: how they are written, replaced and read.

A shard ``shard-00007`` holds plain ``.npy`` arrays with the episodes laid end to end, and ``episodes.json`` (length and
provenance of each). Video without actions has no ``actions.npy``. Two hidden folders exist only after a kill: ``.open-00007``
holds pieces of an unfinished shard, each laid out like a shard, and ``.next-00007`` is a whole shard that supersedes
``shard-00007`` and the pieces, and waits to be renamed.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuralsim.data.episode import ActionsAbsent, Episode, knows_actions
from neuralsim.runtime.files import disk_errors, move_into_place, temporary_folder
from neuralsim.runtime.json_files import read_json
from neuralsim.spec import WorldSpec

ARRAYS = ("frames", "actions", "rewards", "terminated", "truncated")
"""Arrays of a shard; ``states`` may come with them."""
DTYPES: dict[str, Any] = {
    "frames": np.uint8,
    "rewards": np.float32,
    "terminated": np.bool_,
    "truncated": np.bool_,
    "states": np.float32,
}
EPISODES, CHECKSUMS = "episodes.json", "checksums.json"
LARGEST_EPISODES = 256_000_000
"""Bytes of ``episodes.json``: a hundred episodes with long provenance take a thousandth."""
_NUMBERED = re.compile(r"(?:shard-|\.next-|\.open-)(\d{1,9})")


class Shard(dict[str, np.ndarray]):
    """Arrays of one shard by name; asking video for its actions raises ActionsAbsent."""

    def __missing__(self, name: str) -> np.ndarray:
        raise ActionsAbsent if name == "actions" else KeyError(name)


def shard_folder(root: Path, number: int) -> Path:
    """The folder of shard ``number``."""
    return root / f"shard-{number:05d}"


def pieces_folder(root: Path, number: int) -> Path:
    """The folder of pieces of the unfinished shard ``number``."""
    return root / f".open-{number:05d}"


def next_folder(root: Path, number: int) -> Path:
    """The folder that waits to become shard ``number``."""
    return root / f".next-{number:05d}"


def shard_numbers(root: Path) -> list[int]:
    """Numbers of all shards of which there is anything, in order."""
    found = (_NUMBERED.fullmatch(name) for name in os.listdir(root))
    return sorted({int(match[1]) for match in found if match})


def pieces(root: Path, number: int) -> list[Path]:
    """Pieces of an unfinished shard, in the order in which they were written."""
    folder = pieces_folder(root, number)
    return sorted(p for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def readable_folders(root: Path, number: int) -> list[Path]:
    """The folders that together hold the episodes of shard ``number``."""
    if (waiting := next_folder(root, number)).is_dir():
        return [waiting]
    whole = shard_folder(root, number)
    return [*([whole] if whole.is_dir() else []), *pieces(root, number)]


def check_episodes(episodes: Sequence[Episode], spec: WorldSpec, state_names: Sequence[str] = ()) -> None:
    """Raise a ValueError for an episode that could not be read back, or not together with the others."""
    if not episodes:
        raise ValueError("EpisodeStore: got no episodes to write")
    for i, episode in enumerate(episodes):
        spec.check_frames(episode.frames, f"episode {i}: frames")
        if episode.has_actions:
            spec.check_actions(episode.actions, f"episode {i}: actions")
        check_provenance(episode.provenance, f"episode {i}: ")
        if episode.states is not None:
            shape = np.shape(episode.states)
            if len(shape) != 2 or (state_names and shape[1] != len(state_names)):
                raise ValueError(
                    f"episode {i}: states: expected shape (T+1, {len(state_names) or 's'}), got {shape}; the store names "
                    f"the states {', '.join(state_names) or 'not at all'}"
                )
    if len({episode.has_actions for episode in episodes}) > 1:
        raise ValueError("EpisodeStore: got episodes with and without actions for one shard; write them apart")


def check_provenance(provenance: Any, where: str) -> None:
    """Raise a ValueError, beginning with ``where``, for provenance that is no dictionary or has no whole number as seed."""
    seed = provenance.get("seed", 0) if isinstance(provenance, dict) else None
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(  # noqa: TRY004 (a value that a file holds, too)
            f"{where}provenance: expected a dictionary whose 'seed' is a whole number, got {provenance!r:.120}"
        )


def write_shard(root: Path, target: Path, episodes: Sequence[Episode], spec: WorldSpec, checked: bool = False) -> None:
    """Write ``episodes`` as the new folder ``target``, whole or not at all; with ``checked``, checksums are written too.

    Raises DiskFullError where the disk of ``root`` is full, and leaves nothing then.
    """
    acted = episodes[0].has_actions
    names = [name for name in ARRAYS if name != "actions" or acted]
    names += ["states"] if all(e.states is not None for e in episodes) else []
    size = sum(getattr(e, name).nbytes for e in episodes for name in names)
    named = target.with_name(target.name.replace(".next-", "shard-"))
    with temporary_folder(root) as work, disk_errors(named, size, "the episodes written before are kept"):
        new = work / "new"
        new.mkdir()
        sums = {}
        for name in names:
            dtype = spec.action_dtype if name == "actions" else DTYPES[name]
            whole: np.ndarray = np.concatenate([getattr(e, name) for e in episodes]).astype(dtype, copy=False)
            np.save(new / f"{name}.npy", whole, allow_pickle=False)
            if checked:
                sums[name] = zlib.crc32(np.ascontiguousarray(whole).data)
        entries = [{"length": len(e), "provenance": e.provenance} for e in episodes]
        (new / EPISODES).write_text(json.dumps(entries))
        if checked:
            (new / CHECKSUMS).write_text(json.dumps(sums))
            os.rename(new, target)  # a piece; it is flushed to the disk with its shard
        else:
            move_into_place(new, target)


def replace_shard(root: Path, number: int, episodes: Sequence[Episode], spec: WorldSpec) -> Path:
    """Write ``episodes`` in place of shard ``number`` and of its pieces; a kill leaves the old episodes or the new."""
    target = shard_folder(root, number)
    finish_replacement(root, number)
    if not target.exists() and not pieces_folder(root, number).exists():
        write_shard(root, target, episodes, spec)
    else:
        write_shard(root, next_folder(root, number), episodes, spec)
        finish_replacement(root, number)
    return target


def finish_replacement(root: Path, number: int) -> None:
    """Let the shard that waits in ``.next-*`` take its place; a kill may have come between."""
    waiting, target = next_folder(root, number), shard_folder(root, number)
    if not waiting.is_dir():
        return
    with temporary_folder(root) as work:
        for old in (pieces_folder(root, number), target):
            if old.exists():
                os.rename(old, work / old.name)
        os.rename(waiting, target)


def read_shard(folder: Path, spec: WorldSpec, state_names: Sequence[str] = ()) -> tuple[Shard, list[dict[str, Any]]]:
    """Open the arrays (memory-mapped) and the entries of one shard; a ValueError names a damaged one and its damage."""
    try:
        files = sorted(folder.glob("*.npy"))
        arrays = Shard((path.stem, np.load(path, mmap_mode="r", allow_pickle=False)) for path in files)
        entries = read_json(folder / EPISODES, LARGEST_EPISODES)
        _check_entries(entries)
        acted = {knows_actions(entry["provenance"]) for entry in entries} or {True}
        missing = sorted(set(ARRAYS) - set(arrays) - ({"actions"} if acted == {False} else set()))
        if missing:
            raise ValueError(f"it lacks {', '.join(f'{name}.npy' for name in missing)}")
        if "actions" in arrays and acted != {True}:
            raise ValueError("it has actions.npy for episodes that episodes.json says have no actions")
        _check_arrays(arrays, entries, spec, state_names)
    except Exception as error:  # numpy raises SyntaxError and others for damaged headers
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{folder}: damaged shard ({reason:.500}); delete this folder and collect it again") from error
    return arrays, entries


def is_intact(folder: Path, arrays: Shard) -> bool:
    """Compare a piece with its checksums; a power cut may leave blocks of zeros."""
    try:
        sums = read_json(folder / CHECKSUMS)
    except (OSError, ValueError):
        return False
    return isinstance(sums, dict) and all(
        sums.get(name) == zlib.crc32(np.ascontiguousarray(array).data) for name, array in arrays.items()
    )


def slice_episode(arrays: Shard, frame: int, action: int, length: int, provenance: dict[str, Any]) -> Episode:
    """The episode of ``length`` steps that begins at row ``frame`` of the frames and row ``action`` of the actions."""
    per_step: dict[str, Any] = {
        name: np.asarray(arrays[name][action : action + length]) if name in arrays else None
        for name in ARRAYS
        if name != "frames"
    }
    return Episode(
        frames=np.asarray(arrays["frames"][frame : frame + length + 1]),
        states=np.asarray(arrays["states"][frame : frame + length + 1]) if "states" in arrays else None,
        provenance=provenance,
        **per_step,
    )


def _check_entries(entries: Any) -> None:
    if not isinstance(entries, list):
        raise ValueError(f"{EPISODES} holds no list")  # noqa: TRY004 (a file's, no caller's)
    for i, entry in enumerate(entries):
        length = entry.get("length") if isinstance(entry, dict) else None
        if not isinstance(length, int) or isinstance(length, bool) or length < 1:
            raise ValueError(f"{EPISODES}: entry {i}: expected a length of 1 or more, got {entry!r:.80}")
        check_provenance(entry.get("provenance"), f"{EPISODES}: entry {i}: ")


def _check_arrays(arrays: Shard, entries: list[dict[str, Any]], spec: WorldSpec, state_names: Sequence[str]) -> None:
    rows: dict[str, tuple[Any, ...]] = {"frames": spec.frame_shape, "actions": (spec.action_size,)}
    for name, array in arrays.items():
        if name not in DTYPES and name != "actions":
            continue
        expected = np.dtype(spec.action_dtype if name == "actions" else DTYPES[name])
        row = rows.get(name, ())
        if name == "states":
            row = (len(state_names),) if state_names else array.shape[1:2]
        if array.dtype != expected or array.shape[1:] != row or not array.ndim:
            raise ValueError(f"its {name} are {array.dtype} {array.shape[1:]}, the world's {expected} {row}")
    actions = sum(entry["length"] for entry in entries)
    wanted = {name: actions + (len(entries) if name in ("frames", "states") else 0) for name in arrays}
    wrong = [f"{k}.npy has {len(v)} rows, not {wanted[k]}" for k, v in arrays.items() if len(v) != wanted[k]]
    if wrong:
        raise ValueError(f"by episodes.json {'; '.join(wrong)}")
