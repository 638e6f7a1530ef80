"""Dream: one slot of Imagination, as the play looks at it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neuralsim.catalog import World
from neuralsim.imagination import Imagination, Snapshot

STATE_SIZE = 5
"""Numbers of Push-T's true state."""


@dataclass(frozen=True)
class Seen:
    """A frame uint8 ``(h, w, 3)`` and what the model reads of it: coverage, probability of success, and how unsure it is."""

    frame: np.ndarray
    coverage: float
    success: float
    doubt: float


class Dream:
    """A World's model dreaming from the World's own starts; these must know the true state, or there is no truth to show beside."""

    def __init__(self, world: World, precision: str = "auto") -> None:
        if world.spec.name != "pusht":
            raise ValueError(f"world {world.spec.name!r}: play knows the true simulator of 'pusht' only")
        starts = world.starts
        if starts is None or starts.states is None or starts.states.shape[-1] != STATE_SIZE:
            raise ValueError(
                f"world {world.folder or world.spec.name}: play needs starts.npz with the true states (N, t, {STATE_SIZE}), so that "
                "the simulator can begin where the dream does; Starts(frames, actions, states).save(path) writes such a file"
            )
        self.spec = world.spec
        self.feature_size = world.model.feature_size
        self.start_states: np.ndarray = starts.states[:, -1].astype(np.float64)
        """float64 ``(N, 5)``: the true state where each start's dream begins."""
        # A player plays on: nothing is cut off at a horizon or where the model is unsure, it is only shown.
        self._dreams = Imagination(world.model, starts=starts, horizon=None, precision=precision)

    def reset(self, start: int, seed: int) -> None:
        """Begin at shipped start ``start``; the same seed and actions give the same dream."""
        self._dreams.reset(seeds=[seed], options={"start": start})

    def step(self, action: np.ndarray) -> None:
        """One step with ``action`` ``(a,)``."""
        self._dreams.step(action[None])

    def look(self) -> Seen:
        """What there is to see now."""
        view = self._dreams.view
        coverage, success = float(view.read("reward")[0]), float(view.read("terminated")[0])
        return Seen(self._dreams.frames()[0], coverage, success, float(self._dreams.uncertainty()[0]))

    def features(self) -> np.ndarray:
        """float32 ``(d,)``."""
        return self._dreams.features()[0]

    def snapshot(self) -> Snapshot:
        """All of the present, as a value."""
        return self._dreams.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to it; what follows is bit-equal."""
        self._dreams.restore(snapshot)

    @property
    def doubt_limit(self) -> float:
        """The uncertainty beyond which the model does not know, as calibrated; infinity where it never was."""
        return self._dreams.uncertainty_limit

    @property
    def denoises(self) -> bool:
        """Whether the model knows denoising steps at all."""
        return hasattr(self._dreams.model, "denoise_steps")

    @property
    def denoise_steps(self) -> int:
        """Denoising steps per frame, from the next step on; 1 for models that know no such thing."""
        return self._dreams.denoise_steps if self.denoises else 1

    @denoise_steps.setter
    def denoise_steps(self, steps: int) -> None:
        self._dreams.denoise_steps = steps
