"""Dream: one slot of Imagination, as the play looks at it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neuralsim.envs.tasks.rl_task import shipped_starts
from neuralsim.imagination import Imagination
from neuralsim.pretrained.world import World
from neuralsim.snapshot import Snapshot
from neuralsim.task import FunctionTask


@dataclass(frozen=True)
class ImaginedFrame:
    """A frame uint8 ``(h, w, 3)`` and what the model reads of it: reward, probability of an end (each NaN where it reads none), the
    true state ``(s,)`` as it takes it to be (empty where it tells none), and how unsure it is."""

    frame: np.ndarray
    reward: float
    end: float
    states: np.ndarray
    doubt: float


class ImaginedWorld:
    """A World's model dreaming from the World's own starts; a ValueError where it has none."""

    def __init__(self, world: World, precision: str = "auto") -> None:
        self.starts = shipped_starts(world)
        self.spec = world.spec
        self.feature_size = world.model.feature_size
        # A player plays on: nothing is cut off at a horizon or where the model is unsure, it is only shown.
        nothing = FunctionTask(lambda before, action, after: 0 * after.features[:, 0])
        self._dreams = Imagination(world.model, nothing, starts=self.starts, horizon=None, precision=precision)
        self.reset(0, 0)
        told = self.look().states
        names = tuple(getattr(world.model, "config", {}).get("state_names") or ())
        self.state_names = names if len(names) == len(told) else tuple(f"state {i}" for i in range(len(told)))

    @property
    def start_states(self) -> np.ndarray:
        """float64 ``(N, s)``: the true state where each start's dream begins; a ValueError where nobody knows it."""
        if self.starts.states is None:
            raise ValueError(f"world {self.spec.name!r}: its starts do not know their true states")
        return self.starts.states[:, -1].astype(np.float64)

    def reset(self, start: int, seed: int) -> None:
        """Begin at shipped start ``start``; the same seed and actions give the same dream."""
        self._dreams.reset(seeds=[seed], options={"start": start})

    def step(self, action: np.ndarray) -> None:
        """One step with ``action`` ``(a,)``."""
        self._dreams.step(action[None])

    def look(self) -> ImaginedFrame:
        """What there is to see now."""
        view, heads = self._dreams.view, self._dreams.model.head_names
        reward, end = (float(view.read(head)[0]) if head in heads else np.nan for head in ("reward", "terminated"))
        try:
            states = view.world_state[0].double().cpu().numpy()
        except TypeError:  # it tells none
            states = np.zeros(0)
        return ImaginedFrame(self._dreams.frames()[0], reward, end, states, float(self._dreams.uncertainty()[0]))

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
