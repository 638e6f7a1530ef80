"""RealWorld: the one record of a real world, from which every command learns what it needs to know of that world.

A world of your own is one record, given to :func:`register_real_world`; nothing else lists worlds.
"""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium as gym
import numpy as np

from neuralsim.pretrained.registration import ENTRY_POINT, VECTOR_ENTRY_POINT
from neuralsim.spec import WorldSpec
from neuralsim.storage.resolve import add_alias
from neuralsim.training.recipe_registry import register_recipe

if TYPE_CHECKING:
    import torch

    from neuralsim.data.images import Size
    from neuralsim.evaluation.state_estimator import StateEstimator
    from neuralsim.evaluation.world_metrics import WorldMetrics
    from neuralsim.pretrained.starts import Starts

EntryPoint = str | Callable[..., Any]
"""A callable, or where it lies: ``module:name``, imported on first use. Records of worlds that bring heavy modules along, or name
things of agents/, say where."""
MODULES = "NEURALSIM_MODULES"
"""Environment variable: modules, with commas between, that a record of a store or world may have imported, and in which worlds that
are not known yet are looked for. Worker processes inherit it."""
FIRST_STATE = 77
"""Seeds of first states are drawn from [seed, FIRST_STATE]."""


@dataclass(frozen=True)
class ScriptedPolicies:
    """The policies that come with a world; each is a Stable-Baselines3 ``predict``."""

    explorer: EntryPoint = "neuralsim.agents.policies.random_policies:HoldActionPolicy.for_env"
    """``(env, seed)`` -> a policy on states that shows much of the world."""
    expert: EntryPoint | None = None
    """``(seed,)`` -> a policy on states that does the world's task by looking ahead in the real simulator."""
    frame_policies: Mapping[str, EntryPoint] = field(default_factory=dict)
    """By name: ``(size,)`` -> a policy on frames uint8 ``(b, h, w, 3)``, which drives imagined frames too."""

    def make_explorer(self, env: gym.Env[Any, Any], seed: int) -> Any:
        """The explorer of ``env``."""
        return load(self.explorer)(env, seed)

    def make_expert(self, seed: int) -> Any:
        """The expert; a ValueError where the world has none."""
        if self.expert is None:
            raise ValueError("this world has no expert")
        return load(self.expert)(seed)


@dataclass(frozen=True)
class TeleopSettings:
    """Keys and pace with which a person plays a world, and the names of its figures on the screen."""

    keyboard: EntryPoint | None = None
    """``()`` -> a Keyboard; None: one laid out by the world's spec."""
    keys: tuple[tuple[str, str], ...] = ()
    """Each key of ``keyboard`` with its effect."""
    reward: str = "reward"
    """Name of the reward."""
    reward_is_share: bool = False
    """The reward lies in 0..1 and is drawn as a bar."""
    end: str = "end"
    """Name of the termination."""
    fps: float | None = None
    """Steps a second; None: the spec's ``rate_hz``."""


@dataclass(frozen=True)
class RobotSettings:
    """The robot of a world."""

    limits: EntryPoint | None = None
    """``()`` -> the Limits of the safety monitor."""
    faults: EntryPoint | None = None
    """Faults with which the safety monitor is tested."""
    simulated: EntryPoint | None = None
    """``(seed=, truth=)`` -> a simulated Robot that steps when it is sent an action."""
    server: EntryPoint | None = None
    """``(rate=, faults=, seed=)`` -> a context manager that runs the simulated robot, ground truth shown, in a process of its own at
    ``rate`` actions a second, and gives its address."""


@dataclass(frozen=True, eq=False)
class RealWorld:
    """A real world: its environment, its tasks, and all that commands ask of it.

    Only ``name``, ``env`` and ``spec`` are needed; a command says so where it needs more. Where a field is an EntryPoint, its
    text gives the arguments and the result.
    """

    name: str
    """The name of its specs, stores and models, and the word for it on the command line."""
    env: EntryPoint
    """``(size, observation="state" or "pixels", render_mode=None or "rgb_array")`` -> the environment, behind ``spec``'s spaces. It has
    ``spec_world``, ``render()`` in every mode, and ``state()`` where it has ``state_names``; see RealEnv."""
    spec: EntryPoint
    """``(size,)`` -> its WorldSpec in frames of that size."""
    env_id: str | None = None
    """Gymnasium id of ``env``."""
    imagined_id: str | None = None
    """Gymnasium id of the shipped learned world."""
    shipped: str | None = None
    """The learned world that ``name`` opens."""
    former_names: tuple[str, ...] = ()
    """Names that ``shipped`` had in earlier versions."""
    state: str | tuple[str, ...] = ()
    """Names of the numbers of a state, or where they stand; none where the environment shows frames alone."""
    random_state: EntryPoint | None = None
    """``(rng, near_goal)`` -> a random state ``(s,)`` that ``reset(options={"state": ...})`` goes to. None: the environment cannot be
    put at a state, and episodes begin at resets by seed and end where the environment ends them."""
    horizon: int = 300
    """Steps in an episode at most."""
    time_limit: int | None = None
    """``max_episode_steps`` of ``env_id``; None: ``horizon``."""
    collect_steps: int | None = None
    """Steps of a collected episode at most; None: ``horizon``."""
    square: bool = True
    """Frames are square."""
    policies: ScriptedPolicies = ScriptedPolicies()
    """Its scripted policies."""
    tasks: str | Mapping[str, Any] | None = None
    """RLTask by name, the default one first, or where they stand; None: the environment's own reward and end."""
    goal_task: EntryPoint | None = None
    """Its GoalTask, for planning to a goal state."""
    metrics: EntryPoint | None = None
    """``(size,)`` -> the WorldMetrics of its frames."""
    role_metrics: EntryPoint | None = None
    """``(size,)`` -> the metrics of a world action model's roles beside its simulator."""
    state_estimator: EntryPoint | None = None
    """``(size,)`` -> a StateEstimator of its frames."""
    simulator: EntryPoint | None = None
    """``(size, context)`` -> its Simulator, which the Oracle plans in."""
    teleop: TeleopSettings = TeleopSettings()
    """Keys, labels and pace of play."""
    robot: RobotSettings = RobotSettings()
    """Its robot, limits and simulation."""
    recipes: Mapping[str, EntryPoint] = field(default_factory=dict)
    """``()`` -> a recipe of ``neuralsim train``, by its name."""
    bare_env: EntryPoint | None = None
    """``(size,)`` -> the environment by others that ``env`` is built on, with frames of that size and ``env``'s actions, to compare
    speeds with."""
    episodes_per_shard: int | None = None
    """Episodes in a shard of a store; None: as many as are good to write at once."""
    fresh_env: bool = False
    """Every collected episode has an environment of its own, so that nothing of another's is left in it."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Record for stores from which the environment can be made again; empty for a registered world."""
    remarks: Callable[[Size], tuple[str, ...]] = lambda size: ()
    """Lines that 'neuralsim collect' prints of how the environment became a world."""

    @cached_property
    def state_names(self) -> tuple[str, ...]:
        """Names of the numbers of a state ``(s,)``."""
        return tuple(load(self.state)) if isinstance(self.state, str) else self.state

    @property
    def seeded(self) -> bool:
        """Episodes begin at resets by seed alone."""
        return self.random_state is None

    @property
    def most_collected(self) -> int:
        """Steps of a collected episode at most."""
        return self.horizon if self.collect_steps is None else self.collect_steps

    def make_spec(self, size: Size) -> WorldSpec:
        """The spec in frames of ``size``; a ValueError for a size that it has not."""
        spec: WorldSpec = load(self.spec)(self._size(size))
        return spec

    def make_env(self, size: Size, observation: str = "state", render_mode: str | None = None) -> gym.Env[Any, Any]:
        """The environment in frames of ``size``, with states or pixels as its observation."""
        env: gym.Env[Any, Any] = load(self.env)(
            self._size(size), observation=observation if self.state_names else "pixels", render_mode=render_mode
        )
        return env

    def draw_state(self, rng: np.random.Generator, near_goal: bool = False) -> np.ndarray:
        """A random state ``(s,)``; a ValueError for a world that begins by seed alone."""
        if self.random_state is None:
            raise ValueError(f"world {self.name!r} begins by seed alone; no start state can be drawn")
        state: np.ndarray = load(self.random_state)(rng, near_goal)
        return state

    def starts(self, count: int, seed: int, size: Size) -> Starts:
        """``count`` initial histories of one frame each, with their states, or else the seeds of their resets."""
        from neuralsim.pretrained.starts import Starts

        states = seeds = None
        if self.seeded:
            seeds = self.reset_seeds(count, seed)
            resets: list[dict[str, Any]] = [{"seed": s} for s in seeds]
        else:
            rng = np.random.default_rng([seed, FIRST_STATE])
            states = [self.draw_state(rng) for _ in range(count)]
            resets = [{"options": {"state": s}} for s in states]
        env = self.make_env(size, "pixels")
        try:
            frames = [env.reset(**reset)[0] for reset in resets]
        finally:
            env.close()
        spec: WorldSpec = env.get_wrapper_attr("spec_world")
        return Starts(
            np.stack(frames)[:, None],
            np.zeros((count, 0, spec.action_size), spec.action_dtype),
            None if states is None else np.stack(states)[:, None],
            None if seeds is None else np.array(seeds, np.int64),
        )

    @staticmethod
    def reset_seeds(count: int, seed: int) -> list[int]:
        """Seeds of ``count`` resets; a larger ``count`` begins with the same ones."""
        return [int(s) for s in np.random.default_rng([seed, FIRST_STATE]).integers(2**31, size=count)]

    def make_metrics(self, spec: WorldSpec) -> WorldMetrics | None:
        """The metrics of frames of ``spec``; None where there are none, or none for that shape."""
        if self.metrics is None or spec.height != spec.width:
            return None
        metrics: WorldMetrics = load(self.metrics)(spec.height)
        return metrics

    def make_frame_policies(self, spec: WorldSpec) -> dict[str, Any]:
        """Policies on frames of ``spec``, by name."""
        if spec.height != spec.width:
            return {}
        return {name: load(policy)(spec.height) for name, policy in self.policies.frame_policies.items()}

    def make_state_estimator(self, size: int) -> StateEstimator:
        """The estimator of states from frames of ``size``; a ValueError where there is none."""
        if self.state_estimator is None:
            raise ValueError(f"world {self.name!r} has no state estimator")
        estimator: StateEstimator = load(self.state_estimator)(size)
        return estimator

    def make_simulator(self, size: int, context: int) -> Simulator:
        """The simulator; a ValueError where there is none."""
        if self.simulator is None:
            raise ValueError(f"world {self.name!r} has no simulator that can be put at a state")
        simulator: Simulator = load(self.simulator)(size, context)
        return simulator

    def _size(self, size: Size) -> Size:
        if not self.square or isinstance(size, int):
            return size
        if size[0] != size[1]:
            raise ValueError(f"--size: this world is square, got {size[0]}x{size[1]}")
        return size[0]


class Simulator(Protocol):
    """The part of a real world that the Oracle plans in. States are float64 ``(s,)`` and complete."""

    spec: WorldSpec
    state_names: tuple[str, ...]
    feature_size: int
    half_extent: float

    def step(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Step states ``(b, s)`` under ``actions`` ``(b, a)``; returns the states after."""

    def reward_and_end(self, state: np.ndarray) -> tuple[float, bool]:
        """Return the real reward and termination in ``state`` ``(s,)``."""

    def draw(self, state: np.ndarray) -> np.ndarray:
        """Draw ``state`` ``(s,)``: a frame, uint8 ``(h, w, 3)``."""

    def read(self, frames: np.ndarray) -> np.ndarray:
        """Estimate valid states ``(b, s)`` from frames ``(b, h, w, 3)``."""

    def embed(self, states: torch.Tensor) -> torch.Tensor:
        """Map states ``(b, s)`` to ``(b, d)``, whose distances are distances between the things seen, in half workspaces."""


def load(entry: EntryPoint) -> Any:
    """The object itself, or the one at ``module:name``; a ValueError where a package that it needs is not installed."""
    if not isinstance(entry, str):
        return entry
    try:
        return pkgutil.resolve_name(entry)
    except ModuleNotFoundError as error:  # its message says how to install it
        raise ValueError(str(error)) from error


_worlds: dict[str, RealWorld] = {}


def register_real_world(world: RealWorld) -> None:
    """Make ``world`` known to every command, with its Gymnasium ids and the name of its shipped model. The same name again replaces
    the record."""
    _worlds[world.name] = world
    for name in (world.name, *world.former_names):
        if world.shipped is not None:
            add_alias(name, world.shipped)
    for name, recipe in world.recipes.items():
        register_recipe(name, recipe)
    limit = world.horizon if world.time_limit is None else world.time_limit
    if world.env_id is not None and world.env_id not in gym.registry:
        gym.register(id=world.env_id, entry_point=world.env, max_episode_steps=limit)
    if world.imagined_id is not None and world.imagined_id not in gym.registry:
        gym.register(
            id=world.imagined_id,
            entry_point=ENTRY_POINT,
            vector_entry_point=VECTOR_ENTRY_POINT,
            kwargs={"world": world.name},
        )


def real_worlds() -> Mapping[str, RealWorld]:
    """The registered worlds, by name."""
    return _worlds


def find_real_world(name: str) -> RealWorld | None:
    """The registered world of that name, or None. Modules of NEURALSIM_MODULES are imported first where it is not known."""
    if name not in _worlds:
        for module in filter(None, os.environ.get(MODULES, "").split(",")):
            importlib.import_module(module)
    return _worlds.get(name)


def find_metrics(spec: WorldSpec) -> WorldMetrics | None:
    """The metrics of the world of ``spec``; None where there are none, or none for its frames' shape."""
    world = find_real_world(spec.name)
    return None if world is None else world.make_metrics(spec)


def find_frame_policies(spec: WorldSpec) -> dict[str, Any]:
    """Scripted policies on frames of the world of ``spec``, by name."""
    world = find_real_world(spec.name)
    return {} if world is None else world.make_frame_policies(spec)


def get_real_world(name: str) -> RealWorld:
    """The registered world of that name; a ValueError names the nearest."""
    world = find_real_world(name)
    if world is None:
        near = difflib.get_close_matches(name, _worlds, 1, 0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        gymnasium_id = f"; {name!r} is a Gymnasium id: --env {name}" if name in gym.registry else ""
        raise ValueError(f"no real world {name!r}{gymnasium_id or hint}; there are {', '.join(_worlds)}")
    return world
