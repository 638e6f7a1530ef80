"""check_world: passes models that keep the contract and names what breaks it."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import neuralsim
from neuralsim.storage.resolve import list_worlds
from neuralsim.world_checker import WorldCheckError, check_world


def test_it_is_public_and_passes_the_video_model(tiny_model):
    neuralsim.check_world(tiny_model)


@pytest.mark.parametrize("name", list_worlds())
def test_it_passes_the_shipped_worlds(name):
    check_world(neuralsim.open_world(name, "cpu").model)


def test_it_passes_another_persons_model_and_leaves_it_as_it_was(dot_model):
    before, mode = copy.deepcopy(dot_model.state_dict()), dot_model.training
    check_world(dot_model)
    assert dot_model.training is mode
    assert all(torch.equal(v, dot_model.state_dict()[k]) for k, v in before.items())


def _nan_features(base):
    return {"features": lambda self, s: base.features(self, s) * float("nan")}


def _changes_input(base):
    def step(self, state, action, rng):
        state.place.add_(1.0)
        return base.step(self, state, action, rng)

    return {"step": step}


def _own_dice(base):
    def step(self, state, action, rng):
        state = base.step(self, state, action, rng)
        return replace(state, place=state.place + 0.1 * torch.rand_like(state.place))

    return {"step": step}


def _numpys_dice(base):
    def step(self, state, action, rng):
        np.random.normal()  # noqa: NPY002
        return base.step(self, state, action, rng)

    return {"step": step}


def _hidden_state(base):
    def step(self, state, action, rng):
        self.calls = getattr(self, "calls", 0) + 1
        state = base.step(self, state, action, rng)
        return replace(state, place=state.place + 0.01 * self.calls)

    return {"step": step}


def _batch_norm(base):
    def step(self, state, action, rng):
        state = base.step(self, state, action, rng)
        return replace(state, place=state.place - state.place.mean(0))

    return {"step": step}


def _time_first(base):
    def unroll(self, state, actions, rng):
        return base.unroll(self, state, actions, rng).map(lambda x: x.transpose(0, 1))

    return {"unroll": unroll}


def _unroll_last_with_time(base):
    def unroll_last(self, state, actions, rng):
        return base.unroll(self, state, actions, rng).map(lambda x: x[:1])

    return {"unroll_last": unroll_last}


def _raises(base):
    def encode(self, frames, actions):
        raise RuntimeError("out of cheese")

    return {"encode": encode}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            lambda base: {"features": lambda self, s: s.place.double()},
            r"features: expected torch\.float32, got torch\.float64",
        ),
        (
            lambda base: {"features": lambda self, s: s.place[:, :1]},
            r"features: expected shape \(3, 2\), got shape \(3, 1\)",
        ),
        (_nan_features, "features: expected finite"),
        (lambda base: {"decode": lambda self, s: base.decode(self, s).float()}, r"decode: expected torch\.uint8"),
        (lambda base: {"decode": lambda self, s: base.decode(self, s).movedim(-1, 1)}, "decode: expected shape"),
        (lambda base: {"uncertainty": lambda self, s: s.gone - 1}, "uncertainty: expected at least 0"),
        (
            lambda base: {"read": lambda self, s: {"reward": s.gone}},
            r"read: expected head_names, \['reward', 'terminated'\]",
        ),
        (_changes_input, "step, argument 0: expected its arguments left as they were"),
        (_own_dice, "step: expected all randomness from noise"),
        (_numpys_dice, "step: expected all randomness from noise"),
        (_hidden_state, "step, twice .* expected one, got two states"),
        (_batch_norm, "row 0 in a batch of 3 .* features: expected at most 0.01"),
        (_time_first, r"unroll of 1 actions, field place: expected shape \(3, 1\)"),
        (_unroll_last_with_time, r"unroll_last over 3 actions, field place: expected shape \(3,\)"),
        (_raises, "encode: raised RuntimeError on valid input: out of cheese"),
        (lambda base: {"feature_size": 2.5}, "feature_size: expected a whole number"),
        (lambda base: {"spec": "pusht"}, "spec: expected a WorldSpec, got pusht"),
    ],
)
def test_each_broken_promise_is_named(dot_model, broken, message):
    base = type(dot_model)
    dot_model.__class__ = type("BrokenWorld", (base,), {})
    for name, value in broken(base).items():
        if name == "spec":
            dot_model.spec = value
        else:
            setattr(dot_model.__class__, name, value)
    with pytest.raises(WorldCheckError, match=message):
        check_world(dot_model)


def test_a_weight_that_is_not_saved_is_found(dot_model):
    base = type(dot_model)

    class Forgetful(base):  # type: ignore[misc, valid-type]
        def save_pretrained(self, folder, **kwargs):
            with torch.no_grad():
                twin = copy.deepcopy(self)
                twin.gain.mul_(1.5)
            base.save_pretrained(twin, folder, **kwargs)

    dot_model.__class__ = Forgetful
    with pytest.raises(WorldCheckError, match="from_pretrained: gain: expected what was saved"):
        check_world(dot_model)


def test_a_world_that_cannot_be_steered_is_warned_of(dot_model):
    with torch.no_grad():
        dot_model.gain.zero_()
    with pytest.warns(UserWarning, match="opposite actions lead to equal futures"):
        check_world(dot_model)


def test_what_is_no_model_is_refused():
    @dataclass
    class Pretender:
        device: str = "cpu"

    with pytest.raises(WorldCheckError, match="model: expected a WorldModel, got Pretender"):
        check_world(Pretender())  # type: ignore[arg-type]


def test_the_error_is_an_assertion_error():
    assert issubclass(WorldCheckError, AssertionError)
