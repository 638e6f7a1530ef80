"""record: drive a true world by the keyboard and keep the episodes.

The window is the true environment at its own control rate. With ``headless`` the same program runs on a virtual clock from a
script of keys, one step each period of that clock, without waiting.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pygame

from neuralsim.agents.teleop.key_bindings import keyboard_for
from neuralsim.agents.teleop.keyboard import Keyboard
from neuralsim.agents.teleop.player import NAMES, dummy_screen, stop_on_signals
from neuralsim.agents.teleop.record_window import RecordWindow, Told
from neuralsim.agents.teleop.scripted_keys import ScriptEvent, press, read_script
from neuralsim.agents.teleop.take import ManualEpisode
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.gym_adapter.env import GymEnvConfig
from neuralsim.envs.registry import RealWorld, find_real_world, get_real_world
from neuralsim.envs.tasks.gym_world import gym_real_world
from neuralsim.runtime.files import write_atomically

MESSAGE_SECONDS = 3.0


@dataclass(frozen=True)
class RecordConfig:
    """Drive a true world by the keyboard and keep the episodes."""

    real: str
    """Name of a world (pusht, tworoom, carracing), or the id of any registered Gymnasium environment that shows frames."""
    out: Path | None = None
    """Folder of the episode store; data/<world>-played by default. What is there is added to."""
    steps: int = 1000
    """Actions in an episode at most."""
    seed: int = 0
    """Seed of the resets."""
    size: int | tuple[int, int] = 64
    """Frame side in pixels, or height and width; multiples of 8."""
    env_kwargs: str = "{}"
    """What gym.make is given besides, as JSON."""
    frames: Literal["auto", "render", "observation"] = "auto"
    """Where frames come from; auto takes observations where these are images, else rgb_array renders."""
    fit: Literal["stretch", "pad"] = "stretch"
    """How the environment's images become frames: stretched to fill them, or padded with black."""
    repeat: int = 1
    """How many of the environment's steps an action lasts; rewards are summed."""
    rate: float | None = None
    """The environment's own steps a second; by default as its metadata says."""
    action_names: tuple[str, ...] = ()
    """Names of its action dimensions; numbered by default."""
    labels: tuple[str, ...] = ()
    """What its choices are called, in order, where it has choices: 'left none right' puts the arrows on them."""
    speed: float = 1.0
    """Pace: 1 is the world's own, 0.5 half as fast; 0 as fast as it goes."""
    scale: int = 8
    """How many times larger than its frames the picture is."""
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
        self.real_world.make_spec(self.size)  # says what sizes there are

    @property
    def real_world(self) -> RealWorld:
        """The true world as episodes are made of it."""
        if find_real_world(self.real) is not None:
            return get_real_world(self.real)
        names = ("real", "env_kwargs", "frames", "fit", "repeat", "rate", "action_names")
        return gym_real_world(GymEnvConfig(*(getattr(self, name) for name in names)))

    @property
    def folder(self) -> Path:
        """Where the episodes go."""
        name = self.real_world.make_spec(self.size).name.replace("/", "-")
        return Path("data") / f"{name}-played" if self.out is None else self.out


@dataclass(frozen=True)
class RecordReport:
    """What was recorded: the store, the episodes and steps kept now, the episodes in the store, and the steps driven."""

    store: str
    kept: int
    steps_kept: int
    episodes: int
    steps: int
    seconds: float


class RecordPlayer:
    """Joins the true world, the keyboard, the window and the store; ``run_live`` and ``run_headless`` are its two clocks."""

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
        self.done = self.paused = False
        self.kept = self.steps_kept = self.steps = 0
        self._script = list(script)
        self._down: set[int] = set()
        self._message, self._message_until = "", 0.0
        self._now = 0.0
        self._begin = time.perf_counter()
        self._number = len(store)
        self.take = self._begin_take()

    def run_live(self) -> None:
        """Drive in real time until somebody quits."""
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
        """One step of the world, unless it stands still, and a picture."""
        if not self.paused and not self.take.ended:
            self.take.advance()
            self.steps += 1
        told = Told(
            seconds=len(self.take) / self.store.spec.rate_hz,
            total=self.take.total,
            ended=self.take.ended,
            paused=self.paused,
            kept=self.kept,
            message=self._message if self._now < self._message_until else "",
        )
        self.window.draw(self.take.frames[-1], told)

    def handle(self, event: pygame.event.Event) -> None:
        """One pygame event."""
        if self.done:
            return
        if event.type == pygame.QUIT:
            self.done = True
        elif event.type == pygame.WINDOWFOCUSLOST:
            self._down.clear()  # the key-up events go to another window
            self.keyboard.clear()
        elif event.type in (pygame.KEYDOWN, pygame.KEYUP):
            name = NAMES.get(event.key)
            if name == "gentle" or name in self.keyboard.keys:
                self._move(event.key, str(name), event.type == pygame.KEYDOWN)
            elif event.type == pygame.KEYDOWN:
                self._command(event.key)

    def keep(self) -> None:
        """Write the episode under way to the store, as far as it has come, and begin the next."""
        if not len(self.take):
            return
        index = len(self.store)
        # From 1 on: numbers that 20 divides are held out, and the first episodes are wanted for training.
        seed = self.config.seed * 1_000_003 + index + 1
        episode = self.take.episode({"seed": seed, "index": index, "policy": "keyboard"})
        self.store.add([episode])
        self.kept, self.steps_kept = self.kept + 1, self.steps_kept + len(episode)
        self._say(f"kept {len(episode)} steps")
        self._next()

    def discard(self) -> None:
        """Throw the episode under way away, and begin the next."""
        self._say("discarded")
        self._next()

    def restart(self) -> None:
        """Throw the episode under way away, and begin it again."""
        self._say("again from the beginning")
        self.take = self._begin_take()

    def finish(self) -> RecordReport:
        """What was recorded. What was neither kept nor discarded is not."""
        seconds = time.perf_counter() - self._begin
        return RecordReport(
            str(self.store.folder), self.kept, self.steps_kept, len(self.store), self.steps, round(seconds, 2)
        )

    def _begin_take(self) -> ManualEpisode:
        seed = int(np.random.default_rng([self.config.seed, self._number]).integers(2**31))
        states = bool(self.store.info.state_names)
        return ManualEpisode(self.env, self.keyboard, seed, self.config.steps, states)

    def _next(self) -> None:
        self._number += 1
        self.take = self._begin_take()

    def _elapsed(self) -> float:
        return time.perf_counter() - self._begin

    def _move(self, key: int, name: str, down: bool) -> None:
        if down:
            self._down.add(key)
            self.keyboard.hold(name)
            return
        self._down.discard(key)
        if not any(NAMES[k] == name for k in self._down):  # an arrow and its letter may both be down
            self.keyboard.release(name)

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

    def _say(self, message: str) -> None:
        self._message, self._message_until = message, self._now + MESSAGE_SECONDS


def record(config: RecordConfig) -> RecordReport:
    """Open the true world and drive it until somebody quits; episodes are on the disk as soon as they are kept."""
    script = () if config.script is None else read_script(config.script)
    real_world = config.real_world
    with contextlib.ExitStack() as opened:
        if config.headless:
            opened.enter_context(dummy_screen())
        env = real_world.make_env(config.size)
        opened.callback(env.close)
        keyboard, legend = keyboard_for(real_world.make_spec(config.size), config.labels or _labels(env))
        store = _store(config, real_world)
        spec = store.spec
        window = RecordWindow(spec.height, spec.width, config.scale, f"NeuralSim {config.real}", legend)
        opened.callback(window.close)
        player = RecordPlayer(config, env, keyboard, window, store, script)
        with stop_on_signals(player):
            if config.headless:
                player.run_headless()
            else:
                player.run_live()
        report = player.finish()
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(config.json, json.dumps(asdict(report), indent=1) + "\n")
    return report


def _labels(env: Any) -> tuple[str, ...]:
    """What the environment calls its choices, if it says so as Atari's do."""
    meanings = getattr(getattr(env, "env", env).unwrapped, "get_action_meanings", None)
    return tuple(map(str, meanings())) if callable(meanings) else ()


def _store(config: RecordConfig, real_world: RealWorld) -> EpisodeStore:
    """The store at ``config.folder``, for episodes of this very world; a ValueError where it is of another."""
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
