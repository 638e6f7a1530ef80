"""Imagined environments in processes of their own: however they are started, they step, and show what they show here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import gymnasium as gym, numpy as np, torch
import neuralsim
from stable_baselines3.common.vec_env import SubprocVecEnv

mode, world = sys.argv[1:]

def make():
    return gym.make("neuralsim/PushT-v0", world=world, precision="float32")

def main():
    torch.set_num_threads(2)
    env = make()  # the parent's threads work before any child is forked
    here = env.reset(seed=0)[0].astype(int)
    env.step(np.zeros(2, np.float32))
    torch.ones(600, 600) @ torch.ones(600, 600)
    if mode == "async":
        envs = gym.make_vec("neuralsim/PushT-v0", num_envs=2, vectorization_mode="async", world=world, precision="float32")
        there = envs.reset(seed=[0, 5])[0][0]
        envs.step(np.zeros((2, 2), np.float32))
        envs.close()
    else:
        envs = SubprocVecEnv([make], start_method=mode)
        envs.seed(0)
        there = envs.reset()[0]
        envs.step(np.zeros((1, 2), np.float32))
        envs.close()
    print("difference", abs(there.astype(int) - here).max())

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("mode", ["async", "fork", "forkserver", "spawn"])
def test_children_step_however_they_are_started(mode: str, tiny_world: Path, tmp_path: Path) -> None:
    """A parent that has used its threads once left forked children waiting for ever."""
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "program.py"), mode, str(tiny_world)]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout.split("difference ")[1]) <= 2
