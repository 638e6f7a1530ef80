"""Policy heads of world action models."""
