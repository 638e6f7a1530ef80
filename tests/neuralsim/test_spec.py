"""WorldSpec: it refuses numbers that no world can have, and round-trips through JSON."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from neuralsim.spec import WorldSpec

PLAIN = WorldSpec("w", 64, 64, ("x", "y"), ("m", "m"), (2.0, 0.0), 10, 4, (0.0, 1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate_hz": 1e-300}, "rate_hz"),
        ({"rate_hz": float("inf")}, "rate_hz"),
        ({"rate_hz": float("nan")}, "rate_hz"),
        ({"rate_hz": -10}, "rate_hz"),
        ({"context": 10**9}, "context"),
        ({"context": 0}, "context"),
        ({"action_scale": (1.0, -1.0)}, "action_scale must be finite and at least 0"),
        ({"action_scale": (1.0, float("nan"))}, "action_scale must be finite"),
        ({"action_offset": (0.0, float("inf"))}, "action_offset must be finite"),
        ({"action_names": ("x", "x")}, r"action_names must differ.*\['x'\]"),
    ],
    ids=str,
)
def test_numbers_that_no_world_has_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"WorldSpec 'w': .*{message}"):
        WorldSpec(**{**asdict(PLAIN), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"name": Path("some") / "world"},
        {"rate_hz": np.float32(12.5), "context": np.int64(3)},
        {"height": np.int32(64), "action_scale": np.array([1.0, 0.5])},
    ],
    ids=str,
)
def test_paths_and_numpy_numbers_go_through_json(change: dict) -> None:
    spec = WorldSpec(**{**asdict(PLAIN), **change})
    assert WorldSpec.from_json(spec.to_json()) == spec


def test_units_convert_and_clip() -> None:
    actions = np.array([[0.5, 0.3], [-1.0, 1.0]], np.float32)
    units = PLAIN.to_units(actions)
    assert units.tolist() == [[1.0, 1.0], [-2.0, 1.0]]
    assert PLAIN.from_units(units).tolist() == [[0.5, 0.0], [-1.0, 0.0]]  # the second dimension never changes
    assert PLAIN.from_units([100.0, 0.0]).tolist() == [1.0, 0.0]
    for wrong in ("text", [[1.0]], [np.nan, 0.0]):
        with pytest.raises(ValueError, match=r"action: expected (finite )?numbers \(..., 2\)"):
            PLAIN.from_units(wrong)
