"""A library that is missing is told from one that is broken, and a name from a module that fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuralsim.runtime.imports import load_entry_point, require_extra


def test_a_missing_library_says_how_to_get_it() -> None:
    with (
        pytest.raises(
            ValueError, match=r"this needs no_such_library, which is not installed: pip install 'neuralsim\[data\]'"
        ),
        require_extra("this", "data"),
    ):
        import no_such_library  # noqa: F401


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise ImportError('numpy.core.multiarray failed to import')", "numpy.core.multiarray failed to import"),
        ("raise ImportError('libGL.so.1: cannot open shared object file')", "libGL.so.1"),
        ("import broken_library.missing_part", "missing_part"),
    ],
)
def test_a_broken_library_shows_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    (tmp_path / "broken_library").mkdir()
    (tmp_path / "broken_library" / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"installed but cannot be imported .*{reason}"), require_extra("this", "data"):
        import broken_library  # noqa: F401


def test_an_entry_point_is_found_or_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_functions.py").write_text("def act():\n    return 7\nnumber = 3\n")
    (tmp_path / "own_failure.py").write_text("raise ImportError('cannot import name x')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert load_entry_point("own_functions:act", "--policy")() == 7
    for name, reason in (
        ("own_functions:missing", "has no function 'missing'"),
        ("own_functions:number", "has no function 'number'"),
        ("no_such_module:act", "No module named 'no_such_module'"),
        ("own_failure:act", "cannot import name x"),
    ):
        with pytest.raises(ValueError, match=f"--policy {name}: .*{reason}"):
            load_entry_point(name, "--policy")
