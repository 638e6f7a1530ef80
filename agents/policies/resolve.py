"""The one place where a word on the command line becomes a policy."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from neuralsim.agents.policies.policy import NamedPolicy, ObservationKind, Policy
from neuralsim.agents.policies.random_policies import HoldActionPolicy, NoOpPolicy, RandomPolicy
from neuralsim.envs.registry import RealWorld, find_real_world
from neuralsim.envs.tasks.real_world import load
from neuralsim.runtime.files import file_stamp
from neuralsim.runtime.imports import load_entry_point
from neuralsim.spec import WorldSpec

if TYPE_CHECKING:
    from neuralsim.agents.policies.sb3_file import LoadedPolicy
    from neuralsim.pretrained.world import World

WORDS = ("random", "noop", "explorer", "expert")
"""Policies that need no file: uniformly random actions, none, a world's scripted explorer, and its scripted expert."""
ALIASES = {"still": "noop", "explore": "explorer", "oracle": "expert"}
"""Other words for them."""
RECORDED_AS = {"explorer": "explorer", "random": "random", "expert": "oracle", "noop": "noop"}
"""The names by which episodes record them."""
DEFAULT_SIZE = 64
"""Frame side of a real world without an environment."""
HEADS = "neuralsim.agents.heads.wam_policies"


def resolve_policy(
    word: str, world: str | World | RealWorld | WorldSpec, env: gym.Env[Any, Any] | None = None, seed: int = 0
) -> NamedPolicy:
    """The policy that ``word`` names: one of WORDS or ALIASES, a head of a world action model ("head", "joint", ...), a policy on
    frames that comes with the world, the path of a Stable-Baselines3 ``.zip`` (read without unpickling), or ``module:function``.

    Args:
        word: see above.
        world: the world to act in, learned or real, or its name. Heads, and ``.zip`` files trained on features, need a learned one.
        env: the real environment to act in, one at a time. ``explorer`` and ``module:function`` are made for it, as
            ``function(env, seed)``. Without it policies act on batches of observations.
        seed: of policies that draw random numbers.

    Raises FileNotFoundError for a file that is not there, and ValueError for an unknown word, a policy that this world has
    not, or one whose observations it cannot give.
    """
    if isinstance(world, str):
        world = _world(world, env)
    spec = _spec(world, env)
    record = world if isinstance(world, RealWorld) else find_real_world(spec.name)
    name, batched = ALIASES.get(word, word), env is None
    if name == "random":
        return NamedPolicy(word, RandomPolicy(spec, seed, batched), "nothing")
    if name == "noop":
        return NamedPolicy(word, NoOpPolicy(spec, batched), "nothing")
    if name == "explorer":
        if env is None or record is None:
            return NamedPolicy(word, HoldActionPolicy(spec, seed), "nothing")
        return NamedPolicy(word, record.policies.make_explorer(env, seed), "state" if record.state_names else "env")
    if name == "expert":
        return NamedPolicy(word, _record_with_expert(word, record, spec.name).policies.make_expert(seed), "state")
    if _is_file(word):
        return _saved(Path(word), world, spec, env, seed)
    if ":" in word:
        if env is None:
            raise ValueError(f"policy {word}: function(env, seed) needs a real environment, and there is none here")
        return _from_code(word, env, seed, "env" if isinstance(world, RealWorld) else "state")
    if record is not None and (policy := record.make_frame_policies(spec).get(word)) is not None:
        return NamedPolicy(word, policy, "pixels")
    if not isinstance(world, RealWorld | WorldSpec) and word in load(f"{HEADS}:NAMES"):
        broker = load("neuralsim.agents.heads.chunk_policy:ActionChunkBroker")
        return NamedPolicy(word, broker(resolve_chunk_policy(word, world), seed=seed), "pixels")
    raise FileNotFoundError(_unknown(word, [] if record is None else list(record.make_frame_policies(spec))))


def resolve_chunk_policy(word: str, world: World) -> Any:
    """The ActionChunkPolicy that ``word`` names, as robots and policy servers run it: a head of ``world``, or ``module:function``,
    called as ``function(world)``."""
    if ":" in word:
        return load_entry_point(word, "--policy")(world)
    return load(f"{HEADS}:find_head")(word, world)


def check_policy(word: str, record: RealWorld) -> None:
    """Raise ValueError or FileNotFoundError unless ``word`` names a policy that can act in the real world ``record``."""
    name = ALIASES.get(word, word)
    if name == "expert":
        _record_with_expert(word, record, record.name)
    elif _is_file(word):
        _check_file(Path(word))
    elif ":" in word:
        load_entry_point(word, "--policy")
    elif name not in WORDS:
        raise ValueError(_unknown(word))


def policy_label(word: str) -> str:
    """The name by which episodes record the policy; a file's includes a digest of its contents."""
    if _is_file(word):
        path = Path(word)
        return f"{path.name} {_digest(path, file_stamp(path))}"
    return RECORDED_AS.get(ALIASES.get(word, word), word)


class SeededPolicy:
    """A saved policy with a random stream of its own: the same seed gives the same actions, whatever else uses torch's generator.

    Its actions become those of ``spec``.
    """

    def __init__(self, policy: LoadedPolicy, spec: WorldSpec, seed: int) -> None:
        import torch

        self.policy, self.spec = policy, spec
        self._generator = torch.Generator().manual_seed(seed).get_state()

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Return the saved policy's action under the own random stream."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._generator)
            action, state = self.policy.predict(observation, state, episode_start, deterministic)
            self._generator = torch.get_rng_state()
        return self.spec.from_space(action), state


class OwnActionPolicy:
    """A policy on the observations and actions of the Gymnasium environment inside ``env``; its actions become those of the spec."""

    def __init__(self, policy: Policy, env: Any) -> None:
        self.policy, self.env = policy, env

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Return the policy's action, translated."""
        own, state = self.policy.predict(observation, state, episode_start, deterministic)
        return self.env.actions.from_own(own, self.env.spec_world), state


def _spec(world: World | RealWorld | WorldSpec, env: gym.Env[Any, Any] | None) -> WorldSpec:
    if isinstance(world, WorldSpec):
        return world
    if not isinstance(world, RealWorld):
        return world.spec
    if env is None:
        return world.make_spec(DEFAULT_SIZE)
    spec: WorldSpec = env.get_wrapper_attr("spec_world")
    return spec


def _world(name: str, env: gym.Env[Any, Any] | None) -> World | RealWorld:
    """The real world of that name for a policy in ``env``, else the learned one."""
    from neuralsim.pretrained.world import open_world

    record = None if env is None else find_real_world(name)
    return open_world(name) if record is None else record


def _record_with_expert(word: str, record: RealWorld | None, name: str) -> RealWorld:
    if record is None or record.policies.expert is None:
        raise ValueError(f"--policy {word}: world {name!r} has no expert; there is --policy explorer")
    return record


def _unknown(word: str, own: Sequence[str] = ()) -> str:
    near = difflib.get_close_matches(word, [*WORDS, *ALIASES, *own, *load(f"{HEADS}:NAMES")], 1, 0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return (
        f"--policy {word!r}: no such file, and no policy of that name; expected {', '.join([*WORDS, *own])}, a head of a world "
        f"action model, the path of a Stable-Baselines3 .zip, or module:function{hint}"
    )


def _is_file(word: str) -> bool:
    return word.endswith(".zip") or (word not in WORDS and word not in ALIASES and Path(word).is_file())


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"--policy {path}: no such file; expected one that SB3's model.save() wrote")


def _saved(path: Path, world: Any, spec: WorldSpec, env: Any, seed: int) -> NamedPolicy:
    """A saved policy, by its observations: the inner environment's own where these fit, else NeuralSim's frames, features, states."""
    from neuralsim.agents.policies.sb3_file import read_note

    _check_file(path)
    inner = env.env if hasattr(env, "own_observation") else None
    if inner is not None and not read_note(path).world:
        with contextlib.suppress(ValueError):  # trained for other actions: perhaps for those of the spec
            policy = _load(path, inner.action_space)
            if _fits(policy.observation_space.shape, inner.observation_space.shape):
                return NamedPolicy(path.stem, OwnActionPolicy(SeededPolicy(policy, spec, seed), env), "own")
    policy = _load(path, spec.action_space() if spec.discrete else None, spec.action_size)
    shape, features = policy.observation_space.shape, getattr(getattr(world, "model", None), "feature_size", None)
    kind: ObservationKind
    if _fits(shape, spec.frame_shape):
        kind = "pixels"
    elif shape == (features,):
        kind = "features"
    elif env is not None and shape == env.observation_space.shape:
        kind = "env" if isinstance(world, RealWorld) else "state"
    else:
        shown = "" if env is None else f", and its environment shows {(inner or env).observation_space}"
        known = "" if features is None else f"features ({features},) and "
        model = "" if features is None else "; say with --model which world it was trained with"
        raise ValueError(
            f"--policy {path}: this policy acts on observations of shape {shape}; {spec.name} has {known}frames "
            f"{spec.frame_shape}{shown}{model}"
        )
    return NamedPolicy(path.stem, policy if env is None else SeededPolicy(policy, spec, seed), kind)


def _fits(shape: tuple[int, ...], shown: tuple[int, ...] | None) -> bool:
    """Compare shapes; images may have their channels first."""
    return shown is not None and shape in (tuple(shown), (*shown[-1:], *shown[:-1]))


@cache
def _digest(path: Path, stamp: tuple[int, int, int]) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


_loaded: dict[tuple[Path, tuple[int, int, int], str], LoadedPolicy] = {}
"""Policies by path, state of the file and action space: a worker's thousand episodes read the file once."""


def _load(path: Path, action_space: gym.spaces.Space[Any] | None, action_size: int = 2) -> LoadedPolicy:
    from neuralsim.agents.policies.sb3_file import load_policy

    key = (path, file_stamp(path), f"{action_space!r} {action_size}")
    if key not in _loaded:
        _loaded[key] = load_policy(path, action_size, action_space)
    return _loaded[key]


def _from_code(word: str, env: Any, seed: int, observation: ObservationKind) -> NamedPolicy:
    adapted = hasattr(env, "own_observation")
    policy: Any = load_entry_point(word, "--policy")(env.env if adapted else env, seed)
    if not callable(getattr(policy, "predict", None)):
        raise ValueError(  # noqa: TRY004
            f"--policy {word}: expected an object with Stable-Baselines3's predict(observation, state, episode_start, "
            f"deterministic) from it, got {type(policy).__name__}"
        )
    return NamedPolicy(word, OwnActionPolicy(policy, env), "own") if adapted else NamedPolicy(word, policy, observation)
