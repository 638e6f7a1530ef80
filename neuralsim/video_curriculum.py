"""VideoCurriculum: how a VideoWAM learns. The codec on single frames; the dynamics on tokens, on the model's own rollouts; the
readings (reward, end) on true and imagined tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from neuralsim.curriculum import Curriculum, Losses, Run, Stage
from neuralsim.episode import WindowSampler
from neuralsim.models.codec import to_pixels
from neuralsim.models.video import VideoWAM
from neuralsim.objectives import forcing_losses, reading_losses, rollout_losses
from neuralsim.precision import arithmetic
from neuralsim.recipe import VideoRecipe
from neuralsim.tokens import TokenWindows, encode_store


class VideoCurriculum(Curriculum):
    """See the module's text."""

    model: VideoWAM

    def __init__(self, recipe: VideoRecipe, run: Run) -> None:
        self.recipe, self.run = recipe, run
        self.model = VideoWAM.build(run.store.spec, recipe.codec, recipe.stream)

    @property
    def makers(self) -> dict[str, Callable[[], Stage]]:
        """See Curriculum."""
        return {"codec": self._codec, "dynamics": self._dynamics, "readings": self._readings}

    def begin(self) -> None:
        """The median frame is the background."""
        self.model.codec.background.copy_(self.run.median_frame())

    def finish(self, stage: str) -> None:
        """After the codec stage: mean and spread of the places, and how badly the codec may redraw what it knows."""
        if stage != "codec":
            return
        codec, run = self.model.codec, self.run
        draws = np.random.default_rng([run.seed, 1002])
        frames = torch.as_tensor(WindowSampler(run.store, 1).sample(2048, draws).frames[:, 0]).to(run.device)
        with torch.no_grad(), arithmetic(run.dtype, run.device):
            places = torch.cat([codec.places(to_pixels(part)).flatten(1) for part in frames.split(256)]).float()
            codec.mean.copy_(places.mean(0))
            codec.std.copy_(places.std(0).clamp(min=1e-3))
            wrong = torch.cat([codec.redraw_error(part, codec.encode(part)) for part in frames.split(256)])
        self.model.redraw_limit.copy_(wrong.quantile(0.999))

    def redraw(self, stage: str, frames: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Redrawn by the codec, or dreamt to the end."""
        if stage == "codec":
            return frames[:, 0], self.model.codec.decode(self.model.codec.encode(frames[:, 0]))
        return self.dream_last(frames, actions)

    # -- stages

    def _codec(self) -> Stage:
        codec, recipe, run = self.model.codec, self.recipe, self.run
        windows = WindowSampler(run.store, 1)

        def loss(step: int, draws: np.random.Generator) -> Losses:
            frames = torch.as_tensor(windows.sample(recipe.codec_stage.batch, draws).frames[:, 0]).to(run.device)
            noise = run.noise(draws, len(frames))
            jitter = recipe.place_jitter * noise.normal(2 * codec.keypoints).view(-1, codec.keypoints, 2)
            return {"pixels": codec.loss(frames, jitter, recipe.emphasis).mean()}

        return Stage("codec", recipe.codec_stage, list(codec.parameters()), loss)

    def _tokens(self) -> TokenWindows:
        run = self.run
        codec = self.model.codec

        def encode(frames: torch.Tensor) -> torch.Tensor:
            return codec.encode(frames[:, 0])

        tokens = encode_store(encode, codec.state_dict(), run.store, run.cache, run.dtype, run.device, run.bar)
        return TokenWindows(run.store, tokens)

    def _dynamics(self) -> Stage:
        model, recipe, stage, run = self.model, self.recipe, self.recipe.dynamics_stage, self.run
        windows = self._tokens()
        scale = windows.typical_change()
        forcing_length = model.past + recipe.stream.window

        def loss(step: int, draws: np.random.Generator) -> Losses:
            if step % recipe.forcing_every == 0:
                rows = max(1, stage.batch // forcing_length)
                clip = windows.sample(rows, forcing_length, draws, run.device)
                losses = forcing_losses(model, clip.tokens, clip.actions, run.noise(draws, rows))
                return {k: 0.1 * v.mean() / scale for k, v in losses.items()}
            length = recipe.rollout[min(step * len(recipe.rollout) // stage.steps, len(recipe.rollout) - 1)]
            rows = max(1, stage.batch // length)
            sampler = step % recipe.sampler_every == recipe.sampler_every - 1
            alone = bool(draws.random() < recipe.alone) and not sampler
            context = 1 if alone else int(draws.integers(1, model.past + 2))
            clip = windows.sample(rows, context + length, draws, run.device)
            noise = run.noise(draws, rows)
            chunk = int(draws.integers(1, model.past + 1)) if sampler else 1
            with denoising(model, int(draws.integers(1, 5)) if sampler else 1):
                losses, _ = rollout_losses(
                    model, clip.tokens, clip.actions, context, noise, recipe.token_jitter, alone, chunk
                )
            # By other ways a dream strays further; its gradients must not drown those of the way that is used.
            weight = 0.25 if sampler else 1.0
            return {"dynamics": weight * losses["dynamics"].mean() / scale, "doubt": 0.1 * losses["doubt"].mean()}

        moved = [*model.stream.parameters(), *model.error_head.parameters()]
        return Stage("dynamics", stage, moved, loss)

    def _readings(self) -> Stage:
        model, recipe, stage, run = self.model, self.recipe, self.recipe.readings_stage, self.run
        windows = self._tokens()
        length = 12

        def loss(step: int, draws: np.random.Generator) -> Losses:
            """Half true tokens, half dreamt ones; half of each from windows in which something was achieved."""
            rows = stage.batch // (2 * length)
            clip = windows.sample(2 * rows, length + 1, draws, run.device, rewarding=True)
            with torch.no_grad():
                noise = run.noise(draws, len(clip.tokens))
                _, dreamt = rollout_losses(model, clip.tokens, clip.actions, 1, noise, recipe.token_jitter)
            tokens = torch.cat([clip.tokens[:, 1:], dreamt]).flatten(0, 1).float()
            reward, terminated = (x.repeat(2, 1).flatten() for x in (clip.rewards, clip.terminated))
            return {
                k: v.mean() for k, v in reading_losses(model.reward_head, tokens.flatten(1), reward, terminated).items()
            }

        return Stage("readings", stage, list(model.reward_head.parameters()), loss)


@contextmanager
def denoising(model: VideoWAM, steps: int) -> Iterator[None]:
    """``model`` denoises in so many passes."""
    before, model.denoise_steps = model.denoise_steps, steps
    try:
        yield
    finally:
        model.denoise_steps = before
