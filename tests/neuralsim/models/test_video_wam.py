"""VideoWAM: it re-encodes its decoded frames now and then, row by row, and never in training; ranges of its numbers."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from neuralsim.imagination import Imagination
from neuralsim.models.joint_stream import JointConfig
from neuralsim.models.latent_world import LatentConfig
from neuralsim.models.video_wam import CodecConfig, StreamConfig, VideoWAM
from neuralsim.noise import Noise


def with_look(model: VideoWAM, look_every: int) -> VideoWAM:
    """The same sizes, another habit of looking."""
    sizes = {k: v for k, v in model.config.items() if not k.startswith("_")}
    return VideoWAM(**sizes | {"look_every": look_every})


@pytest.fixture
def looking(tiny_model: VideoWAM) -> VideoWAM:
    """A model that looks at every third step, on its own weights."""
    model = with_look(tiny_model, 3).eval()
    model.load_state_dict(tiny_model.state_dict())
    return model


def begin(model: VideoWAM, rows: int) -> tuple[object, Noise]:
    frames = torch.randint(0, 256, (rows, 1, *model.spec.frame_shape), generator=torch.Generator().manual_seed(0))
    return model.encode(frames.to(torch.uint8), torch.zeros(rows, 0, model.spec.action_size)), Noise.from_seeds(
        range(rows)
    )


@torch.inference_mode()
def test_every_so_often_tokens_are_read_off_the_drawn_frame(looking: VideoWAM, tiny_model: VideoWAM) -> None:
    tiny_model.look_every = 10**9
    (ours, rng), (plain, _) = begin(looking, 2), begin(tiny_model, 2)
    push = torch.full((2, looking.spec.action_size), 0.5)
    for step in range(1, 4):
        ours, plain = looking.step(ours, push, rng.advance(step)), tiny_model.step(plain, push, rng.advance(step))
        if step < 3:
            assert torch.equal(ours.tokens, plain.tokens), "looked too early"
    read = looking.codec.encode(looking.codec.decode(plain.tokens))
    torch.testing.assert_close(ours.tokens, read)
    assert not torch.allclose(ours.tokens, plain.tokens), "looking changed nothing: this tests nothing"
    assert ours.unseen.tolist() == [0, 0]


@torch.inference_mode()
def test_each_row_looks_at_its_own_time(looking: VideoWAM) -> None:
    state, rng = begin(looking, 2)
    push = torch.full((2, looking.spec.action_size), 0.5)
    early = looking.step(state, push, rng)
    mixed = state.where(torch.tensor([False, True]), early)  # the second row is one step ahead
    for step in range(2):
        mixed = looking.step(mixed, push, rng.advance(step))
    assert mixed.unseen.tolist() == [2, 0]


def test_a_model_that_learns_does_not_look(looking: VideoWAM) -> None:
    looking.train()
    state, rng = begin(looking, 1)
    for step in range(4):
        state = looking.step(state, torch.zeros(1, looking.spec.action_size), rng.advance(step))
    assert state.unseen.tolist() == [4]


def test_looking_less_than_once_a_step_is_an_error(tiny_model: VideoWAM) -> None:
    with pytest.raises(ValueError, match="look_every must be 1 or more, got 0"):
        with_look(tiny_model, 0)


@pytest.mark.parametrize("steps", [0, -1, 65, 2**31, 1.0, True, None])
def test_denoising_steps_out_of_range_are_refused_wherever_they_are_set(tiny_model: VideoWAM, steps: object) -> None:
    sizes = {k: v for k, v in tiny_model.config.items() if not k.startswith("_")}
    with pytest.raises(ValueError, match="denoise_steps: expected a whole number of at least 1 and at most 64"):
        VideoWAM(**sizes | {"denoise_steps": steps})
    with pytest.raises(ValueError, match="denoise_steps: expected"):
        tiny_model.denoise_steps = steps  # type: ignore[assignment]
    if steps is not None:
        with pytest.raises(ValueError, match="denoise_steps: expected"):
            Imagination(tiny_model, denoise_steps=steps)
    assert tiny_model.denoise_steps == 1


@pytest.mark.parametrize("config", [LatentConfig, JointConfig, CodecConfig, StreamConfig])
@pytest.mark.parametrize("size", [0, -1, 2**31, 1.5, True, "8", None])
def test_every_size_of_every_config_has_a_range(config: type, size: object) -> None:
    for field in fields(config):
        if field.name != "kind":
            with pytest.raises(ValueError, match=f"{config.__name__}: {field.name}: expected a whole number from 1 to"):
                config(**{field.name: size})


@pytest.mark.parametrize("part", ["codec_config", "stream_config"])
@pytest.mark.parametrize("size", [0, -4, 2**31, 2.5, "8"])
def test_sizes_out_of_range_are_refused(tiny_model: VideoWAM, part: str, size: object) -> None:
    sizes = {k: v for k, v in tiny_model.config.items() if not k.startswith("_")}
    name = "tokens" if part == "codec_config" else "layers"
    with pytest.raises(ValueError, match=f"{name}: expected a whole number from 1 to"):
        VideoWAM(**sizes | {part: dict(sizes[part]) | {name: size}})
