"""Registration of worlds under Gymnasium ids of the caller's own."""

from __future__ import annotations

import importlib
import os
import re
from typing import Any

import gymnasium

from neuralsim.runtime.json_files import read_object
from neuralsim.storage.hub import HubId
from neuralsim.storage.manifest import CONFIG, Manifest, check_files
from neuralsim.storage.resolve import ALIASES, assets, resolve

ENTRY_POINT, VECTOR_ENTRY_POINT = "neuralsim.envs.imagined:ImaginedEnv", "neuralsim.envs.imagined:ImaginedVectorEnv"
ENV_CONFIG = "neuralsim.envs.imagined.config:ImaginedEnvConfig"
"""The settings that an imagined environment takes beside its world."""
_ID = re.compile(r"[\w:-]+/[\w:.-]+?-v\d+")


def register(id: str, world: str | os.PathLike[str], *, overwrite: bool = False, **settings: Any) -> None:
    """Make ``gym.make(id)`` and ``gym.make_vec(id)`` open ``world``, in this process and those it forks.

    id: ``namespace/Name-vN``, e.g. ``"me/MyWorld-v0"``. world: the folder of a trained world, the name of a shipped one,
    or ``hub:org/name`` on the Hugging Face hub (fetched when first made). settings: defaults for ImaginedEnv's other
    arguments, e.g. ``horizon=500, observation="features"``; ``gym.make`` can still give others. A folder is looked into at
    once: it must hold a world. Its weights are not read before an environment is made.

    To register an id again as it was does nothing; as anything else it is a ValueError, unless ``overwrite``. Raises
    ValueError too for an id of another form or another package and for unknown settings, FileNotFoundError for a world
    that is not there.
    """
    if not isinstance(id, str) or not _ID.fullmatch(id):
        raise ValueError(f"id: expected the form namespace/Name-vN, e.g. 'me/MyWorld-v0', got {id!r}")
    module, _, config = ENV_CONFIG.partition(":")
    for name, hint in getattr(importlib.import_module(module), config).unknown(settings).items():
        raise ValueError(f"{id}: unknown setting {name!r}; {hint}")
    kwargs = {"world": _resolve_world(world), **settings}
    known = gymnasium.registry.get(id)
    if known is not None:
        if known.entry_point != ENTRY_POINT:
            raise ValueError(f"{id}: this id is another environment's ({known.entry_point}); choose another")
        if _equal_settings(known.kwargs, kwargs):
            return
        if not overwrite:
            raise ValueError(
                f"{id}: registered already, with {_format_settings(known.kwargs)}; got {_format_settings(kwargs)}. Choose another id, or "
                "overwrite=True"
            )
        del gymnasium.registry[id]  # Gymnasium would warn
    gymnasium.register(id=id, entry_point=ENTRY_POINT, vector_entry_point=VECTOR_ENTRY_POINT, kwargs=kwargs)


def _resolve_world(world: str | os.PathLike[str]) -> str:
    """``world`` in words that mean the same wherever the process goes: a shipped name, a hub id, or an absolute folder that
    looks like a world."""
    if not isinstance(world, str | os.PathLike):
        raise TypeError(
            f"world: expected a name, a folder or a hub id, got {type(world).__name__}; save it first: World(model, starts).save(folder)"
        )
    place = resolve(world)
    if isinstance(place, HubId):
        if place.plain:  # from another working directory, a folder's path looks just so
            raise FileNotFoundError(
                f"world {world!r}: no such folder here; if it lies on the hub, write {str(place)!r}"
            )
        return str(place)
    if isinstance(world, str) and place == (assets() / ALIASES.get(world, world)).resolve():
        return world
    check_files(place)
    Manifest.read(place)
    if "_class_name" not in read_object(place / CONFIG):
        raise ValueError(f"{place / CONFIG}: names no model class (_class_name); World(model).save(folder) writes it")
    return str(place)


def _equal_settings(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Words and numbers are compared; anything else, say a task of tensors, is the same if it is the same object."""
    plain = str | int | float | None
    return one.keys() == other.keys() and all(
        value is other[name] or (isinstance(value, plain) and isinstance(other[name], plain) and value == other[name])
        for name, value in one.items()
    )


def _format_settings(kwargs: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in kwargs.items())
