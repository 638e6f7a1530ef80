"""ActionChunkBroker: SB3's predict over chunks, histories as they were, and rows that are independent of each other."""

import gymnasium as gym
import numpy as np
import pytest

import neuralsim  # noqa: F401 (registers the environments)
from neuralsim.agents.heads.chunk_policy import ActionChunkBroker, ObservationHistory
from neuralsim.envs.pusht.env import pusht_spec

SPEC = pusht_spec(64)


class Echo:
    """Predicts numbers that show its input: the newest frame's mean, and the place in the chunk."""

    spec, chunk = SPEC, 6

    def __init__(self):
        self.asked = []

    def predict_action_chunk(self, seen, seeds, prefix=None):
        self.asked.append((seen, list(seeds)))
        chunk = np.zeros((len(seen), self.chunk, 2), np.float32)
        chunk[:, :, 0] = seen.frames[:, -1].mean((1, 2, 3))[:, None] / 255
        chunk[:, :, 1] = np.arange(self.chunk) / 10
        return chunk


def frames_of(*values):
    return np.stack([np.full(SPEC.frame_shape, value, np.uint8) for value in values])


def test_a_chunk_is_predicted_every_n_action_steps_and_executed_in_order():
    head = Echo()
    runner, memory, done = ActionChunkBroker(head, n_action_steps=4), None, []
    for step in range(9):
        action, memory = runner.predict(frames_of(step * 10)[0], memory)
        done.append(action)
    assert np.allclose([a[1] for a in done], [0, 0.1, 0.2, 0.3, 0, 0.1, 0.2, 0.3, 0])
    assert np.allclose([a[0] * 255 for a in done], [0] * 4 + [40] * 4 + [80])
    assert [seeds for _, seeds in head.asked] == [[0], [1_000_003], [2_000_006]]


def test_the_history_holds_frames_and_executed_actions_and_is_no_longer_than_the_context():
    head = Echo()
    runner, memory = ActionChunkBroker(head, n_action_steps=1), None
    actions = []
    for step in range(7):
        action, memory = runner.predict(frames_of(step)[0], memory)
        actions.append(action)
    for step, (seen, _) in enumerate(head.asked):
        known = min(step + 1, SPEC.context)
        assert seen.frames.shape[1] == known
        assert seen.frames[0, :, 0, 0, 0].tolist() == list(range(step + 1 - known, step + 1))
        assert np.array_equal(seen.actions[0], np.array(actions[step + 1 - known : step]).reshape(-1, 2))


def test_an_episode_that_begins_forgets_and_its_neighbour_does_not():
    head = Echo()
    runner, memory = ActionChunkBroker(head, n_action_steps=2), None
    _, memory = runner.predict(frames_of(1, 2), memory)
    _, memory = runner.predict(frames_of(3, 4), memory)
    head.asked.clear()
    _, memory = runner.predict(frames_of(5, 6), memory, np.array([True, False]))
    lengths = {int(seen.frames[0, -1, 0, 0, 0]): seen.frames.shape[1] for seen, _ in head.asked}
    assert lengths == {5: 1, 6: 3}
    _, memory = runner.predict(frames_of(7, 8), memory)
    assert memory.age.tolist() == [2, 4]


def test_a_row_acts_alone_as_it_does_among_others():
    runner, many, one = ActionChunkBroker(Echo(), n_action_steps=3, seed=0), None, None
    for step in range(8):
        together, many = runner.predict(frames_of(step, 200 - step, 50), many)
        alone, one = runner.predict(frames_of(step), one)
        assert np.array_equal(together[:1], alone)


def test_a_memory_is_not_changed_by_going_on():
    runner = ActionChunkBroker(Echo(), n_action_steps=1)
    _, before = runner.predict(frames_of(1))
    kept = (before.chunk.copy(), before.executed.copy(), before.age.copy(), before.history.frames.copy())
    first, _ = runner.predict(frames_of(9), before)
    again, _ = runner.predict(frames_of(9), before)
    assert np.array_equal(first, again)
    for was, now in zip(kept, (before.chunk, before.executed, before.age, before.history.frames), strict=True):
        assert np.array_equal(was, now)


def test_it_acts_in_the_real_world_by_sb3s_evaluate_policy():
    from stable_baselines3.common.evaluation import evaluate_policy

    env = gym.make("neuralsim/PushTReal-v0", max_episode_steps=7)
    reward, _ = evaluate_policy(ActionChunkBroker(Echo()), env, n_eval_episodes=1, warn=False)
    assert 0 <= reward <= 7


@pytest.mark.parametrize("n_action_steps", [0, 7])
def test_more_actions_than_a_chunk_has_are_refused(n_action_steps):
    with pytest.raises(ValueError, match="n_action_steps: expected 1 to 6"):
        ActionChunkBroker(Echo(), n_action_steps=n_action_steps)


def test_frames_of_another_world_are_named():
    with pytest.raises(ValueError, match="observation: expected shape"):
        ActionChunkBroker(Echo()).predict(np.zeros((32, 32, 3), np.uint8))


def test_a_history_grows_by_what_was_done():
    seen = ObservationHistory.first(frames_of(1, 2), SPEC)
    for value in range(3, 9):
        seen = seen.then(np.full((2, 2), value / 10, np.float32), frames_of(value, value), SPEC.context)
    assert seen.frames.shape[:2] == (2, SPEC.context)
    assert seen.actions.shape == (2, SPEC.context - 1, 2)
    assert np.allclose(seen.actions[0, :, 0] * 10, seen.frames[0, 1:, 0, 0, 0])
