"""Progress: how long work shows itself at a terminal, everywhere alike."""

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
    """What is done, a bar, counts, time gone and time left; then the task's field of that name, if one is given."""
    left = (TextColumn("left"), TimeRemainingColumn())
    told = (TextColumn(f"{{task.fields[{field}]}}"),) if field else ()
    return (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), *left, *told)


def progress(show: bool = True, passing: bool = True, field: str = "") -> Progress:
    """A display of :func:`columns` on stderr, so that figures may be piped; ``passing``: it is wiped away at the end."""
    return Progress(*columns(field), console=Console(stderr=True), disable=not show, transient=passing)
