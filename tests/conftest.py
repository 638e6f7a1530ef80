"""Small worlds for tests: a random VideoWAM in a folder, as a shipped world is, and an exact world whose every number
is known.
"""

from __future__ import annotations

import neuralsim  # noqa: F401  (first: it says how torch's threads are to wait, before torch is loaded)

# isort: split
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from dot_world import DotState, DotWorld
from tiny_model import build_tiny_model, real_starts

from neuralsim.agents.collection.collect import CollectConfig, collect
from neuralsim.models.video_wam import VideoWAM
from neuralsim.pretrained.starts import Starts
from neuralsim.pretrained.world import World
from neuralsim.spec import WorldSpec
from neuralsim.task import LearnedTask
from neuralsim.training.config import TrainConfig
from neuralsim.training.trainer import train

# Shared machines stall: an example may take long without being wrong.
hypothesis.settings.register_profile("neuralsim", deadline=None)
hypothesis.settings.load_profile("neuralsim")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """44 short episodes of Push-T, three of them held out; not to be written to."""
    folder = tmp_path_factory.mktemp("data") / "pusht"
    for _ in collect(CollectConfig(out=folder, episodes=44, steps=30, workers=1)):
        pass
    return folder


@pytest.fixture(scope="session")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 short episodes of Push-T's expert."""
    folder = tmp_path_factory.mktemp("data") / "demos"
    for _ in collect(
        CollectConfig(out=folder, episodes=21, steps=16, workers=1, policy="oracle", near_goal=0.0, seed=3)
    ):
        pass
    return folder


@pytest.fixture(scope="session")
def wam(store: Path, demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature that answers in all roles, trained in seconds."""
    out = tmp_path_factory.mktemp("run") / "wam"
    return train(TrainConfig(recipe="pusht-wam-mini", data=store, also=(demonstrations,), out=out, threads=1))


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores ctrl-C, and so does all it starts; some tests send one.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def endless() -> LearnedTask:
    """The learned task without an end: the random world's head knows nothing of success, and would see it anywhere."""
    return LearnedTask(threshold=1.0)


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Push-T world with 6 true starts."""
    folder = tmp_path_factory.mktemp("worlds") / "tiny"
    build_tiny_model().save_pretrained(str(folder))
    real_starts(6).save(folder / "starts.npz")
    (folder / "README.md").write_text("# tiny\nRandom weights, for tests.\n")
    return folder


@pytest.fixture
def tiny_model() -> VideoWAM:
    """A random VideoWAM."""
    return build_tiny_model()


@pytest.fixture
def dot_model() -> DotWorld:
    """The exact world; its class is ``type(dot_model)``, to break in one place or another."""
    spec = WorldSpec("dot", 32, 32, ("right", "down"), ("half frames",) * 2, (0.1, 0.1), 10.0, 3)
    return DotWorld(spec=asdict(spec)).eval()


@pytest.fixture
def dot_world(dot_model: DotWorld) -> World:
    """The exact world with 8 starts on a ring of radius 0.6, so that none begins at its end."""
    angle = torch.linspace(0, 2 * np.pi, 9)[:8]
    places = 0.6 * torch.stack([angle.cos(), angle.sin()], 1)
    frame = dot_model.decode(DotState(places, torch.zeros(8))).numpy()
    dot_model.decoded = 0
    starts = Starts(
        np.repeat(frame[:, None], 2, 1), np.zeros((8, 1, 2), np.float32), places.numpy()[:, None].repeat(2, 1)
    )
    return World(dot_model, starts)


@pytest.fixture
def pushes() -> Callable[..., np.ndarray]:
    """``pushes(*shape, seed=0)``: random actions ``(*shape, 2)``."""

    def draw(*shape: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).uniform(-1, 1, (*shape, 2)).astype(np.float32)

    return draw
