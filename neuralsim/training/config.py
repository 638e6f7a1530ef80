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
    """Name of the recipe. 'video' learns any world; it is the default where --data says what from, else pusht-video is."""
    size: Literal["tiny", "small", "base"] | None = None
    """How much of everything recipe 'video' takes: model, batch and steps. Small by default."""
    data: Path | None = None
    """Episode store to learn from (see 'neuralsim collect' and 'import'), a folder or a name in data/; by default the recipe's
    world's own."""
    episodes: int | None = None
    """Learn from the store's first so many episodes only."""
    also: tuple[Path, ...] = ()
    """Further stores of the same world to learn from; the recipe's own by default."""
    stages: tuple[str, ...] = ()
    """Go through these stages alone (all by default); the rest stays as --init has it."""
    out: Path | None = None
    """Folder of the run; runs/<recipe> by default, or for recipe 'video' runs/<name of the data>. Holds checkpoints,
    TensorBoard events and, at the end, the world."""
    init: str | None = None
    """Begin with the weights of this world (name or folder, of the recipe's shape) instead of random ones."""
    effort: float = 1.0
    """Share of the recipe's steps to take in each stage: less is a try, or a touching-up of --init."""
    rate: float = 1.0
    """Factor on the recipe's learning rates: less than 1 touches --init up without undoing it."""
    cache: Path | None = None
    """Folder that keeps encoded frames; in the run by default."""
    resume: bool = False
    """Go on from the run's last checkpoint."""
    seed: int = 0
    """Seed of initial weights and of every draw."""
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
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name}: expected a number above 0, got {getattr(self, name):g}")
        if not self._named.world and self.data is None:
            raise ValueError(f"recipe {self._named.name!r} learns any world: say from which episodes with --data")

    @property
    def _named(self) -> Recipe:
        return find_recipe(self.recipe or ("pusht-video" if self.data is None else "video"), self.size)

    @property
    def store(self) -> Path:
        """Where the episodes lie."""
        asked = self.data or Path("data") / self._named.world
        named = Path("data") / asked
        return named if not (asked / "store.json").is_file() and (named / "store.json").is_file() else asked

    @property
    def further(self) -> tuple[Path, ...]:
        """Where the further episodes lie; a FileNotFoundError for a store of the recipe's that is not there."""
        if self.also or self.data is not None:
            return self.also
        found = tuple(Path("data") / name for name in getattr(self._named, "also", ()))
        for path in found:
            if not (path / "store.json").is_file():
                raise FileNotFoundError(
                    f"{path}: recipe {self._named.name!r} learns from this store too, and it is not there; make it (the README "
                    "tells how), or name the stores yourself with --data and --also"
                )
        return found

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return self.out or Path("runs") / (self._named.name if self._named.world else self.store.name)

    @property
    def plan(self) -> Recipe:
        """The recipe, with as many steps as ``effort`` asks for, at ``rate``."""
        recipe = self._named
        stages = {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name.endswith("_stage")}
        asked = {
            name: replace(
                stage,
                steps=max(1, round(stage.steps * self.effort)),
                lr=stage.lr * self.rate,
                warmup=max(1, round(stage.warmup * min(1, self.effort))),
            )
            for name, stage in stages.items()
        }
        return replace(recipe, **asked)
