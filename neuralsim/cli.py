"""cli: the command ``neuralsim``. Each subcommand is a frozen config, filled in by tyro, and one function that takes it.

This is the one module that looks across all layers. What a command needs is imported when it is called, so that ``--help`` and
a wrong word are answered at once.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
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
LISTED = 20
"""Lines of a long list that are printed."""


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
    from neuralsim.agents.demo import DemoConfig, demo

    report = demo(_parse(DemoConfig, "demo", words, "world"))
    _print(report.table())
    print(f"{report.steps} steps of dream and truth in {report.seconds:.1f} s")
    print(f"video    {report.video}\npicture  {report.picture}")


def _play(words: list[str]) -> None:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    from neuralsim.agents.teleop.player import PlayConfig, play

    play(_parse(PlayConfig, "play", words, "world"))


def _collect(words: list[str]) -> None:
    from neuralsim.agents.collection.collect import CollectConfig, collect
    from neuralsim.data.episode import EpisodeStore

    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # frames are drawn for nobody, also where there is no screen
    config = _parse(CollectConfig, "collect", words, "world")
    for remark in config.collector.remarks(config.size):
        print(remark)
    before, frames, seconds = -1, 0, 0.0
    with _progress() as bar, contextlib.closing(collect(config)) as steps:
        task = bar.add_task("episodes", total=config.episodes)
        for step in steps:
            done, wanted, seconds = step
            if before < 0:
                before, frames = done, _frames(EpisodeStore(config.folder))
                bar.reset(task, total=wanted, completed=done)  # the rate counts what is made now
            bar.update(task, completed=done)
    store = EpisodeStore(config.folder)
    made, now = len(store) - before, _frames(store) - frames
    figures = {
        "store": str(config.folder),
        "episodes": len(store),
        "frames": _frames(store),
        "collected_now": made,
        "seconds": round(seconds, 1),
        "frames_per_second": round(now / seconds, 1) if made else None,
    }
    told = f"{made} of them now, {figures['frames_per_second']} frames/s" if made else "there was nothing to add"
    print(f"{config.folder}: {figures['episodes']} episodes, {figures['frames']} frames; {told}")
    _save(config.json, figures)


def _record(words: list[str]) -> None:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    from neuralsim.agents.teleop.record import RecordConfig, record

    report = record(_parse(RecordConfig, "record", words, "real"))
    print(f"{report.store}: {report.kept} episodes kept, {report.steps_kept} steps; {report.episodes} episodes in all")


def _draw_for_nobody() -> None:
    """Many environments draw with pygame, also where there is no screen, and greet on stdout."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")


def _frames(store: Any) -> int:
    return int((store.lengths + 1).sum())


def _train(words: list[str]) -> None:
    from neuralsim.runtime.interrupt import Stopped
    from neuralsim.training.recipes import TrainConfig
    from neuralsim.training.time_estimate import estimate_time
    from neuralsim.training.trainer import Trainer

    config = _parse(TrainConfig, "train", words, "recipe")
    try:
        trainer = Trainer(config)
        print(
            f"{trainer.recipe.name} on {trainer.store.folder}: {len(trainer.store)} episodes; {estimate_time(trainer)}"
        )
        world = trainer.run()
    except Stopped as stop:
        print(stop, file=sys.stderr)
        if config.stop_after == float("inf"):
            raise KeyboardInterrupt from stop
        return
    print(f"world    {world}\nplay     neuralsim play {world}\nmeasure  neuralsim measure {world}")
    print(f"curves   tensorboard --logdir {config.folder}")


def _measure(words: list[str]) -> None:
    from neuralsim.agents.evaluation.world import MeasureConfig, measure_world

    report, files = measure_world(_parse(MeasureConfig, "measure", words, "world"))
    _tell(report, files)


def _plan(words: list[str]) -> None:
    _draw_for_nobody()
    from neuralsim.agents.planning.config import PlanConfig
    from neuralsim.agents.planning.evaluate import plan

    report, files = plan(_parse(PlanConfig, "plan", words, "world"), show=True)
    _tell(report, files)


def _rl(words: list[str]) -> None:
    _draw_for_nobody()
    from neuralsim.agents.rl.config import RLConfig
    from neuralsim.agents.rl.learning_curve import summary
    from neuralsim.agents.rl.train import train_agent
    from neuralsim.runtime.interrupt import Stopped

    try:
        curve, files = train_agent(_parse(RLConfig, "rl", words, "world"), show=True)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        raise KeyboardInterrupt from stop
    _tell(summary(curve), files)


def _evaluate(words: list[str]) -> None:
    _draw_for_nobody()
    from neuralsim.agents.evaluation.policy import EvaluateConfig, evaluate_transfer

    report, files = evaluate_transfer(_parse(EvaluateConfig, "evaluate", words, "world"), show=True)
    _tell(report, files)


def _rank(words: list[str]) -> None:
    _draw_for_nobody()
    from neuralsim.agents.evaluation.ranking import RankConfig, rank

    ranking, report, files = rank(_parse(RankConfig, "rank", words, "world"), show=True)
    _tell(report, files, ranking.tables(report))


def _compare(words: list[str]) -> None:
    from neuralsim.agents.rl.compare import CompareConfig, compare

    folders = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    runs = ["--runs", *folders] if folders else []
    comparison, report, files = compare(_parse(CompareConfig, "compare", [*runs, *words[len(folders) :]]))
    _tell(report, files, comparison.tables(report))


def _roles(words: list[str]) -> None:
    _draw_for_nobody()
    from neuralsim.agents.evaluation.roles import RolesConfig, measure_roles

    report, files = measure_roles(_parse(RolesConfig, "roles", words, "world"), show=True)
    _tell(report, files)


def _safety(words: list[str]) -> None:
    _draw_for_nobody()
    from neuralsim.agents.safety.evaluate import SafetyConfig, measure_safety

    report, files = measure_safety(_parse(SafetyConfig, "safety", words, "world"), show=True)
    _tell(report, files)


@dataclass(frozen=True)
class BenchConfig:
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
    config = _parse(BenchConfig, "bench", words, "world")
    from neuralsim.agents.bench import run_bench
    from neuralsim.data.episode import EpisodeStore
    from neuralsim.pretrained.world import open_world

    store = None if config.data is None else EpisodeStore(config.data)
    report = run_bench(open_world(config.world, config.device), config.seconds, store, show=True)
    _tell(report, [] if config.json is None else [report.save(config.json)])


def _card(words: list[str]) -> None:
    from neuralsim.pretrained.card import CardConfig, write_card

    print(f"wrote {write_card(_parse(CardConfig, 'card', words, 'world'))}")


def _import(words: list[str]) -> None:
    from neuralsim.data.episode import EpisodeStore
    from neuralsim.formats.importer import ImportConfig, Importer

    config = _parse(ImportConfig, "import", words, "source")
    importer = Importer(config)
    report = importer.report
    told = [print(remark) for remark in report.remarks]
    with _progress() as bar:
        task = bar.add_task("recordings", total=importer.recordings)
        for done in importer.run():
            bar.update(task, completed=done)
    for remark in report.remarks[len(told) :]:
        print(remark)
    store = EpisodeStore(report.store)
    for item in report.left_out[:LISTED]:
        print(f"left out: {item.where}: {item.why}")
    if len(report.left_out) > LISTED:
        print(f"left out: {len(report.left_out) - LISTED} more; store.json and --json name all")
    frames = int((store.lengths + 1).sum())
    print(f"{report.store}: {len(store)} episodes, {frames} frames; {report.now} recordings read now")
    print(f"look at it with 'neuralsim data {report.store}'")
    _save(config.json, report.figures() | {"episodes": len(store), "frames": frames})


def _export(words: list[str]) -> None:
    from neuralsim.formats.exporter import ExportConfig, export

    config = _parse(ExportConfig, "export", words, "store")
    store = config.open()
    env_id = "neuralsim/PushTReal-v0" if store.spec.name == "pusht" else None
    with _progress() as bar:
        task = bar.add_task("episodes", total=len(store))
        figures = export(config, store, env_id, lambda done: bar.update(task, completed=done))
    print(f"wrote {figures['episodes']} episodes to {figures['folder']}")
    if figures.get("psnr_db"):
        print(f"frames went through mp4: {figures['psnr_db']:.1f} dB peak signal-to-noise ratio (first episode)")
    _save(config.json, figures)


def _data(words: list[str]) -> None:
    from neuralsim.data.episode import EpisodeStore
    from neuralsim.data.inspect import DataConfig, describe_data, draw_strips, find_store

    if words[:1] == ["export"] and len(words) > 1:
        raise ValueError("'neuralsim data export STORE ID' is now 'neuralsim export STORE --to minari:ID'")
    if words[:1] == ["import"] and len(words) > 1:
        raise ValueError("'neuralsim data import ID STORE' is now 'neuralsim import minari:ID --out STORE'")
    config = _parse(DataConfig, "data", words, "store")
    store = EpisodeStore(find_store(config.store))
    facts = describe_data(store)
    if len(store):
        facts["picture"] = str(draw_strips(store, config.picture or store.folder / "strips.png"))
    width = max(len(name) for name in facts) + 2
    for name, value in facts.items():
        lines = (value or ["none"]) if isinstance(value, list) else [value]
        told = [*lines[:LISTED], *([f"and {len(lines) - LISTED} more; --json has all"] if len(lines) > LISTED else [])]
        for i, line in enumerate(told):
            print(f"{name.replace('_', ' ') if i == 0 else '':<{width}}{line}")
    _save(config.json, facts)


def _drive(words: list[str]) -> None:
    _draw_for_nobody()
    from neuralsim.agents.robot.run import CTRL_C, DriveConfig, drive

    driven = drive(_parse(DriveConfig, "drive", words, "world"), show=True)
    _tell(driven.report, driven.files)
    if driven.stopped == CTRL_C:
        raise KeyboardInterrupt
    if driven.stopped:
        raise OSError(f"the robot was stopped: {driven.stopped}")


def _robot_sim(words: list[str]) -> None:
    _draw_for_nobody()
    from neuralsim.envs.pusht.robot_server import RobotSimConfig, robot_sim

    config = _parse(RobotSimConfig, "robot-sim", words)
    robot_sim(config, lambda address: print(f"robot pusht ({config.pace}) at {address} - ctrl-C ends it", flush=True))


def _heads(words: list[str]) -> None:
    _draw_for_nobody()
    from neuralsim.agents.heads.evaluate import HeadsConfig, evaluate_heads

    report, files = evaluate_heads(_parse(HeadsConfig, "heads", words, "world"), show=True)
    _tell(report, files)


def _serve(words: list[str]) -> None:
    from neuralsim.agents.serving.serve import ServeConfig, serve

    serve(_parse(ServeConfig, "serve", words, "world"), lambda line: print(line, flush=True))


@dataclass(frozen=True)
class InfoConfig:
    """Tell about this installation, a world, or an episode store."""

    what: str | None = None
    """Name or folder of a world, or the folder of an episode store; the installation by default."""
    json: Path | None = None
    """Also write it to this file."""


def _info(words: list[str]) -> None:
    config = _parse(InfoConfig, "info", words, "what")
    from neuralsim.data.inspect import describe

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
        "episodes of the true world, or of any Gymnasium environment (--env ID)",
        _collect,
        "Whole shards are kept; the same command goes on.",
    ),
    "record": Command("record WORLD|ID", "drive a true world by the keyboard and keep the episodes", _record),
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
    "rl": Command(
        "rl [WORLD]",
        "train an agent inside a world, try it in the true one: its curve, its policy, a video",
        _rl,
        "The last checkpoint is whole; the same command with --resume goes on from it.",
    ),
    "evaluate": Command(
        "evaluate [WORLD]",
        "a policy in the true world and in imagination, from the same starts: a table, a video",
        _evaluate,
    ),
    "rank": Command(
        "rank [WORLD]", "do imagined returns order policies as the true ones do? a table, a picture, JSON", _rank
    ),
    "compare": Command(
        "compare RUNS", "runs of 'rl' by label, over seeds: learning curves, what imagination saved", _compare
    ),
    "roles": Command(
        "roles [WORLD]",
        "one checkpoint in every role: simulate, act, infer, foresee, dream, with tests of each: a table, a picture",
        _roles,
    ),
    "safety": Command(
        "safety [WORLD]",
        "does the safety monitor notice faults made on purpose, and how often does it cry wolf? a table, a picture",
        _safety,
        "Episodes and thresholds are kept; the trials begin anew.",
    ),
    "card": Command("card WORLD", "a world's card, from its training record and measured figures", _card),
    "bench": Command("bench [WORLD]", "how fast it is: a table, JSON", _bench),
    "import": Command(
        "import KIND:PLACE",
        "episodes from a dataset: minari, lerobot, robomimic, zarr, or a folder of video",
        _import,
        "Whole shards are kept; the same command goes on.",
    ),
    "export": Command("export STORE", "episodes as a LeRobotDataset or a Minari dataset", _export),
    "data": Command("data STORE", "what is in an episode store: ranges, coverage, what is odd, a picture", _data),
    "drive": Command(
        "drive [WORLD]",
        "a policy on a robot: a dry run, unless --live",
        _drive,
        "The robot rests and is let go; what was driven is kept.",
    ),
    "robot-sim": Command("robot-sim", "Push-T as a robot in a process of its own, with real-life faults", _robot_sim),
    "heads": Command(
        "heads [WORLD]",
        "policy heads side by side in the true world: success, time per decision",
        _heads,
        "Finished attempts and trained heads are kept; the same command goes on.",
    ),
    "serve": Command("serve [WORLD]", "a world's policy for robot clients: openpi's and RoboArena's protocols", _serve),
    "info": Command("info [WORLD|STORE]", "this installation, a world, or an episode store", _info),
}


# -- what they share ---------------------------------------------------------------------------------------------------


def _parse(kind: type[Config], name: str, words: Sequence[str], *subjects: str) -> Config:
    """``words`` as a ``kind``; its first words, as far as they are no options, fill in ``subjects``. Exits with 2 on others."""
    import tyro

    rest, flags = _renamed(kind, words), []
    for subject in subjects:
        if rest and not rest[0].startswith("-"):
            flags += [f"--{subject}", rest.pop(0)]
    usage = " ".join((f"neuralsim {name}", *(f"[{subject.upper()}]" for subject in subjects)))
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
    from neuralsim.runtime.progress import progress

    return progress(passing=False)


def _tell(report: Any, files: Sequence[Path], tables: Sequence[Any] | None = None) -> None:
    """What a command has measured, every row that does not reach its bar, and the files it wrote."""
    for table in [report.table()] if tables is None else tables:
        _print(table)
    for row in report.missed:
        after = "" if row.step is None else f" after {row.step} steps"
        print(f"misses its bar: {row.label}{after}: {row.value:.3g} {row.unit}".rstrip() + f" (bar {row.bar})")
    for path in files:
        print(f"wrote {path}")


def _save(path: Path | None, figures: Mapping[str, Any]) -> None:
    from neuralsim.data.episode import write_atomically

    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
