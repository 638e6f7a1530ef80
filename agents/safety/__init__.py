"""Checking actions before a robot executes them."""
