"""Minari, Gymnasium's standard for recorded episodes: local datasets in and out.

Nothing is downloaded: datasets live below a root folder (Minari's own default is ``~/.minari/datasets``). Frames go in raw,
not as Minari's default JPEG, so a store that went out and came back is equal to the bit: true states travel as
``infos["state"]``, provenance as episode metadata, the world spec and source as dataset metadata.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from neuralsim.data.episode import Episode
from neuralsim.data.errors import CorruptDataError, SkippedRecording, blaming
from neuralsim.data.images import Images
from neuralsim.data.store import EpisodeStore, StoreInfo
from neuralsim.formats.action_mapping import ActionChoices, ActionScale, Meaning, meaning_of
from neuralsim.formats.dataset_reader import DatasetInfo, Recording, each, flags, numbers
from neuralsim.runtime.files import disk_errors, move_into_place, sweep_leftovers, temporary_folder
from neuralsim.runtime.imports import require_extra
from neuralsim.spec import WorldSpec

if TYPE_CHECKING:
    from minari import EpisodeData

EPISODES_AT_ONCE = 50
"""Episodes handed to Minari at a time."""
FRAMES = "frames"
"""Name of the camera where an observation is a frame."""


def write_minari(
    store: EpisodeStore,
    dataset_id: str,
    root: Path | None = None,
    env_id: str | None = None,
    watch: Callable[[int], None] = lambda done: None,
) -> Path:
    """Write every episode of ``store`` as the local Minari dataset ``dataset_id``; returns its folder.

    ``dataset_id`` is Minari's ``(namespace/)name-v0``; ``root`` the folder of all datasets (Minari's own by default);
    ``env_id`` a registered Gymnasium id that ``dataset.recover_environment()`` shall make; ``watch`` is called with the number
    of episodes written. The dataset appears whole or not at all, however the process ends. Raises DiskFullError, ValueError
    on a malformed id or video without actions, FileExistsError where the dataset exists.
    """
    with require_extra("Minari's format", "data"):
        import h5py  # noqa: F401 (Minari asks for it when it is too late)
        import minari  # a quarter of a second, and few programs need it

    if not re.fullmatch(r"([-\w/]+/)?[-\w]+-v\d+", dataset_id):
        raise ValueError(f"dataset id: expected (namespace/)name-v0, got {dataset_id!r}")
    if not len(store):
        raise ValueError(f"{store.folder}: has no episodes to write")
    if not store.acted(range(len(store))).all():
        raise ValueError(f"{store.folder}: holds video without actions, which Minari cannot; use --to lerobot:FOLDER")
    with _datasets_below(root) as folder:
        target = folder / dataset_id
        if target.exists():
            raise FileExistsError(f"{target}: this Minari dataset exists already; give another id or version")
        policies = sorted({str(store.provenance(i).get("policy", "unknown")) for i in range(len(store))})
        folder.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(folder)
        with disk_errors(target), temporary_folder(folder) as work, _datasets_below(work):
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                [_buffer(store[i], store.spec) for i in range(min(EPISODES_AT_ONCE, len(store)))],
                env=env_id,
                observation_space=spaces.Box(0, 255, store.spec.frame_shape, np.uint8),
                action_space=_action_space(store.spec),
                algorithm_name=", ".join(policies),
                description=f"Episodes of the world {store.spec.name!r} at {store.spec.rate_hz:g} Hz, written by NeuralSim.",
                data_format="hdf5",
                jpeg_encoding=False,
            )
            watch(min(EPISODES_AT_ONCE, len(store)))
            for first in range(EPISODES_AT_ONCE, len(store), EPISODES_AT_ONCE):
                following = range(first, min(first + EPISODES_AT_ONCE, len(store)))
                dataset.update_dataset_from_buffer([_buffer(store[i], store.spec) for i in following])
                watch(following.stop)
            dataset.storage.update_episode_metadata(
                [{"provenance": json.dumps(store.provenance(i))} for i in range(len(store))]
            )
            dataset.storage.update_metadata(
                {
                    "world_spec": store.spec.to_json(),
                    "state_names": list(store.info.state_names),
                    "source": json.dumps(store.info.source),
                }
            )
            target.parent.mkdir(parents=True, exist_ok=True)
            for path in work.rglob("namespace_metadata.json"):
                if not (beside := folder / path.relative_to(work)).exists():
                    move_into_place(path, beside)
            move_into_place(work / dataset_id, target)
    return target


class MinariReader:
    """The local Minari dataset ``dataset_id``.

    Images are uint8 ``(h, w, 3)``: the observation itself, or those of a dictionary; vectors beside them are states. Actions
    are a Box ``(a,)``, a Discrete or a MultiDiscrete ``(a,)``. Raises FileNotFoundError where there is no such dataset,
    ValueError on spaces that do not fit.
    """

    def __init__(self, dataset_id: str, root: Path | None = None) -> None:
        self.notes: dict[Path, str] = {}
        with require_extra("Minari's format", "data"):
            import h5py  # noqa: F401
            import minari

        with _datasets_below(root) as folder:
            if not (folder / dataset_id / "data").is_dir():
                there = ", ".join(sorted(minari.list_local_datasets())) or "none"
                raise FileNotFoundError(f"{folder}: no local Minari dataset {dataset_id!r}; there: {there}")
            with blaming(f"{folder / dataset_id}"):
                self._dataset = minari.load_dataset(dataset_id)
        self._file = folder / dataset_id
        with blaming(f"{self._file}: metadata"):
            metadata = self._dataset.storage.metadata
            self._origins = list(self._dataset.storage.get_episode_metadata(self._dataset.episode_indices))
            source = json.loads(metadata.get("source", "{}")) if "world_spec" in metadata else None
            spec = None
            if source is not None:
                spec = StoreInfo(WorldSpec.from_json(metadata["world_spec"]), (), source=source).spec
        self._ours = spec is not None
        observation, action = self._dataset.observation_space, self._dataset.action_space
        leaves = _leaves(observation)
        cameras = tuple(name for name, space in leaves.items() if _is_image(space))
        if not cameras:
            raise ValueError(
                f"{dataset_id}: expected uint8 images (h, w, 3), alone or in a dictionary of observations, got {observation}"
            )
        self._vectors = {n: _size(s) for n, s in leaves.items() if _is_vector(s)}
        size, scale = _meaning(action, dataset_id)
        if spec is not None and not spec.discrete:  # written as they lie in the store
            scale = ActionScale((0.0,) * spec.action_size, (1.0,) * spec.action_size, "its action space")
        self.about = DatasetInfo(
            format="Minari",
            cameras=cameras,
            action_names=spec.action_names if spec else tuple(f"action_{i}" for i in range(size)),
            state_names=tuple(metadata.get("state_names", ()))
            if self._ours
            else tuple(f"{name}_{i}" for name, width in self._vectors.items() for i in range(width)),
            given=frozenset({"actions", "rewards", "terminated", "truncated"}),
            recordings=int(self._dataset.total_episodes),
            frames=int(self._dataset.total_steps + self._dataset.total_episodes),
            scale=scale,
            spec=spec,
            source=source,
            action_units=("choice",) * size if isinstance(scale, ActionChoices) else (),
        )
        self._policy = str(metadata.get("algorithm_name", "unknown"))

    def actions(self) -> Iterator[np.ndarray | SkippedRecording]:
        return each(self._dataset.episode_indices, self._where, lambda index: self._actions(self._read(index)))

    def recordings(self, cameras: Sequence[str]) -> Iterator[Recording | SkippedRecording]:
        origins = {int(i): origin for i, origin in zip(self._dataset.episode_indices, self._origins, strict=True)}
        return each(origins, self._where, lambda index: self._recording(index, origins[index], cameras))

    def _where(self, index: int) -> str:
        return f"{self._file}: episode {index}"

    def _read(self, index: int) -> EpisodeData:
        return next(iter(self._dataset.iterate_episodes([index])))

    def _actions(self, data: EpisodeData) -> np.ndarray:
        return numbers(data.actions, f"{self._where(data.id)}: actions", len(self.about.action_names))

    def _recording(self, index: int, origin: dict[str, Any], cameras: Sequence[str]) -> Recording:
        data, where = self._read(index), self._where(index)
        actions = self._actions(data)
        seen = {name: _leaf(data.observations, name) for name in (*cameras, *self._vectors)}
        states: np.ndarray | None = None
        provenance = json.loads(origin["provenance"]) if self._ours else self._provenance(index, origin)
        if self._ours:
            known = (data.infos or {}).get("state")
            states = None if known is None else np.asarray(known)  # as they were, to the bit
        elif self._vectors:
            rows = len(actions) + 1
            states = np.concatenate(
                [numbers(seen[n], f"{where}: observations[{n!r}]", w, rows) for n, w in self._vectors.items()], axis=1
            )
        return Recording(
            where,
            _moments([seen[name] for name in cameras], where),
            provenance,
            actions,
            states,
            numbers(data.rewards, f"{where}: rewards", rows=len(actions)),
            flags(data.terminations, f"{where}: terminations", len(actions)),
            flags(data.truncations, f"{where}: truncations", len(actions)),
        )

    def _provenance(self, index: int, origin: dict[str, Any]) -> dict[str, Any]:
        seed = origin.get("seed")
        return {
            "seed": index if seed is None else int(seed),  # the split goes by seed: episodes must not share one
            "policy": self._policy,
            "version": f"minari {index}",
            "index": index,
        }


@contextmanager
def _datasets_below(root: Path | None) -> Iterator[Path]:
    """Let Minari look for datasets below ``root`` for a while, and be silent about metadata that we do not have."""
    from minari.storage import get_dataset_path

    before = os.environ.get("MINARI_DATASETS_PATH")
    if root is not None:
        os.environ["MINARI_DATASETS_PATH"] = str(Path(root).absolute())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="minari.*")
            yield get_dataset_path()
    finally:
        if before is None:
            os.environ.pop("MINARI_DATASETS_PATH", None)
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def _buffer(episode: Episode, spec: WorldSpec) -> Any:
    from minari.data_collector import EpisodeBuffer

    seed = episode.provenance.get("seed")
    return EpisodeBuffer(
        seed=None if seed is None else int(seed),
        observations=episode.frames,
        actions=spec.to_space(meaning_of(spec).native(episode.actions)) if spec.discrete else episode.actions,
        rewards=episode.rewards,
        terminations=episode.terminated,
        truncations=episode.truncated,
        infos=None if episode.states is None else {"state": episode.states},
    )


def _action_space(spec: WorldSpec) -> spaces.Space[Any]:
    """As the actions are written: in [-1, 1], or choices by the numbers they came with."""
    space, first = spec.action_space(), [int(offset) for offset in spec.action_offset]
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n), start=first[0])
    return spaces.MultiDiscrete(space.nvec, start=first) if isinstance(space, spaces.MultiDiscrete) else space


def _meaning(space: spaces.Space[Any], dataset_id: str) -> tuple[int, Meaning | None]:
    """Width of the actions, and their mapping where the space states it; a ValueError for other spaces."""
    origin = "its action space"
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return space.shape[0], ActionScale.of_bounds(space.low, space.high, origin) if space.is_bounded() else None
    if isinstance(space, spaces.Discrete):
        return 1, ActionChoices((int(space.start),), (int(space.n),), origin)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return len(space.nvec), ActionChoices(tuple(space.start.tolist()), tuple(space.nvec.tolist()), origin)
    raise ValueError(
        f"{dataset_id}: expected actions that are a Box (a,), a Discrete or a MultiDiscrete (a,), got {space}"
    )


def _leaves(space: spaces.Space[Any], name: str = "") -> dict[str, spaces.Space[Any]]:
    """The spaces inside ``space`` by path, "/" between the keys; FRAMES for one that is no dictionary."""
    if not isinstance(space, spaces.Dict):
        return {name or FRAMES: space}
    parts = [_leaves(inner, f"{name}/{key}".lstrip("/")) for key, inner in space.spaces.items()]
    return {path: leaf for part in parts for path, leaf in part.items()}


def _leaf(observations: Any, path: str) -> Any:
    if not isinstance(observations, dict):
        return observations
    for key in path.split("/"):
        observations = observations[key]
    return observations


def _moments(views: list[Any], where: str) -> Iterator[Images]:
    lengths = {len(view) for view in views}
    if len(lengths) > 1:
        raise CorruptDataError(f"{where}: observations: cameras have {sorted(lengths)} frames")
    return iter(list(zip(*(np.asarray(view) for view in views), strict=True)))


def _is_image(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[-1] == 3


def _is_vector(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating)


def _size(space: spaces.Space[Any]) -> int:
    return int(np.prod(space.shape or ()))
