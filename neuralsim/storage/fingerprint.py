"""Fingerprint: a short hash of weights or episodes, by which caches, snapshots and heads recognise what they were made from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch

from neuralsim.data.store import EpisodeStore


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """Hash names and values of ``weights`` to 16 hexadecimal digits (SHA-256); equal weights give equal digits in any process."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(name.encode() + values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def store_fingerprint(store: EpisodeStore) -> str:
    """Hash the spec and all episodes of ``store`` to 16 hexadecimal digits (SHA-256), however they are split and wherever they lie."""
    digest = hashlib.sha256(f"{store.spec}{store.info.state_names}".encode())
    digest.update(np.ascontiguousarray(store.lengths).tobytes())
    for name in sorted({name for shard in store.shards for name in shard}):
        digest.update(name.encode())
        for shard in store.shards:
            if name in shard:
                digest.update(np.ascontiguousarray(shard[name]).data)
    return digest.hexdigest()[:16]
