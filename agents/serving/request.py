"""PolicyRequest: what robot clients ask of a policy server, whatever names they give it.

Clients of openpi (its LIBERO, DROID and ALOHA examples), of RoboArena and DreamZero, and our own RemotePolicy send maps; here
they become frames of the world's size and actions of the world.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuralsim.data.images import ImageResizer
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


@dataclass(frozen=True, eq=False)
class PolicyRequest:
    """frames uint8 ``(n, h, w, 3)``, the newest last; ``done`` ``(k, a)`` carried out of late, or None; ``prefix`` ``(p, a)`` under
    way already, or None; ``seed`` or None; ``normalized``: the reply is to be the world's own [-1, 1]. Actions are the world's."""

    frames: np.ndarray
    done: np.ndarray | None
    prefix: np.ndarray | None
    seed: int | None
    normalized: bool


@dataclass(frozen=True)
class RequestReader:
    """Reads requests to a policy of ``chunk`` actions in the world ``spec``. ``normalized``: actions come and go in the world's own
    [-1, 1] unless a request says otherwise; ``key`` is looked for before FRAME_KEYS."""

    spec: WorldSpec
    chunk: int
    fit: ImageResizer
    normalized: bool = False
    key: str = ""

    def read(self, message: Mapping[str, Any]) -> PolicyRequest:
        """``message`` as a request; a ValueError says what it lacks."""
        normalized = bool(message.get("normalized", self.normalized))
        done = self._actions(message, "actions_done", normalized)
        prefix = self._actions(message, "observation/prefix_actions", normalized)
        if prefix is not None and len(prefix) >= self.chunk:
            raise ValueError(f"prefix_actions: expected fewer than {self.chunk} (the chunk), got {len(prefix)}")
        return PolicyRequest(
            self._frames(message),
            done,
            prefix if prefix is not None and len(prefix) else None,
            _seed(message),
            normalized,
        )

    def _frames(self, message: Mapping[str, Any]) -> np.ndarray:
        keys = (self.key, *FRAME_KEYS) if self.key else FRAME_KEYS
        for key in keys:
            image = _find(message, key)
            if image is not None:
                return np.stack([self.fit(one) for one in _images(image, key)])
        came = ", ".join(sorted(map(str, message))) or "nothing"
        raise ValueError(f"observation: expected an image under one of {', '.join(keys)}; got {came}")

    def _actions(self, message: Mapping[str, Any], key: str, normalized: bool) -> np.ndarray | None:
        value = message.get(key)
        if value is None:
            return None
        actions = self.spec.check_actions(value, key) if normalized else self.spec.from_units(value, key)
        if actions.ndim != 2:
            raise ValueError(f"{key}: expected shape (n, {self.spec.action_size}), got {actions.shape}")
        return actions


def session_of(message: Mapping[str, Any]) -> str | None:
    """The client's ``session_id``, a text, a number or an array of one of them, as text; None where it gives none."""
    value = message.get("session_id")
    return None if value is None else str(value.tolist() if isinstance(value, np.ndarray) else value)


def asks_anew(message: Mapping[str, Any]) -> bool:
    """Whether the prompt holds Genie Envisioner's mark of a new episode."""
    return "<reset>" in str(message.get("prompt", ""))


def _find(message: Mapping[str, Any], key: str) -> Any:
    if key in message:
        return message[key]
    first, _, rest = key.partition("/")
    inner = message.get(first)
    return inner.get(rest) if isinstance(inner, Mapping) else None


def _images(value: Any, key: str) -> np.ndarray:
    """uint8 ``(n, h, w, 3)`` of one image or several, channels first or last, bytes or floats in [0, 1]."""
    images = np.asarray(value)
    if images.ndim == 3:
        images = images[None]
    if images.ndim == 4 and images.shape[-1] != 3 and images.shape[1] == 3:
        images = np.moveaxis(images, 1, -1)
    if images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise ValueError(f"{key}: expected an image (h, w, 3) or (3, h, w), or several, got shape {np.shape(value)}")
    if images.dtype.kind == "f" and np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1:
        images = (255 * images).round().astype(np.uint8)
    if images.dtype != np.uint8:
        raise ValueError(f"{key}: expected uint8 pixels or floats in [0, 1], got {images.dtype}")
    return np.ascontiguousarray(images)


def _seed(message: Mapping[str, Any]) -> int | None:
    seed = message.get("seed")
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed: expected a whole number of at least 0, got {seed!r}")
    return int(seed)
