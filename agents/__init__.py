"""Everything that acts: scripted explorers, the keyboard, planners, policies. Names load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuralsim.agents.planning.planner import Planner, PlannerConfig, goal_image
    from neuralsim.agents.planning.solvers import CEM, ICEM, MPPI, RandomShooting

__all__ = ["CEM", "ICEM", "MPPI", "Planner", "PlannerConfig", "RandomShooting", "goal_image"]

_LATER = {
    "CEM": "planning.solvers",
    "ICEM": "planning.solvers",
    "MPPI": "planning.solvers",
    "Planner": "planning.planner",
    "PlannerConfig": "planning.planner",
    "RandomShooting": "planning.solvers",
    "goal_image": "planning.planner",
}
"""Public names whose modules import torch and diffusers, and the modules."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"neuralsim.agents.{_LATER[name]}"), name)
    raise AttributeError(f"module 'neuralsim.agents' has no attribute {name!r}")
