"""The command ``neuralsim``: a table of subcommands, each a frozen config filled in by tyro and a function that takes it.

The table names both by entry-point strings, which are imported when the command is called: ``--help`` and a wrong word are
answered at once, and this module imports no layer above its own.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuralsim.runtime.command import CommandOutput

WRONG, INTERRUPTED = 2, 130
"""Exit codes: a request that cannot be fulfilled; ctrl-C."""
LISTED = 20
"""Lines of a long list that are printed."""
HEADINGS = ("everyday", "data", "worlds", "agents", "robots")
"""Groups of commands, in the order of ``neuralsim --help``."""


@dataclass(frozen=True)
class Command:
    """One subcommand of the table."""

    heading: str
    config: str
    """``module:Class`` of its options."""
    function: str
    """``module:function`` that takes them; see `_call` for its other parameters, `_output` for its results."""
    about: str
    subject: str = ""
    """Option that the first word fills in, ``name...`` for all words up to the first option."""
    shown: str = ""
    """The subject in the overview; its name in capitals, in brackets where it has a default, if nothing else is said."""
    after_interrupt: str = ""
    """Line that ctrl-C prints."""
    screen: bool = False
    """Opens a window; the others draw into memory, also where there is no screen."""

    def usage(self, name: str) -> str:
        """Name and subject, as in ``play [WORLD]``."""
        return f"{name} {self.shown or (self.subject and f'[{self.subject.upper()}]')}".rstrip()


COMMANDS: Mapping[str, Command] = {
    "demo": Command(
        "everyday",
        "neuralsim.agents.demo:DemoConfig",
        "neuralsim.agents.demo:demo_command",
        "an imagined episode beside the real one: a table, a video, a picture",
        "world",
    ),
    "play": Command(
        "everyday",
        "neuralsim.agents.teleop.config:PlayConfig",
        "neuralsim.agents.web.play:play_command",
        "the keyboard: dream and real environment side by side; --web: in a browser",
        "world",
        screen=True,
    ),
    "plan": Command(
        "everyday",
        "neuralsim.agents.planning.config:PlanConfig",
        "neuralsim.agents.planning.evaluate:plan",
        "plan in the learned world, act in the real one: success, time per decision, a video",
        "world",
        after_interrupt="Finished trials are kept; the same command goes on.",
    ),
    "info": Command(
        "everyday",
        "neuralsim.info:InfoConfig",
        "neuralsim.info:info_command",
        "this installation, a world, or an episode store",
        "what",
        shown="[WORLD|STORE]",
    ),
    "bench": Command(
        "everyday",
        "neuralsim.agents.bench:BenchConfig",
        "neuralsim.agents.bench:bench_command",
        "speed of a world on this machine: a table, JSON",
        "world",
    ),
    "collect": Command(
        "data",
        "neuralsim.agents.collection.collect:CollectConfig",
        "neuralsim.agents.collection.collect:collect_command",
        "episodes of a real environment, or of any Gymnasium environment (--env ID)",
        "world",
        after_interrupt="Finished episodes are kept; the same command goes on.",
    ),
    "record": Command(
        "data",
        "neuralsim.agents.teleop.record:RecordConfig",
        "neuralsim.agents.teleop.record:record",
        "drive a real environment by the keyboard and keep the episodes",
        "real",
        shown="WORLD|ID",
        screen=True,
    ),
    "import": Command(
        "data",
        "neuralsim.formats.importer:ImportConfig",
        "neuralsim.formats.importer:import_command",
        "episodes from a dataset: minari, lerobot, robomimic, zarr, or a folder of video",
        "source",
        shown="KIND:PLACE",
        after_interrupt="Finished episodes are kept; the same command goes on.",
    ),
    "export": Command(
        "data",
        "neuralsim.formats.exporter:ExportConfig",
        "neuralsim.formats.exporter:export_command",
        "episodes as a LeRobotDataset or a Minari dataset",
        "store",
        shown="STORE",
    ),
    "data": Command(
        "data",
        "neuralsim.data.inspect:DataConfig",
        "neuralsim.data.inspect:data_command",
        "contents of an episode store: ranges, coverage, oddities, a picture",
        "store",
        shown="STORE",
    ),
    "train": Command(
        "worlds",
        "neuralsim.training.config:TrainConfig",
        "neuralsim.training.train_command:train_command",
        "a world from episodes",
        "recipe",
        after_interrupt="The last checkpoint is whole; the same command with --resume goes on from it.",
    ),
    "measure": Command(
        "worlds",
        "neuralsim.agents.evaluation.world:MeasureConfig",
        "neuralsim.agents.evaluation.world:measure_world",
        "accuracy of a world: a table, curves, JSON",
        "world",
        after_interrupt="Episodes collected so far are kept; the measurement begins again.",
    ),
    "roles": Command(
        "worlds",
        "neuralsim.agents.evaluation.roles:RolesConfig",
        "neuralsim.agents.evaluation.roles:measure_roles",
        "one checkpoint in every role: simulate, act, infer, foresee, dream, with tests of each: a table, a picture",
        "world",
    ),
    "card": Command(
        "worlds",
        "neuralsim.pretrained.card:CardConfig",
        "neuralsim.pretrained.card:card_command",
        "a world's card, from its training record and measured figures",
        "world",
        shown="WORLD",
    ),
    "rl": Command(
        "agents",
        "neuralsim.agents.rl.config:RLConfig",
        "neuralsim.agents.rl.train:rl_command",
        "train an agent inside a world, try it in the real one: its curve, its policy, a video",
        "world",
        after_interrupt="The last checkpoint is whole; the same command with --resume goes on from it.",
    ),
    "evaluate": Command(
        "agents",
        "neuralsim.agents.evaluation.policy:EvaluateConfig",
        "neuralsim.agents.evaluation.policy:evaluate_transfer",
        "a policy in the real environment and in imagination, from the same starts: a table, a video",
        "world",
    ),
    "heads": Command(
        "agents",
        "neuralsim.agents.heads.evaluate:HeadsConfig",
        "neuralsim.agents.heads.evaluate:evaluate_heads",
        "policy heads side by side in the real environment: success, time per decision",
        "world",
        after_interrupt="Finished trials and trained heads are kept; the same command goes on.",
    ),
    "rank": Command(
        "agents",
        "neuralsim.agents.evaluation.ranking:RankConfig",
        "neuralsim.agents.evaluation.ranking:rank",
        "do imagined returns order policies as the real ones do? a table, a picture, JSON",
        "world",
    ),
    "compare": Command(
        "agents",
        "neuralsim.agents.rl.compare:CompareConfig",
        "neuralsim.agents.rl.compare:compare",
        "runs of 'rl' by label, over seeds: learning curves, what imagination saved",
        "runs...",
        shown="RUNS",
    ),
    "drive": Command(
        "robots",
        "neuralsim.agents.robot.run:DriveConfig",
        "neuralsim.agents.robot.run:drive_command",
        "a policy on a robot: a dry run, unless --live",
        "world",
        after_interrupt="The robot rests and is let go; what was driven is kept.",
    ),
    "robot-sim": Command(
        "robots",
        "neuralsim.envs.pusht.robot_server:RobotSimConfig",
        "neuralsim.envs.pusht.robot_server:robot_sim_command",
        "Push-T as a robot in a process of its own, with real-life faults",
    ),
    "serve": Command(
        "robots",
        "neuralsim.agents.serving.serve:ServeConfig",
        "neuralsim.agents.serving.serve:serve",
        "a world's policy for robot clients: openpi's and RoboArena's protocols",
        "world",
    ),
    "safety": Command(
        "robots",
        "neuralsim.agents.safety.evaluate:SafetyConfig",
        "neuralsim.agents.safety.evaluate:measure_safety",
        "does the safety monitor detect injected faults, and how often does it raise false alarms? a table, a picture",
        "world",
        after_interrupt="Episodes and thresholds are kept; the trials begin again.",
    ),
}
OLD_COMMANDS: Mapping[tuple[str, str], str] = {
    ("data", "export"): "'neuralsim data export STORE ID' is now 'neuralsim export STORE --to minari:ID'",
    ("data", "import"): "'neuralsim data import ID STORE' is now 'neuralsim import minari:ID --out STORE'",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (``sys.argv`` by default) and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = COMMANDS.get(words[0]) if words else None
    try:
        if command is not None:
            _run(command, words[0], words[1:])
        elif not words or words[0] in ("-h", "--help", "help"):
            print(overview())
        elif words[0] == "--version":
            from neuralsim.version import __version__

            print(f"neuralsim {__version__}")
        else:
            raise ValueError(f"no command {words[0]!r}{_nearest(words[0], COMMANDS)}; 'neuralsim --help' lists them")
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"\ninterrupted. {command.after_interrupt if command else ''}".rstrip(), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, FloatingPointError, ImportError, NotImplementedError) as error:
        message = _message(error)
        if message is None or os.environ.get("NEURALSIM_DEBUG") == "1":
            raise
        return _complain(message)
    return 0


def overview() -> str:
    """Return the text of ``neuralsim --help``: every command in a line, under its heading."""
    width = max(len(c.usage(name)) for name, c in COMMANDS.items()) + 2
    lines = [
        "usage: neuralsim COMMAND [OPTIONS]",
        "",
        "A learned world you can open with gym.make, play, measure and train.",
    ]
    for heading in HEADINGS:
        lines += ["", heading]
        lines += [f"  {c.usage(name):<{width}}{c.about}" for name, c in COMMANDS.items() if c.heading == heading]
    lines += [
        "",
        "'neuralsim COMMAND --help' lists a command's options. NEURALSIM_DEBUG=1 shows the traceback of an error.",
    ]
    return "\n".join(lines)


def _run(command: Command, name: str, words: Sequence[str]) -> None:
    """Parse ``words``, call the command's function with them, and print what it returns."""
    from neuralsim.runtime.interrupt import Stopped

    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # pygame's greeting goes to stdout
    if not command.screen:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    moved = OLD_COMMANDS.get((name, words[0])) if len(words) > 1 else None
    if moved is not None:
        raise ValueError(moved)
    config = _parse(command, name, words)
    try:
        _present(_call(_load(command.function), config))
    except Stopped as stop:
        print(stop, file=sys.stderr)
        raise KeyboardInterrupt from stop


def _load(entry_point: str) -> Any:
    module, _, name = entry_point.partition(":")
    return getattr(importlib.import_module(module), name)


def _call(function: Callable[..., Any], config: Any) -> Any:
    """Call ``function(config)``; one with a parameter ``show`` shows progress, one with ``say`` gets a printer of lines."""
    offered = {"show": True, "say": lambda line: print(line, flush=True)}
    wanted = inspect.signature(function).parameters
    return function(config, **{name: value for name, value in offered.items() if name in wanted})


def _output(result: Any) -> CommandOutput:
    """Convert a function's result: a CommandOutput, an object with ``output()``, or a report, its files and a maker of tables.

    Anything else, such as the figures of a server, prints nothing.
    """
    if isinstance(result, CommandOutput):
        return result
    if hasattr(result, "output"):
        return result.output()
    if isinstance(result, tuple):
        *makers, report, files = result
        tables = makers[0].tables(report) if makers else [report.table()]
        return CommandOutput(tables, missed=report.missed, files=files)
    return CommandOutput()


def _present(result: Any) -> None:
    """Print a command's result, write its figures, and raise its reason to stop."""
    output = _output(result)
    for table in output.tables:
        _print(table)
    for line in output.lines:
        print(line)
    width = max((len(name) for name in output.facts), default=0) + 2
    for name, value in output.facts.items():
        for i, line in enumerate(_fact_lines(value)):
            print(f"{name.replace('_', ' ') if i == 0 else '':<{width}}{line}")
    for metric in output.missed:
        after = "" if metric.step is None else f" after {metric.step} steps"
        text = f"misses its target: {metric.label}{after}: {metric.value:.3g} {metric.unit}".rstrip()
        print(f"{text} (target {metric.target})")
    for path in output.files:
        print(f"wrote {path}")
    if output.json is not None:
        from neuralsim.runtime.files import write_atomically

        output.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output.json, json.dumps(output.figures, indent=1) + "\n")
    if output.stop is not None:
        raise output.stop


def _fact_lines(value: Any) -> list[Any]:
    if not isinstance(value, list):
        return [value]
    more = [f"and {len(value) - LISTED} more; --json has all"] if len(value) > LISTED else []
    return [*value[:LISTED], *more] or ["none"]


def _parse(command: Command, name: str, words: Sequence[str]) -> Any:
    """Parse ``words`` into the command's config; the first of them fill in its subject. Exits with 2 on others."""
    import tyro

    kind = _load(command.config)
    rest, flags = _renamed(kind, words), []
    if command.subject.endswith("..."):
        first = list(itertools.takewhile(lambda word: not word.startswith("-"), rest))
        flags, rest = ([f"--{command.subject[:-3]}", *first] if first else []), rest[len(first) :]
    elif command.subject and rest and not rest[0].startswith("-"):
        flags = [f"--{command.subject}", rest.pop(0)]
    usage = f"neuralsim {name}" + (f" [{command.subject.removesuffix('...').upper()}]" if command.subject else "")
    return tyro.cli(kind, prog=usage, args=[*flags, *rest])


def _renamed(kind: type[Any], words: Sequence[str]) -> list[str]:
    """Replace the flags that ``kind.OLD_FLAGS`` maps to a new name, with one line on stderr for each."""
    old: Mapping[str, str] = getattr(kind, "OLD_FLAGS", {})
    new = []
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in old:
            print(f"neuralsim: {flag} is now {old[flag]}; the old name goes in the next version", file=sys.stderr)
        new.append(old.get(flag, flag) + equals + value)
    return new


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _message(error: BaseException) -> str | None:
    """Return an error's text as a line for the user; None for an error of ours, which keeps its traceback."""
    if isinstance(error, ImportError | NotImplementedError):
        from neuralsim.runtime.system_libraries import explain_missing_library

        return explain_missing_library(error)
    # The text of an OSError begins with its number; our own errors say all in strerror.
    own = error.strerror if isinstance(error, OSError) and error.filename is None else None
    return own or str(error)


def _complain(message: str) -> int:
    """Print one red line on stderr and return the exit code."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(f"neuralsim: {' '.join(message.split())}", style="red"), soft_wrap=True)
    return WRONG


def _print(table: Any) -> None:
    """Print a rich table as wide as the terminal, or as it needs to be where there is none."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    sys.exit(main())
