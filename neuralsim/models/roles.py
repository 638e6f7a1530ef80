"""Roles: the questions one checkpoint answers. Which part of the future is given, and which is asked for, decides the role.

===========  ==========================  ====================
role         given beside the history    asked for
===========  ==========================  ====================
simulate     actions                     frames (``WorldModel.unroll``)
act          nothing                     actions
infer        frames                      actions
foresee      nothing                     frames
dream        nothing                     frames and actions
===========  ==========================  ====================

``value`` tells what a state is worth. Frames are the codec's tokens ``(b k n d)``, actions ``(b k a)`` in [-1, 1], k the
model's chunk. A row of the answer follows its own noise alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from neuralsim.models.joint_stream import JointStream
from neuralsim.models.video_wam import VideoState, VideoWAM
from neuralsim.noise import Noise

ROLES = ("simulate", "act", "infer", "foresee", "dream")
DISCOUNT = 0.98
"""What a success is worth one step later than now."""
PASSES = 4
"""Denoising passes unless somebody asks for another number."""
FOLLOWING = 1
"""The same where the answer follows from what is given (actions between frames, frames after actions): one pass gives the mean of
the little that is left open. Measured on 120 moments of play: inferred actions correlate with the true ones by 0.885 after one pass,
0.840 after four; frames after twelve actions are off by 0.206 and 0.218 standard deviations."""


@dataclass(frozen=True, eq=False)
class RoleOutput:
    """What was asked for: actions ``(b k a)``, frames ``(b k n d)``, each None where it was not; and the hidden tokens of the last
    pass ``(b s width)``, the frames' first."""

    actions: torch.Tensor | None
    frames: torch.Tensor | None
    hidden: torch.Tensor


def joint_of(model: object) -> tuple[VideoWAM, JointStream]:
    """``model`` and its joint stream; a ValueError for one that only simulates."""
    if not isinstance(model, VideoWAM) or model.joint is None:
        raise ValueError(
            f"{type(model).__name__} simulates only: expected a world trained to answer in all roles, such as 'pusht-wam' "
            "(neuralsim train pusht-wam)"
        )
    return model, model.joint


def predict_actions(
    model: VideoWAM,
    state: VideoState,
    rng: Noise,
    passes: int = PASSES,
    prefix: torch.Tensor | None = None,
    aim: int = 1,
) -> torch.Tensor:
    """The next actions ``(b k a)``: of a demonstrator, or with ``aim`` 0 of anybody. The first p are ``prefix`` ``(b p a)`` where
    that is given, bit-equal."""
    found = denoise_chunk(model, state, rng, passes, frames=None, prefix=prefix, aim=aim).actions
    assert found is not None
    return found


def infer_actions(
    model: VideoWAM,
    state: VideoState,
    frames: torch.Tensor,
    rng: Noise,
    passes: int = FOLLOWING,
    aim: int = 0,
    prefix: torch.Tensor | None = None,
) -> torch.Tensor:
    """The actions ``(b k a)`` that led through ``frames`` ``(b k n d)``."""
    found = denoise_chunk(model, state, rng, passes, frames=frames, prefix=prefix, aim=aim).actions
    assert found is not None
    return found


def predict_video(model: VideoWAM, state: VideoState, rng: Noise, passes: int = PASSES, aim: int = 1) -> torch.Tensor:
    """The next frames ``(b k n d)``, whatever the actions."""
    found = denoise_chunk(model, state, rng, passes, frames="asked", actions=False, aim=aim).frames
    assert found is not None
    return found


def predict_jointly(
    model: VideoWAM,
    state: VideoState,
    rng: Noise,
    passes: int = PASSES,
    prefix: torch.Tensor | None = None,
    aim: int = 1,
) -> RoleOutput:
    """The next actions and the frames they lead through, denoised together."""
    return denoise_chunk(model, state, rng, passes, frames="asked", prefix=prefix, aim=aim)


def predict_value(model: VideoWAM, state: VideoState) -> torch.Tensor:
    """float32 ``(b,)``, 0 to 1: what ``state`` is worth to a demonstrator: the discounted nearness of success."""
    model, _ = joint_of(model)
    assert model.value_head is not None
    return torch.sigmoid(model.value_head(model.features(state)).float()[:, 0])


def denoise_chunk(
    model: VideoWAM,
    state: VideoState,
    rng: Noise,
    passes: int,
    frames: torch.Tensor | str | None = None,
    actions: torch.Tensor | bool = True,
    prefix: torch.Tensor | None = None,
    aim: int = 1,
) -> RoleOutput:
    """What the roles have in common. ``frames``: given ``(b k n d)``, "asked", or None, left out; ``actions``: given ``(b k a)``,
    True, asked for, or False, left out. Raises ValueError for a prefix that leaves nothing to ask, or fewer than one pass."""
    model, joint = joint_of(model)
    if passes < 1:
        raise ValueError(f"passes: expected 1 or more, got {passes}")
    b, k, n, d, a = len(state), joint.chunk, joint.tokens, joint.size, model.spec.action_width
    asked = {"frames": isinstance(frames, str), "actions": actions is True}
    if not any(asked.values()):
        raise ValueError("nothing is asked for: leave frames or actions to be found")
    p = 0 if prefix is None else prefix.shape[1]
    if p >= k:
        raise ValueError(f"prefix: expected fewer than {k} actions (the chunk), got {p}")
    memory, empty = model.memory(state)
    intent = torch.full((b,), aim, dtype=torch.int64, device=memory.device)
    x = rng.normal(k * n * d, stream=5).view(b, k, n, d) if asked["frames"] else frames
    y = rng.normal(k * a, stream=6).view(b, k, a) if asked["actions"] else actions
    fixed = torch.zeros(b, k, dtype=torch.bool, device=memory.device)
    fixed[:, :p] = True
    if prefix is not None:
        assert isinstance(y, torch.Tensor)
        y = torch.cat([prefix.to(y.dtype), y[:, p:]], 1)
    hidden = memory
    for i in range(passes):
        level, after = 1 - i / passes, 1 - (i + 1) / passes
        clear = torch.zeros(b, k, device=memory.device)
        noisy = torch.full_like(clear, level)
        video = (x, noisy if asked["frames"] else clear) if isinstance(x, torch.Tensor) else None
        done = (
            (y, torch.where(fixed, clear, noisy) if asked["actions"] else clear)
            if isinstance(y, torch.Tensor)
            else None
        )
        seen, told, hidden = joint(memory, empty, state.tokens, intent, video, done)
        if asked["frames"]:
            assert isinstance(x, torch.Tensor)
            x = seen + after * (x - seen) / level
        if asked["actions"]:
            assert isinstance(y, torch.Tensor)
            y = torch.where(fixed[..., None], y, told + after * (y - told) / level)
    if asked["actions"]:
        assert isinstance(y, torch.Tensor)
        y = torch.where(fixed[..., None], y, y.clamp(-1, 1))
    return RoleOutput(
        y if asked["actions"] and isinstance(y, torch.Tensor) else None,
        x if asked["frames"] and isinstance(x, torch.Tensor) else None,
        hidden,
    )
