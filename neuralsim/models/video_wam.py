"""VideoWAM: the token-stream world action model.

A codec gives each frame a few latent tokens; a block-causal transformer denoises the tokens of the next frame (or the
next k together) given past frames and all actions. The network predicts clean tokens (x-prediction) under flow
matching, ``x_level = (1 - level) * x + level * noise``, so one denoising step from pure noise is a direct prediction
and more steps refine it. Past keys and values are cached over a sliding window: a step costs the newest past frame
plus the new one. Sources: diffusion forcing (arXiv 2407.01392), flow matching (arXiv 2210.02747).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import nn

from neuralsim.models.action_encoding import EncodedActions, encode_actions
from neuralsim.models.codec import Codec
from neuralsim.models.conv_codec import ConvCodec
from neuralsim.models.joint_stream import JointConfig, JointStream
from neuralsim.models.keypoint_codec import KeypointCodec
from neuralsim.models.prediction_heads import Readout, StateProbe
from neuralsim.models.token_stream import TokenStream, anchors
from neuralsim.noise import Noise
from neuralsim.spec import WorldSpec
from neuralsim.world_model import State, WorldModel, check_denoise_steps, check_sizes, stack_time

MOST_ERROR = 4.0
"""Predicted errors are clamped to this, in standard deviations, before they predict the next."""


@dataclass(frozen=True)
class CodecConfig:
    """Kind and sizes of a codec."""

    tokens: int = 1
    """Tokens per frame."""
    size: int = 32
    """Numbers per token, two per keypoint."""
    conv_width: int = 64
    """Width of the convolutions."""
    kind: Literal["keypoints", "conv"] = "keypoints"
    """Keypoints for a fixed camera, convolutions for a moving one."""

    def __post_init__(self) -> None:
        check_sizes(self, tokens=4096, size=65536, conv_width=4096)


CODECS: dict[str, type[KeypointCodec | ConvCodec]] = {"keypoints": KeypointCodec, "conv": ConvCodec}


@dataclass(frozen=True)
class StreamConfig:
    """Sizes of the transformer."""

    width: int = 256
    layers: int = 4
    heads: int = 4
    window: int = 4
    """Frames that a frame attends to, itself included."""

    def __post_init__(self) -> None:
        check_sizes(self, width=65536, layers=1024, heads=1024, window=1024)


@dataclass(frozen=True)
class VideoState(State):
    """State of a VideoWAM rollout."""

    tokens: torch.Tensor
    """Tokens of the newest frame, ``(b n d)``."""
    action: torch.Tensor
    """Encoded action that led to it, ``(b action_width)``."""
    led: torch.Tensor
    """bool ``(b,)``: that action exists and is known."""
    cache: torch.Tensor
    """Keys and values of the frames before it, ``(b layers 2 heads p*(n+1) e)``."""
    age: torch.Tensor
    """int64 ``(b,)``: cached frames that are real."""
    error: torch.Tensor
    """Predicted distance from the real tokens, ``(b,)``."""
    unseen: torch.Tensor
    """int64 ``(b,)``: steps since the tokens were last encoded from a frame."""


class VideoWAM(WorldModel):
    """World action model on tokens. ``denoise_steps`` may be changed at any time; at 1 the noise has no influence, so a rollout is
    a function of its start and actions alone."""

    head_names: ClassVar[tuple[str, ...]] = ("reward", "terminated")

    @register_to_config
    def __init__(
        self,
        spec: dict[str, Any],
        codec_config: dict[str, Any],
        stream_config: dict[str, Any],
        denoise_steps: int = 1,
        look_every: int = 10,
        state_names: list[str] | None = None,
        joint_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if look_every < 1:
            raise ValueError(f"VideoWAM: look_every must be 1 or more, got {look_every}")
        check_denoise_steps(denoise_steps, "VideoWAM: denoise_steps")
        self.spec = WorldSpec(**spec)
        sizes, shape = CodecConfig(**codec_config), StreamConfig(**stream_config)
        if sizes.kind not in CODECS:
            raise ValueError(f"VideoWAM: no codec {sizes.kind!r}; there are {', '.join(CODECS)}")
        self.codec: Codec = CODECS[sizes.kind](
            self.spec.height, self.spec.width, sizes.tokens, sizes.size, sizes.conv_width
        )
        self.stream = TokenStream(sizes.tokens, sizes.size, self.spec.action_width, **asdict(shape))
        self.past = shape.window - 1
        self.reward_head = Readout(self.feature_size, 2, 256)
        self.probe = StateProbe(self.feature_size, state_names) if state_names else None
        self.state_head = Readout(self.feature_size, len(self.probe.mean), 256) if self.probe else None
        self.joint: JointStream | None = None
        self.value_head: Readout | None = None
        if joint_config is not None:
            sides = (sizes.tokens, sizes.size, self.spec.action_width, shape.width, shape.layers, shape.heads)
            self.joint = JointStream(*sides, JointConfig(**joint_config))
            self.value_head = Readout(self.feature_size, 1, 192)
        self.error_head = nn.Sequential(nn.Linear(shape.width + 1, 128), nn.SiLU(), nn.Linear(128, 1))
        # Calibrated on held-out rollouts (see neuralsim.evaluation.evaluate): beyond it a state is out of distribution.
        self.uncertainty_threshold: torch.Tensor
        # Reconstruction error of the codec that one in a thousand training frames exceeds, in grey levels.
        self.redraw_limit: torch.Tensor
        self.register_buffer("redraw_limit", torch.tensor(float("inf"), dtype=torch.float32))
        self.register_buffer("uncertainty_threshold", torch.tensor(float("inf"), dtype=torch.float32))
        self.denoise_steps = denoise_steps
        self.look_every = look_every
        self.float()

    @classmethod
    def build(
        cls,
        spec: WorldSpec,
        codec: CodecConfig,
        stream: StreamConfig,
        state_names: tuple[str, ...] = (),
        joint: JointConfig | None = None,
    ) -> VideoWAM:
        """Make an untrained model from typed configs: with ``state_names`` it learns to estimate these states, with ``joint`` to
        answer in all roles (see neuralsim.models.roles)."""
        return cls(
            spec=asdict(spec),
            codec_config=asdict(codec),
            stream_config=asdict(stream),
            state_names=list(state_names),
            joint_config=None if joint is None else asdict(joint),
        )

    @property
    def denoise_steps(self) -> int:
        """Denoising passes per frame, from 1 to MAX_DENOISE_STEPS; other values are a ValueError."""
        return self._denoise_steps

    @denoise_steps.setter
    def denoise_steps(self, steps: int) -> None:
        check_denoise_steps(steps)
        self._denoise_steps = int(steps)

    # -- the contract

    @property
    def packed(self) -> tuple[str, ...]:  # type: ignore[override]
        # Keypoints are accurate to a tenth of a pixel, and a rollout of 30 steps shows the loss of eight bits (Push-T's pusher 7 %
        # further off): the dynamics of keypoints stay in sixteen.
        return ("joint.",) if isinstance(self.codec, KeypointCodec) else ("joint.", "stream.blocks.")

    @property
    def feature_size(self) -> int:
        """Tokens times numbers per token."""
        return self.codec.tokens * self.codec.size

    def encode(self, frames: torch.Tensor, actions: torch.Tensor) -> VideoState:
        """Encode the newest ``window`` frames; earlier ones are not read."""
        keep = min(frames.shape[1], self.past + 1)
        frames = frames[:, frames.shape[1] - keep :]
        actions = actions[:, actions.shape[1] - (keep - 1) :] if keep > 1 else actions[:, :0]
        tokens = self.codec.encode(frames.flatten(0, 1)).unflatten(0, (len(frames), keep))
        # A frame that the codec cannot reconstruct is out of distribution: uncertainty begins there.
        excess = self.codec.reconstruction_error(frames[:, -1], tokens[:, -1]) / self.redraw_limit
        return self.start(tokens, EncodedActions(encode_actions(self.spec, actions)), (excess - 1).clamp(min=0))

    def start(self, tokens: torch.Tensor, actions: EncodedActions, error: torch.Tensor | None = None) -> VideoState:
        """Return the state after the last of ``tokens`` ``(b t n d)``, t at most ``window``, reached by t-1 ``actions``."""
        b, t, n, _ = tokens.shape
        stream = self.stream
        led = torch.full((b, t), self.reads(actions), dtype=torch.bool, device=tokens.device)
        # A window cut from a longer history has an action before its first frame too, which is not given.
        led[:, 0] = False
        into = torch.cat([tokens.new_zeros(b, 1, self.spec.action_width), actions.values.to(tokens.dtype)], 1)
        cache = tokens.new_zeros(
            b,
            stream.layers,
            2,
            stream.heads,
            self.past * (n + 1),
            stream.width // stream.heads,
            dtype=self._cache_dtype(),
        )
        if t > 1:
            levels = tokens.new_zeros(b, t - 1, n)
            _, _, own = stream(tokens[:, :-1], torch.zeros_like(tokens[:, :-1]), levels, into[:, :-1], led[:, :-1])
            cache = torch.cat([cache, own.to(cache.dtype)], -2)[..., -self.past * (n + 1) :, :]
        age = torch.full((b,), min(t - 1, self.past), dtype=torch.int64, device=tokens.device)
        if error is None:
            error = tokens.new_zeros(b)
        return VideoState(tokens[:, -1], into[:, -1], led[:, -1], cache, age, error, torch.zeros_like(age))

    def reads(self, actions: EncodedActions) -> bool:
        """Return True where the stream reads ``actions``: they are known, and the world has some."""
        return actions.known and self.spec.action_size > 0

    def step(self, state: VideoState, action: torch.Tensor, noise: Noise) -> VideoState:  # type: ignore[override]
        return self.denoise(state, EncodedActions(encode_actions(self.spec, action[:, None])), noise)[0]

    def unroll(self, state: VideoState, actions: torch.Tensor, noise: Noise) -> VideoState:  # type: ignore[override]
        """Denoise k frames together (k at most ``window - 1``; longer chunks in pieces)."""
        encoded = EncodedActions(encode_actions(self.spec, actions))
        states: list[VideoState] = []
        for i in range(0, actions.shape[1], self.past):
            part = self.denoise(state, encoded.steps(i, i + self.past), noise.advance(i))
            states += part
            state = part[-1]
        return stack_time(states)

    def features(self, state: VideoState) -> torch.Tensor:  # type: ignore[override]
        """Return the newest frame's tokens, flattened; ``codec.encode`` gives the same for a real frame."""
        return state.tokens.flatten(1).float()

    def decode(self, state: VideoState) -> torch.Tensor:  # type: ignore[override]
        return self.codec.decode(state.tokens)

    def uncertainty(self, state: VideoState) -> torch.Tensor:  # type: ignore[override]
        """Return the predicted mean absolute error of the tokens, in standard deviations of the data.

        It starts at the excess of the last frame's reconstruction error over the limit known from training."""
        return state.error.float()

    def read(self, state: VideoState) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """Predict reward (coverage) and terminated (probability of success)."""
        out = self.reward_head(self.features(state)).float()
        return {"reward": out[:, 0], "terminated": torch.sigmoid(out[:, 1])}

    def read_state(self, state: VideoState) -> torch.Tensor:  # type: ignore[override]
        if self.probe is None:
            return super().read_state(state)
        return self.probe.to_states(self.predict_standardized(self.features(state)))

    def predict_standardized(self, features: torch.Tensor) -> torch.Tensor:
        """Predict states from features ``(b d)`` by probe and state head together: ``(b wide)`` in standard deviations."""
        assert self.probe is not None
        assert self.state_head is not None
        return self.probe.predict_standardized(features).float() + self.state_head(features).float()

    def memory(self, state: VideoState) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the simulating stream's keys and values of the history, the newest frame included, ``(b layers 2 heads s e)``,
        and bool ``(b s)``, True where there are none."""
        clean, n = state.tokens[:, None], self.stream.tokens + 1
        none = torch.zeros_like(clean[..., 0])
        _, _, own = self.stream(
            clean, torch.zeros_like(clean), none, state.action[:, None], state.led[:, None], state.cache, state.age
        )
        kept = torch.cat([state.cache, own.to(state.cache.dtype)], -2)
        frame = torch.arange(kept.shape[-2], dtype=torch.int64, device=kept.device) // n
        return kept, frame[None] < self.past - state.age[:, None]

    # -- denoising

    def _cache_dtype(self) -> torch.dtype:
        kind = self.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32

    def step_without_history(self, state: VideoState, action: EncodedActions, noise: Noise) -> VideoState:
        """Take one step that reads the newest frame only and leaves the cache as it is: half the work, for training."""
        stream, b = self.stream, len(noise)
        x = noise.normal(stream.tokens * stream.size).view(b, 1, stream.tokens, stream.size)
        led = torch.full((b, 1), self.reads(action), dtype=torch.bool, device=x.device)
        clean, hidden, _ = stream(x, state.tokens[:, None], torch.ones_like(x[..., 0]), action.values, led)
        error = self._error(hidden[:, 0], state.error)
        return replace(state, tokens=clean[:, 0], action=action.values[:, 0], led=led[:, 0], error=error)

    def denoise(self, state: VideoState, actions: EncodedActions, noise: Noise) -> list[VideoState]:
        """Return the states after each of k ``actions``, k at most ``window - 1``, their frames denoised together."""
        stream = self.stream
        b, k, _ = actions.values.shape
        n, d = stream.tokens, stream.size
        flow = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
        flow.set_timesteps(sigmas=[1 - i / self.denoise_steps for i in range(self.denoise_steps)])
        x = torch.stack([noise.advance(i).normal(n * d) for i in range(k)], 1).view(b, k, n, d)
        # The newest past frame is processed beside the new ones; its keys and values are not in the cache yet.
        into = torch.cat([state.action[:, None], actions.values.to(state.action.dtype)], 1)
        new = torch.full((b, k), self.reads(actions), dtype=torch.bool, device=x.device)
        led = torch.cat([state.led[:, None], new], 1)
        clean = state.tokens[:, None]
        cache, age, hidden = state.cache, state.age, x
        for i, level in enumerate(flow.sigmas[:-1].tolist()):
            levels = x.new_full((b, k, n), level)
            before = anchors(clean[:, 0], x, levels)
            if i == 0:
                tokens, sources = torch.cat([clean, x], 1), torch.cat([torch.zeros_like(clean), before], 1)
                clean_x, hidden, own = stream(tokens, sources, F.pad(levels, (0, 0, 1, 0)), into, led, cache, age)
                clean_x, hidden = clean_x[:, 1:], hidden[:, 1:]
                cache = torch.cat([cache, own[..., : n + 1, :].to(cache.dtype)], -2)
                age = age + 1
            else:
                clean_x, hidden, _ = stream(x, before, levels, into[:, 1:], led[:, 1:], cache, age)
            velocity = (x - clean_x) / level
            x = flow.step(velocity, flow.timesteps[i], x, return_dict=False)[0] if self.denoise_steps > 1 else clean_x
        if k > 1:
            done = x[:, :-1]
            _, _, own = stream(
                done, torch.zeros_like(done), x.new_zeros(b, k - 1, n), into[:, 1:-1], led[:, 1:-1], cache, age
            )
            cache = torch.cat([cache, own.to(cache.dtype)], -2)
        width = self.past * (n + 1)
        states, error = [], state.error
        for j in range(k):
            end = cache.shape[-2] - (k - 1 - j) * (n + 1)
            error = self._error(hidden[:, j], error)
            states.append(
                VideoState(
                    tokens=x[:, j],
                    action=into[:, j + 1],
                    led=led[:, j + 1],
                    cache=cache[..., end - width : end, :],
                    age=(state.age + 1 + j).clamp(max=self.past),
                    error=error,
                    unseen=state.unseen + 1 + j,
                )
            )
        states[-1] = self._reencode(states[-1])
        return states

    def _reencode(self, state: VideoState) -> VideoState:
        """Decode and encode again the tokens of rows that have made ``look_every`` steps without it.

        Small errors push tokens to values that no frame has, where the dynamics are untrained: rollouts dissolved within a minute.
        The decoder draws the nearest scene that it knows, and encoding that brings them back. Measured: at every tenth step the
        block is whole after ten minutes, at no cost in accuracy over 30 steps. Not in training, where the dynamics must learn
        to do without.
        """
        due = state.unseen >= self.look_every
        if self.training or not bool(due.any()):
            return state
        rows = due.nonzero().squeeze(1)
        encoded = self.codec.encode(self.codec.decode(state.tokens[rows])).to(state.tokens.dtype)
        return replace(
            state,
            tokens=state.tokens.index_copy(0, rows, encoded),
            unseen=state.unseen.masked_fill(due, 0),
        )

    def _error(self, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Predict the error after a step, at least 0, from the hidden tokens and the error before."""
        # The prediction feeds on itself and must not run away: beyond a few standard deviations all is unknown anyway.
        known = before.detach().clamp(max=MOST_ERROR)
        joined = torch.cat([hidden.detach().float().mean(1), known[:, None]], 1)
        return F.softplus(self.error_head(joined).float()).squeeze(-1)
