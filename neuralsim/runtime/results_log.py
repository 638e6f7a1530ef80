"""Finished pieces of a long run, one JSON line each, so that the same command resumes where it stopped.

A line is written with one call and flushed to the disk; a torn last line (the machine died) is dropped when the log is
opened. The first line holds the run's settings: a run with other settings is refused rather than mixed in.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from neuralsim.runtime.files import disk_errors


class ResultsLog:
    """The file at ``path``, held by this process alone until it is closed; a context manager.

    ``lines`` are its entries, in order. Raises ValueError where it was begun with other ``settings`` (unless ``fresh``,
    which deletes its content first), BlockingIOError where another process writes it, DiskFullError on a full disk.
    Settings of the names in ``added`` may be missing in it: earlier versions did not record them.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], fresh: bool = False, added: Collection[str] = ()
    ) -> None:
        self.path, self._added = path, added
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            self._lock()
            if fresh:
                os.ftruncate(self._file, 0)
            self.lines = self._read(json.loads(json.dumps(settings)))
        except BaseException:
            os.close(self._file)
            raise

    def add(self, line: Mapping[str, Any]) -> None:
        """Write one line; after a kill it is there whole or not at all."""
        self._write(line)
        self.lines.append(dict(line))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        data = (json.dumps(line) + "\n").encode()
        with disk_errors(self.path, len(data), "its earlier lines are kept"):
            if os.write(self._file, data) != len(data):
                raise OSError(errno.ENOSPC, "short write")
            os.fsync(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"{self.path}: another process is writing here; wait for it or choose another --out"
            raise BlockingIOError(errno.EWOULDBLOCK, message) from error

    def _read(self, settings: dict[str, Any]) -> list[dict[str, Any]]:
        text = self.path.read_bytes()
        whole = text.rfind(b"\n") + 1
        os.ftruncate(self._file, whole)
        if not whole:
            self._write({"settings": settings})
            return []
        try:
            lines = [json.loads(line) for line in text[:whole].splitlines()]
            there = dict(lines[0]["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}: not a results log ({error!r}); choose another --out") from error
        wrong = [
            f"{name} {there.get(name)!r}, asked for {settings.get(name)!r}"
            for name in sorted({*there, *settings})
            if there.get(name) != settings.get(name) and not (name in self._added and name not in there)
        ]
        if wrong:
            raise ValueError(
                f"{self.path}: begun with other settings ({'; '.join(wrong)}). Give the same ones to resume it, choose "
                "another --out, or delete it with --fresh"
            )
        return lines[1:]
