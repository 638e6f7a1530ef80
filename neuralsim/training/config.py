"""TrainConfig: the settings of one training run, and the paths and recipe that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from neuralsim.training.recipes import Recipe, find_recipe


@dataclass(frozen=True)
class TrainConfig:
    """Train a world from a store of episodes."""

    recipe: str | None = None
    """Name of the recipe. 'video' learns any world; it is the default with --data, pusht-video without."""
    size: Literal["tiny", "small", "base"] | None = None
    """Size of recipe 'video': model, batch and steps. Small by default."""
    data: Path | None = None
    """Episode store to learn from (see 'neuralsim collect' and 'import'), a folder or a name in data/; by default the recipe's
    world's own."""
    episodes: int | None = None
    """Learn from the first episodes of the store only, this many."""
    also: tuple[Path, ...] = ()
    """Further stores of the same world to learn from; the recipe's own by default."""
    stages: tuple[str, ...] = ()
    """Stages to train (all by default); the rest of the weights stays as in --init."""
    out: Path | None = None
    """Folder of the run; runs/<recipe> by default, or for recipe 'video' runs/<name of the data>. Holds checkpoints,
    TensorBoard events and, at the end, the world."""
    init: str | None = None
    """World (name or folder, of the recipe's shape) whose weights training starts from; random ones by default."""
    effort: float = 1.0
    """Share of the recipe's steps in each stage: less for a trial, or to fine-tune --init."""
    rate: float = 1.0
    """Factor on the recipe's learning rates; less than 1 fine-tunes --init."""
    cache: Path | None = None
    """Folder of encoded frames; in the run's folder by default."""
    resume: bool = False
    """Continue from the run's last checkpoint; other settings than the run was started with are refused."""
    seed: int = 0
    """Seed of initial weights and of all random draws."""
    device: str = "auto"
    """cpu, cuda or auto."""
    precision: str = "auto"
    """float32, bfloat16 or auto: bfloat16 where the processor computes in it."""
    checkpoint_every: float = 180.0
    """Seconds between checkpoints."""
    threads: int = 0
    """Processor threads; 0 leaves torch's choice."""
    stop_after: float = float("inf")
    """Stop cleanly (with a checkpoint) after this many minutes."""

    def __post_init__(self) -> None:
        for name in ("effort", "rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"--{name}: expected a number above 0, got {getattr(self, name):g}")
        if not self._named.world and self.data is None:
            raise ValueError(f"recipe {self._named.name!r} learns any world: name its episodes with --data")

    @property
    def _named(self) -> Recipe:
        return find_recipe(self.recipe or ("pusht-video" if self.data is None else "video"), self.size)

    @property
    def store(self) -> Path:
        """Folder of the episodes."""
        folder = self.data or Path("data") / self._named.world
        named = Path("data") / folder
        return named if not (folder / "store.json").is_file() and (named / "store.json").is_file() else folder

    @property
    def further(self) -> tuple[Path, ...]:
        """Folders of the further episodes; a FileNotFoundError for a store of the recipe's that is missing."""
        if self.also or self.data is not None:
            return self.also
        found = tuple(Path("data") / name for name in getattr(self._named, "also", ()))
        for path in found:
            if not (path / "store.json").is_file():
                raise FileNotFoundError(
                    f"{path}: recipe {self._named.name!r} learns from this store too, and it is missing; make it (see docs/data.md), "
                    "or name the stores with --data and --also"
                )
        return found

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.out or Path("runs") / (self._named.name if self._named.world else self.store.name)

    @property
    def plan(self) -> Recipe:
        """The recipe, with its steps scaled by ``effort`` and its learning rates by ``rate``."""
        recipe = self._named
        stages = {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name.endswith("_stage")}
        scaled = {
            name: replace(
                stage,
                steps=max(1, round(stage.steps * self.effort)),
                lr=stage.lr * self.rate,
                warmup=max(1, round(stage.warmup * min(1, self.effort))),
            )
            for name, stage in stages.items()
        }
        return replace(recipe, **scaled)
