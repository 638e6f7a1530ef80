"""The reader: what it says of true frames is true, to a stated error; what is not there it does not find."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuralsim.envs.pusht.env import (
    GOAL_POSE,
    PUSHER_RADIUS,
    PushTRealEnv,
    block_inside,
    block_polygons,
    distance_to_block,
    random_state,
)
from neuralsim.envs.pusht.state_estimator import PushTStateEstimator
from neuralsim.evaluation.image_metrics import mask_iou
from neuralsim.evaluation.state_estimator import StateEstimate
from neuralsim.evaluation.statistics import turn


@pytest.fixture(scope="module")
def reader() -> PushTStateEstimator:
    return PushTStateEstimator()


@pytest.fixture(scope="module")
def env() -> PushTRealEnv:
    return PushTRealEnv()


def draw(env: PushTRealEnv, states: np.ndarray) -> np.ndarray:
    frames = []
    for state in states:
        env.set_state(state)
        frames.append(env.frame(64))
    return np.stack(frames)


def errors(reading: StateEstimate, states: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pusher and block place error in units, block angle error in degrees."""
    return (
        np.linalg.norm(reading.pusher - states[:, :2], axis=1),
        np.linalg.norm(reading.block[:, :2] - states[:, 2:4], axis=1),
        turn(reading.block[:, 2], states[:, 4]),
    )


def touching(rng: np.random.Generator) -> np.ndarray:
    """A state with the pusher just touching the block."""
    while True:
        state = random_state(rng)
        edge = block_polygons(state[2:])[rng.integers(2)]
        state[:2] = np.clip(edge[0] + rng.normal(size=2) * 40, 16, 496)
        if PUSHER_RADIUS - 1 < distance_to_block(state[:2], state[2:]) < PUSHER_RADIUS + 1:
            return state


def test_floor_on_true_frames(reader, env):
    """Free, in contact and near the goal (where grey lies on green): half a unit and a fifth of a degree on average, nothing far off."""
    rng = np.random.default_rng(0)
    states = [random_state(rng, near_goal=i % 3 == 0) for i in range(240)] + [touching(rng) for _ in range(60)]
    states = np.stack(states)
    reading = reader(draw(env, states))
    pusher, place, angle = errors(reading, states)
    assert reading.pusher_found.all()
    assert reading.block_found.all()
    assert (reading.pieces == 1).all()
    assert pusher.mean() < 0.6
    assert pusher.max() < 2.5
    assert place.mean() < 0.6
    assert place.max() < 4
    assert angle.mean() < 0.2
    assert angle.max() < 3
    assert reading.misfit.mean() < 0.08
    assert np.abs(reading.size - 1).max() < 0.05, "the T's size must not depend on where it lies"


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    x=st.floats(70, 442),
    y=st.floats(70, 442),
    angle=st.floats(-np.pi, np.pi),
    px=st.floats(16, 496),
    py=st.floats(16, 496),
)
def test_any_state_is_read(reader, env, x, y, angle, px, py):
    """Anywhere, even with the pusher drawn over the block (which hides a tenth of it)."""
    state = np.array([px, py, x, y, angle])
    if not block_inside(state[2:]):
        return
    pusher, place, turned = (e[0] for e in errors(reader(draw(env, state[None])), state[None]))
    apart = distance_to_block(state[:2], state[2:]) > PUSHER_RADIUS
    assert pusher < (2.5 if apart else 8)
    assert place < (4 if apart else 8)
    assert turned < (3 if apart else 8)


@pytest.mark.parametrize("corner", [(16, 16), (16, 496), (496, 16), (496, 496), (16, 256), (256, 496)])
def test_pusher_behind_the_wall_is_read(reader, env, corner):
    """The drawn walls cover part of the disc there: without the correction it would read three units off."""
    state = np.array([*corner, 256, 200, 0.3])
    assert errors(reader(draw(env, state[None])), state[None])[0][0] < 1.5


def test_block_on_its_goal(reader, env):
    """Grey exactly over green: no green is left to see."""
    state = np.array([60, 60, *GOAL_POSE])
    _, place, angle = errors(reader(draw(env, state[None])), state[None])
    assert place[0] < 1
    assert angle[0] < 1


def test_reading_does_not_depend_on_company(reader, env):
    """A frame reads the same alone and in a batch larger than one pass."""
    rng = np.random.default_rng(3)
    frames = draw(env, np.stack([random_state(rng) for _ in range(40)]))
    together = reader(frames)
    alone = reader(frames[37:38])
    assert np.allclose(together.block[37], alone.block[0], atol=1e-3)
    assert np.allclose(together.pusher[37], alone.pusher[0], atol=1e-3)


def test_grey_levels_off_are_forgiven(reader, env):
    """A model's frames are a few grey levels off everywhere."""
    rng = np.random.default_rng(4)
    states = np.stack([random_state(rng) for _ in range(40)])
    frames = draw(env, states).astype(np.float64) + rng.normal(size=(40, 64, 64, 3)) * 6
    reading = reader(frames.clip(0, 255).astype(np.uint8))
    pusher, place, angle = errors(reading, states)
    assert pusher.max() < 6
    assert np.median(place) < 1
    assert place.max() < 6
    assert angle.max() < 6
    clean = reader(draw(env, states))
    assert mask_iou(reading.mask, clean.mask).mean() > 0.95


def test_what_is_not_there_is_lost(reader, env):
    white = np.full((1, 64, 64, 3), 255, np.uint8)
    reading = reader(white)
    assert not reading.pusher_found[0]
    assert not reading.block_found[0]
    assert not reading.mask.any()
    frame = draw(env, np.array([[60, 60, 256, 300, 0.0]]))
    frame[:, :16, :16] = 255
    reading = reader(frame)
    assert not reading.pusher_found[0]
    assert reading.block_found[0]


def test_a_torn_block_is_in_pieces(reader, env):
    """Half the T moved elsewhere: two pieces, a worse fit, the same size. Half the T gone: half the size."""
    state = np.array([[60, 60, 256, 150, 0.0]])
    whole = draw(env, state)
    torn = whole.copy()
    torn[:, 50:57, 20:44] = whole[:, 28:35, 20:44]  # the stem's lower end
    torn[:, 28:35, 20:44] = 255
    before, after = reader(whole), reader(torn)
    assert before.pieces[0] == 1
    assert after.pieces[0] == 2
    assert after.misfit[0] > before.misfit[0] + 0.2
    gone = whole.copy()
    gone[:, 28:35, 20:44] = 255
    assert reader(gone).area[0] < 0.8 * before.area[0]
    assert reader(gone).size[0] < 0.85


def test_half_hidden_block_is_read_from_what_is_seen(reader, env):
    """gym-pusht lets a pusher squeeze the block through the wall; ``of_state`` says that it is not all in sight."""
    state = np.array([[200.0, 200.0, 150.0, 474.0, 0.0]])
    reading = reader(draw(env, state))
    assert not reader.of_state(state)[2][0]
    assert errors(reading, state)[1][0] < 10
    assert abs(reading.size[0] - 1) < 0.1
    assert reader.of_state(np.array([[200.0, 200.0, 256.0, 256.0, 1.0]]))[2][0]


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 64, 64, 3), np.float32), np.zeros((64, 64, 3), np.uint8), np.zeros((1, 32, 32, 3), np.uint8)],
)
def test_wrong_frames_are_refused(reader, frames):
    with pytest.raises(ValueError, match="expected uint8 frames"):
        reader(frames)


def test_other_sizes(env):
    """Twice the pixels, half the error in pixels: about the same in units or better."""
    reader = PushTStateEstimator(size=128)
    rng = np.random.default_rng(5)
    states = np.stack([random_state(rng) for _ in range(12)])
    frames = []
    for state in states:
        env.set_state(state)
        frames.append(env.frame(128))
    pusher, place, _ = errors(reader(np.stack(frames)), states)
    assert pusher.mean() < 0.6
    assert place.mean() < 0.6
