"""Training losses of the token stream, each per row ``(b,)``.

Letters: tokens ``(b t n d)``, actions ``(b t-1 a)``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from neuralsim.models.action_encoding import encode_actions
from neuralsim.models.token_stream import anchors
from neuralsim.models.video_wam import VideoState, VideoWAM
from neuralsim.noise import Noise

KNEE = 0.05
"""Where the distance turns from square to straight, in standard deviations of the data."""


def distance(guess: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Huber's distance per number. Square alone fails: a keypoint that is covered jumps, one frame in forty does, and those
    frames then make up most of the gradient."""
    return F.smooth_l1_loss(guess, truth, beta=KNEE, reduction="none")


def rollout_losses(
    model: VideoWAM,
    tokens: torch.Tensor,
    actions: torch.Tensor | None,
    context: int,
    rng: Noise,
    jitter: float = 0.0,
    alone: bool = False,
    chunk: int = 1,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Dream from the first ``context`` frames through the rest, exactly as the simulator will, and compare each dreamt
    frame.

    Gradients run through the whole dream: what is learned is not one step but staying true for many (self-forcing;
    Huang et al. 2025, arXiv 2506.08009). ``jitter`` is noise on the tokens it starts from; ``alone``: with no history but
    the newest frame; ``chunk``: so many frames denoised together; ``actions`` None: nobody knows them. Returns losses
    (``doubt`` holds the predicted error against the mean absolute one) and the dreamt tokens ``(b s n d)``.
    """
    _, t, n, d = tokens.shape
    told = actions is not None
    if actions is None:
        actions = untold(model, tokens)
    past = tokens[:, :context]
    past = past + jitter * rng.normal(context * n * d, stream=1).view(past.shape)
    state: VideoState = model.start(past, actions[:, : context - 1], told=told)
    dynamics, doubt, dreamt = [], [], []
    for i in range(context, t, chunk):
        if alone:
            states = [model.step_alone(state, actions[:, i - 1], rng.advance(i), told)]
        else:
            states = model.denoise(state, actions[:, i - 1 : min(i + chunk, t) - 1], rng.advance(i), told)
        for j, state in enumerate(states):
            truth = tokens[:, i + j]
            dynamics.append(distance(state.tokens, truth).mean((1, 2)))
            size = (state.tokens - truth).detach().abs().mean((1, 2))
            doubt.append((torch.log(state.error + 1e-3) - torch.log(size + 1e-3)).square())
            dreamt.append(state.tokens)
    return (
        {"dynamics": torch.stack(dynamics, 1).mean(1), "doubt": torch.stack(doubt, 1).mean(1)},
        torch.stack(dreamt, 1),
    )


def untold(model: VideoWAM, tokens: torch.Tensor) -> torch.Tensor:
    """What stands for actions nobody knows between ``tokens`` ``(b t n d)``: ``(b t-1 a)`` that the model will not read."""
    shape = (len(tokens), tokens.shape[1] - 1, model.spec.action_size)
    return torch.zeros(shape, device=tokens.device, dtype=torch.int64 if model.spec.discrete else torch.float32)


def forcing_losses(
    model: VideoWAM, tokens: torch.Tensor, actions: torch.Tensor | None, rng: Noise
) -> dict[str, torch.Tensor]:
    """Diffusion forcing: denoise frames that each have a noise level of their own.

    Half of the rows follow the chunk law (a clean or lightly noised history, then k frames at one level, as ``unroll``
    asks for), half have independent levels per frame. ``actions`` None: nobody knows them.
    """
    b, t, n, d = tokens.shape
    device = tokens.device
    u = rng.uniform(2 * t + 4, stream=2)
    independent = u[:, :t]
    chunk = 1 + (u[:, t] * model.past).long().clamp(max=model.past - 1)
    level = torch.where(u[:, t + 1] < 0.6, torch.ones_like(u[:, 0]), u[:, t + 2])
    history = torch.where(u[:, t + 3, None] < 0.7, torch.zeros_like(independent), 0.3 * u[:, t + 4 :])
    made = torch.arange(t, device=device)[None] >= t - chunk[:, None]
    chunked = torch.where(made, level[:, None], history)
    odd = (torch.arange(b, device=device) % 2 == 1)[:, None]
    levels = torch.where(odd, independent, chunked)[..., None].expand(b, t, n)
    noise = rng.normal(t * n * d, stream=3).view(tokens.shape)
    noisy = (1 - levels[..., None]) * tokens + levels[..., None] * noise
    led = torch.full((b, t), actions is not None and model.spec.action_size > 0, device=device)
    led[:, 0] = False
    if actions is None:
        actions = untold(model, tokens)
    into = F.pad(encode_actions(model.spec, actions), (0, 0, 1, 0))
    before = anchors(torch.zeros_like(noisy[:, 0]), noisy, levels)
    guess, _, _ = model.stream(noisy, before, levels, into, led)
    wrong = distance(guess, tokens).mean(-1) * levels  # at level 0 there is nothing to ask
    return {"forcing": wrong[:, 1:].mean((1, 2))}


def reading_losses(
    head: nn.Module, features: torch.Tensor, reward: torch.Tensor, terminated: torch.Tensor
) -> dict[str, torch.Tensor]:
    """A head's two numbers, reward and the logit of the end, on features ``(b d)``; reward and terminated ``(b,)``."""
    out = head(features.detach()).float()
    return {
        "reward": F.smooth_l1_loss(out[:, 0], reward, beta=0.05, reduction="none"),
        "terminated": F.binary_cross_entropy_with_logits(out[:, 1], terminated, reduction="none"),
    }


def joint_losses(
    model: VideoWAM,
    tokens: torch.Tensor,
    actions: torch.Tensor | None,
    aim: torch.Tensor,
    context: int,
    rng: Noise,
    role: str,
) -> dict[str, torch.Tensor]:
    """What the joint stream guesses of the chunk after ``context`` frames, in one ``role``; levels by UWM's law (2504.02792).

    tokens ``(b context+k n d)``, actions ``(b context+k-1 a)``, or None where nobody knows them (then the role is "foresee");
    ``aim`` int64 ``(b,)``, 1 for a demonstrator's. What is asked for has a level per chunk, uniform, or 1; of actions that are
    asked for a prefix is given at times. The simulating stream is read and not moved. Losses ``frames`` and ``actions`` per row.
    """
    joint = model.joint
    assert joint is not None
    k = tokens.shape[1] - context
    told = actions is not None
    if actions is None:
        actions = untold(model, tokens)
    with torch.no_grad():
        state = model.start(tokens[:, :context], actions[:, : context - 1], told=told)
        memory, empty = model.memory(state)
    u = rng.uniform(6, stream=7)
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
        action_level = torch.where(torch.arange(k, device=u.device)[None] < given[:, None], 0.0, action_level)
    future, done = tokens[:, context:], encode_actions(model.spec, actions[:, context - 1 :]).float()
    noise_v = rng.normal(future[0].numel(), stream=8).view(future.shape)
    noise_a = rng.normal(done[0].numel(), stream=9).view(done.shape)
    video = torch.lerp(future, noise_v, video_level[..., None, None])
    acted = torch.lerp(done, noise_a, action_level[..., None])
    seen, guess, _ = joint(
        memory,
        empty,
        state.tokens,
        aim,
        None if frames_left else (video, video_level),
        None if actions_left else (acted, action_level),
    )
    losses = {}
    if seen is not None and role != "infer":
        losses["frames"] = distance(seen, future).mean((1, 2, 3))
    if guess is not None and role != "simulate":
        asked = (action_level > 0).float()
        wrong = (guess - done).square().mean(-1)
        losses["actions"] = (wrong * asked).sum(1) / asked.sum(1).clamp(min=1)
    return losses
