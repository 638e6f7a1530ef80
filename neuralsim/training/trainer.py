"""Trainer: trains a world folder from episodes, with progress, TensorBoard and checkpoints that resume to the bit.

Training stages (see ``neuralsim.training.stages``) define the losses, a recipe the durations. Every random draw is a function of
(seed, stage, step), so a run killed at any moment continues from its last checkpoint exactly as if it had not been.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress as Bar

from neuralsim.data.episode import HELD_OUT_EVERY
from neuralsim.data.store import EpisodeStore, JoinedStore
from neuralsim.data.windows import WindowSampler
from neuralsim.evaluation.evaluate import calibrate_uncertainty
from neuralsim.evaluation.rollouts import ImaginedRolloutConfig, held_out_episodes
from neuralsim.pretrained.card import finish, source_commit
from neuralsim.pretrained.starts import Starts
from neuralsim.pretrained.world import open_world
from neuralsim.runtime.device import arithmetic, pick_device, pick_dtype
from neuralsim.runtime.files import disk_errors, folder_lock, sweep_leftovers, write_atomically
from neuralsim.runtime.interrupt import GracefulInterrupt, Stopped
from neuralsim.runtime.machine import cpu_model
from neuralsim.runtime.progress import columns
from neuralsim.storage.fingerprint import store_fingerprint
from neuralsim.storage.weights import save_world
from neuralsim.training import checkpoint as ckpt
from neuralsim.training.config import TrainConfig
from neuralsim.training.latent_stages import LatentStages
from neuralsim.training.recipes import LatentRecipe, Recipe, StageConfig
from neuralsim.training.stages import Stage, StageContext, TrainingStages
from neuralsim.training.video_stages import VideoStages

CALIBRATION_STEPS = 30
"""Length of the held-out rollouts that set ``uncertainty_threshold``: one in a hundred of them exceeds it."""

ROLE_PARTS = ("joint.", "value_head.")
"""Prefixes of weights that a world which only simulates does not have."""
SETTINGS = "settings.json"
"""File in the run's folder with the settings that decide its result."""
RESUME = "make room and run the same command with --resume"


def stages_of(recipe: Recipe, run: StageContext) -> TrainingStages:
    """Make the training stages of ``recipe``."""
    return LatentStages(recipe, run) if isinstance(recipe, LatentRecipe) else VideoStages(recipe, run)


class Trainer:
    """One training run in its folder. ``run()`` trains all stages and returns the folder of the finished world."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.recipe = config.plan
        self.folder = config.folder
        self.device = pick_device(config.device)
        self.dtype = pick_dtype(config.precision, self.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        # Start states and the uncertainty threshold come from the first store; the others are training data only.
        self.home = EpisodeStore(config.store, config.episodes)
        self.store = JoinedStore([self.home, *map(EpisodeStore, config.further)]) if config.further else self.home
        _check_trainable(self.store)
        self.found = ckpt.latest_checkpoint(self.folder)
        if self.found and not config.resume:
            raise FileExistsError(
                f"{self.folder}: holds a run already (at {self.found.name}); add --resume to go on with it or choose another --out"
            )
        self.settings = json.loads(json.dumps(_settings(config, self.recipe, self.store)))
        if self.found:
            _check_same_settings(self.folder, self.settings)
        cache = config.cache or self.folder / "cache"
        run = StageContext(self.store, cache, config.seed, self.device, self.dtype, self._bar)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.training_stages = stages_of(self.recipe, run)
        self.model = self.training_stages.model.to(self.device)
        self.stages = self._chosen_stages()
        if config.init and not self.found:
            self._begin_with(config.init)
        self.model.train()
        self.progress = ckpt.read_progress(self.found) if self.found else ckpt.TrainingProgress(0, 0, 0.0)
        self._stopping = GracefulInterrupt()

    def rehearsal(self, store: EpisodeStore, cache: Path) -> TrainingStages:
        """Make the same stages on other episodes, with a model of their own, to measure the time of their steps."""
        training_stages = stages_of(
            self.recipe,
            StageContext(store, cache, self.config.seed, self.device, self.dtype, lambda _, a, b: iter(range(a, b))),
        )
        training_stages.model.to(self.device).train()
        return training_stages

    def _begin_with(self, world: str) -> None:
        """Copy the weights of a trained world; a ValueError where its shape differs. The weights of ROLE_PARTS may be missing on
        either side."""
        weights = open_world(world).model.state_dict()
        own = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
        shared = weights.keys() & own.keys()
        apart = {name for name in weights.keys() ^ own.keys() if not name.startswith(ROLE_PARTS)}
        differing = sorted(apart) + [name for name in shared if own[name] != weights[name].shape]
        if differing:
            raise ValueError(
                f"--init {world}: differs from recipe {self.recipe.name!r} in {len(differing)} tensors, e.g. {min(differing)}; "
                "choose a world that was trained with this recipe"
            )
        self.model.load_state_dict({name: weights[name] for name in shared}, strict=False)

    def _chosen_stages(self) -> list[tuple[int, str]]:
        """Return number and name of each stage to run; a ValueError for an unknown one, or one without a predecessor."""
        names, asked = list(self.training_stages.makers), self.config.stages
        if unknown := sorted(set(asked) - set(names)):
            raise ValueError(f"--stages: recipe {self.recipe.name!r} has no stage {unknown}; it has {', '.join(names)}")
        if asked and names[0] not in asked and not self.config.init:
            raise ValueError(
                f"--stages {' '.join(asked)}: needs the result of {names[0]!r}; name a world that has it with --init"
            )
        return [(i, name) for i, name in enumerate(names) if not asked or name in asked]

    # -- the run

    def run(self) -> Path:
        """Train all stages and write the world. Raises Stopped after a ctrl-C or ``stop_after``, with everything saved, and
        BlockingIOError where another process works in the run's folder."""
        with folder_lock(self.folder, "training"):
            if ckpt.latest_checkpoint(self.folder) != self.found:
                raise FileExistsError(
                    f"{self.folder}: another process has trained here meanwhile; run the same command again with --resume"
                )
            sweep_leftovers(self.folder / "checkpoints")
            write_atomically(self.folder / "recipe.json", json.dumps(asdict(self.recipe), indent=1))
            write_atomically(self.folder / SETTINGS, json.dumps(self.settings, indent=1))
            return self._run()

    def _run(self) -> Path:
        from diffusers.training_utils import EMAModel
        from torch.utils.tensorboard import SummaryWriter

        if self.found:
            ckpt.load_model(self.found, self.model)
        elif self.stages[0][0] == 0:
            self.training_stages.begin()
        begin, before = time.perf_counter(), self.progress.seconds
        with disk_errors(self.folder / "tensorboard", go_on=RESUME):
            writer = SummaryWriter(str(self.folder / "tensorboard"))
        makers = self.training_stages.makers
        try:
            with self._stopping:
                for index, name in self.stages:
                    if index < self.progress.stage:
                        continue
                    stage = makers[name]()
                    resumed = self.found is not None and index == self.progress.stage and self.progress.step > 0
                    optimizer = torch.optim.AdamW(
                        stage.parameters, lr=stage.config.lr, betas=(0.9, 0.98), weight_decay=1e-3
                    )
                    average = EMAModel(stage.parameters, decay=stage.config.ema, use_ema_warmup=True, power=0.75)
                    first = 0
                    if resumed and self.found is not None:
                        first = self.progress.step
                        ckpt.load_optimizer(self.found, optimizer)
                        average.shadow_params = [t.to(self.device) for t in ckpt.load_average(self.found)]
                        average.optimization_step = first
                    saved = time.perf_counter()
                    for step in self._bar(stage.name, first, stage.config.steps):
                        self._optimise(stage, optimizer, average, index, step, writer)
                        now = time.perf_counter()
                        self.progress = ckpt.TrainingProgress(index, step + 1, before + now - begin)
                        late = now - begin > 60 * self.config.stop_after
                        if self._stopping.asked or late or now - saved > self.config.checkpoint_every:
                            ckpt.save_checkpoint(
                                self.folder, self.progress, self.model, average.shadow_params, optimizer
                            )
                            self._picture(stage.name, step + 1, writer)
                            saved = time.perf_counter()
                            if self._stopping.asked or late:
                                raise Stopped(
                                    f"stopped in stage {stage.name!r} at step {step + 1}; add --resume to continue"
                                )
                    average.copy_to(stage.parameters)  # the next stage and the user get the averaged weights
                    self.training_stages.finish(stage.name)
                    self._picture(stage.name, stage.config.steps, writer)
                    self.progress = ckpt.TrainingProgress(index + 1, 0, before + time.perf_counter() - begin)
                    ckpt.save_checkpoint(
                        self.folder, self.progress, self.model, [], torch.optim.AdamW(stage.parameters)
                    )
        finally:
            with disk_errors(self.folder / "tensorboard", kept="all checkpoints", go_on=RESUME):
                writer.close()
        return self._write_world()

    def _optimise(
        self, stage: Stage, optimizer: torch.optim.Optimizer, average: Any, index: int, step: int, writer: Any
    ) -> None:
        draws = np.random.default_rng([self.config.seed, index, step])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(stage.config, step)
        with arithmetic(self.dtype, self.device):
            losses = stage.loss(step, draws)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            values = {k: float(v.detach()) for k, v in losses.items()}
            raise FloatingPointError(
                f"stage {stage.name!r}, step {step}, seed {self.config.seed}: loss is not finite ({values}); "
                "the last checkpoint is whole"
            )
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(stage.parameters, 1.0)
        optimizer.step()
        average.step(stage.parameters)
        shown = {k: float(v.detach()) for k, v in losses.items()}
        if step % 20 == 0:
            self._watched = stage.watched()
            for name, value in (shown | self._watched).items():
                writer.add_scalar(f"{stage.name}/{name}", value, step)
            writer.add_scalar(f"{stage.name}/gradient_norm", float(norm), step)
            writer.add_scalar(f"{stage.name}/learning_rate", learning_rate(stage.config, step), step)
        self._shown = " ".join(f"{k} {v:.4g}" for k, v in (shown | self._watched).items())

    def _picture(self, name: str, step: int, writer: Any) -> None:
        """Write samples for TensorBoard: held-out frames above the model's, reconstructed or rolled out 16 steps."""
        steps = min(16, int(self.store.lengths.max()))
        held_out = bool((self.store.lengths[held_out_episodes(self.store, all_held_out=False)] >= steps).any())
        draws = np.random.default_rng([self.config.seed, 1004])
        clip = WindowSampler(self.store, steps + 1, held_out).sample(8, draws)
        frames, actions = (torch.as_tensor(x, device=self.device) for x in (clip.frames, clip.actions))
        with torch.no_grad(), arithmetic(self.dtype, self.device):
            pair = self.training_stages.redraw(name, frames, actions)
        if pair is None:
            return
        strip = torch.cat(pair, 1).cpu().numpy()
        writer.add_images(f"{name}/truth_above_model", strip, step, dataformats="NHWC")

    # -- the finished world

    def _write_world(self) -> Path:
        """Write ``<run>/world``: config, weights, start states, training record, card and manifest. The uncertainty threshold is
        calibrated on held-out rollouts first."""
        target = self.folder / "world"
        self.model.eval()
        save_world(self.model, target)  # rounds the weights, so the threshold is that of the saved ones
        held_out = self.home.lengths[held_out_episodes(self.home, all_held_out=False)]
        context = self.model.spec.context
        held_out = held_out[held_out >= context]  # long enough for a history and a step
        if len(held_out):
            steps = min(CALIBRATION_STEPS, int(held_out.max()) + 1 - context)
            settings = ImaginedRolloutConfig(batch=64, seed=self.config.seed, precision=self.config.precision)
            limit = calibrate_uncertainty(self.model, self.home, steps=steps, config=settings)
            self.model.uncertainty_threshold.fill_(limit)
        save_world(self.model, target)
        held_out_or_all = None if not len(held_out) else True
        starts = Starts.cut(self.home, self.recipe.starts, context, self.config.seed, held_out_or_all)
        starts.save(target / "starts.npz")
        write_atomically(
            target / "training.json",
            json.dumps(
                {
                    "recipe": asdict(self.training_stages.recipe),
                    "seed": self.config.seed,
                    "init": self.config.init,
                    "stages": [name for _, name in self.stages],
                    "before": self._record_of(self.config.init),
                    "store": str(self.home.folder),
                    "source": self.home.info.source if "env" in self.home.info.source else {},
                    "episodes": len(self.store),
                    "training_frames": int((self.store.lengths[self.store.split(False)] + 1).sum()),
                    "collection_seeds": sorted(
                        {int(self.store.provenance(i).get("collection_seed", -1)) for i in range(len(self.store))}
                    ),
                    "hours": round(self.progress.seconds / 3600, 2),
                    "commit": source_commit(),
                    "hardware": f"{cpu_model()}, {os.cpu_count()} cores"
                    if self.device.type == "cpu"
                    else torch.cuda.get_device_name(),
                    "precision": str(self.dtype).removeprefix("torch."),
                    "threads": torch.get_num_threads(),
                },
                indent=1,
            ),
        )
        finish(target)
        return target

    @staticmethod
    def _record_of(world: str | None) -> dict[str, Any] | None:
        """Return the training record of ``world``, whose weights this run began with."""
        folder = None if world is None else open_world(world).folder
        path = None if folder is None else folder / "training.json"
        return json.loads(path.read_text()) if path is not None and path.is_file() else None

    # -- progress and stopping

    def _bar(self, name: str, first: int, total: int) -> Iterator[int]:
        """Yield steps ``first`` to ``total``, displayed with speed, remaining time and the current losses."""
        self._shown, self._watched = "", {}
        log, logged = self.folder / "train.log", time.perf_counter()
        with Bar(*columns("shown"), refresh_per_second=2) as bar:
            task = bar.add_task(name, total=total, completed=first, shown="")
            for step in range(first, total):
                yield step
                bar.update(task, completed=step + 1, shown=self._shown)
                if time.perf_counter() - logged > 15:
                    logged = time.perf_counter()
                    with disk_errors(log, kept="all checkpoints", go_on=RESUME), log.open("a") as file:
                        file.write(f"{time.strftime('%H:%M:%S')} {name} {step + 1}/{total} {self._shown}\n")


def _settings(config: TrainConfig, recipe: Recipe, store: EpisodeStore) -> dict[str, Any]:
    """Return what decides the result of a run, as plain JSON values."""
    return {
        "recipe": asdict(recipe),
        "data": {
            "episodes": len(store),
            "frames": int(store.lengths.sum()) + len(store),
            "fingerprint": store_fingerprint(store),
        },
        "seed": config.seed,
        "init": config.init,
        "stages": list(config.stages),
        "precision": config.precision,
    }


def _check_same_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raise a ValueError that names the settings in which the run in ``folder`` differs; runs of earlier versions kept the recipe
    alone."""
    if (folder / SETTINGS).is_file():
        before = json.loads((folder / SETTINGS).read_text())
    elif (folder / "recipe.json").is_file():
        before = {"recipe": json.loads((folder / "recipe.json").read_text())}
    else:
        return
    found = _differences("", before, {k: v for k, v in settings.items() if k in before})
    differing = [
        f"{name}: {_format(old)} then, {_format(new)} now"
        for name, old, new in sorted(found, key=lambda difference: difference[0] != "recipe.name")
    ]
    if differing:
        raise ValueError(
            f"{folder}: --resume with other settings than the run was started with ({'; '.join(differing[:4])}"
            f"{' ...' if len(differing) > 4 else ''}); repeat the same settings, or choose another --out"
        )


def _differences(prefix: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted name and both values of every leaf in which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(f"{prefix}.{name}" if prefix else name, old.get(name), new.get(name))
    elif old != new:
        yield prefix, old, new


def _format(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_trainable(store: EpisodeStore) -> None:
    """Raise a ValueError unless there are training episodes, some of them with actions in a world that has actions."""
    kept = store.split(held_out=False)
    if not len(kept):
        raise ValueError(
            f"{store.folder}: no episodes to train on ({len(store)} in all; those whose seed is a multiple of "
            f"{HELD_OUT_EVERY} are kept for evaluation)"
        )
    if store.spec.action_size and not store.acted(kept).any():
        raise ValueError(
            f"{store.folder}: all {len(kept)} training episodes are video without actions, so the effect of the actions of world "
            f"{store.spec.name!r} cannot be learned; add episodes that have them with --also"
        )


def learning_rate(config: StageConfig, step: int) -> float:
    """Return the learning rate at ``step``: linear warm-up, then a cosine down to a fiftieth."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def train(config: TrainConfig) -> Path:
    """Train a world and return its folder."""
    return Trainer(config).run()
