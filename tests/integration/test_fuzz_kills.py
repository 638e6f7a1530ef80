"""Kill -9 at random moments of every command that writes: the same command again ends, and nothing finished is lost.

The suite kills the two cheapest commands once; NEURALSIM_FUZZ=N kills each command N times.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_datasets import demos, write_replay_buffer
from mutations import cases

from neuralsim.data.episode import Episode
from neuralsim.data.store import EpisodeStore
from neuralsim.training.checkpoint import latest_checkpoint

NEVER_S = 600
"""A command that takes this long hangs."""
WHOLE_TIME = 0.25
"""Share of the kills at any moment, the start of Python included; the others come after the command's first write."""
CHEAP = ("import",)


def command(words: list[str], cwd: Path) -> subprocess.Popen[bytes]:
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "SDL_VIDEODRIVER": "dummy"}
    with (cwd / "output.txt").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "neuralsim.cli", *words],
            cwd=cwd,
            env=os.environ | quiet,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


# -- what a folder holds -----------------------------------------------------------------------------------------------


def digest(episode: Episode) -> str:
    """Hash of all arrays of an episode."""
    arrays = (episode.frames, episode.actions, episode.rewards, episode.terminated, episode.truncated, episode.states)
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays if a is not None)).hexdigest()


def episodes(out: Path) -> Counter[str]:
    """Hashes of the episodes that can be read in all stores at or below ``out``."""
    return Counter(digest(e) for info in sorted(out.rglob("store.json")) for e in EpisodeStore(info.parent))


def ordered_episodes(out: Path) -> list[str]:
    return [digest(e) + json.dumps(e.provenance, sort_keys=True) for e in EpisodeStore(out)]


def trials(out: Path) -> Counter[str]:
    """Finished trials of a results log, without what the clock says."""
    path = out / "attempts.jsonl"
    found: Counter[str] = Counter()
    for line in path.read_text().splitlines(keepends=True) if path.is_file() else ():
        if line.endswith("\n"):
            trial = json.loads(line).get("attempt")
            if trial is not None:
                found[
                    json.dumps(
                        {k: v for k, v in trial.items() if k not in ("decisions", "load", "seconds")}, sort_keys=True
                    )
                ] += 1
    return found


def weights(out: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (out / "world").glob("*.safetensors")}


def checkpoint_step(out: Path) -> Counter[str]:
    """Stage and step of the newest checkpoint of a training run; they never go back."""
    found = latest_checkpoint(out)
    return Counter(steps=int(found.name.replace("-", "")) if found else 0)


def rl_steps(out: Path) -> Counter[str]:
    path = out / "checkpoint" / "standing.json"
    return Counter(steps=json.loads(path.read_text())["steps"] if path.is_file() else 0)


# -- the commands ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A miniature run of one command."""

    line: str
    """The command line; {here} is the folder of inputs, {out} the folder to write to."""
    finished: Callable[[Path], Counter[str]]
    """The finished work that can be read in a folder, at any moment."""
    result: Callable[[Path], Any] | None = None
    """The result that is bit-equal to that of an unkilled run; None: not promised."""
    resume: tuple[str, ...] = ()
    adds: int = 0
    """Episodes that each run adds; 0: a run only completes what is there."""
    script: str = ""

    def words(self, here: Path, out: Path) -> list[str]:
        """The command line's words; one that goes on with what is in ``out`` where there is something."""
        words = [word.format(here=here, out=out, script=self.script) for word in self.line.split()]
        return words + list(self.resume if has_files(out) else ())


TAPS = "; ".join(f"{0.5 * i:g} tap RETURN" for i in range(1, 20))
PLAYED = "; ".join(f"{t} down RIGHT; {t + 0.5} up RIGHT; {t + 1} tap r" for t in range(1, 8))

JOBS = {
    "collect": Job("collect pusht --out {out} --episodes 60 --steps 20 --size 32 --workers 1", episodes, ordered_episodes),
    "import": Job("import zarr:{here}/many.zarr --out {out} --size 32", episodes, ordered_episodes),
    "record": Job(
        "record Pendulum-v1 --size 16 --out {out} --headless --script {script}", episodes, adds=19, script=f"{TAPS}; 10 quit"
    ),
    "play": Job(
        "play pusht --record --headless --scale 3 --out {out} --script {script}", episodes, adds=16, script=f"{PLAYED}; 9 quit"
    ),
    "plan": Job(
        "plan pusht --goal random --episodes 5 --goal-distance 5 --lookahead 5 --candidates 6 --rounds 1 --elites 2 --video 0 "
        "--out {out}",
        trials,
        trials,
    ),
    "train": Job(
        "train pusht-video-mini --data {here}/store --out {out} --threads 1 --checkpoint-every 0.2 --precision float32 --effort 0.4",
        checkpoint_step,
        weights,
        resume=("--resume",),
    ),
    "rl": Job(
        "rl tworoom --steps 8192 --n-envs 16 --n-eval-episodes 2 --n-evals 8 --threads 1 --no-video --device cpu --out {out}",
        rl_steps,
        resume=("--resume",),
    ),
}  # fmt: skip


@dataclass
class Whole:
    """An unkilled run: its folder and its times."""

    out: Path
    seconds: float
    first_write: float


def finish(words: list[str], cwd: Path) -> None:
    process = command(words, cwd)
    try:
        code = process.wait(NEVER_S)
    finally:
        process.kill()
        process.wait()
    assert code == 0, (cwd / "output.txt").read_text()[-3000:]


def unkilled(job: Job, here: Path, cwd: Path) -> Whole:
    began, first = time.monotonic(), 0.0
    process = command(job.words(here, cwd / "out"), cwd)
    while process.poll() is None and time.monotonic() < began + NEVER_S:
        if not first and has_files(cwd / "out"):
            first = time.monotonic() - began
        time.sleep(0.01)
    process.kill()
    assert process.wait() == 0, (cwd / "output.txt").read_text()[-3000:]
    return Whole(cwd / "out", time.monotonic() - began, first)


def has_files(out: Path) -> bool:
    return out.is_dir() and any(out.iterdir())


def kill_at_random(words: list[str], cwd: Path, whole: Whole, latest: float, rng: random.Random) -> bool:
    """Start the command and kill it within the share ``latest`` of its time; False where it had ended before."""
    out, began = cwd / "out", time.monotonic()
    anywhere, share = rng.random() < WHOLE_TIME, latest * rng.random()
    process = command(words, cwd)
    try:
        if anywhere:
            time.sleep(share * whole.seconds)
        else:
            newest = last_write(out)
            while process.poll() is None and time.monotonic() < began + whole.first_write * 3:
                if last_write(out) > newest:
                    break
                time.sleep(0.005)
            time.sleep(share * (whole.seconds - whole.first_write))
        ended = process.poll() is not None
    finally:
        process.kill()
        process.wait()
    if ended:
        assert process.returncode == 0, (cwd / "output.txt").read_text()[-3000:]
    return not ended


def last_write(out: Path) -> float:
    """Time of the last change below ``out``, which another process is changing."""
    newest = 0.0
    for folder, _, files in os.walk(out):
        for name in (".", *files):
            with contextlib.suppress(FileNotFoundError):
                newest = max(newest, os.stat(os.path.join(folder, name)).st_mtime)
    return newest


def killed_and_resumed(job: Job, here: Path, cwd: Path, whole: Whole, kills: int, rng: random.Random) -> int:
    """Kill up to ``kills`` runs in one folder, then let one end; returns the number of kills that came before the end."""
    out, hit, kept = cwd / "out", 0, Counter[str]()
    for _ in range(kills):
        killed = kill_at_random(job.words(here, out), cwd, whole, 1 if job.adds else min(1.0, 2 / kills), rng)
        now = job.finished(out) if out.is_dir() else Counter[str]()
        assert not kept - now, "a finished piece of work is lost after a kill"
        kept, hit = now, hit + killed
        if not killed and not job.adds:
            break
    else:
        finish(job.words(here, out), cwd)
    now = job.finished(out)
    assert not kept - now, "a finished piece of work is lost after the last run"
    if job.adds:
        assert now.total() - kept.total() == job.adds
    if job.result is not None:
        assert job.result(out) == job.result(whole.out)
    left = [p for p in out.rglob(".*") if p.name.startswith((".writing-", ".checkpoint")) or ".tmp" in p.name]
    assert not left
    return hit


# -- the test ----------------------------------------------------------------------------------------------------------

FEW = cases(1)
TRIED = [(name, case) for name in (JOBS if len(FEW) > 1 else CHEAP) for case in FEW]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    here = tmp_path_factory.mktemp("inputs")
    write_replay_buffer(here / "many.zarr", demos(150))
    if len(FEW) > 1:
        (here / "store").symlink_to(request.getfixturevalue("store"))
    return here


@pytest.fixture(scope="module")
def wholes(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    made: dict[str, Whole] = {}

    def whole(name: str) -> Whole:
        if name not in made:
            made[name] = unkilled(JOBS[name], inputs, tmp_path_factory.mktemp(name))
        return made[name]

    return whole


@pytest.mark.parametrize(("name", "case"), TRIED)
def test_a_killed_command_ends_when_it_is_run_again(
    name: str, case: int, inputs: Path, wholes: Callable[[str], Whole], tmp_path: Path
) -> None:
    rng = random.Random(f"{name} {case}")
    killed_and_resumed(JOBS[name], inputs, tmp_path, wholes(name), 1, rng)
