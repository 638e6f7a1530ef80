"""Interchange: episode stores to and from local Minari datasets, Gymnasium's standard for recorded episodes.

Nothing is downloaded: datasets live below a root folder (Minari's own default is ``~/.minari/datasets``). Frames go in raw,
not as Minari's default JPEG, so a store that went out and came back is equal to the bit: true states travel as
``infos["state"]``, provenance as episode metadata, the world spec as dataset metadata.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from neuralsim.episode import Episode, EpisodeStore
from neuralsim.spec import WorldSpec

if TYPE_CHECKING:
    from minari import EpisodeData, MinariDataset

EPISODES_AT_ONCE = 50
"""How many episodes are held in memory at a time."""


def write_minari(store: EpisodeStore, dataset_id: str, root: Path | None = None, env_id: str | None = None) -> Path:
    """Write every episode of ``store`` as the local Minari dataset ``dataset_id``; returns its folder.

    ``dataset_id`` is Minari's ``(namespace/)name-v0``; ``root`` the folder of all datasets (Minari's own by default);
    ``env_id`` a registered Gymnasium id that ``dataset.recover_environment()`` shall make. The dataset appears whole or not at
    all. Raises ValueError on a malformed id, FileExistsError where the dataset exists.
    """
    import minari  # a quarter of a second, and few programs need it

    if not re.fullmatch(r"([-\w/]+/)?[-\w]+-v\d+", dataset_id):
        raise ValueError(f"dataset id: expected (namespace/)name-v0, got {dataset_id!r}")
    if not len(store):
        raise ValueError(f"{store.folder}: has no episodes to write")
    with _datasets_below(root) as folder:
        target = folder / dataset_id
        if target.exists():
            raise FileExistsError(f"{target}: this Minari dataset exists already; give another id or version")
        policies = sorted({str(store.provenance(i).get("policy", "unknown")) for i in range(len(store))})
        try:
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                [_buffer(store[i]) for i in range(min(EPISODES_AT_ONCE, len(store)))],
                env=env_id,
                observation_space=spaces.Box(0, 255, store.spec.frame_shape, np.uint8),
                action_space=spaces.Box(-1.0, 1.0, (store.spec.action_size,), np.float32),
                algorithm_name=", ".join(policies),
                description=f"Episodes of the world {store.spec.name!r} at {store.spec.rate_hz:g} Hz, written by NeuralSim.",
                data_format="hdf5",
                jpeg_encoding=False,
            )
            for first in range(EPISODES_AT_ONCE, len(store), EPISODES_AT_ONCE):
                following = range(first, min(first + EPISODES_AT_ONCE, len(store)))
                dataset.update_dataset_from_buffer([_buffer(store[i]) for i in following])
            dataset.storage.update_episode_metadata(
                [{"provenance": json.dumps(store.provenance(i))} for i in range(len(store))]
            )
            dataset.storage.update_metadata(
                {"world_spec": store.spec.to_json(), "state_names": list(store.info.state_names)}
            )
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
    return target


def read_minari(dataset_id: str, out: Path, root: Path | None = None, name: str | None = None) -> EpisodeStore:
    """Copy the local Minari dataset ``dataset_id`` into a new episode store at ``out``, which appears whole or not at all.

    A dataset that NeuralSim wrote comes back as it was. Any other needs uint8 image observations ``(h, w, 3)``, alone or as
    the one image in a dictionary, with sides that are multiples of 8, and a bounded Box of actions, which is mapped to
    [-1, 1]; ``name`` is what to call its world. Raises FileNotFoundError where there is no such dataset, FileExistsError
    where ``out`` exists, ValueError on spaces that do not fit.
    """
    import minari

    if out.exists():
        raise FileExistsError(f"{out}: exists already; choose a folder that does not")
    with _datasets_below(root) as folder:
        if not (folder / dataset_id / "data").is_dir():
            there = ", ".join(sorted(minari.list_local_datasets())) or "none"
            raise FileNotFoundError(f"{folder}: no local Minari dataset {dataset_id!r}; there: {there}")
        dataset = minari.load_dataset(dataset_id)
        metadata = dataset.storage.metadata
        key = _image_key(dataset)
        if "world_spec" in metadata:
            spec = WorldSpec.from_json(metadata["world_spec"])
        else:
            spec = _foreign_spec(dataset, key, name or dataset.spec.dataset_name)
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent)) / "store"
        try:
            store = EpisodeStore.create(work, spec, metadata.get("state_names", ()))
            origins = iter(dataset.storage.get_episode_metadata(dataset.episode_indices))
            episodes = (_episode(dataset, key, e, o) for e, o in zip(dataset, origins, strict=True))
            while batch := list(islice(episodes, EPISODES_AT_ONCE)):
                store.add(batch)
            os.rename(work, out)
        finally:
            shutil.rmtree(work.parent, ignore_errors=True)
    return EpisodeStore(out)


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


def _buffer(episode: Episode) -> Any:
    from minari.data_collector import EpisodeBuffer

    seed = episode.provenance.get("seed")
    return EpisodeBuffer(
        seed=None if seed is None else int(seed),
        observations=episode.frames,
        actions=episode.actions,
        rewards=episode.rewards,
        terminations=episode.terminated,
        truncations=episode.truncated,
        infos=None if episode.states is None else {"state": episode.states},
    )


def _episode(dataset: MinariDataset, key: str | None, data: EpisodeData, metadata: dict[str, Any]) -> Episode:
    frames = data.observations if key is None else data.observations[key]
    actions = np.asarray(data.actions)
    if "provenance" in metadata:
        provenance = json.loads(metadata["provenance"])
    else:
        low, high = dataset.action_space.low, dataset.action_space.high
        actions = np.clip(2 * (actions - low) / (high - low) - 1, -1, 1)
        seed = metadata.get("seed")
        provenance = {
            "seed": int(data.id) if seed is None else int(seed),  # the split goes by seed: episodes must not share one
            "policy": str(dataset.storage.metadata.get("algorithm_name", "unknown")),
            "version": f"minari {dataset.id}",
            "index": int(data.id),
        }
    states = (data.infos or {}).get("state")
    return Episode(
        frames=np.asarray(frames, np.uint8),
        actions=actions.astype(np.float32, copy=False),
        rewards=np.asarray(data.rewards, np.float32),
        terminated=np.asarray(data.terminations, bool),
        truncated=np.asarray(data.truncations, bool),
        states=np.asarray(states, np.float32) if "provenance" in metadata and states is not None else None,
        provenance=provenance,
    )


def _image_key(dataset: MinariDataset) -> str | None:
    """Under which key the frames lie; None where an observation is a frame."""
    space = dataset.observation_space
    if _is_image(space):
        return None
    keys = [k for k, v in space.spaces.items() if _is_image(v)] if isinstance(space, spaces.Dict) else []
    if len(keys) != 1:
        raise ValueError(
            f"{dataset.id}: expected uint8 image observations (h, w, 3), alone or as the one image of a dictionary, got {space}"
        )
    return keys[0]


def _is_image(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[-1] == 3


def _foreign_spec(dataset: MinariDataset, key: str | None, name: str) -> WorldSpec:
    image = dataset.observation_space if key is None else dataset.observation_space[key]
    action = dataset.action_space
    if not isinstance(action, spaces.Box) or len(action.shape) != 1 or not action.is_bounded():
        raise ValueError(f"{dataset.id}: expected a bounded Box of actions of shape (a,), got {action}")
    size = action.shape[0]
    return WorldSpec(
        name=name,
        height=image.shape[0],
        width=image.shape[1],
        action_names=tuple(f"action_{i}" for i in range(size)),
        action_units=("native units",) * size,
        action_scale=tuple(float(s) for s in (action.high - action.low) / 2),
        rate_hz=10.0,  # Minari does not say
        context=1,
    )
