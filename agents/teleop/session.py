"""A session of play: an imagined episode and, where there can be one, a real one from the same state under the same actions.

It knows nothing of windows, clocks or threads: its owner calls ``advance``. Every step gives a `SessionFrame`, a value with all
that is shown or recorded of it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from neuralsim.agents.policies.policy import NamedPolicy
from neuralsim.agents.teleop.keyboard import Keyboard
from neuralsim.agents.teleop.reference_env import ReferenceEnv
from neuralsim.envs.tasks.rl_task import shipped_starts
from neuralsim.imagination import Imagination
from neuralsim.pretrained.world import World
from neuralsim.state_view import View
from neuralsim.task import FunctionTask

HISTORY = 300
"""Steps that can be rewound: half a minute. A step's snapshot is some 100 kB."""
REWIND_SECONDS = 2.0


def open_imagination(world: World, precision: str = "auto") -> Imagination:
    """Open one row of imagination on the world's own starts; a ValueError where it has none.

    Play goes on: no horizon and no uncertainty ends an episode, and nothing is rewarded.
    """
    task = FunctionTask(_no_reward)
    imagination = Imagination(world.model, task, starts=shipped_starts(world), horizon=None, precision=precision)
    imagination.reset(seeds=[0], options={"start": 0})
    return imagination


def _no_reward(before: View, action: torch.Tensor, after: View) -> torch.Tensor:
    return 0 * after.features[:, 0]


def state_names(imagination: Imagination) -> tuple[str, ...]:
    """Names of the model's state estimate; numbers where the model has no names, none where it estimates no state."""
    count = len(_state_estimate(imagination))
    names = tuple(getattr(imagination.model, "config", {}).get("state_names") or ())
    return names if len(names) == count else tuple(f"state {i}" for i in range(count))


def _state_estimate(imagination: Imagination) -> np.ndarray:
    try:
        return imagination.view.world_state[0].double().cpu().numpy()
    except TypeError:  # the model has no such head
        return np.zeros(0)


@dataclass(frozen=True)
class RealFrame:
    """The real environment after a step."""

    image: np.ndarray
    """uint8 ``(h, w, 3)``."""
    state: np.ndarray
    """float64 ``(s,)``."""
    reward: float
    """Reward of the step; NaN where only a step has one."""
    end: bool
    """True where the environment terminates."""


@dataclass(frozen=True)
class SessionFrame:
    """Everything to show or record after a step, a reset or a rewind."""

    imagined: np.ndarray
    """Imagined image, uint8 ``(h, w, 3)``."""
    real: RealFrame | None
    """The real environment beside it, if there is one."""
    episode: int
    """Number of resets before."""
    start: int
    """Index of the initial state."""
    step: int
    """Actions since the reset."""
    action: np.ndarray | None
    """Action ``(a,)`` that led here; None after a reset."""
    human: bool
    """True where the keys chose the action."""
    driver: str
    """Name of the policy that chose it, or "human"."""
    reward: float
    """Predicted reward; NaN where the model predicts none."""
    end: float
    """Predicted probability of termination; NaN likewise."""
    state_estimate: np.ndarray
    """Predicted state ``(s,)``; empty where the model predicts none."""
    total: float
    """Sum of predicted rewards since the reset."""
    uncertainty: float
    denoise_steps: int
    serial: int
    """Number of the newest change of keys that the action takes into account."""

    @property
    def real_image(self) -> np.ndarray:
        """Real image, uint8 ``(h, w, 3)``; a ValueError where there is no real environment."""
        return self._known.image

    @property
    def state(self) -> np.ndarray:
        """Real state, float64 ``(s,)``; a ValueError where there is no real environment."""
        return self._known.state

    @property
    def difference(self) -> np.ndarray:
        """|imagined - real|, uint8 ``(h, w, 3)``; a ValueError where there is no real environment."""
        a, b = self.imagined, self.real_image
        return np.where(a > b, a - b, b - a)

    @property
    def _known(self) -> RealFrame:
        if self.real is None:
            raise ValueError("SessionFrame: there is no real environment beside this imagined one")
        return self.real


class Session:
    """Both worlds, the policy and the keys that drive them, and the steps that can be rewound.

    ``imagination`` has one row (see `open_imagination`). A key that is held always wins over ``driver``, which acts only after
    `hand_over`.
    """

    def __init__(
        self,
        imagination: Imagination,
        driver: NamedPolicy,
        keyboard: Keyboard,
        seed: int = 0,
        reference: ReferenceEnv | None = None,
    ) -> None:
        assert imagination.starts is not None
        self.imagination, self.starts, self.spec = imagination, imagination.starts, imagination.model.spec
        self.driver, self.keyboard, self.reference = driver, keyboard, reference
        self.seed = seed
        self.paused = False
        self.policy_drives = False
        self._single_steps = 0  # asked for while paused
        self._rng = np.random.default_rng(seed)
        self._policy_state: Any = None
        self._policy_begins = True
        self._history: deque[tuple[SessionFrame, Any]] = deque(maxlen=HISTORY + 1)
        self.start = int(self._rng.choice(np.arange(len(self.starts))))
        self.episode = -1
        self.frame = self.same_start()

    # -- requests of a player -----------------------------------------------------------------------------------------

    def new_start(self) -> SessionFrame:
        """Begin at another initial state."""
        starts = np.arange(len(self.starts))
        others = starts[starts != self.start]
        if len(others):
            self.start = int(self._rng.choice(others))
        return self.same_start()

    def same_start(self) -> SessionFrame:
        """Begin again at the same initial state; the same keys then give the same episode."""
        self.episode += 1
        self.imagination.reset(seeds=[self.seed + self.start], options={"start": self.start})
        real = None
        if self.reference is not None:
            _, info = self.reference.env.reset(options={"state": self.start_state(self.start)})
            real = self._real_frame(info.get("coverage", np.nan), info.get("success", False))
        self._history.clear()
        self._policy_begins = True
        return self._observe(real, None, False, self.keyboard.serial, 0, 0.0)

    def rewind(self, steps: int) -> SessionFrame:
        """Take back ``steps`` steps, or as many as are remembered: both worlds are then bit-equal to what they were."""
        if steps < 1:
            raise ValueError(f"rewind: expected at least 1 step, got {steps}")
        for _ in range(min(steps, len(self._history) - 1)):
            self._history.pop()
        past, snapshot = self._history[-1]
        self.imagination.restore(snapshot)
        if self.reference is not None:
            self.reference.env.set_state(past.state)
        self._policy_begins = True
        self.frame = replace(past, serial=self.frame.serial)
        return self.frame

    def toggle_pause(self) -> None:
        """Pause, or go on."""
        self.paused = not self.paused

    def single_step(self) -> None:
        """Pause, and take one step at the next ``advance``."""
        self.paused = True
        self._single_steps += 1

    def hand_over(self) -> bool:
        """Give the world to the policy, or take it back, without a reset; return True if the policy drives now."""
        self.policy_drives = not self.policy_drives
        self._policy_begins = True
        return self.policy_drives

    @property
    def denoises(self) -> bool:
        """True for a model with denoising steps."""
        return hasattr(self.imagination.model, "denoise_steps")

    @property
    def denoise_steps(self) -> int:
        """Denoising steps per frame, from the next step on; 1 for models without them."""
        return self.imagination.denoise_steps if self.denoises else 1

    @denoise_steps.setter
    def denoise_steps(self, steps: int) -> None:
        self.imagination.denoise_steps = steps

    # -- stepping -----------------------------------------------------------------------------------------------------

    @property
    def wants_step(self) -> bool:
        """False while ``advance`` would do nothing."""
        return not self.paused or self._single_steps > 0

    @property
    def driver_name(self) -> str:
        """Name of the policy that acts while no key is held, or "human"."""
        return self.driver.name if self.policy_drives else "human"

    def start_state(self, start: int) -> np.ndarray:
        """Real state, float64 ``(s,)``, in which episodes from initial state ``start`` begin; a ValueError without one."""
        if self.starts.states is None:
            raise ValueError(f"world {self.spec.name!r}: its starts do not know their true states")
        return self.starts.states[start, -1].astype(np.float64)

    def advance(self) -> SessionFrame | None:
        """Step both worlds with the action of the keys or the policy; return None while paused."""
        if not self.wants_step:
            return None
        self._single_steps = max(0, self._single_steps - 1)
        press = self.keyboard.read()
        human = press.active or not self.policy_drives
        action = press.action if human else self._policy_action()
        self._policy_begins = human
        self.imagination.step(action[None])
        real = None
        if self.reference is not None:
            _, reward, terminated, _, _ = self.reference.env.step(action)
            real = self._real_frame(float(reward), bool(terminated))
        return self._observe(real, action, human, press.serial, self.frame.step + 1, self.frame.total)

    def close(self) -> None:
        """Close the real environment."""
        if self.reference is not None:
            self.reference.env.close()

    def _policy_action(self) -> np.ndarray:
        begins = np.array([self._policy_begins])
        chosen, self._policy_state = self.driver.policy.predict(self._observation(), self._policy_state, begins)
        action = np.asarray(chosen, self.spec.action_dtype).reshape(-1)
        return action if self.spec.discrete else np.clip(action, -1, 1)

    def _observation(self) -> np.ndarray | None:
        if self.driver.observation == "state":
            return self.frame.state.astype(np.float32)
        if self.driver.observation == "pixels":
            return self.frame.imagined
        return self.imagination.features()[0] if self.driver.observation == "features" else None

    def _real_frame(self, reward: float, end: bool) -> RealFrame:
        assert self.reference is not None
        return RealFrame(self.reference.env.render(), self.reference.env.state(), reward, end)

    def _observe(
        self, real: RealFrame | None, action: np.ndarray | None, human: bool, serial: int, step: int, total: float
    ) -> SessionFrame:
        view, heads = self.imagination.view, self.imagination.model.head_names
        reward, end = (float(view.read(head)[0]) if head in heads else np.nan for head in ("reward", "terminated"))
        self.frame = SessionFrame(
            imagined=self.imagination.frames()[0],
            real=real,
            episode=self.episode,
            start=self.start,
            step=step,
            action=action,
            human=human,
            driver="human" if human else self.driver.name,
            reward=reward,
            end=end,
            state_estimate=_state_estimate(self.imagination),
            total=total if action is None else total + reward,
            uncertainty=float(self.imagination.uncertainty()[0]),
            denoise_steps=self.denoise_steps,
            serial=serial,
        )
        self._history.append((self.frame, self.imagination.snapshot()))
        return self.frame
