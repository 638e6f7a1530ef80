"""Session: a dream, and where it can be had one truth from the same start, stepped with the same actions.

Knows nothing of windows, clocks or threads: whoever owns it calls ``advance``. Every step gives a Moment, a value that holds all there is
to show or to record of it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neuralsim.agents.policies.policy import NamedPolicy
from neuralsim.agents.teleop.imagined_world import ImaginedWorld
from neuralsim.agents.teleop.keyboard import Keyboard
from neuralsim.agents.teleop.reference_env import ReferenceEnv

HISTORY = 300
"""Steps that can be rewound: half a minute. A step's snapshot of the dream is some 100 kB."""
REWIND_SECONDS = 2.0


@dataclass(frozen=True)
class RealFrame:
    """The true side of a Moment: frame uint8 ``(h, w, 3)``, state float64 ``(s,)``, the reward now (NaN where only a step has one), and
    whether the world says that this is an end."""

    frame: np.ndarray
    state: np.ndarray
    reward: float
    end: bool


@dataclass(frozen=True)
class SessionFrame:
    """What there is to see after a step, a reset or a rewind.

    dream uint8 ``(h, w, 3)``; true: the truth beside it, if any; ``take`` counts resets, ``start`` is the start state's number,
    ``step`` the actions since then; ``action`` ``(a,)`` led here (None after a reset), chosen by ``driver``, by a human hand if ``human``.
    What the model reads of its dream: reward, the probability that this is an ``end``, the true ``told`` state ``(s,)``, ``doubt``: its
    uncertainty. ``total``: imagined rewards since the start. ``serial``: the newest change of keys taken into account.
    """

    dream: np.ndarray
    true: RealFrame | None
    take: int
    start: int
    step: int
    action: np.ndarray | None
    human: bool
    driver: str
    reward: float
    end: float
    told: np.ndarray
    total: float
    doubt: float
    denoise_steps: int
    serial: int

    @property
    def truth(self) -> np.ndarray:
        """The true frame, uint8 ``(h, w, 3)``; a ValueError where there is none."""
        return self._known.frame

    @property
    def state(self) -> np.ndarray:
        """The true state, float64 ``(s,)``; a ValueError where there is none."""
        return self._known.state

    @property
    def difference(self) -> np.ndarray:
        """|dream - truth|, uint8 ``(h, w, 3)``; a ValueError where there is no truth."""
        return np.where(self.dream > self.truth, self.dream - self.truth, self.truth - self.dream)

    @property
    def _known(self) -> RealFrame:
        if self.true is None:
            raise ValueError("Moment: there is no truth beside this dream")
        return self.true


class Session:
    """See the module's text. Paused or not, whose turn it is, and where everything can be taken back to."""

    def __init__(
        self,
        dream: ImaginedWorld,
        driver: NamedPolicy,
        keyboard: Keyboard,
        seed: int = 0,
        twin: ReferenceEnv | None = None,
    ) -> None:
        self.dream, self.driver, self.keyboard, self.twin = dream, driver, keyboard, twin
        self.seed = seed
        self.paused = False
        self.policy_drives = False
        self._owed = 0  # single steps asked for while paused
        self._rng = np.random.default_rng(seed)
        self._policy_state: Any = None
        self._policy_begins = True
        self._history: deque[tuple[SessionFrame, Any]] = deque(maxlen=HISTORY + 1)
        self._starts = np.arange(len(dream.starts))
        self.start = int(self._rng.choice(self._starts))
        self.take = -1
        self.moment = self.same_start()

    # -- what a player asks for -----------------------------------------------------------------------------------------------

    def new_start(self) -> SessionFrame:
        """Begin at another start state."""
        others = self._starts[self._starts != self.start]
        if len(others):
            self.start = int(self._rng.choice(others))
        return self.same_start()

    def same_start(self) -> SessionFrame:
        """Begin again at the same start state; the same keys then give the same dream."""
        self.take += 1
        self.dream.reset(self.start, self.seed + self.start)
        true = None
        if self.twin is not None:
            _, info = self.twin.env.reset(options={"state": self.dream.start_states[self.start]})
            true = self._truth(info.get("coverage", np.nan), info.get("success", False))
        self._history.clear()
        self._policy_begins = True
        return self._observe(true, None, False, self.keyboard.serial, 0, 0.0)

    def rewind(self, steps: int) -> SessionFrame:
        """Take back ``steps`` steps, or as many as are remembered: dream and truth are then bit-equal to what they were."""
        if steps < 1:
            raise ValueError(f"rewind: expected at least 1 step, got {steps}")
        for _ in range(min(steps, len(self._history) - 1)):
            self._history.pop()
        past, snapshot = self._history[-1]
        self.dream.restore(snapshot)
        if self.twin is not None:
            self.twin.env.set_state(past.state)
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

    def advance(self) -> SessionFrame | None:
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
            chosen, self._policy_state = self.driver.policy.predict(
                self._view(), self._policy_state, np.array([self._policy_begins])
            )
            action = np.asarray(chosen, self.dream.spec.action_dtype).reshape(-1)
            if not self.dream.spec.discrete:
                action = np.clip(action, -1, 1)
            self._policy_begins = False
        self.dream.step(action)
        true = None
        if self.twin is not None:
            _, reward, terminated, _, _ = self.twin.env.step(action)
            true = self._truth(float(reward), bool(terminated))
        return self._observe(true, action, human, press.serial, self.moment.step + 1, self.moment.total)

    def close(self) -> None:
        """Let go of the simulator."""
        if self.twin is not None:
            self.twin.env.close()

    def _view(self) -> np.ndarray | None:
        if self.driver.sees == "state":
            return self.moment.state.astype(np.float32)
        if self.driver.sees == "nothing":
            return None
        return self.moment.dream if self.driver.sees == "pixels" else self.dream.features()

    def _truth(self, reward: float, end: bool) -> RealFrame:
        assert self.twin is not None
        return RealFrame(self.twin.env.render(), self.twin.env.state(), reward, end)

    def _observe(
        self, true: RealFrame | None, action: np.ndarray | None, human: bool, serial: int, step: int, total: float
    ) -> SessionFrame:
        seen = self.dream.look()
        self.moment = SessionFrame(
            dream=seen.frame,
            true=true,
            take=self.take,
            start=self.start,
            step=step,
            action=action,
            human=human,
            driver="human" if human else self.driver.name,
            reward=seen.reward,
            end=seen.end,
            told=seen.states,
            total=total if action is None else total + seen.reward,
            doubt=seen.doubt,
            denoise_steps=self.dream.denoise_steps,
            serial=serial,
        )
        self._history.append((self.moment, self.dream.snapshot()))
        return self.moment
