"""Wrappers: features as observations, discrete actions."""
