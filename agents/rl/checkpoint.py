"""Standing: where a run of reinforcement learning stands, as its last checkpoint keeps it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuralsim.agents.policies.sb3_file import PolicyNote, read_weights, save_policy

FOLDER = "checkpoint"
SPARE_BYTES = 64 * 2**20
"""Disk space that a checkpoint leaves free."""
MEMORY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
"""What an off-policy algorithm remembers."""


@dataclass(frozen=True)
class RLProgress:
    """steps: learned from so far; true_steps: of them made in truth; seconds: of learning; rounds of refreshing done; world: the
    refreshed world's folder, if any; drift: what each refresh measured; updates: the optimizer's, as SB3 counts them."""

    steps: int = 0
    true_steps: int = 0
    seconds: float = 0.0
    rounds: int = 0
    world: str = ""
    drift: tuple[dict[str, Any], ...] = ()
    updates: int = 0

    def restore(self, folder: Path, model: Any) -> None:
        """Put the checkpoint's weights, optimizers and memory into ``model``, a fresh algorithm of the same settings."""
        place = folder / FOLDER
        model.set_parameters(read_weights(place / "policy.zip"), exact_match=False)
        model.num_timesteps, model._n_updates = self.steps, self.updates
        memory = place / "memory.npz"
        if not memory.is_file():
            return
        buffer = model.replay_buffer
        with np.load(memory, allow_pickle=False) as arrays:
            for name in MEMORY:
                if name in arrays:
                    getattr(buffer, name)[: len(arrays[name])] = arrays[name]
            buffer.pos, buffer.full = int(arrays["pos"]), bool(arrays["full"])


def save_progress(folder: Path, standing: RLProgress, model: Any, note: PolicyNote) -> None:
    """Write ``folder/checkpoint``: it is replaced as a whole. An OSError says so where the disk has no room for it."""
    buffer = getattr(model, "replay_buffer", None)
    arrays = {} if buffer is None else _memory(buffer)
    needed, free = sum(a.nbytes for a in arrays.values()), shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise OSError(
            errno.ENOSPC,
            f"{folder}: a checkpoint needs {needed / 1e6:.0f} MB, the disk has {free / 1e6:.0f} MB left; make room and resume",
        )
    work = Path(tempfile.mkdtemp(prefix=".checkpoint-", dir=folder))
    try:
        new = work / "new"
        new.mkdir()
        save_policy(model, new / "policy.zip", note)
        if arrays:
            np.savez(new / "memory.npz", **arrays)  # type: ignore[arg-type]
        body = asdict(standing) | {"updates": int(model._n_updates)}
        (new / "standing.json").write_text(json.dumps(body, indent=1))
        target = folder / FOLDER
        if target.exists():
            os.rename(target, work / "old")
        os.rename(new, target)
    finally:
        # Killed between the two renames, the one before is still in the working folder.
        if not (folder / FOLDER).exists() and (work / "old").exists():
            os.rename(work / "old", folder / FOLDER)
        shutil.rmtree(work, ignore_errors=True)


def load_progress(folder: Path) -> RLProgress | None:
    """Where the run in ``folder`` stands; None where there is none."""
    path = folder / FOLDER / "standing.json"
    if not path.is_file():
        left = sorted(folder.glob(".checkpoint-*/old"))
        if not left:
            return None
        os.rename(left[-1], folder / FOLDER)  # a kill between two renames
    for leftover in folder.glob(".checkpoint-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        raw = json.loads(path.read_text())
        return RLProgress(**raw | {"drift": tuple(raw["drift"])})
    except (json.JSONDecodeError, TypeError, KeyError, OSError) as error:
        raise ValueError(f"{path}: damaged ({error}); train again into another --out") from error


def _memory(buffer: Any) -> dict[str, np.ndarray]:
    """The part of a replay buffer that is filled."""
    size = buffer.buffer_size if buffer.full else buffer.pos
    arrays = {n: getattr(buffer, n)[:size] for n in MEMORY if getattr(buffer, n, None) is not None}
    return arrays | {"pos": np.array(buffer.pos), "full": np.array(buffer.full)}
