"""PlanConfig: the options of the command ``plan``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from neuralsim.agents.planning.solvers import CEM, ICEM, MPPI, RandomShooting, Solver

SOLVERS: Mapping[str, type[Solver]] = {"icem": ICEM, "cem": CEM, "mppi": MPPI, "random": RandomShooting}
STANDARD_DISTANCE = 25
"""Steps between start and goal for which there are targets."""
BUDGET = 2
"""Steps allowed per step between start and goal."""


@dataclass(frozen=True)
class PlanConfig:
    """Plan in a learned world and act in the real one: success over start and goal pairs, time per decision, baselines.

    A world whose simulator cannot be put at a state is planned for its own reward instead.
    """

    OLD_FLAGS: ClassVar[dict[str, str]] = {
        "--execute": "--n-action-steps",
        "--ahead": "--goal-distance",
        "--quality": "--compare-solvers",
        "--no-quality": "--no-compare-solvers",
        "--knots": "--control-points",
    }
    world: str = "pusht"
    """Name of a world (pusht, tworoom, carracing), or the folder of one of your own."""
    goal: str = "held-out"
    """Source of the pairs: held-out (episodes never trained on), random (new ones from the simulator), or a PNG of the goal."""
    episodes: int = 100
    """Number of pairs. The same command with more continues from the last one."""
    goal_distance: int = STANDARD_DISTANCE
    """Steps between start and goal; twice as many are allowed."""
    model: str | None = None
    """World to plan in: a shipped one, a folder, or oracle (the real simulator). By default the compact one, if it ships."""
    search: Literal["icem", "cem", "mppi", "random"] = "icem"
    """Solver that searches for plans."""
    candidates: int | None = None
    """Plans per round; the solver's own number by default."""
    rounds: int | None = None
    """Rounds per decision, likewise."""
    elites: int | None = None
    """Best plans of a round, which the solver learns from, likewise."""
    control_points: int | None = None
    """Control points per plan; one per step by default."""
    budget_ms: float | None = None
    """Milliseconds for a decision; by default as long as the search takes."""
    lookahead: int = 25
    """Actions per plan; fewer towards the end, for no plan looks beyond the steps allowed."""
    block: int = 5
    """Actions that the model predicts in one go."""
    n_action_steps: int = 5
    """Actions executed before the next decision."""
    controls: bool = True
    """Also try baselines: random actions, none, straight to the goal, and the demonstration again."""
    report: bool = False
    """Also compare with planning in the real simulator: its success, regret, rank correlation. Slow."""
    oracle_episodes: int = 20
    """Pairs for that comparison."""
    compare_solvers: bool = False
    """Also compare the solver with the field's CEM of 300 x 30 in the same model: cost of the plans, evaluations."""
    video: int = 1
    """Trials to film, of the first twenty pairs those that are farthest apart; 0 for none."""
    data: Path | None = None
    """Episode store whose held-out episodes give the pairs; by default new ones, collected once into data/<world>-held-out."""
    out: Path | None = None
    """Folder for the results log, plan.json, the video and the picture; by default runs/plan/<world>, and -<goal> and
    -<distance> where they are not the usual ones."""
    fresh: bool = False
    """Delete the results in that folder and start again."""
    seed: int = 0
    """Seed of pairs and searches."""
    json: Path | None = None
    """Also write the results to this file."""
    device: str = "auto"
    """Device of the model: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raise ValueError for values out of range."""
        least = {"episodes": 1, "goal_distance": 1, "oracle_episodes": 1, "video": 0, "seed": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag}: expected {smallest} or more, got {getattr(self, name)}")
        self.make_solver()

    def make_solver(self) -> Solver:
        """Return the solver with its settings; a ValueError names what is wrong with them."""
        kind = SOLVERS[self.search]
        names = ("candidates", "rounds", "elites", "control_points")
        changes = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.elites is None and self.candidates is not None and self.candidates >= 1:
            changes["elites"] = min(kind().elites, self.candidates)
        return kind(**changes)

    @property
    def budget(self) -> int:
        """Steps allowed."""
        return BUDGET * self.goal_distance

    @property
    def folder(self) -> Path:
        """Folder of all files: by default one for each kind of goal and each distance."""
        if self.out is not None:
            return self.out
        goal = [] if self.goal == "held-out" else [Path(self.goal).stem]
        distance = [] if self.goal_distance == STANDARD_DISTANCE else [str(self.goal_distance)]
        world = Path(self.world)
        name = world.parent.name if world.name == "world" and world.parent.name else world.name
        return Path("runs/plan") / "-".join([name, *goal, *distance])


def record_solver(solver: Solver) -> dict[str, Any]:
    """Return the solver as plain values, under the names that results logs have had from the first."""
    recorded_as = {"control_points": "knots"}
    return {"name": type(solver).__name__, **{recorded_as.get(k, k): v for k, v in asdict(solver).items()}}
