"""Read an export with lerobot's own LeRobotDataset and hold it against the store it was made from.

lerobot does not install beside our torch, so it has an environment of its own, and the store is read as the plain arrays it is:
    neuralsim export STORE --to lerobot:out/
    python -m venv lerobot-env && lerobot-env/bin/pip install lerobot numpy
    lerobot-env/bin/python .ci/try_lerobot.py data/STORE out/
"""

import json
import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

LEAST_DB = 40.0
"""Peak signal-to-noise ratio that frames must keep through mp4."""

store, export = map(Path, sys.argv[1:3])
dataset = LeRobotDataset("local/export", root=export, video_backend="pyav")
spec = json.loads((store / "store.json").read_text())["spec"]
offset = np.array(spec.get("action_offset") or [0.0] * len(spec["action_scale"]))
row, compared, worst = 0, 0, np.inf
for shard in sorted(store.glob("shard-*")):
    arrays = {p.stem: np.load(p, mmap_mode="r", allow_pickle=False) for p in shard.glob("*.npy")}
    frame = action = 0
    for entry in json.loads((shard / "episodes.json").read_text()):
        length = entry["length"]
        for step in sorted({0, length // 2, length - 1}):
            item = dataset[row + step]
            seen = np.atleast_1d(item["action"].numpy())
            wanted = offset + np.array(spec["action_scale"]) * arrays["actions"][action + step]
            np.testing.assert_allclose(seen, wanted, rtol=1e-5, atol=1e-5)
            if "states" in arrays:
                np.testing.assert_array_equal(np.atleast_1d(item["observation.state"]), arrays["states"][frame + step])
            picture = item["observation.image"].permute(1, 2, 0).numpy() * 255
            error = np.square(picture - arrays["frames"][frame + step]).mean()
            worst = min(worst, 10 * np.log10(255**2 / max(error, 1e-9)))
            compared += 1
        frame, action, row = frame + length + 1, action + length, row + length + 1
assert row == dataset.num_frames, f"{row} frames in the store, {dataset.num_frames} in the export"
assert worst >= LEAST_DB, f"a frame kept {worst:.1f} dB only"
print(f"{dataset.num_episodes} episodes, {dataset.num_frames} frames; {compared} compared, the worst at {worst:.1f} dB")
