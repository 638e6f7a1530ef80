"""The extra ``robot``: what talking to robots and to policy servers needs beyond the package's own dependencies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def robot_extra(what: str) -> Iterator[None]:
    """To import from the extra inside: a library that is not installed becomes a ValueError that says how to get it."""
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"{what} needs {error.name}, which is not installed: pip install 'neuralsim[robot]'"
        ) from error
