"""Address of a dataset, as it is typed: ``minari:my/dataset-v0``, ``lerobot:folder``, ``robomimic:file.hdf5``."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from neuralsim.formats.dataset_reader import DatasetReader

KINDS = {
    "minari": "minari:my/dataset-v0",
    "lerobot": "lerobot:folder/",
    "robomimic": "robomimic:file.hdf5",
    "zarr": "zarr:folder.zarr",
    "video": "video:folder/",
}
"""Kinds of dataset that can be read, and the form of their addresses."""


@dataclass(frozen=True)
class DatasetURI:
    """Kind and place of a dataset; a ValueError lists the valid forms."""

    kind: str
    where: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS or not self.where:
            near = difflib.get_close_matches(self.kind, KINDS, 1, 0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"{str(self)!r}: expected one of {', '.join(KINDS.values())}{hint}")

    @classmethod
    def parse(cls, text: str) -> DatasetURI:
        """``kind:where``."""
        kind, _, where = text.partition(":")
        return cls(kind, where)

    def __str__(self) -> str:
        return f"{self.kind}:{self.where}"

    @property
    def stem(self) -> str:
        """A short name, from the last part of the path."""
        return self.where.rstrip("/").split("/")[-1].split(".")[0] or self.kind

    def open(self, root: Path | None = None, rate_hz: float | None = None) -> DatasetReader:
        """Open the dataset; ``root`` is the folder of all Minari datasets,
        ``rate_hz`` the control rate that videos are resampled to.

        Raises FileNotFoundError where nothing does, ValueError where it is no dataset of its kind.
        """
        path = Path(self.where).expanduser()
        match self.kind:
            case "minari":
                from neuralsim.formats.minari import MinariReader

                return MinariReader(self.where, root)
            case "lerobot":
                from neuralsim.formats.lerobot_reader import LeRobotReader

                return LeRobotReader(path)
            case "robomimic":
                from neuralsim.formats.robomimic import RobomimicReader

                return RobomimicReader(path)
            case "zarr":
                from neuralsim.formats.zarr_replay_buffer import ReplayBufferReader

                return ReplayBufferReader(path)
            case _:
                from neuralsim.formats.video_folder import VideoFolderReader

                return VideoFolderReader(path, rate_hz)
