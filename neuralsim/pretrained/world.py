"""Trained worlds: opened by name or folder, saved as a folder.

The folder holds ``config.json`` and ``diffusion_pytorch_model.safetensors`` (diffusers' ``save_pretrained``),
``starts.npz`` (initial histories), ``training.json`` (how it was trained), ``safety.json`` (alarm thresholds of the
safety monitor, where they were measured), ``README.md`` (the card) and ``world.json`` (the manifest). Nothing in it is
unpickled, and the class that ``config.json`` names is looked up among the known ones, never imported by name: opening a
stranger's world runs none of the stranger's code.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from neuralsim.pretrained.starts import Starts
from neuralsim.runtime.device import pick_device
from neuralsim.runtime.files import disk_errors, file_stamp, flush, sweep_leftovers, temporary_folder
from neuralsim.runtime.json_files import read_object, read_text
from neuralsim.spec import WorldSpec
from neuralsim.storage.manifest import (
    CARD,
    CONFIG,
    FILES,
    MANIFEST,
    SAFETY,
    STARTS,
    TRAINING,
    Manifest,
    check_files,
    seal,
)
from neuralsim.storage.resolve import assets, find
from neuralsim.storage.weights import check_model, read_model
from neuralsim.world_model import WorldModel

Model = TypeVar("Model", bound=WorldModel)


@dataclass(frozen=True, eq=False)
class World:
    """A trained world: the model, its initial histories, the folder it was read from and its card (Markdown)."""

    model: WorldModel
    starts: Starts | None = None
    folder: Path | None = None
    card: str = ""

    @property
    def spec(self) -> WorldSpec:
        """The world's interface."""
        return self.model.spec

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Gymnasium copies the arguments of gym.make deeply; a world is a value, and its weights are large.
        return self

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the world with its manifest into ``folder``, which may hold an older world; returns the folder.

        Everything is written elsewhere first. The manifest goes in before the files that it lists, so ``open_world``
        refuses a save that was cut short instead of mixing two worlds; the card goes in last. To share the folder on the
        Hugging Face hub: ``hf upload org/name FOLDER``, or ``huggingface_hub.upload_folder(repo_id="org/name",
        folder_path=folder)``; then ``open_world("org/name")`` opens it anywhere. Raises FileExistsError for a folder that
        holds something else, ValueError for a world that could not be read back, DiskFullError on a full disk.
        """
        target = Path(folder).expanduser().absolute()
        if target.is_dir() and any(target.iterdir()) and not ({CONFIG, MANIFEST} & set(os.listdir(target))):
            raise FileExistsError(f"{target}: holds something that is no world; choose another folder")
        check_model(self.model, target / CONFIG)
        target.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(target.parent)
        size = sum(t.nbytes for t in self.model.state_dict().values())
        kept = "the world that was there is unchanged"
        with temporary_folder(target.parent) as work, disk_errors(target, size, kept):
            self.model.save_pretrained(work)
            if self.starts is not None:
                self.starts.save(work / STARTS)
            if self.card:
                (work / CARD).write_text(self.card, encoding="utf-8")
            for name in (TRAINING, SAFETY):
                if self.folder is not None and (self.folder / name).is_file():
                    shutil.copyfile(self.folder / name, work / name)
            seal(work)
            for path in work.iterdir():
                flush(path)
            (target / CARD).unlink(missing_ok=True)
            for name in FILES:  # the manifest is the first of them, the card the last
                if (work / name).is_file():
                    os.replace(work / name, target / name)
                else:
                    (target / name).unlink(missing_ok=True)
            flush(target)
        return target


_REGISTERED: dict[str, type[WorldModel]] = {}
"""Classes given to ``register_model``, by name."""


def known_models() -> dict[str, type[WorldModel]]:
    """Return the classes that ``config.json`` may name: the package's, and those of ``register_model``."""
    from neuralsim.models.latent_world import LatentWorld
    from neuralsim.models.video_wam import VideoWAM

    return {"VideoWAM": VideoWAM, "LatentWorld": LatentWorld, **_REGISTERED}


def register_model(kind: type[Model]) -> type[Model]:
    """Let ``open_world`` open worlds whose ``config.json`` names your class ``kind``; usable as a class decorator.

    A program that opens such a world imports the module that defines the class first; nothing is imported by name. A
    class that is defined again (in a notebook) replaces the old one. Raises TypeError for anything but a concrete
    WorldModel, and ValueError for a name that another class has.
    """
    if not (isinstance(kind, type) and issubclass(kind, WorldModel)) or inspect.isabstract(kind):
        lacking = f" (it lacks {', '.join(sorted(kind.__abstractmethods__))})" if inspect.isabstract(kind) else ""
        raise TypeError(f"register_model: expected a class derived from WorldModel, got {kind!r}{lacking}")
    known = known_models().get(kind.__name__)
    if known is not None and (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ValueError(
            f"register_model: {kind.__name__!r} is the class {known.__module__}.{known.__qualname__}; give yours another name"
        )
    if known is not kind:
        _load.cache_clear()
    _REGISTERED[kind.__name__] = kind
    return kind


def open_world(name_or_folder: str | os.PathLike[str] | World = "pusht", device: str = "auto") -> World:
    """Open a world by name or folder, its model in evaluation mode on ``device`` (auto: cuda where there is one).

    ``org/name``, where no such folder is here, is a repository on the Hugging Face hub: it is downloaded once, after a
    line on stderr, and then used from the cache (see ``neuralsim.storage.hub``). A World is returned as it is.

    The frozen weights are read once per process and shared between all calls; plain attributes such as
    ``denoise_steps`` belong to each returned world. To train further, load your own copy:
    ``VideoWAM.from_pretrained(world.folder)``. Raises FileNotFoundError where there is no such world, and ValueError,
    naming the file, for a folder that is not a world, is damaged, does not match its manifest, or is of a newer format.
    """
    if isinstance(name_or_folder, World):
        home = name_or_folder.model.device
        if device != "auto" and pick_device(device).type != home.type:
            raise ValueError(
                f"this World lives on {home}, asked for {device!r}; open it there: open_world(name, device={device!r})"
            )
        return name_or_folder
    folder = find(name_or_folder)
    stamps = tuple(file_stamp(folder / name) for name in FILES)
    world = _load(folder, str(pick_device(device)), stamps)
    return replace(world, model=copy.copy(world.model))


@functools.lru_cache(maxsize=4)
def _load(folder: Path, device: str, stamps: tuple[tuple[int, int, int], ...]) -> World:
    """Read a world; ``stamps`` (of its files) are only part of the cache key, so a changed world is read again."""
    check_files(folder, (CONFIG,), links=folder.parent == assets().resolve())  # some installers link a package's files
    config = read_object(folder / CONFIG)
    if (manifest := Manifest.read(folder)) is not None:
        manifest.check(folder)
    class_name, models = config.get("_class_name"), known_models()
    if not isinstance(class_name, str) or class_name not in models:
        raise ValueError(
            f"{folder / CONFIG}: unknown model class {class_name!r}; this NeuralSim knows {', '.join(models)}. A class of your "
            "own is made known by neuralsim.register_model(Class)"
        )
    model: Any = read_model(folder, models[class_name], config)
    model = model.to(device).eval().requires_grad_(False)
    starts = Starts.load(folder / STARTS, model.spec) if (folder / STARTS).is_file() else None
    return World(model, starts, folder, read_text(folder / CARD) if (folder / CARD).is_file() else "")


def training_record(world: World) -> Mapping[str, Any]:
    """The content of the world's ``training.json``; empty where its folder has none."""
    path = None if world.folder is None else world.folder / TRAINING
    return read_object(path) if path is not None and path.is_file() else {}
