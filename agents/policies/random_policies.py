"""HoldActionPolicy: chance at the controls of a world nobody knows: an action is held for a while, then another.

Actions drawn anew at every step cancel out, and most worlds are then seen near their start alone; held ones carry further
(the "action repeat" of Atari agents, here of random length).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neuralsim.spec import WorldSpec

KINDS = {"some": 0.3, "all": 0.15, "extreme": 0.25, "shaken": 0.2, "rest": 0.1}
"""Each kind's share of the holds (not of the steps)."""
LONGEST_SECONDS = 1.0
"""A hold lasts from one step to a length that an episode draws for itself, at most this long. Both are drawn on a scale of
octaves: some worlds fall over within a few equal steps, others need a second to answer."""


@dataclass(frozen=True)
class Hold:
    """An action ``(a,)`` under way for ``steps`` more, shaken: quantities by noise of this size, choices by another one
    with this chance."""

    action: np.ndarray
    steps: int
    shaken: float = 0.0


class HoldActionPolicy:
    """A Policy for every action space that a WorldSpec tells; it looks at nothing."""

    def __init__(self, spec: WorldSpec, seed: int = 0) -> None:
        self.spec, self.rng = spec, np.random.default_rng(seed)
        self.longest = float(np.exp(self.rng.uniform(0, np.log(max(2.0, LONGEST_SECONDS * spec.rate_hz)))))

    def predict(
        self, observation: Any, state: Hold | None = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Hold]:
        """Returns an action ``(a,)`` and the hold to pass back."""
        if state is None or state.steps <= 0 or (episode_start is not None and np.any(episode_start)):
            state = self._next()
        return self._shake(state), replace(state, steps=state.steps - 1)

    def _next(self) -> Hold:
        rng, spec = self.rng, self.spec
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        steps = round(float(np.exp(rng.uniform(0, np.log(self.longest)))))
        rest = spec.rest_action()
        action = spec.random_actions(rng)
        if kind == "extreme" and not spec.discrete:
            action = rng.choice(np.array([-1, 1], np.float32), spec.action_size)
        if kind in ("some", "extreme"):  # one thing at a time tells more than all at once
            left_out = rng.random(spec.action_size) < 0.5
            left_out[rng.integers(spec.action_size)] = False
            action = np.where(left_out, rest, action).astype(action.dtype)
        if kind == "rest":
            action = rest
        return Hold(action, steps, float(rng.uniform(0.05, 0.5)) if kind == "shaken" else 0.0)

    def _shake(self, hold: Hold) -> np.ndarray:
        if not hold.shaken:
            return hold.action
        if self.spec.discrete:
            return self.spec.random_actions(self.rng) if self.rng.random() < hold.shaken else hold.action
        noise = self.rng.normal(size=self.spec.action_size) * hold.shaken
        return np.clip(hold.action + noise, -1, 1).astype(np.float32)


class RandomActions:
    """A Policy that draws every action anew."""

    def __init__(self, spec: WorldSpec, seed: int = 0) -> None:
        self.spec, self.rng = spec, np.random.default_rng(seed)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Returns an action ``(a,)``; nothing is looked at."""
        return self.spec.random_actions(self.rng), state
