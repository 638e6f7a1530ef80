"""Small worlds for tests: a random VideoWAM in a folder, as a shipped world is, and an exact world whose every number
is known.
"""

from __future__ import annotations

import neuralsim  # noqa: F401  (first: it says how torch's threads are to wait, before torch is loaded)

# isort: split
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import hypothesis
import numpy as np
import pytest
import torch
from diffusers.configuration_utils import register_to_config

from neuralsim.agents.collection.collect import CollectConfig, collect
from neuralsim.models.video_wam import CodecConfig, StreamConfig, VideoWAM
from neuralsim.noise import Noise
from neuralsim.pretrained.starts import Starts
from neuralsim.pretrained.world import World
from neuralsim.spec import WorldSpec
from neuralsim.task import LearnedTask
from neuralsim.training.config import TrainConfig
from neuralsim.training.trainer import train
from neuralsim.world_model import State, WorldModel

# Shared machines stall: an example may take long without being wrong.
hypothesis.settings.register_profile("neuralsim", deadline=None)
hypothesis.settings.load_profile("neuralsim")

HISTORY = 4
"""Frames in each start of the small worlds."""


def build_tiny_model() -> VideoWAM:
    """A random VideoWAM that answers in milliseconds. The one place in the tests that knows the model's sizes."""
    from neuralsim.envs.pusht.env import pusht_spec

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VideoWAM.build(
            pusht_spec(),
            CodecConfig(tokens=2, size=8, conv_width=8),
            StreamConfig(width=32, layers=2, heads=2, window=3),
        )
        # A fresh model hardly answers: layers begin near zero, and an untrained decoder draws all things grey.
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
            elif parameter.ndim == 2 and parameter.std() < 0.1:
                torch.nn.init.normal_(parameter, std=0.2)
            elif parameter.ndim == 4 and "decoder" in name:
                parameter.data.mul_(3)
    return model.eval().requires_grad_(False)


def true_starts(count: int, seed: int = 0) -> Starts:
    """``count`` histories of HISTORY frames from the true simulator under random actions."""
    from neuralsim.envs.pusht.env import PushTRealEnv

    env = PushTRealEnv()
    rng = np.random.default_rng(seed)
    frames, actions, states = [], [], []
    for i in range(count):
        frame, _ = env.reset(seed=seed + i)
        history, moves, poses = [frame], [], [env.state()]
        for _ in range(HISTORY - 1):
            moves.append(rng.uniform(-1, 1, 2).astype(np.float32))
            env.step(moves[-1])
            env.set_state(env.state().astype(np.float32))  # as it is stored, so that frame and state agree to the bit
            history.append(env.render())
            poses.append(env.state())
        frames.append(history)
        actions.append(moves)
        states.append(poses)
    env.close()
    return Starts(
        np.array(frames), np.array(actions), np.array(states, np.float32), np.arange(seed, seed + count, dtype=np.int64)
    )


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
    true_starts(6).save(folder / "starts.npz")
    (folder / "README.md").write_text("# tiny\nRandom weights, for tests.\n")
    return folder


@pytest.fixture
def tiny_model() -> VideoWAM:
    """A random VideoWAM."""
    return build_tiny_model()


@dataclass(frozen=True)
class DotState(State):
    """A dot's place ``(b, 2)`` in [-1, 1] and how far it has gone ``(b,)``."""

    place: torch.Tensor
    gone: torch.Tensor


class DotWorld(WorldModel):
    """An exact world: a white dot moves a tenth of the action per step, and a little by chance.

    Reward is minus the distance to the middle, the episode ends within 0.15 of it, and uncertainty is the way gone so
    far.
    """

    head_names: ClassVar[tuple[str, ...]] = ("reward", "terminated")

    @register_to_config
    def __init__(self, spec: dict[str, Any], jitter: float = 0.01) -> None:
        super().__init__()
        self.spec = WorldSpec(**spec)
        self.gain = torch.nn.Parameter(torch.tensor(0.1), requires_grad=False)
        self.jitter = jitter
        self.decoded = 0

    @property
    def feature_size(self) -> int:
        return 2

    def encode(self, frames: torch.Tensor, actions: torch.Tensor) -> DotState:
        bright = frames[:, -1].float().mean(-1)
        rows = torch.linspace(-1, 1, self.spec.height, device=frames.device)
        columns = torch.linspace(-1, 1, self.spec.width, device=frames.device)
        total = bright.sum((1, 2)) + 1e-6
        x, y = (bright.sum(1) * columns).sum(1) / total, (bright.sum(2) * rows).sum(1) / total
        return DotState(torch.stack([x, y], 1), torch.zeros_like(x))

    def step(self, state: DotState, action: torch.Tensor, rng: Noise) -> DotState:  # type: ignore[override]
        move = self.gain * action + self.jitter * rng.normal(2)
        return DotState((state.place + move).clamp(-1, 1), state.gone + move.norm(dim=1))

    def features(self, state: DotState) -> torch.Tensor:  # type: ignore[override]
        return state.place

    def decode(self, state: DotState) -> torch.Tensor:  # type: ignore[override]
        self.decoded += 1
        rows = torch.linspace(-1, 1, self.spec.height, device=state.place.device)
        columns = torch.linspace(-1, 1, self.spec.width, device=state.place.device)
        x, y = state.place[:, 0, None], state.place[:, 1, None]
        light = torch.exp(-200 * (columns - x) ** 2)[:, None, :] * torch.exp(-200 * (rows - y) ** 2)[:, :, None]
        return (255 * light).round().to(torch.uint8)[..., None].expand(-1, -1, -1, 3).contiguous()

    def uncertainty(self, state: DotState) -> torch.Tensor:  # type: ignore[override]
        return state.gone

    def read(self, state: DotState) -> dict[str, torch.Tensor]:  # type: ignore[override]
        distance = state.place.norm(dim=1)
        return {"reward": -distance, "terminated": (distance < 0.15).float()}


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
