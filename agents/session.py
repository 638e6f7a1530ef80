"""Session: one dream and one truth from the same start, stepped with the same actions.

Knows nothing of windows, clocks or threads: whoever owns it calls ``advance``. Every step gives a Moment, a value that holds all there is
to show or to record of it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neuralsim.agents.dream import Dream
from neuralsim.agents.driver import Driver
from neuralsim.agents.keyboard import Keyboard
from neuralsim.envs.pusht import PushTRealEnv

HISTORY = 300
"""Steps that can be rewound: half a minute. A step's snapshot of the dream is some 100 kB."""
REWIND_SECONDS = 2.0


@dataclass(frozen=True)
class Moment:
    """What there is to see after a step, a reset or a rewind.

    dream, truth uint8 ``(h, w, 3)``; state float64 ``(5,)``: the true one; ``take`` counts resets, ``start`` is the start state's number,
    ``step`` the actions since then; ``action`` ``(2,)`` led here (None after a reset), chosen by ``driver``, by a human hand if ``human``.
    Coverage is the share of the goal that the block covers, 0..1; ``success_dream`` a probability. ``doubt``: the model's uncertainty.
    ``serial``: the newest change of keys taken into account.
    """

    dream: np.ndarray
    truth: np.ndarray
    state: np.ndarray
    take: int
    start: int
    step: int
    action: np.ndarray | None
    human: bool
    driver: str
    coverage_dream: float
    coverage_truth: float
    success_dream: float
    success_truth: bool
    doubt: float
    denoise_steps: int
    serial: int

    @property
    def difference(self) -> np.ndarray:
        """|dream - truth|, uint8 ``(h, w, 3)``."""
        return np.where(self.dream > self.truth, self.dream - self.truth, self.truth - self.dream)


class Session:
    """See the module's text. Paused or not, whose turn it is, and where everything can be taken back to."""

    def __init__(self, dream: Dream, driver: Driver, keyboard: Keyboard, seed: int = 0) -> None:
        self.dream, self.driver, self.keyboard = dream, driver, keyboard
        self.truth = PushTRealEnv(size=dream.spec.height, observation="state")
        self.seed = seed
        self.paused = False
        self.policy_drives = False
        self._owed = 0  # single steps asked for while paused
        self._rng = np.random.default_rng(seed)
        self._policy_state: Any = None
        self._policy_begins = True
        self._history: deque[tuple[Moment, Any]] = deque(maxlen=HISTORY + 1)
        self._starts = np.arange(len(dream.start_states))
        self.start = int(self._rng.choice(self._starts))
        self.take = -1
        self.moment = self.same_start()

    # -- what a player asks for -----------------------------------------------------------------------------------------------

    def new_start(self) -> Moment:
        """Begin at another start state."""
        others = self._starts[self._starts != self.start]
        if len(others):
            self.start = int(self._rng.choice(others))
        return self.same_start()

    def same_start(self) -> Moment:
        """Begin again at the same start state; the same keys then give the same dream."""
        self.take += 1
        self.dream.reset(self.start, self.seed + self.start)
        _, info = self.truth.reset(options={"state": self.dream.start_states[self.start]})
        self._history.clear()
        self._policy_begins = True
        return self._observe(info, None, False, self.keyboard.serial, 0)

    def rewind(self, steps: int) -> Moment:
        """Take back ``steps`` steps, or as many as are remembered: dream and truth are then bit-equal to what they were."""
        if steps < 1:
            raise ValueError(f"rewind: expected at least 1 step, got {steps}")
        for _ in range(min(steps, len(self._history) - 1)):
            self._history.pop()
        past, snapshot = self._history[-1]
        self.dream.restore(snapshot)
        self.truth.set_state(past.state)
        self._policy_begins = True
        self.moment = replace(past, serial=self.moment.serial)
        return self.moment

    def set_denoise_steps(self, steps: int) -> None:
        """1 to 4, from the next step on."""
        self.dream.denoise_steps = steps

    def hand_over(self) -> bool:
        """Give the world to the policy, or take it back; nothing is reset. Returns whether the policy drives now."""
        self.policy_drives = not self.policy_drives
        self._policy_begins = True
        return self.policy_drives

    def single_step(self) -> None:
        """Pause, and take one step at the next ``advance``."""
        self.paused = True
        self._owed += 1

    # -- stepping -------------------------------------------------------------------------------------------------------------

    @property
    def wants_step(self) -> bool:
        """Whether ``advance`` would step."""
        return not self.paused or self._owed > 0

    @property
    def driver_name(self) -> str:
        """Who acts while no key is held."""
        return self.driver.name if self.policy_drives else "human"

    def advance(self) -> Moment | None:
        """One step of dream and truth by whoever drives; None while paused."""
        if not self.wants_step:
            return None
        self._owed = max(0, self._owed - 1)
        press = self.keyboard.read()
        human = press.active or not self.policy_drives  # a hand on the keys always wins
        if human:
            action = press.action
            self._policy_begins = True
        else:
            action, self._policy_state = self.driver.policy.predict(
                self._view(), self._policy_state, np.array([self._policy_begins])
            )
            action = np.clip(np.asarray(action, np.float32).reshape(-1), -1, 1)
            self._policy_begins = False
        self.dream.step(action)
        *_, info = self.truth.step(action)
        return self._observe(info, action, human, press.serial, self.moment.step + 1)

    def close(self) -> None:
        """Let go of the simulator."""
        self.truth.close()

    def _view(self) -> np.ndarray:
        if self.driver.sees == "state":
            return self.moment.state.astype(np.float32)
        return self.moment.dream if self.driver.sees == "pixels" else self.dream.features()

    def _observe(self, info: dict[str, Any], action: np.ndarray | None, human: bool, serial: int, step: int) -> Moment:
        seen = self.dream.look()
        self.moment = Moment(
            dream=seen.frame,
            truth=self.truth.render(),
            state=self.truth.state(),
            take=self.take,
            start=self.start,
            step=step,
            action=action,
            human=human,
            driver="human" if human else self.driver.name,
            coverage_dream=seen.coverage,
            coverage_truth=info["coverage"],
            success_dream=seen.success,
            success_truth=info["success"],
            doubt=seen.doubt,
            denoise_steps=self.dream.denoise_steps,
            serial=serial,
        )
        self._history.append((self.moment, self.dream.snapshot()))
        return self.moment
