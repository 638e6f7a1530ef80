"""The command line: every command has help, wrong words exit with 2 and a line that helps, figures go to JSON."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import tyro

import neuralsim
from neuralsim import cli
from neuralsim.data.store import EpisodeStore
from neuralsim.runtime.command import CommandOutput

COMMANDS = tuple(cli.COMMANDS)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of ``neuralsim WORDS``."""
    try:
        code = cli.main([str(w) for w in words])
    except SystemExit as exit:  # tyro's way
        code = int(exit.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


# -- help --------------------------------------------------------------------------------------------------------------------------


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(f"  {name} " in out for name in COMMANDS)
    assert run(capsys) == (0, out, "")
    assert run(capsys, "--version")[1] == f"neuralsim {neuralsim.__version__}\n"


HEADINGS = {
    "everyday": ["demo", "play", "plan", "info", "bench"],
    "data": ["collect", "record", "import", "export", "data"],
    "worlds": ["train", "measure", "roles", "card"],
    "agents": ["rl", "evaluate", "heads", "rank", "compare"],
    "robots": ["drive", "robot-sim", "serve", "safety"],
}


def test_the_overview_groups_the_commands_under_headings(capsys: pytest.CaptureFixture[str]) -> None:
    groups: dict[str, list[str]] = {}
    for line in run(capsys, "--help")[1].splitlines():
        if line in HEADINGS:
            groups[line] = []
        elif groups and line.startswith("  "):
            groups[list(groups)[-1]].append(line.split()[0])
    assert list(groups.items()) == list(HEADINGS.items())
    assert sorted(itertools.chain(*HEADINGS.values())) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_table_names_a_config_and_a_function_that_takes_it(command: str) -> None:
    entry = cli.COMMANDS[command]
    config, function = (
        getattr(importlib.import_module(m), n) for m, n in (e.split(":") for e in (entry.config, entry.function))
    )
    assert dataclasses.is_dataclass(config)
    assert config.__name__.endswith("Config")
    first = next(iter(inspect.signature(function).parameters.values()))
    assert first.annotation == config.__name__
    fields = {field.name for field in dataclasses.fields(config)}
    assert entry.subject.removesuffix("...") in fields | {""}
    flags = set(tyro.extras.get_parser(config)._option_string_actions)
    old = getattr(config, "OLD_FLAGS", {})
    assert {new.partition(" ")[0] for new in old.values()} <= flags, "an old flag has a new one that exists"
    assert not set(old) & flags, "an old flag does not hide a present one"


def test_an_old_flag_goes_on_for_a_version_and_says_its_new_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclasses.dataclass(frozen=True)
    class OwnConfig:
        OLD_FLAGS: ClassVar[dict[str, str]] = {"--often": "--n-times"}
        world: str = "pusht"
        n_times: int = 1

    monkeypatch.setattr(cli, "_load", lambda name: OwnConfig)
    command = cli.Command("everyday", "m:OwnConfig", "m:own", "", "world")
    assert cli._parse(command, "own", ["mine", "--often", "3"]) == OwnConfig("mine", 3)
    assert cli._parse(command, "own", ["--often=4"]) == OwnConfig(n_times=4)
    assert "neuralsim: --often is now --n-times" in capsys.readouterr().err


def test_output_is_printed_in_order_and_then_the_command_stops(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    figures = {"a": 1, "many": list(range(25))}
    output = CommandOutput(
        tables=["a table"],
        lines=["a line"],
        facts={"a_name": 1, "many": figures["many"], "none": []},
        missed=[SimpleNamespace(step=4, label="accuracy", value=0.5, unit="%", target=">= 1")],
        files=[tmp_path / "file"],
        json=tmp_path / "out" / "figures.json",
        figures=figures,
        stop=OSError("stopped"),
    )
    with pytest.raises(OSError, match="stopped"):
        cli._present(output)
    out = capsys.readouterr().out.splitlines()
    assert out[:3] == ["a table", "a line", "a name  1"]
    assert out[22:24] == ["        19", "        and 5 more; --json has all"]
    assert out[24:] == [
        "none    none",
        "misses its target: accuracy after 4 steps: 0.5 % (target >= 1)",
        f"wrote {tmp_path / 'file'}",
    ]
    assert json.loads((tmp_path / "out" / "figures.json").read_text()) == figures


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"neuralsim {command}" in out
    assert "(default:" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_is(capsys: pytest.CaptureFixture[str], command: str) -> None:
    out = run(capsys, command, "--help")[1]
    lines = [line.strip("│ ") for line in out.splitlines() if line.startswith("│ -")]
    assert [line for line in lines if len(line.split()) <= 2 and "-h" not in line] == []


LOADS = """
import sys, time
begin = time.perf_counter()
import neuralsim.cli
try:
    neuralsim.cli.main(sys.argv[1:])
except SystemExit:
    pass
print('loaded', *sorted({name.split('.')[0] for name in sys.modules}), *sorted(n for n in sys.modules if n.startswith('neuralsim')))
"""


def test_the_overview_loads_nothing_heavy_and_no_layer_above() -> None:
    ran = subprocess.run([sys.executable, "-c", LOADS, "--help"], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.rpartition("loaded ")[2].split())
    assert not loaded & {"torch", "tyro", "rich", "pygame", "diffusers", "cv2", "matplotlib"}
    assert not {name for name in loaded if name.startswith("neuralsim.agents")}


def test_help_loads_nothing_heavy() -> None:
    """Loading modules is what help takes its time for; how long that is depends on the machine."""
    program = (
        "import sys\n"
        "from neuralsim.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('loaded', len(sys.modules), *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    for words in (["--help"], ["collect", "--help"], ["collect", "pusht", "--episodes", "none"]):
        ran = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
        count, *loaded = ran.stdout.rpartition("loaded ")[2].split()
        assert not set(loaded) & {
            "torch",
            "pygame",
            "diffusers",
            "cv2",
            "matplotlib",
            "stable_baselines3",
            "minari",
            "av",
        }
        assert int(count) < 900


# -- wrong words -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["colect"], "did you mean 'collect'"),
        (["dance"], "'neuralsim --help' lists them"),
        (["collect", "puhst"], "no real world 'puhst' (did you mean 'pusht'?)"),
        (["collect", "--episodes", "-3"], "--episodes: expected 1 or more, got -3"),
        (["collect", "--episods", "3"], "--episodes"),
        (["collect", "--size", "65"], "multiple of 8"),
        (["train", "pusht-vido", "--data", "nowhere"], "did you mean 'pusht-video'"),
        (["train", "pusht-video-mini", "--data", "nowhere", "--out", "{tmp}/run"], "no episode store here"),
        (["demo", "nowhere"], "world 'nowhere'"),
        (["demo", "--steps", "0"], "--steps: expected 1 or more"),
        (["play", "nowhere", "--headless", "--script", "0 quit"], "world 'nowhere'"),
        (["measure", "nowhere"], "world 'nowhere'"),
        (["bench", "nowhere"], "world 'nowhere'"),
        (["train", "pusht-video", "--stages", "readings", "--data", "nowhere"], "no episode store here"),
        (["train", "pusht-video", "--effort", "0"], "--effort: expected a number above 0"),
        (["rl", "puhst"], "no real world 'puhst'"),
        (["rl", "pusht", "--task", "puhs"], "did you mean 'push'"),
        (["rl", "pusht", "--steps", "0"], "--steps: expected 1 or more, got 0"),
        (
            ["rl", "tworoom", "--algo", "clone", "--out", "{tmp}/run"],
            "--algo clone: say with --data which demonstrations",
        ),
        (["evaluate", "pusht", "--policy", "nowhere.zip"], "policy 'nowhere.zip': no such file"),
        (["rank", "pusht"], "--policies"),
        (["compare", "--runs", "{tmp}"], "is a run of 'neuralsim rl'"),
        (["info", "nowhere"], "world 'nowhere'"),
        (["data"], "--store"),
        (["data", "nowhere"], "no episode store here"),
        (["data", "export", "store", "x-v0"], "neuralsim export STORE --to minari:ID"),
        (["data", "import", "x-v0", "store"], "neuralsim import minari:ID --out STORE"),
        (["export", "--to", "minari:x-v0"], "--store"),
        (["export", "nowhere", "--to", "minari:x-v0"], "no episode store here"),
        (["export", "store", "--to", "mianri:x-v0"], "expected lerobot:folder/ or minari:my/dataset-v0"),
        (["import", "lerobt:x"], "did you mean 'lerobot'"),
        (["import", "lerobot:nowhere"], "nowhere: no LeRobotDataset here"),
        (["import", "minari:nowhere-v0", "--root", "{tmp}"], "no local Minari dataset 'nowhere-v0'"),
    ],
)
def test_a_wrong_word_exits_with_2_and_a_line_that_helps(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], line: str
) -> None:
    code, out, err = run(capsys, *(w.format(tmp=tmp_path) for w in words))
    assert code == 2
    assert line in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in out + err


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURALSIM_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        cli.main(["demo", "nowhere"])


def test_errors_of_the_system_are_told_whole(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = run(capsys, "collect", "--out", tmp_path / "file" / "store")
    assert code == 2
    assert str(tmp_path / "file") in err


BROKEN = {
    "cv2": ("ImportError", "libGL.so.1: cannot open shared object file: No such file or directory", "libgl1"),
    "pygame": (
        "ImportError",
        "libfreetype.so.6: cannot open shared object file: No such file or directory",
        "libfreetype6",
    ),
}


@pytest.mark.parametrize(
    ("words", "package"),
    [
        ("play --headless --script '0 quit'", "pygame"),
        ("plan", "cv2"),
        ("plan", "pygame"),
        ("record Pendulum-v1", "pygame"),
    ],
)
def test_a_slim_container_is_told_the_missing_system_library(words: str, package: str, tmp_path: Path) -> None:
    """cv2 and pygame are installed there, but a library that they are linked with is not."""
    kind, text, debian = BROKEN[package]
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(f"raise {kind}({text!r})\n")
    ran = subprocess.run(
        [sys.executable, "-m", "neuralsim.cli", *shlex.split(words), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert ran.returncode == cli.WRONG
    assert "Traceback" not in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
    assert text in ran.stderr
    assert f"{package} " in ran.stderr
    assert f"apt-get install {debian}" in ran.stderr


def test_our_own_import_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: object) -> None:
        raise ImportError("cannot import name 'x' from 'neuralsim.y'")

    monkeypatch.setattr(cli, "_call", lambda function, config: broken(config))
    with pytest.raises(ImportError, match="cannot import name"):
        cli.main(["info"])


# -- the commands ------------------------------------------------------------------------------------------------------------------


def test_collect_info_and_minari_there_and_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store, copy, root = tmp_path / "store", tmp_path / "copy", tmp_path / "minari"
    words = ("collect", "pusht", "--episodes", 22, "--steps", 3, "--size", 16, "--workers", 1, "--out", store)
    code, out, _ = run(capsys, *words, "--json", tmp_path / "collect.json")
    assert code == 0
    assert "22 episodes, 88 frames; 22 of them now" in out
    assert json.loads((tmp_path / "collect.json").read_text())["collected_now"] == 22
    assert "nothing to add" in run(capsys, *words)[1]

    code, out, _ = run(capsys, "info", store, "--json", tmp_path / "info.json")
    assert code == 0
    facts = json.loads((tmp_path / "info.json").read_text())
    assert facts["episodes"] == 22
    assert facts["held_out_episodes"] == 2
    assert facts["windows_per_second"] > 100

    assert run(capsys, "export", store, "--to", "minari:test/pushes-v0", "--root", root)[0] == 0
    assert run(capsys, "import", "minari:test/pushes-v0", "--out", copy, "--root", root)[0] == 0
    ours, theirs = EpisodeStore(store), EpisodeStore(copy)
    assert ours.info == theirs.info
    assert all((a.frames == b.frames).all() for a, b in zip(ours, theirs, strict=True))
    assert [ours.provenance(i) for i in range(22)] == [theirs.provenance(i) for i in range(22)]


def test_demo_writes_a_video_a_picture_and_figures(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_world: Path
) -> None:
    import imageio.v3 as iio

    words = ("demo", tiny_world, "--steps", 12, "--out", tmp_path, "--json", tmp_path / "demo.json")
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert str(tmp_path / "demo.mp4") in out
    assert str(tmp_path / "demo.png") in out
    video = iio.imread(tmp_path / "demo.mp4", plugin="pyav")
    assert len(video) == 13
    assert video.std() > 10
    assert iio.imread(tmp_path / "demo.png").std() > 10
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert [a["step"] for a in figures["agreement"]] == [1, 5, 10, 12]
    run(capsys, *words)
    again = json.loads((tmp_path / "demo.json").read_text())
    assert again["agreement"] == figures["agreement"]


def test_play_bench_and_info_of_a_world(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_world: Path) -> None:
    script = "0 down RIGHT; 0.5 quit"
    words = ("play", tiny_world, "--headless", "--script", script, "--out", tmp_path, "--json", tmp_path / "play.json")
    assert run(capsys, *words)[0] == 0
    assert json.loads((tmp_path / "play.json").read_text())["steps"] >= 4

    code, out, _ = run(capsys, "info", tiny_world)
    assert code == 0
    assert "VideoWAM" in out

    assert run(capsys, "info")[0] == 0


def test_measure_with_own_episodes(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_world: Path) -> None:
    store = tmp_path / "store"
    assert run(capsys, "collect", "--episodes", 2, "--steps", 30, "--workers", 1, "--out", store)[0] == 0
    words = ("measure", tiny_world, "--data", store, "--all-held-out", "--rollouts", 4, "--horizons", 1, 10)
    code, out, _ = run(capsys, *words, "--out", tmp_path / "out", "--json", tmp_path / "measure.json")
    assert code == 0
    assert json.loads((tmp_path / "measure.json").read_text())["rows"]
    assert (tmp_path / "out" / "measure.png").is_file()
    assert "misses its target" in out  # random weights


def finished(store: Path) -> int:
    """Episodes that can be read in a store that is being written."""
    return len(EpisodeStore(store)) if (store / "store.json").is_file() else 0


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    words = [
        "collect",
        "--episodes",
        "3000",
        "--size",
        "8",
        "--steps",
        "20",
        "--workers",
        "2",
        "--out",
        str(tmp_path / "s"),
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "neuralsim.cli", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            deadline = time.monotonic() + 300
            while finished(tmp_path / "s") < 3:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: parent and workers alike
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == cli.INTERRUPTED
    assert "interrupted. Finished episodes are kept; the same command goes on." in err
    assert "Traceback" not in err
    assert len(EpisodeStore(tmp_path / "s")) >= 3
    assert not list(tmp_path.glob("s/.writing-*"))


def test_a_closed_pipe_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "neuralsim.cli", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
