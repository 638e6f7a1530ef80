"""Refresh: act in truth, train the world on with what was seen, and measure what that did where the policy goes (Dyna; Sutton
1991).

The world's encoder stays as it is, so that the policy goes on seeing what it learned to see; only the predictors and the
readings learn on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from neuralsim.data.episode import Episode
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.registry import find_real_world, get_real_world
from neuralsim.envs.tasks.rl_task import RLTask
from neuralsim.envs.wrappers.discrete_actions import to_actions
from neuralsim.envs.wrappers.features import FeatureEncoder
from neuralsim.evaluation.statistics import Bootstrap, mean
from neuralsim.models.latent_world import LatentWorld
from neuralsim.noise import Noise
from neuralsim.pretrained.world import World, open_world
from neuralsim.storage.manifest import TRAINING, read_object
from neuralsim.training.config import TrainConfig
from neuralsim.training.trainer import train
from neuralsim.version import __version__

STAGES = ("dynamics", "readings")
EFFORT = 0.06
"""Share of the recipe's steps that a refresh takes."""
RATE = 0.15
"""Factor on its learning rates: at the full ones 960 steps undo more than they learn (measured on Push-T)."""
OLD_FOR_NEW = 8
"""Episodes of the first store for every new one: the world must not forget."""
AHEAD = (10, 30)
"""Steps ahead at which drift is measured."""


@dataclass(frozen=True)
class DynaRounds:
    """Round ``number`` of a run in ``folder``: what was dreamt in first (``home``) and is dreamt in now (``world``)."""

    rl_task: RLTask
    home: World
    world: World
    folder: Path
    number: int
    episodes: int
    data: Path | None
    seed: int
    device: str

    def run(self, policy: Any) -> tuple[World, dict[str, Any], int]:
        """The new world, the drift before and after, and the true steps taken."""
        store = self._act(policy)
        new = open_world(self._learn(store), self.device)
        fresh = [i for i in range(len(store)) if store.provenance(i)["round"] == self.number]
        held = [i for i in fresh if store[i].held_out]
        drift = {
            "round": self.number,
            "episodes": len(fresh),
            "before": drift_of(self.world.model, store, held),
            "after": drift_of(new.model, store, held),
        }
        return new, drift, int(store.lengths[fresh].sum())

    def _act(self, policy: Any) -> EpisodeStore:
        """``episodes`` true episodes of the policy as it explores, added to the run's store; every fifth is held out."""
        model = self.home.model
        env = self.rl_task.env((model.spec.height, model.spec.width))
        names = _state_names(self.rl_task, env)
        store = EpisodeStore.create(self.folder / "true", env.get_wrapper_attr("spec_world"), names)
        if self.number in store.shard_numbers():  # killed in the training after
            return store
        encoder, made = FeatureEncoder(model, 1), []
        for i in range(self.episodes):
            number = 1 + self.seed * 1_000_003 + 10_000 * self.number + i
            seed = 20 * number if i % 5 == 0 else 20 * number + 1
            made.append(_episode(env, encoder, policy, seed, self.rl_task, self.number, bool(names)))
        store.add(made, shard=self.number)
        return store

    def _learn(self, store: EpisodeStore) -> Path:
        base = self.data or _origin(self.home) or Path("data") / self.rl_task.world
        recipe = recipe_of(self.home)
        there = (base / "store.json").is_file()
        out = self.folder / f"world-{self.number}"
        return train(
            TrainConfig(
                recipe=recipe,
                data=base if there else store.folder,
                episodes=OLD_FOR_NEW * len(store) if there else None,
                also=(store.folder,) if there else (),
                stages=STAGES,
                init=str(self.world.folder),
                effort=EFFORT,
                rate=RATE,
                out=out,
                resume=out.exists(),
                cache=self.folder / "cache",
                seed=self.seed,
                device=self.device,
            )
        )


def drift_of(model: Any, store: EpisodeStore, episodes: list[int]) -> dict[str, Any]:
    """How far dreams of ``model`` stray along true ``episodes``: root-mean-square error of features, in standard deviations of
    the data, after 10 and 30 steps, with intervals over episodes."""
    found: dict[str, Any] = {}
    for ahead in AHEAD:
        errors, groups = [], []
        for i in episodes:
            episode = store[i]
            first = np.arange(0, max(0, len(episode) - ahead + 1), 5)
            if not len(first):
                continue
            frames = torch.as_tensor(np.stack([episode.frames[f : f + 1] for f in first])).to(model.device)
            actions = torch.as_tensor(np.stack([episode.actions[f : f + ahead] for f in first])).to(model.device)
            with torch.inference_mode():
                state = model.encode(frames, actions[:, :0])
                noise = Noise.from_seeds(range(len(first)), model.device)
                for j in range(ahead):
                    state = model.step(state, actions[:, j], noise.advance(j))
                last = torch.as_tensor(np.stack([episode.frames[f + ahead : f + ahead + 1] for f in first]))
                true = model.features(model.encode(last.to(model.device), actions[:, :0]))
                errors.append((model.features(state) - true).square().mean(1).sqrt().cpu().numpy())
            groups.append(np.full(len(first), i))
        if errors:
            estimate = Bootstrap(np.concatenate(groups))(mean, np.concatenate(errors).astype(np.float64))
            found[str(ahead)] = {
                "value": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "n": estimate.n,
                "episodes": len(errors),
            }
    return found


def _episode(
    env: Any, encoder: FeatureEncoder, policy: Any, seed: int, rl_task: RLTask, number: int, knows_states: bool
) -> Episode:
    """One true episode of ``policy`` as it explores, until its end."""
    spec = encoder.model.spec
    frame, _ = env.reset(seed=seed)
    encoder.begin(np.array([0]), frame[None])
    frames, states = [frame], [env.unwrapped.state()] if knows_states else []
    actions, rewards, ends = [], [], []
    done = False
    while not done:
        chosen, _ = policy.predict(encoder.features(), deterministic=False)
        action = to_actions(chosen, spec.action_size, spec.action_choices)[0]
        frame, _, terminated, truncated, info = env.step(spec.to_space(action))
        encoder.append(action[None], frame[None])
        frames.append(frame)
        if knows_states:
            states.append(env.unwrapped.state())
        actions.append(action)
        # The world's own reward is what its heads learn; the wish is judged on states.
        rewards.append(info["own_reward"])
        ends.append(info["own_terminated"])
        done = terminated or truncated
    truncated_at = np.zeros(len(actions), bool)
    truncated_at[-1] = not ends[-1]
    return Episode(
        frames=np.stack(frames),
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float32),
        terminated=np.array(ends),
        truncated=truncated_at,
        states=np.stack(states).astype(np.float32) if knows_states else None,
        provenance={
            "seed": seed,
            "policy": f"agent learning {rl_task.name}",
            "round": number,
            "version": __version__,
        },
    )


def _state_names(rl_task: RLTask, env: gym.Env[Any, Any]) -> tuple[str, ...]:
    """What the true world's states are called; empty where it shows none."""
    if find_real_world(rl_task.world) is not None:
        return get_real_world(rl_task.world).state_names
    return tuple(getattr(env.unwrapped, "state_names", ()))


def _origin(world: World) -> Path | None:
    """The store that a world of other people's making was trained on, if it is known and there."""
    record = None if world.folder is None else world.folder / TRAINING
    if find_real_world(world.spec.name) is not None or record is None or not record.is_file():
        return None
    place = Path(read_object(record).get("store") or "")
    return place if (place / "store.json").is_file() else None


def recipe_of(world: World) -> str:
    """The recipe that ``world`` was trained with; a ValueError for one that cannot be trained on."""
    record = None if world.folder is None else world.folder / "training.json"
    if not isinstance(world.model, LatentWorld) or record is None or not record.is_file():
        raise ValueError(
            f"--refresh: world {world.folder} cannot be trained on; choose a compact world that 'neuralsim train' made"
        )
    return str(json.loads(record.read_text())["recipe"]["name"])
