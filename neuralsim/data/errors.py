"""Errors about data that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class CorruptDataError(ValueError):
    """Something that cannot be read; the text begins with the file and the field."""


@dataclass(frozen=True)
class SkippedRecording:
    """A recording that was not read: where it lies, and why."""

    where: str
    why: str


@contextmanager
def blaming(where: str) -> Iterator[None]:
    """Turn every exception of a library about broken bytes into a CorruptDataError that begins with ``where``."""
    try:
        yield
    except CorruptDataError:
        raise
    except Exception as error:
        raise CorruptDataError(f"{where}: {' '.join(str(error).split())[:300] or type(error).__name__}") from error
