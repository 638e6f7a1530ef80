"""Any registered Gymnasium environment behind NeuralSim's spaces: frames of one size, normalised actions.

Its store keeps a record of the environment (``GymEnvConfig.source``), from which ``envs.tasks.gym_world.real_env_of`` makes it again.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator

from neuralsim.data.images import ImageResizer, Size, height_and_width
from neuralsim.envs.gym_adapter.action_mapping import GymActionMapping
from neuralsim.envs.gym_adapter.state_vector import StateVector
from neuralsim.envs.real_env import check_views
from neuralsim.spec import WorldSpec, plain_name

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # many environments draw with pygame, which greets on stdout

TRUSTED = "NEURALSIM_MODULES"
"""Environment variable: modules, with commas between, that the record of a store or world may have imported."""
GUESSED_RATE = 30.0
"""Steps a second of an environment without a control rate."""
LONGEST = 1000
"""Steps of an episode at most, of an environment without a time limit."""
SMALLEST = 8
"""An observation is an image from this many pixels a side on."""


@dataclass(frozen=True)
class GymEnvConfig:
    """A registered environment and the settings that make it a world."""

    env: str
    """Its id, as ``gym.make`` takes it: ``CarRacing-v3``, or ``module:ID``."""
    kwargs: str = "{}"
    """Further arguments of ``gym.make``, as JSON."""
    frames: Literal["auto", "render", "observation"] = "auto"
    """Source of frames; auto takes the observation where that is an image."""
    fit: Literal["stretch", "pad"] = "stretch"
    """Fit of its images into frames."""
    repeat: int = 1
    """Steps of the environment for one action."""
    rate: float | None = None
    """Steps of the environment a second; None: as its metadata says."""
    action_names: tuple[str, ...] = ()
    """Names of its action dimensions."""

    def __post_init__(self) -> None:
        if self.repeat < 1:
            raise ValueError(f"--repeat: expected 1 or more, got {self.repeat}")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise ValueError(f"--rate: expected steps a second above 0, got {self.rate:g}")
        try:
            kwargs = json.loads(self.kwargs)
        except json.JSONDecodeError as error:
            raise ValueError(f"--env-kwargs: expected JSON such as '{{\"g\": 9.8}}', got {self.kwargs!r}") from error
        if not isinstance(kwargs, dict):
            raise ValueError(f"--env-kwargs: expected a JSON object of names and values, got {self.kwargs!r}")  # noqa: TRY004

    @property
    def source(self) -> dict[str, Any]:
        """Record of the environment in a store; ready for JSON."""
        return {
            "env": self.env,
            "kwargs": json.loads(self.kwargs),
            "frames": self.frames,
            "fit": self.fit,
            "repeat": self.repeat,
        }

    @classmethod
    def of(cls, spec: WorldSpec, source: Mapping[str, Any]) -> GymEnvConfig:
        """Make the configuration again from the spec and source of a store.

        A record alone must not run a module's code: a module that it names must be imported already, or be named in the
        environment variable NEURALSIM_MODULES; else it is a ValueError.
        """
        module = source["env"].rpartition(":")[0]
        if module and module not in {*sys.modules, *os.environ.get(TRUSTED, "").split(",")}:
            raise ValueError(
                f"{source['env']}: the record of this world names a module to import; if {module!r} is yours, say so with "
                f"{TRUSTED}={module}"
            )
        return cls(
            env=source["env"],
            kwargs=json.dumps(source["kwargs"]),
            frames=source["frames"],
            fit=source["fit"],
            repeat=source["repeat"],
            rate=spec.rate_hz * source["repeat"],
            action_names=spec.action_names,
        )

    def make(self) -> gym.Env[Any, Any]:
        """Make the environment itself, with rgb_array frames where they are needed. Raises ValueError where it cannot be made."""
        try:
            spec = _registered(self.env)
            modes = _modes(spec)
            mode = None if self.frames == "observation" or "rgb_array" not in modes else "rgb_array"
            if self.frames == "render" and mode is None:
                raise ValueError(
                    f"{self.env}: --frames render needs the render mode rgb_array; this environment has "
                    f"{', '.join(map(str, modes)) or 'none'}"
                )
            settings = {"render_mode": mode} | json.loads(self.kwargs)
            return gym.make(spec, disable_env_checker=True, **settings)
        except gym.error.DependencyNotInstalled as error:
            ours = "pip install 'neuralsim[car]' (not gymnasium[box2d], which brings pygame-ce in beside pygame)"
            hint = ours if "box2d" in str(error).lower() else str(error)
            raise ValueError(f"{self.env}: a package that it needs is not installed: {hint}") from error
        except ModuleNotFoundError as error:
            raise ValueError(f"{self.env}: {error}; modules are looked for here and among those installed") from error
        except (gym.error.Error, TypeError) as error:
            raise ValueError(f"{self.env}: cannot be made with {self.kwargs}: {error}") from error


class GymRealEnv(gym.Env[np.ndarray, Any]):
    """The environment of ``world`` with frames of ``size``.

    Observation: the frame, uint8 ``(h, w, 3)``, or with ``observation="state"`` float32 ``(s,)`` named by ``state_names``: the
    environment's own observation, where that is a small vector. Action: of ``spec_world``, float32 ``(a,)`` in [-1, 1] or whole
    numbers. It lasts ``world.repeat`` of the environment's steps (fewer at its end), whose rewards are summed. Terminated and
    truncated are the environment's.
    """

    def __init__(
        self,
        world: GymEnvConfig,
        size: Size = 64,
        observation: Literal["pixels", "state"] = "pixels",
        render_mode: str | None = None,
    ) -> None:
        check_views(observation, render_mode)
        self.world, self.observation_kind, self.render_mode = world, observation, render_mode
        self.env = world.make()
        seen = self.env.observation_space
        self.from_observation = world.frames == "observation" or (world.frames == "auto" and _is_image(seen))
        if self.from_observation and not _is_image(seen):
            raise ValueError(
                f"{world.env}: --frames observation needs images, uint8 (h, w, 3); its observations are {seen}"
            )
        if not self.from_observation and self.env.render_mode != "rgb_array":
            raise ValueError(
                f"{world.env}: shows no frames: its render modes are "
                f"{', '.join(map(str, self.env.metadata.get('render_modes') or ())) or 'none'}, expected rgb_array, and its "
                f"observations are no images ({seen})"
            )
        fps = world.rate or self.env.metadata.get("render_fps")
        self.rate_guessed = not fps
        height, width = height_and_width(size)
        self.fit = ImageResizer(height, width, world.fit)
        names = world.action_names or tuple(getattr(self.env.unwrapped, "action_names", ()))
        self.actions = GymActionMapping(world.env, self.env.action_space, names)
        self.spec_world = WorldSpec(
            name=plain_name(self.env.spec.id if self.env.spec else world.env),
            height=height,
            width=width,
            rate_hz=float(fps or GUESSED_RATE) / world.repeat,
            context=4,
            **self.actions.spec_fields,
        )
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": self.spec_world.rate_hz}
        self.flat = StateVector(seen, tuple(getattr(self.env.unwrapped, "state_names", ())))
        if observation == "state" and not self.state_names:
            raise ValueError(f"{world.env}: its observations are no small vector ({seen}); use observation='pixels'")
        self.action_space = self.spec_world.action_space()
        self.observation_space = (
            spaces.Box(-np.inf, np.inf, (len(self.state_names),), np.float32)
            if observation == "state"
            else spaces.Box(0, 255, self.spec_world.frame_shape, np.uint8)
        )
        self._own: Any = None
        self._frame: np.ndarray | None = None  # drawn once a step
        self._ready = False

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the numbers of ``state``; empty where there is none."""
        return self.flat.names

    @property
    def own_observation(self) -> Any:
        """Newest observation of the environment itself."""
        return self._own

    @cached_property
    def steps(self) -> int:
        """Actions in an episode at most, by the environment's time limit, or LONGEST."""
        limit = self.env.spec.max_episode_steps if self.env.spec else None
        return min(LONGEST, -(-limit // self.world.repeat) if limit else LONGEST)

    def resized(self, size: Size) -> WorldSpec:
        """Return the spec of this world in frames of another size."""
        height, width = height_and_width(size)
        return replace(self.spec_world, height=height, width=width)

    def remarks(self) -> tuple[str, ...]:
        """Describe how the environment became a world: frames and rate, one line each. Resets it."""
        self.reset(seed=0)
        name, spec = self.spec_world.name, self.spec_world
        image = self._image()
        where = "its observations" if self.from_observation else "its rgb_array renders"
        lines = [f"{name}: frames from {where}, {self.fit.about(*image.shape[:2])}"]
        repeated = f", each action lasting {self.world.repeat} steps" if self.world.repeat > 1 else ""
        if self.rate_guessed:
            lines.append(f"{name}: has no control rate; {spec.rate_hz:g} Hz is a guess{repeated}, see --rate")
        else:
            lines.append(f"{name}: {spec.rate_hz:g} Hz{repeated}")
        return tuple(lines)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self._own, info = self.env.reset(seed=seed, options=options)
        self._frame, self._ready = None, True
        return self._observe(), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take ``world.repeat`` steps of the environment under ``action``."""
        if not self._ready:
            raise gym.error.ResetNeeded("GymRealEnv.step before reset: call env.reset(seed=...) first")
        given = np.asarray(action)
        given = self.spec_world.check_actions(self.spec_world.from_space(given) if given.ndim == 0 else given)
        if given.ndim != 1:
            raise ValueError(f"action: expected shape ({self.spec_world.action_size},), got {given.shape}")
        own, self._frame = self.actions.to_own(given, self.spec_world), None
        total, terminated, truncated = 0.0, False, False
        for _ in range(self.world.repeat):
            self._own, reward, terminated, truncated, info = self.env.step(own)
            total += float(reward)
            if terminated or truncated:
                break
        return self._observe(), total, bool(terminated), bool(truncated), info

    def render(self) -> np.ndarray:
        """Return the current frame, uint8 ``(h, w, 3)``."""
        if self._frame is None:
            self._frame = self.fit(self._image())
        return self._frame.copy()

    def state(self) -> np.ndarray:
        """Return the state, float32 ``(s,)``, named by ``state_names``."""
        if not self.state_names:
            raise ValueError(f"{self.world.env}: its observations are no small vector")
        return self.flat(self._own)

    def close(self) -> None:
        self.env.close()

    def _image(self) -> np.ndarray:
        image: Any = self._own if self.from_observation else self.env.render()
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            came = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise ValueError(f"{self.world.env}: expected rgb_array frames, uint8 (h, w, 3), got {came}")
        return image

    def _observe(self) -> np.ndarray:
        return self.render() if self.observation_kind == "pixels" else self.state()


def _is_image(space: spaces.Space[Any]) -> bool:
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) != 3:
        return False
    return space.shape[2] == 3 and min(space.shape[:2]) >= SMALLEST


def _registered(env: str) -> EnvSpec:
    """Find the Gymnasium record of ``env``; for ``module:ID`` the module is imported first, from the current folder too."""
    module, _, name = env.rpartition(":")
    if module:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # an installed program does not look for modules where it is called
        importlib.import_module(module)
    if name not in gym.registry:
        near = difflib.get_close_matches(name, gym.registry, 3, 0.6)
        hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
        raise ValueError(
            f"no environment {name!r} is registered{hint}; one of your own is named with the module that registers it, "
            "module:ID"
        )
    return gym.registry[name]


def _modes(spec: EnvSpec) -> list[str]:
    """Return its render modes without making it; a maker without metadata is taken to have rgb_array."""
    maker = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    metadata = getattr(maker, "metadata", None)
    return list(metadata.get("render_modes") or ()) if isinstance(metadata, dict) else ["rgb_array"]
