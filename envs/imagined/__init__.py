"""A trained world as a Gymnasium environment, a vector environment and a Stable-Baselines3 VecEnv."""

import importlib
from typing import Any

_MODULES = {"ImaginedEnv": "env", "ImaginedVectorEnv": "vector_env", "ImaginedVecEnv": "sb3_vec_env"}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public class when it is first asked for: Gymnasium's entry points name this package."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
