"""Code that is imported by name when it is needed: a caller's own function, or a library of an optional extra."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def load_entry_point(name: str, flag: str = "entry point") -> Any:
    """Import the object that ``module:name`` names; modules in the current folder count.

    ``flag`` is the option that gave the name. Raises ValueError, beginning with both, where there is no such object, or
    its module cannot be imported.
    """
    module, _, attribute = name.rpartition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"{flag} {name}: {error}; modules are looked for here and among those installed") from error
    except ImportError as error:
        raise ValueError(f"{flag} {name}: {error}") from error
    if not callable(found):
        raise ValueError(f"{flag} {name}: module {module} has no function {attribute!r}")  # noqa: TRY004
    return found


@contextmanager
def require_extra(purpose: str, extra: str = "") -> Iterator[None]:
    """Guard the imports inside; a library that cannot be imported becomes a ValueError that begins with ``purpose``.

    ``extra`` names the extra of this package that holds the library. A library that is installed but fails to import
    (built for another numpy, a system library missing) is reported as such, with the text of its own error.
    """
    command = f"pip install 'neuralsim[{extra}]'" if extra else "pip install --force-reinstall neuralsim"
    try:
        yield
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and not _is_installed(error.name or ""):
            raise ValueError(f"{purpose} needs {error.name}, which is not installed: {command}") from error
        name = error.name or "a library"
        raise ValueError(
            f"{purpose} needs {name}, which is installed but cannot be imported ({_one_line(error)}); mend that "
            f"installation, for example with: {command}"
        ) from error


def _is_installed(module: str) -> bool:
    """True where the top-level package of ``module`` can be found; then it is a part of it that is missing."""
    top = module.partition(".")[0]
    try:
        return bool(top) and importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):
        return False


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
