"""The source tree: import order, folder sizes, unique names, short signatures, plain prose, a light import, packaging."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import layout_rules
import pytest

import neuralsim

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("neuralsim", "envs", "agents")
SOURCES = sorted(p for layer in LAYERS for p in (ROOT / layer).rglob("*.py"))
MODULES = {p: ast.parse(p.read_text(), str(p)) for p in SOURCES}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.Module) -> Iterator[str]:
    """Full names of all that a module imports anywhere, functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports are not this project's way"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(module: str) -> int | None:
    """0 for neuralsim, 1 for envs, 2 for agents, None for what is not ours."""
    parts = module.split(".")
    if parts[0] != "neuralsim":
        return None
    return LAYERS.index(parts[1]) if len(parts) > 1 and parts[1] in LAYERS else 0


# -- layers ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_point_left_only(path: Path) -> None:
    """neuralsim <- envs <- agents, the command line included: it names what it runs by entry-point strings."""
    own = LAYERS.index(path.relative_to(ROOT).parts[0])
    assert [m for m in imports(MODULES[path]) if (layer_of(m) or 0) > own] == []


@pytest.fixture(scope="module")
def files() -> list[layout_rules.SourceFile]:
    return layout_rules.source_files()


@pytest.mark.parametrize("rule", layout_rules.RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps_the_layout_rules(rule: Callable, files: list[layout_rules.SourceFile]) -> None:
    """Import order within each layer, circles, folder sizes, class names, signatures, openings and words of docstrings."""
    assert [str(violation) for violation in rule(files)] == []


BAD_SOURCES = {
    "upward": {"envs/tasks/a.py": "from neuralsim.envs.registry import X\n", "envs/registry.py": ""},
    "unordered": {"agents/elsewhere/a.py": ""},
    "circle": {
        "agents/rl/a.py": "import neuralsim.agents.rl.b\n",
        "agents/rl/b.py": "def f() -> None:\n    from neuralsim.agents.rl.a import g\n",
    },
    "crowded": {f"agents/rl/m{i}.py": "" for i in range(18)},
    "twice": {"agents/rl/a.py": "class Same:\n    x = 1\n", "agents/heads/b.py": "class Same:\n    x = 2\n"},
    "signature": {
        "agents/rl/a.py": "class A:\n    def __init__(self, a, b, c, d, e, f, g, h, *, i=1):\n        pass\n"
    },
    "undocumented": {
        "agents/rl/a.py": 'class A:\n    def f(self):\n        """Do."""\n\n    def g(self):\n        pass\n',
        "agents/rl/b.py": "class B(A):\n    def f(self):\n        pass\n",  # an override needs none
    },
    "opening": {
        "agents/rl/a.py": '"""Whether it is."""\n',
        "agents/rl/b.py": 'def f():\n    """See `g`."""\n',
        "agents/rl/c.py": 'class C:\n    x: int = 1\n    """How often."""\n',
    },
    "word": {
        "agents/rl/a.py": '"""Called by whoever asks."""\n',
        "agents/rl/b.py": "x = 1  # begin anew\n",
        "agents/rl/c.py": "class DreamWorld:\n    x = 1\n",
    },
}


@pytest.mark.parametrize("rule", BAD_SOURCES)
def test_each_layout_rule_finds_what_it_forbids(rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_rules, "ROOT", tmp_path)
    for path, text in BAD_SOURCES[rule].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    found = layout_rules.source_files()
    violations = [v for check in layout_rules.RULES for v in check(found)]
    assert {v.rule for v in violations} == {rule}
    if rule in ("opening", "word"):
        assert {str(v.path) for v in violations} == set(BAD_SOURCES[rule])


def test_top_level_names_of_other_peoples_packages_are_never_used() -> None:
    """``envs`` and ``agents`` exist only inside ``neuralsim``."""
    wrong = {name(p): m for p, tree in MODULES.items() for m in imports(tree) if m.split(".")[0] in ("envs", "agents")}
    assert wrong == {}


# -- packaging ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_list_of_packages_equals_the_folders(project: dict) -> None:
    folders = set()
    for top in (*LAYERS, "assets"):
        for init in (ROOT / top).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT).parts
            folders.add(".".join(parts if top == "neuralsim" else ("neuralsim", *parts)))
    assert set(project["tool"]["setuptools"]["packages"]) == folders


def test_every_python_file_lies_in_a_package() -> None:
    assert [name(p) for p in SOURCES if not (p.parent / "__init__.py").is_file()] == []


def test_the_package_is_marked_as_typed(project: dict) -> None:
    assert (ROOT / "neuralsim" / "py.typed").is_file()
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["neuralsim"]


def test_everything_imported_is_declared(project: dict) -> None:
    extras = {k: v for k, v in project["project"]["optional-dependencies"].items() if k != "dev"}
    dependencies = sum(extras.values(), list(project["project"]["dependencies"]))
    declared = {re.split(r"[\[<>=! ]", d)[0].lower().replace("-", "_") for d in dependencies}
    provides = importlib.metadata.packages_distributions()
    undeclared = {}
    for path, tree in MODULES.items():
        for module in imports(tree):
            top = module.split(".")[0]
            if top == "neuralsim" or top in sys.stdlib_module_names:
                continue
            if not {d.lower().replace("-", "_") for d in provides.get(top, [])} & declared:
                undeclared[name(path)] = top
    assert undeclared == {}


def test_torch_is_bounded_and_pygame_is_pygame(project: dict) -> None:
    dependencies = project["project"]["dependencies"]
    assert any(re.fullmatch(r"torch>=[\d.]+,<[\d.]+", d) for d in dependencies)
    assert not any("pygame-ce" in d for d in dependencies)
    assert all(d.metadata["Name"].lower() != "pygame-ce" for d in importlib.metadata.distributions())


def test_versions_and_licence_agree(project: dict) -> None:
    version = project["project"]["version"]
    assert neuralsim.__version__ == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text()


# -- the import --------------------------------------------------------------------------------------------------------------------


def python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_import_loads_nothing_heavy_and_registers_the_worlds() -> None:
    heavy = ("torch", "diffusers", "pygame", "stable_baselines3", "minari", "matplotlib", "tyro", "rich", "cv2", "av")
    loaded = python(
        "import sys, gymnasium, neuralsim\n"
        "assert {'neuralsim/PushT-v0', 'neuralsim/PushTReal-v0'} <= set(gymnasium.registry)\n"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    assert loaded.strip() == "[]"


def test_import_loads_next_to_nothing_beyond_torch_and_gymnasium() -> None:
    """Modules of ours alone, and few; 'neuralsim bench' measures the time, with a target of 0.3 s."""
    program = (
        "import torch, gymnasium, sys\nbefore = set(sys.modules)\nimport neuralsim\n"
        "new = set(sys.modules) - before\nprint(*{n.split('.')[0] for n in new} - sys.stdlib_module_names, len(new))"
    )
    *packages, count = python(program).split()
    assert set(packages) <= {"neuralsim", "lazy_loader", "packaging"}
    assert int(count) < 60


def test_passive_waiting_is_set_before_torch_unless_the_user_says_otherwise() -> None:
    assert python(
        "import os; os.environ.pop('OMP_WAIT_POLICY', 0); import neuralsim; print(os.environ['OMP_WAIT_POLICY'])"
    ) == ("PASSIVE\n")


# -- sources -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_everything_public_has_a_docstring(path: Path) -> None:
    """Modules, classes, functions. Methods that override one of a class of ours or of a library need none."""
    tree = MODULES[path]
    public = [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name[0] != "_")]
    assert [getattr(n, "name", "module") for n in public if not ast.get_docstring(n)] == []


FORBIDDEN_CALLS = {
    "pickle.load",
    "pickle.loads",
    "torch.load",
    "yaml.load",
    "eval",
    "exec",
    "numpy.random.seed",
    "np.random.seed",
}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_is_unpickled_evaluated_or_seeded_globally(path: Path) -> None:
    made = [n for n in ast.walk(MODULES[path]) if isinstance(n, ast.Call)]
    # torch's own reader of bare weights builds tensors and nothing else.
    bare = [n for n in made if ast.unparse(n.func) == "torch.load" and "weights_only=True" in ast.unparse(n)]
    calls = {ast.unparse(n.func): n.lineno for n in made if n not in bare}
    assert {c: line for c, line in calls.items() if c in FORBIDDEN_CALLS} == {}
    unsafe = [
        n.lineno
        for n in ast.walk(MODULES[path])
        if isinstance(n, ast.keyword)
        and n.arg == "allow_pickle"
        and not (isinstance(n.value, ast.Constant) and not n.value.value)
    ]
    assert unsafe == []


def test_no_file_is_a_drawer_of_odds_and_ends() -> None:
    drawers = {"utils", "util", "common", "helpers", "helper", "misc", "manager", "base"}
    assert [name(p) for p in SOURCES if p.stem in drawers] == []
