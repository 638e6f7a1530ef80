"""Messages of the websocket: JSON from the browser, checked at the border; a header and an image to it.

A frame is one binary message: the length of the header (4 bytes, big endian), the header (JSON), and an image with the imagined frame
above the real one, if there is one. Frames up to 128 pixels are lossless, so that the page's difference is exact.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from neuralsim.agents.teleop.session import SessionFrame
from neuralsim.agents.teleop.session_player import COMMANDS, MOST_PASSES

LOSSLESS_SIZE = 128
"""Longest side of frames that are sent lossless."""
LOSSY_QUALITY = 85
SEAT_REQUESTS = ("take", "ask", "give")
_NUMBER, _NAME, _DOWN = ("number", int), ("name", str), ("down", bool)
FIELDS: Mapping[str, tuple[tuple[str, type], ...]] = {
    "ack": (_NUMBER,),
    "key": (_NAME, _DOWN, _NUMBER),
    "clear": (),
    "do": (_NAME,),
    "passes": (_NUMBER,),
    "world": (_NAME,),
    "seat": (_NAME, _NUMBER),
}
"""Fields of each kind of message, with their types."""


@dataclass(frozen=True)
class ViewerMessage:
    """One message of a browser."""

    kind: str
    name: str = ""
    """Key, command, world or request for the seat."""
    number: int = 0
    """Acknowledged frame, count of key changes, denoising steps or viewer."""
    down: bool = False

    @property
    def drives(self) -> bool:
        """True for messages that only the driver may send."""
        return self.kind in ("key", "clear", "do", "passes", "world")


def parse_message(data: str | bytes) -> ViewerMessage:
    """Parse a browser's message; a ValueError that says in a line what is wrong with it."""
    if not isinstance(data, str):
        raise ValueError("expected text, got bytes")  # noqa: TRY004
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("expected JSON") from None
    kind = fields.pop("kind", None) if isinstance(fields, dict) else None
    if not isinstance(kind, str) or kind not in FIELDS:
        raise ValueError(f"kind: expected one of {', '.join(FIELDS)}")
    if set(fields) != {name for name, _ in FIELDS[kind]}:
        raise ValueError(f"{kind}: expected {', '.join(name for name, _ in FIELDS[kind]) or 'no other fields'}")
    for name, expected in FIELDS[kind]:
        if type(fields[name]) is not expected:
            raise ValueError(f"{kind}: {name} is no {expected.__name__}")
    message = ViewerMessage(kind, **fields)
    if not 0 <= message.number < 2**53 or len(message.name) > 300:
        raise ValueError(f"{kind}: number or name out of range")
    allowed = {"do": COMMANDS, "seat": SEAT_REQUESTS}.get(kind)
    if allowed is not None and message.name not in allowed:
        raise ValueError(f"{kind}: expected one of {', '.join(allowed)}")
    if kind == "passes" and not 1 <= message.number <= MOST_PASSES:
        raise ValueError(f"passes: expected 1 to {MOST_PASSES}")
    return message


def encode_image(frame: SessionFrame) -> bytes:
    """Encode the imagined image, above the real one if there is one, as WebP."""
    image = frame.imagined if frame.real is None else np.concatenate([frame.imagined, frame.real_image])
    quality = 101 if max(frame.imagined.shape[:2]) <= LOSSLESS_SIZE else LOSSY_QUALITY  # above 100: lossless
    done, data = cv2.imencode(".webp", image[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, quality])
    if not done:
        raise ValueError(f"an image of {image.shape[:2]} cannot be encoded as WebP")
    return data.tobytes()


def pack_frame(header: Mapping[str, Any], image: bytes) -> bytes:
    """Pack the header and its image into one binary message."""
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    return len(text).to_bytes(4, "big") + text + image


def finite(value: float, digits: int = 4) -> float | None:
    """Round for the page; None where it is not finite."""
    return round(float(value), digits) if math.isfinite(value) else None
