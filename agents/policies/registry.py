"""Collector: what making episodes of one true world takes, and the worlds there is one for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from neuralsim.spec import WorldSpec

if TYPE_CHECKING:
    from neuralsim.agents.policies.policy import Policy
    from neuralsim.data.images import Size


def by_seed(rng: np.random.Generator, near_goal: bool) -> np.ndarray:
    """``ScriptedPolicies.start`` of a world that cannot be put at a state: raises ValueError."""
    raise ValueError("this world begins by seed alone; no start state can be drawn")


@dataclass(frozen=True)
class ScriptedPolicies:
    """How episodes of one true world are made.

    spec, env: the world's spec, and the true world, by frame size; ``env`` shows its observation to policies and renders its
    frame. state_names: what its states are called, none where nothing is known but frames. explorer: a policy at the
    controls of an ``env``, by seed; its own state travels through ``predict``, its actions are ``spec``'s. start: a random
    state ``(s,)``, near the goal or anywhere, that ``reset(options={"state": ...})`` goes to. A world without one is
    ``seeded``: episodes begin at resets by seed, and end where the world ends them instead of going on. expert: a policy by
    seed that does the world's task by looking ahead in the true simulator, where there is one. steps: actions in an episode,
    if nobody says otherwise. shard: episodes in a shard; None: as many as are good to write at once. anew: every episode has
    an ``env`` of its own, so that nothing of another's is left in it. source, remarks: what the store and the command say
    of how the world was made.
    """

    spec: Callable[[Size], WorldSpec]
    state_names: tuple[str, ...]
    env: Callable[[Size], gym.Env[np.ndarray, Any]]
    explorer: Callable[[gym.Env[np.ndarray, Any], int], Policy]
    start: Callable[[np.random.Generator, bool], np.ndarray] = by_seed
    expert: Callable[[int], Policy] | None = None
    steps: int = 100
    shard: int | None = None
    anew: bool = False
    source: Mapping[str, Any] = field(default_factory=dict)
    remarks: Callable[[Size], tuple[str, ...]] = lambda size: ()

    @property
    def seeded(self) -> bool:
        """Whether episodes begin by seed alone."""
        return self.start is by_seed


def _pusht() -> ScriptedPolicies:
    from neuralsim.agents.policies.pusht_explorer import PushTExplorer
    from neuralsim.envs.pusht.env import STATE_NAMES, PushTRealEnv, pusht_spec, random_state

    def env(size: Size) -> PushTRealEnv:
        return PushTRealEnv(_side(size), observation="state")

    def explorer(env: object, seed: int) -> Policy:
        return PushTExplorer(seed)

    def expert(seed: int) -> Policy:
        from neuralsim.agents.policies.pusht_expert import PushTExpert  # brings torch and diffusers along

        return PushTExpert(seed)

    return ScriptedPolicies(
        lambda size: pusht_spec(_side(size)), STATE_NAMES, env, explorer, random_state, expert, shard=100
    )


def _tworoom() -> ScriptedPolicies:
    from neuralsim.agents.policies.tworoom_explorer import TwoRoomExplorer
    from neuralsim.envs.tworoom.env import STATE_NAMES, TwoRoomRealEnv, random_state, tworoom_spec

    def env(size: Size) -> TwoRoomRealEnv:
        return TwoRoomRealEnv(_side(size), observation="state")

    def explorer(env: object, seed: int) -> Policy:
        return TwoRoomExplorer(seed)

    return ScriptedPolicies(lambda size: tworoom_spec(_side(size)), STATE_NAMES, env, explorer, random_state, shard=100)


def _carracing() -> ScriptedPolicies:
    try:
        from neuralsim.envs.carracing.env import STATE_NAMES, CarRacingRealEnv, car_racing_spec
    except ModuleNotFoundError as error:  # it says how to install Box2D
        raise ValueError(str(error)) from error
    from neuralsim.agents.policies.carracing_explorer import CarRacingExplorer

    def env(size: Size) -> CarRacingRealEnv:
        return CarRacingRealEnv(_side(size), observation="state")

    def explorer(env: gym.Env[np.ndarray, Any], seed: int) -> Policy:
        assert isinstance(env, CarRacingRealEnv)
        return CarRacingExplorer(env, seed)

    return ScriptedPolicies(lambda size: car_racing_spec(_side(size)), STATE_NAMES, env, explorer, steps=300)


def _side(size: Size) -> int:
    """The worlds with a name are square."""
    if isinstance(size, int) or size[0] == size[1]:
        return size if isinstance(size, int) else size[0]
    raise ValueError(f"--size: this world is square, got {size[0]}x{size[1]}")


SCRIPTED_POLICIES: Mapping[str, Callable[[], ScriptedPolicies]] = {
    "pusht": _pusht,
    "tworoom": _tworoom,
    "carracing": _carracing,
}
"""Each world's collector by the world's name; a simulator is imported when its world is asked for."""


@cache
def find_scripted_policies(world: str) -> ScriptedPolicies:
    """The collector of the world called ``world``; an unknown one is a ValueError that names the nearest."""
    if world not in SCRIPTED_POLICIES:
        near = difflib.get_close_matches(world, SCRIPTED_POLICIES, 1, 0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        own = f"; {world!r} is a Gymnasium id: --env {world}" if world in gym.registry else ""
        raise ValueError(
            f"no collector for world {world!r}{own or hint}; there is one for {', '.join(SCRIPTED_POLICIES)}"
        )
    return SCRIPTED_POLICIES[world]()
