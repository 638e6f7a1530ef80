"""The pages in docs/: their Python runs as it stands, from the first block to the last; commands, options and links exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from neuralsim import cli
from neuralsim.pretrained.world import open_world

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = {page.name: page.read_text() for page in PAGES}


def blocks(name: str, language: str) -> list[str]:
    """The blocks of ``language`` on a page, as they stand."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[name], re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """Each ``neuralsim ...`` line of shell on any page."""
    lines = [
        (name, line.split("#")[0].strip()) for name in TEXTS for b in blocks(name, "bash") for line in b.splitlines()
    ]
    return [(name, line) for name, line in lines if line.startswith("neuralsim ")]


def run_page(name: str) -> dict[str, Any]:
    """All of a page's Python in one namespace, as a reader types it; what is there at the end."""
    names: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(blocks(name, "python")):
        exec(compile(block, f"docs/{name}, block {number}", "exec"), names)
    return names


def test_your_own_model_runs_from_the_first_block_to_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("neuralsim.pretrained.world._REGISTERED", {})
    page = run_page("your-own-model.md")
    monkeypatch.delitem(gym.registry, "me/IceRink-v0")
    assert sorted(p.name for p in (tmp_path / "runs" / "rink").iterdir()) == [
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "starts.npz",
        "world.json",
    ]
    assert open_world("runs/rink", "cpu").spec == page["spec"]
    assert page["features"].shape == (16, 4)
    # What the page does must also be worth doing: a planner comes to the middle sooner than a puck that lies still, whose 60
    # steps cost it some 0.6 each.
    assert page["played"].human_steps >= 25
    assert page["planned"] > -10
    assert np.isfinite(page["learned"])
    cli.main(["info", "runs/rink"])


def test_the_model_of_the_page_has_no_more_lines_than_it_says() -> None:
    model = blocks("your-own-model.md", "python")[0]
    assert len([line for line in model.splitlines() if line.strip()]) <= 60


def test_your_own_world_is_collected_learned_and_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own commands, with less of everything that takes time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    less = {
        "collect": "--episodes 6 --steps 24 --size 32 --workers 1",
        "train": "--effort 0.01 --threads 1",
        "measure": "--rollouts 4 --denoise 1 --horizons 1 5 10",
        "bench": "--seconds 0.05",
        "rl": "--steps 512 --n-envs 16 --n-eval-episodes 2 --n-evals 1 --no-video",
        "play": "--headless --benchmark 1",
    }
    page = [line for name, line in commands() if name == "your-own-world.md" and "mydata" not in line]
    assert {line.split()[1] for line in page} >= {
        "collect",
        "data",
        "train",
        "measure",
        "play",
        "rl",
        "bench",
        "export",
    }
    for line in page:
        words = shlex.split(line)[1:]
        extra = less.get(words[0], "--root minari" if "minari:" in line else "").split()
        assert cli.main([*words, *extra]) == 0, line
        if words[0] == "train":
            names = run_page("your-own-world.md")
            monkeypatch.delitem(gym.registry, "me/Pendulum-v0")
            assert names["frame"].shape == (32, 32, 3)
            assert names["features"].shape[0] == 32


def test_commands_exist_and_know_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    for name, line in commands():
        _, command, *rest = shlex.split(line)
        assert command in cli.COMMANDS, f"docs/{name}: {line}"
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        options = capsys.readouterr().out
        unknown = [word for word in rest if word.startswith("--") and word.split("=")[0] not in options]
        assert unknown == [], f"docs/{name}: {line}"


TRIED_ALONE = ("your-own-model.md", "your-own-world.md")
"""Pages whose Python has a test of its own above."""


@pytest.mark.parametrize("name", [name for name in TEXTS if blocks(name, "python") and name not in TRIED_ALONE])
def test_python_runs_from_the_first_block_to_the_last(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(name)


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page() -> None:
    entries = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(entries) == sorted(pages)


def test_the_keys_of_play_are_on_the_teleoperation_page() -> None:
    from neuralsim.agents.teleop.window import COMMANDS
    from neuralsim.envs.registry import PUSHT

    described = " ".join(re.findall(r"^\| (.*) \|$", TEXTS["teleoperation.md"], re.MULTILINE)).lower()
    for key, _ in (*PUSHT.teleop.keys, *COMMANDS):
        for name in key.lower().replace(",", " ").split():
            assert name in described or name in "+-" or name == "esc", key


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", TEXTS[name])
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
