"""cli: the command ``neuralsim``. Each subcommand is a frozen config, filled in by tyro, and one function that takes it.

This is the one module that looks across all layers. What a command needs is imported when it is called, so that ``--help`` and
a wrong word are answered at once.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Config = TypeVar("Config")

WRONG, INTERRUPTED = 2, 130
"""Exit codes: what was asked for cannot be done; ctrl-C."""


@dataclass(frozen=True)
class Command:
    """One subcommand: how it is called, what it does, and what to say after ctrl-C."""

    usage: str
    about: str
    run: Callable[[list[str]], None]
    after_interrupt: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (``sys.argv`` by default); returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = COMMANDS.get(words[0]) if words else None
    try:
        if command is not None:
            command.run(words[1:])
        elif not words or words[0] in ("-h", "--help", "help"):
            print(overview())
        elif words[0] == "--version":
            from neuralsim import __version__

            print(f"neuralsim {__version__}")
        else:
            raise ValueError(f"no command {words[0]!r}{_nearest(words[0], COMMANDS)}; 'neuralsim --help' lists them")
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"\ninterrupted. {command.after_interrupt if command else ''}".rstrip(), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read us has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("NEURALSIM_DEBUG") == "1":
            raise
        # The text of an OSError begins with its number; what we raise ourselves says all in strerror.
        ours = error.strerror if isinstance(error, OSError) and error.filename is None else None
        return _complain(ours or str(error))
    return 0


def overview() -> str:
    """What ``neuralsim --help`` prints."""
    width = max(len(c.usage) for c in COMMANDS.values()) + 2
    return "\n".join(
        (
            "usage: neuralsim COMMAND [OPTIONS]",
            "",
            "A learned world you can open with gym.make, play, measure and train.",
            "",
            *(f"  {c.usage:<{width}}{c.about}" for c in COMMANDS.values()),
            "",
            "'neuralsim COMMAND --help' tells a command's options. NEURALSIM_DEBUG=1 shows the traceback of an error.",
        )
    )


# -- commands ----------------------------------------------------------------------------------------------------------


def _demo(words: list[str]) -> None:
    from neuralsim.agents.demo import Demo, demo

    report = demo(_parse(Demo, "demo", words, "world"))
    _print(report.table())
    print(f"{report.steps} steps of dream and truth in {report.seconds:.1f} s")
    print(f"video    {report.video}\npicture  {report.picture}")


def _play(words: list[str]) -> None:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    from neuralsim.agents.teleop import Play, play

    play(_parse(Play, "play", words, "world"))


def _collect(words: list[str]) -> None:
    from neuralsim.agents.collect import Collect, collect
    from neuralsim.episode import EpisodeStore

    config = _parse(Collect, "collect", words, "world")
    before, done, seconds = -1, 0, 0.0
    with _progress() as bar, contextlib.closing(collect(config)) as steps:
        task = bar.add_task("episodes", total=config.episodes)
        for step in steps:
            done, wanted, seconds = step
            if before < 0:
                before = done
                bar.reset(task, total=wanted, completed=done)  # the rate counts what is made now
            bar.update(task, completed=done)
    store, made = EpisodeStore(config.folder), done - before
    figures = {
        "store": str(config.folder),
        "episodes": len(store),
        "frames": int((store.lengths + 1).sum()),
        "collected_now": made,
        "seconds": round(seconds, 1),
        "frames_per_second": round(made * (config.steps + 1) / seconds, 1) if made else None,
    }
    now = f"{made} of them now, {figures['frames_per_second']} frames/s" if made else "there was nothing to add"
    print(f"{config.folder}: {figures['episodes']} episodes, {figures['frames']} frames; {now}")
    _save(config.json, figures)


def _train(words: list[str]) -> None:
    from neuralsim.recipe import Train
    from neuralsim.train import Stopped, train

    config = _parse(Train, "train", words, "recipe")
    try:
        world = train(config)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        if config.stop_after == float("inf"):
            raise KeyboardInterrupt from stop
        return
    print(f"world    {world}\nplay     neuralsim play {world}\nmeasure  neuralsim measure {world}")
    print(f"curves   tensorboard --logdir {config.folder}")


def _measure(words: list[str]) -> None:
    from neuralsim.agents.measurement import Measure, measure_world

    report, files = measure_world(_parse(Measure, "measure", words, "world"))
    _print(report.table())
    _tell_missed(report.missed)
    for path in files:
        print(f"wrote {path}")


def _plan(words: list[str]) -> None:
    from neuralsim.agents.plan import Planning, plan

    report, files = plan(_parse(Planning, "plan", words, "world"), show=True)
    _print(report.table())
    _tell_missed(report.missed)
    for path in files:
        print(f"wrote {path}")


@dataclass(frozen=True)
class Bench:
    """Measure how fast a world dreams on this machine."""

    world: str = "pusht"
    """Name of a shipped world, or the folder of one of your own."""
    seconds: float = 2.0
    """Time spent on each figure."""
    data: Path | None = None
    """Episode store for the window sampler's figure; a few episodes are made without one."""
    json: Path | None = None
    """Also write the figures to this file."""
    device: str = "auto"
    """Where the model runs: auto, cpu or cuda."""


def _bench(words: list[str]) -> None:
    config = _parse(Bench, "bench", words, "world")
    from neuralsim.agents.bench import run_bench
    from neuralsim.catalog import open_world
    from neuralsim.episode import EpisodeStore

    store = None if config.data is None else EpisodeStore(config.data)
    report = run_bench(open_world(config.world, config.device), config.seconds, store, show=True)
    _print(report.table())
    _tell_missed(report.missed)
    if config.json is not None:
        report.save(config.json)


def _card(words: list[str]) -> None:
    from neuralsim.card import Card, write_card

    print(f"wrote {write_card(_parse(Card, 'card', words, 'world'))}")


@dataclass(frozen=True)
class Export:
    """Write an episode store as a local Minari dataset."""

    store: Path
    """Folder of the episode store."""
    dataset: str
    """Minari's id of the dataset: (namespace/)name-v0."""
    root: Path | None = None
    """Folder of all Minari datasets; Minari's own by default."""


@dataclass(frozen=True)
class Import:
    """Copy a local Minari dataset into a new episode store."""

    dataset: str
    """Minari's id of the dataset: (namespace/)name-v0."""
    store: Path
    """Folder of the episode store to make."""
    root: Path | None = None
    """Folder of all Minari datasets; Minari's own by default."""
    name: str | None = None
    """What to call the world of a dataset that NeuralSim did not write."""


def _data(words: list[str]) -> None:
    from neuralsim.episode import EpisodeStore
    from neuralsim.interchange import read_minari, write_minari

    action = words.pop(0) if words else "--help"
    if action == "export":
        out = _parse(Export, "data export", words, "store", "dataset")
        store = EpisodeStore(out.store)
        env_id = "neuralsim/PushTReal-v0" if store.spec.name == "pusht" else None
        print(f"wrote {len(store)} episodes to {write_minari(store, out.dataset, out.root, env_id)}")
    elif action == "import":
        into = _parse(Import, "data import", words, "dataset", "store")
        store = read_minari(into.dataset, into.store, into.root, into.name)
        print(f"wrote {len(store)} episodes to {store.folder}")
    elif action in ("-h", "--help"):
        print("usage: neuralsim data export STORE DATASET [--root DIR]")
        print("       neuralsim data import DATASET STORE [--root DIR] [--name NAME]\n")
        print("Episode stores to and from local Minari datasets. Nothing is downloaded.")
    else:
        near = _nearest(action, ("export", "import"))
        raise ValueError(f"data: no action {action!r}{near}; there are 'export' and 'import'")


@dataclass(frozen=True)
class Info:
    """Tell about this installation, a world, or an episode store."""

    what: str | None = None
    """Name or folder of a world, or the folder of an episode store; the installation by default."""
    json: Path | None = None
    """Also write it to this file."""


def _info(words: list[str]) -> None:
    config = _parse(Info, "info", words, "what")
    from neuralsim.inventory import describe

    facts = describe(config.what)
    width = max(len(name) for name in facts) + 2
    for name, value in facts.items():
        said = ", ".join(map(str, value)) or "none" if isinstance(value, list) else value
        print(f"{name.replace('_', ' '):<{width}}{said}")
    _save(config.json, facts)


COMMANDS: Mapping[str, Command] = {
    "demo": Command("demo [WORLD]", "dream an episode beside the true one: a table, a video, a picture", _demo),
    "play": Command("play [WORLD]", "the keyboard: dream and truth side by side", _play),
    "collect": Command(
        "collect [WORLD]",
        "episodes of the true world, by scripted explorers",
        _collect,
        "Whole shards are kept; the same command goes on.",
    ),
    "train": Command(
        "train [RECIPE]",
        "a world from episodes",
        _train,
        "The last checkpoint is whole; the same command with --resume goes on from it.",
    ),
    "measure": Command(
        "measure [WORLD]",
        "how true the dream is: a table, curves, JSON",
        _measure,
        "Episodes collected so far are kept; the measurement begins anew.",
    ),
    "plan": Command(
        "plan [WORLD]",
        "plan in the learned world, act in the true one: success, time per decision, a video",
        _plan,
        "Finished attempts are kept; the same command goes on.",
    ),
    "card": Command("card WORLD", "a world's card, from its training record and measured figures", _card),
    "bench": Command("bench [WORLD]", "how fast it is: a table, JSON", _bench),
    "data": Command("data export|import", "episode stores to and from local Minari datasets", _data),
    "info": Command("info [WORLD|STORE]", "this installation, a world, or an episode store", _info),
}


# -- what they share ---------------------------------------------------------------------------------------------------


def _parse(kind: type[Config], name: str, words: Sequence[str], *subjects: str) -> Config:
    """``words`` as a ``kind``; its first words, as far as they are no options, fill in ``subjects``. Exits with 2 on others."""
    import tyro

    rest, flags = list(words), []
    for subject in subjects:
        if rest and not rest[0].startswith("-"):
            flags += [f"--{subject}", rest.pop(0)]
    usage = " ".join((f"neuralsim {name}", *(f"[{subject.upper()}]" for subject in subjects)))
    return tyro.cli(kind, prog=usage, args=[*flags, *rest])


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _complain(message: str) -> int:
    """One red line on stderr."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(f"neuralsim: {' '.join(message.split())}", style="red"), soft_wrap=True)
    return WRONG


def _print(table: Any) -> None:
    """A rich table as wide as the terminal, or as it needs to be where there is none."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _progress() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True))


def _tell_missed(rows: Sequence[Any]) -> None:
    """Name every ``neuralsim.report.Row`` that does not reach its bar."""
    for row in rows:
        after = "" if row.step is None else f" after {row.step} steps"
        print(f"misses its bar: {row.label}{after}: {row.value:.3g} {row.unit}".rstrip() + f" (bar {row.bar})")


def _save(path: Path | None, figures: Mapping[str, Any]) -> None:
    from neuralsim.episode import write_atomically

    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
