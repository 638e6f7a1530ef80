"""PlanningSetup: everything that planning needs, opened and checked: goal task, world model, simulator, and pairs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np

from neuralsim.agents.collection.held_out import held_out_folder, held_out_store
from neuralsim.agents.planning.actors import OraclePolicy, PlanRecorder
from neuralsim.agents.planning.config import PlanConfig, record_solver
from neuralsim.agents.planning.diagnostics import goal_state
from neuralsim.agents.planning.goal_trial import GoalTrial
from neuralsim.agents.planning.goals import (
    HeldOutStartGoals,
    ImageStartGoals,
    RandomStartGoals,
    StartGoal,
    StartGoalSource,
)
from neuralsim.agents.planning.planner import Planner, PlannerConfig, goal_image
from neuralsim.agents.planning.solvers import Solver
from neuralsim.agents.policies.policy import NamedPolicy
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.oracle import Oracle
from neuralsim.envs.real_env import RealEnv
from neuralsim.envs.registry import find_real_world
from neuralsim.envs.tasks.goal_task import GoalTask, goal_task_of, has_goal_task
from neuralsim.pretrained.world import World, open_world
from neuralsim.storage.fingerprint import store_fingerprint
from neuralsim.storage.manifest import WEIGHTS
from neuralsim.storage.resolve import list_worlds
from neuralsim.task import FunctionTask, Task

ORACLE = "oracle"
"""Name of the model that is the real simulator, and of the planner that has it inside."""
PLANNER = "planner"
"""Name of the planner in the world to plan in, in results."""
CONTENT = "data_fingerprint"
"""Setting of results logs that earlier versions did not record."""
HELD_OUT_EPISODES = 256
"""New held-out episodes that pairs are drawn from."""
REDRAWN = 8.0
"""A goal picture shows the world where the state estimated from it, drawn again, differs by at most this many grey levels."""


@dataclass(frozen=True)
class PlanningSetup:
    """Opened and checked contents of a PlanConfig.

    world: the one to plan in, called ``name``. oracle: the real simulator. pairs: start and goal by number. source: what
    results depend on in ``pairs``.
    """

    config: PlanConfig
    goal_task: GoalTask
    world: World
    name: str
    oracle: Oracle
    pairs: StartGoalSource
    source: Mapping[str, Any]
    _made: dict[int, StartGoal] = field(default_factory=dict, init=False, repr=False)

    def pair(self, index: int) -> StartGoal:
        """Return pair ``index``, made once."""
        if index not in self._made:
            self._made[index] = self.pairs(index)
        return self._made[index]

    def planner(
        self,
        pair: StartGoal,
        solver: Solver | None = None,
        recorder: PlanRecorder | None = None,
        budget_ms: float | None = None,
    ) -> Planner:
        """Return a planner for the pair's goal in the world to plan in."""
        if self.name == ORACLE:
            return self.oracle_planner(pair, solver, recorder)
        return _planner(self.config, self.world, goal_image(pair.frame), pair.index, solver, recorder, budget_ms)

    def oracle_planner(
        self, pair: StartGoal, solver: Solver | None = None, recorder: PlanRecorder | None = None
    ) -> Planner:
        """Return the same planner with the real simulator inside, which is too slow for a budget of time."""
        task = goal_state(self.oracle, pair.goal)
        return _planner(self.config, World(self.oracle), task, pair.index, solver, recorder)

    def policy(self, name: str, env: RealEnv, pair: StartGoal, recorder: PlanRecorder) -> NamedPolicy:
        """Return the planner PLANNER or ORACLE as a policy in ``env``."""
        if ORACLE in (name, self.name):
            return NamedPolicy(name, OraclePolicy(self.oracle_planner(pair, recorder=recorder), env), "nothing")
        return NamedPolicy(name, self.planner(pair, recorder=recorder, budget_ms=self.config.budget_ms), "pixels")

    def solved(self, trial: GoalTrial) -> bool:
        """Report whether the goal task's first rule has held."""
        return trial.solved_at[next(iter(self.goal_task.rules))] is not None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that the result of a trial depends on, as results logs keep it."""
        config = self.config
        return {
            "world": config.world,
            "goal": config.goal,
            "ahead": config.goal_distance,
            "lookahead": config.lookahead,
            "block": config.block,
            "budget_ms": config.budget_ms,
            "seed": config.seed,
            "execute": config.n_action_steps,
            "horizon": config.budget,
            "search": record_solver(config.make_solver()),
            "model": self.name,
            "weights": fingerprint(self.world.folder / WEIGHTS) if self.world.folder else None,
            **self.source,
        }


def resolve_goal_task(config: PlanConfig) -> PlanConfig | None:
    """Return ``config`` for the real world with a goal task: a learned world of it stands for it, and is planned in.

    None for a world without a goal task, which can be planned for its reward. Raises ValueError for a word that is no
    world, FileNotFoundError for a folder that is not there.
    """
    if has_goal_task(config.world):
        return config
    if find_real_world(config.world) is not None:
        return None
    try:
        world = open_world(config.world, config.device)
    except FileNotFoundError:
        if os.sep in config.world:
            raise
        goal_task_of(config.world)  # its error lists them
        raise
    if not has_goal_task(world.spec.name):
        return None
    return replace(config, world=world.spec.name, model=config.model or config.world, out=config.folder)


def open_setup(config: PlanConfig, progress: Callable[[int, int], None] | None = None) -> PlanningSetup:
    """Open everything that ``config`` names and validate the planner; held-out episodes are collected last.

    ``progress`` is called with (done, wanted) episodes.
    """
    goal_task = goal_task_of(config.world)
    name = _model_name(config)
    world = World(Oracle(config.world).eval()) if name == ORACLE else open_world(name, config.device)
    spec = world.spec
    if spec.name != config.world or spec.height != spec.width:
        raise ValueError(
            f"model {name!r}: predicts world {spec.name!r} in frames of {spec.height}x{spec.width}, asked to plan in "
            f"{config.world!r}, which is square; choose another --model"
        )
    oracle = Oracle(config.world, size=spec.height).eval()
    nothing = FunctionTask(lambda before, action, after: 0 * after.features[:, 0])
    _planner(config, world, nothing, 0, budget_ms=config.budget_ms)
    pairs, source = _pairs(config, goal_task, oracle, progress)
    return PlanningSetup(config, goal_task, world, name, oracle, pairs, source)


def _planner(
    config: PlanConfig,
    world: World,
    task: Task,
    pair: int,
    solver: Solver | None = None,
    recorder: PlanRecorder | None = None,
    budget_ms: float | None = None,
) -> Planner:
    settings = PlannerConfig(
        lookahead=config.lookahead,
        block=config.block,
        n_action_steps=config.n_action_steps,
        budget_ms=budget_ms,
        seed=planner_seed(config, pair),
        horizon=config.budget,
    )
    return Planner(
        world,
        task,
        solver or config.make_solver(),
        settings,
        on_iteration=recorder.on_iteration if recorder else None,
        on_decision=recorder.on_decision if recorder else None,
    )


def planner_seed(config: PlanConfig, index: int) -> int:
    """Return the planner's seed in pair or episode ``index``."""
    return config.seed * 1_000_003 + index


def _model_name(config: PlanConfig) -> str:
    """The model asked for, or the best that ships for the world."""
    if config.model is not None:
        return config.model
    for name in (f"{config.world}-latent", config.world):
        if name in list_worlds():
            return name
    raise ValueError(
        f"no world model of {config.world!r} ships with this NeuralSim; train one (neuralsim train {config.world}-latent) "
        "and give its folder with --model, or plan in the real simulator with --model oracle"
    )


def _pairs(
    config: PlanConfig, goal_task: GoalTask, oracle: Oracle, progress: Callable[[int, int], None] | None
) -> tuple[StartGoalSource, dict[str, Any]]:
    """The source of pairs, and what results depend on in it."""
    size, distance = oracle.spec.height, config.goal_distance
    if config.goal == "random":
        return RandomStartGoals(goal_task, size, distance, config.seed), {}
    if config.goal != "held-out":
        path = Path(config.goal)
        frame, goal = read_goal(path, oracle)
        return ImageStartGoals(goal_task, frame, goal, path, config.seed), {"picture": fingerprint(path)}
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
    origin = {
        "data": os.fspath(store.folder),
        "held_out_episodes": len(episodes),
        CONTENT: store_fingerprint(store),
    }
    return HeldOutStartGoals(store, tuple(episodes), goal_task, distance, config.seed), origin


def read_goal(path: Path, oracle: Oracle) -> tuple[np.ndarray, np.ndarray]:
    """Read the goal frame at ``path``, uint8 ``(h, w, 3)``, and estimate the state ``(s,)`` that it shows.

    Raises ValueError for a picture of another size or world, FileNotFoundError for a path that is not there.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"--goal: expected held-out, random or the path of a PNG, got {str(path)!r} (no such file)"
        )
    try:
        frame = np.asarray(iio.imread(path))
    except Exception as error:  # imageio's plugins raise errors of many kinds
        raise ValueError(f"--goal {path}: not a picture ({error})") from error
    frame = oracle.spec.check_frames(frame, f"--goal {path}")
    if frame.ndim != 3:
        raise ValueError(f"--goal {path}: expected one picture (h, w, 3), got shape {frame.shape}")
    state = oracle.simulator.read(frame[None])[0]
    off = float(np.abs(oracle.simulator.draw(state).astype(float) - frame).mean())
    if off > REDRAWN:
        raise ValueError(
            f"--goal {path}: expected a frame of world {oracle.spec.name!r}; the state estimated from this picture, drawn "
            f"again, differs from it by {off:.0f} grey levels on average, {REDRAWN:g} is the most. Is it from another world?"
        )
    return frame, state


def fingerprint(path: Path) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the file at ``path``."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
