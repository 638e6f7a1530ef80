"""Damaged world folders: refused by the name of the file, in little time and memory, or opened with a sound meaning."""

from __future__ import annotations

import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from mutations import cases, mutate_file

from neuralsim.imagination import Imagination
from neuralsim.pretrained.world import open_world
from neuralsim.storage.manifest import MANIFEST, seal

MOST_SECONDS, MOST_BYTES = 10.0, 1_000_000_000


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("case", cases(40))
def test_a_damaged_world_is_refused_by_name_or_steps(tiny_world: Path, tmp_path: Path, case: int) -> None:
    rng = np.random.default_rng([case, 42])
    folder = tmp_path / "world"
    shutil.copytree(tiny_world, folder)
    seal(folder)
    names = ["config.json", "world.json", "starts.npz", "diffusion_pytorch_model.safetensors", "config.json"]
    name = names[int(rng.integers(len(names)))]
    mutate_file(folder / name, rng)
    if name != MANIFEST:  # an attacker can write the manifest too
        (folder / MANIFEST).unlink()
    before, begin = peak_bytes(), time.process_time()
    try:
        world = open_world(folder, device="cpu")
    except ValueError as error:
        if str(folder) not in str(error):
            raise
    else:
        assert np.isfinite(world.spec.action_scale).all()
        assert world.starts is not None or not (folder / "starts.npz").is_file()
        if world.starts is not None:
            imagination = Imagination(world.model, starts=world.starts)
            imagination.reset(seeds=0)
            imagination.step(world.spec.random_actions(rng, 1))
            assert imagination.frames().shape == (1, *world.spec.frame_shape)
    assert time.process_time() - begin < MOST_SECONDS
    assert peak_bytes() - before < MOST_BYTES
