"""VideoStages: the training of a VideoWAM. The codec on single frames; the dynamics on tokens, on the model's own rollouts; the
heads (reward, end, state) on real and imagined tokens; the joint stream on chunks.

Video without actions trains codec and dynamics too: the model then reads "unknown action".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from neuralsim.data.windows import WindowSampler
from neuralsim.models.codec import to_pixels
from neuralsim.models.video_wam import VideoWAM
from neuralsim.runtime.device import arithmetic
from neuralsim.training.data_mixture import ActionAndVideoWindows, DataMixture
from neuralsim.training.losses import distance, forcing_losses, joint_losses, reading_losses, rollout_losses
from neuralsim.training.recipes import VideoRecipe
from neuralsim.training.stages import Losses, Stage, StageContext, TrainingStages
from neuralsim.training.token_dataset import encode_store

STILL, DIFFERENT = 0.15, 0.1
"""A camera counts as fixed where at most STILL of a frame differs from the median frame by DIFFERENT of a pixel's range.
Measured on 253 frames each: TwoRoom 0.006, Push-T 0.035, CarRacing 0.31."""


class VideoStages(TrainingStages):
    """Stages codec, dynamics, readings and, for models with a joint stream, joint."""

    model: VideoWAM

    def __init__(self, recipe: VideoRecipe, run: StageContext) -> None:
        self.run = run
        self.recipe = recipe = self._fit_to_camera(recipe)
        names = run.store.info.state_names if recipe.read_states else ()
        self.model = VideoWAM.build(run.store.spec, recipe.codec, recipe.stream, names, recipe.joint)

    @property
    def makers(self) -> dict[str, Callable[[], Stage]]:
        joint = {"joint": self._joint} if self.recipe.joint is not None else {}
        return {"codec": self._codec, "dynamics": self._dynamics, "readings": self._readings, **joint}

    def begin(self) -> None:
        """Measure the background (the median frame) and mean and standard deviation of the states."""
        self.model.codec.background.copy_(self.run.median_frame())
        draws = np.random.default_rng([self.run.seed, 1005])
        states = WindowSampler(self.run.store, 1).sample(4096, draws).states
        if states is not None and self.model.probe is not None:
            self.model.probe.fit(torch.as_tensor(states[:, 0], device=self.run.device))

    def finish(self, stage: str) -> None:
        """Measure, after the codec stage, mean and standard deviation of the numbers and the limit of the reconstruction error."""
        if stage != "codec":
            return
        codec, run = self.model.codec, self.run
        draws = np.random.default_rng([run.seed, 1002])
        frames = torch.as_tensor(WindowSampler(run.store, 1).sample(2048, draws).frames[:, 0], device=run.device)
        with torch.no_grad(), arithmetic(run.dtype, run.device):
            numbers = torch.cat([codec.numbers(to_pixels(part)) for part in frames.split(256)]).float()
            codec.mean.copy_(numbers.mean(0))
            codec.std.copy_(numbers.std(0).clamp(min=1e-3))
            errors = torch.cat([codec.reconstruction_error(part, codec.encode(part)) for part in frames.split(256)])
        self.model.redraw_limit.copy_(errors.quantile(0.999))

    def redraw(self, stage: str, frames: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruct by the codec, or roll out to the end."""
        if stage == "codec":
            return frames[:, 0], self.model.codec.decode(self.model.codec.encode(frames[:, 0]))
        return self.roll_out_last(frames, actions)

    # -- stages

    def _codec(self) -> Stage:
        codec, recipe, run = self.model.codec, self.recipe, self.run
        windows = WindowSampler(run.store, 1)

        def loss(step: int, draws: np.random.Generator) -> Losses:
            frames = torch.as_tensor(windows.sample(recipe.codec_stage.batch, draws).frames[:, 0], device=run.device)
            noise = run.noise(draws, len(frames)).normal(codec.tokens * codec.size)
            return {"pixels": codec.loss(frames, noise, recipe.place_jitter, recipe.emphasis).mean()}

        return Stage("codec", recipe.codec_stage, list(codec.parameters()), loss)

    def _fit_to_camera(self, recipe: VideoRecipe) -> VideoRecipe:
        """Return the recipe, with its settings for a moving camera where the data's camera moves."""
        if (moving := recipe.moving) is None:
            return recipe
        draws = np.random.default_rng([self.run.seed, 1004])
        frames = WindowSampler(self.run.store, 1).sample(256, draws).frames[:, 0].astype(np.float32)
        differs = np.abs(frames - np.median(frames, 0)).max(-1) > 255 * DIFFERENT
        if differs.mean() <= STILL:
            return recipe
        return replace(recipe, codec=moving.codec, emphasis=moving.emphasis, place_jitter=moving.jitter)

    def _tokens(self) -> torch.Tensor:
        run, codec = self.run, self.model.codec

        def encode(frames: torch.Tensor) -> torch.Tensor:
            return codec.encode(frames[:, 0])

        return encode_store(encode, codec.state_dict(), run.store, run.cache, run.dtype, run.device, run.bar)

    def _dynamics(self) -> Stage:
        model, recipe, stage, run = self.model, self.recipe, self.recipe.dynamics_stage, self.run
        every = ActionAndVideoWindows(self.run.store, self._tokens())
        scale = every.typical_change()
        forcing_length = model.past + recipe.stream.window

        def loss(step: int, draws: np.random.Generator) -> Losses:
            windows = every.draw(draws)
            if step % recipe.forcing_every == 0:
                frames = min(forcing_length, windows.longest + 1)
                rows = max(1, stage.batch // frames)
                clip = windows.sample(rows, frames, draws, run.device)
                losses = forcing_losses(model, clip.tokens, clip.actions, run.noise(draws, rows))
                return {k: 0.1 * v.mean() / scale for k, v in losses.items()}
            length = recipe.rollout[min(step * len(recipe.rollout) // stage.steps, len(recipe.rollout) - 1)]
            length = min(length, windows.longest)
            rows = max(1, stage.batch // length)
            sampler = step % recipe.sampler_every == recipe.sampler_every - 1
            alone = bool(draws.random() < recipe.alone) and not sampler
            context = 1 if alone else int(draws.integers(1, model.past + 2))
            context = min(context, windows.longest + 1 - length)
            clip = windows.sample(rows, context + length, draws, run.device)
            noise = run.noise(draws, rows)
            chunk = int(draws.integers(1, model.past + 1)) if sampler else 1
            with denoising(model, int(draws.integers(1, 5)) if sampler else 1):
                losses, _ = rollout_losses(
                    model, clip.tokens, clip.actions, context, noise, recipe.token_jitter, alone, chunk
                )
            # Other samplers have larger errors; their gradients must not dominate those of the default one.
            weight = 0.25 if sampler else 1.0
            return {
                "dynamics": weight * losses["dynamics"].mean() / scale,
                "uncertainty": 0.1 * losses["uncertainty"].mean(),
            }

        moved = [*model.stream.parameters(), *model.error_head.parameters()]
        return Stage("dynamics", stage, moved, loss)

    def _readings(self) -> Stage:
        model, recipe, stage, run = self.model, self.recipe, self.recipe.readings_stage, self.run
        every = ActionAndVideoWindows(self.run.store, self._tokens())
        length = min(12, every.first.longest)

        def loss(step: int, draws: np.random.Generator) -> Losses:
            """Mix real and imagined tokens in halves; half of each from windows with a success."""
            rows = max(1, stage.batch // (2 * length))
            clip = every.first.sample(2 * rows, length + 1, draws, run.device, rewarding=True)
            with torch.no_grad():
                noise = run.noise(draws, len(clip.tokens))
                _, imagined = rollout_losses(model, clip.tokens, clip.actions, 1, noise, recipe.token_jitter)
            tokens = torch.cat([clip.tokens[:, 1:], imagined]).flatten(0, 1).float()
            reward, terminated = (x.repeat(2, 1).flatten() for x in (clip.rewards, clip.terminated))
            losses = {
                k: v.mean() for k, v in reading_losses(model.reward_head, tokens.flatten(1), reward, terminated).items()
            }
            if clip.states is not None and model.probe is not None:
                # An imagined frame is read as what it shows, right or wrong: so only real tokens, with a little noise.
                real = clip.tokens.flatten(0, 1).flatten(1).float()
                real = real + recipe.token_jitter * run.noise(draws, len(real)).normal(real.shape[1])
                target = model.probe.standardize(clip.states.flatten(0, 1))
                losses["state"] = distance(model.predict_standardized(real), target).mean()
            return losses

        moved = [*model.reward_head.parameters()]
        if model.probe is not None and model.state_head is not None:
            moved += [*model.probe.parameters(), *model.state_head.parameters()]
        return Stage("readings", stage, moved, loss)

    def _joint(self) -> Stage:
        model, recipe, run = self.model, self.recipe, self.run
        stage, joint = recipe.joint_stage, model.joint
        assert joint is not None
        assert model.value_head is not None
        mix = DataMixture(run.store, self._tokens(), recipe)
        value_head = model.value_head

        def loss(step: int, draws: np.random.Generator) -> Losses:
            windows, role = mix.draw(draws)
            context = int(draws.choice([1, 2, model.past + 1]))  # a long history costs more than the chunk itself
            rows = stage.batch if role in ("act", "foresee") else stage.batch // 2  # the others have twice the tokens
            clip = windows.sample(rows, context + joint.chunk, draws, run.device)
            assert clip.at is not None
            noise = run.noise(draws, rows)
            tokens = clip.tokens.clone()
            jitter = noise.normal(tokens[0, :context].numel(), stream=1)
            tokens[:, :context] += recipe.token_jitter * jitter.view(tokens[:, :context].shape)
            parts = joint_losses(
                model, tokens, clip.actions, mix.aim[clip.at[:, 0].cpu()].to(run.device), context, noise, role
            )
            losses = {name: part.mean() for name, part in parts.items()}
            value = mix.value[clip.at[:, context - 1].cpu()].to(run.device)
            if (known := torch.isfinite(value)).any():
                logits = value_head(tokens[:, context - 1].flatten(1)).float()[:, 0]
                losses["value"] = F.binary_cross_entropy_with_logits(logits[known], value[known])
            return losses

        return Stage("joint", stage, [*joint.parameters(), *value_head.parameters()], loss)


@contextmanager
def denoising(model: VideoWAM, steps: int) -> Iterator[None]:
    """Let ``model`` denoise in ``steps`` passes inside the context."""
    before, model.denoise_steps = model.denoise_steps, steps
    try:
        yield
    finally:
        model.denoise_steps = before
