"""A trained world as a Gymnasium environment, a vector environment and a Stable-Baselines3 VecEnv."""

from neuralsim.envs.imagined.env import ImaginedEnv, ImaginedVectorEnv

__all__ = ["ImaginedEnv", "ImaginedVectorEnv"]
