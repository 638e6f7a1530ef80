from .imagined.env import ImaginedEnv
from .imagined.sb3_vec_env import ImaginedVecEnv
from .imagined.vector_env import ImaginedVectorEnv
from .oracle import Oracle
from .registry import RealWorld, register_real_world
from .robots.robot import Robot
from .robots.robot_env import RobotEnv
from .tasks.rl_task import find_task
from .wrappers.features import FeatureEnv

__all__ = [
    "FeatureEnv",
    "ImaginedEnv",
    "ImaginedVecEnv",
    "ImaginedVectorEnv",
    "Oracle",
    "RealWorld",
    "Robot",
    "RobotEnv",
    "find_task",
    "register_real_world",
]
