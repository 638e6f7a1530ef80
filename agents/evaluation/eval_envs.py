"""Environments to evaluate policies in: many episodes side by side from given starts, imagined or real."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from neuralsim.agents.policies.policy import ObservationKind
from neuralsim.agents.policies.rollout import RolloutEnv, StepResult
from neuralsim.envs.tasks.rl_task import RLTask
from neuralsim.envs.wrappers.discrete_actions import to_actions
from neuralsim.envs.wrappers.features import FeatureEncoder
from neuralsim.imagination import Imagination
from neuralsim.pretrained.starts import Starts
from neuralsim.pretrained.world import World
from neuralsim.spec import WorldSpec


class EvalEnv(RolloutEnv, Protocol):
    """``n_envs`` episodes side by side; rows that are not ``live`` stand still."""

    n_envs: int
    spec: WorldSpec

    def begin(self, which: np.ndarray) -> None:
        """Put all rows at the starts numbered ``which`` ``(n,)``."""

    def step(self, actions: np.ndarray, live: np.ndarray) -> StepResult:
        """Apply ``actions`` ``(n, a)``, or indices of discrete actions ``(n,)``, in the rows that are ``live`` ``(n,)``."""

    def observe(self) -> np.ndarray:
        """Return features ``(n, d)`` or frames ``(n, h, w, 3)``, as the environments were made."""

    def frames(self) -> np.ndarray:
        """Return the present frames, uint8 ``(n, h, w, 3)``."""


class ImaginedEvalEnv:
    """Imagined episodes. ``uncertainty_limit``: uncertainty beyond which an episode is truncated (None: the world's own limit;
    infinity: never)."""

    def __init__(
        self,
        world: World,
        rl_task: RLTask,
        starts: Starts,
        n_envs: int,
        observation: ObservationKind = "features",
        uncertainty_limit: float | None = None,
    ) -> None:
        self.imagination = Imagination(
            world.model,
            rl_task.task,
            num_envs=n_envs,
            starts=starts,
            horizon=rl_task.horizon,
            uncertainty_limit=uncertainty_limit,
        )
        self.n_envs, self.observation, self.is_success = n_envs, observation, rl_task.is_success
        own = float(getattr(world.model, "uncertainty_threshold", np.inf))
        self.limit = own if uncertainty_limit is None or np.isinf(uncertainty_limit) else uncertainty_limit
        self.spec = world.spec

    def begin(self, which: np.ndarray) -> None:
        """Put all rows at the starts numbered ``which`` ``(n,)``; a start's number is also its seed."""
        self.imagination.reset(seeds=[int(i) for i in which], options={"start": which})

    def step(self, actions: np.ndarray, live: np.ndarray) -> StepResult:
        t = self.imagination.step(to_actions(actions, self.spec.action_size, self.spec.action_choices), live)
        success = t.terminated
        if self.is_success is not None:
            success = success | self.is_success(self.imagination.view.world_state.double().cpu().numpy())
        return StepResult(t.reward, t.terminated, t.truncated, success, ~(t.uncertainty <= self.limit))

    def observe(self) -> np.ndarray:
        return self.frames() if self.observation == "pixels" else self.imagination.features()

    def frames(self) -> np.ndarray:
        return self.imagination.frames()


class RealEvalEnv:
    """Episodes in real environments, from exactly the starts' states or, where these are seeds, from resets by seed. ``world``
    encodes the features."""

    def __init__(
        self, world: World, rl_task: RLTask, starts: Starts, n_envs: int, observation: ObservationKind = "features"
    ) -> None:
        self.resets = _resets(rl_task, starts)
        size = (world.spec.height, world.spec.width)
        self.envs = [rl_task.env(size) for _ in range(n_envs)]
        self.encoder = FeatureEncoder(world.model, n_envs)
        self.n_envs, self.observation = n_envs, observation
        self.spec = world.spec
        self._frames = np.zeros((n_envs, *world.spec.frame_shape), np.uint8)
        self._features = np.zeros((n_envs, world.model.feature_size), np.float32)

    def begin(self, which: np.ndarray) -> None:
        for i, (env, start) in enumerate(zip(self.envs, which, strict=True)):
            self._frames[i] = env.reset(**self.resets[start])[0]
        self.encoder.begin(np.arange(self.n_envs), self._frames)
        self._encode(np.arange(self.n_envs))

    def step(self, actions: np.ndarray, live: np.ndarray) -> StepResult:
        actions = to_actions(actions, self.spec.action_size, self.spec.action_choices)
        reward = np.zeros(self.n_envs)
        terminated, truncated, success, doubted = (np.zeros(self.n_envs, bool) for _ in range(4))
        rows = np.flatnonzero(live)
        for i in rows:
            self._frames[i], reward[i], terminated[i], truncated[i], info = self.envs[i].step(
                self.spec.to_space(actions[i])
            )
            success[i] = info["success"]
        self.encoder.append(actions[rows], self._frames[rows], rows)
        self._encode(rows)
        return StepResult(reward, terminated, truncated, success, doubted)

    def observe(self) -> np.ndarray:
        return self.frames() if self.observation == "pixels" else self._features.copy()

    def frames(self) -> np.ndarray:
        return self._frames.copy()

    def _encode(self, rows: np.ndarray) -> None:
        if self.observation == "features" and len(rows):
            self._features[rows] = self.encoder.features(rows)


def _resets(rl_task: RLTask, starts: Starts) -> list[dict[str, Any]]:
    """Arguments of the real environment's reset, for each of ``starts``."""
    by_seed = rl_task.real_world().seeded
    if (starts.seeds if by_seed else starts.states) is None:
        needed = "the seeds of resets" if by_seed else "real states"
        raise ValueError(f"the real environment begins at {needed}, and these starts have none")
    if by_seed:
        return [{"seed": int(seed)} for seed in starts.seeds]  # type: ignore[union-attr]
    return [{"options": {"state": s}} for s in starts.states[:, -1].astype(np.float64)]  # type: ignore[index]
