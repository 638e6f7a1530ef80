"""The manifest of a world folder, ``world.json``: each file's size and SHA-256, the format version and the writer's version.

A world that was cut short on its way, or changed since it was written, is refused by the name of the file. The card is
not covered: it is prose, which people and hubs rewrite. A checksum finds damage, not malice: an attacker who can change
a file can change the manifest too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, cast

from neuralsim.runtime.files import write_atomically
from neuralsim.runtime.json_files import read_object
from neuralsim.version import __version__

MANIFEST, CONFIG, CARD = "world.json", "config.json", "README.md"
WEIGHTS, STARTS, TRAINING = "diffusion_pytorch_model.safetensors", "starts.npz", "training.json"
SAFETY = "safety.json"
"""Alarm thresholds of the safety monitor, where they were measured (``neuralsim safety``)."""
SEALED = (CONFIG, WEIGHTS, STARTS, TRAINING, SAFETY)
"""Files that a manifest covers, as far as they exist."""
FILES = (MANIFEST, *SEALED, CARD)
"""All files of a world; other files in its folder are ignored."""
FORMAT = 1
"""Version of the folder as a whole; newer ones are refused."""


@dataclass(frozen=True)
class FileEntry:
    """Length of a file in bytes, and its SHA-256 in 64 hexadecimal digits."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """Measure the file at ``path``."""
        with path.open("rb") as file:
            return cls(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True)
class Manifest:
    """The content of ``world.json``."""

    format: int
    """FORMAT of the writer."""
    neuralsim: str
    """Version of NeuralSim that wrote it."""
    model: str
    """Name of the model class, as in config.json."""
    spec: Mapping[str, Any]
    """The spec in config.json, so that worlds can be listed without opening them."""
    files: Mapping[str, FileEntry]
    """An entry for each existing file of SEALED."""

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Make the manifest of ``folder`` as it is now. Raises ValueError where config or weights are missing."""
        check_files(folder)
        model, spec = _model_and_spec(folder)
        entries = {name: FileEntry.of(folder / name) for name in SEALED if (folder / name).is_file()}
        return cls(FORMAT, __version__, model, spec, entries)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the manifest in ``folder``, None where there is none. Raises ValueError for a newer or damaged one."""
        path = folder / MANIFEST
        if not path.is_file():
            return None
        body = read_object(path)
        version, writer = body.get("format"), body.get("neuralsim")
        if isinstance(version, int) and not isinstance(version, bool) and version > FORMAT:
            raise ValueError(
                f"{path}: a world of format {version}, written by NeuralSim {writer}; this NeuralSim reads formats up to "
                f"{FORMAT}. Update it (pip install --upgrade neuralsim), or get an older copy of the world"
            )
        files = body.get("files")
        if (
            set(body) != {"format", "neuralsim", "model", "spec", "files"}
            or version != FORMAT
            or isinstance(version, bool)
            or not isinstance(writer, str)
            or not isinstance(body["model"], str)
            or not isinstance(body["spec"], dict)
            or not isinstance(files, dict)
        ):
            raise ValueError(
                f"{path}: not a manifest (format, neuralsim, model, spec and files, and nothing else); {REMEDY}"
            )
        return cls(version, writer, body["model"], body["spec"], {n: _entry(path, n, e) for n, e in files.items()})

    def check(self, folder: Path) -> None:
        """Raise a ValueError naming the first file of ``folder`` that is missing, cut short, changed or not listed, or the
        manifest where it describes another world."""
        if unlisted := [name for name in SEALED if name not in self.files and (folder / name).exists()]:
            raise ValueError(f"{folder / unlisted[0]}: not listed in {MANIFEST}; {REMEDY}")
        for name, entry in self.files.items():
            path = folder / name
            if not path.is_file():
                raise ValueError(f"{path}: missing, though {MANIFEST} lists it; {REMEDY}")
            size = path.stat().st_size
            if size != entry.bytes:
                what = "cut short" if size < entry.bytes else "longer than it was"
                raise ValueError(f"{path}: {what}, {size} bytes instead of {entry.bytes} ({MANIFEST}); {REMEDY}")
            found = FileEntry.of(path).sha256
            if found != entry.sha256:
                raise ValueError(
                    f"{path}: changed since {MANIFEST} was written (SHA-256 {found[:12]}, not {entry.sha256[:12]}); {REMEDY}"
                )
        if _model_and_spec(folder) != (self.model, self.spec):
            raise ValueError(f"{folder / MANIFEST}: describes another model or spec than {CONFIG} does; {REMEDY}")

    def to_json(self) -> str:
        """Indented JSON, its keys in order."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


REMEDY = (
    "copy or download the folder again, or, if it is yours and was changed on purpose, write the manifest again: "
    "neuralsim.storage.manifest.seal(folder)"
)


def seal(folder: str | os.PathLike[str]) -> Manifest:
    """Write ``world.json`` for the world in ``folder`` as it is now, whole or not at all.

    Call it last: files that are written after it no longer match.
    """
    target = Path(folder)
    manifest = Manifest.of(target)
    write_atomically(target / MANIFEST, manifest.to_json())
    return manifest


def check_files(folder: Path, needed: tuple[str, ...] = (CONFIG, WEIGHTS), links: bool = False) -> None:
    """Raise a ValueError where a ``needed`` file is missing, or a file of the world is no plain file.

    Unless ``links`` is given, links may not leave the folder, except the Hugging Face cache's links to its own blobs.
    """
    for name in needed:
        if not os.path.lexists(folder / name):
            raise ValueError(f"{folder}: not a world ({name} is missing); World(model).save(folder) makes one")
    homes = [folder.resolve()]
    if folder.parent.name == "snapshots":
        homes.append(folder.resolve().parent.parent / "blobs")
    for name in FILES:
        path = folder / name
        if not os.path.lexists(path):
            continue
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
            raise ValueError(f"{path}: a link to nothing ({error})") from error
        if not links and not any(target.is_relative_to(home) for home in homes):
            raise ValueError(f"{path}: a link out of the world's folder, to {target}; copy the file itself there")
        if not target.is_file():
            raise ValueError(f"{path}: not a plain file")


def _model_and_spec(folder: Path) -> tuple[str, Mapping[str, Any]]:
    """Read the class name and the spec from config.json."""
    config = read_object(folder / CONFIG)
    spec = config.get("spec")
    return str(config.get("_class_name")), spec if isinstance(spec, dict) else {}


def _entry(path: Path, name: str, entry: Any) -> FileEntry:
    """Check one entry; names other than those of SEALED are refused, so none can lead out of the folder."""
    if name not in SEALED:
        raise ValueError(f"{path}: lists {name!r}, which is no file of a world; {REMEDY}")
    size, digest = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
    counted = not isinstance(size, bool) and isinstance(size, int) and size >= 0
    if not counted or not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError(f"{path}: expected bytes and a sha256 of 64 digits for {name}, got {entry!r:.100}; {REMEDY}")
    return FileEntry(cast(int, size), digest)
