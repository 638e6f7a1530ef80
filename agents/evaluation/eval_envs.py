"""Arena: many episodes side by side from given starts, in imagination or in truth, for whoever is to be tried there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from neuralsim.envs.tasks.rl_task import RLTask
from neuralsim.envs.wrappers.features import Encoder
from neuralsim.imagination import Imagination
from neuralsim.pretrained.world import Starts, World
from neuralsim.spec import WorldSpec

Observation = Literal["features", "pixels"]


@dataclass(frozen=True)
class StepResult:
    """What a step brought, per slot ``(n,)``: reward, terminated, truncated, whether the wish came true, and whether the world
    no longer trusts its dream."""

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    success: np.ndarray
    doubted: np.ndarray


class EvalEnv(Protocol):
    """``n_envs`` episodes side by side; slots that are not ``live`` stand still."""

    n_envs: int
    spec: WorldSpec

    def begin(self, which: np.ndarray) -> np.ndarray:
        """All slots start at the starts numbered ``which`` ``(n,)``; returns their observations."""

    def step(self, actions: np.ndarray, live: np.ndarray) -> StepResult:
        """``actions`` ``(n, a)`` in the slots that are ``live`` ``(n,)``."""

    def observe(self) -> np.ndarray:
        """``(n, d)`` features or ``(n, h, w, 3)`` frames, as the arena was made."""

    def frames(self) -> np.ndarray:
        """uint8 ``(n, h, w, 3)``, what there is to see now."""


class ImaginedEvalEnv:
    """Episodes in imagination. ``doubt_limit``: uncertainty beyond which one is truncated (None: the world's own; infinity:
    never)."""

    def __init__(
        self,
        world: World,
        rl_task: RLTask,
        starts: Starts,
        n_envs: int,
        observation: Observation = "features",
        doubt_limit: float | None = None,
    ) -> None:
        self.imagination = Imagination(
            world.model,
            rl_task.task,
            num_slots=n_envs,
            starts=starts,
            horizon=rl_task.horizon,
            uncertainty_limit=doubt_limit,
        )
        self.n_envs, self.observation, self.is_success = n_envs, observation, rl_task.is_success
        own = float(getattr(world.model, "uncertainty_threshold", np.inf))
        self.known = own if doubt_limit is None or np.isinf(doubt_limit) else doubt_limit
        self.spec = world.spec

    def begin(self, which: np.ndarray) -> np.ndarray:
        """See Arena. A start's number is its dream's seed."""
        self.imagination.reset(seeds=[int(i) for i in which], options={"start": which})
        return self.observe()

    def step(self, actions: np.ndarray, live: np.ndarray) -> StepResult:
        """See Arena."""
        t = self.imagination.step(actions, live)
        success = t.terminated
        if self.is_success is not None:
            success = success | self.is_success(self.imagination.view.world_state.double().cpu().numpy())
        return StepResult(t.reward, t.terminated, t.truncated, success, ~(t.uncertainty <= self.known))

    def observe(self) -> np.ndarray:
        """See Arena."""
        return self.frames() if self.observation == "pixels" else self.imagination.features()

    def frames(self) -> np.ndarray:
        """See Arena."""
        return self.imagination.frames()


class RealEvalEnv:
    """Episodes in the true simulator, from exactly the starts' states, or from the resets by seed that they are. ``world`` gives
    the encoder of features."""

    def __init__(
        self, world: World, rl_task: RLTask, starts: Starts, n_envs: int, observation: Observation = "features"
    ) -> None:
        self.beginnings = _beginnings(rl_task, starts)
        size = (world.spec.height, world.spec.width)
        self.envs = [rl_task.env(size) for _ in range(n_envs)]
        self.encoder = Encoder(world.model, n_envs)
        self.n_envs, self.observation = n_envs, observation
        self.spec = world.spec
        self._frames = np.zeros((n_envs, *world.spec.frame_shape), np.uint8)
        self._features = np.zeros((n_envs, world.model.feature_size), np.float32)

    def begin(self, which: np.ndarray) -> np.ndarray:
        """See Arena."""
        for i, (env, start) in enumerate(zip(self.envs, which, strict=True)):
            self._frames[i] = env.reset(**self.beginnings[start])[0]
        self.encoder.begin(np.arange(self.n_envs), self._frames)
        self._encode(np.arange(self.n_envs))
        return self.observe()

    def step(self, actions: np.ndarray, live: np.ndarray) -> StepResult:
        """See Arena."""
        reward = np.zeros(self.n_envs)
        terminated, truncated, success, doubted = (np.zeros(self.n_envs, bool) for _ in range(4))
        rows = np.flatnonzero(live)
        for i in rows:
            self._frames[i], reward[i], terminated[i], truncated[i], info = self.envs[i].step(
                self.spec.to_space(actions[i])
            )
            success[i] = info["success"]
        self.encoder.follow(actions[rows], self._frames[rows], rows)
        self._encode(rows)
        return StepResult(reward, terminated, truncated, success, doubted)

    def observe(self) -> np.ndarray:
        """See Arena."""
        return self.frames() if self.observation == "pixels" else self._features.copy()

    def frames(self) -> np.ndarray:
        """See Arena."""
        return self._frames.copy()

    def _encode(self, rows: np.ndarray) -> None:
        if self.observation == "features" and len(rows):
            self._features[rows] = self.encoder.features(rows)


def _beginnings(rl_task: RLTask, starts: Starts) -> list[dict[str, Any]]:
    """What the true world's reset is told of each of ``starts``."""
    by_seed = rl_task.true_world().draw is None
    if (starts.seeds if by_seed else starts.states) is None:
        told = "the seeds of resets" if by_seed else "true states"
        raise ValueError(f"the true simulator begins at {told}, and these starts have none")
    if by_seed:
        return [{"seed": int(seed)} for seed in starts.seeds]  # type: ignore[union-attr]
    return [{"options": {"state": s}} for s in starts.states[:, -1].astype(np.float64)]  # type: ignore[index]
