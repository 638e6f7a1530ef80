"""VideoWAM: the token-stream world action model.

A codec gives each frame a few latent tokens; a block-causal transformer denoises the tokens of the next frame (or the
next k together) given past frames and all actions. The network predicts clean tokens (x-prediction) under flow
matching, ``x_level = (1 - level) * x + level * noise``, so one denoising step from pure noise is a direct prediction
and more steps refine it. Past keys and values are cached over a sliding window: a step costs the newest past frame
plus the one being made.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import nn

from neuralsim.data.windows import Clip
from neuralsim.models.action_encoding import encode_actions
from neuralsim.models.codec import Codec
from neuralsim.models.conv_codec import ConvCodec
from neuralsim.models.joint_stream import JointConfig, JointStream
from neuralsim.models.keypoint_codec import KeypointCodec
from neuralsim.models.prediction_heads import Readout, StateProbe
from neuralsim.models.token_stream import TokenStream, anchors
from neuralsim.noise import Noise
from neuralsim.spec import WorldSpec
from neuralsim.world_model import State, WorldModel, stack_time

MOST_DOUBT = 4.0
"""Predicted errors above this, in standard deviations, count alike in predicting the next."""


@dataclass(frozen=True)
class CodecConfig:
    """What draws the frames, keypoints before a still camera or convolutions behind a moving one; tokens per frame, numbers
    per token (two per keypoint), width of its convolutions."""

    tokens: int = 1
    size: int = 32
    conv_width: int = 64
    kind: Literal["keypoints", "conv"] = "keypoints"


CODECS: dict[str, type[KeypointCodec | ConvCodec]] = {"keypoints": KeypointCodec, "conv": ConvCodec}


@dataclass(frozen=True)
class StreamConfig:
    """Sizes of the transformer; ``window`` is how many frames a frame sees, itself included."""

    width: int = 256
    layers: int = 4
    heads: int = 4
    window: int = 4


@dataclass(frozen=True)
class VideoState(State):
    """tokens ``(b n d)`` of the newest frame; the action that led to it as the stream reads it, ``(b action_width)``, if
    ``led`` ``(b,)``; cached keys and values of the frames before it ``(b layers 2 heads p*(n+1) e)``, ``age`` ``(b,)`` of
    them real; ``error`` ``(b,)``: predicted distance from the truth; ``unseen`` ``(b,)``: steps since the tokens were last
    read off a frame."""

    tokens: torch.Tensor
    action: torch.Tensor
    led: torch.Tensor
    cache: torch.Tensor
    age: torch.Tensor
    error: torch.Tensor
    unseen: torch.Tensor


class VideoWAM(WorldModel):
    """See the module's text. ``denoise_steps`` (1 to 4) may be changed at any time; at 1 nothing of the noise is let in,
    so a dream is a function of its start and actions alone."""

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
            self.joint = JointStream(*sides, **asdict(JointConfig(**joint_config)))
            self.value_head = Readout(self.feature_size, 1, 192)
        self.error_head = nn.Sequential(nn.Linear(shape.width + 1, 128), nn.SiLU(), nn.Linear(128, 1))
        # Calibrated on held-out dreams (see neuralsim.evaluation.evaluate): beyond this, ``uncertainty`` counts as "does not know".
        self.uncertainty_threshold: torch.Tensor
        # What the codec gets wrong on all but one in a thousand training frames, in grey levels.
        self.redraw_limit: torch.Tensor
        self.register_buffer("redraw_limit", torch.tensor(float("inf")))
        self.register_buffer("uncertainty_threshold", torch.tensor(float("inf")))
        self.denoise_steps = denoise_steps
        self.look_every = look_every

    @classmethod
    def build(
        cls,
        spec: WorldSpec,
        codec: CodecConfig,
        stream: StreamConfig,
        state_names: tuple[str, ...] = (),
        joint: JointConfig | None = None,
    ) -> VideoWAM:
        """A fresh model from typed configs; one that is given ``state_names`` learns to tell these, one with ``joint`` to answer
        in all roles (see neuralsim.models.roles)."""
        return cls(
            spec=asdict(spec),
            codec_config=asdict(codec),
            stream_config=asdict(stream),
            state_names=list(state_names),
            joint_config=None if joint is None else asdict(joint),
        )

    # -- the contract

    @property
    def packed(self) -> tuple[str, ...]:  # type: ignore[override]
        """See WorldModel. Keypoints are true to a tenth of a pixel, and a dream of 30 steps shows what eight bits take of that
        (Push-T's pusher 7 % further off): what moves them stays as it is."""
        return ("joint.",) if isinstance(self.codec, KeypointCodec) else ("joint.", "stream.blocks.")

    @property
    def feature_size(self) -> int:
        """Tokens times numbers per token."""
        return self.codec.tokens * self.codec.size

    def encode(self, frames: torch.Tensor, actions: torch.Tensor) -> VideoState:
        """See WorldModel. Only the newest ``window`` frames are read."""
        keep = min(frames.shape[1], self.past + 1)
        frames = frames[:, frames.shape[1] - keep :]
        actions = actions[:, actions.shape[1] - (keep - 1) :] if keep > 1 else actions[:, :0]
        tokens = self.codec.encode(frames.flatten(0, 1)).unflatten(0, (len(frames), keep))
        # A frame the codec cannot redraw is a frame the model does not know: doubt begins there.
        strange = self.codec.redraw_error(frames[:, -1], tokens[:, -1]) / self.redraw_limit
        return self.start(tokens, actions, (strange - 1).clamp(min=0))

    def start(
        self, tokens: torch.Tensor, actions: torch.Tensor, error: torch.Tensor | None = None, told: bool = True
    ) -> VideoState:
        """The state after the last of ``tokens`` ``(b t n d)``, t at most ``window``, reached by ``actions`` ``(b t-1
        a)``, which do not count where they are not ``told``."""
        b, t, n, _ = tokens.shape
        stream = self.stream
        led = torch.full((b, t), told and self.spec.action_size > 0, device=tokens.device)
        # A window cut from a longer history has an action before its first frame too, but it is not ours to know.
        led[:, 0] = False
        read = encode_actions(self.spec, actions).to(tokens.dtype)
        into = torch.cat([tokens.new_zeros(b, 1, self.spec.action_width), read], 1)
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

    def step(self, state: VideoState, action: torch.Tensor, rng: Noise) -> VideoState:  # type: ignore[override]
        """See WorldModel."""
        return self.denoise(state, action[:, None], rng)[0]

    def unroll(self, state: VideoState, actions: torch.Tensor, rng: Noise) -> VideoState:  # type: ignore[override]
        """k frames denoised together (k at most ``window - 1``; longer chunks go in pieces)."""
        states: list[VideoState] = []
        for i in range(0, actions.shape[1], self.past):
            part = self.denoise(state, actions[:, i : i + self.past], rng.advance(i))
            states += part
            state = part[-1]
        return stack_time(states)

    def features(self, state: VideoState) -> torch.Tensor:  # type: ignore[override]
        """The newest frame's tokens, flattened: also to be had from a true frame by ``codec.encode``."""
        return state.tokens.flatten(1).float()

    def decode(self, state: VideoState) -> torch.Tensor:  # type: ignore[override]
        """See WorldModel."""
        return self.codec.decode(state.tokens)

    def uncertainty(self, state: VideoState) -> torch.Tensor:  # type: ignore[override]
        """Predicted mean absolute distance of the tokens from the truth, in standard deviations of the data.

        A history whose last frame the codec cannot redraw starts with as much doubt as its redrawing error exceeds the
        known limit."""
        return state.error.float()

    def read(self, state: VideoState) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """reward (coverage) and terminated (probability of success)."""
        out = self.reward_head(self.features(state)).float()
        return {"reward": out[:, 0], "terminated": torch.sigmoid(out[:, 1])}

    def read_state(self, state: VideoState) -> torch.Tensor:  # type: ignore[override]
        """See WorldModel: what the frame shows of it."""
        if self.probe is None:
            return super().read_state(state)
        return self.probe.state(self.told(self.features(state)))

    def told(self, features: torch.Tensor) -> torch.Tensor:
        """What probe and state head together say of features ``(b d)``: ``(b wide)`` in standard deviations."""
        assert self.probe is not None
        assert self.state_head is not None
        return self.probe.told(features).float() + self.state_head(features).float()

    def memory(self, state: VideoState) -> tuple[torch.Tensor, torch.Tensor]:
        """What the simulating stream holds of the history, the newest frame included: its keys and values ``(b layers 2 heads s
        e)``, and which of them are none ``(b s)``."""
        clean, n = state.tokens[:, None], self.stream.tokens + 1
        none = torch.zeros_like(clean[..., 0])
        _, _, own = self.stream(
            clean, torch.zeros_like(clean), none, state.action[:, None], state.led[:, None], state.cache, state.age
        )
        kept = torch.cat([state.cache, own.to(state.cache.dtype)], -2)
        frame = torch.arange(kept.shape[-2], device=kept.device) // n
        return kept, frame[None] < self.past - state.age[:, None]

    def loss(self, clip: Clip, rng: Noise) -> dict[str, torch.Tensor]:
        """Per row: how far a dream of ``clip``'s actions from its first frame strays, with the doubt and the readings
        along the way."""
        from neuralsim.training.losses import reading_losses, rollout_losses

        tokens = self.codec.encode(torch.as_tensor(clip.frames).to(self.device).flatten(0, 1))
        tokens = tokens.unflatten(0, clip.frames.shape[:2])
        actions = torch.as_tensor(clip.actions).to(self.device)
        reward, ended = (
            torch.as_tensor(x, dtype=torch.float32).to(self.device) for x in (clip.rewards, clip.terminated)
        )
        losses, dreamt = rollout_losses(self, tokens, actions, 1, rng)
        readings = reading_losses(self.reward_head, dreamt.flatten(0, 1).flatten(1), reward.flatten(), ended.flatten())
        return losses | {k: v.view(reward.shape).mean(1) for k, v in readings.items()}

    # -- denoising

    def _cache_dtype(self) -> torch.dtype:
        kind = self.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32

    def step_alone(self, state: VideoState, action: torch.Tensor, rng: Noise, told: bool = True) -> VideoState:
        """One step that looks at the newest frame only, and leaves the cache as it is: half the work, for training."""
        stream, b = self.stream, len(action)
        x = rng.normal(stream.tokens * stream.size).view(b, 1, stream.tokens, stream.size)
        led = torch.full((b, 1), told and self.spec.action_size > 0, device=x.device)
        read = encode_actions(self.spec, action)
        guess, hidden, _ = stream(x, state.tokens[:, None], torch.ones_like(x[..., 0]), read[:, None], led)
        error = self._error(hidden[:, 0], state.error)
        return replace(state, tokens=guess[:, 0], action=read, led=led[:, 0], error=error)

    def denoise(self, state: VideoState, actions: torch.Tensor, rng: Noise, told: bool = True) -> list[VideoState]:
        """The states after each of ``actions`` ``(b k a)``, k at most ``window - 1``, their frames denoised together; of
        actions that are not ``told`` the model knows only how many there are."""
        stream = self.stream
        b, k, _ = actions.shape
        n, d = stream.tokens, stream.size
        flow = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
        flow.set_timesteps(sigmas=[1 - i / self.denoise_steps for i in range(self.denoise_steps)])
        x = torch.stack([rng.advance(i).normal(n * d) for i in range(k)], 1).view(b, k, n, d)
        # The newest past frame enters beside the new ones; its keys and values are new to the cache.
        into = torch.cat([state.action[:, None], encode_actions(self.spec, actions).to(state.action.dtype)], 1)
        new = torch.full((b, k), told and self.spec.action_size > 0, device=x.device)
        led = torch.cat([state.led[:, None], new], 1)
        clean = state.tokens[:, None]
        cache, age, hidden = state.cache, state.age, x
        for i, level in enumerate(flow.sigmas[:-1].tolist()):
            levels = x.new_full((b, k, n), level)
            before = anchors(clean[:, 0], x, levels)
            if i == 0:
                tokens, sources = torch.cat([clean, x], 1), torch.cat([torch.zeros_like(clean), before], 1)
                guess, hidden, own = stream(tokens, sources, F.pad(levels, (0, 0, 1, 0)), into, led, cache, age)
                guess, hidden = guess[:, 1:], hidden[:, 1:]
                cache = torch.cat([cache, own[..., : n + 1, :].to(cache.dtype)], -2)
                age = age + 1
            else:
                guess, hidden, _ = stream(x, before, levels, into[:, 1:], led[:, 1:], cache, age)
            velocity = (x - guess) / level
            x = flow.step(velocity, flow.timesteps[i], x, return_dict=False)[0] if self.denoise_steps > 1 else guess
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
        states[-1] = self._look(states[-1])
        return states

    def _look(self, state: VideoState) -> VideoState:
        """Where a dream has gone ``look_every`` steps without, draw its frame and read the tokens off it again.

        Small errors push tokens to where no frame ever put them, and there the dynamics know nothing: dreams dissolved
        within a minute. The decoder draws the nearest scene that it knows, and reading that brings them back. Measured:
        at every tenth step the block is whole after ten minutes, at no cost in truth over 30 steps. Not in training,
        where the dynamics are to learn to do without.
        """
        due = state.unseen >= self.look_every
        if self.training or not bool(due.any()):
            return state
        rows = due.nonzero().squeeze(1)
        seen = self.codec.encode(self.codec.decode(state.tokens[rows])).to(state.tokens.dtype)
        return replace(
            state,
            tokens=state.tokens.index_copy(0, rows, seen),
            unseen=state.unseen.masked_fill(due, 0),
        )

    def _error(self, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Predicted error after a step, from what the network saw and the error before; never less than nothing."""
        # What feeds on itself must not run away: beyond a few standard deviations nothing is known in any case.
        known = before.detach().clamp(max=MOST_DOUBT)
        joined = torch.cat([hidden.detach().float().mean(1), known[:, None]], 1)
        return F.softplus(self.error_head(joined).float()).squeeze(-1)
