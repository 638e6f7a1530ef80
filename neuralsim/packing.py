"""packing: weight matrices as eight-bit whole numbers with a scale per row: half the size of half precision in a file.

Rounding to 1/127 of a row's largest weight errs by well under a hundredth of its spread (LLM.int8's vector-wise quantisation,
Dettmers et al. 2022, arXiv 2208.07339, for storage alone: models compute in what they are unpacked to).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

SCALE = ".scale"
"""What the name of a packed matrix's scales ends in."""
LEAST = 4096
"""Smaller tensors are left as they are: nothing is won by packing them."""
STEPS = 127


def pack(tensors: Mapping[str, torch.Tensor], parts: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """``tensors`` with the large matrices whose names begin with one of ``parts`` as int8 ``(rows, ...)``, and beside each its
    scales, float32 ``(rows,)``."""
    packed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if not (name.startswith(parts) and tensor.ndim >= 2 and tensor.numel() >= LEAST and tensor.is_floating_point()):
            packed[name] = tensor
            continue
        numbers = tensor.detach().float()
        scale = (numbers.flatten(1).abs().amax(1) / STEPS).clamp(min=torch.finfo(torch.float32).tiny)
        packed[name] = (numbers / _wide(scale, numbers)).round().clamp(-STEPS, STEPS).to(torch.int8)
        packed[name + SCALE] = scale
    return packed


def unpack(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of ``pack``, up to rounding: what was packed comes back as float32, all else as it is. Raises ValueError where
    scales and matrix do not fit."""
    unpacked = {}
    for name, tensor in tensors.items():
        scale = tensors.get(name + SCALE)
        if name.endswith(SCALE) and tensors.get(name.removesuffix(SCALE), torch.empty(0)).dtype == torch.int8:
            continue
        if tensor.dtype == torch.int8 and scale is not None:
            if tensor.ndim < 2 or scale.shape != tensor.shape[:1] or scale.dtype != torch.float32:
                raise ValueError(
                    f"{name}: expected float32 scales of shape {tuple(tensor.shape[:1])}, got {scale.dtype} {tuple(scale.shape)}"
                )
            tensor = tensor.float() * _wide(scale, tensor)
        unpacked[name] = tensor
    return unpacked


def _wide(scale: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return scale.view(-1, *[1] * (like.ndim - 1))
