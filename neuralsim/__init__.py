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

import gymnasium  # noqa: E402

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


def _register() -> None:
    """Tell Gymnasium of the worlds; the classes are imported when one is made."""
    if "neuralsim/PushT-v0" in gymnasium.registry:
        return
    for name, world in (("PushT", "pusht"), ("TwoRoom", "tworoom"), ("CarRacing", "carracing")):
        gymnasium.register(
            id=f"neuralsim/{name}-v0",
            entry_point="neuralsim.envs.imagined:ImaginedEnv",
            vector_entry_point="neuralsim.envs.imagined:ImaginedVectorEnv",
            kwargs={"world": world},
        )
    gymnasium.register(
        id="neuralsim/PushTReal-v0", entry_point="neuralsim.envs.pusht.env:PushTRealEnv", max_episode_steps=300
    )
    gymnasium.register(
        id="neuralsim/TwoRoomReal-v0", entry_point="neuralsim.envs.tworoom.env:TwoRoomRealEnv", max_episode_steps=200
    )
    gymnasium.register(
        id="neuralsim/CarRacingReal-v0",
        entry_point="neuralsim.envs.carracing.env:CarRacingRealEnv",
        max_episode_steps=334,
    )


_register()
