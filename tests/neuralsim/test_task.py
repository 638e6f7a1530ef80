"""Task: one model serves many tasks, and frames are decoded only on request."""

import copy
import pickle

import numpy as np
import pytest
import torch

from neuralsim.imagination import Imagination
from neuralsim.state_view import View
from neuralsim.task import FunctionTask, GoalImage, LearnedTask, Outcome, SumTask


@pytest.fixture
def views(dot_model, dot_world):
    """A state one step before and one step after an action to the right, with that action."""
    frames, actions = torch.as_tensor(dot_world.starts.frames), torch.as_tensor(dot_world.starts.actions)
    state = dot_model.encode(frames, actions)
    action = torch.tensor([[1.0, 0.0]]).repeat(len(frames), 1)
    from neuralsim.noise import Noise

    after = dot_model.step(state, action, Noise.from_seeds(range(len(frames))))
    return View(dot_model, state), action, View(dot_model, after)


def test_a_view_decodes_once_and_only_when_looked_at(views, dot_model):
    _, _, view = views
    assert view.features.shape == (8, 2)
    assert view.read("reward").shape == (8,)
    assert view.uncertainty.shape == (8,)
    assert dot_model.decoded == 0
    assert not view.decoded
    assert torch.equal(view.frame, view.frame)
    assert dot_model.decoded == 1
    assert view.decoded


def test_an_unknown_head_is_named_with_those_there_are(views):
    with pytest.raises(ValueError, match=r"no head 'fun'.*reward, terminated"):
        views[2].read("fun")


def test_the_learned_task_reads_the_models_heads(views):
    outcome = LearnedTask()(*views)
    distance = views[2].state.place.norm(dim=1)
    assert torch.allclose(outcome.reward, -distance)
    assert torch.equal(outcome.terminated, distance < 0.15)
    assert LearnedTask(threshold=-1)(*views).terminated.all()


def test_a_goal_image_rewards_nearness_and_ends_there(views, dot_model, dot_world):
    goal = GoalImage(dot_world.starts.frames[0, -1], tolerance=0.09)
    outcome = goal(*views)
    place = dot_model.encode(torch.as_tensor(dot_world.starts.frames[:1]), torch.zeros(1, 1, 2)).place
    distance = (views[2].state.place - place).square().mean(1).sqrt()
    assert torch.allclose(outcome.reward, -distance)
    assert (
        outcome.terminated.tolist() == [True] + [False] * 7
    )  # only the first began there and moved no further than a step
    assert dot_model.decoded == 0


def test_a_goal_image_of_the_wrong_kind_is_refused(views):
    with pytest.raises(ValueError, match=r"GoalImage\.frame: expected uint8.*float64"):
        GoalImage(np.zeros((32, 32, 3)))(*views)
    with pytest.raises(ValueError, match=r"GoalImage\.frame: expected one frame"):
        GoalImage(np.zeros((2, 32, 32, 3), np.uint8))(*views)
    with pytest.raises(ValueError, match="tolerance"):
        GoalImage(np.zeros((32, 32, 3), np.uint8), tolerance=float("nan"))


@pytest.mark.parametrize(
    "said",
    [
        lambda b, a, after: after.features[:, 0],
        lambda b, a, after: after.features[:, 0].tolist(),
        lambda b, a, after: (after.features[:, 0].numpy(), np.zeros(8, bool)),
        lambda b, a, after: Outcome(after.features[:, 0], torch.zeros(8, dtype=torch.bool)),
    ],
)
def test_a_function_of_your_own_may_answer_in_any_array(views, said):
    outcome = FunctionTask(said)(*views)
    assert torch.allclose(outcome.reward, views[2].features[:, 0])
    assert outcome.terminated.dtype == torch.bool
    assert not outcome.terminated.any()


def test_a_function_that_answers_nonsense_is_named(views):
    def rl_task(before, action, after):
        return "well done"

    with pytest.raises(ValueError, match=r"FunctionTask rl_task: expected a reward \(8,\)"):
        FunctionTask(rl_task)(*views)


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (lambda b, a, after: after.features[:, 0], TypeError, "expected an Outcome, got Tensor; wrap"),
        (FunctionTask(lambda b, a, after: after.features), ValueError, r"shape \(8,\), got \(8, 2\)"),
        (FunctionTask(lambda b, a, after: 1.0), ValueError, r"shape \(8,\), got \(\)"),
        (FunctionTask(lambda b, a, after: (np.zeros(8), np.zeros(8))), ValueError, "terminated to be bool"),
    ],
)
def test_a_task_with_the_wrong_answer_changes_nothing(dot_world, task, error, message):
    dream = Imagination(dot_world.model, task, num_envs=8, starts=dot_world.starts)
    dream.reset(seeds=0)
    before = dream.snapshot()
    with pytest.raises(error, match=message):
        dream.step(np.zeros((8, 2), np.float32))
    assert dream.snapshot() is before


def test_wishes_add_up_and_the_end_of_any_is_the_end(views):
    one = FunctionTask(lambda b, a, after: (after.features[:, 0], after.features[:, 0] > 0.5))
    two = FunctionTask(lambda b, a, after: (after.features[:, 1], after.features[:, 1] > 0.5))
    both = SumTask(((2.0, one), (-1.0, two)))(*views)
    place = views[2].features
    assert torch.allclose(both.reward, 2 * place[:, 0] - place[:, 1])
    assert torch.equal(both.terminated, (place > 0.5).any(1))
    with pytest.raises(ValueError, match="at least one"):
        SumTask(())
    with pytest.raises(ValueError, match="pairs"):
        SumTask((one,))  # type: ignore[arg-type]


def test_another_wish_needs_no_other_model(dot_world, pushes):
    dreams = [
        Imagination(dot_world.model, task, num_envs=3, starts=dot_world.starts)
        for task in (None, FunctionTask(lambda b, a, after: torch.ones(3)), GoalImage(dot_world.starts.frames[0, 0]))
    ]
    for dream in dreams:
        dream.reset(seeds=4)
    moves = pushes(5, 3)
    rewards = [[dream.step(a).reward for a in moves] for dream in dreams]
    frames = [dream.frames() for dream in dreams]
    assert np.array_equal(frames[0], frames[1])
    assert np.array_equal(frames[0], frames[2])
    assert np.array_equal(rewards[1], np.ones((5, 3)))
    assert not np.allclose(rewards[0], rewards[2])


def test_a_goal_survives_the_deep_copy_that_gymnasium_makes(views, dot_world):
    goal = GoalImage(dot_world.starts.frames[0, -1])
    first = goal(*views)
    assert torch.equal(copy.deepcopy(goal)(*views).reward, first.reward)


def test_imagined_rewards_equal_true_ones_step_for_step(dot_world, pushes):
    # A world whose truth is known: reward i belongs to the state after action i, not before it and not one later.
    dream = Imagination(dot_world.model, num_envs=1, starts=dot_world.starts, temperature=0.0, precision="float32")
    dream.reset(options={"start": 3})
    place = dream.features()[0]
    for action in pushes(12):
        place = np.clip(place + 0.1 * action, -1, 1)
        transition = dream.step(action[None])
        assert transition.reward[0] == pytest.approx(-np.linalg.norm(place), abs=1e-5)
        assert transition.terminated[0] == (np.linalg.norm(place) < 0.15)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])  # noqa: S301 (our own bytes)
def test_a_goal_image_can_be_copied_after_use(views, copied):
    before, action, after = views
    task = GoalImage(before.model.decode(before.state)[0].numpy())
    outcome = task(before, action, after)
    again = copied(task)
    assert torch.equal(again(before, action, after).reward, outcome.reward)
    assert again.tolerance == task.tolerance
