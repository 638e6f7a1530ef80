"""WorldSpec: the interface of a world, in one value.

Data, models, environments and robots share it: frame size, the action space with names, units and scale, the control rate,
and how many past frames a model may read.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gymnasium import spaces


MOST_CONTEXT = 1024
"""Most past frames that a spec may ask for."""
RATES_HZ = (1e-3, 1e5)
"""Slowest and fastest control rate."""


@dataclass(frozen=True)
class WorldSpec:
    """Frame size, actions, rate and context of a world.

    Frames are uint8 ``(height, width, 3)``. Actions are float32 in ``[-1, 1]`` per dimension, and physically
    ``action_offset + action_scale * action`` in ``action_units`` per control step (offset 0 by default). Where
    ``action_choices`` gives the number of choices of each dimension, actions are int64 in ``[0, choices)`` instead; the scales
    are then 1, and the offset is the original's number for choice 0.
    """

    name: str
    height: int
    width: int
    action_names: tuple[str, ...]
    action_units: tuple[str, ...]
    action_scale: tuple[float, ...]
    rate_hz: float
    context: int
    action_offset: tuple[float, ...] = ()
    action_choices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in ("action_names", "action_units", "action_scale", "action_choices"):  # JSON gives lists back
            object.__setattr__(self, field, tuple(getattr(self, field)))
        object.__setattr__(self, "action_offset", tuple(self.action_offset) or (0.0,) * len(self.action_names))
        if isinstance(self.name, PurePath):
            object.__setattr__(self, "name", str(self.name))
        if not len(self.action_offset) == len(self.action_names) == len(self.action_units) == len(self.action_scale):
            raise ValueError(
                f"WorldSpec {self.name!r}: action_names, action_units, action_scale and action_offset must be equally "
                f"long; got {len(self.action_names)}, {len(self.action_units)}, {len(self.action_scale)} and "
                f"{len(self.action_offset)}"
            )
        if self.action_choices:
            self._check_choices()
        if self.height <= 0 or self.width <= 0 or self.height % 8 or self.width % 8:
            raise ValueError(
                f"WorldSpec {self.name!r}: frame size must be a positive multiple of 8, got {self.height}x{self.width}"
            )
        self._check_ranges()

    def _check_ranges(self) -> None:
        """Raise a ValueError for a number that no world can have: it would be divided by, or memory be allocated for it."""
        low, high = RATES_HZ
        if not low <= self.rate_hz <= high or not 1 <= self.context <= MOST_CONTEXT:
            raise ValueError(
                f"WorldSpec {self.name!r}: rate_hz must be > 0 ({low:g} to {high:g}) and context >= 1 (1 to {MOST_CONTEXT}), "
                f"got {self.rate_hz} and {self.context}"
            )
        if len(set(self.action_names)) < len(self.action_names):
            twice = sorted({name for name in self.action_names if self.action_names.count(name) > 1})
            raise ValueError(f"WorldSpec {self.name!r}: action_names must differ from each other, got {twice} twice")
        for field, values in (("action_scale", self.action_scale), ("action_offset", self.action_offset)):
            if not all(math.isfinite(x) and (field != "action_scale" or x >= 0) for x in values):
                raise ValueError(
                    f"WorldSpec {self.name!r}: {field} must be finite{' and at least 0' if field == 'action_scale' else ''}, "
                    f"got {values}"
                )

    def _check_choices(self) -> None:
        counts = self.action_choices
        if len(counts) != self.action_size or not all(isinstance(n, int) and n >= 1 for n in counts):
            raise ValueError(
                f"WorldSpec {self.name!r}: action_choices: expected a whole number of at least 1 for each of the "
                f"{self.action_size} action dimensions, got {counts}"
            )
        if set(self.action_scale) != {1.0} or any(float(o) % 1 for o in self.action_offset):
            raise ValueError(
                f"WorldSpec {self.name!r}: choices have an action_scale of 1 and a whole action_offset, got "
                f"{self.action_scale} and {self.action_offset}"
            )

    @property
    def action_size(self) -> int:
        """Number of action dimensions."""
        return len(self.action_names)

    @property
    def discrete(self) -> bool:
        """True where actions are choices rather than quantities."""
        return bool(self.action_choices)

    @property
    def action_dtype(self) -> np.dtype[Any]:
        """float32, or int64 for choices."""
        return np.dtype(np.int64 if self.discrete else np.float32)

    @property
    def action_width(self) -> int:
        """Numbers by which a network reads one action: one per dimension, or one per choice."""
        return sum(self.action_choices) if self.discrete else self.action_size

    def action_space(self, chunk: int | None = None) -> spaces.Space[Any]:
        """Return the Gymnasium space of one action: a Box ``(a,)``, for choices a MultiDiscrete ``(a,)``, or a Discrete where
        there is one dimension. With ``chunk``, of that many actions: ``(chunk, a)``, or ``(chunk,)`` instead of the Discrete."""
        from gymnasium import spaces  # not above: importing neuralsim stays cheap

        lead = () if chunk is None else (chunk,)
        if not self.discrete:
            return spaces.Box(-1.0, 1.0, (*lead, self.action_size), np.float32)
        if self.action_size > 1:
            return spaces.MultiDiscrete(np.broadcast_to(self.action_choices, (*lead, self.action_size)).copy())
        if chunk is None:
            return spaces.Discrete(self.action_choices[0])
        return spaces.MultiDiscrete([self.action_choices[0]] * chunk)

    def from_space(self, actions: Any) -> Any:
        """Convert actions of ``action_space`` to ``(..., a)``: those of a Discrete get their missing axis."""
        if not self.discrete or self.action_size > 1:
            return actions
        return (actions if hasattr(actions, "ndim") else np.asarray(actions))[..., None]

    def to_space(self, actions: np.ndarray) -> Any:
        """Convert actions ``(..., a)`` to those of ``action_space``; the inverse of ``from_space``."""
        return actions[..., 0] if self.discrete and self.action_size == 1 else actions

    def to_units(self, actions: np.ndarray) -> np.ndarray:
        """Convert actions ``(..., a)`` in [-1, 1], or choices, to ``action_units`` per control step; the dtype stays."""
        values = np.array(self.action_offset) + np.array(self.action_scale) * actions.astype(np.float64)
        return values.astype(self.action_dtype)

    def from_units(self, values: object, what: str = "action") -> np.ndarray:
        """Convert ``values`` ``(..., a)`` in ``action_units`` to actions, clipped to the limits; the inverse of ``to_units``.

        Raises ValueError for anything but finite numbers of that shape; the message calls them ``what``.
        """
        try:
            numbers = np.asarray(values, np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{what}: expected numbers (..., {self.action_size}), got {type(values).__name__}"
            ) from error
        if numbers.ndim < 1 or numbers.shape[-1] != self.action_size or not np.isfinite(numbers).all():
            names = f"{', '.join(self.action_names)} in {', '.join(self.action_units)}"
            raise ValueError(
                f"{what}: expected finite numbers (..., {self.action_size}) ({names}), got shape {numbers.shape}"
            )
        scale = np.array(self.action_scale)
        moves = numbers - np.array(self.action_offset)
        actions = np.divide(moves, scale, out=np.zeros_like(moves), where=scale != 0)
        if self.discrete:
            return self.check_actions(np.rint(actions).astype(np.int64), what)
        return self.check_actions(np.clip(actions, -1, 1), what)

    def rest_action(self) -> np.ndarray:
        """Return the action ``(a,)`` nearest to zero in physical units; choice 0 where there are choices."""
        if self.discrete:
            return np.zeros(self.action_size, np.int64)
        offset, scale = np.array(self.action_offset, np.float64), np.array(self.action_scale, np.float64)
        action = np.divide(-offset, scale, out=np.zeros_like(scale), where=scale != 0)
        return np.clip(action, -1, 1).astype(np.float32)

    def random_actions(self, rng: np.random.Generator, *shape: int) -> np.ndarray:
        """Draw uniform actions ``(*shape, a)``."""
        if self.discrete:
            return rng.integers(0, self.action_choices, (*shape, self.action_size))
        return rng.uniform(-1, 1, (*shape, self.action_size)).astype(np.float32)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """``(height, width, 3)``."""
        return (self.height, self.width, 3)

    def to_json(self) -> str:
        """Return the spec as one line of JSON, which ``from_json`` reads back."""
        return json.dumps(asdict(self), default=_plain)

    @classmethod
    def from_json(cls, text: str) -> WorldSpec:
        """Read a spec that ``to_json`` wrote."""
        return cls(**json.loads(text))

    def check_frames(self, frames: object, what: str = "frames") -> np.ndarray:
        """Return ``frames`` as uint8 ``(..., h, w, 3)``, or raise a ValueError."""
        array = np.asarray(frames)
        if array.dtype != np.uint8:
            raise ValueError(
                f"{what}: expected uint8 pixels in 0..255, got dtype {array.dtype}; "
                "convert with (x * 255).round().astype(np.uint8) if yours are floats in 0..1"
            )
        if array.ndim < 3 or array.shape[-3:] != self.frame_shape:
            raise ValueError(
                f"{what}: expected shape (..., {self.height}, {self.width}, 3) for world {self.name!r}, got {array.shape}; "
                "resize the frames and put channels last"
            )
        return array

    def check_actions(self, actions: object, what: str = "action") -> np.ndarray:
        """Return ``actions`` as float32 ``(..., a)`` in [-1, 1], for choices as int64 ``(..., a)``, or raise a ValueError."""
        return self._check_discrete(actions, what) if self.discrete else self._check_continuous(actions, what)

    def _check_continuous(self, actions: object, what: str) -> np.ndarray:
        try:
            array = np.asarray(actions, dtype=np.float32)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{what}: expected numbers of shape (..., {self.action_size}), got {actions!r}") from error
        self._check_width(array, what)
        if not np.isfinite(array).all():
            raise ValueError(
                f"{what}: expected finite numbers, got NaN or infinity at {np.argwhere(~np.isfinite(array))[0].tolist()}"
            )
        if array.size and np.abs(array).max() > 1 + 1e-6:
            raise ValueError(
                f"{what}: expected values in [-1, 1], got a value of magnitude {np.abs(array).max():.4g}; one unit means "
                f"{', '.join(f'{s:g} {u}' for s, u in zip(self.action_scale, self.action_units, strict=True))} per step"
            )
        return np.clip(array, -1, 1)

    def _check_discrete(self, actions: object, what: str) -> np.ndarray:
        try:
            array = np.asarray(actions)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{what}: expected whole numbers (..., {self.action_size}), got {actions!r}") from error
        if array.dtype.kind not in "iu":
            raise ValueError(
                f"{what}: expected whole numbers of an integer dtype, for world {self.name!r} has choices "
                f"({self._format_choices()}), got dtype {array.dtype}"
            )
        self._check_width(array, what)
        wrong = (array < 0) | (array >= np.array(self.action_choices))
        if wrong.any():
            index = tuple(np.argwhere(wrong)[0])
            i = int(index[-1])
            raise ValueError(
                f"{what}: expected {self.action_names[i]!r} in 0..{self.action_choices[i] - 1}, got {array[index]}"
                + (f" at {[int(p) for p in index]}" if array.ndim > 1 else "")
            )
        return array.astype(np.int64, copy=False)

    def _check_width(self, array: np.ndarray, what: str) -> None:
        if array.ndim < 1 or array.shape[-1] != self.action_size:
            raise ValueError(
                f"{what}: expected shape (..., {self.action_size}) ({', '.join(self.action_names)}), got {array.shape}"
            )

    def _format_choices(self) -> str:
        return ", ".join(f"{n!r} in 0..{c - 1}" for n, c in zip(self.action_names, self.action_choices, strict=True))


def plain_name(name: str) -> str:
    """Turn a name into one that a world may have: "ALE/Pong-v5" becomes "ALE-Pong-v5".

    Slashes and unprintable characters become hyphens, runs of dots one dot: names stand in paths. Plain names stay.
    """
    text = "".join("-" if sign in "/\\" or not sign.isprintable() else sign for sign in str(name))
    while ".." in text:
        text = text.replace("..", ".")
    return text


def _plain(value: object) -> object:
    """Convert a numpy number to Python's, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"WorldSpec: expected plain numbers and texts, got {type(value).__name__}")
