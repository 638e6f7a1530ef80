"""Push-T: the real environment, its simulator, metrics and robot."""
