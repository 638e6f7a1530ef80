"""LatentWorld: the compact world. One vector per frame, learned without redrawing pixels, and a small predictor of it.

An encoder maps a frame (or the newest few, where one frame does not show the whole state) to a vector; a predictor maps it to
the vector after any prefix of a block of actions, in one pass. Both are trained together: the prediction must match the
encoder's vector of the real later frame, and a regulariser keeps the vectors spread like a standard normal, or all frames
would collapse to one point. Where simulator states are known, a linear probe must predict them. An ensemble of predictors rolls
out separate futures; their spread is the uncertainty. A decoder, trained separately, draws frames for people.
Sources: LeWM and SIGReg (Balestriero and LeCun 2025, arXiv 2511.08544), prefix prediction (Fast-LeWM, 2606.26217),
ensembles of rollouts (PETS, Chua et al. 2018, 1805.12114).
Shapes: vectors ``(b d)``, the members' ``(b m d)``, actions ``(b k a)``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import nn

from neuralsim.models.action_encoding import encode_actions
from neuralsim.models.codec import to_frames, to_pixels
from neuralsim.models.keypoint_codec import KeypointDecoder, KeypointEncoder
from neuralsim.models.prediction_heads import Readout, StateProbe
from neuralsim.models.token_stream import OCTAVES, fourier
from neuralsim.noise import Noise
from neuralsim.spec import WorldSpec
from neuralsim.world_model import State, WorldModel, check_sizes, stack_time

CHANGE = 0.1
"""Scale of the predictor's output, in standard deviations: vectors change little from block to block."""


@dataclass(frozen=True)
class LatentConfig:
    """Sizes of a compact world."""

    size: int = 24
    """Numbers per vector."""
    keypoints: int = 16
    """Keypoints of the encoder."""
    conv_width: int = 48
    """Width of the encoder's convolutions."""
    stack: int = 1
    """Frames that the encoder stacks."""
    width: int = 256
    """Width of the predictors."""
    depth: int = 3
    """Residual layers of the predictors."""
    members: int = 3
    """Predictors in the ensemble."""
    block: int = 5
    """Actions that a predictor takes at once."""

    def __post_init__(self) -> None:
        check_sizes(self, size=65536, keypoints=65536, conv_width=4096, stack=1024)
        check_sizes(self, width=65536, depth=1024, members=1024, block=1024)


@dataclass(frozen=True)
class LatentState(State):
    """State of a LatentWorld rollout."""

    vectors: torch.Tensor
    """Vector of each of the m predictors, ``(b m d)``."""
    novelty: torch.Tensor
    """Excess of the first frame's reconstruction error over the limit known from training, in units of that, ``(b,)``."""


class Predictors(nn.Module):
    """``members`` MLPs in parallel, from a vector and a prefix of a block of actions to the vector after them."""

    def __init__(self, size: int, actions: int, width: int, depth: int, members: int, block: int) -> None:
        super().__init__()
        self.block = block
        self.sizes = [(size * (1 + 2 * OCTAVES) + block * (actions + 1), width)]
        self.sizes += [(width, width)] * (2 * depth) + [(width, size)]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(members, i, o, dtype=torch.float32)) for i, o in self.sizes
        )
        self.biases = nn.ParameterList(
            nn.Parameter(torch.zeros(members, 1, o, dtype=torch.float32)) for _, o in self.sizes
        )
        for k, weight in enumerate(self.weights):
            nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]))
            if k and k % 2 == 0:  # the second of each residual pair: small, so that depth does not add up
                with torch.no_grad():
                    weight.mul_(0.1)
        nn.init.zeros_(self.weights[-1])

    def _linear(self, k: int, x: torch.Tensor) -> torch.Tensor:
        m = len(x)  # the first m members, where a state has fewer
        return torch.baddbmm(self.biases[k][:m].to(x.dtype), x, self.weights[k][:m].to(x.dtype))

    def forward(self, vectors: torch.Tensor, actions: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Predict vectors ``(b m d)`` from those before and the first ``length`` ``(b,)`` of actions ``(b block a)``."""
        at = torch.arange(self.block, dtype=torch.int64, device=length.device)
        counts = (at < length[:, None]).to(vectors.dtype)
        last = (at == length[:, None] - 1).to(vectors.dtype)
        given = torch.cat([(actions * counts[..., None]).flatten(1), last], 1)
        joined = torch.cat([fourier(vectors), given[:, None].expand(-1, vectors.shape[1], -1)], -1)
        x = joined.transpose(0, 1)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        x = self._linear(0, x)
        for k in range(1, len(self.sizes) - 1, 2):
            x = x + self._linear(k + 1, F.silu(self._linear(k, F.silu(x))))
        change = self._linear(len(self.sizes) - 1, F.silu(x)).float().transpose(0, 1)
        return vectors + CHANGE * change


class LatentWorld(WorldModel):
    """Compact world model on vectors. Its rollouts are functions of start and actions alone."""

    head_names: ClassVar[tuple[str, ...]] = ("reward", "terminated")
    background: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    redraw_limit: torch.Tensor
    uncertainty_threshold: torch.Tensor

    @register_to_config
    def __init__(self, spec: dict[str, Any], latent_config: dict[str, Any], state_names: list[str]) -> None:
        super().__init__()
        self.spec = WorldSpec(**spec)
        self.sizes = sizes = LatentConfig(**latent_config)
        shape = (self.spec.height, self.spec.width)
        places = 2 * sizes.keypoints * sizes.stack
        self.eye = KeypointEncoder(sizes.keypoints, sizes.conv_width, shape)
        self.mix = nn.Sequential(
            nn.Linear(places, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, sizes.size)
        )
        self.direct = nn.Linear(places, sizes.size)
        self.predictors = Predictors(
            sizes.size, self.spec.action_width, sizes.width, sizes.depth, sizes.members, sizes.block
        )
        self.probe = StateProbe(sizes.size, state_names)
        self.reward_head = Readout(sizes.size, 2, 256)
        # The non-linear rest of the state: learned after the vectors, which the linear probe alone has shaped.
        self.state_head = Readout(sizes.size, len(self.probe.mean), 128) if state_names else None
        if self.state_head is not None:
            nn.init.zeros_(self.state_head.net[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.state_head.net[-1].bias)  # type: ignore[arg-type]
        self.brush = nn.Sequential(nn.Linear(sizes.size, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU())
        self.brush.append(nn.Linear(256, 2 * sizes.keypoints))
        self.drawing = KeypointDecoder(sizes.keypoints, sizes.conv_width, shape)
        # Measured on training data: the median frame, mean and standard deviation of each number of the vector.
        self.register_buffer("background", torch.zeros(3, *shape, dtype=torch.float32))
        self.register_buffer("mean", torch.zeros(sizes.size, dtype=torch.float32))
        self.register_buffer("std", torch.ones(sizes.size, dtype=torch.float32))
        # Reconstruction error that one in a thousand training frames exceeds, in grey levels.
        self.register_buffer("redraw_limit", torch.tensor(float("inf"), dtype=torch.float32))
        # Calibrated on held-out rollouts (see neuralsim.evaluation.evaluate): beyond it a state is out of distribution.
        self.register_buffer("uncertainty_threshold", torch.tensor(float("inf"), dtype=torch.float32))
        for part in (self.eye, self.drawing):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.float()

    @classmethod
    def build(cls, spec: WorldSpec, config: LatentConfig, state_names: tuple[str, ...]) -> LatentWorld:
        """Make an untrained model from typed configs; the context of its ``spec`` is the number of stacked frames."""
        own = replace(spec, context=config.stack)
        return cls(spec=asdict(own), latent_config=asdict(config), state_names=list(state_names))

    # -- the contract

    @property
    def feature_size(self) -> int:
        """Numbers per vector."""
        return self.sizes.size

    @property
    def block(self) -> int:
        """Actions per pass."""
        return self.sizes.block

    def encode(self, frames: torch.Tensor, actions: torch.Tensor) -> LatentState:
        """Encode the newest ``stack`` frames; a shorter history is padded with its first frame."""
        stacked = self.stack_frames(frames)
        vectors = self.standardize(self.encode_raw(stacked))
        # A frame that cannot be reconstructed is out of distribution: uncertainty begins there.
        novelty = (self.reconstruction_error(stacked[:, -1], vectors) / self.redraw_limit - 1).clamp(min=0)
        return LatentState(vectors[:, None].repeat(1, self.sizes.members, 1), novelty)

    def step(self, state: LatentState, action: torch.Tensor, noise: Noise) -> LatentState:  # type: ignore[override]
        return self.unroll_last(state, action[:, None], noise)

    def unroll_last(self, state: LatentState, actions: torch.Tensor, noise: Noise) -> LatentState:  # type: ignore[override]
        """Take one pass per ``block`` actions."""
        encoded = encode_actions(self.spec, actions)
        for i in range(0, actions.shape[1], self.block):
            state = replace(state, vectors=self.predict_block(state.vectors, encoded[:, i : i + self.block]))
        return state

    def unroll(self, state: LatentState, actions: torch.Tensor, noise: Noise) -> LatentState:  # type: ignore[override]
        """Predict all prefixes of a block of actions in one pass."""
        return self.unroll_encoded(state, encode_actions(self.spec, actions))

    def unroll_encoded(self, state: LatentState, encoded: torch.Tensor) -> LatentState:
        """``unroll`` with encoded actions ``(b k action_width)``."""
        states: list[LatentState] = []
        for i in range(0, encoded.shape[1], self.block):
            part = encoded[:, i : i + self.block]
            b, k, _ = part.shape
            padded = self._padded(part).repeat_interleave(k, 0)
            length = torch.arange(1, k + 1, dtype=torch.int64, device=part.device).repeat(b)
            made = self.predictors(state.vectors.repeat_interleave(k, 0), padded, length).unflatten(0, (b, k))
            states += [replace(state, vectors=made[:, j]) for j in range(k)]
            state = states[-1]
        return stack_time(states)

    def without_ensemble(self, state: LatentState) -> LatentState:  # type: ignore[override]
        """Keep the first member alone: a third of the work. Measured on Push-T: plans made with it are as good."""
        return replace(state, vectors=state.vectors[:, :1])

    def features(self, state: LatentState) -> torch.Tensor:  # type: ignore[override]
        """Return the mean of the members' vectors, in standard deviations of the data."""
        return state.vectors.mean(1).float()

    def decode(self, state: LatentState) -> torch.Tensor:  # type: ignore[override]
        """Decode the first member's rollout: a mean of several futures is none of them."""
        return to_frames(self.draw(state.vectors[:, 0]))

    def uncertainty(self, state: LatentState) -> torch.Tensor:  # type: ignore[override]
        """Return the root-mean-square spread of the members' vectors around their mean, in standard deviations of the data, plus
        the novelty of the first frame."""
        return state.vectors.float().var(1, correction=0).mean(-1).sqrt() + state.novelty

    def read(self, state: LatentState) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """Predict reward and terminated (probability)."""
        out = self.reward_head(self.features(state)).float()
        return {"reward": out[:, 0], "terminated": torch.sigmoid(out[:, 1])}

    def read_state(self, state: LatentState) -> torch.Tensor:  # type: ignore[override]
        if self.state_head is None:
            return super().read_state(state)
        return self.probe.to_states(self.predict_standardized(self.features(state)))

    def predict_standardized(self, vectors: torch.Tensor) -> torch.Tensor:
        """Predict states from vectors ``(b d)`` by probe and state head together: ``(b wide)`` in standard deviations."""
        assert self.state_head is not None
        return self.probe.predict_standardized(vectors).float() + self.state_head(vectors).float()

    # -- parts that training uses

    def predict_block(self, vectors: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        """Return the members' vectors ``(b m d)`` after at most ``block`` ``encoded`` actions ``(b k action_width)``."""
        length = torch.full((len(encoded),), encoded.shape[1], dtype=torch.int64, device=encoded.device)
        return self.predictors(vectors, self._padded(encoded), length)

    def _padded(self, encoded: torch.Tensor) -> torch.Tensor:
        """Pad encoded actions ``(b k action_width)`` to a whole block."""
        return F.pad(encoded, (0, 0, 0, self.block - encoded.shape[1]))

    def stack_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the newest ``stack`` of frames ``(b t h w c)``, the first one repeated where there are fewer."""
        missing = self.sizes.stack - frames.shape[1]
        if missing > 0:
            frames = torch.cat([frames[:, :1].expand(-1, missing, -1, -1, -1), frames], 1)
        return frames[:, -self.sizes.stack :]

    def encode_raw(self, frames: torch.Tensor) -> torch.Tensor:
        """Encode frames uint8 ``(b stack h w c)`` to vectors ``(b d)``, not standardised."""
        positions = self.eye(to_pixels(frames.flatten(0, 1)) - self.background).reshape(len(frames), -1)
        return (self.direct(positions) + self.mix(positions)).float()

    def standardize(self, raw: torch.Tensor) -> torch.Tensor:
        """Convert vectors to standard deviations of the data."""
        return (raw - self.mean) / self.std

    def reconstruction_error(self, frames: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """Return the root-mean-square error ``(b,)`` in grey levels of decoding ``frames`` uint8 ``(b h w c)`` from ``vectors``."""
        return (to_frames(self.draw(vectors)).float() - frames.float()).square().mean((1, 2, 3)).sqrt()

    def draw(self, vectors: torch.Tensor) -> torch.Tensor:
        """Decode vectors ``(b d)`` to pixels ``(b 3 h w)`` in [-1, 1]."""
        positions = self.brush(vectors).float().view(len(vectors), -1, 2)
        return self.drawing(positions) + self.background


def sigreg(vectors: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Return the distance of the rows of ``vectors`` ``(b d)`` from a standard normal, along unit ``directions`` ``(d n)``.

    The Epps-Pulley distance of characteristic functions at 17 points in [0, 3], weighted as in SIGReg (2511.08544).
    """
    points = torch.linspace(0, 3, 17, dtype=torch.float32, device=vectors.device)
    normal = torch.exp(-0.5 * points.square())
    weight = torch.full_like(points, 2 * 3 / 16) * normal
    weight[0] = weight[0] / 2
    weight[-1] = weight[-1] / 2
    angle = (vectors @ directions)[..., None] * points
    off = (angle.cos().mean(0) - normal).square() + angle.sin().mean(0).square()
    return len(vectors) * (off * weight).sum(-1).mean()


def effective_rank(vectors: torch.Tensor) -> torch.Tensor:
    """Return the number of directions that ``vectors`` ``(b d)`` use: exp of the entropy of their normalised singular values (Roy
    and Vetterli 2007). It falls towards 1 where they collapse."""
    values = torch.linalg.svdvals(vectors.float() - vectors.float().mean(0))
    share = values / values.sum().clamp(min=1e-12)
    return torch.exp(-(share * (share + 1e-12).log()).sum())
