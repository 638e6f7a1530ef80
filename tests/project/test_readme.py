"""The README is short, its Python runs as it stands, its commands and files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from neuralsim import cli
from neuralsim.storage.resolve import list_worlds

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
SHELL = [
    line.split("#")[0].strip()
    for block in re.findall(r"^```bash\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
needs_shipped_world = pytest.mark.skipif("pusht" not in list_worlds(), reason="no trained world lies in assets/ yet")


@needs_shipped_world
@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_its_python_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(PYTHON[number], f"README.md, block {number}", "exec"), {"__name__": "readme"})


def test_it_has_the_twenty_lines() -> None:
    assert len([line for line in PYTHON[0].splitlines() if line.strip()]) <= 21


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("neuralsim")])
def test_its_commands_exist_and_know_their_options(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, command, *rest = shlex.split(line)
    assert command in cli.COMMANDS
    words = [rest[0], "--help"] if command == "data" else ["--help"]
    with pytest.raises(SystemExit):
        cli.main([command, *words])
    options = capsys.readouterr().out
    assert [word for word in rest if word.startswith("--") and word not in options] == []


def test_its_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"`?make (\w+)", TEXT)
    assert {"demo", "test"} <= set(targets)
    assert [t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)] == []


def test_its_links_and_folders_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", re.sub(r"<!--.*?-->", "", TEXT, flags=re.DOTALL))
    folders = re.findall(r"^(\w+/) ", TEXT, re.MULTILINE)
    assert {"neuralsim/", "envs/", "agents/", "assets/", "tests/", "docs/"} <= set(folders)
    assert [p for p in links + folders if not (ROOT / p).exists()] == []


def test_it_is_at_most_150_lines_and_8_kilobytes_with_a_moving_picture() -> None:
    assert len(TEXT.splitlines()) <= 150
    assert len(TEXT.encode()) <= 8 * 1024
    picture = re.search(r"!\[[^]]+\]\(([^)]+)\)", TEXT)
    assert picture is not None
    with Image.open(ROOT / picture[1]) as image:
        assert getattr(image, "n_frames", 1) > 20


def test_every_folder_of_its_tree_exists() -> None:
    tree = re.search(r"^## Where things are\n\n```\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert tree is not None
    above, missing = "", []
    for line in tree[1].splitlines():
        if not line.startswith(" "):
            above = line.split("/")[0]
        for entry in re.findall(r"(?:^|, |^ +|  )([\w]+(?:/|\.py))(?=[, ]|$)", line):
            inside = above if line.startswith(" ") else ""
            if not (ROOT / inside / entry).exists():
                missing.append(f"{inside}/{entry}")
    assert missing == []
