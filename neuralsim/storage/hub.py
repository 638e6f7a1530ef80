"""Worlds on the Hugging Face hub, fetched into its cache once and used from there.

Only the files of a world are fetched, never code. A cached world is used without asking the hub, so it does not change
unasked and needs no network; ``hf download org/name`` gets a newer one, ``org/name@revision`` a
certain one (a branch, a tag, a commit). ``HF_HOME``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT`` and ``HF_TOKEN`` mean what they
always do.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from neuralsim.storage.manifest import CONFIG, FILES, MANIFEST, WEIGHTS, Manifest

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_FORM = re.compile(
    rf"(?P<prefix>hub:)?(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{{0,127}}))?"
)


@dataclass(frozen=True)
class HubId:
    """A repository ``org/name`` and a revision of it. ``plain``: written without ``hub:``, so it could also mean a folder."""

    repo: str
    revision: str | None = None
    plain: bool = False

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """``org/name``, ``org/name@revision``, either with ``hub:`` before it; None for anything else."""
        found = _FORM.fullmatch(text)
        if found is None or ".." in text or "--" in found["repo"] or found["repo"].endswith(".git"):
            return None
        return cls(found["repo"], found["revision"], plain=not found["prefix"])

    def __str__(self) -> str:
        return f"hub:{self.repo}" + (f"@{self.revision}" if self.revision else "")


def fetch(world: HubId) -> Path:
    """Return the cache folder of ``world``, downloaded first (with a line on stderr) where it is not there yet.

    Raises FileNotFoundError where neither cache nor hub has it, and OSError where the hub cannot be reached.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if (cached := _cached(world)) is not None:
        return cached
    named = f"world {world.repo!r}" + (f" at revision {world.revision!r}" if world.revision else "")
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(
            f"{named}: no folder here, not in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids asking the "
            f"hub; fetch it where that is allowed: hf download {world.repo}"
        )
    print(f"neuralsim: downloading {named} from {constants.ENDPOINT} to {constants.HF_HUB_CACHE}", file=sys.stderr)
    try:
        _snapshot(world, (MANIFEST,))  # first the list of files, then the rest: a download cut short is noticed
        return _snapshot(world, FILES)
    except GatedRepoError as error:
        raise OSError(f"{named}: the hub asks for permission first; get it on its page, then hf auth login") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise FileNotFoundError(
            f"{named}: no folder here, and the hub has none of that name, or keeps it private (hf auth login)"
        ) from error
    except Exception as error:  # the transport below raises errors of many kinds
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise OSError(f"{named}: no folder here, and the hub could not be asked ({reason[0]})") from error


def _snapshot(world: HubId, names: tuple[str, ...], local: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(world.repo, revision=world.revision, allow_patterns=list(names), local_files_only=local)
    )


def _cached(world: HubId) -> Path | None:
    """Return the cache folder that holds all of ``world``; None where it is missing or a download was interrupted."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = _snapshot(world, FILES, local=True)
    except LocalEntryNotFoundError:
        return None
    manifest = Manifest.read(folder)
    needed = {CONFIG, WEIGHTS, *(manifest.files if manifest else ())}
    return folder if all((folder / name).is_file() for name in needed) else None
