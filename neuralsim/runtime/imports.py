"""own_code: a function of the user's own, named on the command line as ``module:function``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


def load_entry_point(word: str, flag: str) -> Callable[..., Any]:
    """The function ``module:function`` means, looked for in the current folder too. ``flag`` is who asked, for the ValueError."""
    module, _, name = word.rpartition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        made = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"{flag} {word}: {error}; modules are looked for here and among those installed") from error
    if not callable(made):
        raise ValueError(f"{flag} {word}: module {module} has no function {name!r}")  # noqa: TRY004
    return made
