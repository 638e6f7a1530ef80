"""Training losses of the token stream and its heads, each per row ``(b,)``.

Letters: tokens ``(b t n d)``, encoded actions ``(b t-1 a)``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from neuralsim.models.action_encoding import EncodedActions
from neuralsim.models.token_stream import anchors
from neuralsim.models.video_wam import VideoState, VideoWAM
from neuralsim.noise import Noise

KNEE = 0.05
"""Error beyond which the distance is linear instead of quadratic, in standard deviations of the data."""


def distance(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return Huber's distance per number. The square alone fails: an occluded keypoint jumps, in one frame of forty, and those
    frames then make up most of the gradient."""
    return F.smooth_l1_loss(prediction, target, beta=KNEE, reduction="none")


def rollout_losses(
    model: VideoWAM,
    tokens: torch.Tensor,
    actions: EncodedActions,
    context: int,
    noise: Noise,
    jitter: float = 0.0,
    alone: bool = False,
    chunk: int = 1,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Roll out from the first ``context`` frames through the rest, exactly as the simulator will, and compare each frame.

    Gradients run through the whole rollout, which trains accuracy over many steps instead of one (self-forcing; Huang et al.
    2025, arXiv 2506.08009).

    Args:
        jitter: standard deviation of the noise on the tokens it starts from.
        alone: read no history but the newest frame.
        chunk: frames that are denoised together.

    Returns losses (``uncertainty`` compares the predicted error with the mean absolute one) and the imagined tokens ``(b s n d)``.
    """
    _, t, n, d = tokens.shape
    past = tokens[:, :context]
    past = past + jitter * noise.normal(context * n * d, stream=1).view(past.shape)
    state: VideoState = model.start(past, actions.steps(0, context - 1))
    dynamics, uncertainty, imagined = [], [], []
    for i in range(context, t, chunk):
        if alone:
            states = [model.step_without_history(state, actions.steps(i - 1, i), noise.advance(i))]
        else:
            states = model.denoise(state, actions.steps(i - 1, min(i + chunk, t) - 1), noise.advance(i))
        for j, state in enumerate(states):
            target = tokens[:, i + j]
            dynamics.append(distance(state.tokens, target).mean((1, 2)))
            size = (state.tokens - target).detach().abs().mean((1, 2))
            uncertainty.append((torch.log(state.error + 1e-3) - torch.log(size + 1e-3)).square())
            imagined.append(state.tokens)
    return (
        {"dynamics": torch.stack(dynamics, 1).mean(1), "uncertainty": torch.stack(uncertainty, 1).mean(1)},
        torch.stack(imagined, 1),
    )


def forcing_losses(
    model: VideoWAM, tokens: torch.Tensor, actions: EncodedActions, noise: Noise
) -> dict[str, torch.Tensor]:
    """Diffusion forcing: denoise frames that each have a noise level of their own.

    Half of the rows follow the chunk law (a clean or slightly noised history, then k frames at one level, as in ``unroll``),
    half have independent levels per frame.
    """
    b, t, n, d = tokens.shape
    device = tokens.device
    u = noise.uniform(2 * t + 4, stream=2)
    independent = u[:, :t]
    chunk = 1 + (u[:, t] * model.past).long().clamp(max=model.past - 1)
    level = torch.where(u[:, t + 1] < 0.6, torch.ones_like(u[:, 0]), u[:, t + 2])
    history = torch.where(u[:, t + 3, None] < 0.7, torch.zeros_like(independent), 0.3 * u[:, t + 4 :])
    made = torch.arange(t, dtype=torch.int64, device=device)[None] >= t - chunk[:, None]
    chunked = torch.where(made, level[:, None], history)
    odd = (torch.arange(b, dtype=torch.int64, device=device) % 2 == 1)[:, None]
    levels = torch.where(odd, independent, chunked)[..., None].expand(b, t, n)
    pure = noise.normal(t * n * d, stream=3).view(tokens.shape)
    noisy = (1 - levels[..., None]) * tokens + levels[..., None] * pure
    led = torch.full((b, t), model.reads(actions), dtype=torch.bool, device=device)
    led[:, 0] = False
    into = F.pad(actions.values, (0, 0, 1, 0))
    before = anchors(torch.zeros_like(noisy[:, 0]), noisy, levels)
    prediction, _, _ = model.stream(noisy, before, levels, into, led)
    error = distance(prediction, tokens).mean(-1) * levels  # at level 0 there is nothing to predict
    return {"forcing": error[:, 1:].mean((1, 2))}


def reading_losses(
    head: nn.Module, features: torch.Tensor, reward: torch.Tensor, terminated: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return losses of a head that predicts reward and the logit of the end from features ``(b d)``; targets ``(b,)``."""
    out = head(features.detach()).float()
    return {
        "reward": F.smooth_l1_loss(out[:, 0], reward, beta=0.05, reduction="none"),
        "terminated": F.binary_cross_entropy_with_logits(out[:, 1], terminated, reduction="none"),
    }


def joint_losses(
    model: VideoWAM,
    tokens: torch.Tensor,
    actions: EncodedActions,
    aim: torch.Tensor,
    context: int,
    noise: Noise,
    role: str,
) -> dict[str, torch.Tensor]:
    """Return losses ``frames`` and ``actions`` of the joint stream on the chunk after ``context`` frames, in one ``role``.

    Levels follow UWM's law (2504.02792): a predicted part has one level per chunk, uniform, or 1; of predicted actions a prefix is
    given at times. The simulating stream is read and gets no gradient.

    Args:
        tokens: ``(b context+k n d)``.
        actions: ``(b context+k-1 a)``; where they are unknown the role is "foresee".
        aim: int64 ``(b,)``, 1 for a demonstrator's actions.
    """
    joint = model.joint
    assert joint is not None
    k = tokens.shape[1] - context
    with torch.no_grad():
        state = model.start(tokens[:, :context], actions.steps(0, context - 1))
        memory, empty = model.memory(state)
    u = noise.uniform(6, stream=7)
    frames_left, actions_left = role == "act", role == "foresee"
    ones = torch.ones_like(u[:, :1]).expand(-1, k)
    video_level = (
        torch.zeros_like(ones) if role == "infer" else torch.where(u[:, 0] < 0.2, 1.0, u[:, 1])[:, None] * ones
    )
    action_level = (
        torch.zeros_like(ones) if role == "simulate" else torch.where(u[:, 2] < 0.2, 1.0, u[:, 3])[:, None] * ones
    )
    given = torch.where(u[:, 4] < 0.4, (1 + u[:, 5] * (k // 2)).floor(), torch.zeros_like(u[:, 4]))
    if role in ("act", "dream"):
        action_level = torch.where(
            torch.arange(k, dtype=torch.int64, device=u.device)[None] < given[:, None], 0.0, action_level
        )
    future, done = tokens[:, context:], actions.steps(context - 1).values.float()
    noise_v = noise.normal(future[0].numel(), stream=8).view(future.shape)
    noise_a = noise.normal(done[0].numel(), stream=9).view(done.shape)
    video = torch.lerp(future, noise_v, video_level[..., None, None])
    acted = torch.lerp(done, noise_a, action_level[..., None])
    frames, chunk, _ = joint(
        memory,
        empty,
        state.tokens,
        aim,
        None if frames_left else (video, video_level),
        None if actions_left else (acted, action_level),
    )
    losses = {}
    if frames is not None and role != "infer":
        losses["frames"] = distance(frames, future).mean((1, 2, 3))
    if chunk is not None and role != "simulate":
        asked = (action_level > 0).float()
        error = (chunk - done).square().mean(-1)
        losses["actions"] = (error * asked).sum(1) / asked.sum(1).clamp(min=1)
    return losses
