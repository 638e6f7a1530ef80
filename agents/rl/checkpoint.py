"""Checkpoints of reinforcement learning: progress, policy, optimizer and replay buffer, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuralsim.agents.policies.sb3_file import PolicyNote, read_weights, save_policy
from neuralsim.runtime.files import check_space, disk_errors, flush, temporary_folder

FOLDER = "checkpoint"
BUFFER_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
"""Arrays of a replay buffer."""
GO_ON = "make room and run the same command again with --resume"
KEPT = "the checkpoint before is whole"


@dataclass(frozen=True)
class RLProgress:
    """The progress of a run."""

    steps: int = 0
    """Environment steps learned from so far."""
    true_steps: int = 0
    """Those of them made in the real environment."""
    seconds: float = 0.0
    """Time of learning."""
    rounds: int = 0
    """Dyna rounds done."""
    world: str = ""
    """Folder of the world that was trained on, if any."""
    drift: tuple[dict[str, Any], ...] = ()
    """Measurements of each Dyna round."""
    updates: int = 0
    """Optimizer updates, as SB3 counts them."""
    weights: str = ""
    """Fingerprint of the learned world's weights at the start; empty in runs of earlier versions."""

    def restore(self, folder: Path, model: Any) -> None:
        """Load the checkpoint's weights, optimizers and replay buffer into ``model``, a fresh algorithm of the same settings."""
        place = folder / FOLDER
        model.set_parameters(read_weights(place / "policy.zip"), exact_match=False)
        model.num_timesteps, model._n_updates = self.steps, self.updates
        memory = place / "memory.npz"
        if not memory.is_file():
            return
        buffer = model.replay_buffer
        with np.load(memory, allow_pickle=False) as arrays:
            for name in BUFFER_ARRAYS:
                if name in arrays:
                    getattr(buffer, name)[: len(arrays[name])] = arrays[name]
            buffer.pos, buffer.full = int(arrays["pos"]), bool(arrays["full"])


def save_progress(folder: Path, progress: RLProgress, model: Any, note: PolicyNote) -> None:
    """Replace ``folder/checkpoint`` as a whole. Raises DiskFullError, with the space that is missing, where it has no room."""
    buffer = getattr(model, "replay_buffer", None)
    arrays = {} if buffer is None else _filled(buffer)
    parameters = sum(p.nbytes for p in model.policy.parameters())
    needed = sum(a.nbytes for a in arrays.values()) + 3 * parameters  # the optimizer keeps two more of each
    target = folder / FOLDER
    kept = KEPT if target.is_dir() else ""
    check_space(folder, needed, "checkpoints", f"{kept}; {GO_ON}" if kept else GO_ON)
    with disk_errors(target, needed, kept, GO_ON), temporary_folder(folder) as work:
        new = work / "new"
        new.mkdir()
        save_policy(model, new / "policy.zip", note)
        if arrays:
            np.savez(new / "memory.npz", **arrays)  # type: ignore[arg-type]
        body = asdict(progress) | {"updates": int(model._n_updates)}
        (new / "standing.json").write_text(json.dumps(body, indent=1))
        for path in (*new.iterdir(), new):
            flush(path)
        # Killed between the two renames, the run is found beside its place: see load_progress.
        before = folder / f".{FOLDER}-before"
        shutil.rmtree(before, ignore_errors=True)
        if target.exists():
            os.rename(target, before)
        os.rename(new, target)
        flush(folder)
        shutil.rmtree(before, ignore_errors=True)


def load_progress(folder: Path) -> RLProgress | None:
    """The progress of the run in ``folder``; None where there is no run. Raises ValueError for a damaged one."""
    path = folder / FOLDER / "standing.json"
    if not path.is_file():
        left = [*folder.glob(f".{FOLDER}-before"), *sorted(folder.glob(f".{FOLDER}-*/old"), reverse=True)]
        left = [place for place in left if (place / "standing.json").is_file()]
        if not left:
            return None
        os.rename(left[0], folder / FOLDER)  # a kill between two renames
    for leftover in folder.glob(f".{FOLDER}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        raw = json.loads(path.read_text())
        return RLProgress(**raw | {"drift": tuple(raw["drift"])})
    except (json.JSONDecodeError, TypeError, KeyError, OSError) as error:
        raise ValueError(f"{path}: damaged ({error}); train again into another --out") from error


def _filled(buffer: Any) -> dict[str, np.ndarray]:
    """The part of a replay buffer that is filled."""
    size = buffer.buffer_size if buffer.full else buffer.pos
    arrays = {n: getattr(buffer, n)[:size] for n in BUFFER_ARRAYS if getattr(buffer, n, None) is not None}
    return arrays | {"pos": np.array(buffer.pos), "full": np.array(buffer.full)}
