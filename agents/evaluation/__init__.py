"""Evaluating policies and worlds in imagined and real environments."""
