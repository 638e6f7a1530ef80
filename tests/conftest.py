"""Small worlds for tests: a random VideoWAM in a folder, as a shipped world is, and an exact world whose every number
is known.
"""

from __future__ import annotations

import neuralsim  # noqa: F401  (first: it says how torch's threads are to wait, before torch is loaded)

# isort: split
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from dot_world import DotState, DotWorld
from shared_build import shared_build
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


def _collect(**settings: Any) -> None:
    for _ in collect(CollectConfig(workers=1, **settings)):
        pass


@pytest.fixture(scope="session")
def store() -> Path:
    """44 short episodes of Push-T, three of them held out; not to be written to."""
    return shared_build("store", lambda folder: _collect(out=folder, episodes=44, steps=30))


@pytest.fixture(scope="session")
def demonstrations() -> Path:
    """21 short episodes of Push-T's expert; not to be written to."""
    more: dict[str, Any] = {"policy": "oracle", "near_goal": 0.0, "seed": 3}
    return shared_build("demonstrations", lambda folder: _collect(out=folder, episodes=21, steps=16, **more))


@pytest.fixture(scope="session")
def wam(store: Path, demonstrations: Path) -> Path:
    """A miniature world action model in all roles, trained in seconds; not to be written to."""
    config = TrainConfig(recipe="pusht-wam-mini", data=store, also=(demonstrations,), threads=1)
    return shared_build("wam", lambda folder: train(replace(config, out=folder))) / "world"


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
