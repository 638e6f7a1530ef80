"""Stage: everything that planning happens on, opened and checked: the course, the world to plan in, the truth, the pairs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np

from neuralsim.agents.collection.held_out import held_out_folder, held_out_store
from neuralsim.agents.planning.actors import OracleActor, PlanActor
from neuralsim.agents.planning.config import PlanConfig
from neuralsim.agents.planning.diagnostics import goal_state
from neuralsim.agents.planning.goal_trial import GoalTrial
from neuralsim.agents.planning.goals import (
    HeldOutStartGoals,
    ImageStartGoals,
    RandomStartGoals,
    StartGoal,
    StartGoalSource,
)
from neuralsim.agents.planning.planner import Planner, goal_image
from neuralsim.agents.planning.solvers import Solver
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.oracle import Oracle
from neuralsim.envs.registry import find_real_world
from neuralsim.envs.tasks.goal_task import GoalTask, goal_task_of, has_goal_task
from neuralsim.pretrained.world import World, open_world
from neuralsim.storage.manifest import WEIGHTS
from neuralsim.storage.resolve import list_worlds
from neuralsim.task import FunctionTask

ORACLE = "oracle"
"""The model that is the true simulator; also the name of the planner that has it inside."""
HELD_OUT_EPISODES = 256
"""Fresh held-out episodes that pairs are drawn from."""
REDRAWN = 8.0
"""A goal picture shows the world where what was read off it, drawn again, differs by at most this many grey levels."""


@dataclass(frozen=True)
class PlanningSetup:
    """What a Planning needs, opened and checked: the course, the world to plan in, the truth, and where pairs come from."""

    config: PlanConfig
    course: GoalTask
    world: World
    name: str
    oracle: Oracle
    pairs: StartGoalSource
    source: Mapping[str, Any]
    _made: dict[int, StartGoal] = field(default_factory=dict, init=False, repr=False)

    def pair(self, index: int) -> StartGoal:
        """Pair ``index``, made once."""
        if index not in self._made:
            self._made[index] = self.pairs(index)
        return self._made[index]

    def planner(self, pair: StartGoal, search: Solver | None = None, budget_ms: float | None = None) -> Planner:
        """A planner for the pair's goal in the world to plan in."""
        if self.name == ORACLE:
            return self.oracle_planner(pair, search)
        return _planner(self.config, self.world, goal_image(pair.frame), pair.index, search, budget_ms)

    def oracle_planner(self, pair: StartGoal, search: Solver | None = None) -> Planner:
        """The same planner with the truth inside, which is too slow for a budget of time."""
        return _planner(self.config, World(self.oracle), goal_state(self.oracle, pair.goal), pair.index, search)

    def actor(self, pair: StartGoal) -> PlanActor | OracleActor:
        """The planner as it acts."""
        if self.name == ORACLE:
            return OracleActor(self.oracle_planner(pair))
        return PlanActor(self.planner(pair, budget_ms=self.config.budget_ms))

    def solved(self, tried: GoalTrial) -> bool:
        """Whether the course's first rule has held."""
        return tried.solved_at[next(iter(self.course.rules))] is not None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that the outcome of an attempt depends on."""
        config, search = self.config, self.config.searcher
        kept = ("world", "goal", "ahead", "lookahead", "block", "budget_ms", "seed")
        return {
            **{name: getattr(config, name) for name in kept},
            "execute": config.n_action_steps,
            "horizon": config.budget,
            "search": {"name": type(search).__name__, **asdict(search)},
            "model": self.name,
            "weights": fingerprint(self.world.folder / WEIGHTS) if self.world.folder else None,
            **self.source,
        }


def resolve_goal_task(config: PlanConfig) -> PlanConfig | None:
    """``config`` in terms of the course of its world: a learned world of the course stands for it, and is planned in. None for a
    world without a course, which can be planned for its reward. Raises ValueError for a word that is no world."""
    if has_goal_task(config.world):
        return config
    if find_real_world(config.world) is not None:
        return None
    try:
        world = open_world(config.world, config.device)
    except FileNotFoundError:
        if os.sep in config.world:
            raise
        goal_task_of(config.world)  # says which there are
        raise
    if not has_goal_task(world.spec.name):
        return None
    return replace(config, world=world.spec.name, model=config.model or config.world, out=config.folder)


def open_setup(config: PlanConfig, progress: Callable[[int, int], None] | None = None) -> PlanningSetup:
    """Open everything that ``config`` names, and have the planner rehearse; held-out episodes are collected last, and
    ``progress`` is told (done, wanted) of them."""
    course = goal_task_of(config.world)
    name = _model_name(config)
    world = World(Oracle(config.world).eval()) if name == ORACLE else open_world(name, config.device)
    spec = world.spec
    if spec.name != config.world or spec.height != spec.width:
        raise ValueError(
            f"model {name!r}: dreams of world {spec.name!r} in frames of {spec.height}x{spec.width}, asked to plan in "
            f"{config.world!r}, which is square; choose another --model"
        )
    oracle = Oracle(config.world, size=spec.height).eval()
    nothing = FunctionTask(lambda before, action, after: 0 * after.features[:, 0])
    _planner(config, world, nothing, 0, budget_ms=config.budget_ms)
    pairs, source = _pairs(config, course, oracle, progress)
    return PlanningSetup(config, course, world, name, oracle, pairs, source)


def _planner(
    config: PlanConfig, world: World, task: Any, pair: int, search: Solver | None = None, budget_ms: float | None = None
) -> Planner:
    return Planner(
        world,
        task,
        search or config.searcher,
        lookahead=config.lookahead,
        block=config.block,
        n_action_steps=config.n_action_steps,
        budget_ms=budget_ms,
        seed=config.seed * 1_000_003 + pair,
        horizon=config.budget,
    )


def _model_name(config: PlanConfig) -> str:
    """What to open: the model asked for, or the best that ships for the world."""
    if config.model is not None:
        return config.model
    for name in (f"{config.world}-latent", config.world):
        if name in list_worlds():
            return name
    raise ValueError(
        f"no world model of {config.world!r} ships with this NeuralSim; train one (neuralsim train {config.world}-latent) "
        "and give its folder with --model, or plan in the true simulator with --model oracle"
    )


def _pairs(
    config: PlanConfig, course: GoalTask, oracle: Oracle, progress: Callable[[int, int], None] | None
) -> tuple[StartGoalSource, dict[str, Any]]:
    """Where pairs come from, and what of it the outcome depends on."""
    size = oracle.spec.height
    if config.goal == "random":
        return RandomStartGoals(course, size, config.ahead, config.seed), {}
    if config.goal != "held-out":
        path = Path(config.goal)
        frame, goal = read_goal(path, oracle)
        return ImageStartGoals(course, frame, goal, path, config.seed), {"picture": fingerprint(path)}
    if config.data is not None:
        store = EpisodeStore(config.data)
        episodes = store.split(True).tolist()
        if store.spec.frame_shape != oracle.spec.frame_shape or store.spec.name != config.world:
            raise ValueError(f"{config.data}: holds episodes of {store.spec}, planning needs {oracle.spec}")
        if not episodes:
            raise ValueError(f"{config.data}: none of its {len(store)} episodes is held out; give another --data")
    else:
        folder = held_out_folder(config.world, size)
        store = held_out_store(folder, HELD_OUT_EPISODES, size=size, progress=progress, world=config.world)
        episodes = list(range(len(store)))
    origin = {"data": os.fspath(store.folder), "held_out_episodes": len(episodes)}
    return HeldOutStartGoals(store, tuple(episodes), course, config.ahead, config.seed), origin


def read_goal(path: Path, oracle: Oracle) -> tuple[np.ndarray, np.ndarray]:
    """The frame in the picture at ``path``, uint8 ``(h, w, 3)``, and the true state it shows, read off its pixels; a
    ValueError for a picture of another size, or of anything else."""
    if not path.is_file():
        raise FileNotFoundError(
            f"--goal: expected held-out, random or the path of a PNG, got {str(path)!r} (no such file)"
        )
    try:
        frame = np.asarray(iio.imread(path))
    except Exception as error:  # imageio's plugins raise what they like
        raise ValueError(f"--goal {path}: not a picture ({error})") from error
    frame = oracle.spec.check_frames(frame, f"--goal {path}")
    if frame.ndim != 3:
        raise ValueError(f"--goal {path}: expected one picture (h, w, 3), got shape {frame.shape}")
    state = oracle.simulator.read(frame[None])[0]
    off = float(np.abs(oracle.simulator.draw(state).astype(float) - frame).mean())
    if off > REDRAWN:
        raise ValueError(
            f"--goal {path}: expected a frame of world {oracle.spec.name!r}; what was read off this picture, drawn again, "
            f"differs from it by {off:.0f} grey levels on average, {REDRAWN:g} is the most. Is it from another world?"
        )
    return frame, state


def fingerprint(path: Path) -> str:
    """What tells the contents of the file at ``path`` from others."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
