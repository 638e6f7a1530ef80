"""Files appear whole, folders have one writer, leftovers of the dead go, and a full disk is called by its name."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from neuralsim.runtime import files
from neuralsim.runtime.files import (
    DiskFullError,
    check_space,
    disk_errors,
    folder_lock,
    format_bytes,
    sweep_leftovers,
    temporary_path,
    write_atomically,
)

HOLDER = """
import sys, time
from pathlib import Path
from neuralsim.runtime.files import folder_lock
with folder_lock(Path(sys.argv[1]), "training"):
    print("held", flush=True)
    time.sleep(600)
"""


def dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_a_second_writer_is_refused_by_folder_and_process_and_a_dead_one_is_not(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        expected = rf"{tmp_path}: another process \({holder.pid}\) is training here; wait for it"
        with pytest.raises(BlockingIOError, match=expected), folder_lock(tmp_path, "collecting"):
            pass
        holder.kill()
    message = f"{os.getpid()}.* is collecting"
    with (
        folder_lock(tmp_path, "collecting"),
        pytest.raises(BlockingIOError, match=message),
        folder_lock(tmp_path, "training"),
    ):
        pass


def test_only_leftovers_of_dead_writers_are_swept(tmp_path: Path) -> None:
    dead, own = dead_process(), os.getpid()
    gone = [f".writing-{dead}-abc", f".report.json.{dead}.tmp", f".strips.png.{dead}.tmp.png", f".a.b.{dead}.png"]
    kept = [
        f".writing-{own}-abc",
        f".report.json.{own}.tmp",
        "report.json",
        f"report.{dead}.tmp",
        ".neuralsim.lock",
        ".writing-new",
    ]
    for name in (*gone, *kept):
        (tmp_path / name).touch()
    (tmp_path / f".writing-{dead}-folder").mkdir()
    (tmp_path / f".writing-{dead}-folder" / "frames.npy").touch()
    swept = {path.name for path in sweep_leftovers(tmp_path)}
    assert swept == {*gone, f".writing-{dead}-folder"}
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


def test_a_leftover_of_an_earlier_process_of_the_same_number_is_swept(tmp_path: Path) -> None:
    """In a container that starts again, process numbers are the same ones."""
    path = tmp_path / f".report.json.{os.getpid()}.tmp"
    path.touch()
    os.utime(path, (time.time() - 10**7,) * 2)
    assert sweep_leftovers(tmp_path) == [path]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("4096 requested and 12 written"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:820] . PytorchStreamWriter failed writing file data/0"),
    ],
)
def test_a_full_disk_is_called_by_its_name_in_every_library(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "weights"
    with pytest.raises(DiskFullError) as raised, disk_errors(path, 5_000_000, "step 40 is kept", "run it again"):
        raise error
    assert raised.value.errno == errno.ENOSPC
    assert f"{path}: the disk is full (5 MB are needed, " in str(raised.value)
    assert str(raised.value).endswith("left); step 40 is kept; run it again")


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (PermissionError(errno.EACCES, "no"), ValueError("4 requested"), KeyError("x"), OSError("odd")):
        with pytest.raises(type(error)) as raised, disk_errors(tmp_path / "x"):
            raise error
        assert raised.value is error


def test_a_folder_never_takes_anothers_place(tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    with pytest.raises(FileExistsError, match="old: another process has written this folder meanwhile"):
        files.move_into_place(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "content").read_text() == "old"


def test_the_outermost_writer_that_knows_it_says_how_to_go_on(tmp_path: Path) -> None:
    with (
        pytest.raises(
            DiskFullError,
            match=r"a\.zip: the disk is full \(12 bytes are needed.*; checkpoint 3 is whole; add --resume",
        ),
        disk_errors(tmp_path, kept="checkpoint 3 is whole", go_on="add --resume"),
        disk_errors(tmp_path, kept=""),
        disk_errors(tmp_path / "a.zip", needed=12),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_that_cannot_be_locked_on_a_full_disk_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "pwrite", full)
    with pytest.raises(DiskFullError, match=rf"{tmp_path}: the disk is full"), folder_lock(tmp_path, "testing"):
        pass


def test_space_is_asked_for_before_work_and_told_in_figures_that_say_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda path: 67_000_000)
    check_space(tmp_path, 0, "0 episodes")
    with pytest.raises(DiskFullError, match=r"3 episodes need 300 kB and 67.1 MB must stay free, the disk has 67 MB"):
        check_space(tmp_path, 300_000, "3 episodes")
    assert [format_bytes(n) for n in (0, 12, 1500, 2e9, 3e13)] == ["0 bytes", "12 bytes", "1.5 kB", "2 GB", "30 TB"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    write_atomically(path, "old")

    def fail(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "move_into_place", fail)
    with pytest.raises(DiskFullError, match=r"report\.json: the disk is full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    assert temporary_path(path).suffix == ".json"
