"""Quantized weights: a restored matrix is the original to within half a step of its group, and worlds in a folder are what is used."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from neuralsim.models.video_wam import VideoWAM
from neuralsim.pretrained.world import open_world
from neuralsim.storage.manifest import WEIGHTS, seal
from neuralsim.storage.quantization import GROUP, LEAST, SCALE, STEPS, dequantize, quantize
from neuralsim.storage.weights import save_world


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), seed=st.integers(0, 2**31), size=st.floats(1e-6, 1e6))
def test_unpacking_gives_every_number_back_to_half_a_step_of_its_group(rows, seed, size):
    columns = -(-LEAST // rows)
    numbers = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32) * size
    numbers[0, 0] = 0
    tensor = torch.from_numpy(numbers)
    back = dequantize(quantize({"part.weight": tensor}, ("part.",)))["part.weight"]
    for first in range(0, columns, GROUP):
        group, found = (x[:, first : first + GROUP] for x in (tensor, back))
        step = group.abs().amax(1, keepdim=True) / STEPS
        assert ((found - group).abs() <= step * 0.503).all()  # scales are rounded too, to one part in 256


def test_a_row_of_zeros_stays_zero_and_small_or_other_tensors_are_left_alone():
    tensors = {
        "part.zeros": torch.zeros(2, LEAST),
        "part.bias": torch.randn(LEAST),
        "part.small": torch.randn(8, 8),
        "other.weight": torch.randn(64, LEAST),
        "part.count": torch.arange(2 * LEAST).view(2, LEAST),
    }
    packed = quantize(tensors, ("part.",))
    assert packed["part.zeros"].dtype == torch.int8
    assert set(packed) - set(tensors) == {"part.zeros" + SCALE}
    back = dequantize(packed)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_packing_again_what_was_unpacked_changes_nothing():
    first = dequantize(quantize({"a": torch.randn(70, 100)}, ("a",)))
    assert torch.equal(dequantize(quantize(first, ("a",)))["a"], first["a"])


@pytest.mark.parametrize(
    "scale",
    [
        torch.ones(2),
        torch.ones(2, LEAST // GROUP),
        torch.ones(2, 1, dtype=torch.bfloat16),
        torch.ones(0, dtype=torch.bfloat16),
    ],
)
def test_scales_that_do_not_fit_are_named(scale):
    packed = quantize({"a": torch.randn(2, LEAST)}, ("a",)) | {"a" + SCALE: scale}
    with pytest.raises(ValueError, match="a: expected bfloat16 scales"):
        dequantize(packed)


def test_a_saved_world_is_what_is_used_to_the_bit_by_both_ways_of_opening_it(tmp_path):
    world = open_world("pusht", "cpu")
    folder = tmp_path / "world"
    shutil.copytree(world.folder, folder)
    save_world(world.model, folder)
    seal(folder)
    used = world.model.state_dict()
    for read in (open_world(folder, "cpu").model, VideoWAM.from_pretrained(folder)):
        assert all(torch.equal(tensor, used[name]) for name, tensor in read.state_dict().items())


@pytest.mark.parametrize(("name", "simulating"), [("pusht", torch.float16), ("carracing", torch.int8)])
def test_eight_bits_are_for_what_acts_and_for_what_moves_no_keypoints(name, simulating):
    weights = load_file(open_world(name, "cpu").folder / WEIGHTS)
    kinds = {
        weights[n].dtype for n in weights if n.startswith("stream.blocks.") and n.endswith(("qkv.weight", "up.weight"))
    }
    assert kinds == {simulating}
    acting = {weights[n].dtype for n in weights if n.startswith("joint.blocks.") and n.endswith("qkv.weight")}
    assert acting == ({torch.int8} if name == "pusht" else set())


def test_a_packed_world_whose_scales_were_cut_is_refused_by_name(tmp_path):
    world = open_world("pusht", "cpu")
    folder = tmp_path / "world"
    shutil.copytree(world.folder, folder)
    save_world(world.model, folder)
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in tensors if name.endswith(SCALE))
    save_file({k: v for k, v in tensors.items() if k != name}, folder / WEIGHTS, metadata={"format": "pt"})
    seal(folder)
    with pytest.raises(ValueError, match=name.removesuffix(SCALE)):
        open_world(folder, "cpu")
