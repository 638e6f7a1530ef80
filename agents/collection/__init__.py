"""Collecting episodes into a store."""
