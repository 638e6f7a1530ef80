"""A policy server and its client."""
