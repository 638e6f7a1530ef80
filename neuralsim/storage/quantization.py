"""Weight matrices stored as eight-bit integers with a scale for every 32 of a row: half the size of half precision.

Rounding to 1/127 of a group's largest weight errs by half a hundredth of the weights' spread; with one scale per row by half as much
again (block-wise quantisation, Dettmers et al. 2021, arXiv 2110.02861, for storage alone: models compute in what they are restored
to).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

SCALE = ".scale"
"""Ending of the name of a quantized matrix's scales."""
LEAST = 4096
"""Elements of the smallest tensor that is quantized."""
STEPS = 127
GROUP = 32
"""Neighbouring weights of a row that share a scale."""


def quantize(tensors: Mapping[str, torch.Tensor], parts: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Quantize the large matrices whose names begin with one of ``parts``; the other tensors stay.

    Each becomes int8 of the same shape, with its scales, bfloat16 ``(rows, groups)``, beside it; the last group of a row
    may be shorter.
    """
    quantized: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if not (name.startswith(parts) and tensor.ndim >= 2 and tensor.numel() >= LEAST and tensor.is_floating_point()):
            quantized[name] = tensor
            continue
        groups = _groups(tensor.detach().float())
        scale = (groups.abs().amax(2) / STEPS).clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
        numbers = (groups / scale[..., None].float()).round().clamp(-STEPS, STEPS).to(torch.int8)
        quantized[name], quantized[name + SCALE] = _whole(numbers, tensor.shape), scale
    return quantized


def dequantize(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Invert ``quantize`` up to rounding: quantized matrices become float32, the other tensors stay.

    Raises ValueError where scales and matrix do not fit.
    """
    restored = {}
    for name, tensor in tensors.items():
        scale = tensors.get(name + SCALE)
        if (
            name.endswith(SCALE)
            and tensors.get(name.removesuffix(SCALE), torch.empty(0, dtype=torch.float32)).dtype == torch.int8
        ):
            continue
        if tensor.dtype == torch.int8 and scale is not None:
            expected = (len(tensor), -(-tensor[0].numel() // GROUP)) if tensor.ndim >= 2 and len(tensor) else ()
            if scale.shape != expected or scale.dtype != torch.bfloat16:
                raise ValueError(
                    f"{name}: expected bfloat16 scales of shape {expected}, got {scale.dtype} {tuple(scale.shape)}"
                )
            tensor = _whole(_groups(tensor.float()) * scale[..., None].float(), tensor.shape)
        restored[name] = tensor
    return restored


def _groups(matrix: torch.Tensor) -> torch.Tensor:
    """Reshape ``(rows, ...)`` to ``(rows, groups, GROUP)``, the last group padded with zeros."""
    flat = matrix.flatten(1)
    return F.pad(flat, (0, -flat.shape[1] % GROUP)).unflatten(1, (-1, GROUP))


def _whole(groups: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Invert ``_groups``."""
    return groups.flatten(1)[:, : shape[1:].numel()].reshape(shape)
