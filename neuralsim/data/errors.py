"""Errors about data that cannot be read."""

from __future__ import annotations

from dataclasses import dataclass


class CorruptDataError(ValueError):
    """Something that cannot be read; the text begins with the file and the field."""


@dataclass(frozen=True)
class SkippedRecording:
    """A recording that was not read: where it lies, and why."""

    where: str
    why: str
