"""A policy to be evaluated, with the learned world in which it is imagined and whose features it observes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuralsim.agents.policies.policy import ObservationKind, Policy
from neuralsim.agents.policies.random_policies import HoldActionPolicy
from neuralsim.agents.policies.resolve import ALIASES, resolve_policy
from neuralsim.agents.policies.sb3_file import PolicyNote, read_note
from neuralsim.envs.tasks.rl_task import learned_name, world_name
from neuralsim.pretrained.world import World, open_world


@dataclass(frozen=True, eq=False)
class CandidatePolicy:
    """A policy to be evaluated: ``name`` for tables, the learned ``world``, the ``observation`` it acts on (features or pixels), and
    ``make``, which gives it without memory of other episodes."""

    name: str
    world: World
    observation: ObservationKind
    make: Callable[[], Policy]


def find_candidate(
    source: str, world: str, model: str | World | None = None, name: str = "", seed: int = 0, device: str = "auto"
) -> CandidatePolicy:
    """Open the policy ``source`` for evaluation.

    Args:
        source: a word that ``resolve_policy`` knows without an environment, or the path of a policy's ``.zip``.
        world: the real world's name, or a learned one's name or folder.
        model: the learned world; by default ``world`` if it is one, else the one that the policy was trained with, else what
            ships for the real world's name.
        name: for tables; by default the word, or the file's name.
        seed: of policies that draw random numbers.
        device: where the learned world runs.

    Raises FileNotFoundError for what is not there, and ValueError for a policy of another world, or of observations that
    ``model`` does not give.
    """
    note = note_of(source)
    real = world_name(world, device)
    if note.world and note.world != real:
        raise ValueError(f"{source}: this policy was trained in {note.world!r}; asked to evaluate it in {real!r}")
    try:
        opened = open_world(model or model_name(world, note), device)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{source}: {error}; say with --model which world it was trained with") from error
    if opened.spec.name != real:
        raise ValueError(f"--model: {opened.folder or model} is a world of {opened.spec.name!r}, asked for {real!r}")
    found = resolve_policy(source, opened, seed=seed)
    if found.observation == "state" or isinstance(found.policy, HoldActionPolicy):
        raise ValueError(
            f"--policy {source}: acts in one real environment at a time; 'neuralsim collect' has such policies"
        )
    observation = "features" if found.observation == "nothing" else found.observation
    return CandidatePolicy(
        name or found.name, opened, observation, lambda: resolve_policy(source, opened, seed=seed).policy
    )


def model_name(world: str, note: PolicyNote) -> str:
    """The learned world for a policy with that ``note``, where --model is not given; see ``find_candidate``."""
    own = learned_name(world)
    return own if own == world else note.model or own


def note_of(source: str) -> PolicyNote:
    """The note inside the policy file ``source``; an empty one where ``source`` is no file's path."""
    if not source.endswith(".zip"):
        return PolicyNote()
    if not Path(source).is_file():
        raise FileNotFoundError(
            f"policy {source!r}: no such file; expected a .zip that 'neuralsim rl' or SB3's save() wrote, or a word such as "
            f"random or {next(iter(ALIASES))}"
        )
    return read_note(Path(source))


def short_names(sources: Sequence[str]) -> list[str]:
    """Distinct names for ``sources``, no two of them equal: words as they are, paths without the folders that all have."""
    words = {s for s in sources if not s.endswith(".zip")}
    paths = {s: Path(s).with_suffix("").parts for s in sources if s not in words}
    shared = set[str]().union(*paths.values()).intersection(*paths.values()) if len(paths) > 1 else set()
    names = {s: "/".join(part for part in parts if part not in shared) for s, parts in paths.items()}
    reserved = {*words, "random", "still", ""}
    if len({*names.values(), *reserved}) < len(paths) + len(reserved):
        names = {s: s for s in paths}
    return [names.get(s, s) for s in sources]
