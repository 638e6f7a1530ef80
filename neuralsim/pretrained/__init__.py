"""Trained worlds: open, register and describe them."""
