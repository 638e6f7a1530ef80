"""Reinforce: what ``neuralsim rl`` is to learn, where, and with what."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from neuralsim.agents.rl.algorithms import ALGORITHMS, ON_POLICY
from neuralsim.envs.tasks.rl_task import RLTask, learned_name, task_for

ELSEWHERE = ("out", "resume", "json", "video")
"""Settings that say where a run's results go, and nothing of what they are."""
RECORDED_AS = {"n_envs": "slots"}
"""Settings whose key in curve.json keeps an earlier name."""


@dataclass(frozen=True)
class RLConfig:
    """Train an agent in imagination; it is tried in the true simulator as it goes."""

    OLD_FLAGS: ClassVar[dict[str, str]] = {"--slots": "--n-envs"}
    world: str = "pusht"
    """Name of a world (pusht, tworoom, carracing), or the folder of one of your own: there the world's own reward is learned."""
    task: str | None = None
    """What to learn. pusht: push, touch or cover; tworoom: reach or stay; carracing: drive. By default the first."""
    algo: Literal["ppo", "a2c", "recurrent-ppo", "sac", "td3", "dqn", "clone", "random"] = "ppo"
    """Stable-Baselines3's algorithms; clone copies demonstrations (--data); random only acts."""
    steps: int | None = None
    """Environment steps to learn from, in all; by default a million, or 50,000 for algorithms that replay."""
    real: bool = False
    """Learn in the true simulator instead: the baseline."""
    model: str | None = None
    """The learned world (name or folder) to dream in, and whose features are seen; by default the folder given, or what ships
    for the name."""
    observation: Literal["features", "pixels"] = "features"
    """What the agent sees."""
    n_envs: int | None = None
    """Episodes side by side; by default 256 dreams, or 8 true simulators; 16 for algorithms that replay."""
    processes: bool = False
    """With --real: each simulator in a process of its own, which pays where there are as many processor cores."""
    horizon: int | None = None
    """Steps after which a dream is cut off; the task's own by default. Short ones, branched from --branch, stray less."""
    branch: Path | None = None
    """Episode store: every other dream branches off somewhere in it; by default all begin where the true world's reset does."""
    temperature: float = 1.0
    """Scale of the world's noise (worlds that have none, as compact ones, do not care)."""
    doubt_limit: float | None = None
    """Uncertainty at which a dream is cut off; the world's own calibrated limit by default, inf for never."""
    doubt_penalty: float = 0.0
    """Taken off the reward per unit of uncertainty."""
    ensemble: bool = True
    """Dream with all members of the world's ensemble, and see from the mean of what they dream; one of them is faster, knows
    no doubt, and is easier to fool."""
    refresh: int = 0
    """Times to stop, act in the true world, and train the world on with what was seen there."""
    refresh_episodes: int = 40
    """True episodes each time."""
    data: Path | None = None
    """Episode store: of demonstrations for --algo clone; for --refresh the one the world was trained on (data/<world> if there
    is one), so that nothing is forgotten."""
    trials: int = 50
    """Episodes of each look at the policy, in truth and in imagination."""
    looks: int = 10
    """How often the policy is looked at."""
    label: str | None = None
    """What 'neuralsim compare' calls runs like this one; imagined, real, refresh, clone or random by default."""
    out: Path | None = None
    """Folder of the run; runs/rl/<world>-<task>-<label>-<seed> by default."""
    resume: bool = False
    """Go on from the run's last checkpoint."""
    video: bool = True
    """At the end, film the policy in dream and truth from the same starts."""
    seed: int = 0
    """Seed of everything."""
    json: Path | None = None
    """Also write the curve to this file."""
    device: str = "auto"
    """Where world and policy run: auto, cpu or cuda."""
    threads: int = 0
    """Processor threads; 0 leaves torch's choice."""

    def __post_init__(self) -> None:
        least = {"steps": 1, "refresh": 0, "refresh_episodes": 1, "trials": 1, "looks": 1, "seed": 0, "threads": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag}: expected {low} or more, got {value}")
        if self.refresh and (self.real or self.algo not in ALGORITHMS):
            raise ValueError(
                "--refresh: trains the world that is dreamt in; it does not go with --real, clone or random"
            )
        self.rl_task  # noqa: B018 (says what worlds and tasks there are)

    @cached_property
    def rl_task(self) -> RLTask:
        """What is to be learned."""
        rl_task = task_for(self.world, self.task, self.device)
        if self.real or self.refresh:
            rl_task.true_world()  # says why there is none
        return rl_task

    @property
    def dreamt(self) -> str:
        """The learned world that is dreamt in, and whose features are seen."""
        return self.model or learned_name(self.world)

    @property
    def total(self) -> int:
        """Environment steps to learn from, in all."""
        return self.steps if self.steps is not None else 1_000_000 if self.algo in ON_POLICY else 50_000

    @property
    def kind(self) -> str:
        """The label."""
        if self.label:
            return self.label
        if self.algo in ("clone", "random"):
            return self.algo
        return "real" if self.real else "refresh" if self.refresh else "imagined"

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        world = self.rl_task.world.replace("/", "-")
        name = f"{world}-{self.rl_task.name}-{self.algo}-{self.kind}-{self.seed}".replace(" ", "-")
        return self.out or Path("runs/rl") / name

    @property
    def width(self) -> int:
        """Slots."""
        if self.n_envs is not None:
            return self.n_envs
        if self.algo not in ON_POLICY:
            return 16
        return 8 if self.real else 256
