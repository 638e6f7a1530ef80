"""A learned world as a Gymnasium vector environment: many imagined episodes side by side on one batched model, no processes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from neuralsim.envs.imagined.config import RENDER_FPS, RENDER_MODES, ImaginedEnvConfig
from neuralsim.envs.imagined.session import ImaginedSession
from neuralsim.pretrained.world import World
from neuralsim.snapshot import Snapshot


class ImaginedVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """``num_envs`` imagined episodes on one batched model, ``gym.make_vec("neuralsim/PushT-v0", num_envs=8)``.

    world, config, settings: as ImaginedEnv's. autoreset_mode: Gymnasium's AutoresetMode or its name. NEXT_STEP: the step
    after a row's end ignores its action, resets and gives reward 0. SAME_STEP: the step that ends a row resets it, and
    infos hold ``final_obs`` and ``final_info``. DISABLED: the caller resets ended rows by ``options["reset_mask"]``.
    max_episode_steps: as in ``gym.make``; a horizon that is shorter still holds.

    ``reset(seed=s)`` gives row i the seed s + i; ``options`` as ImaginedEnv's, also with a leading axis of ``num_envs``,
    and ``{"reset_mask": bool (num_envs,)}``. ``infos`` are arrays ``(num_envs, ...)`` as Gymnasium batches them, each ``key``
    with a mask ``_key`` of the rows where it is known; keys as in ImaginedSession.
    """

    metadata = {  # noqa: RUF012 (Gymnasium's own form)
        "render_modes": RENDER_MODES,
        "render_fps": RENDER_FPS,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        world: str | os.PathLike[str] | World = "pusht",
        config: ImaginedEnvConfig | None = None,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        **settings: Any,
    ) -> None:
        mode = _parse_autoreset_mode(autoreset_mode)
        chosen = ImaginedEnvConfig.from_keywords(config, settings)
        if max_episode_steps is not None and max_episode_steps != -1:  # -1: Gymnasium's word for no limit
            chosen = replace(chosen, horizon=_shorter(chosen.horizon, max_episode_steps))
        self._attach(ImaginedSession.open(num_envs, world, chosen), mode)

    @classmethod
    def from_session(cls, session: ImaginedSession) -> Self:
        """Return a vector environment on ``session``."""
        env = cls.__new__(cls)
        env._attach(session, AutoresetMode.NEXT_STEP)
        return env

    def _attach(self, session: ImaginedSession, mode: AutoresetMode) -> None:
        self.session = session
        self.imagination = session.imagination
        self.num_envs = session.num_envs
        self.render_mode = session.config.render_mode
        self.single_observation_space = session.observation_space
        self.single_action_space = session.action_space
        self.metadata = {**session.metadata, "autoreset_mode": mode}

    @cached_property
    def observation_space(self) -> spaces.Space[np.ndarray]:  # type: ignore[override]
        """The space of all rows. Made on demand: for 32 rows of pixels it costs more than the fork it belongs to."""
        return batch_space(self.single_observation_space, self.num_envs)

    @cached_property
    def action_space(self) -> spaces.Space[np.ndarray]:  # type: ignore[override]
        """The space of all rows."""
        return batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin episodes in all rows, or those of ``options["reset_mask"]``."""
        if isinstance(seed, int | np.integer):
            seeding.np_random(int(seed))
        chosen = dict(options or {})
        self.imagination.reset(chosen.pop("reset_mask", None), seed, chosen)
        if isinstance(seed, int | np.integer):
            self._np_random, self._np_random_seed = seeding.np_random(int(seed))
        return self.session.observe(), _masked(self.session.infos())

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step every row; where an episode ends or has ended, do as the autoreset mode says."""
        mode = self.metadata["autoreset_mode"]
        pending = self.imagination.ended
        if mode is AutoresetMode.DISABLED and pending.any():
            rows = np.flatnonzero(pending).tolist()
            raise ResetNeeded(
                f"rows {rows} have ended: reset them, reset(options={{'reset_mask': mask}}), before a step"
            )
        held = pending if mode is AutoresetMode.NEXT_STEP else np.zeros_like(pending)
        checked = self.session.check_actions(actions)
        with self.imagination.all_or_nothing():
            transition = self.session.advance(checked, ~held)
            infos = _masked(self.session.infos(transition))
            ended = transition.terminated | transition.truncated
            resets = ended if mode is AutoresetMode.SAME_STEP else held
            final = self.session.observe() if mode is AutoresetMode.SAME_STEP and ended.any() else None
            if resets.any():
                self.imagination.reset(resets)
                infos = self._infos_after_reset(infos, resets, final)
            observation = self.session.observe()
        reward = transition.reward.astype(np.float64)
        return observation, reward, transition.terminated, transition.truncated, infos

    def _infos_after_reset(self, infos: dict[str, Any], resets: np.ndarray, final: np.ndarray | None) -> dict[str, Any]:
        """Return ``infos`` with the beginnings of the rows that reset; ``final``: what those showed last, in SAME_STEP."""
        fresh = _masked(self.session.infos())
        for name, value in fresh.items():
            shape = (-1,) + (1,) * (value.ndim - 1)
            fresh[name] = np.where(resets.reshape(shape), value, infos[name])
        if final is not None:
            last = np.full(self.num_envs, None, dtype=object)
            for row in np.flatnonzero(resets):
                last[row] = final[row]
            kept = {name: value & resets if name[0] == "_" else value for name, value in infos.items()}
            fresh |= {"final_obs": last, "_final_obs": resets.copy(), "final_info": kept, "_final_info": resets.copy()}
        return fresh

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return the current frames, one per row; None without a render mode."""
        frames = self.session.render()
        return None if frames is None else tuple(frames)

    def snapshot(self) -> Snapshot:
        """Return the state of all rows as a value; see Imagination."""
        return self.imagination.snapshot()

    def restore(self, snap: Snapshot) -> None:
        """Go back to ``snap``, pending autoresets included."""
        self.imagination.restore(snap)

    def fork(self, n: int) -> ImaginedVectorEnv:
        """Return every row n times, row ``i * n + j`` being copy j of row i; see Imagination.fork."""
        fork = type(self).from_session(self.session.fork(n))
        fork.metadata["autoreset_mode"] = self.metadata["autoreset_mode"]
        return fork


def _masked(infos: dict[str, np.ndarray]) -> dict[str, Any]:
    """Add to each key its mask ``_key``: all rows, but of ``state`` those whose start is known."""
    known = np.ones(len(infos["start"]), bool)
    masks = {f"_{name}": infos["start"] >= 0 if name == "state" else known.copy() for name in infos}
    return {**infos, **masks}


def _parse_autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    for known in AutoresetMode:
        if mode is known or mode in (known.value, known.name):
            return known
    raise ValueError(f"autoreset_mode: expected one of {', '.join(m.name for m in AutoresetMode)}, got {mode!r}")


def _shorter(horizon: int | None, limit: int) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int | np.integer) or limit < 1:
        raise ValueError(f"max_episode_steps: expected a whole number of at least 1, or -1 for no limit, got {limit!r}")
    return int(limit) if horizon is None else min(horizon, int(limit))
