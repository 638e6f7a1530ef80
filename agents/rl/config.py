"""Settings of 'neuralsim rl': the task to learn, where, and with which algorithm."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from neuralsim.agents.rl.algorithms import ALGORITHMS, ON_POLICY
from neuralsim.envs.tasks.rl_task import RLTask, learned_name, task_for

ELSEWHERE = ("out", "resume", "json", "video")
"""Settings that say where the results of a run go; no result depends on them."""
CHANGEABLE = ("steps", "looks", "device", "threads", "processes")
"""Settings, as recorded, that may change when a run is resumed."""
RECORDED_AS = {
    "n_envs": "slots",
    "n_eval_episodes": "trials",
    "n_evals": "looks",
    "uncertainty_limit": "doubt_limit",
    "uncertainty_penalty": "doubt_penalty",
    "dyna_rounds": "refresh",
    "dyna_episodes": "refresh_episodes",
}
"""Settings whose key in curve.json keeps an earlier name."""


@dataclass(frozen=True)
class RLConfig:
    """Train an agent in imagination; it is evaluated in the real environment as it learns."""

    OLD_FLAGS: ClassVar[dict[str, str]] = {f"--{old}": f"--{new}" for new, old in (
        ("n-envs", "slots"), ("n-eval-episodes", "trials"), ("n-evals", "looks"), ("uncertainty-limit", "doubt-limit"),
        ("uncertainty-penalty", "doubt-penalty"), ("dyna-rounds", "refresh"), ("dyna-episodes", "refresh-episodes"),
    )}  # fmt: skip
    world: str = "pusht"
    """Name of a world (pusht, tworoom, carracing), or the folder of one of your own: there the world's own reward is learned."""
    task: str | None = None
    """The task. pusht: push, touch or cover; tworoom: reach or stay; carracing: drive. By default the first."""
    algo: Literal["ppo", "a2c", "recurrent-ppo", "sac", "td3", "dqn", "clone", "random"] = "ppo"
    """Stable-Baselines3's algorithms; clone copies demonstrations (--data); random only acts."""
    steps: int | None = None
    """Environment steps to learn from, in all; by default a million, or 50,000 for off-policy algorithms."""
    real: bool = False
    """Learn in the real environment instead: the baseline."""
    model: str | None = None
    """The learned world (name or folder) for imagination and features; by default the folder given, or what ships for the name."""
    observation: Literal["features", "pixels"] = "features"
    """The agent's observations."""
    n_envs: int | None = None
    """Episodes side by side; by default 256 imagined ones, or 8 real ones; 16 for off-policy algorithms."""
    processes: bool = False
    """With --real: run each environment in a process of its own, which pays where there are as many processor cores."""
    horizon: int | None = None
    """Steps after which an imagined episode is truncated; the task's own by default. Short ones, branched from --branch, drift less."""
    branch: Path | None = None
    """Episode store: every other imagined episode branches off somewhere in it; by default all begin where the real reset does."""
    temperature: float = 1.0
    """Scale of the world's noise (no effect on worlds without noise, such as compact ones)."""
    uncertainty_limit: float | None = None
    """Uncertainty at which an imagined episode is truncated; the world's own calibrated limit by default, inf for never."""
    uncertainty_penalty: float = 0.0
    """Reward subtracted per unit of uncertainty."""
    ensemble: bool = True
    """Imagine with all members of the world's ensemble, and observe the mean of their predictions; a single member is faster, has no
    uncertainty, and is easier to exploit."""
    dyna_rounds: int = 0
    """Times to stop, act in the real environment, and train the world on with the episodes made there."""
    dyna_episodes: int = 40
    """Real episodes in each of these rounds."""
    data: Path | None = None
    """Episode store: demonstrations for --algo clone; for --dyna-rounds the one that the world was trained on (data/<world> if there
    is one), so that nothing is forgotten."""
    n_eval_episodes: int = 50
    """Episodes of each evaluation of the policy, real and imagined."""
    n_evals: int = 10
    """Evaluations of the policy during training."""
    label: str | None = None
    """The label of runs like this one in 'neuralsim compare'; imagined, real, refresh, clone or random by default."""
    out: Path | None = None
    """Folder of the run; runs/rl/<world>-<task>-<label>-<seed> by default."""
    resume: bool = False
    """Go on from the run's last checkpoint, with the same settings."""
    video: bool = True
    """At the end, write a video of the policy, real and imagined, from the same starts."""
    seed: int = 0
    """Seed of all random numbers."""
    json: Path | None = None
    """Also write the learning curve to this file."""
    device: str = "auto"
    """Device of world and policy: auto, cpu or cuda."""
    threads: int = 0
    """Processor threads; 0 leaves torch's choice."""

    def __post_init__(self) -> None:
        least = {
            "steps": 1,
            "n_envs": 1,
            "horizon": 1,
            "dyna_rounds": 0,
            "dyna_episodes": 1,
            "n_eval_episodes": 1,
            "n_evals": 1,
            "seed": 0,
            "threads": 0,
        }
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"--{name.replace('_', '-')}: expected {low} or more, got {value}")
        if self.dyna_rounds and (self.real or self.algo not in ALGORITHMS):
            raise ValueError(
                "--dyna-rounds: trains the world that the agent learns in; it does not go with --real, clone or random"
            )
        self.validate()

    def validate(self) -> None:
        """Raise a ValueError that lists the worlds and tasks, or says why there is no real environment where one is needed."""
        rl_task = self.rl_task
        if self.real or self.dyna_rounds:
            rl_task.real_world()

    @cached_property
    def rl_task(self) -> RLTask:
        """The task to learn."""
        return task_for(self.world, self.task, self.device)

    @property
    def learned_world(self) -> str:
        """Name or folder of the learned world for imagination and features."""
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
        return "real" if self.real else "refresh" if self.dyna_rounds else "imagined"

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        world = self.rl_task.world.replace("/", "-")
        name = f"{world}-{self.rl_task.name}-{self.algo}-{self.kind}-{self.seed}".replace(" ", "-")
        return self.out or Path("runs/rl") / name

    @property
    def width(self) -> int:
        """Episodes side by side."""
        if self.n_envs is not None:
            return self.n_envs
        if self.algo not in ON_POLICY:
            return 16
        return 8 if self.real else 256

    @property
    def recorded(self) -> dict[str, Any]:
        """The settings that results depend on, by their keys in curve.json, as plain JSON values."""
        settings = {RECORDED_AS.get(k, k): v for k, v in asdict(self).items() if k not in ELSEWHERE}
        found: dict[str, Any] = json.loads(json.dumps(settings, default=str))
        return found
