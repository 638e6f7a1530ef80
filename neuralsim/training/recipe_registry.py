"""Names of recipes and the functions that make them; light, so that a world can be registered without its model's code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from neuralsim.runtime.imports import load_entry_point

_MAKERS: dict[str, str | Callable[[], Any]] = {}


def register_recipe(name: str, make: str | Callable[[], Any]) -> None:
    """Make ``name`` a recipe: ``make()`` returns it, a function or its "module:name"; a later one takes the place of an earlier."""
    _MAKERS[name] = make


def recipe_names() -> list[str]:
    """Return the names of all registered recipes, sorted."""
    return sorted(_MAKERS)


def load_recipe(name: str) -> Any:
    """Return the recipe registered as ``name``; KeyError where there is none."""
    make = _MAKERS[name]
    return load_entry_point(make, "recipe")() if isinstance(make, str) else make()
