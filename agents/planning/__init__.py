"""Planners, solvers and planning trials."""
