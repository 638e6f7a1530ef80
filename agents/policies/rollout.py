"""The one loop in which a policy acts until its episodes end, for one Gymnasium environment or for rows of many.

``run`` is the loop; ``rollout`` records one environment's episode with it. Collecting, evaluating, planning trials and Dyna rounds
differ only in the environment they hand to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from neuralsim.agents.policies.policy import NamedPolicy, ObservationKind, Policy
from neuralsim.data.episode import Episode


@dataclass(frozen=True)
class StepResult:
    """One step of n episodes side by side, each ``(n,)``: reward, terminated, truncated, success, and whether the world model's
    uncertainty was above its limit (``doubted``)."""

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    success: np.ndarray
    doubted: np.ndarray


class RolloutEnv(Protocol):
    """Episodes under way, side by side or alone, as ``run`` sees them."""

    def observe(self) -> Any:
        """Return the observation that the policy acts on, of all rows."""

    def step(self, actions: np.ndarray, live: np.ndarray) -> StepResult:
        """Apply ``actions`` in the rows that are ``live`` ``(n,)``."""


def run(
    policy: Policy, env: RolloutEnv, live: np.ndarray, deterministic: bool = False
) -> Iterator[tuple[StepResult, np.ndarray]]:
    """Let ``policy`` act in ``env`` while any row is ``live`` bool ``(n,)``; yields each step's result and the rows live after it."""
    memory, starts = None, np.ones(len(live), bool)
    while live.any():
        actions, memory = policy.predict(env.observe(), memory, starts, deterministic)
        result = env.step(actions, live)
        live, starts = live & ~(result.terminated | result.truncated), np.zeros(len(live), bool)
        yield result, live


@dataclass(frozen=True)
class RolloutConfig:
    """Settings of one environment's episode."""

    reset: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``env.reset``."""
    steps: int | None = None
    """Actions at most; by default as many as the environment lets."""
    stop_at_end: bool = True
    """Stop where the environment terminates or truncates; otherwise go on for ``steps``."""
    states: bool = False
    """Record the environment's states too."""
    deterministic: bool = False
    """Ask the policy for its most likely action."""


class SingleEnv:
    """One Gymnasium environment as a RolloutEnv of one row; observations and actions are not batched.

    Actions are those of ``env.spec_world``. ``steps`` and ``stop_at_end``: see RolloutConfig. ``info``: of the newest step.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        observation: ObservationKind = "env",
        reset: Mapping[str, Any] | None = None,
        steps: int | None = None,
        stop_at_end: bool = True,
    ) -> None:
        self.env, self.kind, self.steps, self.stop_at_end = env, observation, steps, stop_at_end
        self.spec = env.get_wrapper_attr("spec_world")
        self.observation, self.info = env.reset(**(reset or {}))
        self.ended = (False, False)
        self.taken = 0

    def observe(self) -> Any:
        """Return the kind of observation that the policy asks for."""
        if self.kind == "state":
            return np.asarray(self.state(), np.float32)
        if self.kind == "pixels":
            return np.asarray(self.env.render())
        if self.kind == "own":
            return self.env.get_wrapper_attr("own_observation")
        return None if self.kind == "nothing" else self.observation

    def state(self) -> np.ndarray:
        """Return the real state ``(s,)``."""
        return np.asarray(self.env.get_wrapper_attr("state")())

    def step(self, actions: np.ndarray, live: np.ndarray) -> StepResult:
        """Apply one action; ``ended`` then says whether the environment itself terminated and truncated."""
        action = self.spec.to_space(np.asarray(actions).reshape(-1))
        self.observation, reward, terminated, truncated, self.info = self.env.step(action)
        self.ended = bool(terminated), bool(truncated)
        self.taken += 1
        over = self.steps is not None and self.taken >= self.steps
        ends = (self.ended[0], self.ended[1] or over) if self.stop_at_end else (False, over)
        success = np.array([bool(self.info.get("success", False))])
        return StepResult(np.array([reward]), np.array(ends[:1]), np.array(ends[1:]), success, np.zeros(1, bool))


def rollout(
    policy: NamedPolicy,
    env: gym.Env[Any, Any],
    config: RolloutConfig | None = None,
    provenance: Mapping[str, Any] | None = None,
    on_step: Callable[[SingleEnv], object] | None = None,
) -> Episode:
    """Run ``policy`` for one episode of ``env`` and return it; an episode that the environment does not end is truncated.

    Its frames are ``env.render()``. ``on_step`` is called after every step.
    """
    config = config or RolloutConfig()
    single = SingleEnv(env, policy.observation, config.reset, config.steps, config.stop_at_end)
    record = _Record(single, policy.policy, config.states)
    for _ in run(record, record, np.ones(1, bool), config.deterministic):
        if on_step:
            on_step(single)
    return record.episode(provenance or {})


class _Record:
    """The policy and the environment of one rollout, and all that passes between them."""

    def __init__(self, single: SingleEnv, policy: Policy, states: bool) -> None:
        self.single, self.policy = single, policy
        self.frames = [np.asarray(single.env.render())]
        self.states = [single.state()] if states else None
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.ends: list[tuple[bool, bool]] = []

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Ask the policy, and keep its action."""
        action, state = self.policy.predict(observation, state, episode_start, deterministic)
        self.actions.append(np.asarray(action).reshape(-1))
        return self.actions[-1], state

    def observe(self) -> Any:
        """Return the environment's observation for the policy."""
        return self.single.observe()

    def step(self, actions: np.ndarray, live: np.ndarray) -> StepResult:
        """Step the environment, and keep the outcome."""
        result = self.single.step(actions, live)
        self.frames.append(np.asarray(self.single.env.render()))
        if self.states is not None:
            self.states.append(self.single.state())
        self.rewards.append(float(result.reward[0]))
        self.ends.append(self.single.ended)
        return result

    def episode(self, provenance: Mapping[str, Any]) -> Episode:
        """Return the recorded episode."""
        terminated, truncated = np.array(self.ends).T.copy()
        truncated[-1] |= not (self.single.stop_at_end and any(self.ends[-1]))
        return Episode(
            frames=np.stack(self.frames),
            actions=np.stack(self.actions),
            rewards=np.array(self.rewards, np.float32),
            terminated=terminated,
            truncated=truncated,
            states=None if self.states is None else np.stack(self.states).astype(np.float32),
            provenance=dict(provenance),
        )
