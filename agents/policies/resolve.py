"""Contender: somebody to be tried in a world, a policy's file or one of a few words, with what it looks at and the learned
world in which it is imagined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuralsim.agents.evaluation.eval_envs import Observation
from neuralsim.agents.evaluation.rollout import RandomPolicy
from neuralsim.agents.policies.policy import Policy
from neuralsim.agents.policies.sb3_file import LoadedPolicy, PolicyNote, load_policy, read_note
from neuralsim.envs.tasks.rl_task import learned_name, world_name
from neuralsim.pretrained.world import World, open_world
from neuralsim.spec import WorldSpec

WORDS = ("random", "still")
"""Contenders that need no file: uniform actions, and none at all."""


@dataclass(frozen=True, eq=False)
class CandidatePolicy:
    """name: for tables. world: the learned one, where it is imagined. sees: that world's features, or frames. make: a policy
    that remembers nothing of other trials."""

    name: str
    world: World
    sees: Observation
    make: Callable[[], Policy]


class NoOpPolicy:
    """Does nothing, as far as ``spec``'s world lets it: ``(n, a)``."""

    def __init__(self, spec: WorldSpec) -> None:
        self.spec = spec

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """See Stable-Baselines3's predict."""
        return np.tile(self.spec.rest_action(), (len(observation), 1)), None


def resolve_policy(
    source: str, world: str, model: str | World | None = None, name: str = "", seed: int = 0, device: str = "auto"
) -> CandidatePolicy:
    """``source``: one of WORDS, or the path of a policy's ``.zip``; ``world``: the true world's name, or a learned one's name or
    folder; ``model``: the learned one, by default that, or the one that the policy was trained with, or what ships for the
    true world's name; ``seed``: of those who act by chance.

    Raises FileNotFoundError for what is not there, and ValueError for a policy of another world, or of observations that
    ``model`` does not give.
    """
    note = note_of(source)
    true = world_name(world, device)
    if note.world and note.world != true:
        raise ValueError(f"{source}: this policy was trained in {note.world!r}; asked to try it in {true!r}")
    try:
        opened = open_world(model or model_name(world, note), device)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{source}: {error}; say with --model which world it was trained with") from error
    if opened.spec.name != true:
        raise ValueError(f"--model: {opened.folder or model} is a world of {opened.spec.name!r}, asked for {true!r}")
    spec = opened.spec
    if source == "random":
        return CandidatePolicy(name or source, opened, "features", lambda: RandomPolicy(spec, seed))
    if source == "still":
        return CandidatePolicy(name or source, opened, "features", lambda: NoOpPolicy(spec))
    policy = load_policy(source, spec.action_size, spec.action_space() if spec.discrete else None)
    return CandidatePolicy(name or Path(source).stem, opened, _sees(policy, opened), lambda: policy)


def model_name(world: str, note: PolicyNote) -> str:
    """The learned world in which a policy with that ``note`` is tried where nobody says which: ``world`` itself if it is one, else
    the one that the policy was trained with, else what ships for the name."""
    own = learned_name(world)
    return own if own == world else note.model or own


def note_of(source: str) -> PolicyNote:
    """What the file ``source`` says of itself; nothing for one of WORDS."""
    if source in WORDS:
        return PolicyNote()
    if not Path(source).is_file():
        raise FileNotFoundError(
            f"policy {source!r}: no such file; expected a .zip that 'neuralsim rl' or SB3's save() wrote, or {' or '.join(WORDS)}"
        )
    return read_note(Path(source))


def short_names(sources: Sequence[str]) -> list[str]:
    """What tells ``sources``, no two of them equal, apart: words as they are, paths without the folders that all have."""
    paths = {s: Path(s).with_suffix("").parts for s in sources if s not in WORDS}
    shared = set[str]().union(*paths.values()).intersection(*paths.values()) if len(paths) > 1 else set()
    names = {s: "/".join(part for part in parts if part not in shared) for s, parts in paths.items()}
    if len({*names.values(), *WORDS, ""}) < len(paths) + len(WORDS) + 1:
        names = {s: s for s in paths}
    return [names.get(s, s) for s in sources]


def _sees(policy: LoadedPolicy, world: World) -> Observation:
    """What ``policy`` looks at, by the shape of its observations."""
    shape, frame, features = (
        tuple(policy.observation_space.shape or ()),
        world.spec.frame_shape,
        world.model.feature_size,
    )
    if shape in (frame, (frame[2], *frame[:2])):
        return "pixels"
    if shape == (features,):
        return "features"
    raise ValueError(
        f"{policy.path}: this policy looks at observations of shape {shape}; {world.folder or world.spec.name} has features "
        f"({features},) and frames {frame}; say with --model which world it was trained with"
    )
