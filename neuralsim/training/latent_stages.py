"""LatentStages: the training of a LatentWorld. Encoder, first predictors and state probe together; the decoder separately; then
the predictors alone, on vectors encoded once and on their own rollouts; then the heads (reward, end, state)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from neuralsim.data.windows import WindowSampler
from neuralsim.models.action_encoding import encode_actions
from neuralsim.models.codec import to_pixels
from neuralsim.models.latent_world import LatentState, LatentWorld, effective_rank, sigreg
from neuralsim.runtime.device import arithmetic
from neuralsim.training.losses import distance, reading_losses
from neuralsim.training.recipes import LatentRecipe
from neuralsim.training.stages import Losses, Stage, StageContext, TrainingStages
from neuralsim.training.token_dataset import TokenClip, TokenWindows, encode_store

DIRECTIONS = 512
"""Random directions per step along which the vectors are compared with a normal distribution."""


class LatentStages(TrainingStages):
    """Stages encoder, decoder, dynamics and readings."""

    model: LatentWorld

    def __init__(self, recipe: LatentRecipe, run: StageContext) -> None:
        self.recipe, self.run = recipe, run
        self.model = LatentWorld.build(run.store.spec, recipe.latent, run.store.info.state_names)
        self._rank = float("nan")

    @property
    def makers(self) -> dict[str, Callable[[], Stage]]:
        return {
            "encoder": self._encoder,
            "decoder": self._decoder,
            "dynamics": self._dynamics,
            "readings": self._readings,
        }

    def begin(self) -> None:
        """Measure the background (the median frame) and mean and standard deviation of the states."""
        self.model.background.copy_(self.run.median_frame())
        draws = np.random.default_rng([self.run.seed, 1005])
        states = WindowSampler(self.run.store, 1).sample(4096, draws).states
        if states is not None:
            self.model.probe.fit(torch.as_tensor(states[:, 0], device=self.run.device))

    def finish(self, stage: str) -> None:
        """Measure mean and standard deviation of the vectors after the encoder stage, the limit of the reconstruction error after the
        decoder stage."""
        if stage not in ("encoder", "decoder"):
            return
        model, run, stack = self.model, self.run, self.model.sizes.stack
        sample = WindowSampler(run.store, stack).sample(4096, np.random.default_rng([run.seed, 1002])).frames
        parts = [part.to(run.device) for part in torch.as_tensor(sample, device="cpu").split(256)]
        with torch.no_grad(), arithmetic(run.dtype, run.device):
            raw = [model.encode_raw(part) for part in parts]
            if stage == "encoder":
                model.mean.copy_(torch.cat(raw).mean(0))
                model.std.copy_(torch.cat(raw).std(0).clamp(min=1e-4))
            else:
                errors = [
                    model.reconstruction_error(p[:, -1], model.standardize(r)) for p, r in zip(parts, raw, strict=True)
                ]
                model.redraw_limit.copy_(torch.cat(errors).quantile(0.999))

    def redraw(
        self, stage: str, frames: torch.Tensor, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Reconstruct by the decoder once there is one, or roll out to the end."""
        if stage == "encoder":
            return None
        if stage == "decoder":
            return frames[:, -1], self.model.decode(self.model.encode(frames, actions))
        return self.roll_out_last(frames, actions)

    # -- stages

    def _encoder(self) -> Stage:
        model, recipe, run = self.model, self.recipe, self.run
        stack, block = model.sizes.stack, model.block
        windows = WindowSampler(run.store, stack + 2 * block)

        def loss(step: int, draws: np.random.Generator) -> Losses:
            rows = recipe.encoder_stage.batch
            clip = windows.sample(rows, draws)
            lengths = draws.integers(1, block + 1, size=(rows, 2))
            ends = stack - 1 + np.concatenate([np.zeros((rows, 1), int), lengths.cumsum(1)], 1)  # rows, 3
            back = np.arange(1 - stack, 1)
            seen = clip.frames[np.arange(rows)[:, None, None], ends[..., None] + back]  # rows 3 stack h w c
            raw = model.encode_raw(torch.as_tensor(seen, device="cpu").flatten(0, 1).to(run.device))
            vectors = ((raw - raw.mean(0)) / (raw.var(0, correction=0) + 1e-6).sqrt()).unflatten(0, (rows, 3))
            predicted = vectors[:, :1].expand(-1, model.sizes.members, -1)
            errors = []
            for hop in range(2):
                length = torch.as_tensor(lengths[:, hop], device=run.device)
                by = (ends[:, hop, None] + np.arange(block)).clip(max=clip.actions.shape[1] - 1)
                actions = torch.as_tensor(clip.actions[np.arange(rows)[:, None], by], device=run.device)
                predicted = model.predictors(predicted, encode_actions(model.spec, actions), length)
                errors.append((predicted - vectors[:, hop + 1, None]).square().mean())
            directions = run.noise(draws, 1).normal(DIRECTIONS * vectors.shape[-1]).view(vectors.shape[-1], DIRECTIONS)
            directions = directions / directions.norm(dim=0)
            spread = torch.stack([sigreg(vectors[:, i], directions) for i in range(3)]).mean()
            losses = {"prediction": torch.stack(errors).mean(), "regularity": recipe.regularity * spread}
            if clip.states is not None and clip.states.shape[-1]:
                true = torch.as_tensor(clip.states[np.arange(rows)[:, None], ends], device=run.device).flatten(0, 1)
                losses["probe"] = recipe.probe * model.probe.loss(vectors.flatten(0, 1), true).mean()
            if step % 20 == 0:
                self._rank = float(effective_rank(vectors.detach().flatten(0, 1)))
            return losses

        moved = [model.eye, model.mix, model.direct, model.predictors, model.probe]
        parameters = [p for module in moved for p in module.parameters()]
        return Stage("encoder", recipe.encoder_stage, parameters, loss, lambda: {"effective_rank": self._rank})

    def _decoder(self) -> Stage:
        model, recipe, run = self.model, self.recipe, self.run
        stack = model.sizes.stack
        windows = WindowSampler(run.store, stack)

        def loss(step: int, draws: np.random.Generator) -> Losses:
            frames = torch.as_tensor(windows.sample(recipe.decoder_stage.batch, draws).frames, device=run.device)
            with torch.no_grad():
                vectors = model.standardize(model.encode_raw(frames))
                vectors = vectors + recipe.jitter * run.noise(draws, len(frames)).normal(vectors.shape[1])
                pixels = to_pixels(frames[:, -1])
                weight = 1 + recipe.emphasis * ((pixels - model.background).abs().amax(1, keepdim=True) > 0.15)
            return {"pixels": ((model.draw(vectors) - pixels).square() * weight).mean()}

        return Stage("decoder", recipe.decoder_stage, [*model.brush.parameters(), *model.drawing.parameters()], loss)

    def _vectors(self) -> TokenWindows:
        model, run = self.model, self.run
        seeing = {
            k: v
            for k, v in model.state_dict().items()
            if k.split(".")[0] in ("eye", "mix", "direct", "mean", "std", "background")
        }

        def encode(frames: torch.Tensor) -> torch.Tensor:
            return model.standardize(model.encode_raw(frames))[:, None]

        vectors = encode_store(encode, seeing, run.store, run.cache, run.dtype, run.device, run.bar, model.sizes.stack)
        return TokenWindows(run.store, vectors)

    def _start(self, clip: TokenClip, draws: np.random.Generator) -> torch.Tensor:
        """Return the first vectors of ``clip`` for every member, with noise as rollouts soon have."""
        first, members = clip.tokens[:, :1, 0], self.model.sizes.members
        noise = self.run.noise(draws, len(first)).normal(members * first.shape[-1]).view(len(first), members, -1)
        return first + self.recipe.jitter * noise

    def _dynamics(self) -> Stage:
        model, recipe, stage, run = self.model, self.recipe, self.recipe.dynamics_stage, self.run
        windows = self._vectors()
        scale = windows.typical_change()
        block = model.block

        def loss(step: int, draws: np.random.Generator) -> Losses:
            hops = recipe.hops[min(step * len(recipe.hops) // stage.steps, len(recipe.hops) - 1)]
            # Half of the rollouts go in whole blocks, a quarter step by step, a quarter in any lengths.
            mixed = draws.integers(1, block + 1, size=hops).tolist()
            lengths = [[block] * hops, [block] * hops, [1] * hops, mixed][draws.integers(4)]
            clip = windows.sample(max(1, stage.batch // hops), 1 + sum(lengths), draws, run.device)
            predicted, at, errors = self._start(clip, draws), 0, []
            for length in lengths:
                predicted = model.predict_block(predicted, clip.actions.steps(at, at + length).values)
                at += length
                errors.append(distance(predicted, clip.tokens[:, at, :1].expand_as(predicted)).mean())
            return {"dynamics": torch.stack(errors).mean() / scale}

        return Stage("dynamics", stage, list(model.predictors.parameters()), loss)

    def _readings(self) -> Stage:
        model, recipe, run = self.model, self.recipe, self.run
        stage, windows = recipe.readings_stage, self._vectors()
        length = 2 * model.block

        def loss(step: int, draws: np.random.Generator) -> Losses:
            """Mix real and imagined vectors in halves; half of each from windows with a success."""
            rows = max(1, stage.batch // (2 * length))
            clip = windows.sample(2 * rows, length + 1, draws, run.device, rewarding=True)
            with torch.no_grad():
                first = self._start(clip, draws)
                state = LatentState(first, first.new_zeros(len(first)))
                run.noise(draws, 2 * rows)  # keeps the draws of earlier versions
                imagined = model.unroll_encoded(state, clip.actions.values).vectors.mean(2)
            vectors = torch.cat([clip.tokens[:, 1:, 0], imagined]).flatten(0, 1)
            reward, ended = (x.repeat(2, 1).flatten() for x in (clip.rewards, clip.terminated))
            losses = {k: v.mean() for k, v in reading_losses(model.reward_head, vectors, reward, ended).items()}
            if clip.states is not None and model.state_head is not None:
                # An imagined vector is read as what it shows, right or wrong: so only real vectors, with a little noise.
                real = clip.tokens[:, :, 0].flatten(0, 1)
                real = real + recipe.jitter * run.noise(draws, len(real)).normal(real.shape[1])
                target = model.probe.standardize(clip.states.flatten(0, 1))
                losses["state"] = distance(model.predict_standardized(real), target).mean()
            return losses

        moved = [*model.reward_head.parameters()]
        if model.state_head is not None:
            moved += model.state_head.parameters()
        return Stage("readings", stage, moved, loss)
