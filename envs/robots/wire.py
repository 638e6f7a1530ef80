"""Messages of numbers, texts and numpy arrays as bytes; byte for byte those of openpi's ``openpi_client.msgpack_numpy``.

An array travels as a msgpack map of byte-string keys: ``__ndarray__``, ``data`` (C order), ``dtype`` (numpy's ``dtype.str``) and
``shape``; a numpy scalar as ``__npgeneric__``, ``data``, ``dtype``. Structures, Python objects and complex numbers are refused
both ways, and nothing is ever unpickled. The format is openpi's (github.com/Physical-Intelligence/openpi).
"""

from __future__ import annotations

import math
import re
from typing import Any, cast

import numpy as np

from neuralsim.runtime.imports import require_extra

LARGEST = 16 << 20
"""Bytes of the longest message that is read unless a caller says otherwise."""
MOST_ITEMS = 100_000
"""Entries of the longest list or map that is read unless a caller says otherwise."""
MOST_AXES = 32
PROTOCOL = 1
"""Version of the messages between a robot server and ``RemoteRobot``."""
PING_EVERY, PING_TIMEOUT = 2.0, 10.0
"""Seconds: detects a dead link on which nothing more arrives, not even its end."""
_DTYPE = re.compile(r"[<>|][biufSUmM]\d+(\[\w+\])?")
"""``dtype.str`` of numbers, booleans, texts and times. Numpy's own parser accepts much more, so it is not asked first."""


def pack(message: Any) -> bytes:
    """Encode ``message`` (dicts, lists, texts, bytes, numbers, None, arrays).

    Raises ValueError for an array of structures, objects or complex numbers, and TypeError for what msgpack cannot carry.
    """
    with require_extra("the wire format", "robot"):
        import msgpack
    return cast(bytes, msgpack.packb(message, default=_to_map))


def unpack(data: bytes, largest: int = LARGEST, most_items: int = MOST_ITEMS) -> Any:
    """Decode a message; the inverse of ``pack``, except that tuples come back as lists. Arrays are writable copies.

    Raises ValueError for more than ``largest`` bytes, for a list or map of more than ``most_items`` entries, for data
    that is not msgpack, and for arrays whose size or dtype contradicts their data.
    """
    if len(data) > largest:
        raise ValueError(f"message: expected at most {largest} bytes, got {len(data)}")
    with require_extra("the wire format", "robot"):
        import msgpack
    try:
        return msgpack.unpackb(data, object_hook=_from_map, max_array_len=most_items, max_map_len=most_items)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise ValueError(f"message: not msgpack with numpy arrays ({error or type(error).__name__})") from error


def _to_map(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "VOc":
        raise ValueError(f"message: expected arrays of numbers or texts, got dtype {value.dtype}")
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    return value


def _from_map(found: dict[Any, Any]) -> Any:
    if b"__ndarray__" in found:
        dtype, data, shape = _dtype(found), found.get(b"data"), found.get(b"shape")
        if not isinstance(data, bytes) or not isinstance(shape, list) or not all(map(_is_size, shape)):
            got = f"{len(shape)} sizes" if isinstance(shape, list) else f"shape {str(shape)[:40]!r}"
            raise ValueError(f"array: expected bytes and a list of sizes, got {type(data).__name__} and {got}")
        if len(shape) > MOST_AXES:  # before their product, which would be a number of millions of digits
            raise ValueError(f"array: expected at most {MOST_AXES} axes, got {len(shape)}")
        if not dtype.itemsize or math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"array: shape {shape} of {dtype} does not make {len(data)} bytes")
        return np.frombuffer(data, dtype).reshape(shape).copy()
    if b"__npgeneric__" in found:
        dtype, value = _dtype(found), found.get(b"data")
        # Numbers alone: given a number, numpy makes a bytes scalar that many bytes long.
        if dtype.kind in "SU" or type(value) not in (bool, int, float):
            raise ValueError(f"scalar: expected a number of dtype {dtype}, got {type(value).__name__}")
        with np.errstate(over="ignore"):
            return np.array(value, dtype)[()]
    return found


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _dtype(found: dict[Any, Any]) -> np.dtype[Any]:
    text = found.get(b"dtype")
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise ValueError(f"array: expected a dtype of numbers or texts such as '<f4', got {str(text)[:40]!r}")
    return np.dtype(text)
