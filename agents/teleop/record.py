"""The command ``record``: drive a real environment by the keyboard and keep the episodes.

The window shows the environment at its own control rate. With ``headless`` the same program runs on a virtual clock from a script of
keys, one step each period of that clock, without waiting.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pygame

from neuralsim.agents.policies.policy import Policy
from neuralsim.agents.screen import dummy_screen
from neuralsim.agents.teleop.key_bindings import keyboard_for
from neuralsim.agents.teleop.key_events import KeyEvents
from neuralsim.agents.teleop.keyboard import Keyboard
from neuralsim.agents.teleop.record_window import RecordStatus, RecordWindow
from neuralsim.agents.teleop.scripted_keys import ScriptEvent, press, read_script
from neuralsim.data.episode import Episode
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.gym_adapter.env import GymEnvConfig
from neuralsim.envs.registry import RealWorld, find_real_world
from neuralsim.envs.tasks.gym_world import gym_real_world
from neuralsim.runtime.command import CommandOutput
from neuralsim.runtime.files import disk_errors, folder_lock, write_atomically
from neuralsim.runtime.interrupt import GracefulInterrupt
from neuralsim.version import __version__

MESSAGE_SECONDS = 3.0


@dataclass(frozen=True)
class RecordConfig:
    """Drive a real environment by the keyboard and keep the episodes."""

    real: str
    """Name of a world (pusht, tworoom, carracing), or the id of any registered Gymnasium environment that shows frames."""
    out: Path | None = None
    """Folder of the episode store, which is added to; data/<world>-played by default."""
    steps: int = 1000
    """Actions in an episode at most."""
    seed: int = 0
    """Seed of the resets."""
    size: int | tuple[int, int] = 64
    """Frame side in pixels, or height and width; multiples of 8."""
    env_kwargs: str = "{}"
    """Further arguments of gym.make, as JSON."""
    frames: Literal["auto", "render", "observation"] = "auto"
    """Source of the frames; auto takes observations where these are images, else rgb_array renders."""
    fit: Literal["stretch", "pad"] = "stretch"
    """Fit of the environment's images into frames: stretched to fill them, or padded with black."""
    repeat: int = 1
    """Steps of the environment that an action lasts; rewards are summed."""
    rate: float | None = None
    """The environment's own steps a second; by default as its metadata says."""
    action_names: tuple[str, ...] = ()
    """Names of its action dimensions; numbered by default."""
    labels: tuple[str, ...] = ()
    """Labels of its choices, in order, where it has choices: 'left none right' puts the arrows on them."""
    speed: float = 1.0
    """Pace: 1 is the world's own, 0.5 half as fast; 0 as fast as it goes."""
    scale: int = 8
    """Magnification of the frames."""
    script: str | None = None
    """Keys pressed by the clock: a file or the text itself, e.g. '0 down UP; 1.5 up UP; 2 tap RETURN; 2.5 quit'."""
    headless: bool = False
    """No window: run the script on a virtual clock at the world's own rate, without waiting."""
    json: Path | None = None
    """Also write the report to this file."""

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("seed", 0), ("scale", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name}: expected {least} or more, got {getattr(self, name)}")
        if not 0 <= self.speed < float("inf"):
            raise ValueError(f"--speed: expected 0 or more, got {self.speed:g}")
        if self.headless and self.script is None:
            raise ValueError("--headless has no keyboard: give it --script 'SECONDS down KEY; ...'")
        self.real_world.make_spec(self.size)  # raises for a size it cannot have

    @property
    def real_world(self) -> RealWorld:
        """Record of the real world."""
        known = find_real_world(self.real)
        if known is not None:
            return known
        names = ("real", "env_kwargs", "frames", "fit", "repeat", "rate", "action_names")
        return gym_real_world(GymEnvConfig(*(getattr(self, name) for name in names)))

    @property
    def folder(self) -> Path:
        """Folder of the episode store."""
        name = self.real_world.make_spec(self.size).name.replace("/", "-")
        return Path("data") / f"{name}-played" if self.out is None else self.out


@dataclass(frozen=True)
class RecordReport:
    """Counts of a recording session."""

    store: str
    kept: int
    """Episodes kept in this session."""
    steps_kept: int
    episodes: int
    """Episodes in the store."""
    steps: int
    """Steps driven."""
    seconds: float

    def output(self) -> CommandOutput:
        """Return the line that the command prints."""
        line = f"{self.store}: {self.kept} episodes kept, {self.steps_kept} steps; {self.episodes} episodes in all"
        return CommandOutput(lines=[line])


class ManualEpisode:
    """An episode of ``env`` under ``policy``, from ``reset(seed=seed)`` until it is kept or thrown away.

    ``longest``: steps after which it is cut off. ``states``: True if the observations are states to be kept.
    """

    def __init__(self, env: gym.Env[np.ndarray, Any], policy: Policy, seed: int, longest: int, states: bool) -> None:
        self.env, self.policy, self.seed, self.longest = env, policy, seed, longest
        self._policy_state: Any = None
        self._observation, _ = env.reset(seed=seed)
        self.frames = [np.asarray(env.render())]
        self._states = [self._observation] if states else None
        self._actions: list[np.ndarray] = []
        self._rewards: list[float] = []
        self._terminated: list[bool] = []
        self._truncated: list[bool] = []

    def __len__(self) -> int:
        return len(self._actions)

    @property
    def total(self) -> float:
        """Sum of the rewards so far."""
        return float(sum(self._rewards))

    @property
    def ended(self) -> str:
        """Reason of its end: "terminated", "time limit" or "long enough"; empty while it goes on."""
        if self and self._terminated[-1]:
            return "terminated"
        if self and self._truncated[-1]:
            return "time limit"
        return "long enough" if len(self) >= self.longest else ""

    def advance(self) -> None:
        """Take one step, unless it has ended."""
        if self.ended:
            return
        action, self._policy_state = self.policy.predict(self._observation, self._policy_state)
        self._observation, reward, terminated, truncated, _ = self.env.step(action)
        self.frames.append(np.asarray(self.env.render()))
        if self._states is not None:
            self._states.append(self._observation)
        self._actions.append(action)
        self._rewards.append(float(reward))
        self._terminated.append(bool(terminated))
        self._truncated.append(bool(truncated))

    def episode(self, provenance: dict[str, Any]) -> Episode:
        """Return the steps so far, truncated where the world has not ended them; needs at least one."""
        truncated = np.array(self._truncated)
        truncated[-1] |= not self._terminated[-1]
        return Episode(
            frames=np.stack(self.frames),
            actions=np.stack(self._actions),
            rewards=np.array(self._rewards, np.float32),
            terminated=np.array(self._terminated),
            truncated=truncated,
            states=None if self._states is None else np.stack(self._states).astype(np.float32),
            provenance=provenance | {"reset_seed": self.seed, "version": __version__},
        )


class RecordPlayer:
    """Joins environment, keyboard, window and store; ``run_live`` and ``run_headless`` are its two clocks."""

    def __init__(
        self,
        config: RecordConfig,
        env: gym.Env[np.ndarray, Any],
        keyboard: Keyboard,
        window: RecordWindow,
        store: EpisodeStore,
        script: Sequence[ScriptEvent] = (),
    ) -> None:
        self.config, self.env, self.keyboard, self.window, self.store = config, env, keyboard, window, store
        self.keys = KeyEvents(keyboard, self._command)
        self.done = self.paused = False
        self.kept = self.steps_kept = self.steps = 0
        self._script = list(script)
        self._message, self._message_until = "", 0.0
        self._now = 0.0
        self._begin = time.perf_counter()
        self._seeds = {store.provenance(i).get("reset_seed") for i in range(len(store))}
        self._number = len(store) - 1
        self._next()

    def run_live(self) -> None:
        """Drive in real time until the user quits."""
        rate = self.store.spec.rate_hz * self.config.speed
        period = 1 / rate if rate else 0.0
        self._begin = time.perf_counter()
        due = 0.0
        while not self.done:
            waits = max(1, int(1000 * (due - self._elapsed())))
            self._now = self._elapsed()
            for event in (pygame.event.wait(waits), *pygame.event.get()):
                self.handle(event)
            self._now = self._elapsed()
            while self._script and self._script[0].time <= self._now:
                press(self._script.pop(0), 0.0)
            if self._now >= due:
                self.tick()
                due = max(due + period, self._now)  # a slow world must not race later to catch up

    def run_headless(self) -> None:
        """Play the script on a virtual clock: every step takes exactly one period of the world."""
        number = 0
        while not self.done:
            self._now = number / self.store.spec.rate_hz
            while self._script and self._script[0].time <= self._now + 1e-9:
                press(self._script.pop(0), 0.0)
            for event in pygame.event.get():
                self.handle(event)
            if not self.done:
                self.tick()
            number += 1

    def tick(self) -> None:
        """Step the world, unless it stands still, and draw."""
        if not self.paused and not self.episode.ended:
            self.episode.advance()
            self.steps += 1
        status = RecordStatus(
            seconds=len(self.episode) / self.store.spec.rate_hz,
            total=self.episode.total,
            ended=self.episode.ended,
            paused=self.paused,
            kept=self.kept,
            message=self._message if self._now < self._message_until else "",
        )
        self.window.draw(self.episode.frames[-1], status)

    def handle(self, event: pygame.event.Event) -> None:
        """Handle one pygame event."""
        if not self.done:
            self.keys.handle(event)
            self.done |= self.keys.closed

    def keep(self) -> None:
        """Write the episode under way to the store, as far as it has come, and begin the next.

        On a full disk the episode stays and can be kept again; headless, a DiskFullError is raised.
        """
        if not len(self.episode):
            return
        index = len(self.store)
        # From 1 on: numbers that 20 divides are held out, and the first episodes are wanted for training.
        seed = self.config.seed * 1_000_003 + index + 1
        episode = self.episode.episode({"seed": seed, "index": index, "policy": "keyboard"})
        try:
            kept = f"{self.kept} episodes kept before it are on the disk"
            with disk_errors(self.store.folder, episode.frames.nbytes, kept, "make room and press enter again"):
                self.store.add([episode])
        except OSError as error:
            if self.config.headless:
                raise
            self._show(f"not kept: {error.strerror or error}")
            print(f"neuralsim record: not kept: {error.strerror or error}", file=sys.stderr)
            return
        self.kept, self.steps_kept = self.kept + 1, self.steps_kept + len(episode)
        self._seeds.add(self.episode.seed)
        self._show(f"kept {len(episode)} steps")
        self._next()

    def discard(self) -> None:
        """Throw the episode under way away, and begin the next."""
        self._show("discarded")
        self._next()

    def restart(self) -> None:
        """Throw the episode under way away, and begin it again."""
        self._show("again from the beginning")
        self._reset()

    def report(self) -> RecordReport:
        """Return the counts; an episode that was neither kept nor discarded is not recorded."""
        seconds = time.perf_counter() - self._begin
        return RecordReport(
            str(self.store.folder), self.kept, self.steps_kept, len(self.store), self.steps, round(seconds, 2)
        )

    def _next(self) -> None:
        """Begin the next episode whose reset seed no kept episode has."""
        self._number += 1
        while self._reset_seed() in self._seeds:
            self._number += 1
        self._reset()

    def _reset(self) -> None:
        states = bool(self.store.info.state_names)
        self.episode = ManualEpisode(self.env, self.keyboard, self._reset_seed(), self.config.steps, states)

    def _reset_seed(self) -> int:
        return int(np.random.default_rng([self.config.seed, self._number]).integers(2**31))

    def _elapsed(self) -> float:
        return time.perf_counter() - self._begin

    def _command(self, key: int) -> None:
        if key in (pygame.K_ESCAPE, pygame.K_q):
            self.done = True
        elif key in (pygame.K_RETURN, pygame.K_KP_ENTER):
            self.keep()
        elif key == pygame.K_BACKSPACE:
            self.discard()
        elif key == pygame.K_r:
            self.restart()
        elif key == pygame.K_SPACE:
            self.paused = not self.paused

    def _show(self, message: str) -> None:
        self._message, self._message_until = message, self._now + MESSAGE_SECONDS


def record(config: RecordConfig) -> RecordReport:
    """Open the real environment and drive it until the user quits; episodes are on the disk as soon as they are kept.

    Raises a ValueError where the folder holds another world's episodes, BlockingIOError where another process writes there.
    """
    script = () if config.script is None else read_script(config.script)
    real_world = config.real_world
    with contextlib.ExitStack() as opened:
        if config.headless:
            opened.enter_context(dummy_screen())
        env = real_world.make_env(config.size)
        opened.callback(env.close)
        keyboard, effects = keyboard_for(real_world.make_spec(config.size), config.labels or _choice_labels(env))
        opened.enter_context(folder_lock(config.folder, "recording"))
        store = _open_store(config, real_world)
        size = (store.spec.height, store.spec.width)
        window = RecordWindow(size, config.scale, f"NeuralSim {config.real}", effects)
        opened.callback(window.close)
        player = RecordPlayer(config, env, keyboard, window, store, script)
        with GracefulInterrupt(lambda: setattr(player, "done", True), hangup=True):
            if config.headless:
                player.run_headless()
            else:
                player.run_live()
        report = player.report()
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(config.json, json.dumps(asdict(report), indent=1) + "\n")
    return report


def _choice_labels(env: Any) -> tuple[str, ...]:
    """Return the environment's own labels of its choices, if it has them as Atari's do."""
    meanings = getattr(getattr(env, "env", env).unwrapped, "get_action_meanings", None)
    return tuple(map(str, meanings())) if callable(meanings) else ()


def _open_store(config: RecordConfig, real_world: RealWorld) -> EpisodeStore:
    """Open the store at ``config.folder``; a ValueError where it holds episodes of another world, or a collection."""
    store = EpisodeStore.create(config.folder, real_world.make_spec(config.size), real_world.state_names)
    if not len(store) and store.info.source != real_world.source:
        store.set_source(dict(real_world.source))
    others = {k: v for k, v in store.info.source.items() if k in real_world.source or not real_world.source}
    if store.info.state_names != real_world.state_names or others != real_world.source:
        raise ValueError(
            f"{store.folder}: holds episodes of another world ({store.info.source or store.spec.name}); choose another --out"
        )
    if any("collection_seed" in store.provenance(i) for i in range(len(store))):
        raise ValueError(f"{store.folder}: holds a collection, which could not be resumed then; choose another --out")
    return store
