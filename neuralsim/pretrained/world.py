"""Catalog: trained worlds by name or folder.

A world is a folder: ``config.json`` and ``diffusion_pytorch_model.safetensors`` (diffusers' ``save_pretrained``),
``starts.npz`` (true histories from which dreams may begin), ``training.json`` (how it was trained), ``safety.json``
(when what is seen is not what was imagined, see ``neuralsim safety``; absent where nobody measured it), ``README.md``
(its card) and ``world.json`` (its manifest). Nothing in it is unpickled, and the class that ``config.json`` names is
looked up among those that are known here, never imported by name: opening a stranger's world runs none of the
stranger's code.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from neuralsim.pretrained.starts import Starts
from neuralsim.runtime.device import pick_device
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
    WEIGHTS,
    Manifest,
    check_files,
    seal,
)
from neuralsim.storage.resolve import ALIASES, assets, find, list_worlds
from neuralsim.storage.weights import read_model
from neuralsim.world_model import WorldModel

__all__ = [
    "ALIASES",
    "WEIGHTS",
    "Starts",
    "World",
    "known_models",
    "list_worlds",
    "open_world",
    "register_model",
]

Model = TypeVar("Model", bound=WorldModel)


@dataclass(frozen=True, eq=False)
class World:
    """A trained world: the model, the histories it may begin from, the folder it came from and its card (Markdown)."""

    model: WorldModel
    starts: Starts | None = None
    folder: Path | None = None
    card: str = ""

    @property
    def spec(self) -> WorldSpec:
        """What the world looks like from outside."""
        return self.model.spec

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Gymnasium copies the arguments of gym.make deeply; a world is a value, and its weights are large.
        return self

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write all of the world into ``folder``, which may hold an older one, with its manifest; returns the folder.

        Everything is written elsewhere first. The manifest goes in before what it lists, so a save that was cut short is
        refused by ``open_world`` instead of mixing two worlds; the card goes in last. To share the folder on the Hugging
        Face hub: ``hf upload org/name FOLDER``, or ``huggingface_hub.upload_folder(repo_id="org/name", folder_path=folder)``;
        then ``open_world("org/name")`` opens it anywhere. Raises FileExistsError for a folder that holds something else.
        """
        target = Path(folder).expanduser().absolute()
        if target.is_dir() and any(target.iterdir()) and not ({CONFIG, MANIFEST} & set(os.listdir(target))):
            raise FileExistsError(f"{target}: holds something that is no world; choose another folder")
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as place:
            work = Path(place)
            self.model.save_pretrained(work)
            if self.starts is not None:
                self.starts.save(work / STARTS)
            if self.card:
                (work / CARD).write_text(self.card, encoding="utf-8")
            for name in (TRAINING, SAFETY):
                if self.folder is not None and (self.folder / name).is_file():
                    shutil.copyfile(self.folder / name, work / name)
            seal(work)
            (target / CARD).unlink(missing_ok=True)
            for name in FILES:  # the manifest is the first of them, the card the last
                if (work / name).is_file():
                    os.replace(work / name, target / name)
                else:
                    (target / name).unlink(missing_ok=True)
        return target


_THEIRS: dict[str, type[WorldModel]] = {}
"""Classes that ``register_model`` made known."""


def known_models() -> dict[str, type[WorldModel]]:
    """The classes a world's ``config.json`` may name: the package's, and those of ``register_model``."""
    from neuralsim.models.latent_world import LatentWorld
    from neuralsim.models.video_wam import VideoWAM

    return {"VideoWAM": VideoWAM, "LatentWorld": LatentWorld, **_THEIRS}


def register_model(kind: type[Model]) -> type[Model]:
    """Let ``open_world`` open worlds whose ``config.json`` names your class ``kind``; returns it, so it may stand above the
    class as ``@neuralsim.register_model``.

    A program that opens such a world imports the module that defines the class first; nothing is imported by name. A
    class that is defined anew (in a notebook) takes the place of the old one. Raises TypeError for what is no concrete
    WorldModel, and ValueError for a name that is another class's.
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
    _THEIRS[kind.__name__] = kind
    return kind


def open_world(name_or_folder: str | os.PathLike[str] | World = "pusht", device: str = "auto") -> World:
    """The world of that name or in that folder, its model in evaluation mode on ``device`` (auto: cuda where there is
    one, else cpu). ``org/name``, where no such folder is here, is a repository on the Hugging Face hub: it is downloaded
    once, after a word on stderr, and then used from the cache (see ``neuralsim.storage.hub``).

    Weights are read once per process and shared by all who open the same folder, frozen; plain attributes such as
    ``denoise_steps`` are each opener's own. To train further, load your own copy:
    ``VideoWAM.from_pretrained(world.folder)``. A World is handed back as it is. Raises FileNotFoundError for what is
    not there, and ValueError for a folder that is not a world, is damaged, does not match its manifest, or is of a newer
    format; the message names the file.
    """
    if isinstance(name_or_folder, World):
        home = name_or_folder.model.device
        if device != "auto" and pick_device(device).type != home.type:
            raise ValueError(
                f"this World lives on {home}, asked for {device!r}; open it there: open_world(name, device={device!r})"
            )
        return name_or_folder
    folder = find(name_or_folder)
    stamps = tuple(f.stat().st_mtime_ns if f.exists() else 0 for f in (folder / name for name in FILES))
    world = _load(folder, str(pick_device(device)), stamps)
    return replace(world, model=copy.copy(world.model))


@functools.lru_cache(maxsize=4)
def _load(folder: Path, device: str, stamps: tuple[int, ...]) -> World:
    """``stamps`` (times of change) are part of the key only: a world trained anew is read anew."""
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
    return json.loads(path.read_text()) if path is not None and path.is_file() else {}
