"""Find a world by a shipped name, a folder, or a repository on the Hugging Face hub."""

from __future__ import annotations

import difflib
import os
from importlib import resources
from pathlib import Path

from neuralsim.storage.hub import HubId, fetch
from neuralsim.storage.manifest import CONFIG

ALIASES: dict[str, str] = {}
"""Short and former names of shipped worlds, with the names of their folders; records of real worlds add theirs."""


def add_alias(name: str, shipped: str) -> None:
    """Let ``name`` open the shipped world ``shipped``."""
    ALIASES[name] = shipped


def assets() -> Path:
    """Return the folder of the worlds that ship with the package."""
    return Path(str(resources.files("neuralsim.assets")))


def list_worlds() -> list[str]:
    """List the names of the worlds that ship with the package, short ones first."""
    shipped = sorted(p.parent.name for p in assets().glob(f"*/{CONFIG}"))
    return [alias for alias, name in ALIASES.items() if name in shipped] + shipped


def resolve(name_or_folder: str | os.PathLike[str]) -> Path | HubId:
    """Find the folder or the repository of a world; nothing is opened and no network is touched.

    The folder of a run of ``neuralsim train`` means the world that it made. A shipped name goes before a folder of the
    same name here, a folder before a repository. ``org/name`` is no repository where a folder ``org`` lies here;
    ``hub:org/name`` always is. Raises FileNotFoundError where nothing is found.
    """
    name = os.fspath(name_or_folder)
    text = isinstance(name_or_folder, str)
    if text:
        shipped = assets() / ALIASES.get(name, name)
        if (shipped / CONFIG).is_file() and shipped.parent == assets():
            return shipped.resolve()
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG).is_file() and (folder / "world" / CONFIG).is_file():
            return (folder / "world").resolve()  # the folder of the run that trained it
        return folder.resolve()
    found = HubId.parse(name) if text else None
    if found is not None and not (found.plain and folder.parent.is_dir()):
        return found
    names = list_worlds()
    if folder.parent == Path():
        near = difflib.get_close_matches(name, names, 1, 0.4)
    else:
        beside = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        near = [str(folder.with_name(n)) for n in difflib.get_close_matches(folder.name, beside, 1)]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise FileNotFoundError(
        f"world {name!r}: neither a shipped world ({', '.join(names) or 'none ships with this checkout'}) nor a folder"
        f"{f' (for the hub: hub:{found.repo})' if found else ''}{hint}"
    )


def find(name_or_folder: str | os.PathLike[str]) -> Path:
    """Find the folder of a world, fetched from the hub if it lies there. Raises as ``resolve`` and ``hub.fetch`` do."""
    place = resolve(name_or_folder)
    return fetch(place) if isinstance(place, HubId) else place
