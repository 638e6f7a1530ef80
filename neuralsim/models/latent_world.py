"""LatentWorld: the compact world. One vector per frame, learned without redrawing pixels, and a small predictor of it.

An encoder makes a vector of a frame (or of the newest few, where one frame does not show the whole state); a predictor
says what it becomes after any prefix of a block of actions, in one pass. Encoder and predictor are learned together:
the predictor's guess must meet the encoder's vector of the true later frame, and a regulariser keeps the vectors spread
like a standard normal, or all frames would collapse to one point. Where true states are known, a linear probe of the
vector must tell them. Several predictors dream side by side, each its own future: how far they have come apart is the
doubt. A decoder, trained apart, lets people look.
Sources: LeWM and SIGReg (Balestriero and LeCun 2025, arXiv 2511.08544), prefix prediction (Fast-LeWM, 2606.26217),
ensembles of dreams (PETS, Chua et al. 2018, 1805.12114).
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
from neuralsim.world_model import State, WorldModel, stack_time

CHANGE = 0.1
"""What one unit of the predictor's output means, in standard deviations: vectors change little from block to block."""


@dataclass(frozen=True)
class LatentConfig:
    """Sizes of a compact world: numbers per vector, keypoints and convolution width of the encoder, frames it stacks;
    width, depth and number of the predictors, and how many actions they take at once."""

    size: int = 24
    keypoints: int = 16
    conv_width: int = 48
    stack: int = 1
    width: int = 256
    depth: int = 3
    members: int = 3
    block: int = 5


@dataclass(frozen=True)
class LatentState(State):
    """vectors ``(b m d)``: what each of the m predictors believes. strange ``(b,)``: by how much redrawing the frame that the
    dream began with went wrong beyond what is known, in units of that."""

    vectors: torch.Tensor
    strange: torch.Tensor


class Predictors(nn.Module):
    """``members`` MLPs side by side: a vector and a prefix of a block of actions -> the vector after them."""

    def __init__(self, size: int, actions: int, width: int, depth: int, members: int, block: int) -> None:
        super().__init__()
        self.block = block
        self.sizes = [(size * (1 + 2 * OCTAVES) + block * (actions + 1), width)]
        self.sizes += [(width, width)] * (2 * depth) + [(width, size)]
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(members, i, o)) for i, o in self.sizes)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, o)) for _, o in self.sizes)
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
        """vectors ``(b m d)``, actions ``(b block a)``, of which the first ``length`` ``(b,)`` count -> ``(b m d)``."""
        at = torch.arange(self.block, device=length.device)
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
    """See the module's text. Its dreams are functions of start and actions alone."""

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
        # What a line cannot tell of the state: learned after the vectors, which the linear probe alone has shaped.
        self.state_head = Readout(sizes.size, len(self.probe.mean), 128) if state_names else None
        if self.state_head is not None:
            nn.init.zeros_(self.state_head.net[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.state_head.net[-1].bias)  # type: ignore[arg-type]
        self.brush = nn.Sequential(nn.Linear(sizes.size, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU())
        self.brush.append(nn.Linear(256, 2 * sizes.keypoints))
        self.drawing = KeypointDecoder(sizes.keypoints, sizes.conv_width, shape)
        # Measured on training data: the median frame, and the mean and spread of each number of the vector.
        self.register_buffer("background", torch.zeros(3, *shape))
        self.register_buffer("mean", torch.zeros(sizes.size))
        self.register_buffer("std", torch.ones(sizes.size))
        # What the decoder gets wrong on all but one in a thousand training frames, in grey levels.
        self.register_buffer("redraw_limit", torch.tensor(float("inf")))
        # Calibrated on held-out dreams (see neuralsim.evaluation.evaluate): beyond this, ``uncertainty`` counts as "does not know".
        self.register_buffer("uncertainty_threshold", torch.tensor(float("inf")))
        for part in (self.eye, self.drawing):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def build(cls, spec: WorldSpec, config: LatentConfig, state_names: tuple[str, ...]) -> LatentWorld:
        """A fresh model from typed configs; its ``spec`` asks for as much context as it stacks frames."""
        own = replace(spec, context=config.stack)
        return cls(spec=asdict(own), latent_config=asdict(config), state_names=list(state_names))

    # -- the contract

    @property
    def feature_size(self) -> int:
        """Numbers per vector."""
        return self.sizes.size

    @property
    def block(self) -> int:
        """How many actions one pass takes."""
        return self.sizes.block

    def encode(self, frames: torch.Tensor, actions: torch.Tensor) -> LatentState:
        """See WorldModel. Only the newest ``stack`` frames are read; a shorter history is padded with its first frame."""
        stacked = self.stacked(frames)
        vectors = self.standard(self.raw(stacked))
        # A frame that cannot be redrawn is a frame the model does not know: doubt begins there.
        strange = (self.redraw_error(stacked[:, -1], vectors) / self.redraw_limit - 1).clamp(min=0)
        return LatentState(vectors[:, None].repeat(1, self.sizes.members, 1), strange)

    def step(self, state: LatentState, action: torch.Tensor, rng: Noise) -> LatentState:  # type: ignore[override]
        """See WorldModel."""
        return self.unroll_last(state, action[:, None], rng)

    def unroll_last(self, state: LatentState, actions: torch.Tensor, rng: Noise) -> LatentState:  # type: ignore[override]
        """See WorldModel: one pass per ``block`` actions."""
        for i in range(0, actions.shape[1], self.block):
            state = replace(state, vectors=self.hop(state.vectors, actions[:, i : i + self.block]))
        return state

    def unroll(self, state: LatentState, actions: torch.Tensor, rng: Noise) -> LatentState:  # type: ignore[override]
        """See WorldModel: all prefixes of a block of actions in one pass."""
        states: list[LatentState] = []
        for i in range(0, actions.shape[1], self.block):
            part = actions[:, i : i + self.block]
            b, k, _ = part.shape
            padded = self._padded(part).repeat_interleave(k, 0)
            length = torch.arange(1, k + 1, device=part.device).repeat(b)
            made = self.predictors(state.vectors.repeat_interleave(k, 0), padded, length).unflatten(0, (b, k))
            states += [replace(state, vectors=made[:, j]) for j in range(k)]
            state = states[-1]
        return stack_time(states)

    def without_ensemble(self, state: LatentState) -> LatentState:  # type: ignore[override]
        """The first member alone: a third of the work. Measured on Push-T: plans made with it are as good."""
        return replace(state, vectors=state.vectors[:, :1])

    def features(self, state: LatentState) -> torch.Tensor:  # type: ignore[override]
        """The mean of the members' vectors, in standard deviations of the data."""
        return state.vectors.mean(1).float()

    def decode(self, state: LatentState) -> torch.Tensor:  # type: ignore[override]
        """See WorldModel. Draws the first member's dream: a mean of several futures is none of them."""
        return to_frames(self.draw(state.vectors[:, 0]))

    def uncertainty(self, state: LatentState) -> torch.Tensor:  # type: ignore[override]
        """Root-mean-square spread of the members' vectors around their mean, in standard deviations of the data.

        A history whose last frame cannot be redrawn starts with as much doubt as its redrawing error exceeds the known
        limit."""
        return state.vectors.float().var(1, correction=0).mean(-1).sqrt() + state.strange

    def read(self, state: LatentState) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """reward and terminated (probability)."""
        out = self.reward_head(self.features(state)).float()
        return {"reward": out[:, 0], "terminated": torch.sigmoid(out[:, 1])}

    def read_state(self, state: LatentState) -> torch.Tensor:  # type: ignore[override]
        """See WorldModel; a TypeError where training knew no states."""
        if self.state_head is None:
            return super().read_state(state)
        return self.probe.state(self.told(self.features(state)))

    def told(self, vectors: torch.Tensor) -> torch.Tensor:
        """What probe and state head together say of vectors ``(b d)``: ``(b wide)`` in standard deviations."""
        assert self.state_head is not None
        return self.probe.told(vectors).float() + self.state_head(vectors).float()

    # -- what training takes apart

    def hop(self, vectors: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """The members' vectors ``(b m d)`` after ``actions`` ``(b k a)``, at most ``block`` of them."""
        length = torch.full((len(actions),), actions.shape[1], device=actions.device)
        return self.predictors(vectors, self._padded(actions), length)

    def _padded(self, actions: torch.Tensor) -> torch.Tensor:
        """``(b k a)`` as the predictors read them, with nothing after the last: ``(b block action_width)``."""
        return F.pad(encode_actions(self.spec, actions), (0, 0, 0, self.block - actions.shape[1]))

    def stacked(self, frames: torch.Tensor) -> torch.Tensor:
        """``(b t h w c)`` -> the newest ``stack`` of them, the first one repeated where there are fewer."""
        missing = self.sizes.stack - frames.shape[1]
        if missing > 0:
            frames = torch.cat([frames[:, :1].expand(-1, missing, -1, -1, -1), frames], 1)
        return frames[:, -self.sizes.stack :]

    def raw(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 ``(b stack h w c)`` -> vectors ``(b d)`` before standardising."""
        places = self.eye(to_pixels(frames.flatten(0, 1)) - self.background).reshape(len(frames), -1)
        return (self.direct(places) + self.mix(places)).float()

    def standard(self, raw: torch.Tensor) -> torch.Tensor:
        """Vectors in standard deviations of the data."""
        return (raw - self.mean) / self.std

    def redraw_error(self, frames: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """Root-mean-square error ``(b,)`` in grey levels of drawing ``frames`` uint8 ``(b h w c)`` from their ``vectors``."""
        return (to_frames(self.draw(vectors)).float() - frames.float()).square().mean((1, 2, 3)).sqrt()

    def draw(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors ``(b d)`` -> pixels ``(b 3 h w)`` in [-1, 1]."""
        places = self.brush(vectors).float().view(len(vectors), -1, 2)
        return self.drawing(places) + self.background


def sigreg(vectors: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """How far the rows of ``vectors`` ``(b d)`` are from a standard normal, seen along unit ``directions`` ``(d n)``.

    The Epps-Pulley distance of characteristic functions at 17 knots in [0, 3], as SIGReg weighs it (2511.08544).
    """
    knots = torch.linspace(0, 3, 17, device=vectors.device)
    normal = torch.exp(-0.5 * knots.square())
    weight = torch.full_like(knots, 2 * 3 / 16) * normal
    weight[0] = weight[0] / 2
    weight[-1] = weight[-1] / 2
    seen = (vectors @ directions)[..., None] * knots
    off = (seen.cos().mean(0) - normal).square() + seen.sin().mean(0).square()
    return len(vectors) * (off * weight).sum(-1).mean()


def effective_rank(vectors: torch.Tensor) -> torch.Tensor:
    """exp of the entropy of the normalised singular values of ``vectors`` ``(b d)``: how many directions they use
    (Roy and Vetterli 2007). Falls towards 1 where they collapse."""
    values = torch.linalg.svdvals(vectors.float() - vectors.float().mean(0))
    share = values / values.sum().clamp(min=1e-12)
    return torch.exp(-(share * (share + 1e-12).log()).sum())
