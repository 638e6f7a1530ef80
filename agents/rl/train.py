"""Train an agent in imagination or in the real environment, and evaluate it in both as it learns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

from neuralsim.agents.evaluation.policy_video import film_policy
from neuralsim.agents.policies.random_policies import RandomPolicy
from neuralsim.agents.policies.sb3_file import PolicyNote, load_policy, save_policy
from neuralsim.agents.rl.algorithms import Decay, build
from neuralsim.agents.rl.checkpoint import GO_ON, RLProgress, load_progress, save_progress
from neuralsim.agents.rl.config import CHANGEABLE, RECORDED_AS, RLConfig
from neuralsim.agents.rl.dyna import DynaRound, recipe_of
from neuralsim.agents.rl.eval_callback import EVAL_SEED, PolicyEvaluator
from neuralsim.agents.rl.learning_curve import FIGURES, FILE, LearningCurve, Point, load_curve, summary
from neuralsim.agents.rl.vec_envs import make_imagined_vec_env, make_real_vec_env
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.imagined.config import ImaginedEnvConfig
from neuralsim.evaluation.report import Report
from neuralsim.pretrained.starts import Starts
from neuralsim.pretrained.world import open_world
from neuralsim.runtime.device import float32_by_default
from neuralsim.runtime.files import disk_errors, folder_lock, sweep_leftovers, write_atomically
from neuralsim.runtime.interrupt import GracefulInterrupt, Stopped
from neuralsim.runtime.machine import circumstances
from neuralsim.runtime.progress import progress
from neuralsim.storage.fingerprint import fingerprint

SAVE_EVERY = 60.0
"""Seconds between checkpoints."""
LOG_EVERY = 15.0
"""Seconds between lines of the log."""
START_COUNT = 4096
"""Starts that imagined episodes draw from."""
FILMED = 4
"""Episodes in the video."""


class TrainerCallback(BaseCallback):
    """Reports progress to the RLTrainer between SB3's rollouts, and ends ``learn`` at ``until`` steps or on an interrupt."""

    def __init__(self, trainer: RLTrainer, until: int) -> None:
        super().__init__()
        self.trainer, self.until = trainer, until

    def _on_step(self) -> bool:
        return not (self.trainer.stopping.asked or self.num_timesteps >= self.until + self.trainer.model.n_envs)

    def _on_rollout_start(self) -> None:
        self.trainer.note(self.num_timesteps)  # all updates from these steps have been made


class RLTrainer:
    """One run of reinforcement learning in its folder; it resumes from the folder's checkpoint.

    Raises FileExistsError for a folder that holds a run, without ``config.resume``, and ValueError where the run was made with
    other settings.
    """

    def __init__(self, config: RLConfig, show: bool = False) -> None:
        self.config, self.rl_task, self.show = config, config.rl_task, show
        self.folder = config.folder
        found = load_progress(self.folder)
        if found and not config.resume:
            raise FileExistsError(
                f"{self.folder}: holds a run already (at step {found.steps}); add --resume to go on with it or choose another --out"
            )
        self.curve = load_curve(self.folder) if found else new_curve(config)
        if found:
            check_same_settings(self.curve, config)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(self.folder / "policies")
        self.home = open_world(config.learned_world, config.device)
        self.weights = fingerprint(self.home.model.state_dict())
        if found and found.weights not in ("", self.weights):
            raise ValueError(
                f"{self.folder}: this run learned in {config.learned_world!r}, whose weights have changed since; start again in "
                "another --out"
            )
        self.world = open_world(found.world, config.device) if found and found.world else self.home
        if config.dyna_rounds:
            recipe_of(self.home)  # says why it cannot be trained on
        self.evaluator = PolicyEvaluator(config, self.home)
        self.moves = config.algo == "dqn" and not self.world.spec.discrete
        self.progress = replace(found or RLProgress(), weights=self.weights)
        # Evaluations after the checkpoint will be made again.
        kept = tuple(p for p in self.curve.points if p.steps <= self.progress.steps)
        self.curve = replace(self.curve, points=kept, settings=config.recorded)
        self.model, self.rate = self._build()
        if found:
            found.restore(self.folder, self.model)
        self.stopping = GracefulInterrupt()
        self._mark = self._saved = time.perf_counter()
        self._logged = (self._mark, self.progress.steps)
        self._tick: Callable[[int, str], None] = lambda steps, text: None

    # -- parts

    @float32_by_default()
    def _build(self) -> tuple[Any, Decay]:
        pixels, device = self.config.observation == "pixels", str(self.world.model.device)
        return build(self.config.algo, self._make_vec_env(), pixels, self.config.seed, device)

    def _seed(self) -> None:
        """Seed by the run's seed and step: a resumed run must not draw the same starts again."""
        self.model.set_random_seed((self.config.seed * 1_000_003 + self.progress.steps) % 2**32)

    def _make_vec_env(self) -> VecEnv:
        c = self.config
        if c.real:
            return make_real_vec_env(self.world, self.rl_task, c.width, c.observation, self.moves, c.processes)
        settings = ImaginedEnvConfig(
            c.observation,
            horizon=c.horizon or self.rl_task.horizon,
            temperature=c.temperature,
            uncertainty_limit=c.uncertainty_limit,
            lean=not c.ensemble,
        )
        penalty = c.uncertainty_penalty
        return make_imagined_vec_env(self.world, self.rl_task, self._starts(), c.width, settings, penalty, self.moves)

    def _starts(self) -> Starts:
        """Starts of imagined episodes: those of the real reset, if the real environment can be put at states, else the learned
        world's own; with --branch, every other one from real episodes."""
        c = self.config
        count = START_COUNT if c.branch is None else START_COUNT // 2
        if self.rl_task.has_real_world and not self.rl_task.real_world().seeded:
            starts = self.rl_task.starts_in(self.world, count, c.seed)
        else:
            shipped_only = replace(self.rl_task, unknown="it cannot be put at states")
            starts = shipped_only.starts_in(self.home, count, c.seed)
        if c.branch is None:
            return starts
        return Starts.cut(EpisodeStore(c.branch), count, self.world.spec.context, c.seed).join(starts)

    # -- the run

    @float32_by_default()
    def train(self) -> LearningCurve:
        """Train to the end. Raises Stopped after an interrupt, with everything saved."""
        c = self.config
        self._seed()
        with self.stopping, self._reporting():
            if not self.curve.points and not self.progress.steps:
                self._evaluate()
            rounds = c.dyna_rounds + 1
            for k in range(self.progress.rounds, rounds):
                until = c.total * (k + 1) // rounds
                self._mark = self._saved = time.perf_counter()
                if self.progress.steps < until:
                    callback = TrainerCallback(self, until)
                    with disk_errors(self.folder, kept=self._kept, go_on=GO_ON):  # SB3 writes to tensorboard
                        self.model.learn(until - self.progress.steps, callback=callback, reset_num_timesteps=False)
                    self.note(self.model.num_timesteps, last=True)
                if self.stopping.asked:
                    self.save()
                    raise Stopped(f"stopped at step {self.progress.steps} of {c.total}; add --resume to go on")
                if k < c.dyna_rounds:
                    self.save()  # a killed round is resumed with the very policy that acted in it
                    self._run_dyna_round(k)
            if not self.curve.points or self.curve.points[-1].steps < self.progress.steps:
                self._evaluate()
            self.save()
        return self.curve

    def note(self, steps: int, last: bool = False) -> None:
        """Update the progress between rollouts; save and evaluate where it is time."""
        c, now = self.config, time.perf_counter()
        made = steps - self.progress.steps
        self.progress = replace(
            self.progress,
            steps=steps,
            true_steps=self.progress.true_steps + (made if c.real else 0),
            seconds=self.progress.seconds + now - self._mark,
        )
        self._mark = now
        self.rate.done = steps / c.total
        points = self.curve.points
        text = _format_point(points[-1]) if points else ""
        self._tick(steps, text)
        logged, at = self._logged
        if now - logged > LOG_EVERY:
            self._logged = (now, steps)
            rate = (steps - at) / (now - logged)
            self._log(f"{time.strftime('%H:%M:%S')} {steps}/{c.total} steps, {rate:.0f}/s {text}\n")
        evaluated, every = points[-1].steps if points else 0, max(1, c.total // c.n_evals)
        if not last and steps // every > evaluated // every:
            self._evaluate()
            self.save()
        elif now - self._saved > SAVE_EVERY:
            self.save()
        self._mark = time.perf_counter()
        self._logged = (self._logged[0] + self._mark - now, self._logged[1])  # evaluation is not learning

    def _log(self, line: str) -> None:
        path = self.folder / "train.log"
        with disk_errors(path, len(line), self._kept, GO_ON), path.open("a") as log:
            log.write(line)

    def _evaluate(self) -> None:
        """Add a point to the curve, and save the policy as it is now."""
        s = self.progress
        name = f"policies/{s.steps:09d}.zip"
        (self.folder / "policies").mkdir(exist_ok=True)
        with disk_errors(self.folder / name, kept=self._kept, go_on=GO_ON):
            save_policy(self.model, self.folder / name, self.policy_note)
        self.model.policy.set_training_mode(False)
        point = self.evaluator(self.model, s.steps, s.true_steps, s.seconds, name)
        self.curve = replace(self.curve, points=(*self.curve.points, point))
        self.curve.save(self.folder)
        with disk_errors(self.folder / "tensorboard", kept=self._kept, go_on=GO_ON):
            for key in FIGURES:
                if (figure := getattr(point, key)) is not None:
                    self._writer.add_scalar(f"return/{key}", figure.value, s.steps)
            if point.true is not None:
                self._writer.add_scalar("return/gap", point.imagined.value - point.true.value, s.steps)
            self._writer.add_scalar("return/doubted", point.doubted, s.steps)
            self._writer.flush()

    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        save_progress(self.folder, self.progress, self.model, self.policy_note)
        self._saved = time.perf_counter()

    @property
    def _kept(self) -> str:
        """The part of the run that survives a full disk, for messages."""
        there = (self.folder / "checkpoint" / "standing.json").is_file()
        return "the last checkpoint is whole" if there else "no checkpoint was written yet"

    @property
    def policy_note(self) -> PolicyNote:
        """The note inside the policy's file."""
        c = self.config
        return PolicyNote(
            algorithm=c.algo,
            observation=c.observation,
            world=self.rl_task.world,
            task=self.rl_task.name,
            model=c.learned_world,
            steps=self.progress.steps,
            seed=c.seed,
            moves=self.moves,
            kind=c.kind,
        )

    def _run_dyna_round(self, number: int) -> None:
        """Act in the real environment, train the world on, and go on learning in the new one."""
        work = DynaRound(self.config, self.home, self.world, self.folder, number)
        begin = time.perf_counter()
        self.world, drift, true_steps = work.run(self.model)
        seconds = time.perf_counter() - begin
        self.progress = replace(
            self.progress,
            rounds=number + 1,
            world=str(self.world.folder),
            true_steps=self.progress.true_steps + true_steps,
            seconds=self.progress.seconds + seconds,
            drift=(*self.progress.drift, drift),
        )
        self.model.set_env(self._make_vec_env())
        self._seed()
        self.model._last_obs = None  # it was imagined by the world as it was before
        self.save()

    # -- progress and stopping

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        from stable_baselines3.common.logger import configure
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder / "tensorboard"))
        self.model.set_logger(configure(str(self.folder / "tensorboard"), ["tensorboard"]))
        with progress(self.show, passing=False, field="text") as bar:
            task = bar.add_task("steps", total=self.config.total, completed=self.progress.steps, text="")
            self._tick = lambda steps, text: bar.update(task, completed=min(steps, self.config.total), text=text)
            try:
                yield
            finally:
                self._writer.close()


@float32_by_default()
def train_agent(config: RLConfig, show: bool = False) -> tuple[LearningCurve, list[Path]]:
    """Run everything: train (or copy, or only act), evaluate, film. Returns the learning curve and the files written.

    Raises BlockingIOError where another process is at work in the run's folder, and as RLTrainer does.
    """
    folder = config.folder
    with folder_lock(folder, "training an agent"):
        if config.algo in ("random", "clone"):
            _check_no_other_run(config)
        if config.algo == "random":
            curve = _act_at_random(config)
        elif config.algo == "clone":
            curve = _copy_demonstrations(config, show)
        else:
            curve = RLTrainer(config, show).train()
        files = [folder / FILE]
        last = curve.points[-1]
        if last.policy:
            files.append(folder / last.policy)
            if config.video:
                files.append(_film(config, folder / last.policy))
        if config.json is not None:
            write_atomically(config.json, (folder / FILE).read_text())
            files.append(config.json)
    return curve, files


def rl_command(config: RLConfig) -> tuple[Report, list[Path]]:
    """Run `train_agent` behind a progress bar; return the report of its learning curve, and the files it wrote."""
    curve, files = train_agent(config, show=True)
    return summary(curve), files


def check_same_settings(curve: LearningCurve, config: RLConfig) -> None:
    """Raise a ValueError that names the settings in which ``config`` differs from the run of ``curve``, but for CHANGEABLE ones."""
    asked = config.recorded
    there = RLConfig().recorded | dict(curve.settings) | {"algo": curve.algorithm}
    differ = [k for k in asked if k not in CHANGEABLE and asked[k] != there.get(k)]
    if differ:
        flags = {old: new for new, old in RECORDED_AS.items()}
        names = ", ".join(f"--{flags.get(k, k).replace('_', '-')} {there.get(k)}, asked for {asked[k]}" for k in differ)
        raise ValueError(
            f"{config.folder}: holds a run with other settings ({names}); give the same ones to go on with it, or choose another --out"
        )


def _check_no_other_run(config: RLConfig) -> None:
    there = load_curve(config.folder) if (config.folder / FILE).is_file() else None
    if there is not None and there.algorithm != config.algo:
        raise FileExistsError(
            f"{config.folder}: holds a run already (--algo {there.algorithm}, asked for {config.algo}); choose another --out"
        )


def _film(config: RLConfig, path: Path) -> Path:
    world = open_world(config.learned_world, config.device)
    starts = config.rl_task.starts_in(world, FILMED, EVAL_SEED + 1)
    policy = load_policy(path, world.spec.action_size, world.spec.action_space() if world.spec.discrete else None)
    return film_policy(config.folder / "policy.mp4", policy, world, config.rl_task, starts, config.observation)


def _act_at_random(config: RLConfig) -> LearningCurve:
    """Evaluate uniformly random actions: a curve of one point."""
    world = open_world(config.learned_world, config.device)
    point = PolicyEvaluator(config, world)(RandomPolicy(world.spec, config.seed), 0, 0, 0.0)
    return _save_single(config, point)


def _copy_demonstrations(config: RLConfig, show: bool) -> LearningCurve:
    """Clone the demonstrations of ``config.data`` and evaluate the result: a curve of one point."""
    from neuralsim.agents.rl.behavior_cloning import CloneConfig, clone

    if config.data is None:
        raise ValueError(
            f"--algo clone: say with --data which demonstrations; 'neuralsim collect {config.world} --policy expert --near-goal 0 "
            f"--out data/{config.world}-demos' makes some"
        )
    if config.observation != "features":
        raise ValueError(f"--algo clone: learns from features; leave --observation {config.observation} out")
    world = open_world(config.learned_world, config.device)
    begin = time.perf_counter()
    model = clone(world, config.rl_task, EpisodeStore(config.data), CloneConfig(seed=config.seed), show=show)
    seconds = time.perf_counter() - begin
    (config.folder / "policies").mkdir(parents=True, exist_ok=True)
    name = "policies/clone.zip"
    note = PolicyNote(
        "ppo",
        config.observation,
        config.rl_task.world,
        config.rl_task.name,
        config.learned_world,
        kind="clone",
    )
    with disk_errors(config.folder / name):
        save_policy(model, config.folder / name, note)
    return _save_single(config, PolicyEvaluator(config, world)(model, 0, 0, seconds, name))


def _save_single(config: RLConfig, point: Point) -> LearningCurve:
    config.folder.mkdir(parents=True, exist_ok=True)
    curve = replace(new_curve(config), points=(point,))
    curve.save(config.folder)
    return curve


def new_curve(config: RLConfig) -> LearningCurve:
    """The curve of a run without evaluations."""
    rl_task, about = config.rl_task, dict(circumstances())
    if not rl_task.has_real_world:
        about["true_world"] = f"not known, all figures are imagined alone: {rl_task.unknown}"
    settings = config.recorded
    return LearningCurve(
        config.kind, rl_task.world, rl_task.name, config.algo, config.seed, settings, about, outcome=rl_task.outcome
    )


def _format_point(point: Point) -> str:
    true = "" if point.true is None else f"true {point.true.value:.2f} "
    return f"{true}imagined {point.imagined.value:.2f}"
