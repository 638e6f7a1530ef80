from .config import TrainConfig
from .recipes import find_recipe
from .trainer import train

__all__ = [
    "TrainConfig",
    "find_recipe",
    "train",
]
