"""The wire: byte for byte openpi's, both ways; arrays may be written to; lies and strangers are refused."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from openpi_client import msgpack_numpy

from neuralsim.envs.robots import wire

DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.unicode_string_dtypes(endianness="?", min_len=1, max_len=5),
    hnp.byte_string_dtypes(min_len=1, max_len=5),
    hnp.datetime64_dtypes(endianness="?"),
)
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
SCALARS = hnp.arrays(
    st.one_of(hnp.boolean_dtypes(), hnp.integer_dtypes(), hnp.floating_dtypes(sizes=(16, 32, 64))), 3
).map(lambda array: array[0])
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=9), st.binary(max_size=9)
)
MESSAGES = st.recursive(
    st.one_of(PLAIN, ARRAYS, SCALARS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=9), inner, max_size=4)),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, types and dtypes included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and np.shape(a) == np.shape(b) and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


@given(MESSAGES)
def test_the_bytes_are_openpis_and_both_read_them_alike(message: Any) -> None:
    data = wire.pack(message)
    assert data == msgpack_numpy.packb(message)
    assert same(wire.unpack(data), msgpack_numpy.unpackb(data))


@given(ARRAYS)
def test_an_array_comes_back_equal_and_writable(array: np.ndarray) -> None:
    back = wire.unpack(wire.pack({"a": array}))["a"]
    assert same(back, np.ascontiguousarray(array).reshape(array.shape))
    assert back.flags.writeable
    assert back.flags.owndata or back.base.flags.owndata


def test_an_array_seen_through_strides_is_sent_as_it_looks() -> None:
    array = np.arange(24, dtype=np.int16).reshape(4, 6)[::2, ::-3].T
    assert np.array_equal(wire.unpack(wire.pack(array)), array)


@pytest.mark.parametrize(
    "value",
    [np.array([object()]), np.zeros(2, "f4,i2"), np.zeros(2, np.complex64), np.complex128(1j), np.zeros(2, "V3")],
    ids=["object", "structure", "complex", "complex scalar", "void"],
)
def test_structures_objects_and_complex_numbers_are_not_sent(value: Any) -> None:
    with pytest.raises(ValueError, match="expected arrays of numbers"):
        wire.pack({"a": [value]})


def array(dtype: Any = "<f4", shape: Any = (2,), data: Any = bytes(8)) -> bytes:
    """An array that says so of itself."""
    return msgpack.packb({b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape})


@pytest.mark.parametrize(
    "data",
    [
        array("|O"),
        array("|V4"),
        array("<c8", (1,)),
        array("f4,f4", (1,)),
        array("<f4", (3,)),
        array("<f4", (1,)),
        array("<f4", (-2,)),
        array("<f4", (-1, -2)),
        array("<f4", (2.0,)),
        array("<f4", "ab"),
        array("<f4", None),
        array("<U0", (10**12,), b""),
        array("|S0", (10**12,), b""),
        array("<f3", (2,)),
        array("<f4", (2,), "textual!"),
        array("<f4", (True, 2)),
        array(7),
        array([["a", "<f4"]]),
        array("<f4" * 4000),
        array("<f4", (2**62,) * 90_000),
        array("<f4", (1,) * 33 + (2,)),
        msgpack.packb({str(i): i for i in range(wire.MOST_ITEMS + 1)}),
        msgpack.packb([0] * (wire.MOST_ITEMS + 1)),
        msgpack.packb({b"__ndarray__": True}),
        msgpack.packb({b"__npgeneric__": True, b"dtype": "|O", b"data": 1}),
        msgpack.packb({b"__npgeneric__": True, b"dtype": "<i2", b"data": "many"}),
        msgpack.packb({b"__npgeneric__": True, b"dtype": "<i2"}),
        msgpack.packb({b"__npgeneric__": True, b"dtype": "<i2", b"data": 2**15}),
        msgpack.packb({b"__npgeneric__": True, b"dtype": "|S1", b"data": 2**62}),  # numpy: that many bytes
        msgpack.packb({1: 2}),
        b"",
        b"\xc1",
        b"\x93\x01",
        b"\x01\x02",
        b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
        b"\xa2\xff\xff",
    ],
)
def test_lies_and_garbage_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        wire.unpack(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_and_nothing_else(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        wire.unpack(data)


@given(MESSAGES, st.data())
def test_a_damaged_message_is_read_or_refused_and_nothing_else(message: Any, draws: st.DataObject) -> None:
    data = bytearray(wire.pack(message))
    data[draws.draw(st.integers(0, len(data) - 1))] = draws.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        wire.unpack(bytes(data))


def test_a_message_over_the_limit_is_refused_unread() -> None:
    data = wire.pack(np.zeros(1000, np.uint8))
    assert wire.unpack(data, len(data)).shape == (1000,)
    with pytest.raises(ValueError, match=f"at most {len(data) - 1} bytes, got {len(data)}"):
        wire.unpack(data, len(data) - 1)


def test_without_the_extra_the_error_says_what_to_install() -> None:
    program = "import sys; sys.modules['msgpack'] = None; from neuralsim.envs.robots.wire import pack; pack(1)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "needs msgpack, which is not installed: pip install 'neuralsim[robot]'" in done.stderr
