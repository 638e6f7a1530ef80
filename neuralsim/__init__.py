"""NeuralSim: a learned world you can open with ``gym.make``.

Importing this package is cheap: it registers the Gymnasium ids and nothing else. Models, diffusers and pygame load on
first use.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

# OpenMP threads that spin while another process holds a core slow torch up to 70 times; it is read when torch is first
# imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "envs" / "__init__.py").is_file():
    __path__.append(str(_root))  # a source checkout: envs, agents and assets lie beside this folder

from neuralsim.pretrained.registration import register  # noqa: E402
from neuralsim.spec import WorldSpec  # noqa: E402

if TYPE_CHECKING:
    from neuralsim.imagination import Imagination
    from neuralsim.pretrained.world import open_world, register_model
    from neuralsim.world_checker import check_world

__all__ = ["Imagination", "WorldSpec", "check_world", "open_world", "register", "register_model"]
__version__ = "0.1.0"

_LATER = {
    "Imagination": "imagination",
    "check_world": "world_checker",
    "open_world": "pretrained.world",
    "register_model": "pretrained.world",
}
"""Public names whose modules import torch and diffusers, and the modules."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"neuralsim.{_LATER[name]}"), name)
    raise AttributeError(f"module 'neuralsim' has no attribute {name!r}")


importlib.import_module("neuralsim.envs.registry")  # registers the worlds: Gymnasium ids and names
