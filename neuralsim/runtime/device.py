"""Device, number format and threads of a model's arithmetic.

Importing this module makes forked processes compute on one thread: a fork inherits the state of OpenMP's threads but not
the threads, so the first parallel operation of a child would wait for ever.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def pick_device(name: str = "auto") -> torch.device:
    """Return the device ``name``; "auto" is cuda where there is one, else cpu. A ValueError for a missing device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r}: torch sees no GPU on this machine; use --device cpu or auto")
    return device


def pick_dtype(precision: str = "auto", device: torch.device | str = "cpu") -> torch.dtype:
    """Return the number format ``precision``: "float32", "bfloat16" or "auto".

    "auto" is bfloat16 where the hardware multiplies in it (AVX512-BF16 or AMX, or a GPU), else float32.
    """
    if precision == "float32":
        return torch.float32
    if precision == "bfloat16":
        return torch.bfloat16
    if precision != "auto":
        raise ValueError(f"precision: expected 'auto', 'float32' or 'bfloat16', got {precision!r}")
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def arithmetic(dtype: torch.dtype, device: torch.device | str = "cpu") -> contextlib.AbstractContextManager[None]:
    """Autocast to ``dtype`` on ``device``, or nothing for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=dtype)


@contextlib.contextmanager
def inference(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Disable gradients and compute in ``dtype``, regardless of the autocast state outside."""
    low = dtype is torch.bfloat16
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
        yield


@contextlib.contextmanager
def float32_by_default() -> Iterator[None]:
    """Let libraries that name no number format, such as Stable-Baselines3, make float32 tensors, whatever the caller's default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
