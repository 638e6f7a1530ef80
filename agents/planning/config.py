"""Planning: what the command ``plan`` takes, from the world to plan in to what is measured beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from neuralsim.agents.planning.goal_trial import BUDGET
from neuralsim.agents.planning.solvers import CEM, ICEM, MPPI, RandomShooting, Solver

SEARCHES: Mapping[str, type[Solver]] = {"icem": ICEM, "cem": CEM, "mppi": MPPI, "random": RandomShooting}
STANDARD_AHEAD = 25
"""Steps between start and goal for which there are bars."""


@dataclass(frozen=True)
class PlanConfig:
    """Plan in a learned world and act in the true one: start and goal pairs, success, time per decision, controls. A world whose
    simulator begins by seed alone is planned for its own reward instead."""

    OLD_FLAGS: ClassVar[dict[str, str]] = {"--execute": "--n-action-steps"}
    world: str = "pusht"
    """Name of a world (pusht, tworoom, carracing), or the folder of one of your own."""
    goal: str = "held-out"
    """Where pairs come from: held-out (episodes never trained on), random (fresh ones from the simulator), or a PNG of the goal."""
    episodes: int = 100
    """How many pairs. The same command with more goes on where it stopped."""
    ahead: int = STANDARD_AHEAD
    """Steps between start and goal; twice as many are allowed."""
    model: str | None = None
    """The world to plan in: a shipped one, a folder, or oracle (the true simulator). By default the compact one, if it ships."""
    search: Literal["icem", "cem", "mppi", "random"] = "icem"
    """How plans are searched."""
    candidates: int | None = None
    """Plans per round; the search's own number by default."""
    rounds: int | None = None
    """Rounds per decision, likewise."""
    elites: int | None = None
    """Best plans that a round learns from, likewise."""
    knots: int | None = None
    """Control points per plan; one per step by default."""
    budget_ms: float | None = None
    """Milliseconds for a decision; by default as long as the search takes."""
    lookahead: int = 25
    """Actions per plan; fewer towards the end, for no plan looks beyond the steps allowed."""
    block: int = 5
    """Actions that the model takes in one go."""
    n_action_steps: int = 5
    """Actions carried out before the next decision."""
    controls: bool = True
    """Also try without planning: random actions, none, straight to the goal, and the demonstration again."""
    report: bool = False
    """Also measure the gap to planning in the true simulator: its success, regret, rank correlation. Slow."""
    oracle_episodes: int = 20
    """Pairs for that."""
    quality: bool = False
    """Also compare the search with the field's CEM of 300 x 30 in the same model: cost of the plans, evaluations."""
    video: int = 1
    """Attempts to film, of the first twenty pairs those that are farthest apart; 0 for none."""
    data: Path | None = None
    """Episode store whose held-out episodes give the pairs; by default fresh ones, collected once into data/<world>-held-out."""
    out: Path | None = None
    """Folder for the journal of attempts, plan.json, the video and the picture; by default runs/plan/<world>, and -<goal> and
    -<ahead> where they are not the usual ones."""
    fresh: bool = False
    """Throw away what is in that folder's journal and begin anew."""
    seed: int = 0
    """Seed of pairs and searches."""
    json: Path | None = None
    """Also write the figures to this file."""
    device: str = "auto"
    """Where the model runs: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        least = {"episodes": 1, "ahead": 1, "oracle_episodes": 1, "video": 0, "seed": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag}: expected {smallest} or more, got {getattr(self, name)}")
        self.searcher  # noqa: B018 (says what is wrong with it)

    @property
    def searcher(self) -> Solver:
        """The search asked for."""
        kind = SEARCHES[self.search]
        changes = {k: v for k in ("candidates", "rounds", "elites", "knots") if (v := getattr(self, k)) is not None}
        if self.elites is None and self.candidates is not None and self.candidates >= 1:
            changes["elites"] = min(kind().elites, self.candidates)
        return kind(**changes)

    @property
    def budget(self) -> int:
        """Steps allowed."""
        return BUDGET * self.ahead

    @property
    def folder(self) -> Path:
        """Where everything goes: by default a folder of its own for each kind of goal and each distance."""
        if self.out is not None:
            return self.out
        goal = [] if self.goal == "held-out" else [Path(self.goal).stem]
        ahead = [] if self.ahead == STANDARD_AHEAD else [str(self.ahead)]
        world = Path(self.world)
        name = world.parent.name if world.name == "world" and world.parent.name else world.name
        return Path("runs/plan") / "-".join([name, *goal, *ahead])
