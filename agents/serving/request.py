"""PolicyRequest: one request to a policy server, read from a client's message under whatever names it uses.

Clients of openpi (its LIBERO, DROID and ALOHA examples), of RoboArena and DreamZero, and our own PolicyClient send maps; here
they become frames of the world's size and actions of the world.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neuralsim.data.images import ImageResizer
from neuralsim.envs.robots.message_limits import MessageLimits
from neuralsim.envs.robots.wire import unpack
from neuralsim.spec import WorldSpec

FRAME_KEYS = (
    "observation/image",  # openpi's LIBERO
    "image",
    "frame",
    "observation/exterior_image_1_left",  # openpi's DROID
    "observation/exterior_image_0_left",  # RoboArena counts from 0
    "images/cam_high",  # openpi's ALOHA
)
"""Names under which the camera's image is looked for, in this order; ``a/b`` is also ``b`` in the map ``a``."""
NAMED_KEYS, SESSION_LENGTH = 20, 256
"""Keys that an error message lists; characters of a session id."""


@dataclass(frozen=True, eq=False)
class PolicyRequest:
    """A request for a chunk of actions; all actions are the world's own."""

    frames: np.ndarray
    """uint8 ``(n, h, w, 3)``, the newest last, at most the spec's context of them."""
    frame_count: int
    """Frames that the client sent."""
    done: np.ndarray | None
    """Actions ``(k, a)`` executed since the last request; None: unknown."""
    prefix: np.ndarray | None
    """Actions ``(p, a)`` already under way; None: none."""
    seed: int | None
    normalized: bool
    """The reply is to be in the world's own [-1, 1]."""


@dataclass(frozen=True, eq=False)
class ClientMessage:
    """One message of a client: a reset, or a request with its frames and actions."""

    request: PolicyRequest | None
    """None: the endpoint ``reset``."""
    endpoint: str | None
    session: str | None
    begins_episode: bool
    """The prompt holds Genie Envisioner's mark of a new episode, or the endpoint is ``reset``."""


@dataclass(frozen=True)
class RequestReader:
    """Reads requests to a policy of ``chunk`` actions in the world ``spec``."""

    spec: WorldSpec
    chunk: int
    resize: ImageResizer
    normalized: bool = False
    """Actions come and go in the world's own [-1, 1] unless a request says otherwise."""
    key: str = ""
    """Name of the image, looked for before FRAME_KEYS."""
    limits: MessageLimits = field(default_factory=MessageLimits)

    def decode(self, data: bytes | str) -> ClientMessage:
        """Read a client's message within the limits. Raises ValueError or TypeError for one that is no request.

        Safe to call from any thread: it may take a while, and the event loop is not the place for it.
        """
        if isinstance(data, bytes):
            self.limits.check(data)
        message = unpack(data, self.limits.size) if isinstance(data, bytes) else data
        if not isinstance(message, dict):
            raise TypeError(f"message: expected a map in a binary frame, got {type(message).__name__}")
        endpoint, session = message.get("endpoint"), _session(message)
        if endpoint is not None and (not isinstance(endpoint, str) or endpoint not in ("infer", "reset")):
            raise ValueError(f"endpoint: expected 'infer' or 'reset', got {_shorten(endpoint)}")
        if endpoint == "reset":
            return ClientMessage(None, endpoint, session, True)
        return ClientMessage(self.read(message), endpoint, session, "<reset>" in str(message.get("prompt", "")))

    def read(self, message: Mapping[str, Any]) -> PolicyRequest:
        """Read ``message`` as a request; a ValueError says what it lacks."""
        normalized = bool(message.get("normalized", self.normalized))
        done = self._actions(message, "actions_done", normalized)
        prefix = self._actions(message, "observation/prefix_actions", normalized)
        if prefix is not None and len(prefix) >= self.chunk:
            raise ValueError(f"prefix_actions: expected fewer than {self.chunk} (the chunk), got {len(prefix)}")
        frames, count = self._frames(message)
        prefix = prefix if prefix is not None and len(prefix) else None
        return PolicyRequest(frames, count, done, prefix, _seed(message), normalized)

    def _frames(self, message: Mapping[str, Any]) -> tuple[np.ndarray, int]:
        """Return the newest frames, as many as the policy looks at, and the number that came."""
        keys = (self.key, *FRAME_KEYS) if self.key else FRAME_KEYS
        for key in keys:
            image = _find(message, key)
            if image is not None:
                newest, count = self._images(image, key)
                return np.stack([self.resize(one) for one in newest]), count
        names = sorted(map(str, message))
        came = ", ".join(name[:60] for name in names[:NAMED_KEYS]) + (", ..." if len(names) > NAMED_KEYS else "")
        raise ValueError(f"observation: expected an image under one of {', '.join(keys)}; got {came or 'nothing'}")

    def _images(self, value: Any, key: str) -> tuple[np.ndarray, int]:
        """Return the newest images of one or several, channels first or last, bytes or floats in [0, 1], as uint8 ``(n, h, w, 3)``."""
        images = np.asarray(value)
        if images.ndim == 3:
            images = images[None]
        if images.ndim == 4 and images.shape[-1] != 3 and images.shape[1] == 3:
            images = np.moveaxis(images, 1, -1)
        if images.ndim != 4 or images.shape[-1] != 3 or not images.size:
            raise ValueError(
                f"{key}: expected an image (h, w, 3) or (3, h, w), or several, got shape {np.shape(value)}"
            )
        count, side = len(images), max(images.shape[1:3])
        if count > self.limits.images or side > self.limits.side:
            raise ValueError(
                f"{key}: expected at most {self.limits.images} images of at most {self.limits.side} pixels a side, got "
                f"{count} of {images.shape[1]}x{images.shape[2]}"
            )
        images = images[-self.spec.context :]
        if images.dtype.kind == "f" and np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1:
            images = (255 * images).round().astype(np.uint8)
        if images.dtype != np.uint8:
            raise ValueError(f"{key}: expected uint8 pixels or floats in [0, 1], got {images.dtype}")
        return np.ascontiguousarray(images), count

    def _actions(self, message: Mapping[str, Any], key: str, normalized: bool) -> np.ndarray | None:
        value = message.get(key)
        if value is None:
            return None
        if np.ndim(value) and len(value) > self.limits.images:
            raise ValueError(f"{key}: expected at most {self.limits.images} actions, got {len(value)}")
        actions = self.spec.check_actions(value, key) if normalized else self.spec.from_units(value, key)
        if actions.ndim != 2:
            raise ValueError(f"{key}: expected shape (n, {self.spec.action_size}), got {actions.shape}")
        return actions


def _session(message: Mapping[str, Any]) -> str | None:
    """Return the client's ``session_id``, a text, a number or an array of one of them, as text; None where it gives none."""
    value = message.get("session_id")
    if value is None:
        return None
    if np.size(value) > SESSION_LENGTH:
        raise ValueError(f"session_id: expected a text or a number, got {np.size(value)} values")
    text = str(value.tolist() if isinstance(value, np.ndarray) else value)
    if len(text) > SESSION_LENGTH:
        raise ValueError(f"session_id: expected at most {SESSION_LENGTH} characters, got {len(text)}")
    return text


def _find(message: Mapping[str, Any], key: str) -> Any:
    if key in message:
        return message[key]
    first, _, rest = key.partition("/")
    inner = message.get(first)
    return inner.get(rest) if isinstance(inner, Mapping) else None


def _seed(message: Mapping[str, Any]) -> int | None:
    seed = message.get("seed")
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed: expected a whole number of at least 0, got {_shorten(seed)}")
    return int(seed)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
