"""rl: train an agent inside a learned world (or in the true one), and look at it in the true one as it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

from neuralsim.agents.evaluation.policy_video import film_policy
from neuralsim.agents.policies.random_policies import RandomPolicy
from neuralsim.agents.policies.sb3_file import PolicyNote, load_policy, save_policy
from neuralsim.agents.rl import dyna as refresh
from neuralsim.agents.rl.algorithms import Decay, build
from neuralsim.agents.rl.checkpoint import RLProgress, load_progress, save_progress
from neuralsim.agents.rl.config import ELSEWHERE, RECORDED_AS, RLConfig
from neuralsim.agents.rl.eval_callback import TRIAL_SEED, PolicyEvaluator
from neuralsim.agents.rl.learning_curve import FIGURES, LearningCurve, Point, load_curve, summary
from neuralsim.agents.rl.vec_envs import make_imagined_vec_env, make_real_vec_env
from neuralsim.data.store import EpisodeStore
from neuralsim.evaluation.report import Report
from neuralsim.pretrained.starts import Starts
from neuralsim.pretrained.world import open_world
from neuralsim.runtime.files import write_atomically
from neuralsim.runtime.interrupt import GracefulInterrupt, Stopped
from neuralsim.runtime.machine import circumstances
from neuralsim.runtime.progress import progress

SAVE_EVERY = 60.0
"""Seconds between checkpoints."""
TELL_EVERY = 15.0
"""Seconds between lines of the log."""
START_COUNT = 4096
"""Starts that dreams draw from."""
FILMED = 4
"""Episodes on film."""


class Watch(BaseCallback):
    """Sees to progress, checkpoints, looks at the policy, and stopping, between SB3's rollouts."""

    def __init__(self, run: RLTrainer, until: int) -> None:
        super().__init__()
        self.run, self.until = run, until

    def _on_step(self) -> bool:
        return not (self.run.stopping.asked or self.num_timesteps >= self.until + self.run.model.n_envs)

    def _on_rollout_start(self) -> None:
        self.run.note(self.num_timesteps)  # with all updates made that these steps are good for


class RLTrainer:
    """A run in its folder."""

    def __init__(self, config: RLConfig, show: bool = False) -> None:
        self.config, self.rl_task, self.show = config, config.rl_task, show
        self.folder = config.folder
        found = load_progress(self.folder)
        if found and not config.resume:
            raise FileExistsError(
                f"{self.folder}: holds a run already (at step {found.steps}); add --resume to go on with it or choose another --out"
            )
        if config.threads:
            torch.set_num_threads(config.threads)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.home = open_world(config.dreamt, config.device)
        self.world = open_world(found.world, config.device) if found and found.world else self.home
        if config.refresh:
            refresh.recipe_of(self.home)  # says why it cannot be trained on
        self.trial = PolicyEvaluator(config, self.home)
        self.moves = config.algo == "dqn" and not self.world.spec.discrete
        self.standing = found or RLProgress()
        self.curve = load_curve(self.folder) if found else fresh_curve(config)
        # What was looked at after the checkpoint will be looked at again.
        kept = tuple(p for p in self.curve.points if p.steps <= self.standing.steps)
        self.curve = replace(self.curve, points=kept)
        self.model, self.rate = self._build()
        if found:
            found.restore(self.folder, self.model)
        self.stopping = GracefulInterrupt()
        self._mark = self._saved = time.perf_counter()
        self._told = (self._mark, self.standing.steps)
        self._tick: Callable[[int, str], None] = lambda steps, text: None

    # -- parts

    def _build(self) -> tuple[Any, Decay]:
        pixels, device = self.config.observation == "pixels", str(self.world.model.device)
        return build(self.config.algo, self._ground(), pixels, self.config.seed, device)

    def _seed(self) -> None:
        """Settle all chance to come by seed and step: whoever goes on must not meet the same starts again."""
        self.model.set_random_seed((self.config.seed * 1_000_003 + self.standing.steps) % 2**32)

    def _ground(self) -> VecEnv:
        c = self.config
        if c.real:
            return make_real_vec_env(self.world, self.rl_task, c.width, c.observation, self.moves, c.processes)
        return make_imagined_vec_env(
            self.world,
            self.rl_task,
            self._starts(),
            c.width,
            c.observation,
            c.horizon,
            c.temperature,
            c.doubt_limit,
            c.doubt_penalty,
            c.ensemble,
            self.moves,
        )

    def _starts(self) -> Starts:
        """Where dreams begin: where the true world's reset does, if it can be put at states, else where the learned world's own
        starts do; with --branch, every other one along true episodes."""
        c, truth = self.config, self.rl_task.truth
        count = START_COUNT if c.branch is None else START_COUNT // 2
        if truth is not None and truth.draw is not None:
            begun = self.rl_task.starts_in(self.world, count, c.seed)
        else:
            begun = replace(self.rl_task, truth=None).starts_in(self.home, count, c.seed)
        if c.branch is None:
            return begun
        return Starts.cut(EpisodeStore(c.branch), count, self.world.spec.context, c.seed).join(begun)

    # -- the run

    def train(self) -> LearningCurve:
        """Train to the end. Raises Stopped after a ctrl-C, with everything saved."""
        c = self.config
        self._seed()
        with self.stopping, self._progress():
            if not self.curve.points and not self.standing.steps:
                self._look()
            rounds = c.refresh + 1
            for k in range(self.standing.rounds, rounds):
                until = c.total * (k + 1) // rounds
                self._mark = self._saved = time.perf_counter()
                if self.standing.steps < until:
                    self.model.learn(
                        until - self.standing.steps, callback=Watch(self, until), reset_num_timesteps=False
                    )
                    self.note(self.model.num_timesteps, last=True)
                if self.stopping.asked:
                    self.save()
                    raise Stopped(f"stopped at step {self.standing.steps} of {c.total}; add --resume to go on")
                if k < c.refresh:
                    self._refresh(k)
            if not self.curve.points or self.curve.points[-1].steps < self.standing.steps:
                self._look()
            self.save()
        return self.curve

    def note(self, steps: int, last: bool = False) -> None:
        """Between rollouts: where we are, and whether it is time to save or to look."""
        c, now = self.config, time.perf_counter()
        made = steps - self.standing.steps
        self.standing = replace(
            self.standing,
            steps=steps,
            true_steps=self.standing.true_steps + (made if c.real else 0),
            seconds=self.standing.seconds + now - self._mark,
        )
        self._mark = now
        self.rate.done = steps / c.total
        points = self.curve.points
        words = _told(points[-1]) if points else ""
        self._tick(steps, words)
        told, at = self._told
        if now - told > TELL_EVERY:
            self._told = (now, steps)
            with (self.folder / "train.log").open("a") as log:
                log.write(
                    f"{time.strftime('%H:%M:%S')} {steps}/{c.total} steps, {(steps - at) / (now - told):.0f}/s {words}\n"
                )
        looked = points[-1].steps if points else 0
        if not last and steps // max(1, c.total // c.looks) > looked // max(1, c.total // c.looks):
            self._look()
            self.save()
        elif now - self._saved > SAVE_EVERY:
            self.save()
        self._mark = time.perf_counter()
        self._told = (self._told[0] + self._mark - now, self._told[1])  # looking is not learning

    def _look(self) -> None:
        """A point of the curve, and the policy as it is now."""
        s = self.standing
        name = f"policies/{s.steps:09d}.zip"
        (self.folder / "policies").mkdir(exist_ok=True)
        save_policy(self.model, self.folder / name, self.policy_note)
        self.model.policy.set_training_mode(False)
        point = self.trial(self.model, s.steps, s.true_steps, s.seconds, name)
        self.curve = replace(self.curve, points=(*self.curve.points, point))
        self.curve.save(self.folder)
        logger = self._writer
        for key in FIGURES:
            if (figure := getattr(point, key)) is not None:
                logger.add_scalar(f"return/{key}", figure.value, s.steps)
        if point.true is not None:
            logger.add_scalar("return/gap", point.imagined.value - point.true.value, s.steps)
        logger.add_scalar("return/doubted", point.doubted, s.steps)
        logger.flush()

    def save(self) -> None:
        """A checkpoint: whole or not at all."""
        save_progress(self.folder, self.standing, self.model, self.policy_note)
        self._saved = time.perf_counter()

    @property
    def policy_note(self) -> PolicyNote:
        """What is written into the policy's file."""
        c = self.config
        return PolicyNote(
            algorithm=c.algo,
            observation=c.observation,
            world=self.rl_task.world,
            task=self.rl_task.name,
            model=c.dreamt,
            steps=self.standing.steps,
            seed=c.seed,
            moves=self.moves,
            kind=c.kind,
        )

    def _refresh(self, number: int) -> None:
        """Act in truth, train the world on, dream on in the new one."""
        c = self.config
        work = refresh.DynaRounds(
            self.rl_task, self.home, self.world, self.folder, number, c.refresh_episodes, c.data, c.seed, c.device
        )
        begin = time.perf_counter()
        self.world, drift, true_steps = work.run(self.model)
        seconds = time.perf_counter() - begin
        self.standing = replace(
            self.standing,
            rounds=number + 1,
            world=str(self.world.folder),
            true_steps=self.standing.true_steps + true_steps,
            seconds=self.standing.seconds + seconds,
            drift=(*self.standing.drift, drift),
        )
        self.model.set_env(self._ground())
        self._seed()
        self.model._last_obs = None  # what it saw was dreamt by the world as it was
        self.save()

    # -- progress and stopping

    @contextmanager
    def _progress(self) -> Iterator[None]:
        from stable_baselines3.common.logger import configure
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder / "tensorboard"))
        self.model.set_logger(configure(str(self.folder / "tensorboard"), ["tensorboard"]))
        with progress(self.show, passing=False, field="text") as bar:
            task = bar.add_task("steps", total=self.config.total, completed=self.standing.steps, text="")
            self._tick = lambda steps, text: bar.update(task, completed=min(steps, self.config.total), text=text)
            try:
                yield
            finally:
                self._writer.close()


def train_agent(config: RLConfig, show: bool = False) -> tuple[LearningCurve, list[Path]]:
    """The whole run: train (or copy, or only act), look, film. Returns its curve and the files written."""
    if config.algo == "random":
        curve = _act_at_random(config)
    elif config.algo == "clone":
        curve = _copy_demonstrations(config, show)
    else:
        curve = RLTrainer(config, show).train()
    folder = config.folder
    files = [folder / "curve.json"]
    last = curve.points[-1]
    if last.policy:
        files.append(folder / last.policy)
        if config.video:
            world = open_world(config.dreamt, config.device)
            starts = config.rl_task.starts_in(world, FILMED, TRIAL_SEED + 1)
            spec = world.spec
            policy = load_policy(folder / last.policy, spec.action_size, spec.action_space() if spec.discrete else None)
            files.append(film_policy(folder / "policy.mp4", policy, world, config.rl_task, starts, config.observation))
    if config.json is not None:
        write_atomically(config.json, (folder / "curve.json").read_text())
        files.append(config.json)
    return curve, files


def _act_at_random(config: RLConfig) -> LearningCurve:
    """A curve of one point: what acting at random brings."""
    world = open_world(config.dreamt, config.device)
    point = PolicyEvaluator(config, world)(RandomPolicy(world.spec, config.seed), 0, 0, 0.0)
    return _single(config, point)


def _copy_demonstrations(config: RLConfig, show: bool) -> LearningCurve:
    """A curve of one point: what copying the demonstrations of ``config.data`` brings."""
    from neuralsim.agents.rl.behavior_cloning import clone

    if config.data is None:
        raise ValueError(
            f"--algo clone: say with --data which demonstrations; 'neuralsim collect {config.world} --policy oracle --near-goal 0 "
            f"--out data/{config.world}-demos' makes some"
        )
    if config.observation != "features":
        raise ValueError(f"--algo clone: learns from features; leave --observation {config.observation} out")
    world = open_world(config.dreamt, config.device)
    begin = time.perf_counter()
    model = clone(world, config.rl_task, EpisodeStore(config.data), config.seed, show=show)
    seconds = time.perf_counter() - begin
    (config.folder / "policies").mkdir(parents=True, exist_ok=True)
    name = "policies/clone.zip"
    note = PolicyNote(
        "ppo",
        config.observation,
        config.rl_task.world,
        config.rl_task.name,
        config.dreamt,
        kind="clone",
    )
    save_policy(model, config.folder / name, note)
    return _single(config, PolicyEvaluator(config, world)(model, 0, 0, seconds, name))


def _single(config: RLConfig, point: Point) -> LearningCurve:
    config.folder.mkdir(parents=True, exist_ok=True)
    curve = replace(fresh_curve(config), points=(point,))
    curve.save(config.folder)
    return curve


def fresh_curve(config: RLConfig) -> LearningCurve:
    """The curve of a run that was not looked at yet."""
    settings = {RECORDED_AS.get(k, k): v for k, v in asdict(config).items() if k not in ELSEWHERE}
    rl_task, about = config.rl_task, dict(circumstances())
    if not rl_task.has_real_world:
        about["true_world"] = f"not known, figures are imagined alone: {rl_task.unknown}"
    return LearningCurve(
        config.kind, rl_task.world, rl_task.name, config.algo, config.seed, settings, about, outcome=rl_task.outcome
    )


def _told(point: Point) -> str:
    true = "" if point.true is None else f"true {point.true.value:.2f} "
    return f"{true}imagined {point.imagined.value:.2f}"


def rl_command(config: RLConfig) -> tuple[Report, list[Path]]:
    """Run `train_agent` behind a progress bar; return the report of its learning curve, and the files it wrote."""
    curve, files = train_agent(config, show=True)
    return summary(curve), files
