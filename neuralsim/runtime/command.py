"""Output of a command: a value that the command line prints when the command is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CommandOutput:
    """Tables first, then lines, facts, missed targets and files; ``stop`` is raised at the very end."""

    tables: Sequence[Any] = ()
    """Rich tables, or anything that rich prints."""
    lines: Sequence[str] = ()
    """Plain text, printed as it is."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Names and values, printed in two columns; a list takes a line for each of its items."""
    missed: Sequence[Any] = ()
    """Metrics that miss their targets, as in `neuralsim.evaluation.report`."""
    files: Sequence[Path] = ()
    """Files that the command wrote."""
    json: Path | None = None
    """File that gets ``figures``, if it is wanted."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Figures for ``json``."""
    stop: BaseException | None = None
    """Reason for an exit code other than 0, after everything was printed."""
