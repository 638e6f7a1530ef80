"""One episode: frames, the actions between them, rewards, ends and states.

Alignment, everywhere in NeuralSim: ``actions[i]`` carries ``frames[i]`` to ``frames[i + 1]``; an episode has T actions
and T + 1 frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

HELD_OUT_EVERY = 20
"""Episodes whose seed is a multiple of this are held out: the split is by episode seed, never by window."""


class ActionsAbsent(ValueError, AttributeError):
    """Video without actions was asked for them."""

    def __init__(self) -> None:
        super().__init__("this is video without actions: learn from its frames alone, or use episodes with actions")


class Acted:
    """Base of values with ``actions``. One made with None for them raises ActionsAbsent when they are read."""

    actions: np.ndarray

    def __post_init__(self) -> None:
        if self.__dict__["actions"] is None:
            object.__delattr__(self, "actions")

    def __getattr__(self, name: str) -> Any:  # called for missing attributes only
        if name == "actions":
            raise ActionsAbsent
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def has_actions(self) -> bool:
        """True where the actions are known; those of video alone are not."""
        return "actions" in self.__dict__


@dataclass(frozen=True)
class Episode(Acted):
    """One whole episode of T steps. ``Episode.of_video`` makes one without actions."""

    frames: np.ndarray
    """uint8 ``(T+1, h, w, 3)``."""
    actions: np.ndarray
    """``(T, a)``: float32 in [-1, 1], or int64 choices; raises ActionsAbsent for video without actions."""
    rewards: np.ndarray
    """float32 ``(T,)``."""
    terminated: np.ndarray
    """bool ``(T,)``: the real task's termination after each step; collection may continue after success."""
    truncated: np.ndarray
    """bool ``(T,)``."""
    states: np.ndarray | None = None
    """Ground truth, float32 ``(T+1, s)``; None where it is unknown."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Seed, policy, version and other facts about the origin, as plain JSON."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.has_actions != knows_actions(self.provenance):
            raise ValueError(
                "Episode: made with actions that provenance calls absent, or the other way round; see of_video"
            )
        t = len(self.actions) if self.has_actions else len(self.frames) - 1
        if t < 1:
            raise ValueError("Episode: needs at least one action, got none")
        wrong = [
            f"{name} has length {len(array)}, expected {expected}"
            for name, array, expected in (
                ("frames", self.frames, t + 1),
                ("rewards", self.rewards, t),
                ("terminated", self.terminated, t),
                ("truncated", self.truncated, t),
                *((("states", self.states, t + 1),) if self.states is not None else ()),
            )
            if len(array) != expected
        ]
        if wrong:
            raise ValueError(f"Episode with {t} actions: " + "; ".join(wrong))

    @classmethod
    def of_video(cls, frames: np.ndarray, provenance: dict[str, Any], states: np.ndarray | None = None) -> Episode:
        """Make an episode of frames ``(T+1, h, w, 3)`` without known actions: ``provenance["actions"]`` is "absent"."""
        t = len(frames) - 1
        off = np.zeros(max(t, 0), bool)
        absent: Any = None
        return cls(frames, absent, off.astype(np.float32), off, off, states, provenance | {"actions": "absent"})

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def held_out(self) -> bool:
        """True where this episode belongs to the held-out split (decided by its seed)."""
        return is_held_out(self.provenance)


def knows_actions(provenance: dict[str, Any]) -> bool:
    """Return False for the provenance of video without actions."""
    return provenance.get("actions") != "absent"


def is_held_out(provenance: dict[str, Any]) -> bool:
    """Return True where ``provenance["seed"]`` is held out; every window of an episode falls on the same side."""
    return int(provenance.get("seed", 0)) % HELD_OUT_EVERY == 0
