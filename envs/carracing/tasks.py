"""Tasks of CarRacing: what agents learn there."""

from __future__ import annotations

from neuralsim.envs.tasks.rl_task import RLTask

RL_TASKS = {
    "drive": RLTask(
        "drive", "carracing", "the world's own: along the road, and fast", horizon=300, outcome="terminated"
    )
}
"""Tasks for agents, the default first."""
