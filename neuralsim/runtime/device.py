"""Where and in which arithmetic models compute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is cuda where there is one, else cpu; asking for a device that is not there is a ValueError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r}: torch sees no GPU on this machine; use --device cpu or auto")
    return device


def pick_dtype(precision: str = "auto", device: torch.device | str = "cpu") -> torch.dtype:
    """``auto`` is bfloat16 where the hardware multiplies in it (AVX512-BF16 or AMX, or a GPU), else float32."""
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
