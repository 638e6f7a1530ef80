"""robomimic's HDF5, which RoboCasa, LIBERO and MimicGen use too: one file, one group per demonstration.

``data/demo_0``: ``actions`` ``(N, a)``, ``rewards`` and ``dones`` ``(N,)``, ``obs/<key>`` ``(N, ...)``, images ``(N, h, w, c)`` or
``(N, c, h, w)`` as uint8 or floats; where ``next_obs/<key>`` is there too, it shows the result of the last action. The attribute
``macros_image_convention`` (robosuite, LIBERO) says whether images begin at the bottom row. HDF5 verifies checksums where a file
has them (fletcher32); most have none, and a flipped bit goes unseen in those.
Layout: https://robomimic.github.io/docs/datasets/overview.html
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuralsim.data.errors import CorruptDataError, SkippedRecording, blaming
from neuralsim.data.images import Images, PixelLayout
from neuralsim.formats.dataset_reader import LAST_ROW, DatasetInfo, Recording, RowSpan, each, flags, numbers
from neuralsim.runtime.imports import require_extra

FRAMES_AT_ONCE = 32
"""Images are read in blocks of this many."""
PER_STEP = {"rewards": "rewards", "terminated": "dones"}
"""Our name and robomimic's of what is given per step."""


@dataclass(frozen=True)
class Fields:
    """Contents of a demonstration.

    Attributes:
        actions: Width of the actions.
        vectors: Vectors of floats, with their widths.
        cameras: Image arrays.
        given: Keys of PER_STEP that are there.
        after: True where ``next_obs`` has all vectors and images.
        aside: Keys that are neither vector nor camera, with their dtype and shape.
    """

    actions: int
    vectors: tuple[tuple[str, int], ...]
    cameras: tuple[str, ...]
    given: tuple[str, ...]
    after: bool
    aside: tuple[str, ...]

    @classmethod
    def of(cls, demo: Any) -> Fields:
        """Read them from the group of one demonstration."""
        shapes = {key: (v.shape[1:], v.dtype) for key, v in sorted(demo["obs"].items()) if hasattr(v, "shape")}
        vectors = {k: int(np.prod(shape)) for k, (shape, kind) in shapes.items() if len(shape) < 2 and kind.kind == "f"}
        cameras = tuple(k for k, (s, kind) in shapes.items() if PixelLayout.of(s, kind) is not None)
        return cls(
            int(np.prod(demo["actions"].shape[1:])),
            tuple(vectors.items()),
            cameras,
            tuple(our for our, their in PER_STEP.items() if their in demo),
            all(key in (demo.get("next_obs") or {}) for key in (*cameras, *vectors)),
            tuple(
                f"obs/{key} {shapes[key][1]} {shapes[key][0]}" if key in shapes else f"obs/{key}"
                for key in sorted(set(demo["obs"]) - set(cameras) - set(vectors))
            ),
        )


class RobomimicReader:
    """The demonstrations in the HDF5 file ``path``.

    Raises FileNotFoundError where there is none, ValueError where it is no such file or has no images.
    """

    def __init__(self, path: Path) -> None:
        self.notes: dict[Path, str] = {}
        with require_extra("robomimic's format", "data"):
            import h5py

        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected an HDF5 file of robomimic's layout")
        self.path, self._h5py = path, h5py
        with blaming(f"{path}"), h5py.File(path, "r") as file:
            if not isinstance(file.get("data"), h5py.Group):
                raise CorruptDataError(
                    f"{path}: expected a group 'data' with a group per demonstration, got {sorted(file)}"
                )
            self._demos = sorted(file["data"], key=_number)
            rate = _control_rate(file["data"].attrs.get("env_args"))
            total = _count(file["data"].attrs.get("total"))
            convention = file["data"].attrs.get("macros_image_convention", file.attrs.get("macros_image_convention"))
            found = list(each(self._demos, self._where, lambda name: Fields.of(file["data"][name])))
        known = Counter(item for item in found if isinstance(item, Fields))
        if not known:
            why = [f"{item.where}: {item.why}" for item in found if isinstance(item, SkippedRecording)]
            raise ValueError(f"{path}: no demonstration can be read ({'; '.join(why[:3]) or 'there is none'})")
        # What is usual, for a damaged one must not stand for all; of equals, what knows most.
        self._fields = max(known, key=lambda f: (known[f], len(f.vectors) + len(f.cameras) + len(f.given)))
        if not self._fields.cameras:
            there = ", ".join([*(f"obs/{key} ({width})" for key, width in self._fields.vectors), *self._fields.aside])
            raise ValueError(
                f"{path}: no images, (N, h, w, 3) or (N, 3, h, w), in 'obs'; there: {there or 'nothing'}; robomimic's "
                "dataset_states_to_obs.py makes images of states"
            )
        aside = ", ".join(self._fields.aside)
        self._flipped = _is_opengl(convention)
        self.about = DatasetInfo(
            format="robomimic HDF5",
            cameras=self._fields.cameras,
            action_names=tuple(f"action_{i}" for i in range(self._fields.actions)),
            state_names=tuple(
                key if width == 1 else f"{key}_{i}" for key, width in self._fields.vectors for i in range(width)
            ),
            given=frozenset({"actions", *self._fields.given}),
            recordings=len(self._demos),
            frames=total,
            rate_hz=rate,
            remarks=(
                *([f"left aside: {aside} (neither images nor vectors of floats)"] if aside else []),
                *(
                    ["images begin at the bottom row (macros_image_convention opengl): they are turned up"]
                    if self._flipped
                    else []
                ),
                *([] if self._fields.after else [LAST_ROW]),
            ),
        )

    def actions(self) -> Iterator[np.ndarray | SkippedRecording]:
        with self._h5py.File(self.path, "r") as file:
            yield from each(self._demos, self._where, lambda name: self._actions(file["data"][name]))

    def recordings(self, cameras: Sequence[str]) -> Iterator[Recording | SkippedRecording]:
        with self._h5py.File(self.path, "r") as file:
            yield from each(self._demos, self._where, lambda name: self._recording(file["data"][name], name, cameras))

    def _where(self, name: str) -> str:
        return f"{self.path}: data/{name}"

    def _read(self, demo: Any, field: str, width: int | None = None, rows: int | None = None) -> np.ndarray:
        with blaming(field):
            return numbers(demo[field][()], field, width, rows)

    def _actions(self, demo: Any) -> np.ndarray:
        return self._read(demo, "actions", self._fields.actions)

    def _recording(self, demo: Any, name: str, cameras: Sequence[str]) -> Recording:
        fields, index = self._fields, self._demos.index(name)
        rows = {"actions": self._actions(demo)}
        n = len(rows["actions"])
        for our in fields.given:
            values = self._read(demo, PER_STEP[our], rows=n)
            rows[our] = flags(values, PER_STEP[our]) if our == "terminated" else values
        states = [self._read(demo, f"obs/{key}", width, n) for key, width in fields.vectors]
        if fields.after:
            last = [self._read(demo, f"next_obs/{key}", width, n)[-1:] for key, width in fields.vectors]
            states = [np.concatenate(pair) for pair in zip(states, last, strict=True)]
        steps = RowSpan(rows) if fields.after else RowSpan.of_rows(rows)
        for camera in cameras:
            images = demo["obs"][camera]
            if len(images) != n or PixelLayout.of(images.shape[1:], images.dtype) is None:
                raise CorruptDataError(
                    f"obs/{camera}: expected {n} images (h, w, 3) or (3, h, w), got {images.dtype} {images.shape}"
                )
        provenance = {"seed": index, "policy": "unknown", "version": "robomimic", "index": index, "demo": name}
        return Recording(
            self._where(name),
            _frames(demo, cameras, n, fields.after, self._flipped),
            provenance | ({"unseen": steps.unseen} if steps.unseen else {}),
            states=np.concatenate(states, axis=1) if states else None,
            **steps.arrays,
        )


def _frames(demo: Any, cameras: Sequence[str], rows: int, after: bool, flipped: bool) -> Iterator[Images]:
    parts = [("obs", first, min(first + FRAMES_AT_ONCE, rows)) for first in range(0, rows, FRAMES_AT_ONCE)]
    parts += [("next_obs", rows - 1, rows)] if after else []
    for group, first, stop in parts:
        blocks = []
        for camera in cameras:
            with blaming(f"{group}/{camera}"):
                images = demo[group][camera]
                layout = PixelLayout.of(images.shape[1:], images.dtype)
                if layout is None:
                    raise CorruptDataError(f"expected images, got {images.dtype} {images.shape}")
                block = layout.pixels(images[first:stop], _brightest(images))
                blocks.append(block[:, ::-1] if flipped else block)
        yield from zip(*blocks, strict=True)


def _brightest(images: Any) -> float:
    """255 or 1: the range of an array of images, by its first rows."""
    return 255.0 if images.dtype == np.uint8 or np.nanmax(images[:FRAMES_AT_ONCE], initial=0) > 1 else 1.0


def _is_opengl(convention: Any) -> bool:
    """True where images begin at the bottom row (robosuite's macros.IMAGE_CONVENTION)."""
    word = convention.decode(errors="replace") if isinstance(convention, bytes) else str(convention)
    return word.strip().lower() == "opengl"


def _count(value: Any) -> int | None:
    """The attribute ``total``, where it is a sensible number; it is a hint only."""
    try:
        count = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return count if count > 0 else None


def _number(name: str) -> tuple[int, str]:
    """demo_10 comes after demo_9."""
    digits = re.search(r"(\d+)$", name)
    return (int(digits.group(1)) if digits else -1, name)


def _control_rate(arguments: Any) -> float | None:
    """``control_freq`` in the ``env_args`` attribute, where it says so."""
    try:
        return float(json.loads(arguments)["env_kwargs"]["control_freq"])
    except (TypeError, ValueError, KeyError):
        return None
