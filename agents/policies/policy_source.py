"""PolicySource: who acts in a collection, by a word: a scripted explorer, chance, an expert, a saved policy, or your own code."""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from neuralsim.agents.policies.random_policies import RandomActions
from neuralsim.agents.policies.registry import ScriptedPolicies
from neuralsim.runtime.imports import load_entry_point

if TYPE_CHECKING:
    from collections.abc import Callable

    from neuralsim.agents.policies.policy import Policy
    from neuralsim.agents.policies.sb3_file import LoadedPolicy
    from neuralsim.spec import WorldSpec

WORDS = {"explore": "explorer", "random": "random", "oracle": "oracle"}
"""Each policy that has a name, and what episodes say of who acted."""


@dataclass(frozen=True)
class PolicySource:
    """``word``: one of WORDS, the path of a Stable-Baselines3 ``.zip``, or ``module:function``."""

    word: str

    def __post_init__(self) -> None:
        if self.word in WORDS or self.word in WORDS.values():
            return
        if self.word.endswith(".zip"):
            if not Path(self.word).is_file():
                raise FileNotFoundError(
                    f"--policy {self.word}: no such file; expected one that SB3's model.save() wrote"
                )
        elif ":" not in self.word:
            near = difflib.get_close_matches(self.word, WORDS, 1, 0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"--policy {self.word!r}: expected {', '.join(WORDS)}, the path of a Stable-Baselines3 .zip, or "
                f"module:function{hint}"
            )

    @property
    def name(self) -> str:
        """What episodes say of who acted; a file is known by its contents too."""
        if self.word.endswith(".zip"):
            path = Path(self.word)
            return f"{path.name} {_digest(path, path.stat().st_mtime_ns)}"
        return WORDS.get(self.word, self.word)

    def check(self, collector: ScriptedPolicies, world: str) -> None:
        """Raises ValueError where the world knows nobody of that name, or there is no such function."""
        if self.name == "oracle" and collector.expert is None:
            raise ValueError(f"--policy oracle: nobody demonstrates world {world!r}; there is --policy explore")
        if ":" in self.word and not self.word.endswith(".zip"):
            load_entry_point(self.word, "--policy")

    def policy(self, collector: ScriptedPolicies, env: gym.Env[np.ndarray, Any], seed: int) -> Policy:
        """At the controls of ``env``, one of the collector's; it answers in the terms of the world's spec."""
        if self.name == "explorer":
            return collector.explorer(env, seed)
        if self.name == "random":
            return RandomActions(env.get_wrapper_attr("spec_world"), seed)
        if self.name == "oracle" and collector.expert:
            return collector.expert(seed)
        if self.word.endswith(".zip"):
            return _saved(Path(self.word), env, seed)
        inner = getattr(env, "env", env)
        return _at_home(_made(self.word, inner, seed), env)


class AtHome:
    """A policy that knows a world as the environment's makers do: it is shown the environment's own observation, and its
    actions, the environment's own, are put into the spec's terms."""

    def __init__(self, policy: Policy, env: Any) -> None:
        self.policy, self.env = policy, env

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """``observation`` is not looked at: the environment is asked for its own."""
        own, state = self.policy.predict(self.env.own_observation, state, episode_start, deterministic)
        return self.env.actions.from_own(own, self.env.spec_world), state


class Saved:
    """A saved policy whose chance is its own: the same seed, the same actions, whatever else uses torch's generator."""

    def __init__(
        self,
        policy: LoadedPolicy,
        seed: int,
        look: Callable[[Any], Any] = lambda observation: observation,
        answer: Callable[[Any], Any] = lambda action: action,
    ) -> None:
        import torch

        self.policy, self.look, self.answer = policy, look, answer
        self._chance = torch.Generator().manual_seed(seed).get_state()

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """See Stable-Baselines3's predict; ``look`` and ``answer`` lie between the policy and the world."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._chance)
            chosen, state = self.policy.predict(self.look(observation), state, episode_start, deterministic)
            self._chance = torch.get_rng_state()
        return self.answer(chosen), state


def _at_home(policy: Policy, env: Any) -> Policy:
    """Worlds that have a name show their own observations and take their own actions themselves."""
    return AtHome(policy, env) if hasattr(env, "own_observation") else policy


def _saved(path: Path, env: Any, seed: int) -> Policy:
    """By what the policy looks at: the environment's own observations, where these fit, else NeuralSim's states or frames."""
    from neuralsim.agents.policies.sb3_file import read_note

    spec: WorldSpec = env.spec_world
    own = env.env if hasattr(env, "own_observation") else None
    if own is not None and not read_note(path).world:
        policy = _load(path, own.action_space)
        if _same(policy.observation_space.shape, own.observation_space.shape):
            return AtHome(Saved(policy, seed), env)
    policy = _load(path, spec.action_space() if spec.discrete else None, spec.action_size)
    shape = policy.observation_space.shape
    if shape == env.observation_space.shape:
        return Saved(policy, seed, answer=spec.from_space)
    if _same(shape, spec.frame_shape):
        return Saved(policy, seed, lambda observation: env.render(), spec.from_space)
    shown = (own or env).observation_space
    raise ValueError(
        f"--policy {path}: looks at observations of shape {shape}; {spec.name} shows {shown}, and frames {spec.frame_shape}"
    )


def _same(shape: tuple[int, ...], shown: tuple[int, ...] | None) -> bool:
    """Images may have their channels first."""
    return shown is not None and shape in (tuple(shown), (*shown[-1:], *shown[:-1]))


@cache
def _digest(path: Path, stamp: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


_loaded: dict[tuple[Path, int, str], LoadedPolicy] = {}
"""Policies by path, time of writing and action space: a worker's thousand episodes read the file once."""


def _load(path: Path, action_space: gym.spaces.Space[Any] | None, action_size: int = 2) -> LoadedPolicy:
    from neuralsim.agents.policies.sb3_file import load_policy

    key = (path, path.stat().st_mtime_ns, repr(action_space))
    if key not in _loaded:
        _loaded[key] = load_policy(path, action_size, action_space)
    return _loaded[key]


def _made(word: str, env: gym.Env[Any, Any], seed: int) -> Policy:
    policy: Any = load_entry_point(word, "--policy")(env, seed)
    if not callable(getattr(policy, "predict", None)):
        raise ValueError(  # noqa: TRY004
            f"--policy {word}: expected an object with Stable-Baselines3's predict(observation, state, episode_start, "
            f"deterministic) from it, got {type(policy).__name__}"
        )
    return policy
