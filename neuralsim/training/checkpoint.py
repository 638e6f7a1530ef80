"""Checkpoints of a training run: safetensors and JSON only, written whole or not at all, resumable to the bit.

A checkpoint is a folder ``checkpoints/<stage>-<step>`` in the run: ``model.safetensors``, ``average.safetensors``
(EMA), ``optimizer.safetensors`` and ``progress.json``. It is written under another name and renamed; older ones are
deleted after. All randomness of training is a function of (seed, stage, step), so these tensors and two numbers are
the whole state.
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

from neuralsim.storage.weights import cpu_copies


@dataclass(frozen=True)
class Progress:
    """Where a run stands: index of the stage, optimiser steps done in it, seconds of training so far over all
    sessions."""

    stage: int
    step: int
    seconds: float


def save_checkpoint(
    run: Path, progress: Progress, model: torch.nn.Module, average: list[torch.Tensor], optimizer: torch.optim.Optimizer
) -> Path:
    """Write a checkpoint and delete the ones before it. Returns its folder."""
    root = run / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"{progress.stage:02d}-{progress.step:08d}"
    work = root / f".writing-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    save_file(cpu_copies(model.state_dict()), work / "model.safetensors")
    save_file(cpu_copies({str(i): tensor for i, tensor in enumerate(average)}), work / "average.safetensors")
    slots = {f"{i}.{k}": torch.as_tensor(v) for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
    save_file(cpu_copies(slots), work / "optimizer.safetensors")
    (work / "progress.json").write_text(json.dumps(progress.__dict__))
    shutil.rmtree(target, ignore_errors=True)
    os.rename(work, target)
    for old in root.iterdir():
        if old != target:
            shutil.rmtree(old, ignore_errors=True)
    return target


def latest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, if any."""
    found = sorted(p for p in (run / "checkpoints").glob("[0-9]*-[0-9]*") if (p / "progress.json").is_file())
    return found[-1] if found else None


def read_progress(checkpoint: Path) -> Progress:
    """Where the checkpoint stands."""
    return Progress(**json.loads((checkpoint / "progress.json").read_text()))


def load_model(checkpoint: Path, model: torch.nn.Module) -> None:
    """Put the checkpoint's weights into ``model``."""
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))


def load_average(checkpoint: Path) -> list[torch.Tensor]:
    """The averaged parameters, in order."""
    tensors = load_file(checkpoint / "average.safetensors")
    return [tensors[str(i)] for i in range(len(tensors))]


def load_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer) -> None:
    """Put the checkpoint's moments into ``optimizer`` (built over the same parameters)."""
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in load_file(checkpoint / "optimizer.safetensors").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
