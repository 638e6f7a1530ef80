"""Progress bars of long work, the same everywhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def columns(field: str = "") -> tuple[ProgressColumn, ...]:
    """Columns: description, bar, counts, elapsed and remaining time; then the task's ``field``, if one is given."""
    left = (TextColumn("left"), TimeRemainingColumn())
    extra = (TextColumn(f"{{task.fields[{field}]}}"),) if field else ()
    return (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), *left, *extra)


def progress(show: bool = True, passing: bool = True, field: str = "") -> Progress:
    """Make a display of :func:`columns` on stderr, so that figures may be piped; with ``passing`` it vanishes at the end."""
    return Progress(*columns(field), console=Console(stderr=True), disable=not show, transient=passing)
