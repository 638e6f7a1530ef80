from .heads.chunk_policy import ActionChunkBroker, ActionChunkPolicy
from .planning.planner import Planner, PlannerConfig, goal_image
from .planning.solvers import CEM, ICEM, MPPI, RandomShooting
from .policies.policy import Policy
from .policies.resolve import resolve_policy
from .robot.control_loop import ControlLoop
from .safety.monitor import SafetyMonitor
from .serving.client import PolicyClient
from .serving.server import PolicyServer

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "ActionChunkBroker",
    "ActionChunkPolicy",
    "ControlLoop",
    "Planner",
    "PlannerConfig",
    "Policy",
    "PolicyClient",
    "PolicyServer",
    "RandomShooting",
    "SafetyMonitor",
    "goal_image",
    "resolve_policy",
]
