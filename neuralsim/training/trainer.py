"""train: episodes in, a world folder out; progress, TensorBoard, checkpoints, resume to the bit.

A curriculum (see ``neuralsim.training.stages``) says what is learned in which stages, a recipe how long. Every draw is a function of
(seed, stage, step), so a run that was killed at any moment goes on from its last checkpoint exactly as if it had not
been.
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
from neuralsim.evaluation.rollouts import held_out_episodes
from neuralsim.pretrained.card import finish, source_commit
from neuralsim.pretrained.starts import Starts
from neuralsim.pretrained.world import open_world
from neuralsim.runtime.device import arithmetic, pick_device, pick_dtype
from neuralsim.runtime.files import write_atomically
from neuralsim.runtime.interrupt import GracefulInterrupt, Stopped
from neuralsim.runtime.machine import cpu_model
from neuralsim.runtime.progress import columns
from neuralsim.training import checkpoint as ckpt
from neuralsim.training.config import TrainConfig
from neuralsim.training.latent_stages import LatentStages
from neuralsim.training.recipes import LatentRecipe, Recipe, StageConfig
from neuralsim.training.stages import Stage, StageContext, TrainingStages
from neuralsim.training.video_stages import VideoStages

CALIBRATION_STEPS = 30
"""Length of the held-out dreams that set ``uncertainty_threshold``: one in a hundred of them passes it."""

ROLE_PARTS = ("joint.", "value_head.")
"""Weights that a world which only simulates does not have."""


def stages_of(recipe: Recipe, run: StageContext) -> TrainingStages:
    """The curriculum that ``recipe`` is for."""
    return LatentStages(recipe, run) if isinstance(recipe, LatentRecipe) else VideoStages(recipe, run)


class Trainer:
    """A run in its folder. ``run()`` goes through the stages and returns the folder of the finished world."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.recipe = config.plan
        self.folder = config.folder
        self.device = pick_device(config.device)
        self.dtype = pick_dtype(config.precision, self.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        # Start states and the limit of doubt are the first store's; what else there is only teaches.
        self.home = EpisodeStore(config.store, config.episodes)
        self.store = JoinedStore([self.home, *map(EpisodeStore, config.further)]) if config.further else self.home
        _check_teaches(self.store)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.found = ckpt.latest_checkpoint(self.folder)
        if self.found and not config.resume:
            raise FileExistsError(
                f"{self.folder}: holds a run already (at {self.found.name}); add --resume to go on with it or choose another --out"
            )
        write_atomically(self.folder / "recipe.json", json.dumps(asdict(self.recipe), indent=1))
        cache = config.cache or self.folder / "cache"
        run = StageContext(self.store, cache, config.seed, self.device, self.dtype, self._bar)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.curriculum = stages_of(self.recipe, run)
        self.model = self.curriculum.model.to(self.device)
        self.stages = self._chosen_stages()
        if config.init and not self.found:
            self._begin_with(config.init)
        self.model.train()
        self.progress = ckpt.read_progress(self.found) if self.found else ckpt.Progress(0, 0, 0.0)
        self._stopping = GracefulInterrupt()

    def rehearsal(self, store: EpisodeStore, cache: Path) -> TrainingStages:
        """The same curriculum on other episodes, with a model of its own, to see how long its steps take."""
        curriculum = stages_of(
            self.recipe,
            StageContext(store, cache, self.config.seed, self.device, self.dtype, lambda _, a, b: iter(range(a, b))),
        )
        curriculum.model.to(self.device).train()
        return curriculum

    def _begin_with(self, world: str) -> None:
        """Copy the weights of a trained world; a ValueError says where its shape differs. What answers in other roles than
        simulating may be on one side alone."""
        weights = open_world(world).model.state_dict()
        own = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
        shared = weights.keys() & own.keys()
        apart = {name for name in weights.keys() ^ own.keys() if not name.startswith(ROLE_PARTS)}
        odd = sorted(apart) + [name for name in shared if own[name] != weights[name].shape]
        if odd:
            raise ValueError(
                f"--init {world}: differs from recipe {self.recipe.name!r} in {len(odd)} tensors, e.g. {min(odd)}; "
                "choose a world that was trained with this recipe"
            )
        self.model.load_state_dict({name: weights[name] for name in shared}, strict=False)

    def _chosen_stages(self) -> list[tuple[int, str]]:
        """Number and name of each stage to go through; a ValueError for one that the curriculum lacks, or that would go
        on from nothing."""
        names, asked = list(self.curriculum.makers), self.config.stages
        if unknown := sorted(set(asked) - set(names)):
            raise ValueError(f"--stages: recipe {self.recipe.name!r} has no stage {unknown}; it has {', '.join(names)}")
        if asked and names[0] not in asked and not self.config.init:
            raise ValueError(
                f"--stages {' '.join(asked)}: goes on from what {names[0]!r} makes; say from which world with --init"
            )
        return [(i, name) for i, name in enumerate(names) if not asked or name in asked]

    # -- the run

    def run(self) -> Path:
        """Train all stages and write the world. Raises Stopped after a ctrl-C or ``stop_after``, with everything
        saved."""
        from diffusers.training_utils import EMAModel
        from torch.utils.tensorboard import SummaryWriter

        if self.found:
            ckpt.load_model(self.found, self.model)
        elif self.stages[0][0] == 0:
            self.curriculum.begin()
        begin, before = time.perf_counter(), self.progress.seconds
        writer = SummaryWriter(str(self.folder / "tensorboard"))
        makers = self.curriculum.makers
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
                        self.progress = ckpt.Progress(index, step + 1, before + now - begin)
                        late = now - begin > 60 * self.config.stop_after
                        if self._stopping.asked or late or now - saved > self.config.checkpoint_every:
                            ckpt.save_checkpoint(
                                self.folder, self.progress, self.model, average.shadow_params, optimizer
                            )
                            self._picture(stage.name, step + 1, writer)
                            saved = time.perf_counter()
                            if self._stopping.asked or late:
                                raise Stopped(
                                    f"stopped in stage {stage.name!r} at step {step + 1}; add --resume to go on"
                                )
                    average.copy_to(stage.parameters)  # the averaged weights are what the next stage and the user see
                    self.curriculum.finish(stage.name)
                    self._picture(stage.name, stage.config.steps, writer)
                    self.progress = ckpt.Progress(index + 1, 0, before + time.perf_counter() - begin)
                    ckpt.save_checkpoint(
                        self.folder, self.progress, self.model, [], torch.optim.AdamW(stage.parameters)
                    )
        finally:
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
            named = {k: float(v.detach()) for k, v in losses.items()}
            raise FloatingPointError(
                f"stage {stage.name!r}, step {step}, seed {self.config.seed}: loss is not finite ({named}); the last checkpoint is whole"
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
        """Samples for TensorBoard: held-out truth above what the model makes of it, redrawn or dreamt 16 steps ahead."""
        steps = min(16, int(self.store.lengths.max()))
        held_out = bool((self.store.lengths[held_out_episodes(self.store, all_held_out=False)] >= steps).any())
        draws = np.random.default_rng([self.config.seed, 1004])
        clip = WindowSampler(self.store, steps + 1, held_out).sample(8, draws)
        frames, actions = (torch.as_tensor(x).to(self.device) for x in (clip.frames, clip.actions))
        with torch.no_grad(), arithmetic(self.dtype, self.device):
            drawn = self.curriculum.redraw(name, frames, actions)
        if drawn is None:
            return
        strip = torch.cat(drawn, 1).cpu().numpy()
        writer.add_images(f"{name}/truth_above_model", strip, step, dataformats="NHWC")

    # -- the finished world

    def _write_world(self) -> Path:
        """``<run>/world``: config, weights, start states, what the run was, card and manifest; the threshold of doubt is
        set on held-out dreams first."""
        target = self.folder / "world"
        self.model.eval()
        ckpt.save_world(self.model, target)  # rounds the weights, so the threshold is that of what ships
        held_out = self.home.lengths[held_out_episodes(self.home, all_held_out=False)]
        context = self.model.spec.context
        held_out = held_out[held_out >= context]  # long enough for a history and a step
        if len(held_out):
            steps = min(CALIBRATION_STEPS, int(held_out.max()) + 1 - context)
            limit = calibrate_uncertainty(
                self.model, self.home, steps=steps, seed=self.config.seed, precision=self.config.precision
            )
            self.model.uncertainty_threshold.fill_(limit)
        ckpt.save_world(self.model, target)
        held_out_or_all = None if not len(held_out) else True
        starts = Starts.cut(self.home, self.recipe.starts, context, self.config.seed, held_out_or_all)
        starts.save(target / "starts.npz")
        write_atomically(
            target / "training.json",
            json.dumps(
                {
                    "recipe": asdict(self.curriculum.recipe),
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
        """What is on record of how ``world``, whose weights this run began with, was trained."""
        folder = None if world is None else open_world(world).folder
        path = None if folder is None else folder / "training.json"
        return json.loads(path.read_text()) if path is not None and path.is_file() else None

    # -- progress and stopping

    def _bar(self, name: str, first: int, total: int) -> Iterator[int]:
        """Steps ``first`` to ``total``, shown with speed, ETA and the current losses."""
        self._shown, self._watched = "", {}
        log, told = self.folder / "train.log", time.perf_counter()
        with Bar(*columns("shown"), refresh_per_second=2) as bar:
            task = bar.add_task(name, total=total, completed=first, shown="")
            for step in range(first, total):
                yield step
                bar.update(task, completed=step + 1, shown=self._shown)
                if time.perf_counter() - told > 15:
                    told = time.perf_counter()
                    with log.open("a") as file:
                        file.write(f"{time.strftime('%H:%M:%S')} {name} {step + 1}/{total} {self._shown}\n")


def _check_teaches(store: EpisodeStore) -> None:
    """A ValueError unless some training episode tells what was done, in a world where anything can be done."""
    kept = store.split(held_out=False)
    if not len(kept):
        raise ValueError(
            f"{store.folder}: no episodes to train on ({len(store)} in all; those whose seed is a multiple of "
            f"{HELD_OUT_EVERY} are kept for measuring)"
        )
    if store.spec.action_size and not store.acted(kept).any():
        raise ValueError(
            f"{store.folder}: all {len(kept)} training episodes are video without actions, so nothing would tell what the "
            f"actions of world {store.spec.name!r} do; add episodes that have them with --also"
        )


def learning_rate(config: StageConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to a fiftieth."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def train(config: TrainConfig) -> Path:
    """Train a world; returns the folder of the finished one."""
    return Trainer(config).run()
