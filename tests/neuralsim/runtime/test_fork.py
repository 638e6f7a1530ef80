"""Processes made from one that has opened a world work, however they are made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import multiprocessing, sys
import numpy as np
import torch
import neuralsim
from neuralsim.imagination import Imagination

def rollout(seed):
    world = neuralsim.open_world({world!r}, "cpu")
    imagination = Imagination(world.model, num_envs=2, starts=world.starts)
    imagination.reset(seeds=[seed, seed])
    imagination.step(np.zeros((2, world.spec.action_size), np.float32))
    return float(imagination.frames().mean())

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return rollout(index)

if __name__ == "__main__":
    torch.set_num_threads(2)
    rollout(0)
    torch.randn(600, 600).matmul(torch.randn(600, 600))  # threads are running now
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            pool.map(rollout, [1])
        print(method, flush=True)
    list(torch.utils.data.DataLoader(Rows(), num_workers=1, multiprocessing_context="fork"))
    print("loader")
"""


def test_children_of_a_process_with_a_world_do_not_hang(tiny_world: Path, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.replace("{world!r}", repr(str(tiny_world))))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240)
    assert done.stdout.split() == ["fork", "spawn", "forkserver", "loader"], done.stderr[-2000:]
