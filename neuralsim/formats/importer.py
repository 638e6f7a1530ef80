"""Import of another project's dataset into an episode store, recording by recording, resumable.

Actions are normalised to [-1, 1] by the dataset's own bounds, which go on record, and choices are counted from 0; broken
recordings are left out by name. Each finished episode is kept, and the same command goes on after the last one.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import tyro

from neuralsim.data.episode import Episode
from neuralsim.data.errors import CorruptDataError, SkippedRecording, blaming
from neuralsim.data.images import CameraLayout
from neuralsim.data.shard_writer import ShardWriter
from neuralsim.data.store import EpisodeStore
from neuralsim.formats.action_mapping import ActionChoices, ActionScale, Meaning
from neuralsim.formats.dataset_reader import Recording
from neuralsim.formats.dataset_uri import DatasetURI
from neuralsim.runtime.command import CommandOutput
from neuralsim.runtime.files import check_space, folder_lock
from neuralsim.runtime.progress import progress
from neuralsim.spec import WorldSpec

SIZE, CONTEXT, RATE_HZ = 64, 4, 10.0
"""Frame side, context and control rate of a dataset that does not state its own."""
EPISODES_PER_SHARD = 100
SHARD_BYTES = 256 * 2**20
"""A shard ends when it has EPISODES_PER_SHARD episodes or the next one would make it larger than this."""
EPISODE_BYTES = SHARD_BYTES // 2
"""A recording whose frames take more is cut into several episodes, each beginning with the last frame of the one before."""


@dataclass(frozen=True)
class ImportConfig:
    """Read a dataset into an episode store."""

    source: str
    """Dataset to read: minari:my/dataset-v0, lerobot:folder/, robomimic:file.hdf5, zarr:folder.zarr or video:folder/."""
    name: Annotated[str | None, tyro.conf.arg(name="as")] = None
    """Name of the store, in data/<name>; the name of the dataset by default."""
    out: Path | None = None
    """Folder of the episode store, instead of data/<name>."""
    size: int | None = None
    """Frame side in pixels, a multiple of 8; 64 by default, and its own for a dataset that NeuralSim wrote."""
    camera: tuple[str, ...] = ()
    """Names of the cameras to use; all by default, side by side."""
    rate: float | None = None
    """Control rate in Hz, for a dataset that does not state its own (10 by default), or that videos are resampled to."""
    limit: int | None = None
    """Read no more recordings than this."""
    root: Path | None = None
    """Folder of all Minari datasets; Minari's own by default."""
    json: Path | None = None
    """Also write the figures to this file."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit: expected 1 or more, got {self.limit}")
        if self.size is not None and (self.size < 8 or self.size % 8):
            raise ValueError(f"--size: expected a positive multiple of 8, got {self.size}")
        if self.rate is not None and not 0 < self.rate < 10_000:
            raise ValueError(f"--rate: expected frames per second, got {self.rate:g}")
        _ = self.place  # says what can be read

    @property
    def place(self) -> DatasetURI:
        """Address of the dataset."""
        return DatasetURI.parse(self.source)

    @property
    def folder(self) -> Path:
        """Folder of the episode store."""
        return Path("data") / (self.name or self.place.stem) if self.out is None else self.out


@dataclass
class ImportReport:
    """Result of an import: recordings read (now and before), those left out with the reason, and remarks for the user."""

    store: Path
    read: int = 0
    now: int = 0
    left_out: list[SkippedRecording] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"store": str(self.store)}


class Importer:
    """One import: looks at the dataset when it is made, reads it in ``run``.

    Raises FileNotFoundError where there is no dataset, ValueError where it cannot be read or has no such camera.
    """

    def __init__(self, config: ImportConfig) -> None:
        self.config, self.report = config, ImportReport(config.folder)
        self.source = config.place.open(config.root, config.rate)
        about = self.about = self.source.about
        self.cameras = _chosen(about.cameras, config)
        self.acted = "actions" in about.given
        self.scale = self._action_scale()
        own_size = about.spec is not None and config.size is None
        self.layout = CameraLayout(None if own_size else config.size or SIZE)
        self.spec = self._spec()
        self.report.remarks += [*about.remarks, *self._remarks()]
        self._seen: set[str] = set()

    @property
    def recordings(self) -> int | None:
        """Number of recordings to look at; None where it is unknown."""
        found = [n for n in (self.about.recordings, self.config.limit) if n is not None]
        return min(found, default=None)

    def run(self) -> Iterator[int]:
        """Read everything that is not in the store yet; yields the number of recordings looked at, one by one.

        Raises ValueError where the folder holds anything else or no recording can be read, BlockingIOError where another
        process is importing there, OSError when the disk is full.
        """
        folder = self.report.store
        new = not (folder / "store.json").is_file()
        self._check_space(folder)
        store = EpisodeStore.create(folder, self.spec, self.about.state_names)
        with folder_lock(folder, "importing"):
            store.finish_shards()
            self._check_same(store)
            store.set_source(self._record())
            yield from self._read_into(store)
            self.report.remarks += [note for note in self.source.notes.values() if note not in self.report.remarks]
            store.set_source(self._record())
            if not len(store):
                if new:
                    shutil.rmtree(folder)
                raise ValueError(f"{self.config.source}: no recording can be read{_reasons(self.report.left_out)}")

    def _read_into(self, store: EpisodeStore) -> Iterator[int]:
        written = Counter(_key(store.provenance(i)) for i in range(len(store)))
        with _ShardSequence(store) as shards:
            for looked_at, item in enumerate(self.source.recordings(self.cameras), 1):
                if isinstance(item, SkippedRecording):
                    self.report.left_out.append(item)
                elif _is_written(self._provenance(item), written):
                    self.report.read += 1
                else:
                    try:
                        for episode in self._episodes(item):
                            if not written[_key(episode.provenance)]:
                                shards.add(episode)
                    except CorruptDataError as error:
                        self.report.left_out.append(
                            SkippedRecording(item.where, str(error).removeprefix(f"{item.where}: "))
                        )
                    else:
                        self.report.read += 1
                        self.report.now += 1
                yield looked_at
                if self.report.read == self.config.limit:
                    break

    def _episodes(self, recording: Recording) -> Iterator[Episode]:
        """A recording as one episode, or as several where it is very long; CorruptDataError where its parts do not fit."""
        longest = max(2, EPISODE_BYTES // (self.spec.height * self.spec.width * 3))
        with blaming(recording.where):
            arrays = self._arrays(recording)
        held: list[np.ndarray] = []
        first = part = 0
        for frame in self._frames(recording):
            if len(held) == longest:  # and there is one more
                with blaming(recording.where):
                    yield self._episode(recording, arrays, held, first, {"part": part, "last_part": False})
                first, part, held = first + longest - 1, part + 1, held[-1:]
            held.append(frame)
        with blaming(recording.where):
            steps = first + len(held) - 1
            if wrong := {name: len(a) for name, a in arrays.items() if len(a) != steps + (name == "states")}:
                raise CorruptDataError(
                    f"{recording.where}: has {steps + 1} frames for {wrong}; expected a frame more than steps"
                )
            yield self._episode(recording, arrays, held, first, {"part": part, "last_part": True} if part else {})

    def _arrays(self, recording: Recording) -> dict[str, np.ndarray]:
        """Arrays of the recording per step or frame, as the store keeps them."""
        arrays: dict[str, np.ndarray] = {}
        if self.scale is not None and recording.actions is not None:
            actions = self.scale.normalise(recording.actions, self.spec.action_names)
            arrays["actions"] = self.spec.check_actions(actions, "actions")
        for name, kind in (("rewards", np.float32), ("states", np.float32), ("terminated", bool), ("truncated", bool)):
            values = getattr(recording, name)
            if values is not None:
                arrays[name] = values.astype(kind)
        return arrays

    def _frames(self, recording: Recording) -> Iterator[np.ndarray]:
        frames = iter(recording.frames)
        while True:
            with blaming(recording.where):
                images = next(frames, None)
                if images is None:
                    return
                frame = self.spec.check_frames(self.layout(images))
            for camera, image in zip(self.cameras, images, strict=True):
                if camera not in self._seen:
                    self._seen.add(camera)
                    about = self.layout.about(camera, *image.shape[:2])
                    self.report.remarks += [about] if about else []
            yield frame

    def _provenance(self, recording: Recording) -> dict[str, Any]:
        return recording.provenance | ({} if self.acted else {"actions": "absent"})

    def _episode(
        self,
        recording: Recording,
        arrays: dict[str, np.ndarray],
        held: list[np.ndarray],
        first: int,
        part: dict[str, Any],
    ) -> Episode:
        frames, steps = np.stack(held), len(held) - 1
        here = {name: array[first : first + steps + (name == "states")] for name, array in arrays.items()}
        provenance = self._provenance(recording) | part
        if not self.acted:
            return Episode.of_video(frames, provenance, here.get("states"))
        nothing = np.zeros(steps, np.float32)
        return Episode(
            frames,
            here["actions"],
            here.get("rewards", nothing),
            here.get("terminated", nothing.astype(bool)),
            here.get("truncated", nothing.astype(bool)),
            here.get("states"),
            provenance,
        )

    # -- what is decided before the first frame -----------------------------------------------------------------------------

    def _action_scale(self) -> Meaning | None:
        if not self.acted:
            return None
        if self.about.scale is not None:
            return self.about.scale
        left_out: list[SkippedRecording] = []
        try:
            return ActionScale.of_actions(_kept(self.source.actions(), left_out))
        except ValueError as error:
            raise ValueError(f"{self.config.source}: {error}{_reasons(left_out)}") from error

    def _spec(self) -> WorldSpec:
        about = self.about
        if about.spec is not None:
            if self.layout.size is None:
                return about.spec
            height, width = self.layout.shape(1)
            return replace(about.spec, height=height, width=width)
        height, width = self.layout.shape(len(self.cameras))
        return WorldSpec(
            name=self.config.name or self.report.store.name,
            height=height,
            width=width,
            action_names=about.action_names,
            action_units=about.action_units or ("unknown",) * len(about.action_names),
            action_scale=self.scale.scale if self.scale else (),
            action_offset=self.scale.offset if self.scale else (),
            action_choices=self.scale.counts if isinstance(self.scale, ActionChoices) else (),
            rate_hz=about.rate_hz or self.config.rate or RATE_HZ,
            context=CONTEXT,
        )

    def _remarks(self) -> Iterator[str]:
        about, config = self.about, self.config
        if len(self.cameras) > 1:
            yield f"cameras {', '.join(self.cameras)}: side by side in one frame; --camera takes one"
        if about.rate_hz is None and about.spec is None:
            origin = "as you say" if config.rate else "a guess; state it with --rate"
            yield f"the dataset does not state its control rate: {self.spec.rate_hz:g} Hz, {origin}"
        if not self.acted:
            yield "actions: absent; these episodes are video alone, and no training on actions will take them"
            return
        if missing := [name for name in ("rewards", "terminated", "truncated") if name not in about.given]:
            yield f"not given, and zero in the store: {', '.join(missing)}"
        if isinstance(self.scale, ActionChoices) and about.spec is None:
            counts = zip(self.spec.action_names, self.scale.counts, strict=True)
            yield f"actions are choices: {', '.join(f'{name} of {count}' for name, count in counts)}"
        if self.scale and (constant := self.scale.constant(self.spec.action_names)):
            yield f"actions that never change: {', '.join(f'{n} (always {v:g})' for n, v in constant.items())}"

    def _record(self) -> dict[str, Any]:
        """Return the record for ``StoreInfo.source``."""
        record = dict(self.about.source or {}) | {
            "from": self.config.source,
            "format": self.about.format,
            "cameras": list(self.cameras),
            "given": sorted(self.about.given),
            "left_out": [asdict(item) for item in self.report.left_out],
        }
        if self.scale is not None and self.about.spec is None:
            record |= {
                "action_bounds_from": self.scale.origin,
                "constant": self.scale.constant(self.spec.action_names),
            }
        return record

    def _check_same(self, store: EpisodeStore) -> None:
        there, asked = store.info.source, self._record()
        for name in ("from", "cameras"):
            if len(store) and there.get(name) != asked[name]:
                raise ValueError(
                    f"{store.folder}: holds episodes from {there.get(name, 'elsewhere')}, not {asked[name]}; give the same "
                    "arguments to go on with it, or choose another --as"
                )

    def _check_space(self, folder: Path) -> None:
        """Raise DiskFullError before the first episode rather than after the thousandth."""
        frames, recordings = self.about.frames, self.about.recordings
        if frames is None:
            return
        if recordings and self.recordings:
            frames = frames * self.recordings // recordings
        written = sum(f.stat().st_size for f in folder.glob("shard-*/**/frames.npy"))
        needed = frames * self.spec.height * self.spec.width * 3 - written
        check_space(folder, needed, f"{frames} frames", "choose another --out, a smaller --size or a --limit")


class _ShardSequence:
    """Writes episodes into the last shard while it has room, then into the next; a context manager."""

    def __init__(self, store: EpisodeStore) -> None:
        numbers = store.shard_numbers()
        self._store, self._number = store, numbers[-1] if numbers else 0
        last = [
            int(n) for (shard, *_), n in zip(store.entries, store.lengths, strict=True) if shard == len(numbers) - 1
        ]
        self._episodes, self._frames = len(last), sum(last) + len(last)
        self._frame_bytes = store.spec.height * store.spec.width * 3
        self._writer: ShardWriter | None = None

    def add(self, episode: Episode) -> None:
        full = (self._frames + len(episode.frames)) * self._frame_bytes > SHARD_BYTES
        if self._episodes == EPISODES_PER_SHARD or (full and self._episodes):
            self._close()
            self._number, self._episodes, self._frames = self._number + 1, 0, 0
        if self._writer is None:
            self._writer = self._store.open_shard(self._number)
        self._writer.add(episode)
        self._episodes, self._frames = self._episodes + 1, self._frames + len(episode.frames)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._store.refresh()


def _key(provenance: dict[str, Any]) -> str:
    return json.dumps(provenance, sort_keys=True)


def _is_written(provenance: dict[str, Any], written: Counter[str]) -> bool:
    """Return True where a whole recording is among the ``written`` episodes, and take it out of them."""
    if written[_key(provenance)]:
        written[_key(provenance)] -= 1
        return True
    for part in itertools.count():
        if written[_key(provenance | {"part": part, "last_part": True})]:
            return True
        if not written[_key(provenance | {"part": part, "last_part": False})]:
            break
    return False


def _kept(found: Iterable[np.ndarray | SkippedRecording], left_out: list[SkippedRecording]) -> Iterator[np.ndarray]:
    """Yield the readable items; the others go to ``left_out``."""
    for item in found:
        if isinstance(item, SkippedRecording):
            left_out.append(item)
        else:
            yield item


def _reasons(left_out: list[SkippedRecording]) -> str:
    told = "; ".join(f"{item.where}: {item.why}" for item in left_out[:3])
    return f" ({told})" if told else ""


def _chosen(there: tuple[str, ...], config: ImportConfig) -> tuple[str, ...]:
    """The cameras to use."""
    for name in config.camera:
        if name not in there:
            raise ValueError(f"--camera {name}: no such camera in {config.source}; there: {', '.join(there)}")
    return config.camera or there


def import_dataset(config: ImportConfig) -> ImportReport:
    """Import the dataset that ``config`` names into an episode store; returns the folder and what was skipped.

    Raises as `Importer` and its ``run`` do.
    """
    importer = Importer(config)
    for _ in importer.run():
        pass
    return importer.report


LISTED = 20
"""Recordings left out that the command names one by one."""


def import_command(config: ImportConfig) -> CommandOutput:
    """Run an `Importer` behind a progress bar and return its figures."""
    importer = Importer(config)
    report = importer.report
    early = [print(remark) for remark in report.remarks]
    with progress(passing=False) as bar:
        task = bar.add_task("recordings", total=importer.recordings)
        for done in importer.run():
            bar.update(task, completed=done)
    store, more = EpisodeStore(report.store), len(report.left_out) - LISTED
    lines = [
        *report.remarks[len(early) :],
        *(f"left out: {item.where}: {item.why}" for item in report.left_out[:LISTED]),
        *([f"left out: {more} more; store.json and --json name all"] if more > 0 else []),
        f"{report.store}: {len(store)} episodes, {store.frames} frames; {report.now} recordings read now",
        f"look at it with 'neuralsim data {report.store}'",
    ]
    figures = report.figures() | {"episodes": len(store), "frames": store.frames}
    return CommandOutput(lines=lines, json=config.json, figures=figures)
