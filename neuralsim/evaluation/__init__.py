"""Metrics of world models, and the report that a world's evaluation writes."""
