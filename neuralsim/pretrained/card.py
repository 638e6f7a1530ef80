"""The card of a trained world, README.md in its folder: how it was trained, and its measured accuracy.

A world that was just trained has a card without figures; ``neuralsim card`` adds them.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuralsim.runtime.command import CommandOutput
from neuralsim.runtime.files import write_atomically
from neuralsim.runtime.json_files import read_object
from neuralsim.storage.manifest import CARD, TRAINING, seal


@dataclass(frozen=True)
class CardConfig:
    """Write a world's card from its training record and its measured figures."""

    world: Path
    """Folder of the world; holds training.json as 'neuralsim train' left it. README.md is written there."""
    measured: Path = Path("runs/measure/measure.json")
    """Figures from 'neuralsim measure --json'."""
    benched: Path | None = None
    """Figures from 'neuralsim bench --json'; none by default."""
    note: str = ""
    """A sentence for readers of the figures."""


def write_card(config: CardConfig) -> Path:
    """Write ``README.md`` into the world's folder and update its manifest.

    Raises FileNotFoundError where a record is missing, and ValueError where one is damaged.
    """
    return _write(config.world, [p for p in (config.measured, config.benched) if p is not None], config.note)


def finish(world: Path) -> Path:
    """Add a card without figures and the manifest to a folder that training has written. Call it last."""
    return _write(
        world, [], "Not measured yet: `neuralsim measure` and then `neuralsim card`, on this folder, add figures."
    )


def _write(world: Path, figures: list[Path], note: str) -> Path:
    if not (world / TRAINING).is_file():
        raise FileNotFoundError(f"{world}: no world as 'neuralsim train' leaves one ({TRAINING} is missing)")
    keys = ("recipe", "episodes", "training_frames", "collection_seeds", "seed", "hours", "precision")
    training = _record(world / TRAINING, keys)
    reports = [_record(path, ("title", "circumstances", "rows")) for path in figures]
    try:
        text = card(training, reports, note)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{world}: its records make no card ({type(error).__name__}: {error})") from error
    write_atomically(world / CARD, text)
    seal(world)
    return world / CARD


def _record(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Read a JSON object that has ``keys``."""
    body = read_object(path)
    if missing := [key for key in keys if key not in body]:
        raise ValueError(f"{path}: lacks {', '.join(missing)}; write it again with the command that makes such files")
    return body


def card(training: dict[str, Any], reports: list[dict[str, Any]], note: str = "") -> str:
    """Format the card as Markdown."""
    recipe = training["recipe"]
    facts = {
        "recipe": recipe["name"],
        "commit": training.get("commit", "unknown"),
        "data": f"{training['episodes']} episodes, {training['training_frames']} training frames, "
        f"collection seeds {training['collection_seeds']}; one episode in twenty held out",
        "steps": ", ".join(
            f"{k.removesuffix('_stage')} {v['steps']}" for k, v in recipe.items() if k.endswith("_stage")
        ),
        "seed": training["seed"],
        "time": f"{training['hours']} hours",
        "hardware": training.get("hardware", "unknown"),
        "precision": training["precision"],
    }
    run = training
    while run.get("before"):
        earlier = run["before"]
        what = ", ".join(run["stages"])
        facts[f"{what} again" if run is training else f"and {what} before that"] = (
            f"on weights of commit {earlier.get('commit', 'unknown')}, learned from {earlier['episodes']} episodes"
        )
        run = earlier
    lines = [f"# {recipe['name']}", "", "A world trained by NeuralSim; `neuralsim.open_world` opens this folder.", ""]
    lines += ["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in facts.items()), ""]
    if note:
        lines += [note, ""]
    for report in reports:
        where = ", ".join(f"{k} {v}" for k, v in report["circumstances"].items() if isinstance(v, str | int | float))
        lines += [f"## {report['title']}", "", where, "", *table(report["rows"]), ""]
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Format the rows of a report as a Markdown table."""
    head = ["", "step", "value", "95 %", "copy last", "floor", "n", "bar"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for r in rows:
        bounds = "" if r["low"] is None or r["high"] is None else f"{number(r['low'])} to {number(r['high'])}"
        bar = r["bar"] or {}
        sides = [f"{sign} {number(bar[k])}" for k, sign in (("least", "≥"), ("most", "≤")) if bar.get(k) is not None]
        sides += ["beats copy last"] if bar.get("beats") else []
        met = "" if r["passed"] is None else (" met" if r["passed"] else " missed")
        cells = [r["label"], r["step"], f"{number(r['value'])} {r['unit']}".strip(), bounds]
        cells += [number(r["baseline"]), number(r["floor"]), r["n"], " and ".join(sides) + met]
        lines.append("| " + " | ".join("" if c is None else str(c) for c in cells) + " |")
    return lines


def number(value: float | None) -> str:
    """Format three digits; None as an empty text."""
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def source_commit() -> str:
    """Return the commit of this checkout, marked where files differ from it; "unknown" outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        short = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return short.stdout.strip()


def card_command(config: CardConfig) -> CommandOutput:
    """Write a world's card and name its file."""
    return CommandOutput(files=[write_card(config)])
