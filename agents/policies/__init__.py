"""Policies, and the one place that resolves a policy by name."""
