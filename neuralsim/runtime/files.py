"""Files that appear whole or not at all, one lock per folder, leftovers of killed writers, and full disks."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".neuralsim.lock"
"""Name of the lock file in a folder; it holds the process id and the purpose of the last holder."""
ABANDONED_S = 3600.0
"""A leftover whose name carries no process id (earlier versions wrote such) is removed at this age."""
SPARE_BYTES = 64 * 2**20
"""Disk space that :func:`check_space` keeps free."""
TRY_AGAIN = "make room and run the same command again"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LEFTOVER = re.compile(r"\.writing-(?:(?P<folder>\d+)-)?.*|\..+\.(?P<file>\d+)\.(?:tmp|png|mp4|npz)(?:\.\w+)?")
_FULL_TEXT = re.compile(r"no space left|disk quota|\d+ requested and \d+ written|failed writing file", re.IGNORECASE)


class DiskFullError(OSError):
    """The disk is full; the message names the file, the missing space and how to go on.

    ``unadvised`` is the path with the bytes needed and left, where the writer did not know what is kept and how to go on.
    """

    unadvised: tuple[Path, int, int] | None = None


def temporary_path(path: Path) -> Path:
    """Return a name beside ``path`` for a half-written file: hidden, of this process, with the same suffix."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """Make a hidden folder inside ``folder`` to prepare files in; it is deleted at the end."""
    work = Path(tempfile.mkdtemp(prefix=f".writing-{os.getpid()}-", dir=folder))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write ``data`` (text as UTF-8) to ``path``: after a kill or a power cut the file is the old one or the new one."""
    content = data.encode() if isinstance(data, str) else data
    with atomic_file(path, needed=len(content)) as temporary:
        temporary.write_bytes(content)


@contextmanager
def atomic_file(path: Path, needed: int = 0, kept: str = "") -> Iterator[Path]:
    """Give a temporary path to write to; at the end its file replaces ``path``, after an error it is removed.

    Raises DiskFullError on a full disk; ``needed`` and ``kept`` as in :func:`disk_errors`.
    """
    temporary = temporary_path(path)
    try:
        with disk_errors(path, needed, kept):
            yield temporary
            move_into_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def move_into_place(source: Path, target: Path) -> None:
    """Flush ``source`` (a file, or a folder with all its files) to the disk and rename it to ``target``.

    Raises FileExistsError where ``source`` is a folder and ``target`` one that holds files.
    """
    files = [p for p in source.rglob("*") if p.is_file()] if source.is_dir() else [source]
    folders = {source, *(p.parent for p in files)} if source.is_dir() else set()
    for path in (*files, *folders):
        flush(path)
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise FileExistsError(error.errno, f"{target}: another process has written this folder meanwhile") from error
    flush(target.parent)


def flush(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot flush a folder
            raise
    finally:
        os.close(handle)


@contextmanager
def folder_lock(folder: Path, purpose: str) -> Iterator[None]:
    """Hold ``folder`` for this process alone, and remove what killed writers left in it. The folder is made if needed.

    The system releases the lock when the process ends, however it ends. ``purpose`` is a gerund, for instance
    "collecting". Raises BlockingIOError, naming the folder and the process that holds it.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            f"{folder}: a worker process imports the main program again and would start {purpose} there once more; put the "
            "call under: if __name__ == '__main__':"
        )
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid, _, theirs = os.read(handle, 200).decode(errors="replace").partition(" ")
            holder = f"another process ({pid}) is {theirs} here" if theirs else "another process is writing here"
            message = f"{folder}: {holder}; wait for it or choose another folder"
            raise BlockingIOError(errno.EWOULDBLOCK, message) from error
        os.ftruncate(handle, 0)
        with disk_errors(folder):
            os.pwrite(handle, f"{os.getpid()} {purpose}".encode(), 0)
        sweep_leftovers(folder)
        yield
    finally:
        os.close(handle)


def sweep_leftovers(folder: Path) -> list[Path]:
    """Remove temporary files and folders in ``folder`` whose writer has died; returns them."""
    swept = []
    for path in folder.iterdir() if folder.is_dir() else ():
        found = _LEFTOVER.fullmatch(path.name)
        if found is None:
            continue
        try:
            written = path.lstat().st_mtime
        except FileNotFoundError:
            continue
        pid = found["folder"] or found["file"]
        if time.time() - written < ABANDONED_S if pid is None else _wrote(int(pid), written):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        swept.append(path)
    return swept


@contextmanager
def disk_errors(path: Path, needed: int = 0, kept: str = "", go_on: str = TRY_AGAIN) -> Iterator[None]:
    """Turn every error of a full disk into a DiskFullError about ``path``.

    ``needed`` bytes are about to be written (0: unknown), ``kept`` says what survives, ``go_on`` what to do. Libraries
    report a full disk in their own ways: numpy and safetensors without an errno, so their texts and the free space are
    read too. An inner DiskFullError keeps its path, and takes ``kept`` and ``go_on`` from here where it has none.
    """
    try:
        yield
    except DiskFullError as error:
        if error.unadvised is None or not (kept or go_on != TRY_AGAIN):
            raise
        raise no_space(*error.unadvised, kept, go_on) from error
    except Exception as error:
        if not _is_full(error, path, needed):
            raise
        raise no_space(path, needed, free_bytes(path), kept, go_on) from error


def no_space(path: Path, needed: int, free: int, kept: str = "", go_on: str = TRY_AGAIN) -> DiskFullError:
    """The error for a disk with ``free`` bytes left where ``needed`` (0: unknown) are to be written to ``path``."""
    missing = (
        f"{format_bytes(needed)} are needed, {format_bytes(free)} left" if needed else f"{format_bytes(free)} left"
    )
    advice = f"{f'{kept}; ' if kept else ''}{go_on}"
    error = DiskFullError(errno.ENOSPC, f"{path}: the disk is full ({missing}); {advice}")
    error.unadvised = (path, needed, free) if advice == TRY_AGAIN else None
    return error


def check_space(folder: Path, needed: int, what: str, go_on: str = TRY_AGAIN, spare: int = SPARE_BYTES) -> None:
    """Raise DiskFullError where the disk of ``folder`` cannot take ``needed`` bytes of ``what`` and keep ``spare`` free."""
    free = free_bytes(folder)
    if needed and needed + spare > free:
        raise DiskFullError(
            errno.ENOSPC,
            f"{folder}: {what} need {format_bytes(needed)} and {format_bytes(spare)} must stay free, the disk has "
            f"{format_bytes(free)} left; {go_on}",
        )


def file_stamp(path: Path) -> tuple[int, int, int]:
    """Return the time of change, size and inode of a file, to notice that another has taken its place; zeros where there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return 0, 0, 0
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of ``path``, or of the nearest folder above it that exists."""
    place = path.absolute()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def format_bytes(count: float) -> str:
    """Three digits and a decimal unit: "12 bytes", "3.4 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _is_full(error: Exception, path: Path, needed: int) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return bool(_FULL_TEXT.search(str(error))) or free_bytes(path) < max(needed, 2**16)


def _wrote(pid: int, written: float) -> bool:
    """True where process ``pid`` is alive and began before the time ``written``; ids are used again."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    if not sys.platform.startswith("linux"):
        return True
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return True
    started = time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
    return started <= written + 2
