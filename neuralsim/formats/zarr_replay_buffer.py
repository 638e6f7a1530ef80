"""Replay buffers in zarr, as diffusion-policy and UMI write them: all episodes end to end, ``meta/episode_ends`` holds the row after each.

``data/<key>`` ``(N, ...)``: images ``(N, h, w, 3)`` as uint8 or floats, vectors ``(N, d)``, ``action`` ``(N, a)``. UMI keeps no
action: there it is how each hand moves until the next row, in the hand's own frame (metres, rotation vector in radians, width).
A chunk is checked where its codec has a checksum. Layouts: diffusion_policy/common/replay_buffer.py; https://umi-data.github.io
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from neuralsim.data.errors import CorruptDataError, SkippedRecording, blaming
from neuralsim.data.images import Images, PixelLayout
from neuralsim.formats.dataset_reader import LAST_ROW, DatasetInfo, Recording, RowSpan, each, flags, numbers
from neuralsim.formats.zarr_arrays import ZarrArrays

FRAMES_AT_ONCE = 32
"""Images are read in blocks of this many."""
PER_STEP = {"rewards": ("reward", "rewards"), "terminated": ("terminated", "done", "dones", "terminals")}
"""Our name of what may be given per step, and what it may be called."""
LEAKS = re.compile(r"_demo_(start|end)_pose$")
"""UMI's notes on where a whole demonstration starts and ends are no state of any moment."""
HAND_NAMES = ("x", "y", "z", "rx", "ry", "rz", "width")
HAND_UNITS = ("m", "m", "m", "rad", "rad", "rad", "m")
"""Dimensions of UMI's actions per hand, and their units."""


class ReplayBufferReader:
    """The replay buffer in the folder or zip file ``path``.

    Raises FileNotFoundError where there is nothing, ValueError where it is no replay buffer or has no images or actions.
    """

    def __init__(self, path: Path) -> None:
        self.notes: dict[Path, str] = {}
        self.path, self._buffer = path, ZarrArrays(path)
        shapes, remarks = self._buffer.shapes(), list(self._buffer.remarks)
        layouts = {key: PixelLayout.of(shape, kind) for key, (shape, kind) in shapes.items()}
        self._layouts = {key: layout for key, layout in layouts.items() if layout is not None}
        cameras = tuple(self._layouts)
        if not cameras:
            there = "; ".join([f"{key} {kind} {shape}" for key, (shape, kind) in shapes.items()] + remarks)
            raise ValueError(
                f"{path}: expected images, uint8 or floats (N, h, w, 3) or (N, 3, h, w), in data/; there: {there}"
            )
        found = {our: next((k for k in names if k in shapes), None) for our, names in PER_STEP.items()}
        self._per_step = {our: key for our, key in found.items() if key is not None}
        self._vectors = {
            key: int(np.prod(shape))
            for key, (shape, kind) in shapes.items()
            if len(shape) < 2
            and kind.kind == "f"
            and key not in ("action", *self._per_step.values())
            and not LEAKS.search(key)
        }
        self._hands = sorted(key.removesuffix("_eef_pos") for key in shapes if key.endswith("_eef_pos"))
        units: tuple[str, ...] = ()
        if "action" in shapes:
            self._hands = []
            names = tuple(f"action_{i}" for i in range(int(np.prod(shapes["action"][0]))))
            remarks.append(LAST_ROW)
        elif self._hands:
            names, units = (
                tuple(f"{hand}_{name}" for hand in self._hands for name in HAND_NAMES),
                HAND_UNITS * len(self._hands),
            )
            remarks.append("no data/action: an action is how a hand moves until the next row, in its own frame (UMI)")
        else:
            raise ValueError(f"{path}: expected data/action or UMI's data/robot0_eef_pos; there: {', '.join(shapes)}")
        self._brightest = {key: self._top(key) for key in cameras}
        remarks += [
            f"data/{key} has floats in 0..{top:g}: rounded to 0..255"
            for key, top in self._brightest.items()
            if shapes[key][1] != np.uint8
        ]
        if aside := sorted(set(shapes) - {*cameras, *self._vectors, *self._per_step.values(), "action"}):
            remarks.append(f"left aside: data/{', data/'.join(aside)}")
        self.about = DatasetInfo(
            format="zarr replay buffer",
            cameras=cameras,
            action_names=names,
            action_units=units,
            state_names=tuple(k if n == 1 else f"{k}_{i}" for k, n in self._vectors.items() for i in range(n)),
            given=frozenset({"actions", *self._per_step}),
            recordings=len(self._buffer.ends),
            frames=int(self._buffer.ends[-1]),
            remarks=tuple(remarks),
        )

    def actions(self) -> Iterator[np.ndarray | SkippedRecording]:
        return each(range(len(self._buffer.ends)), self._where, lambda index: self._steps(index).arrays["actions"])

    def recordings(self, cameras: Sequence[str]) -> Iterator[Recording | SkippedRecording]:
        return each(range(len(self._buffer.ends)), self._where, lambda index: self._recording(index, cameras))

    def _where(self, index: int) -> str:
        return f"{self.path}: episode {index}"

    def _numbers(self, key: str, index: int, width: int | None = None) -> np.ndarray:
        return numbers(self._buffer.read(key, *self._buffer.rows(index)), f"data/{key}", width)

    def _steps(self, index: int) -> RowSpan:
        per_step = {our: self._numbers(key, index) for our, key in self._per_step.items()}
        if "terminated" in per_step:
            per_step["terminated"] = flags(per_step["terminated"], f"data/{self._per_step['terminated']}")
        if not self._hands:
            return RowSpan.of_rows(
                {"actions": self._numbers("action", index, len(self.about.action_names)), **per_step}
            )
        moves = np.concatenate([self._moves(hand, index) for hand in self._hands], axis=1)
        return RowSpan({"actions": moves, **{our: values[:-1] for our, values in per_step.items()}})

    def _moves(self, hand: str, index: int) -> np.ndarray:
        """Motion of ``hand`` from each row to the next ``(N-1, 7)``."""
        parts = {f"{hand}_eef_pos": 3, f"{hand}_eef_rot_axis_angle": 3, f"{hand}_gripper_width": 1}
        if missing := set(parts) - set(self._buffer.arrays):
            raise CorruptDataError(
                f"data/{', data/'.join(sorted(missing))} is missing; an action needs the hand's pose and width"
            )
        place, turn, width = (self._numbers(key, index, size) for key, size in parts.items())
        if len(place) < 2:
            raise CorruptDataError(f"data/{hand}_eef_pos: has one row; a move needs two")
        return hand_moves(place, turn, width)

    def _recording(self, index: int, cameras: Sequence[str]) -> Recording:
        steps = self._steps(index)
        states = [self._numbers(key, index, width) for key, width in self._vectors.items()]
        provenance = {"seed": index, "policy": "unknown", "version": "zarr replay buffer", "index": index}
        return Recording(
            self._where(index),
            self._frames(index, cameras),
            provenance | ({"unseen": steps.unseen} if steps.unseen else {}),
            states=np.concatenate(states, axis=1) if states else None,
            **steps.arrays,
        )

    def _frames(self, index: int, cameras: Sequence[str]) -> Iterator[Images]:
        first, stop = self._buffer.rows(index)
        for begin in range(first, stop, FRAMES_AT_ONCE):
            end = min(begin + FRAMES_AT_ONCE, stop)
            blocks = [self._pixels(camera, self._buffer.read(camera, begin, end)) for camera in cameras]
            yield from zip(*blocks, strict=True)

    def _top(self, camera: str) -> float:
        """255 or 1: up to where a camera's pixels go, by its first rows."""
        if self._buffer.arrays[camera].dtype == np.uint8:
            return 255.0
        with blaming(f"{self.path}: data/{camera}"):
            return 255.0 if np.nanmax(self._buffer.arrays[camera][:FRAMES_AT_ONCE]) > 1 else 1.0

    def _pixels(self, camera: str, block: np.ndarray) -> np.ndarray:
        """Convert ``block`` to uint8 ``(n, h, w, 3)``; CorruptDataError for numbers that are no pixels."""
        with blaming(f"data/{camera}"):
            return self._layouts[camera].pixels(block, self._brightest[camera])


def hand_moves(place: np.ndarray, turn: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Motion of a hand-held gripper from each row to the next, in its own frame ``(N-1, 7)``: m, rotation vector in rad, opening in m.

    place ``(N, 3)``, turn ``(N, 3)`` as rotation vectors, width ``(N, 1)``, all in one fixed frame.
    """
    import cv2  # heavy

    facing = np.stack([cv2.Rodrigues(vector)[0] for vector in turn])
    shift = np.einsum("tji,tj->ti", facing[:-1], np.diff(place, axis=0))
    turned = np.stack([cv2.Rodrigues(a.T @ b)[0][:, 0] for a, b in itertools.pairwise(facing)])
    return np.concatenate([shift, turned, np.diff(width, axis=0)], axis=1)
