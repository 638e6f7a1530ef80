"""Manifest: what a world's folder holds, as ``world.json``: each file's size and SHA-256, the format's version, who wrote it.

A world that was cut short on its way, or changed since it was written, is refused by the name of the file. The card is
not covered: it is prose, which people and hubs rewrite. A checksum tells damage, not good intentions: who can change a
file can change the manifest too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from neuralsim.runtime.json_files import read_object
from neuralsim.version import __version__

MANIFEST, CONFIG, CARD = "world.json", "config.json", "README.md"
WEIGHTS, STARTS, TRAINING = "diffusion_pytorch_model.safetensors", "starts.npz", "training.json"
SAFETY = "safety.json"
"""How far what is seen may be off what was imagined, where it was measured (agents.mismatch)."""
SEALED = (CONFIG, WEIGHTS, STARTS, TRAINING, SAFETY)
"""Files that a manifest covers, those of them that there are."""
FILES = (MANIFEST, *SEALED, CARD)
"""All files of a world; others in its folder are nobody's business."""
FORMAT = 1
"""Of the folder as a whole. One that is newer is not read: what it means is not known here."""


@dataclass(frozen=True)
class FileEntry:
    """A file's length in bytes and its SHA-256 in 64 hexadecimal digits."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """The entry of the file at ``path`` as it is now."""
        with path.open("rb") as file:
            return cls(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True)
class Manifest:
    """``format`` is FORMAT of the NeuralSim whose version is ``neuralsim``; ``model`` and ``spec`` are config.json's, so that
    a shelf of worlds can be read without opening them; ``files``: an Entry per file of SEALED."""

    format: int
    neuralsim: str
    model: str
    spec: Mapping[str, Any]
    files: Mapping[str, FileEntry]

    @classmethod
    def of(cls, folder: Path) -> Self:
        """The manifest that ``folder`` should have as it is now. Raises ValueError where config or weights are missing."""
        check_files(folder)
        model, spec = _told(folder)
        entries = {name: FileEntry.of(folder / name) for name in SEALED if (folder / name).is_file()}
        return cls(FORMAT, __version__, model, spec, entries)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The manifest in ``folder``, None where there is none. Raises ValueError for one that is newer or no manifest."""
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
        """Raise a ValueError that names the first file of ``folder`` which is missing, cut short, changed or not listed, or
        the manifest where it tells of another world."""
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
        if _told(folder) != (self.model, self.spec):
            raise ValueError(f"{folder / MANIFEST}: tells of another model or spec than {CONFIG} does; {REMEDY}")

    def to_json(self) -> str:
        """Indented JSON, its keys in order."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


REMEDY = (
    "copy or download the folder again, or, if it is yours and was changed on purpose, write the manifest anew: "
    "neuralsim.storage.manifest.seal(folder)"
)


def seal(folder: str | os.PathLike[str]) -> Manifest:
    """Write ``world.json`` for the world in ``folder`` as it is now, whole or not at all. Call it last, when all else is
    there: files that are written after it no longer match."""
    target = Path(folder)
    manifest = Manifest.of(target)
    temporary = target / f".{MANIFEST}.{os.getpid()}.tmp"
    temporary.write_text(manifest.to_json(), encoding="utf-8")
    temporary.replace(target / MANIFEST)
    return manifest


def check_files(folder: Path, needed: tuple[str, ...] = (CONFIG, WEIGHTS), links: bool = False) -> None:
    """Raise a ValueError where a ``needed`` file is missing, a file of the world is no plain file, or (unless ``links`` may
    lead anywhere) a link that leaves the folder. The Hugging Face cache's links to its own blobs are no such."""
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


def _told(folder: Path) -> tuple[str, Mapping[str, Any]]:
    """The class and the spec that config.json names."""
    config = read_object(folder / CONFIG)
    spec = config.get("spec")
    return str(config.get("_class_name")), spec if isinstance(spec, dict) else {}


def _entry(path: Path, name: str, entry: Any) -> FileEntry:
    """Names are those of SEALED alone, so none can lead out of the folder."""
    if name not in SEALED:
        raise ValueError(f"{path}: lists {name!r}, which is no file of a world; {REMEDY}")
    size, digest = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
    if not isinstance(size, int) or not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError(f"{path}: expected bytes and a sha256 of 64 digits for {name}, got {entry!r:.100}; {REMEDY}")
    return FileEntry(size, digest)
