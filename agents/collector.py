"""Collector: what making episodes of one true world takes, and the worlds there is one for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gymnasium as gym
import numpy as np

from neuralsim.spec import WorldSpec

if TYPE_CHECKING:
    from neuralsim.agents.driver import Policy


@dataclass(frozen=True)
class Collector:
    """How episodes of one true world are made.

    spec: the world's, by frame size. state_names: what its states are called. env: the true world by frame size; it
    observes its state, renders its frame, and resets to ``options={"state": ...}``. start: a random state ``(s,)``,
    near the goal or anywhere. explorer: a policy on states, by seed; its own state travels through ``predict``. expert:
    likewise, one that does the world's task by looking ahead in the true simulator, where there is one.
    """

    spec: Callable[[int], WorldSpec]
    state_names: tuple[str, ...]
    env: Callable[[int], gym.Env[np.ndarray, np.ndarray]]
    start: Callable[[np.random.Generator, bool], np.ndarray]
    explorer: Callable[[int], Policy]
    expert: Callable[[int], Policy] | None = None


def _pusht() -> Collector:
    from neuralsim.agents.explorer import PushTExplorer
    from neuralsim.envs.pusht import STATE_NAMES, PushTRealEnv, pusht_spec, random_state

    def env(size: int) -> PushTRealEnv:
        return PushTRealEnv(size, observation="state")

    def expert(seed: int) -> Policy:
        from neuralsim.agents.expert import PushTExpert  # brings torch and diffusers along

        return PushTExpert(seed)

    return Collector(pusht_spec, STATE_NAMES, env, random_state, PushTExplorer, expert)


def _tworoom() -> Collector:
    from neuralsim.agents.wanderer import Wanderer
    from neuralsim.envs.tworoom import STATE_NAMES, TwoRoomRealEnv, random_state, tworoom_spec

    def env(size: int) -> TwoRoomRealEnv:
        return TwoRoomRealEnv(size, observation="state")

    return Collector(tworoom_spec, STATE_NAMES, env, random_state, Wanderer)


COLLECTORS: Mapping[str, Callable[[], Collector]] = {"pusht": _pusht, "tworoom": _tworoom}
"""Each world's collector by the world's name; a simulator is imported when its world is asked for."""


def find_collector(world: str) -> Collector:
    """The collector of the world called ``world``; an unknown one is a ValueError that names the nearest."""
    if world not in COLLECTORS:
        near = difflib.get_close_matches(world, COLLECTORS, 1, 0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"no collector for world {world!r}{hint}; there is one for {', '.join(COLLECTORS)}")
    return COLLECTORS[world]()
