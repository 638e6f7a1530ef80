"""Noise: a function of seed and step, the same alone and in a batch, and of the right distribution."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralsim.noise import Noise

seeds = st.integers(-(2**70), 2**70)


@given(st.lists(seeds, min_size=1, max_size=8), st.integers(0, 50), st.integers(1, 33), st.integers(-2, 3))
def test_a_row_draws_what_it_draws_alone(many, count, size, stream):
    batch = Noise.from_seeds(many).advance(count)
    for i, seed in enumerate(many):
        alone = Noise.from_seeds([seed]).advance(count)
        assert torch.equal(batch.normal(size, stream)[i], alone.normal(size, stream)[0])
        assert torch.equal(batch.uniform(size, stream)[i], alone.uniform(size, stream)[0])


@given(seeds, st.integers(0, 1000), st.integers(0, 1000))
def test_steps_add_up_and_drawing_changes_nothing(seed, first, second):
    noise = Noise.from_seeds([seed])
    before = noise.normal(5)
    assert torch.equal(noise.advance(first).advance(second).normal(5), noise.advance(first + second).normal(5))
    assert torch.equal(noise.normal(5), before)


@given(seeds)
def test_a_shorter_draw_of_uniforms_is_the_head_of_a_longer_one(seed):
    noise = Noise.from_seeds([seed])
    assert torch.equal(noise.uniform(7), noise.uniform(20)[:, :7])


@given(seeds, st.integers(1, 1000))
def test_seeds_steps_and_streams_are_kept_apart(seed, step):
    noise = Noise.from_seeds([seed])
    draws = [noise, Noise.from_seeds([seed + 1]), noise.advance(step)]
    values = [tuple(n.uniform(8)[0].tolist()) for n in draws] + [tuple(noise.uniform(8, 1)[0].tolist())]
    assert len(set(values)) == 4


@given(st.lists(seeds, min_size=2, max_size=6), st.data())
def test_index_and_where_pick_streams(many, data):
    noise = Noise.from_seeds(many)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(many) - 1), min_size=1, max_size=9)))
    assert torch.equal(noise.index(rows).normal(3), noise.normal(3)[rows])
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(many), max_size=len(many))))
    later = noise.advance(3)
    expected = torch.where(mask[:, None], later.normal(3), noise.normal(3))
    assert torch.equal(noise.where(mask, later).normal(3), expected)


@settings(max_examples=20)
@given(seeds, st.integers(0, 10**6))
def test_normal_draws_have_mean_0_and_deviation_1(seed, count):
    # 40,000 draws: the mean's standard error is 0.005, the deviation's 0.0035; six of them, so that no honest stream
    # fails.
    draw = Noise.from_seeds([seed]).advance(count).normal(40_000)
    assert torch.isfinite(draw).all()
    assert abs(draw.mean()) < 0.03
    assert abs(draw.std() - 1) < 0.021


def test_many_seeds_at_one_step_are_as_random_as_one_seed_over_many():
    across = Noise.from_seeds(range(20_000)).normal(2)
    along = torch.cat([Noise.from_seeds([7]).advance(i).normal(2) for i in range(2_000)])
    for draw in (across, along):
        assert abs(draw.mean()) < 0.06
        assert abs(draw.std() - 1) < 0.05
        assert abs(np.corrcoef(draw[:, 0], draw[:, 1])[0, 1]) < 0.1
        assert abs(np.corrcoef(draw[:-1, 0], draw[1:, 0])[0, 1]) < 0.1


@given(seeds, st.floats(0, 4))
def test_temperature_scales(seed, temperature):
    warm, plain = Noise.from_seeds([seed], temperature=temperature), Noise.from_seeds([seed])
    assert torch.equal(warm.normal(9), temperature * plain.normal(9))
    assert warm.advance().index(torch.tensor([0])).temperature == temperature


def test_nothing_global_is_touched():
    before = torch.get_rng_state()
    Noise.from_seeds([1, 2]).advance().normal(100)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 2**64 + 5, -(2**63)])
def test_any_python_int_is_a_seed(seed):
    assert torch.isfinite(Noise.from_seeds([seed]).normal(4)).all()
