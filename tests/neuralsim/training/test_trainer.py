"""Trainer: it learns, resumes to the bit after a kill at any moment, and writes worlds that open again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from neuralsim.data.store import EpisodeStore
from neuralsim.models.action_encoding import EncodedActions
from neuralsim.models.codec import to_pixels
from neuralsim.models.video_wam import VideoWAM
from neuralsim.noise import Noise
from neuralsim.runtime.interrupt import Stopped
from neuralsim.training.config import TrainConfig
from neuralsim.training.losses import rollout_losses
from neuralsim.training.recipes import find_recipe
from neuralsim.training.trainer import Trainer, learning_rate, train

RUN = """
import sys
from pathlib import Path
from neuralsim.training.config import TrainConfig
from neuralsim.training.trainer import train
train(TrainConfig(recipe="pusht-video-mini", data=Path(sys.argv[1]), out=Path(sys.argv[2]), resume=len(sys.argv) > 3,
threads=1,
            checkpoint_every=0.3))
"""


@pytest.fixture(scope="module")
def finished(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("run") / "whole"
    return train(TrainConfig(recipe="pusht-video-mini", data=store, out=out, threads=1))


def test_a_run_killed_at_any_moment_ends_with_the_same_bits(store: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-c", RUN, str(store), str(out)]
    kills, rng = 0, random.Random(time.time_ns())
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = False
    while not done:
        resume = ["--resume"] if (out / "checkpoints").exists() else []
        with (
            (tmp_path / "errors.txt").open("w") as errors,
            subprocess.Popen([*command, *resume], env=environment, stdout=subprocess.DEVNULL, stderr=errors) as process,
        ):
            begin, seen = time.monotonic(), len(list(out.glob("checkpoints/*")))
            # Wait for the run to be under way (imports take most of a start), then kill it at a random moment.
            while kills < 2 and process.poll() is None and time.monotonic() - begin < 60:
                if any(out.glob("checkpoints/*")) and (seen == 0 or time.monotonic() - begin > 5):
                    time.sleep(rng.uniform(0.1, 1.2))
                    break
                time.sleep(0.02)
            if kills < 2 and process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
            else:
                process.wait(timeout=120)
                assert process.returncode == 0, (tmp_path / "errors.txt").read_text()[-2000:]
                done = True
    assert kills >= 1, "the run ended before it could be killed"
    ours, theirs = (load_file(f / "diffusion_pytorch_model.safetensors") for f in (out / "world", finished))
    assert ours.keys() == theirs.keys()
    different = [k for k in ours if not torch.equal(ours[k], theirs[k])]
    assert not different, f"differ after {kills} kills: {different[:5]}"


def test_stopping_writes_a_checkpoint_and_says_how_to_go_on(store: Path, tmp_path: Path) -> None:
    config = TrainConfig(recipe="pusht-video-mini", data=store, out=tmp_path / "run", threads=1, stop_after=0.0)
    with pytest.raises(Stopped, match="--resume"):
        train(config)
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
    with pytest.raises(FileExistsError, match="--resume"):
        Trainer(config)


def test_a_finished_world_opens_bit_equal_and_holds_its_starts(store: Path, finished: Path, tmp_path: Path) -> None:
    model = VideoWAM.from_pretrained(finished)
    model.save_pretrained(tmp_path)
    again = VideoWAM.from_pretrained(tmp_path)
    for (name, a), (_, b) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    starts = np.load(finished / "starts.npz", allow_pickle=False)
    spec = EpisodeStore(store).spec
    assert starts["frames"].shape == (8, spec.context, *spec.frame_shape)
    assert starts["actions"].shape == (8, spec.context - 1, 2)
    assert all(seed % 20 == 0 for seed in starts["seeds"]), "starts must come from held-out episodes"
    told = json.loads((finished / "training.json").read_text())
    assert told["episodes"] == 44


def test_codec_learns_to_redraw(store: Path, finished: Path) -> None:
    model = VideoWAM.from_pretrained(finished)
    frames = torch.as_tensor(np.stack([e.frames[0] for e in EpisodeStore(store)]))
    codec = model.codec
    pixels = to_pixels(frames)
    moving = ((pixels - codec.background).abs().amax(1) > 0.15).float()
    with torch.inference_mode():
        redrawn = codec.paint(codec.positions(pixels))
    wrong, lazy = (((x - pixels).square().mean(1) * moving).sum() / moving.sum() for x in (redrawn, codec.background))
    assert wrong < 0.7 * lazy, f"moving pixels are off by {wrong:.4f}; the background alone by {lazy:.4f}"


def test_gradients_reach_through_a_dream() -> None:
    recipe = find_recipe("pusht-video-mini")
    from neuralsim.envs.pusht.env import pusht_spec

    torch.manual_seed(0)
    model = VideoWAM.build(pusht_spec(), recipe.codec, recipe.stream)
    torch.nn.init.normal_(model.stream.token_out.weight, std=0.05)
    tokens, actions = torch.randn(2, 6, 2, 8), (torch.rand(2, 5, 2) * 2 - 1).requires_grad_()
    _, dreamt = rollout_losses(model, tokens, EncodedActions(actions), 1, Noise.from_seeds([0, 1]), 0.0)
    dreamt[:, -1].square().sum().backward()
    assert (actions.grad.abs().sum(-1) > 0).all(), "the last dreamt frame must depend on every action before it"


def test_learning_rate_warms_up_and_anneals() -> None:
    stage = find_recipe("pusht-video").dynamics_stage
    rates = [learning_rate(stage, s) for s in range(stage.steps)]
    assert rates[0] < rates[stage.warmup - 1] == pytest.approx(stage.lr)
    assert rates[-1] == pytest.approx(stage.lr / 50, rel=0.05)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'pusht-video'"):
        find_recipe("pusht-vidoe")
