"""What a user of the installed wheel does first; run with the wheel's path, in an environment that knows no checkout."""

import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np

import neuralsim

here = Path(neuralsim.__file__).resolve()
assert Path(sys.prefix).resolve() in here.parents, f"neuralsim came from {here}, not from the wheel"

names = zipfile.ZipFile(sys.argv[1]).namelist()
top = {name.split("/")[0] for name in names}
assert {t for t in top if not t.endswith(".dist-info")} == {"neuralsim"}, f"the wheel has more than neuralsim: {top}"
assert "neuralsim/py.typed" in names
assert not [n for n in names if n.endswith(".pyc") or "__pycache__" in n]
assert any(n.endswith("licenses/LICENSE") for n in names)

env = gym.make("neuralsim/PushT-v0", render_mode="rgb_array")
real = gym.make("neuralsim/PushTReal-v0", render_mode="rgb_array")
dream, info = env.reset(seed=0)
truth, _ = real.reset(options={"state": info["state"]})
assert dream.shape == truth.shape == (64, 64, 3)
for _ in range(10):
    action = env.action_space.sample()
    dream, *_ = env.step(action)
    truth, *_ = real.step(action)
rendered = env.render()
assert rendered.dtype == np.uint8
assert np.array_equal(rendered, dream)
print(
    "10 imagined steps; mean difference to the truth:", np.abs(dream.astype(int) - truth).mean().round(2), "grey levels"
)

from stable_baselines3 import PPO  # noqa: E402 (a second of import, only once the first part holds)

from neuralsim.envs.imagined.sb3_vec_env import ImaginedVecEnv  # noqa: E402

envs = ImaginedVecEnv("pusht", num_envs=8)
PPO("CnnPolicy", envs, n_steps=8, batch_size=32, n_epochs=1, device="cpu").learn(64)
print("64 steps of PPO inside the dream")
