"""Catalog: trained worlds by name or folder.

A world is a folder: ``config.json`` and ``diffusion_pytorch_model.safetensors`` (diffusers' ``save_pretrained``),
``starts.npz`` (true histories from which dreams may begin) and ``README.md`` (its card). Nothing in it is unpickled,
and the class that ``config.json`` names is looked up in a fixed table, never imported by name: opening a stranger's
world runs none of the stranger's code.
"""

from __future__ import annotations

import copy
import difflib
import functools
import json
import os
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from neuralsim.episode import EpisodeStore
from neuralsim.precision import pick_device
from neuralsim.spec import WorldSpec
from neuralsim.world import WorldModel

ALIASES = {"pusht": "pusht-video", "tworoom": "tworoom-latent"}
"""Short names: the world that a task's plain name opens."""
WEIGHTS = "diffusion_pytorch_model.safetensors"


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
        if not len(chosen):
            raise ValueError(f"{store.folder}: no episode has {context} frames to start from")
        draws = np.random.default_rng([seed, 1003])
        frames, actions, states, seeds = [], [], [], []
        for index in draws.choice(chosen, size=count, replace=len(chosen) < count):
            episode = store[int(index)]
            begin = int(draws.integers(0, len(episode) + 2 - context))
            frames.append(episode.frames[begin : begin + context])
            actions.append(episode.actions[begin : begin + context - 1])
            if episode.states is not None:
                states.append(episode.states[begin : begin + context])
            seeds.append(episode.provenance.get("seed", -1))
        known = np.stack(states) if len(states) == count else None
        return cls(np.stack(frames), np.stack(actions), known, np.array(seeds, np.int64))

    @classmethod
    def load(cls, path: str | os.PathLike[str], spec: WorldSpec) -> Self:
        """Read ``starts.npz`` and check it against ``spec``; never unpickles."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ("frames", "actions", "states", "seeds") if name in file}
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: not a starts file of plain arrays ({error})") from error
        missing = {"frames", "actions"} - set(arrays)
        if missing:
            raise ValueError(f"{path}: {sorted(missing)} missing; Starts(...).save(path) writes such a file")
        spec.check_frames(arrays["frames"], f"{path}: frames")
        arrays["actions"] = spec.check_actions(arrays["actions"], f"{path}: actions")
        return cls(**arrays)


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


def known_models() -> dict[str, type[WorldModel]]:
    """The classes a world's ``config.json`` may name."""
    from neuralsim.models.latent import LatentWorld
    from neuralsim.models.video import VideoWAM

    return {"VideoWAM": VideoWAM, "LatentWorld": LatentWorld}


def list_worlds() -> list[str]:
    """Names of the worlds that ship with the package, short ones first."""
    shipped = sorted(p.parent.name for p in _assets().glob("*/config.json"))
    return [alias for alias, name in ALIASES.items() if name in shipped] + shipped


def open_world(name_or_folder: str | os.PathLike[str] | World = "pusht", device: str = "auto") -> World:
    """The world of that name or in that folder, its model in evaluation mode on ``device`` (auto: cuda where there is
    one, else cpu).

    Weights are read once per process and shared by all who open the same folder, frozen; plain attributes such as
    ``denoise_steps`` are each opener's own. To train further, load your own copy:
    ``VideoWAM.from_pretrained(world.folder)``. A World is handed back as it is. Raises FileNotFoundError for what is
    not there and ValueError for a folder that is not a world.
    """
    if isinstance(name_or_folder, World):
        home = name_or_folder.model.device
        if device != "auto" and pick_device(device).type != home.type:
            raise ValueError(
                f"this World lives on {home}, asked for {device!r}; open it there: open_world(name, device={device!r})"
            )
        return name_or_folder
    folder = _find(name_or_folder)
    files = [folder / name for name in ("config.json", WEIGHTS, "starts.npz", "README.md")]
    stamps = tuple(f.stat().st_mtime_ns if f.exists() else 0 for f in files)
    world = _load(folder, str(pick_device(device)), stamps)
    return replace(world, model=copy.copy(world.model))


def _assets() -> Path:
    return Path(str(resources.files("neuralsim.assets")))


def _find(name_or_folder: str | os.PathLike[str]) -> Path:
    """The folder meant; a shipped name goes before a folder of the same name here."""
    name = os.fspath(name_or_folder)
    if isinstance(name_or_folder, str):
        shipped = _assets() / ALIASES.get(name, name)
        if (shipped / "config.json").is_file() and shipped.parent == _assets():
            return shipped.resolve()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    names = list_worlds()
    near = difflib.get_close_matches(name, names, 1, 0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise FileNotFoundError(
        f"world {name!r}: neither a shipped world ({', '.join(names) or 'none ships with this checkout'}) nor a folder"
        f"{hint}"
    )


@functools.lru_cache(maxsize=4)
def _load(folder: Path, device: str, stamps: tuple[int, ...]) -> World:
    """``stamps`` (times of change) are part of the key only: a world trained anew is read anew."""
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"{folder}: not a world (config.json is missing); model.save_pretrained(folder) makes one")
    try:
        values = json.loads(config.read_text())
        class_name = values.get("_class_name")
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{config}: not a JSON object ({error})") from error
    models = known_models()
    if class_name not in models:
        raise ValueError(f"{config}: unknown model class {class_name!r}; this NeuralSim knows {', '.join(models)}")
    weights = folder / WEIGHTS
    # Not from_pretrained: it maps the file, and weights at odd addresses and without their memory layout are slower and
    # round otherwise.
    try:
        with torch.random.fork_rng(devices=[]):  # a new model draws its first weights from the global generator
            model: Any = models[class_name].from_config(values)
        model.load_state_dict(load_file(weights))
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder}: not a world ({WEIGHTS} is missing); model.save_pretrained(folder) makes one"
        ) from error
    except (SafetensorError, RuntimeError, TypeError) as error:
        raise ValueError(f"{folder}: config.json and {WEIGHTS} do not make a {class_name}: {error}") from error
    model = model.to(device).eval().requires_grad_(False)
    starts = Starts.load(folder / "starts.npz", model.spec) if (folder / "starts.npz").is_file() else None
    card = (folder / "README.md").read_text() if (folder / "README.md").is_file() else ""
    return World(model, starts, folder, card)
