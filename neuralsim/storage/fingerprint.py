"""Fingerprint: a short hash of weights, by which caches, snapshots and heads recognise the model they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """Hash names and values of ``weights`` to 16 hexadecimal digits (SHA-256); equal weights give equal digits in any process."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(name.encode() + values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
