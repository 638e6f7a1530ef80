"""Training of policy heads beside a world: post-prediction and, as the baseline, behaviour cloning; same data, same budget."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuralsim.data.store import EpisodeStore
from neuralsim.models.flow_head import FlowHead
from neuralsim.models.video_wam import VideoWAM
from neuralsim.noise import Noise
from neuralsim.runtime.device import arithmetic, pick_dtype
from neuralsim.runtime.files import disk_errors, move_into_place, temporary_folder
from neuralsim.runtime.progress import progress
from neuralsim.storage.fingerprint import fingerprint, store_fingerprint
from neuralsim.training.token_dataset import TokenWindows, encode_store

KINDS = {"bc": "now", "post": "future"}
"""Heads that are trained beside a world, and what they see."""
ORIGIN = "origin.json"
"""File beside a trained head: fingerprints of the world and the data, the budget and the seed that it was trained with."""


@dataclass(frozen=True)
class HeadBudget:
    """Length of a head's training: chunks seen, in batches, at a peak learning rate that falls along a cosine; EMA decay."""

    chunks: int = 1_500_000
    batch: int = 512
    rate: float = 1e-3
    ema: float = 0.998


def train_head(
    name: str,
    model: VideoWAM,
    store: EpisodeStore,
    folder: Path,
    budget: HeadBudget | None = None,
    seed: int = 0,
    show: bool = False,
) -> FlowHead:
    """Train the head ``name`` ("bc" or "post") for ``model`` on the training episodes of ``store``'s demonstrations.

    It is written to ``folder/name`` when it is done, whole. ``folder/cache`` keeps encoded frames. Raises ValueError for
    another name, or where no training episode has actions.
    """
    if name not in KINDS:
        raise ValueError(f"head {name!r}: expected one of {', '.join(KINDS)}")
    budget = budget or HeadBudget()
    device = torch.device(model.device)
    dtype = pick_dtype("auto", device)
    status = ""

    def bar(task: str, first: int, total: int) -> Iterator[int]:
        with progress(show, field="shown") as display:
            row = display.add_task(task, total=total, completed=first, shown="")
            for step in range(first, total):
                yield step
                display.update(row, completed=step + 1, shown=status)

    tokens = encode_store(
        lambda frames: model.codec.encode(frames[:, 0]),
        model.codec.state_dict(),
        store,
        folder / "cache",
        dtype,
        device,
        bar,
    )
    windows = TokenWindows(store, tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = FlowHead.build(model, KINDS[name]).to(device)
    from diffusers.training_utils import EMAModel

    average = EMAModel(head.parameters(), decay=budget.ema, use_ema_warmup=True, power=0.75)
    optimizer = torch.optim.AdamW(head.parameters(), lr=budget.rate, betas=(0.9, 0.98), weight_decay=1e-2)
    steps = max(1, budget.chunks // budget.batch)
    for step in bar(f"head {name}", 0, steps):
        draws = np.random.default_rng([seed, step])
        for group in optimizer.param_groups:
            group["lr"] = budget.rate * min(1, (step + 1) / 100) * (0.51 + 0.49 * math.cos(math.pi * step / steps))
        context = int(draws.integers(1, 3))
        clip = windows.sample(budget.batch, context + head.chunk, draws, device)
        noise = Noise.from_seeds(draws.integers(2**62, size=budget.batch).tolist(), device)
        with arithmetic(dtype, device):
            with torch.no_grad():
                past = clip.tokens[:, :context]
                past = past + 0.004 * noise.normal(past[0].numel(), stream=1).view(past.shape)
                state = model.start(past, clip.actions.steps(0, context - 1))
                read = head.context(model, past, state, noise)
            loss = head.loss(read, clip.actions.values[:, context - 1 :].float(), noise).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        average.step(head.parameters())
        status = f"actions {loss.item():.4f}"
    average.copy_to(head.parameters())
    head.eval()
    origin = {
        "world": fingerprint(model.state_dict()),
        "data": store_fingerprint(store),
        "budget": asdict(budget),
        "seed": seed,
    }
    save_head(head, folder / name, origin)
    return head


def read_origin(folder: Path) -> dict[str, Any]:
    """Read the ORIGIN of the head in ``folder``; empty where there is none or it cannot be read (earlier versions wrote none)."""
    try:
        found = json.loads((folder / ORIGIN).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def save_head(head: FlowHead, folder: Path, origin: dict[str, Any]) -> None:
    """Write ``head`` and its ``origin`` to ``folder``; it appears whole or not at all. A full disk is a DiskFullError."""
    size = sum(tensor.nbytes for tensor in head.state_dict().values())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder.parent) as work, disk_errors(folder, size):
        new = work / "new"
        head.save_pretrained(new, safe_serialization=True)
        (new / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n")
        if folder.exists():
            folder.rename(work / "old")
        move_into_place(new, folder)
