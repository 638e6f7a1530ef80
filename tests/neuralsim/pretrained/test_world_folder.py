"""The folder of a world: it holds all of the world, opens the same elsewhere, and whatever befalls its files on the way
is refused by name or changes nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import neuralsim
from neuralsim.imagination import Imagination
from neuralsim.models.video_wam import VideoWAM
from neuralsim.pretrained.starts import Starts
from neuralsim.pretrained.world import World, open_world, register_model
from neuralsim.runtime.files import DiskFullError
from neuralsim.storage.manifest import (
    CARD,
    CONFIG,
    FILES,
    FORMAT,
    MANIFEST,
    SAFETY,
    SEALED,
    STARTS,
    TRAINING,
    WEIGHTS,
    Manifest,
    seal,
)
from neuralsim.storage.resolve import assets, list_worlds
from neuralsim.storage.weights import save_world
from neuralsim.training.config import TrainConfig
from neuralsim.training.trainer import train
from neuralsim.world_model import WorldModel

CARD_TEXT = "# tiny\nRandom weights, for tests: für Prüfungen.\n"


@pytest.fixture(scope="module")
def whole(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with every file there can be; not to be written to."""
    folder = tmp_path_factory.mktemp("shared") / "whole"
    shutil.copytree(tiny_world, folder)
    (folder / TRAINING).write_text('{"recipe": {"name": "tiny"}}')
    (folder / SAFETY).write_text("{}")
    (folder / CARD).write_text(CARD_TEXT, encoding="utf-8")
    seal(folder)
    assert {path.name for path in folder.iterdir()} == set(FILES)
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "copied"))


@pytest.fixture
def loose(copied: Path) -> Path:
    """A copy without a manifest, as NeuralSim wrote folders before there were any."""
    (copied / MANIFEST).unlink()
    return copied


def same(one: World, other: World) -> bool:
    """Whether two worlds are equal to the bit: config, weights, starts."""
    told = [json.loads(world.model.to_json_string()) for world in (one, other)]
    configs = [{k: v for k, v in config.items() if k[0] != "_"} for config in told]
    if configs[0] != configs[1] or one.spec != other.spec or (one.starts is None) != (other.starts is None):
        return False
    mine, theirs = one.model.state_dict(), other.model.state_dict()
    arrays = ("frames", "actions", "states", "seeds")
    return (
        mine.keys() == theirs.keys()
        and all(
            torch.equal(weight, theirs[name]) and weight.dtype == theirs[name].dtype for name, weight in mine.items()
        )
        and all(np.array_equal(getattr(one.starts, a), getattr(other.starts, a)) for a in arrays)
    )


def refused(folder: Path, original: World, name: str = "") -> bool:
    """Whether the world in ``folder`` is refused with a ValueError or OSError that names it, and the file ``name``. If not, it
    must be what it was."""
    try:
        world = open_world(folder, "cpu")
    except (ValueError, OSError) as error:
        said = str(error)
    else:
        assert same(world, original), f"a world that is another one opens without a word ({name})"
        return False
    assert str(folder) in said, f"the refusal does not say where: {said}"
    assert name in said, f"the refusal does not name {name}: {said}"
    return True


# -- all of it, anywhere -----------------------------------------------------------------------------------------------------------


def test_a_saved_world_is_whole_and_opens_the_same(whole: Path, tmp_path: Path) -> None:
    original = open_world(whole, "cpu")
    target = original.save(tmp_path / "new" / "saved")
    assert {path.name for path in target.iterdir()} == set(FILES)
    again = open_world(target, "cpu")
    assert same(again, original)
    assert again.card == CARD_TEXT
    assert (target / TRAINING).read_bytes() == (whole / TRAINING).read_bytes()
    assert [p.name for p in target.parent.iterdir()] == ["saved"]  # nothing is left lying about


def test_training_leaves_a_whole_world_that_no_longer_needs_its_run(store: Path, tmp_path: Path) -> None:
    made = train(TrainConfig("pusht-video-mini", data=store, out=tmp_path / "run", threads=1, effort=0.02))
    assert {path.name for path in made.iterdir()} == set(FILES) - {SAFETY}
    manifest = Manifest.read(made)
    assert manifest is not None
    assert set(manifest.files) == set(SEALED) - {SAFETY}
    moved = made.rename(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "run")
    world = open_world(moved, "cpu")
    assert world.starts is not None
    assert "Not measured yet" in world.card
    dreams = Imagination(world.model, starts=world.starts, num_envs=2)
    dreams.reset(seeds=[0, 1])
    assert np.isfinite(dreams.step(np.zeros((2, 2), np.float32)).reward).all()  # its heads came along


def test_the_manifest_says_what_the_folder_holds_without_opening_it(whole: Path) -> None:
    manifest = Manifest.read(whole)
    assert manifest is not None
    assert (manifest.format, manifest.neuralsim, manifest.model) == (FORMAT, neuralsim.__version__, "VideoWAM")
    assert manifest.spec["name"] == "pusht"
    assert set(manifest.files) == set(SEALED)
    assert all(manifest.files[name].bytes == (whole / name).stat().st_size for name in SEALED)


def test_a_world_opens_elsewhere_and_dreams_on_the_same(whole: Path, tmp_path: Path) -> None:
    """In a process that knows nothing of how it was made, from another folder, by a relative path."""
    program = (
        "import sys, numpy as np\nfrom neuralsim.envs.imagined.env import ImaginedEnv\n"
        "def dream(folder):\n"
        "    env = ImaginedEnv(folder, device='cpu', precision='float32')\n"
        "    first = env.reset(seed=3)[0]\n"
        "    return [first] + [env.step(np.array([0.5, -0.25], np.float32))[0] for _ in range(4)]\n"
        "here, there = dream(sys.argv[1]), dream('away')\n"
        "print(np.array_equal(here, there), np.ptp(here))"
    )
    shutil.copytree(whole, tmp_path / "far" / "away")
    words = [sys.executable, "-c", program, str(whole)]
    ran = subprocess.run(words, cwd=tmp_path / "far", capture_output=True, text=True, check=True)
    equal, range_of_greys = ran.stdout.split()
    assert equal == "True"
    assert int(range_of_greys) > 0


def test_a_save_over_another_world_leaves_nothing_of_it(whole: Path, copied: Path, tiny_model: VideoWAM) -> None:
    with torch.no_grad():
        next(tiny_model.parameters()).add_(1)
    (copied / "notes.txt").write_text("mine")
    World(tiny_model).save(copied)
    world = open_world(copied, "cpu")
    assert world.starts is None
    assert world.card == ""
    assert not (copied / TRAINING).exists()
    assert (copied / "notes.txt").read_text() == "mine"
    assert not same(world, open_world(whole, "cpu"))


def test_a_save_over_something_else_is_refused(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds something that is no world"):
        open_world(whole, "cpu").save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("after", range(len(FILES) - 1))
def test_a_save_that_is_cut_short_is_refused_never_mixed(
    after: int, copied: Path, tiny_model: VideoWAM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after any of its renames, over another world."""
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.add_(0.5)
    starts = open_world(copied, "cpu").starts
    assert starts is not None
    new = World(tiny_model, starts.join(starts), card="# new")
    real, done = os.replace, []

    def dies(source: Any, target: Any) -> None:
        if Path(target).parent == copied:
            if len(done) > after:
                raise KeyboardInterrupt
            done.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", dies)
    try:
        new.save(copied)
    except KeyboardInterrupt:
        if after < 3:
            with pytest.raises(ValueError, match=r"world\.json"):
                open_world(copied, "cpu")
    if after >= 3:  # manifest, config, weights and starts are there
        world = open_world(copied, "cpu")
        assert same(world, new)
        assert world.card == ("# new" if after > 3 else "")
    assert [p.name for p in copied.parent.iterdir()] == ["copied"]


def test_a_folder_from_before_manifests_opens(loose: Path, whole: Path) -> None:
    assert not refused(loose, open_world(whole, "cpu"))


@pytest.mark.parametrize("name", list_worlds())
def test_every_shipped_world_has_a_manifest_that_holds(name: str) -> None:
    folder = open_world(name, "cpu").folder
    assert folder is not None
    assert folder.parent == assets().resolve()
    manifest = Manifest.read(folder)
    assert manifest is not None, f"{folder}: no manifest; neuralsim.storage.manifest.seal(folder) writes it"
    manifest.check(folder)


def test_a_newer_format_is_refused_with_what_to_do(copied: Path) -> None:
    body = json.loads((copied / MANIFEST).read_text())
    (copied / MANIFEST).write_text(json.dumps(body | {"format": FORMAT + 1, "neuralsim": "9.0", "hyperspace": True}))
    with pytest.raises(
        ValueError, match=r"world\.json: a world of format 2, written by NeuralSim 9\.0.*pip install --upgrade"
    ):
        open_world(copied, "cpu")


def test_one_who_changes_a_world_on_purpose_can_seal_it_anew(copied: Path) -> None:
    (copied / STARTS).unlink()
    with pytest.raises(ValueError, match=r"starts\.npz: missing.*neuralsim\.storage\.manifest\.seal"):
        open_world(copied, "cpu")
    seal(copied)
    assert open_world(copied, "cpu").starts is None


# -- damage on the way -------------------------------------------------------------------------------------------------------------


def spoilt(data: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    """Copies of a file's bytes with something wrong: bits flipped anywhere, cut short, longer, blank."""
    luck = random.Random(seed)
    for place in sorted(luck.sample(range(len(data)), min(14, len(data)))):
        yield f"bit {place}", data[:place] + bytes([data[place] ^ (1 << luck.randrange(8))]) + data[place + 1 :]
    for part in (0.0, 0.1, 0.5, 0.9):
        yield f"the first {part:.0%}", data[: int(part * len(data))]
    yield "its last byte gone", data[:-1]
    yield "a byte more", data + b"\n"
    yield "zeros", bytes(len(data))
    yield "other bytes", bytes(luck.randrange(256) for _ in data[:4096]) + data[4096:]


@pytest.mark.parametrize("name", SEALED)
def test_any_damage_to_a_sealed_file_is_refused_by_its_name(name: str, copied: Path, whole: Path) -> None:
    original = open_world(whole, "cpu")
    for what, data in spoilt((whole / name).read_bytes(), seed=1):
        (copied / name).write_bytes(data)
        assert refused(copied, original, name), f"{name}, {what}: not noticed"


def test_any_damage_to_the_manifest_is_refused_or_harmless(copied: Path, whole: Path) -> None:
    original, told = open_world(whole, "cpu"), 0
    for _, data in spoilt((whole / MANIFEST).read_bytes(), seed=2):
        (copied / MANIFEST).write_bytes(data)
        told += refused(copied, original)
    assert told >= 15  # what is left only says who wrote it


@pytest.mark.parametrize(
    "change",
    [
        {"format": "1"},
        {"format": 0},
        {"format": True},
        {"format": None},
        {"neuralsim": 1},
        {"model": "LatentWorld"},
        {"model": []},
        {"spec": {}},
        {"spec": {"name": "other"}},
        {"spec": None},
        {"files": {}},
        {"files": []},
        {"files": {"../../etc/passwd": {"bytes": 1, "sha256": "0" * 64}}},
        {"files": {"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}},
        {"files": {CONFIG: {"bytes": "1", "sha256": "0" * 64}}},
        {"files": {CONFIG: {"bytes": 1, "sha256": "0" * 63}}},
        {"files": {CONFIG: "0" * 64}},
        {"more": 1},
    ],
    ids=str,
)
def test_a_manifest_that_is_none_or_of_another_world_is_refused(
    change: dict[str, Any], copied: Path, whole: Path
) -> None:
    body = json.loads((copied / MANIFEST).read_text())
    (copied / MANIFEST).write_text(json.dumps(body | change))
    assert refused(copied, open_world(whole, "cpu"), MANIFEST)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling link", "circle", "escaping link"])
def test_what_is_no_plain_file_of_its_own_is_refused(name: str, kind: str, copied: Path, whole: Path) -> None:
    path = copied / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling link":
        path.symlink_to(copied / "nowhere")
    elif kind == "circle":
        path.symlink_to(path)
    else:
        path.symlink_to(whole / name)
    assert refused(copied, open_world(whole, "cpu"), name)


def test_links_within_the_folder_and_a_link_to_it_are_fine(copied: Path, whole: Path, tmp_path: Path) -> None:
    (copied / WEIGHTS).rename(copied / "v2.safetensors")
    (copied / WEIGHTS).symlink_to("v2.safetensors")
    (tmp_path / "latest").symlink_to(copied)
    assert not refused(tmp_path / "latest", open_world(whole, "cpu"))


# -- strange files without a manifest ----------------------------------------------------------------------------------------------


def at(config: dict[str, Any], path: str, value: Any) -> None:
    *way, last = path.split(".")
    for key in way:
        config = config[key]
    if value is ...:
        del config[last]
    else:
        config[last] = value


CONFIGS: list[tuple[str, Any]] = [
    *(
        ("_class_name", v)
        for v in (..., None, 5, [], ["VideoWAM"], {}, "os.system", "LatentWorld", "WorldModel", "../x")
    ),
    *(("spec", v) for v in (..., None, [], "pusht", {}, {"name": "x"})),
    *(("spec.name", v) for v in (..., None, 5, [], "../../etc", "a/b", "a\\b", "a\nb", "\0")),
    *(("spec.height", v) for v in (..., None, "64", 64.0, True, 0, -64, 63, 72, 8 * 10**9, 10**400)),
    *(("spec.width", v) for v in ([64], 56)),
    *(("spec.action_names", v) for v in (..., None, "ab", [1, 2], ["a"], ["a", "b", "c"], [])),
    *(("spec.action_units", v) for v in ("ab", [None, None])),
    *(("spec.action_scale", v) for v in ("12", ["1", "2"], [1, None], [float("nan"), 1], [float("inf"), 1], [True, 1])),
    *(("spec.action_offset", v) for v in ([float("nan"), 0], [0], {"0": 1})),
    *(("spec.rate_hz", v) for v in (..., "10", 0, -1, float("nan"), float("inf"), False)),
    *(("spec.context", v) for v in (..., 0, 1.5, "4", None)),
    ("spec.gravity", 9.81),
    *(("codec_config", v) for v in (..., None, [], {"tokens": 2})),
    *(("codec_config.tokens", v) for v in (0, -1, 3, "2", 10**12)),
    *(("codec_config.size", v) for v in (None, 8.5, 10**9)),
    *(("codec_config.conv_width", v) for v in (10**7, 9, -8)),
    ("codec_config.kind", "os.system"),
    ("codec_config.more", 1),
    *(("stream_config.width", v) for v in (33, 10**6, -32, "32")),
    *(("stream_config.layers", v) for v in (0, 3, 10**9, 2.0)),
    *(("stream_config.heads", v) for v in (0, 3)),
    *(("stream_config.window", v) for v in (0, 2.5, 10**12)),
    *(("denoise_steps", v) for v in ("1", 1.5, None, [1], True)),
    *(("look_every", v) for v in (0, -3, 1.5, "10")),
    *(("state_names", v) for v in ("x", 5, ["x"], [1])),
    *((key, 1) for key in ("more", "auto_map", "quantization_config", "_use_default_values", "__class__")),
]


@pytest.mark.parametrize(("path", "value"), CONFIGS, ids=[f"{p}={str(v)[:20]}" for p, v in CONFIGS])
def test_a_config_that_does_not_fit_is_refused(path: str, value: Any, loose: Path, whole: Path) -> None:
    config = json.loads((loose / CONFIG).read_text())
    at(config, path, value)
    (loose / CONFIG).write_text(json.dumps(config))
    assert refused(loose, open_world(whole, "cpu"))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b"{}",
        b"\xff\xfe{\x00}\x00",
        b'{"_class_name": "Video\xe9"}',
        b"[" * 200_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"_class_name": "VideoWAM", "_class_name": "LatentWorld"}',
        b'{"_class_name": ' + b"9" * 5_000 + b"}",
        b" " * 4_000_001,
        b"\x80\x04\x95nonsense.",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_a_config_that_is_no_json_object_is_refused(text: bytes, loose: Path, whole: Path) -> None:
    (loose / CONFIG).write_bytes(text)
    assert refused(loose, open_world(whole, "cpu"), CONFIG)


def test_a_model_beyond_what_its_weights_explain_is_refused_before_it_takes_memory(loose: Path, whole: Path) -> None:
    config = json.loads((loose / CONFIG).read_text())
    at(config, "stream_config.width", 30_000)  # some 20 GB
    (loose / CONFIG).write_text(json.dumps(config))
    program = (
        "import resource, sys, neuralsim\n"
        "neuralsim.open_world(sys.argv[2], 'cpu')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    neuralsim.open_world(sys.argv[1], 'cpu')\n"
        "except ValueError as error:\n    print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(loose), str(whole)], capture_output=True, text=True, check=True
    )
    said, megabytes = ran.stdout.splitlines()
    assert "asks for a model of more than" in said
    assert int(megabytes) < 200


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return apply


def change_header(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return apply


def raw_weights(data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / WEIGHTS).write_bytes(data)


NAME = "stream.no_action"
STRANGE_WEIGHTS: dict[str, Callable[[Path], object]] = {
    "a tensor gone": change_weights(lambda t: t.pop(NAME)),
    "a tensor more": change_weights(lambda t: t.update(more=torch.zeros(1))),
    "a tensor of another name": change_weights(lambda t: t.update({"stream.No_action": t.pop(NAME)})),
    "another shape": change_weights(lambda t: t.update({NAME: t[NAME][:-1].contiguous()})),
    "another rank": change_weights(lambda t: t.update({NAME: t[NAME][None].contiguous()})),
    "whole numbers": change_weights(lambda t: t.update({NAME: t[NAME].to(torch.int32)})),
    "truth values": change_weights(lambda t: t.update({NAME: t[NAME] > 0})),
    "complex numbers": change_weights(lambda t: t.update({NAME: t[NAME].to(torch.complex64)})),
    "NaN": change_weights(lambda t: t[NAME].view(-1)[3:4].fill_(float("nan"))),
    "infinity": change_weights(lambda t: t[NAME].view(-1)[:1].fill_(float("inf"))),
    "minus infinity": change_weights(lambda t: t[NAME].view(-1)[:1].fill_(float("-inf"))),
    "a limit that is NaN": change_weights(lambda t: t["uncertainty_threshold"].fill_(float("nan"))),
    "nothing": change_weights(dict.clear),
    "a header of another type": change_header(lambda h: h[NAME].update(dtype="I32")),
    "a header of no type": change_header(lambda h: h[NAME].update(dtype="pickle")),
    "a header of another place": change_header(lambda h: h[NAME].update(data_offsets=[0, 128])),
    "a header beyond the end": change_header(lambda h: h[NAME].update(data_offsets=[10**12, 10**12 + 128])),
    "a header of negative size": change_header(lambda h: h[NAME].update(shape=[-32])),
    "a header too large": raw_weights(struct.pack("<Q", 2**62) + b"{}"),
    "a header that is no JSON": raw_weights(struct.pack("<Q", 2) + b"x}"),
    "deep JSON": raw_weights(struct.pack("<Q", 200_000) + b"[" * 200_000),
    "a pickle": raw_weights(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94."),
    "a zip": raw_weights(b"PK\x03\x04" + bytes(64)),
    "an empty file": raw_weights(b""),
    "no file": lambda folder: (folder / WEIGHTS).unlink(),
}


@pytest.mark.parametrize("what", STRANGE_WEIGHTS)
def test_weights_that_do_not_fit_are_refused(what: str, loose: Path, whole: Path) -> None:
    STRANGE_WEIGHTS[what](loose)
    assert refused(loose, open_world(whole, "cpu"), WEIGHTS)


def change_starts(**change: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        with np.load(folder / STARTS) as file:
            arrays = dict(file)
        for name, value in change.items():
            arrays[name] = value(arrays) if callable(value) else value
            if arrays[name] is None:
                del arrays[name]
        np.savez_compressed(folder / STARTS, **arrays)

    return apply


STRANGE_STARTS: dict[str, Callable[[Path], object]] = {
    "frames of another size": change_starts(frames=lambda a: np.ascontiguousarray(a["frames"][:, :, :32])),
    "frames of floats": change_starts(frames=lambda a: a["frames"].astype(np.float32)),
    "frames without colour": change_starts(frames=lambda a: a["frames"][..., 0]),
    "frames without time": change_starts(frames=lambda a: a["frames"][:, 0]),
    "no histories": change_starts(frames=lambda a: a["frames"][:0], actions=lambda a: a["actions"][:0]),
    "no frames": change_starts(frames=None),
    "no actions": change_starts(actions=None),
    "actions too many": change_starts(actions=lambda a: np.repeat(a["actions"], 2, 1)),
    "actions of another world": change_starts(actions=lambda a: np.repeat(a["actions"], 2, 2)),
    "actions too large": change_starts(actions=lambda a: a["actions"] * 0 + 2),
    "actions that are NaN": change_starts(actions=lambda a: a["actions"] * np.nan),
    "actions in words": change_starts(actions=lambda a: a["actions"].astype(str)),
    "states of others": change_starts(states=lambda a: a["states"][:2]),
    "states in words": change_starts(states=lambda a: a["states"].astype(str)),
    "seeds of others": change_starts(seeds=lambda a: a["seeds"][:2]),
    "seeds that are none": change_starts(seeds=lambda a: a["seeds"] + 0.5),
    "a pickle inside": change_starts(frames=np.array([{"a": 1}], object)),
    "a plain array": lambda folder: (folder / STARTS).write_bytes(
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'shape': (3,)}"
    ),
    "text": lambda folder: (folder / STARTS).write_text("frames"),
    "nothing": lambda folder: (folder / STARTS).write_bytes(b""),
}


@pytest.mark.parametrize("what", STRANGE_STARTS)
def test_starts_that_do_not_fit_are_refused(what: str, loose: Path, whole: Path) -> None:
    STRANGE_STARTS[what](loose)
    assert refused(loose, open_world(whole, "cpu"), STARTS)


def test_starts_that_would_fill_the_memory_are_refused_before_they_do(
    loose: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = open_world(whole, "cpu")
    monkeypatch.setattr("neuralsim.pretrained.starts.LARGEST_STARTS", 10**7)
    with zipfile.ZipFile(loose / STARTS, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frames.npy", bytes(10**7 + 1))
    assert (loose / STARTS).stat().st_size < 20_000
    assert refused(loose, original, "10000001 bytes unpacked, expected at most 10000000")


@pytest.mark.parametrize("seed", range(3))
def test_starts_damaged_anywhere_are_refused_or_the_same(seed: int, loose: Path, whole: Path) -> None:
    original = open_world(whole, "cpu")
    assert (
        sum([refused(_with(loose, STARTS, data), original) for _, data in spoilt((whole / STARTS).read_bytes(), seed)])
        > 10
    )


def _with(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder


def test_a_card_that_is_no_text_is_refused(loose: Path, whole: Path) -> None:
    (loose / CARD).write_bytes(b"\xff\xfe\x00")
    assert refused(loose, open_world(whole, "cpu"), CARD)


# -- classes of others -------------------------------------------------------------------------------------------------------------


def test_a_strangers_class_opens_once_it_is_made_known(
    dot_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuralsim.pretrained.world._REGISTERED", {})
    folder = dot_world.save(tmp_path / "dot")
    with pytest.raises(ValueError, match=r"unknown model class 'DotWorld'.*neuralsim\.register_model"):
        open_world(folder)
    assert neuralsim.register_model(type(dot_world.model)) is type(dot_world.model)
    assert same(open_world(folder, "cpu"), dot_world)
    assert register_model(type(dot_world.model)) is type(dot_world.model)


def test_a_class_that_cannot_be_a_world_is_not_made_known(
    dot_model: WorldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuralsim.pretrained.world._REGISTERED", {})
    with pytest.raises(TypeError, match="derived from WorldModel"):
        register_model(int)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="derived from WorldModel"):
        register_model(dot_model)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="lacks decode, encode"):
        register_model(WorldModel)
    with pytest.raises(ValueError, match=r"'VideoWAM' is the class neuralsim\.models\.video_wam\.VideoWAM"):
        register_model(type("VideoWAM", (type(dot_model),), {}))


def test_a_class_defined_anew_takes_the_old_ones_place(
    dot_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuralsim.pretrained.world._REGISTERED", {})
    old = type(dot_world.model)
    folder = dot_world.save(tmp_path / "dot")
    register_model(old)
    assert type(open_world(folder, "cpu").model) is old
    new = type("DotWorld", (old,), {"__module__": old.__module__, "__qualname__": old.__qualname__})
    register_model(new)
    assert type(open_world(folder, "cpu").model) is new


# -- the hub -----------------------------------------------------------------------------------------------------------------------


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """The few answers of the Hugging Face hub's HTTP interface that a download needs, for one repository ``me/tiny``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, []
        super().__init__(("127.0.0.1", 0), _Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        names = sorted(p.name for p in self.server.folder.iterdir())
        if path.startswith("/api/models/me/tiny/tree/"):
            self._json([{"type": "file", "path": n, "size": self._size(n), "oid": n.encode().hex()} for n in names])
        elif path.startswith("/api/models/me/tiny"):
            self._json({"id": "me/tiny", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]})
        elif path.startswith(f"/me/tiny/resolve/{COMMIT}/") and path.rsplit("/", 1)[1] in names:
            self._send((self.server.folder / path.rsplit("/", 1)[1]).read_bytes(), path.rsplit("/", 1)[1])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def _size(self, name: str) -> int:
        return (self.server.folder / name).stat().st_size

    def _json(self, body: Any) -> None:
        self._send(json.dumps(body).encode(), "json")

    def _send(self, data: bytes, name: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json" if name == "json" else "application/octet-stream")
        self.send_header("ETag", f'"{name.encode().hex()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *words: Any) -> None:
        """Nothing."""


@pytest.fixture
def hub(whole: Path, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub that has the whole world, and beside it what nobody asked for."""
    shelf = Path(shutil.copytree(whole, tmp_path / "shelf"))
    (shelf / "modeling.py").write_text("raise SystemExit('code was run')")
    (shelf / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    server = FakeHub(shelf)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def in_a_process(program: str, home: Path, url: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run ``program`` as a user would, with a Hugging Face cache of its own and ``url`` as the hub."""
    words = {"HF_HOME": str(home), "HF_ENDPOINT": url, "HF_HUB_DISABLE_TELEMETRY": "1", **more}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING_FACE", "TRANSFORMERS_"))}
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", program], cwd=home, env=kept | words, capture_output=True, text=True, timeout=60
    )


FIND = (
    "from neuralsim.storage.resolve import find\nprint(find({!r}).name)"  # without torch, which takes seconds to import
)
CLOSED = "http://127.0.0.1:9"  # nobody listens there


def test_a_world_comes_from_the_hub_once_and_only_its_own_files(hub: FakeHub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = in_a_process(
        "import neuralsim\nfrom neuralsim.models.video_wam import VideoWAM\n"
        "world = neuralsim.open_world('me/tiny', 'cpu')\nprint(world.folder.name, len(world.starts), world.card[:6])\n"
        "print(VideoWAM.from_pretrained('me/tiny').spec == world.spec)",
        home,
        hub.url,
    )
    assert first.stdout == f"{COMMIT} 6 # tiny\nTrue\n", first.stderr
    assert f"downloading world 'me/tiny' from {hub.url}" in first.stderr
    fetched = {path.rsplit("/", 1)[1] for path in hub.asked if "/resolve/" in path}
    assert fetched == set(FILES)
    hub.asked.clear()
    again = in_a_process(FIND.format("me/tiny"), home, hub.url)
    assert (again.stdout, again.stderr, hub.asked) == (f"{COMMIT}\n", "", [])
    offline = in_a_process(
        "import gymnasium as gym, neuralsim\nneuralsim.register('me/Tiny-v0', 'hub:me/tiny@main', horizon=3)\n"
        "print(gym.make('me/Tiny-v0', device='cpu').reset(seed=0)[0].shape)",
        home,
        CLOSED,
        HF_HUB_OFFLINE="1",
    )
    assert offline.stdout == "(64, 64, 3)\n", offline.stderr


def test_a_download_that_was_cut_short_is_finished_not_opened(hub: FakeHub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert in_a_process(FIND.format("me/tiny"), home, hub.url).stdout == f"{COMMIT}\n"
    snapshot = next(home.rglob(COMMIT))
    (snapshot / STARTS).unlink()
    offline = in_a_process(FIND.format("me/tiny"), home, CLOSED, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE forbids asking the hub" in offline.stderr
    again = in_a_process(FIND.format("me/tiny"), home, hub.url)
    assert again.stdout == f"{COMMIT}\n", again.stderr
    assert {path.name for path in snapshot.iterdir()} == set(FILES)


def test_a_cache_filled_by_others_serves_without_a_network(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout that every Hugging Face tool writes: blobs by hash, links to them in a snapshot."""
    repository = tmp_path / "home" / "hub" / "models--me--tiny"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "blobs").mkdir()
    for number, name in enumerate(FILES):
        shutil.copy(whole / name, repository / "blobs" / f"{number:040x}")
        (snapshot / name).symlink_to(f"../../blobs/{number:040x}")
    found = in_a_process(FIND.format("me/tiny"), tmp_path / "home", CLOSED, HF_HUB_OFFLINE="1")
    assert found.stdout == f"{COMMIT}\n", found.stderr
    original = open_world(whole, "cpu")
    assert not refused(snapshot, original)
    (snapshot / CARD).unlink()
    (snapshot / CARD).symlink_to("/etc/passwd")
    assert refused(snapshot, original, "README.md: a link out of the world's folder, to /etc/passwd")


@pytest.mark.parametrize(
    ("more", "url", "said"),
    [
        (
            {"HF_HUB_OFFLINE": "1"},
            CLOSED,
            "HF_HUB_OFFLINE forbids asking the hub; fetch it where that is allowed: hf download me/",
        ),
        ({}, CLOSED, "no folder here, and the hub could not be asked"),
        ({}, None, "no folder here, and the hub has none of that name"),
    ],
    ids=["offline", "unreachable", "unknown"],
)
def test_what_cannot_be_had_from_the_hub_is_told_in_a_sentence(
    more: dict[str, str], url: str | None, said: str, hub: FakeHub, tmp_path: Path
) -> None:
    program = "from neuralsim.storage.resolve import find\ntry:\n    find('me/other')\nexcept OSError as error:\n    print(error)"
    ran = in_a_process(program, tmp_path / "home", url or hub.url, **more)
    assert "world 'me/other'" in ran.stdout, ran.stderr
    assert said in ran.stdout
    assert len(ran.stdout.splitlines()) == 1


NOT_FOR_THE_HUB = (
    "psht",
    "runs/mine/world",
    "/abs/path",
    "./me/tiny",
    "../me",
    "~/world",
    "me/../tiny",
    "me/tiny/",
    "-me/tiny",
    "me/ti ny",
    "runs/mien",
    "me/tiny.git",
    "hub:tiny",
    "http://me/tiny",
    "me/tiny@",
)


def test_nothing_but_org_slash_name_ever_asks_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even from_pretrained, which in diffusers takes any wrong path for the name of a repository."""
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    said = []
    for name in (*NOT_FOR_THE_HUB, Path("me/tiny")):
        for opens in (open_world, VideoWAM.from_pretrained):
            with pytest.raises(FileNotFoundError, match="neither a shipped world") as refusal:
                opens(name)
            said.append(str(refusal.value))
    assert any("did you mean 'runs/mine'?" in text and "for the hub: hub:runs/mien" in text for text in said)


def test_from_pretrained_knows_the_shipped_worlds_by_name() -> None:
    assert VideoWAM.from_pretrained("pusht").spec == open_world("pusht", "cpu").spec


def test_a_process_killed_while_saving_leaves_the_old_world_or_a_refusal(copied: Path, whole: Path) -> None:
    """kill -9, at some moment or other of a save over and over."""
    program = (
        "import sys, neuralsim\nw = neuralsim.open_world(sys.argv[1], 'cpu')\nprint('ready', flush=True)\n"
        "while True:\n    w.save(sys.argv[1])"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(copied)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        threading.Event().wait(0.37)
        process.send_signal(signal.SIGKILL)
    refused(copied, open_world(whole, "cpu"))  # the same world was saved, so whatever opens must be it
    assert Starts.load(copied / STARTS, open_world(whole, "cpu").spec) is not None


# -- ranges, and the rules of reading when writing ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("denoise_steps", 2**31),
        ("denoise_steps", 0),
        ("spec.rate_hz", 1e-300),
        ("spec.rate_hz", 0),
        ("spec.context", 10**9),
        ("spec.action_scale", [-1.0, 1.0]),
        ("spec.action_names", ["x", "x"]),
        ("spec.name", "a/b"),
    ],
)
def test_a_number_out_of_range_is_refused_by_file_and_field(
    tiny_world: Path, tmp_path: Path, field: str, value: object
) -> None:
    folder = tmp_path / "world"
    shutil.copytree(tiny_world, folder)
    config = json.loads((folder / "config.json").read_text())
    *parents, name = field.split(".")
    (config[parents[0]] if parents else config)[name] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"config\.json.*{name}"):
        open_world(folder, "cpu")


@pytest.mark.parametrize("name", ["actions", "states"])
def test_starts_with_nan_are_refused(tiny_world: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "world"
    shutil.copytree(tiny_world, folder)
    with np.load(folder / "starts.npz") as file:
        arrays = dict(file)
    arrays[name] = arrays[name].copy()
    arrays[name][0, 0, 0] = np.nan
    np.savez(folder / "starts.npz", **arrays)
    with pytest.raises(ValueError, match=r"starts\.npz.*finite"):
        open_world(folder, "cpu")


@pytest.mark.parametrize("name", ["ALE/Pong-v5", "up/../down", "tab\there"])
def test_a_world_that_could_not_be_opened_is_not_saved(dot_model: Any, tmp_path: Path, name: str) -> None:
    spec = dataclasses.asdict(dot_model.spec) | {"name": name}
    world = World(type(dot_model)(spec=spec))
    with pytest.raises(ValueError, match=r"spec\.name: expected a plain word such as"):
        world.save(tmp_path / "world")
    with pytest.raises(ValueError, match=r"spec\.name: expected a plain word such as"):
        save_world(world.model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_at_saving_names_the_folder_and_keeps_the_old_world(
    dot_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dot_world.save(tmp_path / "world")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*args: Any, **kwargs: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("diffusers.models.modeling_utils.safetensors.torch.save_file", full)
    with pytest.raises(DiskFullError, match=r"world: the disk is full .* unchanged; make room"):
        dot_world.save(folder)
    monkeypatch.setattr("neuralsim.storage.weights.save_file", full)
    with pytest.raises(DiskFullError, match=r"safetensors: the disk is full"):
        save_world(dot_world.model, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
