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
import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from neuralsim.data.episode import EpisodeStore
from neuralsim.runtime.device import pick_device
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
    read_object,
    read_text,
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
LARGEST_STARTS = 1 << 30
"""Bytes that start states may take in memory."""


@dataclass(frozen=True, eq=False)
class Starts:
    """True histories: N of them, each t frames long, ending where a dream begins.

    frames uint8 ``(N, t, h, w, 3)``; actions float32 ``(N, t-1, a)``; states float32 ``(N, t, s)``, the true
    simulator's, the last where the dream begins; seeds int64 ``(N,)`` of the episodes they were cut from. States and
    seeds may be absent (None).
    """

    frames: np.ndarray
    actions: np.ndarray
    states: np.ndarray | None = None
    seeds: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.frames.ndim != 5 or self.frames.dtype != np.uint8 or min(self.frames.shape[:2]) < 1:
            raise ValueError(
                f"starts: expected frames uint8 (N, t, h, w, 3) with N and t at least 1, "
                f"got {self.frames.dtype} {self.frames.shape}"
            )
        n, t = self.frames.shape[:2]
        expected = {"actions": (n, t - 1, "a"), "states": (n, t, "s"), "seeds": (n,)}
        for name, shape in expected.items():
            array = getattr(self, name)
            if array is None:
                continue
            if array.ndim != len(shape) or array.shape[: min(2, len(shape))] != shape[:2]:
                raise ValueError(
                    f"starts: expected {name} of shape {shape} beside {n} histories of {t} frames, got {array.shape}"
                )

    def __len__(self) -> int:
        return len(self.frames)

    def join(self, other: Starts) -> Self:
        """These histories, then ``other``'s; the longer ones lose their beginning. States and seeds stay where both know them."""
        t = min(self.frames.shape[1], other.frames.shape[1])
        frames = np.concatenate([s.frames[:, -t:] for s in (self, other)])
        actions = np.concatenate([s.actions[:, s.actions.shape[1] - (t - 1) :] for s in (self, other)])
        states = seeds = None
        if self.states is not None and other.states is not None:
            states = np.concatenate([self.states[:, -t:], other.states[:, -t:]])
        if self.seeds is not None and other.seeds is not None:
            seeds = np.concatenate([self.seeds, other.seeds])
        return type(self)(frames, actions, states, seeds)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``starts.npz``, compressed; it appears whole or not at all."""
        arrays = {k: v for k in ("frames", "actions", "states", "seeds") if (v := getattr(self, k)) is not None}
        target = Path(path)
        temporary = target.with_name(f".{target.stem}.tmp.npz")
        np.savez_compressed(temporary, **arrays)
        temporary.replace(target)

    @classmethod
    def cut(cls, store: EpisodeStore, count: int, context: int, seed: int, held_out: bool | None = None) -> Self:
        """``count`` histories of ``context`` frames from anywhere in the episodes of ``store``, or of its held-out or
        training ones alone."""
        chosen = np.arange(len(store)) if held_out is None else store.split(held_out)
        chosen = chosen[store.lengths[chosen] + 1 >= context]
        if context > 1 and store.spec.action_size:
            chosen = chosen[store.acted(chosen)]
        if not len(chosen):
            raise ValueError(f"{store.folder}: no episode has {context} frames to start from")
        draws = np.random.default_rng([seed, 1003])
        frames, actions, states, seeds = [], [], [], []
        for index in draws.choice(chosen, size=count, replace=len(chosen) < count):
            episode = store[int(index)]
            begin = int(draws.integers(0, len(episode) + 2 - context))
            frames.append(episode.frames[begin : begin + context])
            none = np.empty((context - 1, store.spec.action_size), store.spec.action_dtype)
            actions.append(episode.actions[begin : begin + context - 1] if episode.has_actions else none)
            if episode.states is not None:
                states.append(episode.states[begin : begin + context])
            seeds.append(episode.provenance.get("seed", -1))
        known = np.stack(states) if len(states) == count else None
        return cls(np.stack(frames), np.stack(actions), known, np.array(seeds, np.int64))

    @classmethod
    def load(cls, path: str | os.PathLike[str], spec: WorldSpec) -> Self:
        """Read ``starts.npz`` and check it against ``spec``; never unpickles."""
        try:
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
            if size > LARGEST_STARTS:
                raise ValueError(f"{size} bytes unpacked, expected at most {LARGEST_STARTS}")
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ("frames", "actions", "states", "seeds") if name in file}
        except Exception as error:  # zip, zlib and numpy raise what they like at bytes that are no archive
            raise ValueError(f"{path}: not a starts file of plain arrays ({error})") from error
        missing = {"frames", "actions"} - set(arrays)
        if missing:
            raise ValueError(f"{path}: {sorted(missing)} missing; Starts(...).save(path) writes such a file")
        for name, kinds in (("actions", "fiu"), ("states", "f"), ("seeds", "iu")):
            if name in arrays and arrays[name].dtype.kind not in kinds:
                raise ValueError(f"{path}: {name}: expected numbers (of kind {kinds}), got dtype {arrays[name].dtype}")
        spec.check_frames(arrays["frames"], f"{path}: frames")
        arrays["actions"] = spec.check_actions(arrays["actions"], f"{path}: actions")
        try:
            return cls(**arrays)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


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
