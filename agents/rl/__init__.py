"""Reinforcement learning inside a world."""
