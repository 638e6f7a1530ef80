"""Checkpoints of a training run: safetensors and JSON only, written whole or not at all, resumable to the bit.

A checkpoint is a folder ``checkpoints/<stage>-<step>`` in the run: ``model.safetensors``, ``average.safetensors`` (EMA),
``optimizer.safetensors`` and ``progress.json``. It is written under another name, flushed to the disk and renamed; then older ones
are deleted. All randomness of training is a function of (seed, stage, step), so these files are the whole state.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from neuralsim.runtime.files import disk_errors, move_into_place
from neuralsim.storage.weights import cpu_copies


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of a run: index of the stage, optimiser steps done in it, seconds of training over all sessions."""

    stage: int
    step: int
    seconds: float


def save_checkpoint(
    run: Path,
    progress: TrainingProgress,
    model: torch.nn.Module,
    average: list[torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> Path:
    """Write a checkpoint, then delete the ones before it; return its folder. A full disk is a DiskFullError."""
    root = run / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"{progress.stage:02d}-{progress.step:08d}"
    moments = {
        f"{i}.{k}": torch.as_tensor(v, device=None if isinstance(v, torch.Tensor) else "cpu")
        for i, s in optimizer.state_dict()["state"].items()
        for k, v in s.items()
    }
    files = {
        "model.safetensors": model.state_dict(),
        "average.safetensors": {str(i): tensor for i, tensor in enumerate(average)},
        "optimizer.safetensors": moments,
    }
    needed = sum(x.numel() * x.element_size() for tensors in files.values() for x in tensors.values())
    kept = latest_checkpoint(run)
    kept_text = f"checkpoint {kept.name} is whole" if kept else "no checkpoint was written before"
    with disk_errors(target, needed, kept_text, "make room and run the same command with --resume"):
        work = root / f".writing-{os.getpid()}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            for name, tensors in files.items():
                save_file(cpu_copies(tensors), work / name)
            (work / "progress.json").write_text(json.dumps(progress.__dict__))
            shutil.rmtree(target, ignore_errors=True)
            move_into_place(work, target)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    for old in root.iterdir():
        if old != target:
            shutil.rmtree(old, ignore_errors=True)
    return target


def latest_checkpoint(run: Path) -> Path | None:
    """Return the newest whole checkpoint of a run, if any."""
    found = sorted(p for p in (run / "checkpoints").glob("[0-9]*-[0-9]*") if (p / "progress.json").is_file())
    return found[-1] if found else None


def read_progress(checkpoint: Path) -> TrainingProgress:
    """Read the progress that ``checkpoint`` was written at."""
    return TrainingProgress(**json.loads((checkpoint / "progress.json").read_text()))


def load_model(checkpoint: Path, model: torch.nn.Module) -> None:
    """Load the checkpoint's weights into ``model``."""
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))


def load_average(checkpoint: Path) -> list[torch.Tensor]:
    """Load the averaged parameters, in order."""
    tensors = load_file(checkpoint / "average.safetensors")
    return [tensors[str(i)] for i in range(len(tensors))]


def load_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer) -> None:
    """Load the checkpoint's moments into ``optimizer`` (built over the same parameters)."""
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in load_file(checkpoint / "optimizer.safetensors").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
