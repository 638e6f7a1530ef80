"""Everything that acts: scripted explorers, the keyboard, planners, policies. Names load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuralsim.agents.planner import Planner, goal_image
    from neuralsim.agents.search import CEM, ICEM, MPPI, RandomShooting

__all__ = ["CEM", "ICEM", "MPPI", "Planner", "RandomShooting", "goal_image"]

_LATER = {
    "CEM": "search",
    "ICEM": "search",
    "MPPI": "search",
    "Planner": "planner",
    "RandomShooting": "search",
    "goal_image": "planner",
}
"""Public names whose modules import torch and diffusers, and the modules."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"neuralsim.agents.{_LATER[name]}"), name)
    raise AttributeError(f"module 'neuralsim.agents' has no attribute {name!r}")
