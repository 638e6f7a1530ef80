"""Facts about the episodes of a store: lengths, ranges, coverage, and what looks wrong; and a picture of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuralsim.data.store import EpisodeStore, find_store
from neuralsim.data.windows import WindowSampler
from neuralsim.runtime.command import CommandOutput
from neuralsim.runtime.files import atomic_file
from neuralsim.spec import WorldSpec

WINDOW, BATCH = 16, 32
"""Frames in a window and windows in a batch, for measuring the reading speed."""
BINS = 20
"""Coverage is the share of this many equal parts of a range that hold a value."""
LOOKS = 4
"""Frames of each episode that are checked for oddities."""
STRIP = (6, 8)
"""Episodes in the picture, and frames of each episode."""


@dataclass(frozen=True)
class DataConfig:
    """Describe an episode store: lengths, ranges, coverage, oddities, and frames as a picture."""

    store: str
    """Name of a store below data/, or its folder."""
    picture: Path | None = None
    """File of the picture; STORE/strips.png by default."""
    json: Path | None = None
    """Also write the facts to this file."""


def summarize_store(store: EpisodeStore) -> dict[str, Any]:
    """Counts, sizes, provenance and reading speed of a store; ready for JSON."""
    if not len(store):
        return {"store": str(store.folder), "world": store.spec.name, "episodes": 0}
    origins = [store.provenance(i) for i in range(len(store))]
    return {
        "store": str(store.folder),
        "world": store.spec.name,
        "episodes": len(store),
        "frames": int((store.lengths + 1).sum()),
        "held_out_episodes": len(store.split(held_out=True)),
        "steps": f"{store.lengths.min()} to {store.lengths.max()}",
        "shards": len(store.shards),
        "megabytes": round(sum(f.stat().st_size for f in store.folder.rglob("*") if f.is_file()) / 1e6, 1),
        "states": list(store.info.state_names),
        "policies": sorted({str(o.get("policy")) for o in origins}),
        "versions": sorted({str(o.get("version")) for o in origins}),
        "windows_per_second": _reading_speed(store),
    }


def _reading_speed(store: EpisodeStore) -> float:
    """Training windows of WINDOW frames (or as many as there are) read per second, best of three; frames in them included."""
    length = min(WINDOW, int(store.lengths.max()) + 1)
    sampler = WindowSampler(store, length, held_out=not len(store.split(held_out=False)), actions=False)
    rng = np.random.default_rng(0)
    best = 0.0
    for _ in range(3):
        begin = time.perf_counter()
        for _ in range(10):
            sampler.sample(BATCH, rng)
        best = max(best, 10 * BATCH / (time.perf_counter() - begin))
    return round(best, 1)


def describe_data(store: EpisodeStore) -> dict[str, Any]:
    """Describe the episodes of a store; ready for JSON."""
    source = store.info.source
    facts: dict[str, Any] = {"store": str(store.folder), "world": store.spec.name}
    facts |= {"from": f"{source['from']} ({source['format']})"} if "format" in source else {}
    if not len(store):
        return facts | {"episodes": 0}
    lengths = store.lengths
    return facts | {
        "episodes": len(store),
        "held_out_episodes": len(store.split(held_out=True)),
        "steps": f"{lengths.min()} to {lengths.max()}, median {np.median(lengths):g}",
        "frames": f"{int((lengths + 1).sum())} of {store.spec.height} x {store.spec.width} at {store.spec.rate_hz:g} Hz",
        "actions": _about_actions(store),
        "states": _about_states(store),
        "rewards": _about_rewards(store),
        "odd_episodes": _odd_episodes(store),
        "left_out": [f"{item['where']}: {item['why']}" for item in source.get("left_out", [])],
    }


def draw_strips(store: EpisodeStore, path: Path) -> Path:
    """Draw some frames of some episodes to ``path``, an episode per row, time from left to right."""
    import imageio.v3 as iio

    rows, columns = STRIP
    strips = []
    for i in np.unique(np.linspace(0, len(store) - 1, rows).astype(int)):
        frames = store[int(i)].frames
        strips.append(np.concatenate(frames[np.linspace(0, len(frames) - 1, columns).astype(int)], axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        iio.imwrite(temporary, np.concatenate(strips), extension=".png")
    return path


def _about_actions(store: EpisodeStore) -> list[str]:
    acted = [shard["actions"] for shard in store.shards if "actions" in shard]
    silent = int((~store.acted(range(len(store)))).sum())
    lines = [f"absent: {silent} of {len(store)} episodes are video alone"] if silent else []
    if not acted:
        return lines
    spec, constant = store.spec, store.info.source.get("constant", {})
    if spec.discrete:
        return [*lines, *_about_choices(spec, acted)]
    low, high = np.min([a.min(0) for a in acted], axis=0), np.max([a.max(0) for a in acted], axis=0)
    covered = _coverage(acted, -np.ones(spec.action_size), np.ones(spec.action_size))
    native = [np.array(spec.action_offset) + np.array(spec.action_scale) * bound for bound in (low, high)]
    for i, name in enumerate(spec.action_names):
        if name in constant:
            lines.append(f"{name}: always {constant[name]:g} {spec.action_units[i]}")
        else:
            lines.append(
                f"{name}: {native[0][i]:g} to {native[1][i]:g} {spec.action_units[i]}, covers {covered[i]:.0%}"
            )
    return lines


def _about_choices(spec: WorldSpec, acted: list[np.ndarray]) -> list[str]:
    """Count each choice, by the original's numbers."""
    lines = []
    for i, (name, choices) in enumerate(zip(spec.action_names, spec.action_choices, strict=True)):
        counts = np.sum([np.bincount(a[:, i], minlength=choices) for a in acted], axis=0)
        first, total = int(spec.action_offset[i]), max(int(counts.sum()), 1)
        each = ", ".join(f"{first + k} {count} times ({count / total:.0%})" for k, count in enumerate(counts))
        lines.append(f"{name}: {each}")
    return lines


def _about_states(store: EpisodeStore) -> list[str]:
    known = [shard["states"] for shard in store.shards if "states" in shard]
    if not known:
        return []
    low, high = np.min([s.min(0) for s in known], axis=0), np.max([s.max(0) for s in known], axis=0)
    covered = _coverage(known, low, high)
    names = store.info.state_names or tuple(f"state_{i}" for i in range(len(low)))
    return [f"{name}: {low[i]:g} to {high[i]:g}, covers {covered[i]:.0%}" for i, name in enumerate(names)]


def _about_rewards(store: EpisodeStore) -> str:
    rewards = [shard["rewards"] for shard in store.shards]
    low, high = min(float(r.min()) for r in rewards), max(float(r.max()) for r in rewards)
    ends = sum(int(shard["terminated"].sum()) for shard in store.shards)
    cuts = sum(int(shard["truncated"].sum()) for shard in store.shards)
    return f"{low:g} to {high:g}; {ends} steps terminated, {cuts} truncated"


def _coverage(arrays: list[np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return, per dimension, the share of BINS equal parts of [low, high] that hold a value."""
    width = np.where(high > low, high - low, 1)
    seen = np.zeros((len(low), BINS), bool)
    for array in arrays:
        part = np.nan_to_num((array - low) / width * BINS).clip(0, BINS - 1).astype(int)
        seen[np.arange(len(low)), part] = True
    return seen.mean(1)


def _odd_episodes(store: EpisodeStore) -> list[str]:
    """List episodes that look wrong: nothing moves or shows, states that are no numbers, or uneven times."""
    lines = []
    for i in range(len(store)):
        episode = store[i]
        looks = episode.frames[np.unique(np.linspace(0, len(episode), LOOKS).astype(int))]
        why = []
        if (looks == looks[:, :1, :1]).all():
            why.append("frames of one colour")
        elif len(episode) > 1 and (looks == looks[0]).all():
            why.append("frames that never change")
        if (
            episode.has_actions
            and len(episode) > 1
            and store.spec.action_size
            and (np.ptp(episode.actions, 0) == 0).all()
        ):
            why.append("actions that never change")
        if episode.states is not None and not np.isfinite(episode.states).all():
            why.append("states that are no numbers")
        if rate := episode.provenance.get("resampled_to_hz"):
            why.append(f"times were uneven or at another rate, resampled to {rate:g} Hz")
        if episode.provenance.get("stretch"):
            why.append(f"begins after a pause in its file, at {episode.provenance.get('from_s', 0):g} s")
        if why:
            lines.append(f"episode {i}: {', '.join(why)}")
    return lines


def data_command(config: DataConfig) -> CommandOutput:
    """Describe the config's store, draw its frames, and return the facts."""
    store = EpisodeStore(find_store(config.store))
    facts = describe_data(store)
    if len(store):
        facts["picture"] = str(draw_strips(store, config.picture or store.folder / "strips.png"))
    return CommandOutput(facts=facts, json=config.json, figures=facts)
