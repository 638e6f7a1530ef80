"""MessageLimits: bounds on the content of one msgpack message, checked before any of it is decoded.

The bytes alone are no bound: a msgpack map of 500,000 keys, or 100,000 images of one pixel, fits into a megabyte and costs
gigabytes. The scan reads msgpack's type bytes and skips all payloads (github.com/msgpack/msgpack/blob/master/spec.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from neuralsim.envs.robots.wire import LARGEST


@dataclass(frozen=True)
class MessageLimits:
    """Most of each that a message may hold."""

    size: int = LARGEST
    """Bytes of the whole message."""
    values: int = 100_000
    """Values, keys included, of all its maps and lists together; an array counts as about a dozen."""
    keys: int = 1_000
    """Keys of one map."""
    depth: int = 16
    """Maps and lists inside one another."""
    images: int = 4_096
    """Images, and rows of actions, in one array."""
    side: int = 8_192
    """Pixels along an image's side."""

    def check(self, data: bytes) -> None:
        """Raise a ValueError where ``data``, a msgpack message, exceeds a limit; what is no msgpack is left to the decoder."""
        if len(data) > self.size:
            raise ValueError(
                f"message: expected at most {self.size} bytes (--max-message), got {len(data)}; send smaller images"
            )
        position, values = 0, 0
        waiting = [1]  # per open map or list, innermost last: values that are still to come
        while waiting:
            if position >= len(data):
                return
            kind = data[position]
            size, counted, count, step = _read_header(data, position, kind)
            position += step + size
            waiting[-1] -= 1
            values += 1
            if counted:
                if kind in _MAPS and count > 2 * self.keys:
                    raise ValueError(f"message: expected at most {self.keys} keys in a map, got {count // 2}")
                if len(waiting) > self.depth:
                    raise ValueError(f"message: expected maps and lists at most {self.depth} deep")
                waiting.append(count)
            if values + sum(waiting) > self.values:
                raise ValueError(f"message: expected at most {self.values} values in all; send numbers as numpy arrays")
            while waiting and waiting[-1] <= 0:
                waiting.pop()


_MAPS = frozenset((*range(0x80, 0x90), 0xDE, 0xDF))
_FIXED = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
          0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}  # fmt: skip
"""Bytes of payload after the type byte: numbers and fixed extensions."""
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4}
"""Bytes that hold the length of the payload: binaries, texts and extensions."""
_COUNTED = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
"""Bytes that hold the number of entries: lists and maps."""


def _read_header(data: bytes, position: int, kind: int) -> tuple[int, bool, int, int]:
    """Return bytes of payload; true for a list or a map; the number of values in it; and bytes of the header."""
    if 0x80 <= kind <= 0x9F:
        entries = kind & 0x0F
        return 0, True, 2 * entries if kind < 0x90 else entries, 1
    if 0xA0 <= kind <= 0xBF:
        return kind & 0x1F, False, 0, 1
    if (width := _COUNTED.get(kind)) is not None:
        entries = int.from_bytes(data[position + 1 : position + 1 + width], "big")
        return 0, True, 2 * entries if kind >= 0xDE else entries, 1 + width
    if (width := _SIZED.get(kind)) is not None:
        size = int.from_bytes(data[position + 1 : position + 1 + width], "big")
        return size + (0xC7 <= kind <= 0xC9), False, 0, 1 + width
    return _FIXED.get(kind, 0), False, 0, 1
