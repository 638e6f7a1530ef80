"""Promises of behaviour cloning: it learns what was shown, no more than what leads to the wish, and only from its own split."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from neuralsim.agents.evaluation.candidate import CandidatePolicy
from neuralsim.agents.evaluation.paired_evaluation import PairedEvaluation
from neuralsim.agents.policies.sb3_file import PolicyNote, load_policy, save_policy
from neuralsim.agents.rl.behavior_cloning import CloneConfig, Demonstrations, clone, demonstrations
from neuralsim.data.episode import Episode
from neuralsim.data.store import EpisodeStore
from neuralsim.envs.tasks.rl_task import RLTask, TaskEnv, find_task
from neuralsim.envs.tworoom.env import GOAL, STATE_NAMES, STEP_UNITS, tworoom_spec
from neuralsim.envs.tworoom.shortest_path import shortest_path
from neuralsim.pretrained.world import World, open_world

REACH = find_task("tworoom", "reach")
EPISODES, AFTERWARDS = 60, 5
"""Demonstrations, and steps that each goes on after the goal, to and fro as no agent should learn to."""


@pytest.fixture(scope="module")
def world() -> World:
    return open_world("tworoom-latent")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """The shortest ways to the goal, and some dithering there."""
    made = EpisodeStore.create(tmp_path_factory.mktemp("demos"), tworoom_spec(), STATE_NAMES)
    env, states = REACH.env(), REACH.starts(EPISODES, seed=5).states
    assert states is not None
    made.add([demonstration(env, state, seed) for seed, state in enumerate(states[:, 0])])
    return made


def demonstration(env: TaskEnv, state: np.ndarray, seed: int) -> Episode:
    frame, _ = env.reset(options={"state": state})
    frames, states, actions, rewards, ends = [frame], [env.env.state()], [], [], []
    after = 0
    while after < AFTERWARDS:
        here = states[-1]
        way = (
            (shortest_path(here, np.array(GOAL))[1] - here) / STEP_UNITS if after == 0 else np.array([(-1) ** after, 1])
        )
        actions.append((way / max(1.0, np.abs(way).max())).astype(np.float32))
        frame, reward, end, _, _ = env.step(actions[-1])
        after += bool(end or after)
        frames.append(frame)
        states.append(env.env.state())
        rewards.append(reward)
        ends.append(end)
    stop = np.arange(len(ends)) == len(ends) - 1
    return Episode(
        np.stack(frames),
        np.stack(actions),
        np.array(rewards, np.float32),
        np.array(ends),
        stop,
        np.stack(states).astype(np.float32),
        {"seed": seed, "policy": "shortest path", "version": "test"},
    )


def of(pairs: Demonstrations, store: EpisodeStore, held_out: bool) -> list[np.ndarray]:
    """The actions of ``pairs``, as bytes would have them, beside those there should be."""
    rows = store.split(held_out)
    wanted = np.concatenate([store[i].actions[: len(store[i]) - AFTERWARDS + 1] for i in rows])
    return [np.unique(a, axis=0) for a in (pairs.actions.numpy(), wanted)]


def test_a_clone_does_in_truth_what_it_was_shown(world: World, store: EpisodeStore, tmp_path: Path) -> None:
    losses: list[tuple[int, float, float]] = []
    agent = clone(world, REACH, store, CloneConfig(epochs=60), tick=lambda *said: losses.append(said))
    assert [epoch for epoch, *_ in losses] == list(range(len(losses)))
    assert losses[-1][1] < 0.2 * losses[0][1]
    assert min(held_out for *_, held_out in losses) < 0.3 * losses[0][2]

    save_policy(agent, tmp_path / "clone.zip", PolicyNote("ppo", "features", "tworoom", "reach"))
    loaded = load_policy(tmp_path / "clone.zip")
    paired = PairedEvaluation(REACH, 30)
    tally = paired.real(CandidatePolicy("clone", world, "features", lambda: loaded))
    assert tally.success.mean() > 0.7, "acting at random succeeds in one of ten"


def test_only_the_way_to_the_wish_is_shown_and_the_splits_do_not_meet(world: World, store: EpisodeStore) -> None:
    for held_out in (False, True):
        pairs = demonstrations(world, REACH, store, held_out)
        assert len(pairs) == sum(len(store[i]) - AFTERWARDS + 1 for i in store.split(held_out))
        found, wanted = of(pairs, store, held_out)
        np.testing.assert_array_equal(found, wanted)
    assert len(store.split(True)) == 3


def test_what_it_sees_is_what_the_true_world_shows_an_agent(world: World, store: EpisodeStore) -> None:
    """The features of episode 1's frames, each by itself: this world stacks none."""
    pairs = demonstrations(world, REACH, store, held_out=True)
    episode = store[int(store.split(True)[0])]
    first = len(store.split(True))  # the episodes' first frames come first, then their second ones
    for t, row in ((0, 0), (1, first)):
        with torch.inference_mode():
            state = world.model.encode(torch.from_numpy(episode.frames[None, t : t + 1].copy()), torch.zeros(1, 0, 2))
            features = world.model.features(state)[0]
        torch.testing.assert_close(
            pairs.features[row], features.float(), rtol=0.05, atol=0.05
        )  # the encoder may run in bfloat16
        np.testing.assert_array_equal(pairs.actions[row], episode.actions[t])


def test_the_same_seed_gives_the_same_clone(world: World, store: EpisodeStore) -> None:
    def weights(seed: int) -> str:
        policy = clone(world, REACH, store, CloneConfig(seed, epochs=2)).policy
        return hashlib.sha256(b"".join(w.detach().numpy().tobytes() for w in policy.parameters())).hexdigest()

    assert weights(1) == weights(1) != weights(2)


def test_patience_ends_it_and_the_best_epoch_is_kept(world: World, store: EpisodeStore) -> None:
    """Steps this long spoil again what the first ones learned."""
    errors: list[float] = []
    agent = clone(
        world,
        REACH,
        store,
        CloneConfig(rate=0.05, epochs=60, patience=4),
        tick=lambda _, __, error: errors.append(error),
    )
    best = int(np.argmin(errors))
    assert best + 5 == len(errors) < 60
    unseen = demonstrations(world, REACH, store, held_out=True)
    with torch.no_grad():
        missed = (agent.policy.get_distribution(unseen.features).mode() - unseen.actions).square().mean(0)
    assert float(missed.mean()) == pytest.approx(errors[best], rel=1e-4)
    # Its spread is what it missed.
    torch.testing.assert_close(agent.policy.log_std.exp().square().detach(), missed, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_copied_is_said(world: World, store: EpisodeStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pusht-latent.* is a world of"):
        clone(open_world("pusht-latent"), REACH, store)
    few = EpisodeStore.create(tmp_path / "few", store.spec, STATE_NAMES)
    few.add([replace(store[1], states=None)])
    with pytest.raises(ValueError, match="no true states, by which 'reach' is judged"):
        clone(world, REACH, few)
    own = RLTask("own", "tworoom", "as the episodes say themselves")
    with pytest.raises(ValueError, match=r"no held-out .* episodes among its 1"):
        clone(world, own, few)
