"""Dyna rounds: act in the real environment, train the world on with the new episodes, and measure its drift before and after.

The world's encoder is not trained, so that the policy's features keep their meaning; only the predictors and the prediction
heads are. Sutton, "Dyna, an integrated architecture for learning, planning, and reacting", SIGART Bulletin 1991.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from neuralsim.agents.policies.policy import NamedPolicy, Policy
from neuralsim.agents.policies.rollout import RolloutConfig, SingleEnv, rollout
from neuralsim.agents.rl.config import RLConfig
from neuralsim.data.episode import Episode
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.registry import find_real_world
from neuralsim.envs.wrappers.discrete_actions import to_actions
from neuralsim.envs.wrappers.features import FeatureEncoder
from neuralsim.evaluation.statistics import Bootstrap, mean
from neuralsim.models.latent_world import LatentWorld
from neuralsim.noise import Noise
from neuralsim.pretrained.world import World, open_world
from neuralsim.runtime.json_files import read_object
from neuralsim.storage.fingerprint import fingerprint
from neuralsim.storage.manifest import TRAINING
from neuralsim.training.config import TrainConfig
from neuralsim.training.trainer import train
from neuralsim.version import __version__

STAGES = ("dynamics", "readings")
EFFORT = 0.06
"""Share of the recipe's steps in one round."""
RATE = 0.15
"""Factor on its learning rates: at the full ones 960 steps undo more than they learn (measured on Push-T)."""
OLD_FOR_NEW = 8
"""Episodes of the first store for every new one, so that the world does not forget."""
HORIZONS = (10, 30)
"""Steps ahead at which drift is measured."""


@dataclass(frozen=True)
class DynaRound:
    """Round ``number`` of the run in ``folder``: ``home`` is the learned world at its start, ``world`` the present one."""

    config: RLConfig
    home: World
    world: World
    folder: Path
    number: int

    def run(self, policy: Any) -> tuple[World, dict[str, Any], int]:
        """Run the round of ``policy``, an SB3 algorithm; returns the new world, its drift before and after, and the real steps taken."""
        store = self._act(policy)
        new = open_world(self._learn(store), self.config.device)
        fresh = [i for i in range(len(store)) if store.provenance(i)["round"] == self.number]
        held_out = [i for i in fresh if store[i].held_out]
        drift = {
            "round": self.number,
            "episodes": len(fresh),
            "before": drift_of(self.world.model, store, held_out),
            "after": drift_of(new.model, store, held_out),
        }
        return new, drift, int(store.lengths[fresh].sum())

    def _act(self, policy: Any) -> EpisodeStore:
        """Add the round's real episodes of the exploring policy to the run's store; every fifth is held out."""
        model, rl_task = self.home.model, self.config.rl_task
        env = rl_task.env((model.spec.height, model.spec.width))
        names = _state_names(rl_task.world, env)
        store = EpisodeStore.create(self.folder / "true", env.get_wrapper_attr("spec_world"), names)
        weights = fingerprint(policy.policy.state_dict())
        there = [p for i in range(len(store)) if (p := store.provenance(i))["round"] == self.number]
        if any(p.get("weights") != weights for p in there):  # of another policy; so is the world trained on them
            shutil.rmtree(self.folder / f"world-{self.number}", ignore_errors=True)
            store.replace(self.number, list(self._episodes(env, policy, weights, bool(names), set())))
            return store
        done = {p["seed"] for p in there}  # in a round that was killed
        with store.open_shard(self.number, lambda provenance: provenance["seed"]) as writer:
            for episode in self._episodes(env, policy, weights, bool(names), done):
                writer.add(episode)
        return store

    def _episodes(
        self, env: gym.Env[Any, Any], policy: Any, weights: str, states: bool, done: set[int]
    ) -> Iterator[Episode]:
        """Run the episodes whose seeds are not ``done``."""
        encoded = EncodedPolicy(policy, FeatureEncoder(self.home.model, 1))
        for i in range(self.config.dyna_episodes):
            number = 1 + self.config.seed * 1_000_003 + 10_000 * self.number + i
            seed = 20 * number if i % 5 == 0 else 20 * number + 1
            if seed not in done:
                episode = self._episode(env, encoded, seed, states)
                yield replace(episode, provenance=episode.provenance | {"weights": weights})

    def _episode(self, env: gym.Env[Any, Any], policy: Policy, seed: int, states: bool) -> Episode:
        """Run one episode. It holds the environment's own reward and termination, which the world's heads learn; the task's are
        computed from states."""
        rewards: list[float] = []
        ends: list[bool] = []

        def note(single: SingleEnv) -> None:
            rewards.append(single.info["own_reward"])
            ends.append(single.info["own_terminated"])

        provenance = {
            "seed": seed,
            "policy": f"agent learning {self.config.rl_task.name}",
            "round": self.number,
            "version": __version__,
        }
        named = NamedPolicy("agent", policy, "env")
        episode = rollout(named, env, RolloutConfig({"seed": seed}, states=states), provenance, note)
        truncated = np.zeros(len(ends), bool)
        truncated[-1] = not ends[-1]
        return replace(episode, rewards=np.array(rewards, np.float32), terminated=np.array(ends), truncated=truncated)

    def _learn(self, store: EpisodeStore) -> Path:
        base = self.config.data or _training_store(self.home) or Path("data") / self.config.rl_task.world
        there = (base / "store.json").is_file()
        out = self.folder / f"world-{self.number}"
        return train(
            TrainConfig(
                recipe=recipe_of(self.home),
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
                seed=self.config.seed,
                device=self.config.device,
            )
        )


class EncodedPolicy:
    """A policy on features, applied to the frames of one environment at a time, which ``encoder`` encodes."""

    def __init__(self, policy: Policy, encoder: FeatureEncoder) -> None:
        self.policy, self.encoder = policy, encoder
        self._action: np.ndarray | None = None

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Return the action ``(a,)`` for a frame ``(h, w, 3)``."""
        if self._action is None or np.any(episode_start):
            self.encoder.begin(np.array([0]), observation[None])
        else:
            self.encoder.append(self._action, observation[None])
        chosen, state = self.policy.predict(self.encoder.features(), state, episode_start, deterministic)
        spec = self.encoder.model.spec
        self._action = to_actions(chosen, spec.action_size, spec.action_choices)
        return self._action[0], state


def drift_of(model: Any, store: EpisodeStore, episodes: list[int]) -> dict[str, Any]:
    """Measure how far imagined rollouts of ``model`` drift from real ``episodes``: the root-mean-square error of features, in standard
    deviations of the data, after each of HORIZONS, with intervals over episodes."""
    found: dict[str, Any] = {}
    for horizon in HORIZONS:
        errors, groups = [], []
        for i in episodes:
            episode = store[i]
            first = np.arange(0, max(0, len(episode) - horizon + 1), 5)
            if not len(first):
                continue
            frames = torch.as_tensor(np.stack([episode.frames[f : f + 1] for f in first]), device=model.device)
            actions = torch.as_tensor(np.stack([episode.actions[f : f + horizon] for f in first]), device=model.device)
            with torch.inference_mode():
                state = model.encode(frames, actions[:, :0])
                noise = Noise.from_seeds(range(len(first)), model.device)
                for j in range(horizon):
                    state = model.step(state, actions[:, j], noise.advance(j))
                last = torch.as_tensor(np.stack([episode.frames[f + horizon : f + horizon + 1] for f in first]))
                true = model.features(model.encode(last.to(model.device), actions[:, :0]))
                errors.append((model.features(state) - true).square().mean(1).sqrt().cpu().numpy())
            groups.append(np.full(len(first), i))
        if errors:
            estimate = Bootstrap(np.concatenate(groups))(mean, np.concatenate(errors).astype(np.float64))
            found[str(horizon)] = {
                "value": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "n": estimate.n,
                "episodes": len(errors),
            }
    return found


def _state_names(world: str, env: gym.Env[Any, Any]) -> tuple[str, ...]:
    """Names of the real world's states; empty where it shows none."""
    found = find_real_world(world)
    return found.state_names if found is not None else tuple(getattr(env.unwrapped, "state_names", ()))


def _training_store(world: World) -> Path | None:
    """The store that a world without a record of its own was trained on, if it is known and there."""
    record = None if world.folder is None else world.folder / TRAINING
    if find_real_world(world.spec.name) is not None or record is None or not record.is_file():
        return None
    place = Path(read_object(record).get("store") or "")
    return place if (place / "store.json").is_file() else None


def recipe_of(world: World) -> str:
    """The recipe that ``world`` was trained with; a ValueError for one that cannot be trained on."""
    record = None if world.folder is None else world.folder / TRAINING
    if not isinstance(world.model, LatentWorld) or record is None or not record.is_file():
        raise ValueError(
            f"--dyna-rounds: world {world.folder} cannot be trained on; choose a compact world that 'neuralsim train' made"
        )
    return str(json.loads(record.read_text())["recipe"]["name"])
