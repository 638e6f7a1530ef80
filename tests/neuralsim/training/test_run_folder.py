"""The folder of a training run: one process at a time, the same settings on resume, and full disks."""

import errno
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import neuralsim.training.checkpoint as checkpoint
from neuralsim.data.store import EpisodeStore
from neuralsim.runtime.files import DiskFullError, folder_lock
from neuralsim.runtime.interrupt import Stopped
from neuralsim.training import token_dataset
from neuralsim.training.config import TrainConfig
from neuralsim.training.trainer import Trainer, train

HOLD = """
import sys, time
from pathlib import Path
from neuralsim.runtime.files import folder_lock
with folder_lock(Path(sys.argv[1]), "training"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def stopped(store: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run that was stopped after its first step."""
    out = tmp_path_factory.mktemp("runs") / "run"
    config = TrainConfig(recipe="pusht-video-mini", data=store, out=out, threads=1, stop_after=0.0, effort=0.1)
    with pytest.raises(Stopped):
        train(config)
    return replace(config, resume=True)


def test_a_second_process_is_refused_by_name(store: Path, tmp_path: Path) -> None:
    config = TrainConfig(recipe="pusht-video-mini", data=store, out=tmp_path / "run", threads=1, stop_after=0.0)
    trainer = Trainer(config)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(config.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError, match=rf"{config.folder}.*{other.pid}"):
        trainer.run()
    other.kill()  # a dead holder's lock is taken over
    other.wait()
    other.stdin.close()
    other.stdout.close()
    with pytest.raises(Stopped):
        trainer.run()
    with pytest.raises(FileExistsError, match="--resume"):
        Trainer(config)


def test_a_run_that_moved_on_meanwhile_is_refused(stopped: TrainConfig) -> None:
    first, second = Trainer(stopped), Trainer(stopped)
    with pytest.raises(Stopped):
        first.run()
    with pytest.raises(FileExistsError, match="another process has trained here meanwhile"):
        second.run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "seed: 0 then, 5 now"),
        ({"effort": 0.2}, r"recipe\.codec_stage\.steps: 20 then, 40 now"),
        ({"rate": 0.5}, r"recipe\.codec_stage\.lr"),
        ({"precision": "float32"}, 'precision: "auto" then, "float32" now'),
        ({"recipe": "pusht-wam-mini"}, r"recipe\.name"),
        ({"episodes": 30}, r"data\.episodes: 44 then, 30 now"),
    ],
    ids=str,
)
def test_resuming_with_other_settings_names_what_differs(stopped: TrainConfig, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"--resume with other settings.*{message}"):
        Trainer(replace(stopped, **change))


def test_resuming_with_other_data_of_the_same_size_is_refused(
    stopped: TrainConfig, store: Path, tmp_path: Path
) -> None:
    old = EpisodeStore(store)
    other = EpisodeStore.create(tmp_path / "other", old.spec, old.info.state_names)
    other.add([replace(old[i], actions=-np.asarray(old[i].actions)) for i in range(len(old))])
    with pytest.raises(ValueError, match=r"data\.fingerprint"):
        Trainer(replace(stopped, data=other.folder))


def test_the_same_settings_resume_and_what_does_not_matter_may_change(stopped: TrainConfig) -> None:
    trainer = Trainer(replace(stopped, threads=2, checkpoint_every=1.0))
    assert trainer.progress.step >= 1


def test_a_full_disk_names_the_checkpoint_and_what_is_kept(
    stopped: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def full(tensors: object, path: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    trainer = Trainer(stopped)
    kept = trainer.found
    assert kept is not None
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(DiskFullError, match=rf"checkpoints.*checkpoint {kept.name} is whole.*--resume") as raised:
            trainer.run()
    assert raised.value.errno == errno.ENOSPC
    assert checkpoint.latest_checkpoint(stopped.folder) == kept
    assert not list((stopped.folder / "checkpoints").glob(".writing-*"))


def test_a_full_disk_names_the_file_of_encoded_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, tokens: np.ndarray, allow_pickle: bool) -> None:
        path.write_bytes(b"half")
        raise OSError("48000000 requested and 0 written")

    monkeypatch.setattr(token_dataset.np, "save", full)
    with pytest.raises(DiskFullError, match=r"12\.npy: the disk is full"):
        token_dataset._keep(tmp_path / "12.npy", np.zeros(3, np.float32))
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_run_are_swept(stopped: TrainConfig) -> None:
    left = stopped.folder / "checkpoints" / ".writing-999999999"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    with pytest.raises(Stopped):
        train(stopped)
    assert not left.exists()
    with folder_lock(stopped.folder, "reading"):
        pass
