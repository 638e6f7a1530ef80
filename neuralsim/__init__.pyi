from .data.episode import Episode
from .data.store import EpisodeStore
from .imagination import Imagination
from .pretrained.registration import register
from .pretrained.world import World, open_world, register_model
from .spec import WorldSpec
from .task import FunctionTask, GoalImage, LearnedTask, StateTask, SumTask, Task
from .version import __version__
from .world_checker import check_world
from .world_model import State, WorldModel

__all__ = [
    "Episode",
    "EpisodeStore",
    "FunctionTask",
    "GoalImage",
    "Imagination",
    "LearnedTask",
    "State",
    "StateTask",
    "SumTask",
    "Task",
    "World",
    "WorldModel",
    "WorldSpec",
    "__version__",
    "check_world",
    "open_world",
    "register",
    "register_model",
]
