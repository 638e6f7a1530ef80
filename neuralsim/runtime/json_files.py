"""JSON files by strangers: of bounded size, without double keys, with values of the declared types."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LARGEST_TEXT = 4_000_000
"""Bytes of JSON or Markdown; no world needs as much."""


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """Read a UTF-8 file of at most ``largest`` bytes; a ValueError names a file that is larger or not UTF-8."""
    if path.stat().st_size > largest:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, expected at most {largest}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 ({error})") from error


def read_json(path: Path, largest: int = LARGEST_TEXT) -> Any:
    """Read the JSON value in a file; a ValueError names a file with no JSON, or with one key twice."""
    text = read_text(path, largest)
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON object ({error})") from error


def read_object(path: Path, largest: int = LARGEST_TEXT) -> dict[str, Any]:
    """Read the JSON object in a file; a ValueError names a file that holds anything else."""
    value = read_json(path, largest)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object (a {type(value).__name__} came)")  # noqa: TRY004 (a file's, no caller's)
    return value


def fits(value: Any, hint: Any) -> bool:
    """Check that a JSON ``value`` is what the type ``hint`` declares. Numbers must be finite, and true is no number.

    A hint that has no meaning in JSON fits every value.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is typing.Literal:
        return value in inner
    if origin in (list, tuple):
        kind = inner[0] if inner else Any
        return isinstance(value, list) and all(fits(one, kind) for one in value)
    if origin is dict or hint is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    return True


def check_types(where: str, values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raise a ValueError, beginning with ``where``, for the first of ``values`` that does not fit its hint."""
    for name, value in values.items():
        if name in hints and not fits(value, hints[name]):
            declared = getattr(hints[name], "__name__", None) if not typing.get_args(hints[name]) else None
            raise ValueError(f"{where}{name}: expected {declared or hints[name]}, got {value!r:.80}")


def type_hints(declared: Any) -> Mapping[str, Any]:
    """The evaluated type hints of a class or function; none where they cannot be evaluated."""
    try:
        return typing.get_type_hints(declared)
    except Exception:  # a third party's annotations need not mean anything at run time
        return {}


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two values under one key would let two readers see two worlds."""
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} twice")
    return value
